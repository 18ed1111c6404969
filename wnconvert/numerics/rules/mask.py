"""w·mask, element by element, as IEEE 754 has it: a pruned zero has the sign of w, and of NaN it is NaN.

Where a mask holds only 0 and 1, as pruning makes it, products are values of w's own dtype, and they are made
in bits. Else they are float64: exact for values of at most 24 bits, rounded once where w or mask is float64.
"""

from __future__ import annotations

import numpy as np

from wnconvert.numerics.kernel.choice import kernel
from wnconvert.tensors.blocks import Array, Block, Read, scratch

__all__ = ["masked"]


def masked(read: Read, read_mask: Read) -> Read:
    """The blocks of w·mask, given those of w and of the mask: in w's dtype, or in float64.

    >>> w, mask = np.float32([[3, -4]]), np.float32([[1, 0]])
    >>> masked(lambda block: w, lambda block: mask)(Block(0, (1, 1, 2), 0))
    array([[ 3., -0.]], dtype=float32)
    """

    def read_masked(block: Block) -> Array:
        mask = read_mask(block)
        kept = kernel().kept(mask)
        if kept is not None:
            return kernel().select(read(block), kept)
        factors = scratch("mask", mask.shape, np.float64)
        np.copyto(factors, mask)  # what w is read into, it may be read into too
        with np.errstate(all="ignore"):
            product: Array = np.multiply(factors, read(block).astype(np.float64), out=factors)
        return product

    return read_masked
