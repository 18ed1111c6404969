from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from tests.helpers.arrays import DIMS, Array, normal, rows_in, same
from tests.helpers.oracle import DTYPES, NARROW, exact_fold, squares, ulps_off
from wnconvert.errors import LayerError
from wnconvert.layers.rules import Norm, Rule
from wnconvert.numerics.folding import Folding, fold_array, fold_with_report
from wnconvert.numerics.norms import norms
from wnconvert.numerics.rounding import cast, count_overflow
from wnconvert.numerics.rows import Rows
from wnconvert.numerics.rules.parts import RulePart
from wnconvert.numerics.splitting import split_array
from wnconvert.numerics.sums import accurate_sums, exact_sum, fast_sums
from wnconvert.tensors.blocks import Block, blocks

# --- the nearest value


@pytest.mark.parametrize("out", NARROW)
@pytest.mark.parametrize("g_dtype", DTYPES)
@pytest.mark.parametrize("v_dtype", DTYPES)
def test_every_narrow_result_is_the_nearest_value(v_dtype: str, g_dtype: str, out: str) -> None:
    for seed, (dim, shape) in enumerate(DIMS):
        for scale in (1.0, 1e-4, 1e-7):
            v = normal(seed, shape, v_dtype, scale)
            v[v == 0] = 1
            g = normal(seed + 9, (rows_in(shape, dim),), g_dtype, 3.0)
            expected = exact_fold(v, g, dim, out)
            for limit in (1, 24, 1 << 20):
                w, report = fold_with_report(v, g, dim, dtype=out, limit=limit)
                assert report.kept.count == 0
                assert same(w, expected)


@pytest.mark.parametrize("out", NARROW)
@pytest.mark.parametrize("v_dtype", ["float32", "float64", "bfloat16"])
def test_results_next_to_a_midpoint_are_decided_exactly(v_dtype: str, out: str) -> None:
    # g is a midpoint of the output format and v is (1, tiny): w is just below it. With tiny = 0 it is a tie.
    spacing = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[out]
    for step in range(5):
        middle = 1 + (step + 0.5) * spacing
        for tiny in (0.0, 2.0**-12, 2.0**-27, 2.0**-31, 2.0**-40, 2.0**-60):
            v = np.array([[1, tiny], [-tiny, -1]]).astype(DTYPES[v_dtype])
            for g in (
                np.array([middle, -middle]),
                np.nextafter([middle, middle], 9),
                np.nextafter([middle, middle], 0),
            ):
                w = fold_array(v, g, 0, dtype=out)
                assert same(w, exact_fold(v, g, 0, out))
                for limit in (1, 1 << 20):
                    assert same(fold_with_report(v.T, g, 1, dtype=out, limit=limit)[0], w.T.copy())


def test_exact_ties_go_to_even() -> None:
    g = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11], np.float32)
    triples = fold_array(np.array([[15, 20], [15, 20]], np.float32), g * 5, 0, dtype="float16")
    assert triples[:, 1].astype(float).tolist() == [4.0, 4 + 2.0**-7]
    one_hot = fold_array(np.array([[2.0, 0], [2.0, 0]], np.float32), g, 0, dtype="float16")
    assert one_hot[:, 0].astype(float).tolist() == [1.0, 1 + 2.0**-9]


@pytest.mark.parametrize(
    ("out", "largest", "middle"),
    [
        ("float16", 65504.0, 65520.0),
        ("bfloat16", (2 - 2.0**-7) * 2.0**127, (2 - 2.0**-8) * 2.0**127),
        ("float32", (2 - 2.0**-23) * 2.0**127, (2 - 2.0**-24) * 2.0**127),
    ],
)
def test_the_largest_value_ends_where_the_format_says(out: str, largest: float, middle: float) -> None:
    v = np.array([[0, 2.0]], np.float32)
    for g, expected in ((largest, largest), (math.nextafter(middle, 0), largest), (middle, math.inf)):
        w, report = fold_with_report(v, np.array([g]), 0, dtype=out)
        assert float(w[0, 1]) == expected
        assert report.overflow == (Rows(1, (0,)) if math.isinf(expected) else Rows())
        assert report.nonfinite == Rows()
    under = np.array([[2.0**-40, 2.0]])  # the tie, but for 2⁻⁸²
    assert float(fold_array(under, np.array([middle]), 0, dtype=out)[0, 1]) == largest


