"""The kernel in use: the compiled one where it is there, unless ``WNCONVERT_KERNEL=numpy`` is set."""

from __future__ import annotations

from functools import lru_cache

from wnconvert.numerics.kernel.compiled import compiled_kernel
from wnconvert.numerics.kernel.interface import Kernel, OpenElements
from wnconvert.numerics.kernel.library import chosen_kernel
from wnconvert.numerics.kernel.plain import NUMPY_KERNEL
from wnconvert.numerics.sums import Sums
from wnconvert.tensors.blocks import Array, Floats

__all__ = ["block_sums", "careful_block_sums", "cast_block", "kernel", "largest_code", "products"]


@lru_cache(maxsize=1)
def kernel() -> Kernel:
    """The kernel in use, chosen once. Raises ``ArgumentError`` if the one that is asked for is not there."""
    return compiled_kernel() if chosen_kernel() == "compiled" else NUMPY_KERNEL


def block_sums(values: Array) -> Sums:
    """Σv² of the rows of a block, as ``Kernel.sums``."""
    return kernel().sums(values)


def careful_block_sums(values: Array) -> Sums:
    """Σv² of the rows of a block to more than 60 bits, as ``Kernel.careful_sums``."""
    return kernel().careful_sums(values)


def products(values: Array, factor: Floats, width: int, dtype: str, out: Array) -> OpenElements:
    """Values times the factors of their rows, each rounded once, as ``Kernel.products``."""
    return kernel().products(values, factor, width, dtype, out)


def cast_block(values: Array, dtype: str) -> Array:
    """Values of one of the four float formats in another, as ``Kernel.cast``.

    >>> import numpy as np

    >>> cast_block(np.float32([1 / 3, 2**-24, 1e6]), "float16").tolist()
    [0.333251953125, 5.960464477539063e-08, inf]
    """
    return kernel().cast(values, dtype)


def largest_code(values: Array) -> int:
    """The code of the largest magnitude of values of one of the four float formats, as ``Kernel.largest``.

    >>> import numpy as np

    >>> hex(largest_code(np.float32([-1, 0.5]))), hex(largest_code(np.float16([1, np.nan])))
    ('0x3f800000', '0x7e00')
    """
    return kernel().largest(values)
