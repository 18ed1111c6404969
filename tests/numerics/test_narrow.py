"""The narrow way, in pieces so small that blocks are cut, beside exact rationals and the wide way."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.arrays import DIMS, Array, normal, rows_in, same
from tests.helpers.oracle import DTYPES, NARROW, exact_fold, squares
from wnconvert.numerics import norms
from wnconvert.numerics.folding import fold_array, fold_with_report
from wnconvert.numerics.kernel import plain
from wnconvert.numerics.norms import norm_blocks
from wnconvert.numerics.rows import Rows
from wnconvert.numerics.rules import table
from wnconvert.numerics.sums import Totals, careful_sums, fast_sums
from wnconvert.tensors import blocks
from wnconvert.tensors.blocks import RowValues, reader_of


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(blocks, "_PIECE", 7)
    blocks.shares.cache_clear()
    yield
    blocks.shares.cache_clear()


@pytest.mark.parametrize("out", NARROW)
@pytest.mark.parametrize("v_dtype", NARROW)
def test_pieces_of_blocks_hold_the_nearest_values(v_dtype: str, out: str) -> None:
    for seed, (dim, shape) in enumerate(DIMS):
        for scale in (1.0, 1e-6):  # the second makes subnormal numbers of float16
            v = normal(seed, shape, v_dtype, scale)
            v[v == 0] = 1
            g = normal(seed + 9, (rows_in(shape, dim),), "float32", 3.0 * scale)
            expected = exact_fold(v, g, dim, out)
            for limit in (40, 1 << 20):
                assert same(fold_with_report(v, g, dim, dtype=out, limit=limit)[0], expected)


_SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.0**-149, 2.0**-126, 3e38, 65504.0, 6e-8, 1 / 3]
_VALUES = st.one_of(st.sampled_from(_SPECIAL), st.floats(width=32, allow_nan=False, allow_infinity=False))


@settings(max_examples=150, deadline=None)
@given(
    v=st.lists(_VALUES, min_size=1, max_size=12),
    g=st.one_of(st.sampled_from(_SPECIAL), st.floats(width=32, allow_nan=False, allow_infinity=False)),
    v_dtype=st.sampled_from(NARROW),
    out=st.sampled_from(NARROW),
)
def test_any_row_of_finite_numbers_is_rounded_once(v: list[float], g: float, v_dtype: str, out: str) -> None:
    with np.errstate(all="ignore"):
        row = np.array([v]).astype(np.float32).astype(DTYPES[v_dtype])
    row[~np.isfinite(row.astype(np.float64))] = 1
    if not row.astype(np.float64).any():
        row[0, 0] = 1
    magnitude = np.array([g], np.float32)
    expected = exact_fold(row, magnitude, 0, out)
    w, report = fold_with_report(row, magnitude, 0, dtype=out)
    assert same(w, row if report.kept.count else expected)
    columns = np.concatenate([row, row]).T  # the same row twice, along the other axis
    twice = fold_with_report(columns, np.repeat(magnitude, 2), 1, dtype=out, limit=16)[0]
    assert same(twice.T[1:].copy(), w)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("dim", [0, 1])
def test_odd_rows_leave_the_rows_beside_them_as_they_are(dtype: str, dim: int) -> None:
    v, g = normal(3, (9, 5), dtype), normal(4, (9,), dtype)
    alone = fold_array(v, g, 0)
    v[1], v[3, 2], v[5, 0] = 0, math.nan, -math.inf
    g[7] = np.array(math.inf, dtype=g.dtype)
    whole, report = fold_with_report(v if dim == 0 else v.T.copy(), g, dim)
    w = whole if dim == 0 else whole.T.copy()
    plain = [0, 2, 4, 6, 8]
    assert same(w[plain], alone[plain])
    assert not w[1].astype(float).any()
    assert np.isnan(w[3].astype(float)).all()
    assert (report.zero, report.nonfinite) == (Rows(1, (1,)), Rows(3, (3, 5, 7)))


@pytest.mark.parametrize("dtype", NARROW)
def test_signs_of_zeros_and_of_g_are_kept(dtype: str) -> None:
    v = np.array([[0.0, -0.0, 3, -4], [0.0, -0.0, 3, -4], [0.0, -0.0, 0, 0]]).astype(DTYPES[dtype])
    w = fold_array(v, np.array([5, -5, -5]).astype(DTYPES[dtype]), 0).astype(float)
    assert np.signbit(w).tolist() == [
        [False, True, False, True],
        [True, False, True, False],
        [False, True, False, False],
    ]


@pytest.mark.parametrize("dtype", NARROW)
def test_a_row_that_overflows_in_several_pieces_is_counted_once(dtype: str) -> None:
    v = np.zeros((20, 3), np.float32)
    v[4], v[17] = 1e-30, [0, 1, 0]
    v[3], v[11] = [0, 1, 1], [0, 1, 1]
    w, report = fold_with_report(v, np.array([1, 1e300, 1]), 1, dtype=dtype, limit=16)
    assert np.isinf(w[[3, 11, 17], 1].astype(float)).all()
    assert report.overflow == Rows(1, (1,))


def test_where_a_program_takes_subnormals_for_zero_the_wide_way_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    v, g = normal(5, (6, 20), "float16", 1e-6), normal(6, (6,), "float16", 1e-5)
    expected = fold_array(v, g, 0)
    for module in (table, plain):
        monkeypatch.setattr(module, "keeps_subnormals", lambda: False)
    assert same(fold_array(v, g, 0), expected)


def test_untouched_rows_among_others_are_v_itself() -> None:
    for dtype in NARROW:
        v = normal(7, (30, 6), dtype)
        g = norms.norms(v, 0)
        g[::3] = (g[::3].astype(np.float32) * 1.5).astype(g.dtype)
        w, report = fold_with_report(v, g, 0)
        kept = np.arange(30) % 3 != 0
        assert report.kept.count == 20
        assert same(w[kept], v[kept])
        assert same(w, exact_fold_kept(v, g, kept))


def exact_fold_kept(v: Array, g: Array, kept: Array) -> Array:
    w: Array = exact_fold(v, g, 0, v.dtype.name).copy()
    w[kept] = v[kept]
    return w


# --- sums


@pytest.mark.parametrize("shape", [(1, 2, 129), (1, 1, 9001), (7, 3, 1), (500, 2, 3), (5, 4, 300)])
def test_careful_sums_are_right_to_sixty_bits_also_where_rows_differ_wildly(
    shape: tuple[int, int, int],
) -> None:
    x = normal(8, shape, "float32").astype(np.float64)
    for scale in (1.0, 2.0**-60):
        x[:, 0] *= scale
        sums = careful_sums(x.copy())
        assert sums.error <= 2.0**-60
        for at, square in enumerate(squares(x, 1)):
            low, high = sums.bounds(at)
            assert low <= square <= high


def test_totals_lose_nothing_that_their_error_does_not_say() -> None:
    x = normal(9, (400, 3, 2), "float32").astype(np.float64)
    x[::7] *= 2.0**30
    totals = Totals(3)
    for slab in x:
        totals.add(slice(0, 3), fast_sums(slab[None].copy()))
    sums = totals.sums()
    assert sums.error < 2.0**-46
    for at, square in enumerate(squares(x, 1)):
        low, high = sums.bounds(at)
        assert low <= square <= high


@pytest.mark.parametrize("dtype", NARROW)
def test_norms_for_float64_are_the_nearest_in_one_pass_and_two(dtype: str) -> None:
    v = normal(10, (5, 90), dtype)
    expected = [float(np.sqrt(np.longdouble(float(square)))) for square in squares(v, 0)]
    for values, dim in ((v, 0), (v.T.copy(), 1)):
        found, _ = norm_blocks(reader_of(values), values.shape, dim, dtype, "float64", limit=64)
        np.testing.assert_allclose(found, expected, rtol=3e-16)
        again, _ = norm_blocks(reader_of(v), v.shape, 0, dtype, "float64")
        assert same(found, again)


def test_rows_are_read_a_window_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_WINDOW", 4)
    g = np.arange(10, dtype=np.float32)
    asked: list[int] = []
    read = reader_of(g)

    def counting(block: blocks.Block) -> Array:
        asked.append(block.stop - block.start)
        return read(block)

    values = RowValues(counting, (10, 1), "float32")
    assert [values.at(slice(at, at + 2)).tolist() for at in (0, 2, 4)] == [[0, 1], [2, 3], [4, 5]]
    assert asked == [4, 4]
    assert np.concatenate([part for _, part in values.windows()]).tolist() == g.tolist()
    v = normal(11, (10, 3), "float32")
    assert same(fold_array(v, g, 0)[1:], exact_fold(v, g, 0, "float32")[1:])