@pytest.mark.parametrize(("out", "least"), [("float32", -149), ("float16", -24), ("bfloat16", -133)])
def test_subnormal_results_are_the_nearest_too(out: str, least: int) -> None:
    v = normal(4, (6, 5), "float32")
    for units in (0.3, 1.0, 3.7, 100.0, 2000.0):
        g = np.full(6, units * 2.0**least)
        assert same(fold_array(v, g, 0, dtype=out), exact_fold(v, g, 0, out))
    tie = fold_array(np.array([[1.0], [1.0]]), np.array([0.5, 1.5]) * 2.0**least, 0, dtype=out)
    assert (tie.astype(float) / 2.0**least).tolist() == [[0.0], [2.0]]


@pytest.mark.parametrize("scale", [2.0**-1060, 1e-320, 1e-160, 1e-30, 1e30, 1e160, 1e307])
def test_tiny_and_huge_float64_rows_fold_within_4_ulp(scale: float) -> None:
    v = normal(5, (4, 6), "float64", 0.2 * scale)
    for magnitude in (2.0**-1070, 1e-300, 1e-20, 1.0, 1e20, 1e308):
        g = normal(6, (4,), "float64", 0.2 * magnitude)
        for limit in (8, 1 << 20):
            w, report = fold_with_report(v, g, 0, limit=limit)
            assert ulps_off(v, g, 0, w) <= 4
            assert report.overflow.count == report.nonfinite.count == report.zero.count == 0
        assert same(fold_array(v, g, 0, dtype="float32"), exact_fold(v, g, 0, "float32"))


def test_float64_results_are_within_4_ulp_where_magnitudes_in_a_row_differ_wildly() -> None:
    v = np.array(
        [[1e300, 1e-300, 5e-324], [1e-300, 3e-310, 1e-323], [1.7e308, 1.7e308, 2.0], [1, 1e-200, 1e-320]]
    )
    for magnitude in (1.7e308, 1.0, 1e-300, 5e-324):
        g = np.full(4, magnitude)
        assert ulps_off(v, g, 0, fold_array(v, g, 0)) <= 4


@pytest.mark.parametrize("v_dtype", DTYPES)
def test_float64_results_are_within_4_ulp_for_long_rows_of_any_dtype(v_dtype: str) -> None:
    v = normal(7, (2, 3000), v_dtype)
    g = np.array([1.7, -2.9])
    for limit in (256, 1 << 20):
        assert ulps_off(v, g, 0, fold_with_report(v, g, 0, dtype="float64", limit=limit)[0]) <= 4


def test_a_tiny_row_with_zero_pieces_keeps_its_norm() -> None:
    v = np.array([[0.0, 0.0, 3e-310, 0.0, 4e-310, 0.0]])
    for limit in (8, 16, 1 << 20):
        w, report = fold_with_report(v, np.array([5.0]), 0, limit=limit)
        assert report.zero == Rows()
        assert ulps_off(v, np.array([5.0]), 0, w) <= 4


def test_the_largest_float64_g_on_one_element_does_not_overflow() -> None:
    largest = np.finfo(np.float64).max
    v = np.array([[1e-320, 0.0], [largest, 0.0], [0.3, 0.0]])
    w, report = fold_with_report(v, np.full(3, largest), 0)
    assert report.overflow.count == 0
    np.testing.assert_allclose(w[:, 0], largest, rtol=1e-15)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("scale", [2.0**-22, 2.0**-13, 1.0, 2.0**13])
