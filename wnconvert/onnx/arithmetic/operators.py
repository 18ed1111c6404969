"""The result of an ONNX operator: numbers from known numbers, and a monomial from monomials."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np

from wnconvert.numerics.rounding import cast
from wnconvert.onnx.arithmetic.constants import MOST_ELEMENTS, axes_of, evaluate, flag_attribute
from wnconvert.onnx.arithmetic.guards import GUARDS, compared_by
from wnconvert.onnx.arithmetic.known import HALF_DTYPES, KnownValue
from wnconvert.onnx.arithmetic.products.monomials import (
    Monomial,
    expanded,
    multiplied,
    regrouped,
    transposed,
    unsqueezed,
)
from wnconvert.onnx.arithmetic.products.powers import magnitude, power
from wnconvert.onnx.arithmetic.products.sums import matrix_product, summed
from wnconvert.onnx.arithmetic.rowoperators import RowInput, row_result
from wnconvert.onnx.arithmetic.rowwise import RowValue
from wnconvert.onnx.file.model import Constant
from wnconvert.onnx.file.tensors import CODES
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.dtypes import DTYPES, DType

__all__ = ["numbers_as_array", "result_of"]


#: The dtypes to which casts are followed, by their codes.
_CASTS = {
    CODES[name]: DTYPES[name]
    for name in ("float32", "int32", "int64", "bool", "float16", "float64", "bfloat16")
}
_INT64, _BOOL, _FLOAT32 = DTYPES["int64"], DTYPES["bool"], DTYPES["float32"]

#: The powers that norms are made with.
_EXPONENTS = {Fraction(number) for number in ("2", "1", "1/2", "-1/2", "-1", "-2")}


def numbers_as_array(values: Sequence[int | float], shape: tuple[int, ...], dtype: DType) -> Array | None:
    """The numbers of a small tensor as an array; None if they do not fit its dtype."""
    kind = np.bool_ if dtype == _BOOL else np.float64 if dtype.foldable or dtype.is_float8 else np.int64
    try:
        return np.array(values, kind).reshape(shape)
    except (OverflowError, ValueError):
        return None


def result_of(op: str, inputs: Sequence[KnownValue | None], settings: Mapping[str, Any]) -> KnownValue | None:
    """The result of an operator on values of which at least one is known; None if it is not known."""
    if op in {"Mul", "Div", "Pow", "Add", "Sub"} and "axis" in settings:
        return None  # opset 6 and older broadcast in another way
    numbers = _numbers(op, inputs, settings)
    first = inputs[0] if inputs else None
    rule = _RULES.get(op)
    monomial = None
    if rule is not None and first is not None:
        try:
            monomial = rule(inputs, settings)
        except (KeyError, IndexError, TypeError, ValueError):
            monomial = None  # against the specification
    rows, compared = _rows(op, inputs, settings), compared_by(op, inputs)
    known = (numbers, monomial, rows, compared.value if compared else None)
    shape = next((each.shape for each in known if each is not None), None)
    dtype, coarse = _dtype(op, inputs, settings) if shape is not None else (None, False)
    if shape is None or dtype is None or (monomial is not None and monomial.shape != shape):
        return None
    if numbers is not None and dtype.foldable:
        numbers = _rounded(numbers, dtype)
    fitting = rows if rows is not None and rows.shape == shape and dtype.foldable else None
    if numbers is None and monomial is None and fitting is None and compared is None:
        return None
    return KnownValue(shape, dtype, numbers, monomial, coarse, fitting, compared)


def _rounded(numbers: Array, dtype: DType) -> Array:
    """Numbers as the values of a float dtype that they become."""
    with np.errstate(all="ignore"):
        return cast(np.asarray(numbers, np.float64), dtype.name).astype(np.float64)


def _rows(op: str, inputs: Sequence[KnownValue | None], settings: Mapping[str, Any]) -> RowValue | None:
    """The result of an operator as a value of rows."""
    given = [RowInput(each.numbers, each.rows) if each is not None else None for each in inputs]
    try:
        return row_result(op, given, settings)
    except (KeyError, IndexError, TypeError, ValueError):
        return None  # against the specification


def _numbers(op: str, inputs: Sequence[KnownValue | None], settings: Mapping[str, Any]) -> Array | None:
    first = inputs[0] if inputs else None
    if op in {"Shape", "Size"} and first is not None:
        sizes = first.shape[slice(settings.get("start", 0), settings.get("end"))]
        return np.array(sizes, np.int64) if op == "Shape" else np.array(math.prod(first.shape))
    if op == "CastLike":
        code = _code(inputs[1].dtype) if inputs[1] is not None else None
        op, inputs, settings = "Cast", inputs[:1], {"to": code}
    arrays = [value.numbers if value is not None else None for value in inputs]
    if op == "ConstantOfShape" and isinstance(fill := settings.get("value"), Constant):
        info = fill.info if fill.tensor is None else fill.tensor.info
        if fill.values is None or info is None:
            return None
        settings = {"value": numbers_as_array(fill.values, (), info.dtype)}
    if any(array is None or array.size > MOST_ELEMENTS for array in arrays) and op != "Slice":
        return None
    return evaluate(op, arrays, settings)


def _code(dtype: DType) -> int | None:
    return next((code for code, known in _CASTS.items() if known == dtype), None)


def _dtype(
    op: str, inputs: Sequence[KnownValue | None], settings: Mapping[str, Any]
) -> tuple[DType | None, bool]:
    """The dtype of an operator's result, and whether it was rounded to a half type on the way."""
    known = [value for value in inputs if value is not None]
    if op in {"Shape", "Size"}:
        return _INT64, False
    if op in {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or"}:
        return _BOOL, False
    if op == "ConstantOfShape":
        fill = settings.get("value")
        return (fill.tensor.info.dtype if isinstance(fill, Constant) and fill.tensor else _FLOAT32), False
    if op in {"Cast", "CastLike"}:
        return _cast_to(inputs, settings)
    dtype = known[1].dtype if op == "Where" and len(known) > 1 else known[0].dtype
    arithmetic = op not in _VIEWS
    return dtype, any(value.coarse for value in known) or (arithmetic and dtype.name in HALF_DTYPES)


def _cast_to(inputs: Sequence[KnownValue | None], settings: Mapping[str, Any]) -> tuple[DType | None, bool]:
    """The dtype of a Cast or CastLike (None if the result is not known), and whether that is coarse."""
    source = inputs[0]
    if len(inputs) > 1:
        target = inputs[1].dtype if inputs[1] is not None else None
    else:
        target = _CASTS.get(settings.get("to", 0))
    if source is None or target is None:
        return None, False
    widens = source.dtype.is_float8 or (
        target.foldable and source.dtype.foldable and target.holds(source.dtype)
    )
    return target, source.coarse or (not widens and target.name in HALF_DTYPES)


_Inputs: TypeAlias = Sequence[KnownValue | None]
_Rule: TypeAlias = Callable[[_Inputs, Mapping[str, Any]], Monomial | None]


def _arrays(inputs: _Inputs) -> list[Array | None]:
    return [value.numbers if value is not None else None for value in inputs]


def _one(inputs: _Inputs) -> Monomial | None:
    return inputs[0].monomial if inputs[0] is not None else None


def _same(inputs: _Inputs, _: Mapping[str, Any]) -> Monomial | None:
    return _one(inputs)


def _cast(inputs: _Inputs, settings: Mapping[str, Any]) -> Monomial | None:
    dtype, _ = _cast_to(inputs, settings)
    return _one(inputs) if dtype is not None and dtype.foldable else None


def _shaped(inputs: _Inputs, shape: Sequence[int]) -> Monomial | None:
    monomial = _one(inputs)
    return regrouped(monomial, shape) if monomial is not None else None


def _reshape(inputs: _Inputs, settings: Mapping[str, Any]) -> Monomial | None:
    monomial = _one(inputs)
    if monomial is None:
        return None
    old = monomial.shape
    wanted = settings["shape"] if "shape" in settings else _list(inputs[1])
    shape = [
        old[at] if size == 0 and not flag_attribute(settings, "allowzero") else int(size)
        for at, size in enumerate(wanted)
    ]
    if shape.count(-1) == 1:
        rest = math.prod(size for size in shape if size != -1)
        if rest < 1 or math.prod(old) % rest:
            return None
        shape[shape.index(-1)] = math.prod(old) // rest
    return regrouped(monomial, shape) if all(size > 0 for size in shape) else None


def _list(value: KnownValue | None) -> list[int]:
    if value is None or value.numbers is None:
        raise KeyError("numbers")
    return [int(number) for number in value.numbers.reshape(-1)]


def _flatten(inputs: _Inputs, settings: Mapping[str, Any]) -> Monomial | None:
    monomial = _one(inputs)
    if monomial is None:
        return None
    shape, axis = monomial.shape, settings.get("axis", 1)
    axis += len(shape) if axis < 0 else 0
    return regrouped(monomial, (math.prod(shape[:axis]), math.prod(shape[axis:])))


def _squeeze(inputs: _Inputs, settings: Mapping[str, Any]) -> Monomial | None:
    monomial = _one(inputs)
    if monomial is None:
        return None
    axes, shape = axes_of(_arrays(inputs), settings), monomial.shape
    if axes is None:
        gone = {axis for axis, size in enumerate(shape) if size == 1}
    else:
        gone = {axis % len(shape) for axis in axes}
    if any(shape[axis] != 1 for axis in gone):
        return None
    return regrouped(monomial, [size for axis, size in enumerate(shape) if axis not in gone])


def _unsqueeze(inputs: _Inputs, settings: Mapping[str, Any]) -> Monomial | None:
    monomial, axes = _one(inputs), axes_of(_arrays(inputs), settings)
    return unsqueezed(monomial, axes) if monomial is not None and axes is not None else None


def _transpose(inputs: _Inputs, settings: Mapping[str, Any]) -> Monomial | None:
    monomial = _one(inputs)
    if monomial is None:
        return None
    order = settings.get("perm")
    return transposed(monomial, order if order is not None else range(len(monomial.dims))[::-1])


def _expand(inputs: _Inputs, _: Mapping[str, Any]) -> Monomial | None:
    monomial = _one(inputs)
    return expanded(monomial, _list(inputs[1])) if monomial is not None else None


def _multiply(inputs: _Inputs, _: Mapping[str, Any]) -> Monomial | None:
    a, b = (value.product if value is not None else None for value in inputs)
    return multiplied(a, b) if a is not None and b is not None else None


def _divide(inputs: _Inputs, _: Mapping[str, Any]) -> Monomial | None:
    a, b = (value.product if value is not None else None for value in inputs)
    inverse = power(b, Fraction(-1)) if b is not None else None
    return multiplied(a, inverse) if a is not None and inverse is not None else None


def _matrices(inputs: _Inputs, _: Mapping[str, Any]) -> Monomial | None:
    a, b = (value.product if value is not None else None for value in inputs)
    return matrix_product(a, b) if a is not None and b is not None else None


def _gemm(inputs: _Inputs, settings: Mapping[str, Any]) -> Monomial | None:
    """A·B, either transposed; with a C or a factor it is something else."""
    if len(inputs) > 2 or settings.get("alpha", 1) != 1:
        return None
    sides = [value.product if value is not None else None for value in inputs]
    for at, name in enumerate(("transA", "transB")):
        if (side := sides[at]) is not None and flag_attribute(settings, name):
            sides[at] = transposed(side, (1, 0))
    a, b = sides
    return matrix_product(a, b) if a is not None and b is not None else None


def _to_the(exponent: Fraction) -> _Rule:
    def rule(inputs: _Inputs, _: Mapping[str, Any]) -> Monomial | None:
        monomial = _one(inputs)
        return power(monomial, exponent) if monomial is not None else None

    return rule


def _power(inputs: _Inputs, _: Mapping[str, Any]) -> Monomial | None:
    monomial, exponents = _one(inputs), inputs[1].numbers if inputs[1] is not None else None
    if monomial is None or exponents is None or exponents.size != 1:
        return None
    number = float(exponents.reshape(-1)[0])
    if not math.isfinite(number) or Fraction(number) not in _EXPONENTS:
        return None
    if exponents.ndim > len(monomial.dims):
        monomial = regrouped(
            monomial, (*exponents.shape[: exponents.ndim - len(monomial.dims)], *monomial.shape)
        )
    return power(monomial, Fraction(number)) if monomial is not None else None


def _absolute(inputs: _Inputs, _: Mapping[str, Any]) -> Monomial | None:
    monomial = _one(inputs)
    return magnitude(monomial) if monomial is not None else None


def _sums(before: int, after: Fraction) -> _Rule:
    """The rule for a sum of powers of the input, raised to another power."""

    def rule(inputs: _Inputs, settings: Mapping[str, Any]) -> Monomial | None:
        monomial = _one(inputs)
        if monomial is None:
            return None
        axes = axes_of(_arrays(inputs), settings)
        if not axes:
            if flag_attribute(settings, "noop_with_empty_axes"):
                return None
            axes = tuple(range(len(monomial.dims)))
        rank = len(monomial.dims)
        if not all(-rank <= axis < rank for axis in axes):
            return None
        raised = power(monomial, Fraction(before))
        keepdims = flag_attribute(settings, "keepdims", 1)
        total = summed(raised, axes, keepdims=keepdims) if raised is not None else None
        return power(total, after) if total is not None else None

    return rule


def _mean(inputs: _Inputs, settings: Mapping[str, Any]) -> Monomial | None:
    total, monomial = _sums(1, Fraction(1))(inputs, settings), _one(inputs)
    if total is None or monomial is None:
        return None
    share = Fraction(math.prod(total.shape), math.prod(monomial.shape))
    return multiplied(total, Monomial((), (), share))


def _normalized(inputs: _Inputs, settings: Mapping[str, Any]) -> Monomial | None:
    """The input divided by its norm along one axis."""
    monomial, axis = _one(inputs), settings.get("axis", -1)
    if monomial is None or settings.get("p", 2) != 2 or not -len(monomial.dims) <= axis < len(monomial.dims):
        return None
    squared = power(monomial, Fraction(2))
    total = summed(squared, (axis,), keepdims=True) if squared is not None else None
    inverse = power(total, -_HALF) if total is not None else None
    return multiplied(monomial, inverse) if inverse is not None else None


_HALF = Fraction(1, 2)
#: Operators that do not round.
_VIEWS = {"Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "Abs"}

_RULES: dict[str, _Rule] = {
    **GUARDS,
    "Abs": _absolute,
    "Cast": _cast,
    "CastLike": _cast,
    "Div": _divide,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "Identity": _same,
    "LpNormalization": _normalized,
    "MatMul": _matrices,
    "Mul": _multiply,
    "Pow": _power,
    "Reciprocal": _to_the(Fraction(-1)),
    "ReduceL2": _sums(2, _HALF),
    "ReduceMean": _mean,
    "ReduceSum": _sums(1, Fraction(1)),
    "ReduceSumSquare": _sums(2, Fraction(1)),
    "Reshape": _reshape,
    "Sqrt": _to_the(_HALF),
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
