"""How far apart numbers are: bits, units in the last place, tolerances, statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import field

import numpy as np
from numpy.typing import NDArray

from wnconvert.errors import ArgumentError
from wnconvert.frozen import dataclass
from wnconvert.numerics.rounding import FLOAT_FORMATS, cast, ieee
from wnconvert.tensors.blocks import Array, Floats, scratch
from wnconvert.tensors.dtypes import DType

__all__ = ["Measure", "Needed", "Tolerance", "ToleranceTest", "bites", "needed", "rounded_up", "same_bits"]


#: Elements that are compared at a time if bits differ: their float64 scratch stays in cache.
_BITE = 1 << 15
#: The steps of a spread: distances of as many bits, from none to all 64, and one for rounding up to float64.
_STEPS = 66


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The tolerance: |a-b| <= atol + rtol·|b| if either is given, else 1 ulp of the coarser dtype.

    Raises ``ArgumentError`` for a number that cannot be a tolerance.
    """

    rtol: float | None = None
    atol: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ArgumentError(
                    f"{name} {value} is not a tolerance", fix="give a number that is 0 or more"
                )


def same_bits(x: Array, y: Array) -> bool:
    """Whether two flat arrays are equal bit for bit."""
    if x.dtype != y.dtype:
        return False
    codes = f"u{x.dtype.itemsize if x.dtype.itemsize in (1, 2, 4, 8) else 1}"
    x, y = x.view(codes), y.view(codes)
    return not np.not_equal(x, y, out=scratch("differ", x.shape, np.bool_)).any()


def bites(left: Array, right: Array, size: int = _BITE) -> Iterator[tuple[int, Array, Array]]:
    """Two flat arrays of one size, so many elements at a time, each pair with the index of its first."""
    return ((at, left[at : at + size], right[at : at + size]) for at in range(0, left.size, size))


def _ordered(x: Array, use: str) -> Array:
    """Floats as integers in the same order; neighbours are one apart, and both zeros are 0."""
    size = x.dtype.itemsize
    codes, sign, spare = (
        x.view(f"i{size}"),
        scratch("sign", x.shape, f"i{size}"),
        scratch(use, x.shape, f"i{size}"),
    )
    np.right_shift(codes, 8 * size - 1, out=sign)  # all ones where negative
    np.right_shift(sign.view(f"u{size}"), 1, out=spare.view(f"u{size}"))
    np.bitwise_xor(codes, spare, out=spare)  # -1 - magnitude
    ordered: Array = np.subtract(spare, sign, out=spare)
    return ordered


def _apart(x: Array, y: Array) -> Array:
    """The distances of ordered codes, without overflow if the floats are finite."""
    code = f"u{x.dtype.itemsize}"
    low = np.minimum(x, y, out=scratch("sign", x.shape, x.dtype))
    high = np.maximum(x, y, out=x)
    apart: Array = np.subtract(high.view(code), low.view(code), out=x.view(code))
    return apart


@dataclass(slots=True)
class _Gap:
    """Elements of both sides as float64, their |a-b|, and the same in units of the coarser dtype.

    ``unmatched`` are elements that are not equal and not finite on both sides; all numbers of elements that
    are not finite are 0. ``out`` are the elements out of tolerance. Arrays may be scratch.
    """

    a: Floats
    b: Floats
    d: Floats
    ulps: Array
    unmatched: NDArray[np.bool_]
    out: NDArray[np.bool_]


