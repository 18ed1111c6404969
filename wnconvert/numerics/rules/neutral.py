"""The variance of a norm that does nothing: with its eps it is 1."""

from __future__ import annotations

import math

import numpy as np

from wnconvert.numerics.rounding import FLOAT_FORMATS, DTypeLike, cast, ieee, name_of

__all__ = ["neutral_variance"]


def neutral_variance(eps: float, dtype: DTypeLike) -> float | None:
    """1 - eps as ``dtype``, if a norm with that variance multiplies by exactly 1 in eval; else None.

    torch computes 1/√(v + eps) in float64 where v is float64, else in float32: with few digits of v the sum
    is not 1. A variance is not negative. Raises ``LayerError`` for a dtype that has no such numbers.
    Source: ``torch.nn.functional.batch_norm``.

    >>> neutral_variance(1e-3, "float32"), neutral_variance(1e-3, "bfloat16")
    (0.9990000128746033, None)
    """
    if not math.isfinite(eps):
        return None
    own = FLOAT_FORMATS[name_of(dtype)].dtype
    real = np.float64 if own == np.float64 else np.float32
    with ieee():
        variance = cast(np.array(1 - eps), own)
        factor = 1 / np.sqrt(variance.astype(real) + np.array(eps).astype(real))
    return float(variance) if variance >= 0 and factor == 1 else None
