"""Weights split into g and v, and folded back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.helpers.arrays import DIMS, normal, reader, rows_in, same
from tests.helpers.oracle import DTYPES, exact_norms
from wnconvert.errors import NumbersError
from wnconvert.numerics.folding import fold_array
from wnconvert.numerics.norms import norm_blocks
from wnconvert.numerics.rows import Rows
from wnconvert.numerics.splitting import direction_blocks, directions, split_array


@settings(max_examples=120, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("dtype", DTYPES)
def test_folding_a_split_gives_the_weight_back_bit_for_bit(dtype: str, data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, max_side=4))
    dim = data.draw(st.sampled_from([None, *range(len(shape))]))
    numbers = (
        st.floats(-200, 200)
        | st.floats(-200, 200, width=16)
        | st.sampled_from([0.0, -0.0, 1e-7, 2.0**-60, 2.0**-133])
    )
    with np.errstate(under="ignore"):
        w = data.draw(hnp.arrays(np.float64, shape, elements=numbers)).astype(DTYPES[dtype])
    g, v = split_array(w, dim)
    assert same(fold_array(v, g, dim), w)


def test_split_gives_g_the_shape_that_torch_gives_it() -> None:
    w = normal(16, (4, 3, 2), "float32")
    assert [split_array(w, dim)[0].shape for dim in (0, 1, 2, None)] == [(4, 1, 1), (1, 3, 1), (1, 1, 2), ()]
    assert split_array(w, 0)[1] is w


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_zero_row_splits_into_a_zero_and_a_unit_direction_with_the_zeros_signs(dtype: str) -> None:
    w = np.array([[0.0, -0.0, 0.0, -0.0], [1, 2, 3, 4]]).astype(DTYPES[dtype])
    g, v = split_array(w, 0)
    assert g.astype(float)[0] == 0
    assert v[0].astype(float).tolist() == [0.5, -0.5, 0.5, -0.5]
    assert same(v[1].copy(), w[1].copy())
    assert same(fold_array(v, g, 0), w)


@pytest.mark.parametrize("limit", [1, 8, 40, 64, 100, 1 << 20])
@pytest.mark.parametrize(("dim", "shape"), [*DIMS, (0, (1, 1)), (0, (7,)), (1, (5, 7)), (None, (2, 3, 2))])
@pytest.mark.parametrize("dtype", DTYPES)
def test_directions_and_norms_are_the_same_however_they_are_cut(
    dtype: str, dim: int | None, shape: tuple[int, ...], limit: int
) -> None:
    rows = rows_in(shape, dim)
    for zero in ((), (0,), (rows - 1,), tuple(range(rows))):
        w = normal(17, shape, dtype)
        w[w == 0] = 1
        for row in zero:
            index = tuple(slice(row, row + 1) if axis == dim else slice(None) for axis in range(len(shape)))
            w[index] = np.copysign(np.zeros(1, w.dtype), w[index])
        pieces = direction_blocks(reader(w), shape, dim, dtype, limit=limit)
        v = np.concatenate([piece.reshape(-1) for piece in pieces]).reshape(shape)
        expected = w.astype(float)
        unit = float(np.array(1 / math.sqrt(w.size // rows)).astype(DTYPES[dtype]))
        for row in zero:
            index = tuple(slice(row, row + 1) if axis == dim else slice(None) for axis in range(len(shape)))
            expected[index] = np.copysign(unit, w[index].astype(float))
        assert same(v, expected.astype(DTYPES[dtype]))
        assert same(directions(w, dim), v)
        g, report = norm_blocks(reader(w), shape, dim, dtype, dtype, limit=limit)
        assert same(g, exact_norms(w, dim, dtype))
        assert report.zero == Rows(len(set(zero)), tuple(sorted(set(zero))))


def test_what_has_no_zero_row_is_its_own_direction_and_the_source_is_never_written() -> None:
    w = normal(18, (4, 3, 2), "float32")
    w[0, 0, 0] = 0
    assert all(directions(w, dim) is w for dim in (0, 1, 2, None))
    w[2] = 0
    before = w.copy()
    assert directions(w, 0) is not w
    assert directions(w, 1) is w
    list(direction_blocks(reader(w), w.shape, 0, "float32", limit=16))
    assert same(w, before)


def test_nan_and_infinities_are_no_zero_row() -> None:
    w = np.array([[math.nan, 0], [0, -math.inf], [0, 0]], np.float32)
    v = directions(w, 0)
    assert same(v[:2].copy(), w[:2].copy())
    assert v[2].tolist() == [np.float32(math.sqrt(0.5))] * 2


def test_split_refuses_norms_that_the_dtype_cannot_hold_and_names_the_rows() -> None:
    w = np.full((3, 4), 40000, np.float16)
    w[1] = 1
    with pytest.raises(NumbersError, match=r"float16 cannot hold in 2 rows \(0, 2\)"):
        split_array(w, 0)
    split_array(w.astype(np.float32), 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_split_refuses_nan_and_infinities_and_names_the_row(bad: float) -> None:
    w = np.ones((3, 4), np.float32)
    w[2, 1] = bad
    with pytest.raises(NumbersError, match="row 2"):
        split_array(w, 0)