class ToleranceTest:
    """The tolerance, applied to elements of two float dtypes."""

    def __init__(self, tolerance: Tolerance, coarser: DType) -> None:
        self.by_ulps = tolerance.rtol is None and tolerance.atol is None
        self.rtol, self.atol = tolerance.rtol or 0.0, tolerance.atol or 0.0
        self.form = FLOAT_FORMATS[coarser.name]

    def within(self, left: Array, right: Array) -> bool:
        """Whether all elements are within tolerance."""
        return all(self._within(x, y) for _, x, y in bites(left, right))

    def _within(self, left: Array, right: Array) -> bool:
        if self.by_ulps:
            x, y = _ordered(self.coarse(left), "left"), _ordered(self.coarse(right), "right")
            inf = self.form.inf
            if -inf < min(x.min(), y.min()) and max(x.max(), y.max()) < inf:
                return int(_apart(x, y).max()) <= 1
        return not self.gap(left, right).out.any()

    def coarse(self, x: Array) -> Array:
        """Floats in the coarser dtype."""
        return x if x.dtype == self.form.dtype else cast(x, self.form.dtype)

    def gap(self, left: Array, right: Array) -> _Gap:
        """The distances of elements."""
        a, b, d = (scratch(use, left.shape, np.float64) for use in "abd")
        unmatched = np.zeros(left.shape, np.bool_)
        with ieee():
            np.copyto(a, left)
            np.copyto(b, right)
            np.abs(np.subtract(a, b, out=d), out=d)
            x, y = self.coarse(left), self.coarse(right)
            ulps = _apart(_ordered(x, "left"), _ordered(y, "right"))
            if not np.isfinite(d.sum()):
                odd = ~(np.isfinite(a) & np.isfinite(b))
                unmatched = odd & (a != b) & ~(np.isnan(a) & np.isnan(b))
                a[odd] = b[odd] = d[odd] = 0
                ulps[odd] = 0
            if left.dtype != right.dtype:
                # By its code infinity is next to the coarser dtype's largest value, but may be far from it.
                ulps[np.isinf(x) != np.isinf(y)] = self.form.inf
            if self.by_ulps:
                return _Gap(a, b, d, ulps, unmatched, unmatched | (ulps > 1))
            bound = np.abs(b, out=scratch("size", b.shape, np.float64))
            np.multiply(bound, self.rtol, out=bound)
            np.add(bound, self.atol, out=bound)
            return _Gap(a, b, d, ulps, unmatched, unmatched | (d > bound))

    def needed(self, gap: _Gap) -> tuple[float, float]:
        """The least rtol with this atol, and the least atol with this rtol, that pass these elements."""
        size = np.abs(gap.b, out=scratch("size", gap.b.shape, np.float64))
        rest = gap.d
        with ieee():
            if self.atol:
                rest = np.maximum(gap.d - self.atol, 0)
                short = self.atol + rest < gap.d
                rest[short] = np.nextafter(rest[short], np.inf)
            rtol = _least(_quotients(rest, size), lambda at, r: gap.d[at] <= self.atol + r * size[at])
            if not self.rtol:
                return rtol, float(gap.d.max())
            part = self.rtol * size
            return rtol, _least(np.maximum(gap.d - part, 0), lambda at, s: gap.d[at] <= s + part[at])


def _quotients(d: Floats, size: Floats) -> Floats:
    """d/size, with 0/0 = 0."""
    quotients: Floats = np.divide(d, size, out=scratch("quotient", d.shape, np.float64))
    if not quotients.min() >= 0:
        quotients[d == 0] = 0
    return quotients


def _least(values: Floats, passes: Callable[[Array, float], Array]) -> float:
    """The least tolerance for all elements, given the one that each needs by itself.

    Each is within half a unit of the exact one, so if it does not pass its element, the next float does. The
    largest passes all other elements, so only those that need it are tested.
    """
    most = float(values.max())
    own = np.flatnonzero(values == most)
    return most if math.isinf(most) or passes(own, most).all() else math.nextafter(most, math.inf)


