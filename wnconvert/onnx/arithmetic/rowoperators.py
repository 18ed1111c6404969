"""The result of an ONNX operator as a value of rows, as far as its inputs are such values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np

from wnconvert.frozen import dataclass
from wnconvert.onnx.arithmetic.constants import axes_of, flag_attribute
from wnconvert.onnx.arithmetic.rowwise import (
    RowValue,
    added,
    larger,
    mean,
    number,
    raised,
    regrouped_rows,
    times,
    transposed_rows,
)
from wnconvert.tensors.blocks import Array

__all__ = ["RowInput", "row_result"]


#: The epsilon of a BatchNormalization that states none: 1e-5 as float32.
_EPS = 9.999999747378752e-06
_HALF = Fraction(1, 2)


@dataclass(frozen=True, slots=True)
class RowInput:
    """An input of an operator: its numbers where they are known, and its rows."""

    numbers: Array | None
    rows: RowValue | None

    @property
    def value(self) -> RowValue | None:
        """The rows; equal numbers are a value too."""
        numbers = self.numbers
        if numbers is not None and numbers.size and numbers.dtype.kind == "f":
            first = numbers.reshape(-1)[0]
            if bool(np.all(numbers == first)):
                return number(float(first), numbers.shape)
        return self.rows


#: Inputs (None for one that is left out, or unknown), and plain attributes.
_Inputs: TypeAlias = Sequence[RowInput | None]
_Settings: TypeAlias = Mapping[str, Any]
_Rule: TypeAlias = Callable[[_Inputs, _Settings], RowValue | None]


def row_result(op: str, inputs: _Inputs, settings: _Settings) -> RowValue | None:
    """What an operator makes of its inputs; None if it is not known.

    Raises as the shape arithmetic does for what is against the specification.
    """
    rule = _RULES.get(op)
    return rule(inputs, settings) if rule is not None else None


def _value(inputs: _Inputs, at: int) -> RowValue | None:
    given = inputs[at]
    return given.value if given is not None else None


def _of_two(how: Callable[[RowValue, RowValue], RowValue | None]) -> _Rule:
    def rule(inputs: _Inputs, _: _Settings) -> RowValue | None:
        a, b = _value(inputs, 0), _value(inputs, 1)
        return how(a, b) if a is not None and b is not None and len(inputs) == 2 else None

    return rule


def _divided(a: RowValue, b: RowValue) -> RowValue | None:
    inverse = raised(b, Fraction(-1))
    return times(a, inverse) if inverse is not None else None


def _of_one(how: Callable[[RowValue], RowValue | None]) -> _Rule:
    def rule(inputs: _Inputs, _: _Settings) -> RowValue | None:
        value = _value(inputs, 0)
        return how(value) if value is not None else None

    return rule


def _power(inputs: _Inputs, _: _Settings) -> RowValue | None:
    value, exponent = _value(inputs, 0), inputs[1]
    if value is None or exponent is None or exponent.numbers is None or exponent.numbers.size != 1:
        return None
    return raised(value, Fraction(float(exponent.numbers.reshape(-1)[0])))


def _means(*, total: bool) -> _Rule:
    def rule(inputs: _Inputs, settings: _Settings) -> RowValue | None:
        value = _value(inputs, 0)
        if value is None:
            return None
        axes = axes_of([given.numbers if given else None for given in inputs], settings)
        if not axes and flag_attribute(settings, "noop_with_empty_axes"):
            return None
        every = tuple(axes or range(len(value.dims)))
        keepdims = flag_attribute(settings, "keepdims", 1)
        return mean(value, every, keepdims=keepdims, total=total)

    return rule


def _normed(inputs: _Inputs, settings: _Settings) -> RowValue | None:
    """(x - mean)/√(variance + eps)·scale + offset along axis 1; in training, of x's own mean and variance."""
    every = [_value(inputs, at) for at in range(5)]
    if None in every or [len(value.dims) for value in every[1:] if value is not None] != [1] * 4:
        return None
    x, scale, offset, middle, variance = (value for value in every if value is not None)
    if len(x.dims) < 2:
        return None
    aside = tuple(axis for axis in range(len(x.dims)) if axis != 1)
    if settings.get("training_mode", 0):
        own = mean(x, aside, keepdims=True)
        apart = added(x, own, -1) if own is not None else None
        squares = raised(apart, Fraction(2)) if apart is not None else None
        spread = mean(squares, aside, keepdims=True) if squares is not None else None
    else:
        own, spread = (_along_channels(each, len(x.dims)) for each in (middle, variance))
        apart = added(x, own, -1)
    eps = number(settings.get("epsilon", _EPS), ())
    if apart is None or spread is None or eps is None:
        return None
    inside = added(spread, eps)
    root = raised(inside, -_HALF) if inside is not None else None
    made = times(apart, root) if root is not None else None
    made = times(made, _along_channels(scale, len(x.dims))) if made is not None else None
    return added(made, _along_channels(offset, len(x.dims))) if made is not None else None


