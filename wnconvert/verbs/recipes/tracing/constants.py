"""What a forward computes of stored tensors alone, computed again in float64 on other numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from wnconvert.verbs.recipes.tracing.trace import Trace, TracedStep, TracedValue

__all__ = ["NARROW", "CannotReplayError", "in_double", "replayed", "scalars_of", "steps_behind"]


#: The dtypes that float64 stands for.
NARROW = (torch.float32, torch.float16, torch.bfloat16)


class CannotReplayError(Exception):
    """A value that cannot be computed again from numbers."""


def in_double(value: Any) -> Any:
    """Arguments with float64 in place of narrower dtypes, and of tensors of these."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype in NARROW else value
    if isinstance(value, torch.dtype):
        return torch.float64 if value in NARROW else value
    if isinstance(value, (tuple, list)):
        return type(value)(in_double(each) for each in value)
    if isinstance(value, dict):
        return {key: in_double(each) for key, each in value.items()}
    return value


def steps_behind(trace: Trace, value: TracedValue) -> tuple[TracedStep, ...]:
    """The steps that a value is computed by, in order."""
    found: dict[int, TracedStep] = {}
    todo = [value]
    while todo:
        step = trace.makers.get(todo.pop())
        if step is not None and step.number not in found:
            found[step.number] = step
            todo += step.inputs
    return tuple(found[number] for number in sorted(found))


def replayed(trace: Trace, value: TracedValue, numbers: Mapping[TracedValue, Tensor]) -> Tensor:
    """A value of a trace in float64, of other numbers for stored tensors.

    Raises ``CannotReplayError`` where a number is lacking, or an operator does not run again.
    """
    known: dict[TracedValue, Any] = {each: in_double(number) for each, number in numbers.items()}
    known |= {each: in_double(tensor) for each, tensor in trace.constants.items() if not tensor.is_meta}

    def filled(argument: Any) -> Any:
        if isinstance(argument, TracedValue):
            if argument not in known:
                raise CannotReplayError
            return known[argument].clone()  # the operator may write to it
        if isinstance(argument, (tuple, list)):
            return type(argument)(filled(each) for each in argument)
        if isinstance(argument, Mapping):
            return {key: filled(each) for key, each in argument.items()}
        return torch.device("cpu") if isinstance(argument, torch.device) else in_double(argument)

    for step in steps_behind(trace, value):
        try:
            made = step.operator(*filled(step.args), **filled(step.kwargs))
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise CannotReplayError from error
        tensors = [made] if isinstance(made, Tensor) else [each for each in made if isinstance(each, Tensor)]
        known |= dict(zip(step.outputs, map(in_double, tensors), strict=False))
    if value not in known:
        raise CannotReplayError
    return in_double(known[value])  # type: ignore[no-any-return]


def scalars_of(steps: Iterator[TracedStep] | tuple[TracedStep, ...]) -> tuple[float, ...]:
    """The real numbers among the arguments of steps."""

    def inside(argument: Any) -> Iterator[float]:
        if isinstance(argument, float):
            yield argument
        elif isinstance(argument, (tuple, list)):
            for each in argument:
                yield from inside(each)

    return tuple(number for step in steps for number in inside([*step.args, *step.kwargs.values()]))
