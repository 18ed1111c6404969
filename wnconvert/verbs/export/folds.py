"""A folded checkpoint, proven equal to the model that it was folded for."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wnconvert.errors import ArgumentError, VerifyError
from wnconvert.frozen import dataclass
from wnconvert.layers.kinds.table import ALL
from wnconvert.layers.matching import neighbour_of
from wnconvert.layers.recipes import Recipe, RecipeFold
from wnconvert.layers.rules import AffineBefore, Rule
from wnconvert.layers.schemes import Layer
from wnconvert.messages import counted, listed
from wnconvert.plan.names.trees import renamed_state
from wnconvert.plan.plan import Plan
from wnconvert.plan.selection.scope import choose
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.storage.files import located
from wnconvert.tensors.blocks import Array
from wnconvert.verbs.export.check import first_run, reference_text
from wnconvert.verbs.export.graph import tensors_sha256
from wnconvert.verbs.export.request import Question, question_of
from wnconvert.verbs.export.told import folds_of_layers
from wnconvert.verbs.models.loading.weights import load_weights
from wnconvert.verbs.models.proof.causes.steady import Run
from wnconvert.verbs.models.proof.functions import Exportable, function_of
from wnconvert.verbs.models.proof.handed import Beside, HandedProof, LayerCall, handed_in, handed_proof
from wnconvert.verbs.models.proof.inputs.texts import Range
from wnconvert.verbs.models.proof.proof import ATOL, RTOL, Proof, prove
from wnconvert.verbs.models.proof.report import ExportReport, TimedSteps
from wnconvert.verbs.models.proof.running import evaluating
from wnconvert.verbs.models.proof.samples import arrays
from wnconvert.verbs.models.proof.signatures import Data
from wnconvert.verbs.modules.convert import fold_module
from wnconvert.verbs.modules.finding.live import find_live
from wnconvert.verbs.modules.folding.copies import copied
from wnconvert.verbs.shared.digests import sha256_of_each
from wnconvert.verbs.shared.options import renaming_of
from wnconvert.verbs.shared.progress import StepsProgress, steps_progress
from wnconvert.verbs.shared.proofs import ModelProof, Prove
from wnconvert.verbs.shared.recipes import recipe_given

__all__ = ["check_checkpoint", "prove_checkpoint"]


def check_checkpoint(
    path: str | os.PathLike[str],
    reference: Exportable,
    *,
    inputs: Any,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    ranges: Iterable[str] | Mapping[str, Range | tuple[int, int]] = (),
    data: Iterable[Data] = (),
    outputs: Sequence[str] = (),
    recipe: str | os.PathLike[str] | Recipe | None = None,
    only: str | None = None,
    strip_prefix: Iterable[str] = (),
    rtol: float = RTOL,
    atol: float = ATOL,
    min_snr: float | None = None,
    outliers: float = 0.0,
    samples: int = 4,
    seed: int = 0,
    progress: StepsProgress = False,
) -> ExportReport:
    """Run a model with the weights of a folded checkpoint beside the unfolded model, and compare.

    ``reference`` is the unfolded module with its own weights. A copy of it is folded where the file is: the
    weights that the file has plain, and by ``recipe`` the norms that it does not have; then the file is
    loaded into it, strictly. Both are run on ``samples`` at several sizes, as ``check_onnx`` does, and the
    weight that each folded layer is handed is compared with the reference's, times its norm. Of a norm that
    ``recipe`` tells and the file keeps, layer and norm are compared together, with the eps of the module.

    Returns a report that is true if all outputs and weights are equal. Raises the errors of ``check_onnx``
    and of ``fold_module``, and ``InputError`` where the file does not fit. The module is left as it was.

    >>> net = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3))
    >>> recipe = Recipe((RecipeFold("norm behind", "0.weight", "1", eps=1e-5),))
    >>> import tempfile, wnconvert
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(wnconvert.fold_state_dict(net.state_dict(), recipe=recipe), f"{folder}/net.pt")
    ...     report = check_checkpoint(f"{folder}/net.pt", net, inputs="input=float32[1,2,T]", recipe=recipe)
    >>> bool(report), [layer.name for layer in report.layers]
    (True, ['0.weight'])
    """
    question = question_of(
        reference,
        inputs=inputs,
        dynamic=dynamic,
        ranges=ranges,
        outputs=outputs,
        rtol=rtol,
        atol=atol,
        samples=samples,
        seed=seed,
        data=data,
        min_snr=min_snr,
        outliers=outliers,
    )
    module = _module_of(question)
    steps = TimedSteps(steps_progress(progress))
    told = recipe_given(recipe)
    with evaluating(module) as forget:
        with steps("load", str(path)) as step:
            stored = _dtypes_in(path, only, strip_prefix)
            made = _Folded.of(module, stored, told)
            loaded = load_weights(made.module, located(path), only=only, strip_prefix=strip_prefix)
            step.detail = f"{counted(len(made.layers), 'layer')} folded, {loaded}"
        first = first_run(question, steps)
        with evaluating(made.module):
            layers = _compared(module, made, question, stored, steps, forget)
            proof = _proof(question, made.module, first, steps, forget)
    checkpoint = open_checkpoint(located(path))
    return ExportReport(
        model=str(path),
        size=checkpoint.size,
        reference=reference_text(module),
        proof=proof,
        layers=layers,
        steps=tuple(steps.every),
        notes=(*loaded.notes, *question.signature.notes, *proof.notes),
        sha256=sha256_of_each(checkpoint.shards),
        reference_sha256=tensors_sha256(module),
    )


def _module_of(question: Question) -> nn.Module:
    """The module that weights are loaded into. Raises ``ArgumentError`` for a program."""
    module = question.module
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise ArgumentError("a program holds its own weights", fix="give the nn.Module that it was made of")
    return module


def _compared(  # noqa: PLR0917 -- both models, and what ``check_checkpoint`` knows of them
    module: nn.Module,
    made: _Folded,
    question: Question,
    stored: Mapping[str, torch.dtype],
    steps: TimedSteps,
    forget: Callable[[], None],
) -> tuple[HandedProof, ...]:
    """Compare the weights that the layers of both models are handed."""
    with steps("weights", "handed to layers") as step:
        layers = made.compared(module, question, stored, forget)
        step.detail = f"handed to {counted(len(layers), 'layer')}"
    return layers


def _proof(
    question: Question, candidate: nn.Module, first: Run, steps: TimedSteps, forget: Callable[[], None]
) -> Proof:
    """Run both models on the samples, and compare their outputs."""
    what = f"{counted(len(question.samples), 'sample')}, unfolded and folded"
    with steps("run", what) as step:
        step.detail = what
        return prove(
            function_of(question.module, question.outputs),
            function_of(candidate, question.outputs),
            question.signature,
            samples=question.samples,
            rtol=question.rtol,
            atol=question.atol,
            leniency=question.leniency,
            first=first,
            forget=forget,
        )


def prove_checkpoint(
    reference: Exportable,
    *,
    inputs: Any,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    ranges: Iterable[str] | Mapping[str, Range | tuple[int, int]] = (),
    data: Iterable[Data] = (),
    outputs: Sequence[str] = (),
    rtol: float = RTOL,
    atol: float = ATOL,
    min_snr: float | None = None,
    outliers: float = 0.0,
    samples: int = 4,
    seed: int = 0,
) -> Prove:
    """What ``fold_file(…, prove=)`` takes: the new checkpoint is proven before it is put in place.

    ``reference`` is the module with the weights of the source; the norms that go into its layers are those
    of the plan, whatever told them. The other arguments are those of ``check_checkpoint``, which runs.
    ``fold_file`` raises ``VerifyError`` where the proof fails, and writes nothing.

    >>> prove = prove_checkpoint(nn.Conv1d(2, 3, 1), inputs="input=float32[1,2,T]")
    """

    def prove(path: Path, plan: Plan) -> ModelProof:
        folds = folds_of_layers(change.layer for _, change in plan.changes)
        report = check_checkpoint(
            path,
            reference,
            inputs=inputs,
            dynamic=dynamic,
            ranges=ranges,
            outputs=outputs,
            recipe=Recipe(folds) if folds else None,
            rtol=rtol,
            atol=atol,
            samples=samples,
            seed=seed,
            data=data,
            min_snr=min_snr,
            outliers=outliers,
        )
        if not report:
            raise VerifyError(_failure(report), fix=report.advice or "the recipe is not of this model")
        return ModelProof(
            report.reference,
            len(report.proof.samples),
            report.proof.tolerance,
            max(output.max_abs for output in report.outputs),
            len(report.layers),
            max((layer.distance for layer in report.layers), default=0.0),
        )

    return prove


def _failure(report: ExportReport) -> str:
    """Why a proof failed, in words."""
    bad = [f"{layer.name} by {layer.distance:.3g}" for layer in report.layers if not layer.passed]
    if bad:
        return f"the weights are not those of {report.reference}: {listed(bad)} of the largest in a channel"
    return f"the outputs are not those of {report.reference}; nothing is written"


# -- the model as the file has it


def _dtypes_in(
    path: str | os.PathLike[str], only: str | None, strip_prefix: Iterable[str]
) -> dict[str, torch.dtype]:
    """The dtypes of all tensors in the state dicts of a file, by their names."""
    renaming = renaming_of(strip_prefix, "", ())
    states = choose(open_checkpoint(located(path)).tree, only)
    return {
        name: getattr(torch, stored.info.dtype.name, torch.float32)
        for state in states
        for name, stored in renamed_state(state, renaming).tensors.items()
    }


def _has(names: Collection[str], name: str) -> bool:
    """Whether a name is among those of a file, also behind the names of wrappers."""
    return name in names or any(other.endswith(f".{name}") for other in names)


@dataclass(frozen=True, slots=True, eq=False)
class _Folded:
    """A copy of a module, folded where a file is; its folded layers, and the folds of norms that it keeps."""

    module: nn.Module
    layers: tuple[Layer, ...]
    kept: tuple[RecipeFold, ...]

    @staticmethod
    def of(module: nn.Module, names: Collection[str], recipe: Recipe | None) -> _Folded:
        """Fold a copy so that its names are those of the file; its numbers do not matter."""
        made, own = copied(module), module.state_dict(keep_vars=True).keys()
        folds = tuple(fold for fold in recipe.folds if _is_done(fold, names, own)) if recipe else ()
        kept = tuple(fold for fold in recipe.folds if _is_kept(fold, names, own)) if recipe else ()
        told = {fold.weight for fold in folds}
        live = [each for each in find_live(made, ALL).layers if _has(names, each.layer.name)]
        plain = {each.layer.name for each in live if not _has(names, each.layer.original.name)}
        layers = [escape(name) for name in (*plain, *told)]
        if not layers:
            return _Folded(made, (), kept)
        done = fold_module(
            made,
            kinds=ALL if plain else ("weight",),
            layers=layers,
            recipe=replace(recipe, folds=folds, names="") if recipe and folds else None,
            zero_rows="zero",
            allow_nonfinite=True,
        )
        return _Folded(made, tuple(done), kept)

    def compared(
        self,
        module: nn.Module,
        question: Question,
        stored: Mapping[str, torch.dtype],
        forget: Callable[[], None],
    ) -> tuple[HandedProof, ...]:
        """Compare the weights that folded layers are handed with the module's, on the first sample.

        ``stored`` are the dtypes in the file. Raises ``VerifyError`` where the two forwards do not call the
        same layers.
        """
        feeds = arrays(question.signature, question.samples[0])
        forget()
        before, after = (_calls(each, feeds) for each in (module, self.module))
        forget()
        if [each.function for each in before] != [each.function for each in after]:
            raise VerifyError(
                f"the folded model calls {counted(len(after), 'layer')}, the unfolded {len(before)}",
                fix="the recipe is not of this model: recipe_of(module, …) tells its own",
            )
        held = {value.data_ptr(): name for name, value in self.module.named_parameters() if value.numel()}
        tensors = _tensors(module)
        layers = {layer.name: layer for layer in self.layers}
        kept = {fold.weight: fold for fold in self.kept}
        found: list[HandedProof] = []
        for old, new in zip(before, after, strict=True):
            name = held.get(new.weight.data_ptr(), "")
            if name not in layers and name not in kept:
                continue
            layer, fold = layers.get(name), kept.get(name)
            found.append(
                handed_proof(
                    name,
                    Rule(()) if layer is None else layer.rule,
                    old.weight,
                    new.weight,
                    {} if layer is None else _norm_of(layer, tensors),
                    beside=None if fold is None else _beside(fold, old.weight, module, self.module),
                    stored=next((stored[each] for each in stored if _has((each,), name)), None),
                )
            )
        return tuple(found)


def _is_done(fold: RecipeFold, names: Collection[str], own: Collection[str]) -> bool:
    """Whether a file is one in which the fold was made, as far as names tell that the module must change."""
    if fold.kind == "affine before":
        return _has(names, fold.bias_name) and fold.bias_name not in own
    return not fold.has_norm or not _has(names, f"{fold.norm}.running_var")


def _is_kept(fold: RecipeFold, names: Collection[str], own: Collection[str]) -> bool:
    """Whether a file and the module both have the norm of a fold, which is then neutral in the file."""
    variance = f"{fold.norm}.running_var"
    is_whole = fold.has_norm and fold.kind != "affine before"
    return is_whole and _has(names, variance) and _has(names, fold.weight) and variance in own


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _beside(fold: RecipeFold, weight: Tensor, module: nn.Module, made: nn.Module) -> Beside:
    """A norm that is kept, in both modules, with the eps of the module: a recipe can have another."""
    before, after = _tensors(module), _tensors(made)
    gain = f"{fold.norm}.weight"
    eps = getattr(module.get_submodule(fold.norm), "eps", fold.eps)
    told = replace(fold, eps=eps if isinstance(eps, float) else fold.eps)
    operation = neighbour_of(told, tuple(weight.shape), gain=gain in before, shift=False)
    assert not isinstance(operation, AffineBefore)  # noqa: S101 - its norm is not one that is kept
    names = {"variance": f"{fold.norm}.running_var", "gamma": gain}
    old, new = ({role: tensors[names[role]] for role in operation.roles} for tensors in (before, after))
    return Beside(operation, old, new)


def _calls(module: nn.Module, feeds: Mapping[str, Array]) -> list[LayerCall]:
    function = function_of(module)
    return handed_in(lambda: function(feeds))


def _norm_of(layer: Layer, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the norm that was folded into a layer, by their roles."""
    neighbour = layer.rule.neighbour
    return {} if neighbour is None else {role: tensors[layer.parts[role].name] for role in neighbour.roles}
