"""Quotients and products of an ONNX model in exact fractions, by onnx's reference implementation."""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from wnconvert.tensors.blocks import Array
from wnconvert.tensors.dtypes import FOLDABLE

__all__ = ["as_fractions", "to_odd"]


def as_fractions(model: bytes, parts: Mapping[str, Array]) -> Array:
    """The only output of a lifted model of quotients, an array of fractions; NaN where there is none.

    There is none where anything on the way is infinite, is NaN, or is divided by 0.

    Operators that move elements are onnx's own, which move any object.
    """
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    ops = [
        type(name, (OpRun,), {"op_domain": "", "_run": _runs(function)})
        for name, function in _FUNCTIONS.items()
    ]
    feeds = {
        name: _fractions(array) if array.dtype.name in FOLDABLE else array for name, array in parts.items()
    }
    (made,) = ReferenceEvaluator(model, new_ops=ops).run(None, feeds)
    return np.asarray(made, dtype=object, order="C")


def to_odd(number: Fraction | float) -> float:
    """A fraction as a float64, rounded to odd: another rounding, to fewer digits, is as if it were the only.

    Source: S. Boldo, G. Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using
    rounding to odd", IEEE Transactions on Computers, 2008.

    >>> to_odd(Fraction(1, 2)), to_odd(1 + Fraction(1, 2**60)) == 1 + 2.0**-52
    (0.5, True)
    """
    nearest = float(number)
    if Fraction(nearest) == number or struct.unpack("<q", struct.pack("<d", nearest))[0] & 1:
        return nearest
    return math.nextafter(nearest, math.inf if number > nearest else -math.inf)


def _fraction(number: Any) -> Fraction | float:
    return Fraction(number) if math.isfinite(number) else math.nan


_fractions: Callable[[Any], Array] = np.frompyfunc(_fraction, 1, 1)


def _runs(function: Callable[..., Any]) -> Callable[..., tuple[Array]]:
    """An operator of onnx's reference implementation: a function of the elements of its inputs.

    ``Clip`` of older opsets has attributes in place of inputs. Whole numbers, which make shapes, stay such.
    """

    def exact(*numbers: Any) -> Any:
        return math.nan if any(map(_is_none, numbers)) else function(*numbers)

    def run(_: Any, *inputs: Array | None, **attributes: Any) -> tuple[Array]:
        ends = [attributes.get(name) for name in ("min", "max")]
        given = [*inputs, *ends] if any(each is not None for each in ends) else inputs
        kept = [None if each is None else np.asarray(each) for each in given]
        numbers = [each if each is None or each.dtype == object else _fractions(each) for each in kept]
        made = np.frompyfunc(exact, len(numbers), 1)(*numbers)
        whole = all(each.dtype.kind in "iu" for each in kept if each is not None)
        return (np.asarray(made, dtype=np.int64 if whole else object),)

    return run


def _is_none(number: Any) -> bool:
    """Whether it is what stands where there is no fraction."""
    return isinstance(number, float) and math.isnan(number)


def _clipped(x: Any, least: Any = None, most: Any = None) -> Any:
    above = x if least is None else max(x, least)
    return above if most is None else min(above, most)


def _over(x: Any, y: Any) -> Any:
    return x / y if y else math.nan


#: What operators make of elements.
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "Mul": operator.mul,
    "Div": _over,
    "Reciprocal": lambda x: _over(Fraction(1), x),
    "Max": lambda *each: max(each),
    "Min": lambda *each: min(each),
    "Clip": _clipped,
    "Cast": lambda x: x,
    "CastLike": lambda x, _: x,
}
