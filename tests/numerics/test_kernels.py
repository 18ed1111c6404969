"""The kernels beside exact numbers and beside each other, on every way through them."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.arrays import Array, normal, same
from tests.helpers.oracle import DTYPES, NARROW, squares
from wnconvert.numerics.folding import fold_with_report
from wnconvert.numerics.kernel import choice
from wnconvert.numerics.kernel.interface import Centres, Kernel
from wnconvert.numerics.kernel.library import VARIABLE
from wnconvert.numerics.rounding import FLOAT_FORMATS, cast

#: Blocks (slabs, rows, inner) for every way through a kernel, and around the ends of its runs.
SHAPES = [
    (1, 1, 1),
    (1, 1, 511),
    (1, 2, 513),
    (1, 3, 1100),
    (2, 3, 700),
    (1, 2, 1023),
    (3, 2, 1025),
    (1, 1, 4133),
    (1, 40, 31),
    (1, 700, 2),
    (9, 20, 33),
    (3, 300, 1),
    (2, 1100, 1),
    (1, 600, 1),
    (700, 3, 1),
    (70, 2, 9),
    (3, 90, 5),
    (900, 1, 1),
]
WIDTH = 14


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_within_their_bounds(kernel: Kernel, shape: tuple[int, int, int], dtype: str) -> None:
    for scale in (1.0, 1e-6):
        x = normal(1, shape, dtype, scale)
        exact = squares(x, 1)
        for way in (kernel.sums, kernel.careful_sums):
            sums = way(x)
            for at, square in enumerate(exact):
                low, high = sums.bounds(at)
                assert low <= square <= high
                assert abs(sums.low[at]) <= math.ulp(sums.high[at])  # the root is that of the high part
        assert kernel.careful_sums(x).error <= 2.0**-60


#: Rows in which the largest square comes first, last, or again and again, among next to nothing.
_ROWS: dict[str, Callable[[Array], Array]] = {
    "growing": lambda sizes: sizes,
    "shrinking": lambda sizes: sizes[::-1],
    "in any order": lambda sizes: np.random.default_rng(0).permutation(sizes),
    "zeros, then growing": lambda sizes: np.concatenate([sizes[:1500] * 0, sizes[1500:]]),
    "the largest first": lambda sizes: np.concatenate([sizes[-1:], sizes[:-1] * 0 + sizes[0]]),
    "the largest last": lambda sizes: np.concatenate([sizes[:-1] * 0 + sizes[0], sizes[-1:]]),
    "the largest only": lambda sizes: sizes * 0 + sizes[-1],
    "the smallest only": lambda sizes: sizes * 0 + sizes[0],
    "large and small by turns": lambda sizes: np.where(
        np.arange(len(sizes)) % 97, sizes[len(sizes) // 2], sizes
    ),
    "large and small runs": lambda sizes: np.where(np.arange(len(sizes)) // 700 % 2, sizes[0], sizes[-1]),
}


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("row", _ROWS)
def test_sums_of_rows_of_any_sizes_are_within_their_bounds(kernel: Kernel, row: str, dtype: str) -> None:
    form = FLOAT_FORMATS[dtype]
    # Magnitudes from the smallest to the largest number, subnormal ones too, evenly over their codes.
    codes = np.linspace(1, form.inf - 1, 4133).astype(form.codes)
    sizes = _ROWS[row](codes.view(DTYPES[dtype]).astype(np.float64))
    signs = np.where(np.random.default_rng(1).integers(0, 2, len(sizes)), 1.0, -1.0)
    x = (sizes * signs).astype(DTYPES[dtype])
    for shape in ((1, 1, 4133), (1, 2, 2066), (2, 2, 1033), (1, 4, 1033), (2, 1, 2066)):
        some = x[: math.prod(shape)].reshape(shape)
        sums = kernel.careful_sums(some)
        assert sums.error <= 2.0**-60
        for at, square in enumerate(squares(some, 1)):
            low, high = sums.bounds(at)
            assert low <= square <= high


@pytest.mark.parametrize("dtype", NARROW)
def test_a_value_that_is_not_finite_is_seen_wherever_it_stands(kernel: Kernel, dtype: str) -> None:
    for at in (0, 31, 32, 1023, 1024, 2047, 4096, 4132):
        for odd in (math.inf, -math.inf, math.nan):
            x = normal(5, (1, 1, 4133), dtype)
            x[0, 0, at] = odd
            with np.errstate(all="ignore"):
                sums = kernel.careful_sums(x)
            np.testing.assert_array_equal(sums.high, [abs(odd)])
            assert sums.low.tolist() == [0]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_with_nan_and_infinities_have_them_in_their_sums(
    kernel: Kernel, shape: tuple[int, int, int], dtype: str
) -> None:
    x = normal(2, shape, dtype)
    expected = kernel.careful_sums(x).high
    for odd in (math.inf, -math.inf, math.nan):
        y = x.copy()
        y[-1, -1, -1] = odd
        with np.errstate(all="ignore"):
            sums = kernel.careful_sums(y)
        np.testing.assert_array_equal(sums.high[-1], abs(odd))
        assert sums.low[-1] == 0
        np.testing.assert_array_equal(sums.high[:-1], expected[:-1])


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("shape", SHAPES)
def test_moments_are_within_their_bounds(kernel: Kernel, shape: tuple[int, int, int], dtype: str) -> None:
    for scale in (1.0, 1e-6):
        x = normal(1, shape, dtype, scale)
        sums, totals = kernel.moments(x)
        careful = kernel.careful_sums(x)
        assert (sums.high.tolist(), sums.error) == (careful.high.tolist(), careful.error)
        for at in range(shape[1]):
            exact = sum(
                (Fraction(each) for each in x[:, at].astype(np.float64).ravel().tolist()), Fraction(0)
            )
            low, high = totals.interval(at)
            assert low <= exact <= high
            assert high - low <= 2.0**-55 * x.size * float(np.abs(x.astype(np.float64)).max())


@pytest.mark.parametrize("dtype", NARROW)
def test_moments_of_rows_beside_one_that_is_not_finite(kernel: Kernel, dtype: str) -> None:
    x = normal(2, (2, 3, 40), dtype)
    expected = kernel.moments(x)[1].high
    x[1, 1, 7] = math.inf
    with np.errstate(all="ignore"):
        sums, totals = kernel.moments(x)
    assert np.isinf(sums.high).tolist() == [False, True, False]
    assert totals.high[[0, 2]].tolist() == expected[[0, 2]].tolist()


@pytest.mark.parametrize("out", NARROW)
@pytest.mark.parametrize("dtype", NARROW)
def test_products_of_what_is_left_of_values_without_their_centres(
    kernel: Kernel, dtype: str, out: str
) -> None:
    random = np.random.default_rng(3)
    for shape in SHAPES:
        x = normal(4, shape, dtype)
        factor, centre = random.uniform(-3, 3, shape[1]), random.uniform(-1, 1, shape[1])
        centre[0] = float(x[-1, 0, -1])  # nothing is left of one element
        centres = Centres(centre, centre * 2.0**-54, np.full(shape[1], 2.0**-40))
        made = np.zeros(x.shape, DTYPES[out])
        places, below = kernel.centred(x, centres, factor, WIDTH, out, made)
        left = (x.astype(np.float64) - centre[:, None]) - centres.rest[:, None]
        near = np.abs(left) < 2.0**-40
        assert near[-1, 0, -1]
        open_ones = np.isin(np.arange(x.size), places).reshape(shape)
        assert open_ones[near].all()
        assert (below[np.isin(places, np.flatnonzero(near))] == 0).all()
        left[near] = 0.0
        upper = left * factor[:, None]
        lower = np.where(upper == 0, upper, (upper.view(np.int64) - WIDTH).view(np.float64))
        settled = made[~open_ones].astype(np.float64)
        assert settled.tolist() == cast(upper, out)[~open_ones].astype(np.float64).tolist()
        assert settled.tolist() == cast(lower, out)[~open_ones].astype(np.float64).tolist()
        assert (np.signbit(made.astype(np.float64)) == np.signbit(upper)).all()


def products_of(kernel: Kernel, x: Array, factor: Array, out: str) -> tuple[Array, Array, Array]:
    """The products, and where they are open, with the codes below."""
    made = np.zeros(x.shape, DTYPES[out])
    with np.errstate(all="ignore"):
        places, codes = kernel.products(x, factor, WIDTH, out, made)
    return made, places, codes


def check_products(kernel: Kernel, x: Array, factor: Array, out: str) -> None:
    """Hold products against both ends of their intervals, each rounded once."""
    made, places, below = products_of(kernel, x, factor, out)
    form = FLOAT_FORMATS[out]
    upper = x.astype(np.float64) * factor[:, None]
    lower = np.where(upper == 0, upper, (upper.view(np.int64) - WIDTH).view(np.float64))
    high, low = (cast(end, out).view(form.codes).reshape(-1) for end in (upper, lower))
    settled = np.ones(x.size, bool)
    settled[places] = False
    codes = made.view(form.codes).reshape(-1)
    assert (codes[settled] == high[settled]).all()
    assert (low[settled] == high[settled]).all()
    magnitude = form.codes.type((1 << (8 * form.codes.itemsize - 1)) - 1)
    assert (below <= low[places] & magnitude).all()
    assert (below + 1 >= high[places] & magnitude).all()
    assert (codes[places] & ~magnitude == high[places] & ~magnitude).all()  # signs


@pytest.mark.parametrize("out", NARROW)
@pytest.mark.parametrize("dtype", NARROW)
def test_products_are_rounded_once_or_open(kernel: Kernel, dtype: str, out: str) -> None:
    random = np.random.default_rng(3)
    for shape in SHAPES:
        for scale in (1.0, 1e-6):  # the second makes subnormal numbers of float16
            x = normal(4, shape, dtype, scale)
            check_products(kernel, x, random.uniform(-3, 3, shape[1]), out)


@pytest.mark.parametrize("out", NARROW)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_values_of_16_bits_times_many_factors(kernel: Kernel, dtype: str, out: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype])
    with np.errstate(invalid="ignore"):  # signalling NaN
        every = every[np.isfinite(every.astype(np.float64))]
    largest = float(FLOAT_FORMATS[out].beyond) * 0.98
    for factor in (1.0, 1 / 3, 0.5 + 2.0**-12, 1 + 2.0**-40, 0.0625, 2.0**-9 / 3, 1e-30):
        fits = every[np.abs(every.astype(np.float64)) * factor < largest]
        check_products(kernel, fits.reshape(1, 1, -1), np.array([factor]), out)


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_casts_are_those_of_numpy_bit_for_bit(kernel: Kernel, dtype: str, out: str) -> None:
    codes = np.random.default_rng(10).integers(0, 1 << 32, 1 << 16, np.uint64).astype(np.uint32)
    least = (np.arange(-4000, 4000) * 2.0**-26).astype(np.float32)  # float16's subnormal numbers, and ties
    with np.errstate(all="ignore"):
        sources = [codes.view(np.float32), least, least * np.float32(2.0**-109), least[least > 0][:1]]
        for source in [*sources, np.nan_to_num(sources[0], posinf=1, neginf=1) * np.float32(2.0**-110)]:
            x = source.astype(DTYPES[dtype])
            for values in (x, x[np.isfinite(x.astype(np.float64))], x.reshape(1, -1)):
                assert same(kernel.cast(values, out), cast(values, out))
            assert kernel.cast(x[:0], out).dtype == DTYPES[out]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_value_of_16_bits_and_each_middle_of_two_is_cast_to_the_nearest(
    kernel: Kernel, dtype: str
) -> None:
    form = FLOAT_FORMATS[dtype]
    values = np.arange(form.inf, dtype=np.uint16).view(form.dtype).astype(np.float32)
    middles = values[:-1] + (values[1:] - values[:-1]) / 2
    assert same(kernel.cast(values, dtype).view(np.uint16), np.arange(form.inf, dtype=np.uint16))
    even = np.arange(form.inf - 1, dtype=np.uint16)
    assert same(kernel.cast(middles, dtype).view(np.uint16), even + (even & 1))
    for side, code in ((0, even), (np.inf, even + np.uint16(1))):
        assert same(kernel.cast(np.nextafter(middles, np.float32(side)), dtype).view(np.uint16), code)


_BITS = st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bits=_BITS, factor=st.floats(2.0**-60, 1.0), out=st.sampled_from(NARROW))
def test_any_float32_times_any_factor(kernel: Kernel, bits: list[int], factor: float, out: str) -> None:
    x = np.array(bits, np.uint32).view(np.float32).reshape(1, 1, -1)
    with np.errstate(all="ignore"):
        x[~(np.abs(x.astype(np.float64)) * factor < float(FLOAT_FORMATS[out].beyond) * 0.98)] = 1
    check_products(kernel, x, np.array([factor]), out)


@pytest.mark.parametrize("out", ["float16", "bfloat16"])
def test_more_open_elements_than_there_is_room_for_are_given_all_the_same(kernel: Kernel, out: str) -> None:
    middle = {"float16": 1 + 2.0**-11, "bfloat16": 1 + 2.0**-8}[out]
    x = np.full((2, 3, 2000), middle, np.float32)
    x[:, 1] = 1  # which is no midpoint
    _, places, codes = products_of(kernel, x, np.ones(3), out)
    assert len(places) == 8000
    assert set(places // 2000 % 3) == {0, 2}
    assert set(codes.tolist()) == {int(np.ones(1).astype(DTYPES[out]).view(np.uint16)[0])}


@pytest.mark.parametrize("dtype", NARROW)
def test_values_may_lie_anywhere(kernel: Kernel, dtype: str) -> None:
    x = normal(5, (3, 5, 50), dtype)
    raw = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:]
    shifted = raw.view(x.dtype).reshape(x.shape)
    assert not shifted.flags.aligned
    factor = np.linspace(0.1, 2, 5)
    assert same(products_of(kernel, shifted, factor, dtype)[0], products_of(kernel, x, factor, dtype)[0])
    assert kernel.sums(shifted).high.tolist() == kernel.sums(x).high.tolist()


def test_values_may_have_the_bytes_of_another_machine(kernel: Kernel) -> None:
    x, factor = normal(5, (3, 5, 50), "float32"), np.linspace(0.1, 2, 5)
    other = x.astype(">f4")
    assert same(
        products_of(kernel, other, factor, "float32")[0], products_of(kernel, x, factor, "float32")[0]
    )
    assert kernel.sums(other).high.tolist() == kernel.sums(x).high.tolist()


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_a_fold_is_the_same_bytes_with_every_kernel(
    kernel: Kernel, dtype: str, dim: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    v = normal(6, (30, 40, 7), dtype)
    v[::9, ::8, ::6] = 0
    if dim is not None:
        flat = np.moveaxis(v, dim, 0)
        flat[0], flat[2] = 0, math.nan
    g = normal(7, (1 if dim is None else v.shape[dim],), dtype)
    assert choice.kernel() == kernel
    found = fold_with_report(v, g, dim, limit=3000)
    monkeypatch.setenv(VARIABLE, "numpy")
    choice.kernel.cache_clear()
    expected = fold_with_report(v, g, dim, limit=3000)
    assert same(found[0], expected[0])
    assert found[1] == expected[1]


def test_a_dtype_of_another_release_of_ml_dtypes_changes_nothing(kernel: Kernel) -> None:
    x = normal(1, (1, 3, 40), "bfloat16")
    before = kernel.sums(x)
    dtype: Any = x.dtype
    *state, flags = dtype.__reduce__()[2]
    try:
        dtype.__setstate__((*state, flags ^ 16))  # as an array is unpickled that the other wrote
        found = kernel.sums(normal(1, (1, 3, 40), "bfloat16"))
    finally:
        dtype.__setstate__((*state, flags))
    assert same(found.high, before.high)
    assert same(found.low, before.low)
