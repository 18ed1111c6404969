"""w·mask, element by element, as IEEE 754 has it: a pruned zero has the sign of w, and of NaN it is NaN.

Where a mask holds only 0 and 1, as pruning makes it, products are values of w's own dtype, and they are made
in bits. Else they are float64: exact for values of at most 24 bits, rounded once where w or mask is float64.
"""

from __future__ import annotations

import numpy as np

from wnconvert.numerics.rounding import FLOAT_FORMATS
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
        if not _is_plain(mask, kept := scratch("kept", mask.shape, np.bool_)):
            factors = scratch("mask", mask.shape, np.float64)
            np.copyto(factors, mask)  # what w is read into, it may be read into too
            with np.errstate(all="ignore"):
                product: Array = np.multiply(factors, read(block).astype(np.float64), out=factors)
            return product
        return _select(read(block), kept)

    return read_masked


def _is_plain(mask: Array, kept: Array) -> bool:
    """Whether a mask holds only +0 and 1; ``kept`` says where 1 is."""
    codes = mask.view(f"u{mask.dtype.itemsize}")
    np.equal(codes, np.ones(1, mask.dtype).view(codes.dtype)[0], out=kept)
    return int(np.count_nonzero(kept)) + codes.size - int(np.count_nonzero(codes)) == codes.size


def _select(values: Array, kept: Array) -> Array:
    """Values where ``kept``, else zeros of their signs, or NaN for what is not finite."""
    form = FLOAT_FORMATS[values.dtype.name]
    out = scratch("masked", values.shape, form.dtype)
    codes, made = values.view(form.codes), out.view(form.codes)
    sign = form.codes.type(1 << (8 * form.codes.itemsize - 1))
    np.copyto(made.view(f"i{form.codes.itemsize}"), np.negative(kept.view(np.int8)))
    np.bitwise_or(made, sign, out=made)
    np.bitwise_and(made, codes, out=made)
    exponents = np.bitwise_and(codes, form.codes.type(form.inf), out=scratch("rest", codes.shape, form.codes))
    if np.maximum.reduce(exponents, axis=None, initial=0) == form.inf:
        out[(exponents == form.inf) & ~kept] = np.nan
    return out
