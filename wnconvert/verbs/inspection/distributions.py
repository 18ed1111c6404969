"""The rows of a layer in short: how its numbers are distributed, and the rows to look at, by index."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from wnconvert.frozen import dataclass
from wnconvert.tensors.blocks import Floats

__all__ = ["Distribution", "RowDetails", "RowPlaces", "distribution_of", "row_places"]


#: The steps of a distribution, as many as a small chart shows.
_STEPS = 24
#: The most ranges of rows that are kept.
_RANGES = 64


@dataclass(frozen=True, slots=True)
class Distribution:
    """Counts of values of 0 and above: ``zeros``, and of the others those in each of some steps.

    The steps are equal on a logarithmic axis from ``least`` to ``greatest``, both in the unit of the values.
    Where all values are equal there is one step. NaN and infinities are not counted.
    """

    least: float
    greatest: float
    counts: tuple[int, ...]
    zeros: int


@dataclass(frozen=True, slots=True)
class RowPlaces:
    """Rows by index from 0: their number, and the first of them as ranges, each a first and a last row."""

    count: int = 0
    ranges: tuple[tuple[int, int], ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether the ranges hold all of the rows."""
        return sum(last - first + 1 for first, last in self.ranges) == self.count


@dataclass(frozen=True, slots=True)
class RowDetails:
    """What a full inspection tells of a layer's rows.

    ``g`` is the distribution of |g| (of a plain weight, the norms of its rows), ``norm`` that of ‖v‖ and
    ``ratio`` that of |g|/‖v‖; None where there is no such number, or none that is finite and above 0.
    ``negative`` and ``zero`` are rows where g is below 0 and 0 (of a plain weight, rows of zeros), ``dead``
    rows of zeros in v, ``nonfinite`` rows with NaN or infinities in any of them.
    """

    g: Distribution | None
    norm: Distribution | None = None
    ratio: Distribution | None = None
    negative: RowPlaces = RowPlaces()
    zero: RowPlaces = RowPlaces()
    dead: RowPlaces = RowPlaces()
    nonfinite: RowPlaces = RowPlaces()


def distribution_of(ordered: Floats) -> Distribution | None:
    """The distribution of sorted finite values that are not negative; None if none is above 0.

    >>> import numpy as np
    >>> found = distribution_of(np.array([0.0, 1.0, 1.0, 100.0]))
    >>> found.zeros, found.least, found.greatest, found.counts[0], found.counts[-1]
    (1, 1.0, 100.0, 2, 1)
    """
    zeros = int(np.searchsorted(ordered, 0, "right"))
    positive = ordered[zeros:]
    if not positive.size:
        return None
    least, greatest = float(positive[0]), float(positive[-1])
    if least == greatest:
        return Distribution(least, greatest, (positive.size,), zeros)
    low, high = math.log(least), math.log(greatest)
    edges = [math.exp(low + (high - low) * step / _STEPS) for step in range(1, _STEPS)]
    below = [0, *np.searchsorted(positive, edges).tolist(), positive.size]
    counts = tuple(after - before for before, after in itertools.pairwise(below))
    return Distribution(least, greatest, counts, zeros)


def row_places(masks: Iterable[tuple[int, NDArray[np.bool_]]]) -> RowPlaces:
    """The rows where masks are true, each mask with its first row, in the order of rows.

    >>> import numpy as np
    >>> row_places([(0, np.array([True, False, True])), (3, np.array([True, False]))])
    RowPlaces(count=3, ranges=((0, 0), (2, 3)))
    """
    count, ranges = 0, list[tuple[int, int]]()
    for first_row, mask in masks:
        found = np.flatnonzero(mask)
        count += found.size
        if not found.size or len(ranges) > _RANGES:  # one more than is kept: it may still grow
            continue
        breaks = np.flatnonzero(np.diff(found) > 1)[: _RANGES + 1]
        firsts = [0, *(breaks + 1).tolist()]
        lasts = [*breaks.tolist(), found.size - 1]
        for at, to in zip(firsts, lasts, strict=True):
            first, last = first_row + int(found[at]), first_row + int(found[to])
            if ranges and ranges[-1][1] == first - 1:
                ranges[-1] = (ranges[-1][0], last)
            else:
                ranges.append((first, last))
    return RowPlaces(count, tuple(ranges[:_RANGES]))
