"""Where the channels of a value are after views of it: an index of them is taken through the same views."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from wnconvert.verbs.recipes.tracing.trace import Trace, TracedStep, TracedValue

__all__ = ["back", "channels", "is_movement", "moved"]


#: Operators that only move elements: what they make has the elements of their first argument.
_MOVEMENTS = frozenset(
    "view _unsafe_view reshape t transpose permute squeeze unsqueeze flatten unflatten alias "
    "detach clone contiguous lift_fresh pixel_shuffle pixel_unshuffle movedim _to_copy select slice".split()
)
#: They may repeat elements, as a norm for each instance does with its statistics.
_REPEATS = frozenset(("repeat", "expand"))


def is_movement(step: TracedStep, *, repeats: bool = False) -> bool:
    """Whether a step only moves the elements of one value; ``repeats``: or repeats them.

    A step that changes the dtype computes, since it rounds.
    """
    names = _MOVEMENTS | _REPEATS if repeats else _MOVEMENTS
    return (
        step.name in names
        and len(step.outputs) == 1
        and len(step.inputs) == 1
        and step.inputs[0].dtype == step.outputs[0].dtype
    )


def back(
    trace: Trace, value: TracedValue, *, repeats: bool = False
) -> tuple[TracedValue, tuple[TracedStep, ...]]:
    """The value whose elements a value has, and the movements from that to it."""
    steps: list[TracedStep] = []
    while value in trace.makers and is_movement(trace.makers[value], repeats=repeats):
        steps.insert(0, trace.makers[value])
        value = steps[0].inputs[0]
    return value, tuple(steps)


def moved(index: Tensor, steps: Iterable[TracedStep]) -> Tensor:
    """A tensor taken through the movements of a trace."""
    for step in steps:
        kwargs = {name: value for name, value in step.kwargs.items() if name == "memory_format"}
        if step.name == "_to_copy":
            continue
        index = step.operator(index.contiguous(), *step.args[1:], **kwargs)
    return index


def channels(
    shape: Sequence[int],
    axis: int,
    steps: Iterable[TracedStep],
    axis_after: int,
    labels: Sequence[int] | None = None,
) -> list[int] | None:
    """Which channel along ``axis`` each place along ``axis_after`` holds after movements.

    None if a place holds several. ``labels`` are what channels are told by, in place of their numbers.

    >>> channels((2, 3, 4), 1, (), 1)
    [0, 1, 2]
    >>> channels((2, 3, 4), 1, (), 2) is None
    True
    """
    steps = tuple(steps)
    if not steps:
        every = list(range(shape[axis]) if labels is None else labels)
        return every if axis == axis_after else None
    named = torch.tensor(range(shape[axis]) if labels is None else labels, dtype=torch.int32)
    sizes = [1] * len(shape)
    sizes[axis] = shape[axis]
    index = moved(named.view(sizes).expand(tuple(shape)), steps)
    if not index.numel():
        return None
    rows = index.movedim(axis_after, 0).reshape(index.shape[axis_after], -1)
    first = rows[:, :1]
    return [int(each) for each in first[:, 0]] if bool((rows == first).all()) else None