def _along_channels(value: RowValue, rank: int) -> RowValue:
    """A vector along axis 1 of a value of this rank."""
    return replace(value, dims=(*value.dims, *((),) * (rank - 2)))


def _clipped(inputs: _Inputs, settings: _Settings) -> RowValue | None:
    """The larger of a value and of a number, without an upper end."""
    value, least = _value(inputs, 0), _value(inputs, 1) if len(inputs) > 1 else None
    if value is None or "max" in settings or any(inputs[2:]):
        return None
    if "min" in settings:
        least = number(settings["min"], ())
    return larger(value, least) if least is not None else None


# -- views


def _shaped(inputs: _Inputs, settings: _Settings) -> RowValue | None:
    value, given = _value(inputs, 0), settings.get("shape")
    if given is None:
        numbers = inputs[1].numbers if inputs[1] is not None else None
        given = [int(size) for size in numbers.reshape(-1)] if numbers is not None else None
    if value is None or given is None:
        return None
    old, zeros = value.shape, flag_attribute(settings, "allowzero")
    shape = [old[at] if size == 0 and not zeros else size for at, size in enumerate(given)]
    if shape.count(-1) == 1:
        rest = math.prod(size for size in shape if size != -1)
        if rest < 1 or math.prod(old) % rest:
            return None
        shape[shape.index(-1)] = math.prod(old) // rest
    return regrouped_rows(value, shape) if all(size > 0 for size in shape) else None


def _expanded(inputs: _Inputs, _: _Settings) -> RowValue | None:
    value, shape = _value(inputs, 0), inputs[1].numbers if inputs[1] is not None else None
    one = number(1.0, [int(size) for size in shape.reshape(-1)]) if shape is not None else None
    return times(value, one) if value is not None and one is not None else None


def _squeezed(inputs: _Inputs, settings: _Settings) -> RowValue | None:
    value = _value(inputs, 0)
    if value is None:
        return None
    axes = axes_of([given.numbers if given else None for given in inputs], settings)
    rank = len(value.dims)
    gone = (
        {axis for axis in range(rank) if not value.dims[axis]} if axes is None else {a % rank for a in axes}
    )
    if any(value.dims[axis] for axis in gone):
        return None
    return replace(value, dims=tuple(dim for axis, dim in enumerate(value.dims) if axis not in gone))


def _unsqueezed(inputs: _Inputs, settings: _Settings) -> RowValue | None:
    value = _value(inputs, 0)
    axes = axes_of([given.numbers if given else None for given in inputs], settings)
    if value is None or axes is None:
        return None
    rank = len(value.dims) + len(axes)
    new, dims = {axis % rank for axis in axes}, iter(value.dims)
    return replace(value, dims=tuple(() if axis in new else next(dims) for axis in range(rank)))


def _transposed(inputs: _Inputs, settings: _Settings) -> RowValue | None:
    value = _value(inputs, 0)
    if value is None:
        return None
    return transposed_rows(value, settings.get("perm") or range(len(value.dims))[::-1])


_RULES: dict[str, _Rule] = {
    "Add": _of_two(added),
    "BatchNormalization": _normed,
    "Cast": _of_one(lambda value: value),
    "CastLike": _of_one(lambda value: value),
    "Clip": _clipped,
    "Div": _of_two(_divided),
    "Expand": _expanded,
    "Identity": _of_one(lambda value: value),
    "Max": _of_two(larger),
    "Mul": _of_two(times),
    "Pow": _power,
    "Reciprocal": _of_one(lambda value: raised(value, Fraction(-1))),
    "ReduceMean": _means(total=False),
    "ReduceSum": _means(total=True),
    "Reshape": _shaped,
    "Sqrt": _of_one(lambda value: raised(value, _HALF)),
    "Squeeze": _squeezed,
    "Sub": _of_two(lambda a, b: added(a, b, -1)),
    "Transpose": _transposed,
    "Unsqueeze": _unsqueezed,
}
