"""Smaller inputs on which a model does the same, for the many forwards in float64 of a proof."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import nn

from wnconvert.errors import ArgumentError
from wnconvert.verbs.models.proof.inputs.texts import InputSpec
from wnconvert.verbs.models.proof.samples import samples_of
from wnconvert.verbs.models.proof.signatures import Signature
from wnconvert.verbs.recipes.finding.told import Told
from wnconvert.verbs.recipes.tell import seen_of

__all__ = ["smaller_signature"]


#: The longest sides that are tried. A recipe says nothing of sizes: any at which all runs will do.
_SIDES = (64, 128)
#: Sizes that are multiples of it stay so, since networks halve sizes as often.
_STEP = 32


def smaller_signature(
    module: nn.Module, signature: Signature, told: Sequence[Told], forget: Callable[[], None]
) -> Signature:
    """The signature with sides of at most 64, or 128, if the module does the same at these sizes.

    It does if the same layers and norms run in the same order. ``told`` is what forwards at the sizes of
    ``signature`` told; the sizes of letters are those that somebody chose, and stay. Otherwise ``signature``.
    """
    ways = {_way(each) for each in told}
    for smaller in _candidates(signature):
        try:
            seen = seen_of(module, smaller, samples_of(smaller, 1)[0])
        except ArgumentError:  # the model does not run at this size
            continue
        finally:
            forget()
        if ways == {_way(seen)}:
            return smaller
    return signature


def _candidates(signature: Signature) -> Iterator[Signature]:
    longest = max((size for each in signature.inputs for size in _sides(each)), default=0)
    for side in _SIDES:
        if side < longest:
            inputs = tuple(_shrunk(each, side, longest) for each in signature.inputs)
            yield replace(signature, inputs=inputs, examples={})


def _sides(spec: InputSpec) -> list[int]:
    """The fixed sizes behind the batch and the channels of an image, or of a volume."""
    return [size for size in spec.shape[2:] if isinstance(size, int)] if len(spec.shape) > 3 else []


def _shrunk(spec: InputSpec, side: int, longest: int) -> InputSpec:
    """An input whose sides are all smaller by one factor."""

    def shrunk(size: int | str) -> int | str:
        if isinstance(size, str):
            return size
        step = _STEP if size % _STEP == 0 else 1
        return min(size, -(-size * side // (longest * step)) * step)

    sides = tuple(map(shrunk, spec.shape[2:])) if _sides(spec) else spec.shape[2:]
    return replace(spec, shape=(*spec.shape[:2], *sides))


def _way(told: Told) -> tuple[object, ...]:
    """What is equal for forwards that do the same: their layers and norms in order."""
    layers = [(linear.weight, linear.op, linear.groups, linear.trouble) for linear in told.linears]
    norms = [(norm.name, norm.eps, norm.trouble) for norm in told.norms]
    return tuple(layers), tuple(norms)
