"""The result of an operator that guards a value: the larger of it and of a number, or the sum of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.onnx.arithmetic.known import Compared, KnownValue
from wnconvert.onnx.arithmetic.products.monomials import ADDED, LARGER, Monomial, expanded
from wnconvert.onnx.arithmetic.products.powers import guarded
from wnconvert.tensors.dtypes import DType

__all__ = ["GUARDS", "compared_by"]


_Inputs: TypeAlias = Sequence[KnownValue | None]
_Settings: TypeAlias = Mapping[str, Any]
#: The largest float32: the upper end of a Clip of opset 6 that states none.
_MOST = 3.4028234663852886e38


def _of_two(kind: str) -> Callable[[_Inputs, _Settings], Monomial | None]:
    """The rule for a value and a number, in either order."""

    def rule(inputs: _Inputs, _: _Settings) -> Monomial | None:
        if len(inputs) != 2 or inputs[0] is None or inputs[1] is None:
            return None
        a, b = inputs[0], inputs[1]
        return _with_number(kind, a, b) or _with_number(kind, b, a)

    return rule


def _with_number(kind: str, value: KnownValue, other: KnownValue) -> Monomial | None:
    """A value that is not negative, guarded by a number; None if one of them is something else."""
    number = other.number
    if value.monomial is None or number is None or (kind == ADDED and number < 0):
        return None
    made = expanded(value.monomial, other.shape)
    return _guarded(made, kind, number) if made is not None else None


def _guarded(value: Monomial, kind: str, number: Fraction) -> Monomial | None:
    """The guarded value; it is the value itself where the number changes nothing."""
    made = guarded(value, kind, max(number, Fraction(0)))
    return value if made is not None and number <= 0 else made


def _clipped(inputs: _Inputs, settings: _Settings) -> Monomial | None:
    """The larger of a value and of a number, without an upper end that it can reach."""
    value = inputs[0]
    if value is None or value.monomial is None:
        return None
    if "min" in settings or "max" in settings:  # opset 6
        least, most = settings.get("min", -_MOST), settings.get("max", _MOST)
        return _guarded(value.monomial, LARGER, Fraction(least)) if _is_no_end(most, value.dtype) else None
    if len(inputs) > 2 and not _holds_no_end(inputs[2], value.dtype):
        return None
    least_value = inputs[1] if len(inputs) > 1 else None
    if least_value is None or least_value.number is None or least_value.shape not in ((), (1,)):
        return None
    return _guarded(value.monomial, LARGER, least_value.number)


def _holds_no_end(value: KnownValue | None, dtype: DType) -> bool:
    """Whether an upper end is known, and none that a dtype can reach."""
    numbers = value.numbers if value is not None else None
    return numbers is not None and numbers.size == 1 and _is_no_end(float(numbers.reshape(-1)[0]), dtype)


def _is_no_end(most: float, dtype: DType) -> bool:
    if not dtype.foldable:
        return False
    form = FLOAT_FORMATS[dtype.name]
    return most >= form.largest


def _chosen(inputs: _Inputs, _: _Settings) -> Monomial | None:
    """The larger of a value and of a number, as a choice of one of them by comparing both."""
    condition, *sides = inputs
    if condition is None or condition.compared is None or len(sides) != 2 or None in sides:
        return None
    said = condition.compared
    value, other = sides if said.is_larger else sides[::-1]
    if value is None or other is None or other.number != said.number or value.monomial != said.value:
        return None
    return _with_number(LARGER, value, other)


def compared_by(op: str, inputs: _Inputs) -> Compared | None:
    """What truth values say of a value and a number; None of any others.

    Whether equal ones count makes no difference to which of both is the larger.
    """
    if op == "Not" and inputs and inputs[0] is not None and (said := inputs[0].compared) is not None:
        return Compared(said.value, said.number, not said.is_larger)
    if op not in _COMPARES or len(inputs) != 2 or inputs[0] is None or inputs[1] is None:
        return None
    for value, other, is_larger in (
        (inputs[0], inputs[1], op.startswith("Greater")),
        (inputs[1], inputs[0], not op.startswith("Greater")),
    ):
        if value.monomial is None or other.number is None:
            continue
        made = expanded(value.monomial, other.shape)
        if made is not None and guarded(made, LARGER, Fraction(0)) is not None:
            return Compared(made, other.number, is_larger)
    return None


_COMPARES = {"Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
#: The operators that guard a value.
GUARDS: Mapping[str, Callable[[_Inputs, _Settings], Monomial | None]] = {
    "Add": _of_two(ADDED),
    "Clip": _clipped,
    "Max": _of_two(LARGER),
    "Where": _chosen,
}
