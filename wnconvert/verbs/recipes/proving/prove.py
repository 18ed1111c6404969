"""A recipe proven: a model with drawn numbers in float64, unfolded beside folded by the recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from wnconvert.errors import ArgumentError, LayerError
from wnconvert.frozen import dataclass
from wnconvert.layers.recipes import RecipeFold
from wnconvert.messages import counted, listed, printable
from wnconvert.verbs.models.proof.functions import named_outputs, run_model, tensors_of
from wnconvert.verbs.models.proof.running import Undo, forgetting
from wnconvert.verbs.models.proof.samples import Sample, arrays
from wnconvert.verbs.models.proof.signatures import Signature
from wnconvert.verbs.modules.folding.copies import CopyError, copied
from wnconvert.verbs.recipes.finding.layers import Linear
from wnconvert.verbs.recipes.finding.told import Told, told_of
from wnconvert.verbs.recipes.proving.applied import Folded, apply_fold, neutral
from wnconvert.verbs.recipes.proving.doubled import Handed, Ran, in_float64, places
from wnconvert.verbs.recipes.proving.drawn import draw
from wnconvert.verbs.recipes.tracing.trace import TracedStep, traced

__all__ = ["MOST_APART", "Proven", "prove_recipe"]


#: How far apart two forwards in float64 may be, against the largest number of either.
MOST_APART = 1e-11


@dataclass(frozen=True, slots=True)
class Proven:
    """How far apart the two were, on how many samples.

    >>> str(Proven(4, 1.234e-15))
    'float64, 4 samples, 1.2e-15'
    """

    samples: int
    apart: float

    def __str__(self) -> str:
        return f"float64, {counted(self.samples, 'sample')}, {self.apart:.1e}"


def prove_recipe(
    module: nn.Module,
    folds: Sequence[RecipeFold],
    signature: Signature,
    samples: Sequence[Sample],
    *,
    seed: int = 0,
) -> Proven:
    """Compare a module in eval mode with itself folded, both in float64 with drawn numbers.

    Some models magnify rounding from layer to layer, as attention does whose logits are large: where the two
    are further apart than ``MOST_APART``, every fold is looked at by itself, given what the unfolded run has
    there. Raises ``LayerError`` with the names of the folds that change what the model computes,
    ``ArgumentError`` for a module that cannot be run so.
    """
    model = _Model.of(module, folds, seed)
    with forgetting(model.module) as forget:  # what a run leaves behind must not change the next one
        told = model.told(signature, samples, forget)
        unfolded = [
            model.run(signature, sample, each, forget) for sample, each in zip(samples, told, strict=True)
        ]
    by_told = {id(each): (each, seen) for each, seen in zip(told, unfolded, strict=True)}
    off = {name: apart for each, seen in by_told.values() for name, apart in model.weights_apart(each, seen)}
    kept = model.make_neutral()
    instead = {key: model.instead(kept, each, seen) for key, (each, seen) in by_told.items()}
    with forgetting(model.module) as forget:
        folded = [
            model.run(signature, sample, each, forget, instead[id(each)])
            for sample, each in zip(samples, told, strict=True)
        ]
    apart = [_apart(one, other) for one, other in zip(unfolded, folded, strict=True)]
    wrong = [name for name, error in off.items() if not error <= MOST_APART]
    if not wrong and any(_first_wrong(each) is not None for each in apart):
        original = _Model.of(module, folds, seed)
        apart = [
            original.one_by_one(model, signature, sample, each, instead[id(each)])
            for sample, each in zip(samples, told, strict=True)
        ]
    wrong = wrong or [name for name in map(_first_wrong, apart) if name is not None]
    most = max([*off.values(), *(error for each in apart for error in each.values())], default=0.0)
    if wrong:
        _refuse(most, list(dict.fromkeys(name for name in wrong if name != _OUTPUTS)))
    return Proven(len(samples), most)


def _refuse(most: float, wrong: Sequence[str]) -> None:
    """Raise ``LayerError`` for folds by their names; without one, only outputs tell."""
    what = f"folded, the model is {most:.1e} off its own outputs in float64"
    by = f", by {listed(map(printable, wrong))}" if wrong else ""
    unknown = "if the model computes the same at each run, this should not be: report it with its code"
    fix = "leave these out" if wrong else unknown
    raise LayerError(f"{what}{by}: the recipe is refused", fix=fix)


@dataclass(frozen=True, slots=True)
class _Seen:
    """One run: its outputs, and what the norms and layers of folds made, by the names of the folds."""

    outputs: tuple[Tensor, ...]
    made: Mapping[str, tuple[Tensor, ...]]
    ran: Ran


#: In place of the name of a fold: what a model puts out.
_OUTPUTS = ""


def _apart(one: _Seen, other: _Seen) -> dict[str, float]:
    """How far apart two runs are, by the names of the folds and, last, in the outputs."""
    off = {name: max(map(_relative, made, other.made[name]), default=0.0) for name, made in one.made.items()}
    return {**off, _OUTPUTS: max(map(_relative, one.outputs, other.outputs), default=0.0)}


def _first_wrong(apart: Mapping[str, float]) -> str | None:
    """The first name by which two runs are too far apart; None if they are equal."""
    return next((name for name, error in apart.items() if not error <= MOST_APART), None)


def _relative(one: Tensor, other: Tensor) -> float:
    """The largest difference, against the largest number; infinite where one of them is not finite."""
    if one.shape != other.shape:
        return float("inf")
    if not one.numel():
        return 0.0
    size, apart = max(float(one.abs().max()), float(other.abs().max())), float((one - other).abs().max())
    if not math.isfinite(apart):  # as it is where a number of either is not
        return float("inf")
    return apart / size if size else 0.0


@dataclass(frozen=True, slots=True)
class _Model:
    """A copy of a module in float64 with drawn numbers, and the folds to prove."""

    module: nn.Module
    dtype: torch.dtype
    folds: Sequence[RecipeFold]

    @classmethod
    def of(cls, module: nn.Module, folds: Sequence[RecipeFold], seed: int) -> _Model:
        """A copy of a module."""
        try:
            made = copied(module)
        except CopyError as error:
            error.fix = "the proof needs a copy: remove the attributes that cannot be copied from the module"
            raise
        dtypes = [each.dtype for each in made.parameters() if each.is_floating_point()]
        made = made.cpu().double()
        draw(made, folds, seed)
        return cls(made, dtypes[0] if dtypes else torch.float32, folds)

    def tensor(self, name: str) -> Tensor | None:
        """A parameter or a buffer by its name."""
        owner, _, last = name.rpartition(".")
        found = self.module.get_submodule(owner)
        value = found._parameters.get(last)
        return found._buffers.get(last) if value is None else value

    def told(self, signature: Signature, samples: Iterable[Sample], forget: Undo) -> list[Told]:
        """What a forward of the copy tells on each sample; samples of one size share it.

        It is traced anew, since torch computes float64 by other operators than the dtype of the module.
        """
        by_sizes: dict[tuple[tuple[str, int], ...], Told] = {}
        found = []
        for sample in samples:
            sizes = tuple(sample.sizes.items())
            if sizes not in by_sizes:
                inputs = _inputs(signature, sample)

                def call(inputs: dict[str, Tensor] = inputs) -> list[Tensor]:
                    with in_float64(self.dtype):
                        return [value for _, value in named_outputs(run_model(self.module, inputs))]

                trace = traced(self.module, call, inputs.values())
                forget()
                by_sizes[sizes] = told_of(self.module, trace)
            found.append(by_sizes[sizes])
        return found

    def run(
        self,
        signature: Signature,
        sample: Sample,
        told: Told,
        forget: Undo,
        instead: Mapping[int, Handed] | None = None,
        *,
        whole: Mapping[int, Tensor] | None = None,
    ) -> _Seen:
        """A forward in float64."""
        at = places(told.trace)
        layers = {at[linear.step] for linear in told.linears}
        watched = {fold: [at[step] for step in _watched(fold, told)] for fold in self.folds}
        every = frozenset(place for some in watched.values() for place in some)
        inputs = _inputs(signature, sample)  # before: inside, a view of bits as bfloat16 is one as float64
        torch.manual_seed(sample.seed)  # what a forward draws must be the same in all runs
        with in_float64(
            self.dtype, layers=frozenset(layers), watched=every, instead=instead, whole=whole
        ) as ran:
            found = run_model(self.module, inputs)
        if ran.names != [step.name for step in at]:
            raise ArgumentError(
                "the model takes another way at each run: it cannot be proven",
                fix="give a model whose forward does not depend on its numbers",
            )
        made = {_called(fold): tuple(ran.made[place] for place in some) for fold, some in watched.items()}
        outputs = tuple(value.clone() for _, value in named_outputs(found))
        forget()
        return _Seen(outputs, made, ran)

    def one_by_one(
        self,
        folded: _Model,
        signature: Signature,
        sample: Sample,
        told: Told,
        instead: Mapping[int, Handed],
    ) -> dict[str, float]:
        """How far each fold of a model by itself is off, and its outputs; behind each it goes on as this."""
        with forgetting(self.module) as forget:
            right = self.run(signature, sample, told, forget, whole={})
        with forgetting(folded.module) as forget:
            return _apart(right, folded.run(signature, sample, told, forget, instead, whole=right.ran.made))

    def _base(self, folds: Sequence[RecipeFold], handed: Tensor) -> Tensor:
        """What the folds of a weight start from: what is stored, if one says how it is computed of that."""
        if all(fold.has_norm for fold in folds):
            return handed
        stored = self.tensor(folds[0].weight)
        if stored is None or stored.shape != handed.shape:
            raise LayerError(f"{folds[0].weight} is no weight of its own: the recipe is refused")
        return stored.detach()

    def weights_apart(self, told: Told, seen: _Seen) -> Iterator[tuple[str, float]]:
        """How far weights that a recipe computes are from those that the layers were handed."""
        at = places(told.trace)
        computed = {fold.weight: fold for fold in self.folds if not fold.has_norm}
        for linear in told.linears:
            fold = computed.get(linear.weight)
            if fold is not None:
                handed = _stored(linear, seen.ran.handed[at[linear.step]].weight)
                made = apply_fold(fold, Folded(self._base([fold], handed), None), self.tensor)
                yield fold.weight, _relative(made.weight, handed)

    def make_neutral(self) -> Mapping[str, Tensor]:
        """Make the norms of all folds neutral; what their tensors were, and all biases, by name."""
        kept: dict[str, Tensor] = {}
        for fold in self.folds:
            for name, number in neutral(fold).items() if fold.norm else ():
                value = self.tensor(name)
                if value is not None:
                    kept.setdefault(name, value.detach().clone())
                    value.detach().fill_(number)
            bias = self.tensor(fold.bias_name)
            if bias is not None:
                kept.setdefault(fold.bias_name, bias.detach().clone())
        return kept

    def instead(self, kept: Mapping[str, Tensor], told: Told, before: _Seen) -> Mapping[int, Handed]:
        """What each layer of a fold is handed, by its place; biases that are there are stored."""
        at = places(told.trace)
        found: dict[int, Handed] = {}
        biases: dict[str, Tensor] = {}

        def tensor(name: str) -> Tensor | None:
            return kept[name] if name in kept else self.tensor(name)

        for linear in told.linears:
            folds = [fold for fold in self.folds if fold.weight == linear.weight]
            if not folds:
                continue
            place = at[linear.step]
            handed = _stored(linear, before.ran.handed[place].weight)
            bias = tensor(folds[0].bias_name)
            layer = Folded(self._base(folds, handed), bias)
            for fold in sorted(folds, key=lambda fold: fold.has_norm):
                layer = apply_fold(fold, layer, tensor)
            if bias is not None and layer.bias is not None:
                biases[folds[0].bias_name] = layer.bias
            found[place] = Handed(_stored(linear, layer.weight), layer.bias if bias is None else None)
        for name, value in biases.items():
            stored = self.tensor(name)
            assert stored is not None  # noqa: S101 - it was there
            stored.detach().copy_(value)
        return found


def _inputs(signature: Signature, sample: Sample) -> dict[str, Tensor]:
    """The inputs of a sample in float64."""
    every = tensors_of(arrays(signature, sample))
    return {name: value.double() if value.is_floating_point() else value for name, value in every.items()}


def _stored(linear: Linear, handed: Tensor) -> Tensor:
    """What a layer is handed as its module stores it, and back."""
    return handed.t() if linear.op == "linear" and linear.step.name in ("mm", "addmm") else handed


def _watched(fold: RecipeFold, told: Told) -> list[TracedStep]:
    """The steps behind which a fold must have changed nothing: a norm, or the layer behind one."""
    if fold.kind == "norm behind":
        return [norm.steps[-1] for norm in told.norms if norm.name == fold.norm]
    ends = [linear.end for linear in told.linears if linear.weight == fold.weight]
    return [told.trace.makers[end] for end in ends] if fold.has_norm else []


def _called(fold: RecipeFold) -> str:
    return f"{fold.norm} into {fold.weight}" if fold.norm else fold.weight
