"""What forwards of a module tell: its layers, its norms, and the folds that hold at every size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter

from torch import nn

from wnconvert.layers.kinds.table import ALL
from wnconvert.layers.recipes import RecipeFold, named_tensors, names_digest
from wnconvert.verbs.models.proof.functions import named_outputs, run_model, tensors_of
from wnconvert.verbs.models.proof.samples import Sample, arrays
from wnconvert.verbs.models.proof.signatures import Signature
from wnconvert.verbs.modules.finding.live import find_live
from wnconvert.verbs.recipes.finding.behind import left_behind, pairs_behind
from wnconvert.verbs.recipes.finding.layers import Weights, linears_in
from wnconvert.verbs.recipes.finding.norms import norms_in
from wnconvert.verbs.recipes.proving.prove import Told
from wnconvert.verbs.recipes.result import Left
from wnconvert.verbs.recipes.tracing.trace import traced

__all__ = ["digest_of", "folds_of", "known_weights", "tell"]


def tell(module: nn.Module, signature: Signature, sample: Sample) -> Told:
    """Trace a module, in eval mode, on one sample. Raises ``ArgumentError`` if it fails on that."""
    inputs = tensors_of(arrays(signature, sample))
    device = next((each.device for each in (*module.parameters(), *module.buffers())), None)
    if device is not None:
        inputs = {name: value.to(device) for name, value in inputs.items()}

    def call() -> list[object]:
        return [value for _, value in named_outputs(run_model(module, inputs))]

    trace = traced(module, call, inputs.values())  # type: ignore[arg-type]
    return Told(trace, linears_in(trace, known_weights(module)), norms_in(trace))


def known_weights(module: nn.Module) -> Weights:
    """What the modules tell of weights: those that are computed in a known way, and places for biases."""
    made = {}
    for live in find_live(module, ALL).layers:
        parts = frozenset(part.name for part in live.layer.parts.values())
        made[parts] = live.layer.name
    biases = [
        f"{name}.bias" if name else "bias"
        for name, each in module.named_modules()
        if "bias" in each._parameters or getattr(each, "bias", 0) is None
    ]
    return Weights(made, frozenset(biases))


def folds_of(told: Iterable[Told]) -> tuple[tuple[RecipeFold, ...], tuple[Left, ...]]:
    """The folds that every forward tells, and what stays, with the reasons."""
    every = [pairs_behind(each.trace, each.linears, each.norms) for each in told]
    folds: list[RecipeFold] = []
    left: dict[str, str] = {}
    for pairs, others in every:
        for name, reason in left_behind(others):
            left.setdefault(name, reason)
        folds += [pair.fold for pair in pairs]
    kept = [fold for fold in dict.fromkeys(folds) if folds.count(fold) == len(every)]
    for fold in folds:
        if fold not in kept:
            left.setdefault(fold.norm, "it follows its layer only at some sizes of the inputs")
    kept = [fold for fold in kept if fold.norm not in left]
    return tuple(kept), tuple(Left(name, reason) for name, reason in left.items())


def digest_of(module: nn.Module, folds: Sequence[RecipeFold]) -> str:
    """The digest of the names and shapes of the tensors that folds name."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    # A weight that is computed of others is no parameter, and goes by its plain name all the same.
    weights = {fold.weight: attrgetter(fold.weight)(module) for fold in folds}
    shapes = {name: tuple(tensor.shape) for name, tensor in (tensors | weights).items()}
    return names_digest(named_tensors(folds, shapes))
