"""Products of any values, float64 too, and a factor for each row, each rounded once: two casts for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wnconvert.frozen import dataclass
from wnconvert.numerics.kernel.interface import OpenElements
from wnconvert.numerics.kernel.plain import power_of, round_short
from wnconvert.numerics.rounding import FLOAT_FORMATS, round_both
from wnconvert.numerics.sums import UNIT
from wnconvert.tensors.blocks import Array, Floats, scratch

__all__ = ["WideFactors", "wide_products"]


@dataclass(frozen=True, slots=True)
class WideFactors:
    """mantissa·2^exponent for each row; products are within ``steps`` units of relative size 2⁻⁵³.

    Those of ``exact`` rows are taken as they are. ``large`` are finite rows that may have a result that is
    too large, ``nonfinite`` those with NaN or infinities.
    """

    mantissa: Floats
    exponent: NDArray[np.int32]
    steps: int
    exact: NDArray[np.bool_]
    large: NDArray[np.bool_]
    nonfinite: NDArray[np.bool_]

    def at(self, rows: slice | NDArray[np.intp]) -> WideFactors:
        """Those of some of the rows."""
        its: dict[str, Any] = {name: getattr(self, name)[rows] for name in self._of_rows()}
        return replace(self, **its)

    @staticmethod
    def joined(parts: Sequence[WideFactors]) -> WideFactors:
        """Those of all rows, given runs of them with sums of one error."""
        names = parts[0]._of_rows()
        every: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in names
        }
        return replace(parts[0], **every)

    def _of_rows(self) -> list[str]:
        """The fields that have one element for each row."""
        return [each.name for each in fields(self) if each.name != "steps"]

    def products(self, x: Floats, dtype: str, out: Array) -> OpenElements:
        """Round x times the factors, by row, into ``out``, but for the elements that are open."""
        return wide_products(x, self, dtype, out)

    def times(self, mantissa: Floats, exponent: NDArray[np.int32], steps: int) -> WideFactors:
        """These, each times another factor that is within so many steps; the results may be too large."""
        is_plain = np.isfinite(mantissa)
        return replace(
            self.scaled(mantissa, exponent, steps),
            exact=self.exact | ~is_plain,
            large=~self.nonfinite & is_plain,
            nonfinite=self.nonfinite | ~is_plain,
        )

    def scaled(self, mantissa: Floats, exponent: NDArray[np.int32] | np.int32, steps: int) -> WideFactors:
        """These, each times another factor that is within so many steps."""
        beyond = np.clip(self.exponent + exponent, -2200, 2040)  # as good as any that is beyond
        return replace(self, mantissa=self.mantissa * mantissa, exponent=beyond, steps=self.steps + steps + 1)

    def widened(self, by: float) -> Floats:
        """The mantissas times 1 + ``by``, but those of exact rows."""
        return np.where(self.exact, self.mantissa, self.mantissa * (1 + by))


def wide_products(x: Floats, factors: WideFactors, dtype: str, out: Array) -> OpenElements:
    """Round x times the factors, by row, into ``out``, but for the elements that are open."""
    if dtype == "float64":
        _multiply(x, factors.mantissa, factors.exponent, out)
        return OpenElements(np.empty(0, np.intp), np.empty(0, np.uint64))
    y = scratch("y", x.shape, np.float64)
    width, slack = 2 * factors.steps, factors.steps * UNIT
    if out.itemsize == 2 and not (factors.large | factors.nonfinite).any():
        _multiply(x, factors.widened(slack), factors.exponent - power_of(dtype), y)
        found = round_short(y, width, dtype, out)
        differ = ~factors.exact[found.places // x.shape[2] % x.shape[1]]
        return OpenElements(found.places[differ], found.codes[differ])
    _multiply(x, factors.widened(-slack), factors.exponent, y)
    # Adding to the bits goes outwards by at least as many units of relative size 2⁻⁵³.
    places = np.flatnonzero(round_both(y, width, out) & ~factors.exact[:, None])
    places = places[np.isfinite(x.reshape(-1)[places])]
    codes = FLOAT_FORMATS[dtype].codes
    magnitude = codes.type((1 << (8 * codes.itemsize - 1)) - 1)
    return OpenElements(places, out.view(codes).reshape(-1)[places] & magnitude)


def _multiply(x: Floats, mantissa: Floats, exponent: NDArray[np.int32], y: Floats) -> None:
    if exponent.size == 0 or np.abs(exponent).max() < 1000:
        np.multiply(x, np.ldexp(mantissa, exponent)[:, None], out=y)
        return
    # First up, as far as the row allows, so that no bit is lost; then down, in two steps.
    np.abs(x, out=y)
    top = np.maximum.reduce(np.maximum.reduce(y, axis=0), axis=1)
    up = np.minimum(1024 - np.frexp(np.where(np.isfinite(top), top, 1.0))[1], 2000)
    down = exponent - up + 1  # with half the mantissa, because the largest element is close to overflow now
    np.multiply(x, np.ldexp(1.0, up // 2)[:, None], out=y)
    for factor in (
        np.ldexp(1.0, up - up // 2),
        mantissa / 2,
        np.ldexp(1.0, np.maximum(down // 2, -1070)),
        np.ldexp(1.0, np.maximum(down - down // 2, -1070)),
    ):
        np.multiply(y, factor[:, None], out=y)
