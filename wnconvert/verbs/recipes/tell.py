"""What forwards of a module tell: its layers, its norms, and the folds that hold at every size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import attrgetter

from torch import nn

from wnconvert.layers.recipes import RecipeFold, named_tensors, names_digest
from wnconvert.verbs.models.proof.functions import named_outputs, run_model, tensors_of
from wnconvert.verbs.models.proof.samples import Sample, arrays
from wnconvert.verbs.models.proof.signatures import Signature
from wnconvert.verbs.recipes.finding.before import affines_in, folds_before, whole_folds_before
from wnconvert.verbs.recipes.finding.behind import left_behind, pairs_behind
from wnconvert.verbs.recipes.finding.computed import explained
from wnconvert.verbs.recipes.finding.told import Told, told_of
from wnconvert.verbs.recipes.result import Left
from wnconvert.verbs.recipes.tracing.trace import traced

__all__ = ["digest_of", "folds_of", "seen_of", "tell"]


def tell(module: nn.Module, signature: Signature, sample: Sample) -> Told:
    """Trace a module, in eval mode, on one sample. Raises ``ArgumentError`` if it fails on that."""
    told = seen_of(module, signature, sample)
    weights = explained(told.trace, told.linears)
    return replace(told, linears=weights.linears, computed=weights.folds, unexplained=weights.left)


def seen_of(module: nn.Module, signature: Signature, sample: Sample) -> Told:
    """What a trace holds, without what weights are computed by. Raises ``ArgumentError`` if it fails."""
    inputs = tensors_of(arrays(signature, sample))
    device = next((each.device for each in (*module.parameters(), *module.buffers())), None)
    if device is not None:
        inputs = {name: value.to(device) for name, value in inputs.items()}

    def call() -> list[object]:
        return [value for _, value in named_outputs(run_model(module, inputs))]

    trace = traced(module, call, inputs.values())  # type: ignore[arg-type]
    return told_of(module, trace)


def folds_of(told: Iterable[Told]) -> tuple[tuple[RecipeFold, ...], tuple[Left, ...]]:
    """The folds that every forward tells, and what stays, with the reasons."""
    every = [_folds_of(each) for each in told]
    left: dict[str, str] = {}
    for _, others in every:
        left |= {name: reason for name, reason in others.items() if name not in left}
    counts = Counter(fold for folds, _ in every for fold in folds)
    for fold, count in counts.items():
        if count < len(every):
            left.setdefault(fold.norm or fold.weight, "it is so only at some sizes of the inputs")
    kept = [fold for fold in counts if (fold.norm or fold.weight) not in left]
    return tuple(kept), tuple(Left(name, reason) for name, reason in left.items())


def _folds_of(told: Told) -> tuple[list[RecipeFold], dict[str, str]]:
    """The folds that one forward tells, and what stays, with the reasons."""
    trace, linears = told.trace, told.linears
    pairs, others = pairs_behind(trace, linears, told.norms)
    folds = [*told.computed, *(pair.fold for pair in pairs)]
    left = dict(left_behind(others))
    stay = [norm for norm, _ in others]
    for fold in whole_folds_before(trace, linears, stay, (each.weight for each in folds if each.has_norm)):
        folds.append(fold)
        left.pop(fold.norm)
    taken = [each.weight for each in folds if each.has_norm]
    affines, reasons = folds_before(trace, linears, affines_in(trace), taken)
    whole = {fold.norm for fold in folds}
    affines = tuple(fold for fold in affines if fold.norm not in whole)
    for fold in affines:  # a norm that uses the batch, or the instance, stays without its affine
        left.pop(fold.norm, None)
    folds += affines
    left |= {name: reason for name, reason in reasons.items() if name not in whole and name not in left}
    left |= told.unexplained
    return folds, left


def digest_of(module: nn.Module, folds: Sequence[RecipeFold]) -> str:
    """The digest of the names and shapes of the tensors that folds name."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    # A weight that is computed of others is no parameter, and goes by its plain name all the same.
    weights = {fold.weight: attrgetter(fold.weight)(module) for fold in folds}
    shapes = {name: tuple(tensor.shape) for name, tensor in (tensors | weights).items()}
    return names_digest(named_tensors(folds, shapes))
