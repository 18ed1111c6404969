"""The kernel in use: the compiled one where it is there, unless ``WNCONVERT_KERNEL=numpy`` is set."""

from __future__ import annotations

from functools import lru_cache
from os import environ

from wnconvert.errors import ArgumentError
from wnconvert.numerics.kernel.compiled import compiled_kernel
from wnconvert.numerics.kernel.interface import Kernel, OpenElements
from wnconvert.numerics.kernel.plain import PLAIN
from wnconvert.numerics.sums import Sums
from wnconvert.tensors.blocks import Array, Floats

__all__ = ["VARIABLE", "block_sums", "careful_block_sums", "kernel", "products"]


VARIABLE = "WNCONVERT_KERNEL"


@lru_cache(maxsize=1)
def kernel() -> Kernel:
    """The kernel in use. Raises ``ArgumentError`` if the one that the variable names is not there."""
    asked = environ.get(VARIABLE, "")
    if asked not in ("", PLAIN.name, "compiled"):
        raise ArgumentError(f"{VARIABLE} is {asked!r}", fix=f"set it to {PLAIN.name}, or not at all")
    found = None if asked == PLAIN.name else compiled_kernel()
    if asked == "compiled" and found is None:
        raise ArgumentError(
            f"{VARIABLE} asks for the compiled kernel, which is not there",
            fix="install wnconvert again where there is a C compiler, or unset it",
        )
    return found or PLAIN


def block_sums(values: Array) -> Sums:
    """Σv² of the rows of a block, as ``Kernel.sums``."""
    return kernel().sums(values)


def careful_block_sums(values: Array) -> Sums:
    """Σv² of the rows of a block to more than 60 bits, as ``Kernel.careful_sums``."""
    return kernel().careful_sums(values)


def products(values: Array, factor: Floats, width: int, dtype: str, out: Array) -> OpenElements:
    """Values times the factors of their rows, each rounded once, as ``Kernel.products``."""
    return kernel().products(values, factor, width, dtype, out)