def test_many_results_are_the_float64_ones_rounded(dtype: str, scale: float) -> None:
    # Rounding twice can differ from rounding once, but not in 10⁵ numbers of this seed.
    v, g = normal(26, (200, 500), dtype), normal(27, (200,), dtype, scale)
    v[:, :3] = 0
    assert same(fold_array(v, g, 0), cast(fold_array(v, g, 0, dtype="float64"), dtype))


@pytest.mark.parametrize("shape", [(1, 2, 7), (1, 2, 129), (1, 1, 9001), (7, 3, 1), (500, 2, 3), (37, 3, 11)])
def test_the_sums_of_squares_keep_to_their_error_bounds(shape: tuple[int, int, int]) -> None:
    for seed in range(5):
        x = normal(seed, shape, "float32").astype(np.float64)
        x[..., 0] *= 2.0**-12 if seed % 2 else 2.0**12
        exact = squares(x, 1)
        for sums in (fast_sums(x.copy()), accurate_sums(x.copy())):
            for at, square in enumerate(exact):
                low, high = sums.bounds(at)
                assert low <= square <= high
        assert sums.error < 2.0**-66
        x *= 1 + 2.0**-40  # 53 bits: beyond the fast sum
        accurate = accurate_sums(x.copy())
        for at, square in enumerate(squares(x, 1)):
            low, high = accurate.bounds(at)
            assert low <= square <= high
            assert exact_sum(x[:, at].ravel()) == square


# --- the row is v


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "shape"), DIMS)
def test_a_row_whose_g_is_its_rounded_norm_is_v(dim: int | None, shape: tuple[int, ...], dtype: str) -> None:
    v = normal(11, shape, dtype)
    g = norms(v, dim)
    for limit in (1, 24, 1 << 20):
        w, report = fold_with_report(v, g, dim, limit=limit)
        assert same(w, v)
        assert report.kept.count == rows_in(shape, dim)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_whose_g_is_one_ulp_off_or_negative_is_computed(dtype: str) -> None:
    v = normal(12, (5, 7), dtype)
    g = norms(v, 0)
    for other in (np.nextafter(g, DTYPES[dtype].type(9)), np.nextafter(g, DTYPES[dtype].type(0)), -g):
        w, report = fold_with_report(v, other, 0)
        assert report.kept == Rows()
        if dtype == "float64":
            assert ulps_off(v, other, 0, w) <= 4
        else:
            assert same(w, exact_fold(v, other, 0, dtype))


@pytest.mark.parametrize(
    ("g_dtype", "v_dtype"), [("float16", "bfloat16"), ("bfloat16", "float16"), ("float16", "float32")]
)
def test_a_g_too_coarse_for_v_never_makes_the_row_v(g_dtype: str, v_dtype: str) -> None:
    v = normal(13, (40, 9), v_dtype)
    g = norms(v, 0, g_dtype)
    w, report = fold_with_report(v, g, 0)
    assert report.kept == Rows()
    assert same(w, exact_fold(v, g, 0, v_dtype))


@pytest.mark.parametrize(
    ("g_dtype", "v_dtype"), [("float64", "float32"), ("float32", "float16"), ("float32", "bfloat16")]
)
def test_a_finer_g_makes_the_row_v_in_its_own_rounding_only(g_dtype: str, v_dtype: str) -> None:
    v = normal(14, (40, 9), v_dtype)
    assert fold_with_report(v, norms(v, 0, g_dtype), 0)[1].kept.count == 40
    assert fold_with_report(v, norms(v, 0, v_dtype).astype(DTYPES[g_dtype]), 0)[1].kept.count < 10


@pytest.mark.parametrize("v_dtype", ["float16", "float32"])
@pytest.mark.parametrize("out", NARROW)
def test_in_another_dtype_a_row_with_its_own_norm_is_the_nearest_value_too(v_dtype: str, out: str) -> None:
    v = normal(15, (30, 8), v_dtype)
    w, report = fold_with_report(v, norms(v, 0), 0, dtype=out)
    assert report.kept.count == (30 if out == v_dtype else 0)
    assert same(w, v if out == v_dtype else exact_fold(v, norms(v, 0), 0, out))


