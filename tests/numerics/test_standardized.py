"""Weights that a class computes of its own: standardized, unit and equalized ones, beside exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.helpers.arrays import Array, normal, same
from tests.helpers.marks import crossed
from tests.helpers.oracle import DTYPES, NARROW
from tests.helpers.rule_oracle import exact_weight
from tests.helpers.standardized import VARIANTS as VARIANTS_IN_TORCH
from tests.numerics.test_rules import fold
from wnconvert.errors import LayerError
from wnconvert.layers.rules import Equalized, Guard, Mask, NormBehind, Rule, Spectral, Standardize, Unit
from wnconvert.numerics.rows import RowPolicy, RowReport, Rows

SHAPES = ((3, 4), (4, 3, 5), (3, 2, 2, 3), (2, 40))
#: What occurs, by the words of the table of variants.
VARIANTS = {
    "big transfer": Standardize(0, "biased", "var", 1e-10),
    "timm's models": Standardize(0, "biased", "var", 1e-8),
    "mmcv": Standardize(0, "unbiased", "std", 1e-5),
    "DetectoRS": Standardize(0, "unbiased", "var", 1e-5, gain=True, shift=True),
    "NF-ResNet": Standardize(0, "biased", "var", 1e-5, scale=1.7139588594436646 / math.sqrt(12), gain=True),
    "haiku's NFNet": Standardize(0, "biased", "max", 1e-4, fan=12, gain=True),
}


def arrays_for(
    rule: Rule, seed: int, shape: tuple[int, ...], dtype: str, scale: float = 1.0
) -> dict[str, Array]:
    arrays = {"original": normal(seed, shape, dtype, scale)}
    (operation,) = rule.operations
    if isinstance(operation, Standardize):
        for at, role in enumerate(operation.roles):
            arrays[role] = normal(seed + 5 + at, (shape[operation.dim], 1), dtype)
    return arrays


def along(operation: Standardize, dim: int, **others: Any) -> Standardize:
    fields = {
        name: getattr(operation, name) for name in ("std", "eps_at", "eps", "scale", "fan", "gain", "shift")
    }
    return Standardize(dim, **(fields | others))


@crossed(dtype=DTYPES, out=NARROW, name=VARIANTS)
def test_standardized_rows_are_the_nearest_values(dtype: str, out: str, name: str) -> None:
    for seed, shape in enumerate(SHAPES):
        for dim in (0, len(shape) - 1):
            for scale in (1.0, 1e-4):
                rule = Rule((along(VARIANTS[name], dim),))
                arrays = arrays_for(rule, seed, shape, dtype, scale)
                expected = exact_weight(rule, arrays, out)
                for limit in (8, 24, 1 << 20):
                    assert same(fold(rule, arrays, out, limit)[0], expected)


@crossed(dtype=DTYPES, out=NARROW, eps=(1e-12, 1e-3, 0.0))
def test_unit_rows_are_the_nearest_values(dtype: str, out: str, eps: float) -> None:
    for seed, shape in enumerate(SHAPES):
        for dim in (0, 1):
            for factor in (1.0, -3.3, 0.1):
                rule = Rule((Unit(dim, Guard(eps) if eps else None, Fraction(factor)),))
                arrays = arrays_for(rule, seed, shape, dtype, 1e-3)
                arrays["original"][arrays["original"] == 0] = 1
                for limit in (8, 1 << 20):
                    assert same(fold(rule, arrays, out, limit)[0], exact_weight(rule, arrays, out))


@crossed(dtype=DTYPES, out=NARROW, factor=(0.1, -1 / 3, 2.0, 2.0**-210, 1 + 2.0**-52))
def test_equalized_weights_are_the_nearest_values(dtype: str, out: str, factor: float) -> None:
    for seed, shape in enumerate(SHAPES):
        for scale in (1.0, 1e-5):
            rule = Rule((Equalized(factor),))
            arrays = arrays_for(rule, seed, shape, dtype, scale)
            for limit in (8, 1 << 20):
                assert same(fold(rule, arrays, out, limit)[0], exact_weight(rule, arrays, out))


# --- rows without an answer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("eps_at", ["var", "std", "max"])
def test_equal_elements_have_no_deviation_which_is_an_error_where_no_eps_is_added(
    eps_at: Any, dim: int, dtype: str
) -> None:
    weight = normal(1, (5, 7), dtype)
    weight[1], weight[3] = 0, 1.5
    for eps in (0.0, 1e-5):
        operation = Standardize(dim, "biased", eps_at, eps, scale=-2.0)
        rule = Rule((operation,))
        arrays = {"original": weight if dim == 0 else weight.T.copy()}
        for limit in (8, 1 << 20):
            whole, report = fold(rule, arrays, dtype, limit)
            w = whole if dim == 0 else whole.T.copy()
            alone = fold(Rule((along(operation, 0),)), {"original": weight[[0, 2, 4]]}, dtype)[0]
            assert same(w[[0, 2, 4]], alone)
            assert w[[1, 3]].astype(float).tolist() == [[0.0] * 7] * 2
            assert np.signbit(w[[1, 3]].astype(float)).all()  # 0·scale/√eps
            problems = RowPolicy().problems(report)
            assert report.constant == (Rows() if eps else Rows(2, (1, 3)))
            assert [problem.what for problem in problems] == (
                [] if eps else ["all elements are equal in 2 rows (1, 3), and 0/0 is not a number"]
            )
            assert not RowPolicy(zero_rows="zero").problems(report)
            assert ("became zero" in RowPolicy(zero_rows="zero").note(report)) == (not eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinities_are_told_by_rows_and_go_as_ieee_has_it(dtype: str) -> None:
    weight, gain, shift = normal(1, (6, 5), dtype), normal(2, (6,), dtype), normal(3, (6,), dtype)
    weight[1, 2], weight[2, 0] = math.nan, math.inf
    gain[3], shift[4] = math.inf, -math.inf
    arrays = {"original": weight, "gain": gain, "shift": shift}
    rule = Rule((Standardize(0, "biased", "var", 1e-5, gain=True, shift=True),))
    for limit in (8, 1 << 20):
        w, report = fold(rule, arrays, dtype, limit)
        assert np.isnan(w[1:3].astype(float)).all()
        assert np.isinf(w[3].astype(float)).all()
        row = weight[3].astype(float)
        assert (np.sign(w[3].astype(float)) == np.sign(row - row.mean())).all()
        assert (w[4].astype(float) == -math.inf).all()
        assert np.isfinite(w[[0, 5]].astype(float)).all()
        assert report.nonfinite == Rows(4, (1, 2, 3, 4))
        assert "NaN or infinity" in RowPolicy().problems(report)[0].what


@pytest.mark.parametrize("limit", [8, 1 << 20])
def test_results_that_are_too_large_are_told_by_rows(limit: int) -> None:
    arrays = {"original": normal(1, (4, 5), "float32"), "gain": np.array([1, 1e5, 1, 2e38], np.float32)}
    rule = Rule((Standardize(0, "biased", "var", 1e-5, gain=True, scale=4.0),))
    for out, rows in (("float16", (1, 3)), ("float32", (3,)), ("bfloat16", (3,))):
        w, report = fold(rule, arrays, out, limit)
        assert report.overflow.first == rows
        assert same(w[[0, 2]], exact_weight(rule, arrays, out)[[0, 2]])


def test_a_row_of_one_element_has_a_biased_deviation_alone() -> None:
    arrays = {"original": np.ones((3, 1), np.float32)}
    with pytest.raises(LayerError, match="a row of one element has no unbiased deviation"):
        fold(Rule((Standardize(0, "unbiased", "std", 1e-5),)), arrays, "float32")
    assert not fold(Rule((Standardize(0, "biased", "std", 1e-5),)), arrays, "float32")[0].any()


def test_parts_of_other_sizes_and_stacks_that_have_no_meaning_are_refused() -> None:
    weight = normal(1, (3, 4), "float32")
    standard = Standardize(0, "biased", "var", 1e-5, gain=True)
    with pytest.raises(LayerError, match=r"gain \(4,\) does not fit weight \(3, 4\) along dim 0"):
        fold(Rule((standard,)), {"original": weight, "gain": weight[0]}, "float32")
    vectors = {"u": weight[:, 0], "v": weight[0], "gain": weight[:, 0], "original": weight}
    for operation in (standard, Unit(0, Guard(1e-12)), Equalized(0.5)):
        for rule in (Rule((operation, Spectral(0))), Rule((operation, operation))):
            with pytest.raises(LayerError, match="does not come after"):
                fold(rule, vectors, "float32")


def test_a_zero_row_is_zero_as_a_unit_row_unless_its_eps_is_zero() -> None:
    arrays = {"original": np.array([[0, -0.0], [3, 4]], np.float32)}
    w, report = fold(Rule((Unit(0, Guard(1e-12)),)), arrays, "float32")
    assert w.tolist() == [[0, 0], [np.float32(0.6), np.float32(0.8)]]
    assert not RowPolicy().problems(report)
    assert fold(Rule((Unit(0),)), arrays, "float32")[1].zero == Rows(1, (0,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_equalized_weight_with_nan_or_too_large_numbers_is_a_problem(dtype: str) -> None:
    for odd, limit in ((math.nan, 8), (-math.inf, 1 << 20), (math.inf, 8)):
        weight = normal(1, (3, 4), dtype)
        weight[1, 2] = odd
        w, report = fold(Rule((Equalized(0.5),)), {"original": weight}, dtype, limit)
        np.testing.assert_array_equal(w.astype(float), weight.astype(float) / 2)
        assert report.nonfinite.count == 1
        assert not report.overflow.count
    weight = np.full((3, 4), 60000, np.float32)
    for limit in (8, 1 << 20):
        w, report = fold(Rule((Equalized(2.0),)), {"original": weight}, "float16", limit)
        assert np.isinf(w).all()
        assert report.overflow.count == 1


# --- stacks


@crossed(dtype=NARROW, out=NARROW, of_mask=("pruning", "numbers"))
def test_masks_beneath_are_rounded_with_all_else_once(dtype: str, out: str, of_mask: str) -> None:
    for name, operation in VARIANTS.items():
        for seed, shape in enumerate(SHAPES):
            arrays = arrays_for(Rule((operation,)), seed, shape, dtype)
            mask = normal(seed + 9, shape, dtype)
            arrays["mask"] = mask if of_mask == "numbers" else (mask > 0).astype(mask.dtype)
            rule = Rule((Mask(), operation))
            for limit in (8, 1 << 20):
                assert same(fold(rule, arrays, out, limit)[0], exact_weight(rule, arrays, out)), name
    arrays = {
        "original": normal(1, (3, 4), dtype),
        "mask": np.resize([1, 0.5, 0], (3, 4)).astype(DTYPES[dtype]),
    }
    for other in (Unit(1, Guard(1e-12), Fraction(3)), Equalized(0.3)):
        rule = Rule((Mask(), other))
        assert same(fold(rule, arrays, out)[0], exact_weight(rule, arrays, out))


def beside(seed: int, count: int, dtype: str) -> dict[str, Array]:
    return {"variance": np.abs(normal(seed, (count,), dtype)), "gamma": normal(seed + 1, (count,), dtype)}


@crossed(dtype=DTYPES, out=NARROW, dim=(0, 1))
def test_a_norm_behind_is_rounded_with_all_beneath_it_once(dtype: str, out: str, dim: int) -> None:
    shape = (4, 6, 5)
    beneath: list[Standardize | Unit | Equalized] = [
        *VARIANTS.values(),
        Unit(0, Guard(1e-12), Fraction(3)),
        Equalized(-0.3),
    ]
    for seed, operation in enumerate(beneath):
        arrays = {"original": normal(seed, shape, dtype), **beside(seed + 3, shape[dim], dtype)}
        for role in operation.roles:
            arrays[role] = normal(seed + 5, (shape[0], 1), dtype)
        rule = Rule((operation, NormBehind(dim, 1e-3)))
        for limit in (8, 1 << 20):
            found, report = fold(rule, arrays, out, limit)
            assert same(found, exact_weight(rule, arrays, out)), operation
            assert report == RowReport()


# --- torch


def torch_parts(shape: tuple[int, ...], scale: float) -> dict[str, Array]:
    arrays = {"original": normal(1, shape, "float64", scale) + 0.3 * scale}
    return arrays | {role: normal(at, shape[:1], "float64") for at, role in ((2, "gain"), (3, "shift"))}


def in_torch(name: str, arrays: dict[str, Array]) -> Array:
    tensors = {role: torch.from_numpy(array.astype(np.float64)) for role, array in arrays.items()}
    made: Array = VARIANTS_IN_TORCH[name].made(tensors["original"], tensors).numpy()
    return made


@pytest.mark.parametrize("scale", [1.0, 0.02, 1e-4])
@pytest.mark.parametrize("name", VARIANTS_IN_TORCH)
def test_each_variant_is_what_its_formula_gives_in_torch(name: str, scale: float) -> None:
    arrays = torch_parts((6, 4, 3, 3), scale)
    operation = VARIANTS_IN_TORCH[name].operation(36)
    expected = in_torch(name, arrays)
    found = fold(Rule((operation,)), arrays, "float64")[0]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13 * float(np.abs(expected).max()))
    single = {role: array.astype(np.float32) for role, array in arrays.items()}
    np.testing.assert_allclose(
        fold(Rule((operation,)), single, "float32")[0], in_torch(name, single), rtol=1e-6, atol=1e-9
    )


def test_no_variant_is_another() -> None:
    """Biased and unbiased, eps at the variance and at the deviation, with a fan and without differ."""
    arrays = torch_parts((6, 4, 3, 3), 0.02)
    names = list(VARIANTS_IN_TORCH)
    for name in names:
        found = fold(Rule((VARIANTS_IN_TORCH[name].operation(36),)), arrays, "float64")[0]
        close = [
            other for other in names if np.allclose(found, in_torch(other, arrays), rtol=1e-9, atol=1e-12)
        ]
        assert close == [name]


@pytest.mark.parametrize("eps", [1e-12, 1.0])
def test_unit_rows_are_those_of_torch(eps: float) -> None:
    weight = normal(4, (5, 7), "float64", 0.1)
    made = functional.normalize(torch.from_numpy(weight), dim=1, eps=eps) * 16.0
    found = fold(Rule((Unit(0, Guard(eps), Fraction(16)),)), {"original": weight}, "float64")[0]
    np.testing.assert_allclose(found, made.numpy(), rtol=1e-15)


@crossed(name=VARIANTS, scale=(1.0, 1e-200, 1e160))
def test_float64_is_within_four_ulp(name: str, scale: float) -> None:
    for seed, shape in enumerate(SHAPES):
        for dim in (0, 1):
            rule = Rule((along(VARIANTS[name], dim),))
            arrays = arrays_for(rule, seed, shape, "float64", scale)
            expected = exact_weight(rule, arrays, "float64")
            for limit in (8, 1 << 20):
                found = fold(rule, arrays, "float64", limit)[0]
                assert (np.abs(found - expected) <= 4 * np.spacing(np.abs(expected))).all()


@crossed(dtype=NARROW, out=NARROW, offset=(100.0, 1.0, -3.0))
def test_rows_far_from_zero_lose_nothing(dtype: str, out: str, offset: float) -> None:
    """S² takes nearly all of n·Q, and elements lie next to their mean, or on it."""
    weight = (normal(1, (4, 9), dtype, 2.0**-4).astype(np.float64) + offset).astype(DTYPES[dtype])
    weight[1] = np.resize(np.array([offset, offset + 0.5, offset - 0.5]), 9).astype(DTYPES[dtype])
    for name, operation in VARIANTS.items():
        arrays = arrays_for(Rule((operation,)), 3, weight.shape, dtype) | {"original": weight}
        for limit in (8, 1 << 20):
            found = fold(Rule((operation,)), arrays, out, limit)[0]
            assert same(found, exact_weight(Rule((operation,)), arrays, out)), name


def test_every_cut_gives_the_same_bytes() -> None:
    weight = normal(1, (40, 30, 7), "float32")
    for dim in (0, 1, 2):
        rule = Rule((Standardize(dim, "unbiased", "std", 1e-5),))
        first = fold(rule, {"original": weight}, "float32", 64)[0]
        for limit in (500, 3000, 1 << 20):
            assert same(fold(rule, {"original": weight}, "float32", limit)[0], first)