@dataclass(slots=True)
class Measure:
    """The distance of two tensors, gathered block by block; without a ``judge``, bit for bit.

    Fields as in ``Difference``. ``rtol`` and ``atol`` are the least that pass, each together with the other
    as it was given; ``worst`` is a place in C order, ``worst_pair`` the elements there. ``spread`` counts the
    elements that are 0, 1, 2 to 3, 4 to 7, … ulps apart.
    """

    judge: ToleranceTest | None
    different: int = 0
    unmatched: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0
    ulps: int = 0
    rtol: float = 0.0
    atol: float = 0.0
    worst: int | None = None
    squares_a: float = 0.0
    squares_b: float = 0.0
    products: float = 0.0
    noise: float = 0.0
    worst_pair: tuple[float, float] | None = None
    spread: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_STEPS, np.int64))

    def add(self, start: int, left: Array, right: Array) -> None:
        """Add the same elements of both tensors, the first of them at ``start``."""
        if self.judge is None:
            self._add_bits(start, left, right)
            return
        same = same_bits(left, right)
        for at, x, y in bites(left, right):
            if same:
                self._add_same(x)
            else:
                self._add_floats(self.judge, start + at, x, y)

    @property
    def cosine(self) -> float | None:
        """The cosine of the angle between both tensors; None if it has no value."""
        norms = math.sqrt(self.squares_a) * math.sqrt(self.squares_b)
        return self.products / norms if 0 < norms < math.inf else None

    @property
    def steps_apart(self) -> tuple[int, ...]:
        """The spread without the empty steps at its end."""
        return tuple(np.trim_zeros(self.spread, "b").tolist())

    @property
    def snr_db(self) -> float | None:
        """10·log₁₀ Σb²/Σ(a-b)²; None if it has no value."""
        if not (0 < self.noise < math.inf and 0 < self.squares_b < math.inf):
            return None
        return 10 * (math.log10(self.squares_b) - math.log10(self.noise))

    def _add_bits(self, start: int, left: Array, right: Array) -> None:
        size = left.dtype.itemsize
        apart = (left.view(np.uint8) != right.view(np.uint8)).reshape(-1, size).any(axis=1)
        if self.worst is None and apart.any():
            self.worst = start + int(apart.argmax())
        self.different += int(np.count_nonzero(apart))

    def _add_same(self, left: Array) -> None:
        self.spread[0] += left.size
        a = scratch("a", left.shape, np.float64)
        np.copyto(a, left)
        square = _dot(a, a)
        if not math.isfinite(square):
            a[~np.isfinite(a)] = 0
            square = _dot(a, a)
        self.squares_a, self.squares_b = self.squares_a + square, self.squares_b + square
        self.products += square

    def _add_floats(self, judge: ToleranceTest, start: int, left: Array, right: Array) -> None:
        gap = judge.gap(left, right)
        self.squares_a += _dot(gap.a, gap.a)
        self.squares_b += _dot(gap.b, gap.b)
        self.products += _dot(gap.a, gap.b)
        self.noise += _dot(gap.d, gap.d)
        if gap.unmatched.any():
            if not self.unmatched:
                self._worst_at(start, int(gap.unmatched.argmax()), left, right)
            self.unmatched += int(np.count_nonzero(gap.unmatched))
        top = float(gap.d.max())
        if top > self.max_abs:
            self.max_abs = top
            if not self.unmatched:
                self._worst_at(start, int(gap.d.argmax()), left, right)
        with ieee():
            size = np.abs(gap.b, out=scratch("size", gap.b.shape, np.float64))
            self.max_rel = max(self.max_rel, float(_quotients(gap.d, size).max()))
        self.ulps = max(self.ulps, int(gap.ulps.max()))
        matched = gap.ulps[~gap.unmatched] if gap.unmatched.any() else gap.ulps
        steps = np.frexp(matched.astype(np.float64))[1]  # the bits of a distance: 0, 1, 2, 2, 3, …
        self.spread += np.bincount(steps, minlength=_STEPS)
        self.different += int(np.count_nonzero(gap.out))
        rtol, atol = judge.needed(gap)
        self.rtol, self.atol = max(self.rtol, rtol), max(self.atol, atol)

    def _worst_at(self, start: int, at: int, left: Array, right: Array) -> None:
        self.worst, self.worst_pair = start + at, (float(left[at]), float(right[at]))


def _dot(x: Floats, y: Floats) -> float:
    """Σxy in a fixed order; that of BLAS depends on its threads."""
    return float(np.einsum("i,i->", x, y))


def needed(measured: Iterable[Measure]) -> Needed | None:
    """The least tolerance with which all of them would have passed, or None."""
    floats = [item for item in measured if item.judge]
    if not floats or any(item.unmatched for item in floats):
        return None
    rtol, atol = max(item.rtol for item in floats), max(item.atol for item in floats)
    if math.isinf(atol) and math.isinf(rtol):
        return None
    ulps = max(item.ulps for item in floats)
    return Needed(rtol if math.isfinite(rtol) else None, atol if math.isfinite(atol) else None, ulps)


@dataclass(frozen=True, slots=True)
class Needed:
    """The least tolerance with which all values that were compared would have passed.

    Either is enough: ``rtol`` together with the given atol, or ``atol`` together with the given rtol (0 if
    none was given). None if no such tolerance is enough. ``ulps`` is the largest distance.
    """

    rtol: float | None
    atol: float | None
    ulps: int


def rounded_up(value: float) -> str:
    """A number in three digits, rounded up.

    >>> rounded_up(0.001), rounded_up(0.0010001)
    ('0.001', '0.00101')
    """
    text = f"{value:.2e}"
    if float(text) < value:
        digits, _, exponent = text.partition("e")
        text = f"{float(digits) + 0.01:.2f}e{exponent}"
    return f"{float(text):.3g}" if math.isfinite(float(text)) else repr(value)