# --- odd rows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [4, 1 << 20])
def test_zero_rows_fold_to_zeros_and_are_reported(dtype: str, limit: int) -> None:
    v = normal(17, (4, 3), dtype)
    v[1], v[3] = 0, 0
    w, report = fold_with_report(v, np.array([1, 2, 3, 0]).astype(DTYPES[dtype]), 0, limit=limit)
    assert not w[1].any()
    assert not w[3].any()
    assert (report.zero, report.zero_with_g) == (Rows(2, (1, 3)), Rows(1, (1,)))
    assert w[0].all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [4, 1 << 20])
def test_nan_and_infinities_go_their_way_and_are_reported(dtype: str, limit: int) -> None:
    v = normal(18, (6, 3), dtype)
    v[1, 0], v[2, 1] = math.nan, math.inf
    g = np.array([1, 1, 1, math.nan, math.inf, -math.inf]).astype(DTYPES[dtype])
    w, report = fold_with_report(v, g, 0, limit=limit)
    assert report.nonfinite == Rows(5, (1, 2, 3, 4, 5))
    assert report.overflow == Rows()
    assert np.isfinite(w[0].astype(float)).all()
    assert np.isnan(w[1].astype(float)).all()
    assert np.isnan(w[2, 1].astype(float))
    assert np.isnan(w[3].astype(float)).all()
    assert np.isinf(w[4:].astype(float)).all()


def test_reports_count_all_rows_and_name_ten() -> None:
    report = fold_with_report(np.zeros((25, 2), np.float32), np.ones(25, np.float32), 0)[1]
    assert report.zero == Rows(25, tuple(range(10)))


# --- shapes, layouts, refusals


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_scalar_and_single_tensors_fold(dtype: str) -> None:
    for shape, dim in (((0, 3), 0), ((3, 0), 0), ((2, 0), 1), ((0,), None)):
        v = np.empty(shape, DTYPES[dtype])
        g = np.ones(rows_in(shape, dim), DTYPES[dtype])
        w, report = fold_with_report(v, g, dim)
        assert w.shape == shape
        assert report.zero.count == 0
        assert split_array(v, dim)[1].shape == shape
    one = np.array(-3, DTYPES[dtype])
    assert float(fold_array(one, np.array(2, DTYPES[dtype]), None)) == -2
    assert fold_array(one.reshape(1, 1), one.reshape(1), 0).tolist() == [[3]]


def test_a_transposed_or_strided_v_folds_like_its_copy() -> None:
    v = normal(19, (6, 8), "float32")
    g = normal(20, (4,), "float32")
    assert same(fold_array(v[:, ::2], g, 1), fold_array(v[:, ::2].copy(), g, 1))
    assert same(fold_array(v[:4].T, g, 1), fold_array(v[:4].T.copy(), g, 1))


def test_a_g_of_the_wrong_size_is_refused_with_both_shapes() -> None:
    with pytest.raises(LayerError, match=r"g \(3,\) does not fit v \(4, 2\)"):
        fold_array(np.ones((4, 2)), np.ones(3), 0)


def test_a_dtype_without_weight_norm_is_refused() -> None:
    with pytest.raises(LayerError, match="int64 cannot be folded"):
        fold_array(np.ones((4, 2), np.int64), np.ones(4), 0)


def test_blocks_come_once_each_in_order_through_reused_buffers() -> None:
    v, g = normal(21, (5, 6), "float32"), normal(22, (6,), "float32")
    buffer = np.empty(6, np.float32)
    found: list[Block] = []
    out = np.empty(30, np.float32)

    def read(block: Block) -> Array:
        data = buffer[: block.stop - block.start]
        data[:] = v.reshape(-1)[block.start : block.stop]
        return data.reshape(block.shape)

    parts = {"original": RulePart(read, (5, 6), "float32"), "g": RulePart.of(g)}
    for block, w in Folding(Rule((Norm(1),)), parts, "float32", limit=24).blocks():
        found.append(block)
        out[block.start : block.stop] = w.ravel()
    assert found == list(blocks((5, 6), 1, 4, 24))
    assert same(out.reshape(5, 6), fold_array(v, g, 1))


