"""What is known of a value of a graph: its shape and dtype, its numbers, what it is made of."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from wnconvert.frozen import dataclass
from wnconvert.onnx.arithmetic.products.monomials import Monomial, ones
from wnconvert.onnx.arithmetic.rowwise import RowValue
from wnconvert.onnx.arithmetic.staged import Roundings
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.dtypes import DType

__all__ = ["HALF_DTYPES", "Compared", "KnownValue"]


#: The dtypes to which values are rounded so that a wider one gives them no more digits.
HALF_DTYPES = ("float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Compared:
    """Whether a value is larger than a number, or else whether it is smaller."""

    value: Monomial
    number: Fraction
    is_larger: bool


@dataclass(frozen=True, slots=True)
class KnownValue:
    """A value of which something is known: shape and dtype, and its numbers, its monomial, or more.

    ``rows`` is what it is by the rows of a tensor, ``staged`` what it is with roundings to whole numbers on
    the way; then it has no monomial. ``coarse`` is true if it was rounded to float16 or bfloat16 on the way,
    so that a wider dtype gives it no more digits. ``compared`` is what truth values say.
    """

    shape: tuple[int, ...]
    dtype: DType
    numbers: Array | None = None
    monomial: Monomial | None = None
    coarse: bool = False
    rows: RowValue | None = None
    compared: Compared | None = None
    staged: Roundings | None = None

    @property
    def product(self) -> Monomial | None:
        """The value as a factor: its monomial, or the number that all its numbers are."""
        if self.monomial is None and (number := self.number) is not None:
            return ones(self.shape, number)
        return self.monomial

    @property
    def number(self) -> Fraction | None:
        """The number that all its floats are, if they are one; None else."""
        numbers = self.numbers
        if numbers is None or not numbers.size or not self.dtype.foldable:
            return None
        first = float(numbers.reshape(-1)[0])
        return Fraction(first) if math.isfinite(first) and bool(np.all(numbers == first)) else None
