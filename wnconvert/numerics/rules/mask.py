"""w·mask, element by element, as IEEE 754 has it: a pruned zero has the sign of w, and of NaN it is NaN.

Where a mask holds only 0 and 1, as pruning makes it, products are values of w's own dtype, and they are made
in bits. Else they are float64: exact for values of at most 24 bits. Of more bits they are rounded, so those
are refused where what is made of them is rounded once more.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wnconvert.errors import LayerError
from wnconvert.messages import option
from wnconvert.numerics.kernel.choice import kernel
from wnconvert.numerics.rounding import ieee
from wnconvert.tensors.blocks import Array, Block, Floats, Read, scratch

__all__ = ["exactly_masked", "masked"]


def masked(read: Read, read_mask: Read) -> Read:
    """The blocks of w·mask, given those of w and of the mask: in w's dtype, or in float64.

    >>> w, mask = np.float32([[3, -4]]), np.float32([[1, 0]])
    >>> masked(lambda block: w, lambda block: mask)(Block(0, (1, 1, 2), 0))
    array([[ 3., -0.]], dtype=float32)
    """
    return _masked(read, read_mask, _product)


def exactly_masked(read: Read, read_mask: Read) -> Read:
    """As ``masked``; its blocks raise ``LayerError`` for products that float64 may not hold.

    >>> w, mask = np.float64([[3, -4]]), np.float64([[0.5, 0.25]])
    >>> exactly_masked(lambda block: w, lambda block: mask)(Block(0, (1, 1, 2), 0))
    array([[ 1.5, -1. ]])
    """
    return _masked(read, read_mask, _exact_product)


def _masked(read: Read, read_mask: Read, product: Callable[[Floats, Array], Array]) -> Read:
    def read_masked(block: Block) -> Array:
        mask = read_mask(block)
        kept = kernel().kept(mask)
        if kept is not None:
            return kernel().select(read(block), kept)
        factors = scratch("mask", mask.shape, np.float64)
        np.copyto(factors, mask)  # what w is read into, it may be read into too
        return product(factors, read(block).astype(np.float64))

    return read_masked


def _product(factors: Floats, values: Floats) -> Floats:
    with ieee():
        return np.multiply(factors, values, out=factors)


def _exact_product(factors: Floats, values: Floats) -> Floats:
    if not (_is_short(factors) and _is_short(values)):
        raise LayerError(
            "products of float64 and a mask that is not all 0 and 1 would be rounded twice",
            fix=option("dtype", "float64"),
        )
    return _product(factors, values)


def _is_short(values: Floats) -> bool:
    """Whether all numbers have at most 24 bits."""
    with ieee():
        short = values.astype(np.float32) == values
        return bool((short | np.isnan(values)).all())
