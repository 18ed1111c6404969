"""Factors of rows whose elements are first taken less a centre, and of which a shift may be the last.

(w − h) − l, with the centre as h + l, is off by two roundings: where w − h is rounded at all, l is far below
it. An element that is so near to the centre that its own error counts is 0 here, and open.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from wnconvert.frozen import dataclass
from wnconvert.numerics.kernel.choice import kernel
from wnconvert.numerics.kernel.dots import rest_of_products
from wnconvert.numerics.kernel.interface import Centres, OpenElements
from wnconvert.numerics.rounding import FLOAT_FORMATS, cast
from wnconvert.numerics.rules.factors import NarrowFactors
from wnconvert.numerics.sums import UNIT
from wnconvert.numerics.wide import WideFactors, wide_products
from wnconvert.tensors.blocks import Array, Floats

__all__ = ["CentredFactors", "ShiftedFactors", "WideCentredFactors"]


@dataclass(frozen=True, slots=True)
class CentredFactors(NarrowFactors):
    """Narrow factors of what is left of values without the ``centre`` + ``rest`` of their rows.

    What is less than ``least`` from it is open.
    """

    reach: ClassVar[float] = 2.0
    centre: Floats
    rest: Floats
    least: Floats

    def products(self, values: Array, rows: slice, dtype: str, out: Array) -> OpenElements:
        """Values of some of the rows less their centres, times their factors, as ``Kernel.centred``."""
        centres = Centres(self.centre[rows], self.rest[rows], self.least[rows])
        return kernel().centred(values, centres, self.factor[rows], self.width, dtype, out)


@dataclass(frozen=True, slots=True)
class WideCentredFactors(WideFactors):
    """The same for any values, which are taken times 2^-``power`` first; mantissa·2^exponent is of those."""

    centre: Floats
    rest: Floats
    least: Floats
    power: NDArray[np.int32]

    def products(self, x: Floats, dtype: str, out: Array) -> OpenElements:
        """Round x less the centres, times the factors, by row, into ``out``, but for what is open."""
        left, _ = self._centred(x)
        found = wide_products(left, self, dtype, out)
        near = np.flatnonzero((left == 0) & ~self.exact[:, None])
        places = np.union1d(found.places, near)
        codes = np.zeros(len(places), found.codes.dtype)
        codes[np.searchsorted(places, found.places)] = found.codes
        return OpenElements(places, codes)

    def _centred(self, x: Floats) -> tuple[Floats, Floats]:
        """What is left of values without their centres, and what that lost; 0 where it is too little."""
        half = self.power // 2
        x = x * np.ldexp(1.0, -half)[:, None]
        x *= np.ldexp(1.0, half - self.power)[:, None]
        centre = self.centre[:, None]
        first = x - centre
        back = first - x
        lost = ((x - (first - back)) - (centre + back)) - self.rest[:, None]
        left = first + lost
        lost -= left - first
        left[np.abs(left) < self.least[:, None]] = 0.0
        return left, lost


@dataclass(frozen=True, slots=True)
class ShiftedFactors(WideCentredFactors):
    """The same, and a shift added: products are pairs, since they may cancel with it.

    ``finer`` is what mantissas lack: with it they are within a relative error, ``apart``. The sum is
    multiplied by one more factor, outer·2^outer_power, that is within ``steps``.
    """

    finer: Floats
    shift: Floats
    apart: Floats
    outer: Floats
    outer_power: NDArray[np.int32]

    def products(self, x: Floats, dtype: str, out: Array) -> OpenElements:
        """Round (x less the centres) times the factors, plus the shifts, but for what is open."""
        left, rest = self._centred(x)
        factor, finer = (np.ldexp(each, self.exponent)[:, None] for each in (self.mantissa, self.finer))
        product, shift = left * factor, self.shift[:, None]
        total = product + shift
        back = total - product
        lost = (product - (total - back)) + (shift - back)
        lost += rest_of_products(left, np.broadcast_to(factor, left.shape), product)
        lost += left * finer + rest * factor
        made = total + np.where(np.isfinite(lost), lost, 0.0)
        outer = np.ldexp(self.outer, self.outer_power)[:, None]
        slack = np.abs(product) * (self.apart + 2.0**-98)[:, None] + np.abs(made) * (2 * UNIT)
        slack += np.abs(self.least[:, None] * factor) * (UNIT * 1.01)
        made *= outer
        slack = slack * np.abs(outer) * 1.01 + np.abs(made) * (self.steps * UNIT)
        slack += np.where(outer == 0, 0.0, 2.0**-1060)  # a factor of 0 leaves nothing but a sign
        slack[:, self.exact] = 0.0
        open_ones = _rounded(made, slack, dtype, out)
        open_ones |= (left == 0) & (slack > 0)
        places = np.flatnonzero(open_ones & ~self.exact[:, None])
        codes = FLOAT_FORMATS[dtype].codes
        out.view(codes).reshape(-1)[places] = 0
        return OpenElements(places, np.zeros(len(places), codes))

    def scaled(self, mantissa: Floats, exponent: NDArray[np.int32] | np.int32, steps: int) -> WideFactors:
        """These, each times another factor that is within so many steps."""
        power = np.clip(self.outer_power + exponent, -2200, 2040)
        return replace(self, outer=self.outer * mantissa, outer_power=power, steps=self.steps + steps + 2)


def _rounded(made: Floats, slack: Floats, dtype: str, out: Array) -> NDArray[np.bool_]:
    """Round numbers into ``out``; true where it is not sure what they are rounded to."""
    if dtype == "float64":
        out[...] = made
        found: NDArray[np.bool_] = slack > np.abs(made) * (7 * UNIT)
        return found
    codes = FLOAT_FORMATS[dtype].codes
    low, high = (cast(np.where(slack > 0, made + by, made), dtype) for by in (-slack, slack))
    out[...] = np.where(np.isfinite(made), low, cast(made, dtype))
    return np.asarray(np.isfinite(made) & (low.view(codes) != high.view(codes)))