# --- one answer for every cut


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(
    ("dim", "shape"), [(0, (40, 300)), (1, (40, 30, 5)), (2, (30, 10, 8)), (None, (3000,))]
)
def test_one_pass_two_passes_and_pieces_give_the_same_bits(
    dim: int | None, shape: tuple[int, ...], dtype: str
) -> None:
    v, g = normal(23, shape, dtype), normal(24, (rows_in(shape, dim),), dtype)
    expected = fold_array(v, g, dim)
    for limit in (100, 999, 4096):
        assert same(fold_with_report(v, g, dim, limit=limit)[0], expected)
    if dim is not None:
        moved = np.moveaxis(v, dim, 0).copy()
        assert same(np.moveaxis(fold_array(moved, g, 0), 0, dim).copy(), expected)


# --- the field


def test_the_tutorials_weight_has_the_norms_of_its_single_rows() -> None:
    weight = np.array(
        [
            [-0.2701, -0.0754, 0.3812],
            [-0.1806, 0.1814, 0.4922],
            [-0.2900, -0.5321, -0.4400],
            [-0.5492, 0.0195, -0.5189],
        ],
        np.float32,
    )
    printed = [1.2899, 1.2000, 1.0640, 0.7558]  # the norms of weight[i:], all rows from i on
    right = [0.4732, 0.5548, 0.7489, 0.7558]
    found = norms(weight, 0).astype(float)
    assert [round(norm, 4) for norm in found.tolist()] == right
    tails = [float(np.linalg.norm(weight[at:])) for at in range(4)]
    np.testing.assert_allclose(tails, printed, atol=1e-4)  # the weight itself is printed to 4 digits
    directions = fold_array(weight, np.ones(4, np.float32), 0).astype(float)
    np.testing.assert_allclose((directions**2).sum(axis=1), 1, rtol=1e-6)
    wrong = weight / np.array(printed)[:, None]
    np.testing.assert_allclose((wrong**2).sum(axis=1), [0.1346, 0.2138, 0.4954, 1.0], atol=2e-4)


@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_both_apis_of_torch_agree(dim: int | None) -> None:
    torch = pytest.importorskip("torch")
    for module in (torch.nn.Conv1d(6, 4, 3), torch.nn.ConvTranspose1d(6, 4, 3)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            old = torch.nn.utils.weight_norm(module, dim=dim)
        g, v = old.weight_g.detach(), old.weight_v.detach()
        with torch.no_grad():
            g.mul_(1.5).add_(0.1)
            w = fold_array(v.numpy(), g.numpy(), dim)
            np.testing.assert_allclose(w, torch._weight_norm(v, g, -1 if dim is None else dim), rtol=2e-6)
            new = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(6, 4, 3), dim=dim)
            new.parametrizations.weight.original0.mul_(-0.7)
            parts = new.parametrizations.weight
            w = fold_array(parts.original1.detach().numpy(), parts.original0.detach().numpy(), dim)
            np.testing.assert_allclose(w, new.weight, rtol=2e-6)
            fresh = torch.nn.Conv1d(6, 4, 3).weight.detach()
            ours = split_array(fresh.numpy(), dim)[0]
            theirs = torch.norm_except_dim(fresh, 2, -1 if dim is None else dim)
            assert ours.shape == tuple(theirs.shape)
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_signalling_nan_is_a_nan_and_no_warning() -> None:
    g = np.array([[0x7F800001]], np.uint32).view(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = fold_with_report(np.ones((1, 3), np.float32), g, 0)[1]
        assert report.nonfinite.count == 1
        assert count_overflow(g, cast(g, "float16")) == 0
