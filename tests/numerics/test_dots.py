"""Sums of products, masks and largest magnitudes of each kernel beside exact numbers, on every way."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.helpers.arrays import Array, normal, same
from tests.helpers.oracle import DTYPES, NARROW
from tests.numerics.test_kernels import SHAPES
from wnconvert.numerics.kernel.dots import Pairs, extracted_of_any, of_pieces, pieces
from wnconvert.numerics.kernel.interface import Kernel
from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.tensors.blocks import Floats

#: Also rows and columns that are longer than a run of the kernel in numpy, and short ones of many lanes.
BLOCKS = [*SHAPES, (1, 2, 9000), (1, 9000, 2), (3, 9000, 1), (2, 70, 16), (2, 35, 27), (1, 65, 31)]


def factors_of(seed: int, shape: tuple[int, int, int], scale: float = 1.0) -> tuple[Floats, Floats]:
    """Factors of the elements of a row, and of those of a column, of at most 24 bits."""
    slabs, rows, inner = shape
    along_rows, along_columns = (slabs, 1, inner), (1, rows, 1)
    return (
        normal(seed, along_rows, "float32", scale).astype(np.float64),
        normal(seed + 1, along_columns, "float32", scale).astype(np.float64),
    )


def exact_dots(x: Array, factors: Floats) -> tuple[list[Fraction], list[Fraction]]:
    """Σ x·factor and Σ |x·factor|, along rows or columns as the factors' shape has it."""
    units = [
        np.array([int(Fraction(v) * 2**400) for v in each.astype(float).ravel()], object)
        for each in (x, factors)
    ]
    products = units[0].reshape(x.shape) * units[1].reshape(factors.shape)
    axes = (0, 2) if factors.shape == (x.shape[0], 1, x.shape[2]) else (1,)
    return tuple(  # type: ignore[return-value]
        [Fraction(int(total), 2**800) for total in np.ravel(each.sum(axis=axes))]
        for each in (products, abs(products))
    )


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("shape", BLOCKS)
def test_dots_are_within_their_bounds(kernel: Kernel, shape: tuple[int, int, int], dtype: str) -> None:
    for scale in (1.0, 1e-6):
        x = normal(1, shape, dtype, scale)
        top = float(np.max(np.abs(x.astype(np.float64))))
        for factors in factors_of(2, shape, scale):
            exact, sizes = exact_dots(x, factors)
            for way, most in ((kernel.dots, 2.0**-38), (kernel.careful_dots, 2.0**-60)):
                found = Pairs.zeros(len(exact))
                for _ in range(2):  # they are added to what is there
                    way(x, factors, top, found)
                for at, (number, size) in enumerate(zip(exact, sizes, strict=True)):
                    low, high = found.interval(at)
                    assert low <= 2 * number <= high
                    loose = Fraction(top) * Fraction(float(np.max(np.abs(factors)))) * x.size
                    assert high - low <= 2 * (size + loose) * Fraction(most)


def test_products_that_cancel_leave_what_is_left(kernel: Kernel) -> None:
    x = np.array([1, 2.0**-20, -1], np.float32).reshape(1, 1, 3)
    for factors in (np.ones((1, 1, 3)), np.array([2.0**60, 2.0**-10, 2.0**60]).reshape(1, 1, 3)):
        found = Pairs.zeros(1)
        kernel.careful_dots(x, factors, 1.0, found)
        low, high = found.interval(0)
        assert low <= exact_dots(x, factors)[0][0] <= high
        assert found.high[0] + found.low[0] == float(exact_dots(x, factors)[0][0])


@pytest.mark.parametrize("scale", [1.0, 1e-150, 1e130])
def test_dots_of_any_digits_are_within_their_bounds(scale: float) -> None:
    x, random = normal(3, (2, 5, 40), "float64", scale), np.random.default_rng(4)
    factors = random.standard_normal((2, 1, 40))
    rest = factors * 2.0**-54 * random.random(factors.shape)
    found = Pairs.zeros(5)
    for (piece, its, at), (_, small, _) in zip(of_pieces(x, factors), of_pieces(x, rest), strict=True):
        extracted_of_any(piece.copy(), its, small, float(np.max(np.abs(x))), found.at(at))
    for row in range(5):
        terms = zip(x[:, row].ravel().tolist(), factors.ravel().tolist(), rest.ravel().tolist(), strict=True)
        exact = sum((Fraction(a) * (Fraction(b) + Fraction(c)) for a, b, c in terms), Fraction(0))
        low, high = found.interval(row)
        assert low <= exact <= high
        assert high - low <= Fraction(float(np.max(np.abs(x)))) * Fraction(2.0**-80)


@pytest.mark.parametrize(
    "shape", [*BLOCKS, (1, 300, 1000), (1, 1, 300_000), (300_000, 1, 1), (5, 2, 100_000)]
)
def test_pieces_of_a_block_hold_each_element_once(shape: tuple[int, int, int]) -> None:
    seen = np.zeros(shape, np.int8)
    for piece in pieces(shape):
        seen[piece] += 1
        assert seen[piece].size <= 1 << 17
    assert (seen == 1).all()


def times(values: Array, mask: Array) -> Array:
    """values·mask as IEEE 754 has it."""
    with np.errstate(all="ignore"):
        return (values.astype(np.float64) * mask.astype(np.float64)).astype(values.dtype)


@pytest.mark.parametrize("of_mask", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_times_a_mask_of_0_and_1_are_those_of_ieee(kernel: Kernel, dtype: str, of_mask: str) -> None:
    random = np.random.default_rng(5)
    for size in (2, 7, 600, 5000):
        values = normal(6, (size,), dtype)
        values[::3] = -0.0
        mask = (random.random(size) < 0.5).astype(DTYPES[of_mask])
        for odd in (1.5, math.inf, -math.inf, math.nan):
            values[-1] = odd
            for last in (0, 1):
                mask[-1] = last
                kept = kernel.kept(mask)
                assert kept is not None
                made, expected = kernel.select(values, kept), times(values, mask)
                number = ~np.isnan(expected.astype(np.float64))
                assert same(made[number], expected[number])  # zeros' signs, too
                assert np.isnan(made[~number].astype(np.float64)).all()


@pytest.mark.parametrize("of_mask", DTYPES)
@pytest.mark.parametrize("other", [-0.0, 0.5, -1.0, 2.0, math.nan, math.inf])
def test_a_mask_with_anything_else_is_none_of_0_and_1(kernel: Kernel, of_mask: str, other: float) -> None:
    for place in (0, 300, 599):
        mask = np.ones(600, DTYPES[of_mask])
        mask[::2] = 0
        assert kernel.kept(mask) is not None
        mask[place] = other
        assert kernel.kept(mask) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_magnitude_is_that_of_any_place_and_sign(kernel: Kernel, dtype: str) -> None:
    form = FLOAT_FORMATS[dtype]
    for size in (1, 33, 1000):
        for place in {0, size // 2, size - 1}:
            values = normal(7, (size,), dtype)
            for sign in (1, -1):
                values[place] = sign * 100
                assert float(form.value(kernel.largest(values))) == 100
            for odd in (math.inf, -math.inf, math.nan):
                values[place] = odd
                with np.errstate(all="ignore"):
                    assert kernel.largest(values) >= form.inf
    assert kernel.largest(np.zeros(0, DTYPES[dtype])) == 0
