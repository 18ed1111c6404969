"""g/‖v‖ of rows, as the factors of their products, and which rows are odd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wnconvert.numerics.norms import RowSource, round_norms
from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.numerics.rows import RowTally
from wnconvert.numerics.sums import UNIT, Sums
from wnconvert.numerics.wide import WideFactors
from wnconvert.tensors.blocks import Floats
from wnconvert.tensors.dtypes import dtype_named

__all__ = ["NarrowFactors", "Scaling"]


#: What makes a row of v itself its product, but not as if a midpoint were near: see ``kernel.plain``.
_AS_IT_IS = 1 + 2.0**-40


@dataclass(frozen=True, slots=True)
class NarrowFactors:
    """The upper end of g/‖v‖ for each row, for ``products``; ``odd`` are rows that it cannot make."""

    factor: Floats
    width: int
    odd: NDArray[np.bool_] | None

    def at(self, rows: slice) -> NarrowFactors:
        """Those of some of the rows."""
        odd = self.odd[rows] if self.odd is not None and self.odd[rows].any() else None
        return NarrowFactors(self.factor[rows], self.width, odd)

    @staticmethod
    def joined(parts: Sequence[NarrowFactors]) -> NarrowFactors:
        """Those of all rows, given runs of them with sums of one error."""
        odd = [np.zeros(len(part.factor), bool) if part.odd is None else part.odd for part in parts]
        every = np.concatenate(odd) if any(part.odd is not None for part in parts) else None
        return NarrowFactors(np.concatenate([part.factor for part in parts]), parts[0].width, every)


class Scaling:
    """From the sums of rows and their g to factors, for one fold; odd rows are counted in ``tally``."""

    def __init__(self, source: RowSource, g_dtype: str, out: str) -> None:
        self.source = source
        self.g_dtype = g_dtype
        self.out = out
        self.tally = RowTally()
        # v itself may be the result only in v's own dtype.
        self.may_keep = out == source.dtype and dtype_named(g_dtype).holds(dtype_named(source.dtype))
        form, own = FLOAT_FORMATS[out], FLOAT_FORMATS[g_dtype]
        self.large = float(form.value(form.inf - 1)) * 0.99
        # A g that is the rounded norm is next to it: within half a unit, which is more for subnormal numbers.
        self.near = 2.0**-own.digits * 1.01
        self.small = math.ldexp(1.0, own.least + own.digits)

    def narrow(self, sums: Sums, g: Floats, first: int) -> NarrowFactors:
        """Factors for ``products``; odd rows are counted."""
        root, steps = sums.root(), _steps(sums)
        size = np.abs(g)
        factor = g / root
        plain = np.maximum.reduce(size) < self.large and np.minimum.reduce(sums.high) > 0
        odd = None if plain and np.maximum.reduce(sums.high) < math.inf else self._odd(sums, g, first)
        upper = factor * (1 + steps * UNIT)
        if self.may_keep and (
            np.minimum.reduce(np.abs(factor - 1)) <= self.near or np.minimum.reduce(size) < self.small
        ):
            kept = self._kept(sums, g, first)
            self.tally.add("kept", kept, first)
            upper[kept] = _AS_IT_IS
        return NarrowFactors(upper, 2 * steps, odd)

    def wide(self, sums: Sums, g: Floats, first: int, *, tell: bool) -> WideFactors:
        """Factors for ``wide_products``; with ``tell``, odd rows are counted."""
        zero, nonfinite = sums.high == 0, ~(np.isfinite(g) & np.isfinite(sums.high))
        kept = self._kept(sums, g, first) if self.may_keep else np.zeros(len(g), bool)
        mantissa, exponent = np.frexp(g)
        mantissa = mantissa / sums.root()
        exponent = np.where(np.isfinite(g), exponent, 0) - sums.exponent
        mantissa[kept], exponent[kept] = 1, 0
        mantissa[zero], exponent[zero] = 0, 0
        if "float64" not in (self.source.dtype, self.out):
            # 2^±900 times any v but 0 is out of range, as the exact product would be.
            exponent = np.clip(exponent, -900, 900)
        if tell:
            self._odd(sums, g, first)
            self.tally.add("kept", kept, first)
        large = ~nonfinite & (np.abs(g) >= self.large)
        return WideFactors(mantissa, exponent, _steps(sums), kept | nonfinite | zero, large, nonfinite)

    def _odd(self, sums: Sums, g: Floats, first: int) -> NDArray[np.bool_]:
        """The rows without factors of the narrow kind, which are counted but for too large ones."""
        zero = sums.high == 0
        finite = np.isfinite(g) & np.isfinite(sums.high)
        self.tally.add("zero", zero, first)
        self.tally.add("zero_with_g", zero & (g != 0), first)
        self.tally.add("nonfinite", ~finite, first)
        odd: NDArray[np.bool_] = zero | ~finite | (np.abs(g) >= self.large)
        return odd

    def _kept(self, sums: Sums, g: Floats, first: int) -> NDArray[np.bool_]:
        """The rows whose g is the rounded norm, so that w is v."""
        norm = round_norms(self.source, sums, first, self.g_dtype, g)
        kept: NDArray[np.bool_] = (norm == g) & np.isfinite(g) & np.isfinite(sums.high) & (sums.high != 0)
        return kept


def _steps(sums: Sums) -> int:
    """Error in units of relative size 2⁻⁵³: half the sum's, and five roundings."""
    return math.ceil(sums.error / 2 / UNIT) + 6
