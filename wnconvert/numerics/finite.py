"""NaN and infinities counted, in every dtype that has them."""

from __future__ import annotations

import numpy as np

from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.tensors.blocks import Array, scratch
from wnconvert.tensors.dtypes import DType

__all__ = ["all_finite", "count_nonfinite", "may_be_nonfinite"]


#: The exponent bits of half precision, all set in NaN and infinities; numpy takes ten times as long to tell.
_EXPONENT = {"float16": np.uint16(0x7C00), "bfloat16": np.uint16(0x7F80)}
_PARTS = {"complex32": np.float16, "complex64": np.float32, "complex128": np.float64}


def may_be_nonfinite(dtype: DType) -> bool:
    """Whether a dtype has NaN or infinities.

    >>> from wnconvert.tensors.dtypes import dtype_named
    >>> [may_be_nonfinite(dtype_named(name)) for name in ("bfloat16", "complex64", "int8", "float4_e2m1fn")]
    [True, True, False, False]
    """
    return dtype.foldable or dtype.is_float8 or dtype.name in _PARTS


def all_finite(values: Array) -> bool:
    """Whether no element of a foldable dtype is NaN or infinite.

    >>> all_finite(np.float32([1, 2])), all_finite(np.float16([1, np.inf]))
    (True, False)
    """
    form = FLOAT_FORMATS[values.dtype.name]
    if values.dtype.itemsize > 2:
        return bool(np.isfinite(values).all())
    exponents = scratch("exponents", values.shape, form.codes)
    np.bitwise_and(values.view(form.codes), form.codes.type(form.inf), out=exponents)
    return int(np.maximum.reduce(exponents, axis=None, initial=0)) < form.inf


def count_nonfinite(values: Array, dtype: DType) -> tuple[int, int]:
    """The elements that are NaN, and those that are infinite; ``values`` may be raw elements.

    >>> from wnconvert.tensors.dtypes import dtype_named
    >>> count_nonfinite(np.array([1, np.nan, -np.inf, np.inf]), dtype_named("float64"))
    (1, 2)
    """
    if dtype.name in _PARTS:
        parts = np.ascontiguousarray(values).reshape(-1).view(_PARTS[dtype.name]).reshape(-1, 2)
        isnan = np.isnan(parts).any(axis=1)
        return int(isnan.sum()), int((np.isinf(parts).any(axis=1) & ~isnan).sum())
    numbers = np.ascontiguousarray(values).reshape(-1)
    if numbers.dtype.type is np.void:
        import ml_dtypes

        numbers = numbers.view(getattr(ml_dtypes, dtype.name))
    if exponent := _EXPONENT.get(dtype.name):
        finite = numbers.view(np.uint16) & exponent != exponent
    else:
        finite = np.isfinite(numbers)
    if finite.all():
        return 0, 0
    others = numbers[~finite]
    nan = int(np.isnan(others).sum())
    return nan, others.size - nan
