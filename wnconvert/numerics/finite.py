"""NaN and infinities counted, in every dtype that has them."""

from __future__ import annotations

import numpy as np

from wnconvert.numerics.kernel.choice import largest_code
from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.dtypes import DType

__all__ = ["all_finite", "count_nonfinite", "may_be_nonfinite"]


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
    return largest_code(values) < FLOAT_FORMATS[values.dtype.name].inf


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
    if numbers.dtype.name in FLOAT_FORMATS and all_finite(numbers):
        return 0, 0
    finite = np.isfinite(numbers)
    others = numbers[~finite]
    nan = int(np.isnan(others).sum())
    return nan, others.size - nan
