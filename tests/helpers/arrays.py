"""Arrays of numbers for the tests of numerics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.helpers.oracle import DTYPES
from wnconvert.tensors.blocks import Block

Array = NDArray[Any]
DIMS = ((0, (3, 4, 2)), (1, (3, 4, 2)), (2, (3, 2, 4)), (None, (3, 5)))


def same(a: Array, b: Array) -> bool:
    """Equal bit for bit (so -0 is not 0), and not for want of elements."""
    return a.size > 0 and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def normal(seed: int, shape: tuple[int, ...], dtype: str, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(DTYPES[dtype])


def reader(v: Array) -> Callable[[Block], Array]:
    return lambda block: v.reshape(-1)[block.start : block.stop].reshape(block.shape)


def rows_in(shape: tuple[int, ...], dim: int | None) -> int:
    return 1 if dim is None else shape[dim]
