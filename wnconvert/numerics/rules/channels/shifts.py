"""What a norm before a layer adds to its bias: Σ w·s over all that an output channel multiplies.

s is β - μγ/√(v + ε) of an input channel. It is cut into numbers of at most 24 bits, whose dots with w have a
bound on their error; the sums that this leaves open are made in integers, from bounds on s that can be
narrowed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import field
from fractions import Fraction

import numpy as np

from wnconvert.frozen import dataclass
from wnconvert.numerics.kernel.dots import Pairs, rest_of_products
from wnconvert.numerics.rules.channels.vector import NormChannels
from wnconvert.numerics.rules.factors import Bounds
from wnconvert.numerics.rules.spectral.matrix import Exact, Matrix, exactly
from wnconvert.numerics.rules.spectral.roots import refined_sum, root_between
from wnconvert.tensors.blocks import Array, Block, Floats, Read, blocks, box
from wnconvert.tensors.tree import Shape

__all__ = ["ShiftedSums", "Shifts"]


#: The upper 24 bits of a float64.
_SHORT = np.int64(-(1 << 29))
#: Numbers between these, and 0, may be multiplied thrice with all that is lost.
_LEAST, _MOST = 2.0**-150, 2.0**150
#: Roots have as many bits where sums are made fast.
_BITS = 128
#: Elements of rows that are read at once to be summed exactly.
_HELD = 1 << 20


@dataclass(frozen=True, slots=True)
class Cut:
    """Numbers in pieces of at most 24 bits that nearly add up to them, and bounds on what is left."""

    pieces: tuple[Floats, ...]
    rest: Floats


@dataclass(frozen=True, slots=True)
class Shifts:
    """β - μ·factor of each channel; the known bounds on all of them are kept, by their bits."""

    channels: NormChannels
    beta: Floats
    mean: Floats
    _known: dict[int, tuple[Array, Array, int]] = field(default_factory=dict)

    @property
    def values(self) -> Floats:
        """As IEEE 754 has them."""
        values: Floats = self.beta - self.mean * self.channels.values
        return values

    def terms(self, channel: int) -> tuple[Fraction, Fraction, Fraction]:
        """The β of a channel, its -μγ, and the v + ε under whose root that stands."""
        numbers = (Fraction(float(each[channel])) for each in (self.beta, self.mean, self.channels.gamma))
        beta, mean, gamma = numbers
        return beta, -mean * gamma, self.channels.divisor(channel)

    def bounds(self, bits: int) -> tuple[Array, Array, int]:
        """Bounds on all as integers times 2^exponent; roots have so many bits."""
        if bits not in self._known:
            ends = [self._ends(channel, bits) for channel in range(self.channels.count)]
            size = max((max(abs(low), abs(high)) for low, high in ends), default=Fraction(0))
            power = bits - (size.numerator.bit_length() - size.denominator.bit_length())
            scale = Fraction(2) ** (power + 64)
            low = np.array([math.floor(low * scale) for low, _ in ends], object)
            high = np.array([math.ceil(high * scale) for _, high in ends], object)
            self._known[bits] = low, high, -power - 64
        return self._known[bits]

    def _ends(self, channel: int, bits: int) -> Bounds:
        beta, term, square = self.terms(channel)
        if not term or square == 1:
            return beta + term, beta + term
        ends = sorted(term * end for end in root_between(1 / square, bits))
        return beta + ends[0], beta + ends[1]

    def cut(self) -> Cut:
        """All of them cut; they are finite."""
        high, low, off = self._pairs() or self._exact_pairs()
        first = _upper(high)
        left = (high - first) + low  # of what the first lacks, at most 2⁻²³ of it, this is rounded once
        second = _upper(left)
        rest = np.abs(left - second) + np.abs(high) * 2.0**-74 + off
        return Cut(tuple(each for each in (first, second) if each.any()), rest * 1.01 + 2.0**-1060)

    def _pairs(self) -> tuple[Floats, Floats, Floats] | None:
        """All as high + low with bounds on their errors; None for numbers that are very large or small.

        A step of Newton's method takes the factor c from 4·2⁻⁵³ to 2⁻⁹⁹ of itself: (γ² - c²(v + ε)) is exact
        where it cancels, and what its products lose is known to 2⁻¹⁰² of them.
        """
        gamma, factor = self.channels.gamma, self.channels.values
        variance = np.ones(len(gamma)) if self.channels.variance is None else self.channels.variance
        numbers = np.abs(np.concatenate([gamma, factor, variance, self.beta, self.mean]))
        if not ((numbers == 0) | ((numbers > _LEAST) & (numbers < _MOST))).all():
            return None
        high, low = _two_sum(
            variance, np.full(len(gamma), self.channels.eps if self.channels.variance is not None else 0.0)
        )
        squares, products = gamma * gamma, factor * factor
        others = products * high
        lost = rest_of_products(gamma, gamma, squares) - rest_of_products(products, high, others)
        lost -= products * low + rest_of_products(factor, factor, products) * high
        finer = ((squares - others) + lost) / np.where(gamma == 0, 1, 2 * factor * high)
        moved = self.mean * factor
        first, second = _two_sum(self.beta, -moved)
        second = second - rest_of_products(self.mean, factor, moved) - self.mean * finer
        made, left = _two_sum(first, second)
        return made, left, (np.abs(self.beta) + np.abs(moved)) * 2.0**-96

    def _exact_pairs(self) -> tuple[Floats, Floats, Floats]:
        """The same of any numbers, one by one."""
        ends = [self._ends(channel, _BITS) for channel in range(self.channels.count)]
        high = np.array([float(least) for least, _ in ends])
        rests = [least - Fraction(each) for (least, _), each in zip(ends, high.tolist(), strict=True)]
        off = np.array([float(most - least) for least, most in ends])
        return high, np.array([float(each) for each in rests]), off * 1.01 + np.abs(high) * 2.0**-100


def _upper(x: Floats) -> Floats:
    """The upper 24 bits of numbers."""
    return (np.ascontiguousarray(x).view(np.int64) & _SHORT).view(np.float64)


def _two_sum(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Sums, and what rounding took from them: Knuth's."""
    total: Floats = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


@dataclass(frozen=True, slots=True)
class ShiftedSums:
    """The sums of a weight (of one group), whose output channels lie along ``axis``, 0 or 1.

    ``channel`` is the first input channel of the group; ``cut`` is None where shifts are not finite.
    """

    read: Read
    shape: Shape
    axis: int
    dtype: str
    limit: int
    shifts: Shifts
    cut: Cut | None
    channel: int

    @property
    def inputs(self) -> int:
        """The number of input channels of the group."""
        return self.shape[1 - self.axis]

    @property
    def its(self) -> Floats:
        """The shifts of the group, as IEEE 754 has them."""
        return self.shifts.values[self.channel : self.channel + self.inputs]

    def _vector(self, each: Floats) -> Floats:
        """A number of each channel for each element of a row."""
        its = each[self.channel : self.channel + self.inputs]
        return np.repeat(its, math.prod(self.shape[2:]))

    def fast(self) -> Pairs:
        """All sums, with bounds on their errors."""
        assert self.cut is not None  # noqa: S101 - else all is as IEEE 754 has it
        matrix = Matrix(self.read, self.shape, self.axis, self.dtype, self.limit)
        found = Pairs.zeros(self.shape[self.axis])
        for piece in self.cut.pieces:
            its = matrix.times(self._vector(piece))
            found.add(its.high, its.low, 0.0)
            found.error += its.error
        if self.cut.pieces:
            found.error += matrix.top * float(np.sum(self._vector(self.cut.rest))) * 1.01
        return found

    def exact(self, rows: Sequence[int]) -> Iterator[tuple[int, Iterator[Bounds] | float]]:
        """Ever narrower bounds on the sums of some rows; those of NaN or infinities as float64 has them."""
        size = max(_HELD // max(self.inputs * math.prod(self.shape[2:]), 1), 1)
        for first in range(0, len(rows), size):
            some = rows[first : first + size]
            for row, values in zip(some, self._rows(some), strict=True):
                if not np.isfinite(values).all():
                    yield row, float(values @ self._vector(self.shifts.values))
                    continue
                numbers = exactly(values)
                inner = numbers.numbers.reshape(self.inputs, -1).sum(axis=1)
                yield row, self._refined(Exact(inner, numbers.exponent))

    def plain(self) -> Floats:
        """All sums as float64 has them, with NaN and infinities."""
        values = self._vector(self.shifts.values)
        found = [each @ values for each in self._rows(range(self.shape[self.axis]))]
        return np.array(found)

    def _rows(self, rows: Sequence[int]) -> list[Floats]:
        """The elements of some rows, in one reading."""
        length = self.inputs * math.prod(self.shape[2:])
        if self.axis == 0:
            return [
                self.read(Block(row * length, (1, 1, length), row)).astype(np.float64).ravel() for row in rows
            ]
        found = [np.empty((self.inputs, math.prod(self.shape[2:]))) for _ in rows]
        width = math.prod(self.shape[1:])
        for block in blocks(self.shape, 1, 8, self.limit):
            slab, inner = divmod(block.start, width)
            first = inner % box(self.shape, 1)[2]
            values = self.read(block)
            for row, into in zip(rows, found, strict=True):
                if block.row <= row < block.rows.stop:
                    at = slice(slab, slab + block.shape[0]), slice(first, first + block.shape[2])
                    into[at] = values[:, row - block.row]
        return [each.ravel() for each in found]

    def _refined(self, weights: Exact) -> Iterator[Bounds]:
        """Ever narrower bounds on Σ weight·shift of the channels."""
        its = slice(self.channel, self.channel + self.inputs)
        for bits in (_BITS, 2 * _BITS):
            low, high, exponent = self.shifts.bounds(bits)
            down, up = weights.numbers * low[its], weights.numbers * high[its]
            unit = Fraction(2) ** (weights.exponent + exponent)
            yield (
                Fraction(int(np.minimum(down, up).sum())) * unit,
                Fraction(int(np.maximum(down, up).sum())) * unit,
            )
        terms, squares = [Fraction(0)], [Fraction(1)]
        for at, weight in enumerate(weights.fractions()):
            beta, term, square = self.shifts.terms(self.channel + at)
            terms[0] += weight * beta
            terms.append(weight * term)
            squares.append(square)
        yield from refined_sum(terms, squares)
