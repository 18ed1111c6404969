"""Every rule beside exact fractions: all dtypes, dims, cuts, scales and signs."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.arrays import Array, normal, same
from tests.helpers.oracle import DTYPES, NARROW
from tests.helpers.rule_oracle import exact_weight
from wnconvert.errors import LayerError
from wnconvert.layers.rules import Mask, Norm, Rule, Spectral, SpectralStep, UnitVector
from wnconvert.numerics.folding import Folding
from wnconvert.numerics.rows import Divisor, RowPolicy, RowReport
from wnconvert.numerics.rules.parts import RulePart

SHAPES = ((3, 4), (2, 3, 5), (3, 2, 2, 2), (4, 1), (1, 5), (2, 40), (40, 2), (1, 2, 2, 1, 3))


def fold(rule: Rule, arrays: dict[str, Array], dtype: str, limit: int = 1 << 20) -> tuple[Array, RowReport]:
    original = arrays["original"]
    out = np.empty(original.size, DTYPES[dtype])
    folding = Folding(rule, {role: RulePart.of(array) for role, array in arrays.items()}, dtype, limit=limit)
    for _ in folding.blocks(lambda block: out[block.start : block.stop].reshape(block.shape)):
        pass
    return out.reshape(original.shape), folding.report()


def vectors(seed: int, shape: tuple[int, ...], dim: int, dtype: str) -> dict[str, Array]:
    rows = shape[dim]
    return {
        "u": normal(seed + 1, (rows,), dtype),
        "v": normal(seed + 2, (int(np.prod(shape)) // rows,), dtype),
    }


@pytest.mark.parametrize("out", NARROW)
@pytest.mark.parametrize("dtype", DTYPES)
def test_spectral_norm_is_the_nearest_value(dtype: str, out: str) -> None:
    for seed, shape in enumerate(SHAPES):
        for dim in (0, 1):
            for scale in (1.0, 1e-4, 1e3):
                arrays = {"original": normal(seed, shape, dtype, scale), **vectors(seed, shape, dim, dtype)}
                rule = Rule((Spectral(dim),))
                expected = exact_weight(rule, arrays, out)
                for limit in (8, 24, 1 << 20):
                    assert same(fold(rule, arrays, out, limit)[0], expected)


def pruning(seed: int, shape: tuple[int, ...], dtype: str) -> Array:
    return (np.random.default_rng(seed).random(shape) < 0.6).astype(DTYPES[dtype])


@pytest.mark.parametrize("out", NARROW)
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("plain", [True, False])
def test_masks_alone_and_inside_are_rounded_once(dtype: str, out: str, plain: bool) -> None:
    for seed, shape in enumerate(SHAPES):
        mask = pruning(seed, shape, dtype) if plain else normal(seed + 9, shape, dtype)
        mask.reshape(-1)[:1] = 1
        arrays = {"original": normal(seed, shape, dtype), "mask": mask, **vectors(seed, shape, 0, dtype)}
        arrays["original"].reshape(-1)[:1] = 1.5
        arrays["g"] = normal(seed + 4, (1,), dtype)
        for rule in (Rule((Mask(),)), Rule((Mask(), Norm(None))), Rule((Mask(), Spectral(0)))):
            expected = exact_weight(rule, arrays, out)
            for limit in (8, 1 << 20):
                assert same(fold(rule, arrays, out, limit)[0], expected)


@pytest.mark.parametrize("out", NARROW)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vector_is_divided_by_its_norm_or_by_eps(dtype: str, out: str) -> None:
    for scale in (1.0, 1e-12, 1e-15):
        rule, arrays = Rule((UnitVector(1e-12),)), {"original": normal(1, (7,), dtype, scale)}
        for limit in (8, 1 << 20):
            assert same(fold(rule, arrays, out, limit)[0], exact_weight(rule, arrays, out))


@pytest.mark.parametrize("out", NARROW)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_step_from_u_is_taken_exactly(dtype: str, out: str) -> None:
    for seed, shape in enumerate(SHAPES):
        for dim in (0, 1):
            arrays = {"original": normal(seed, shape, dtype), **vectors(seed, shape, dim, dtype)}
            rule = Rule((SpectralStep(dim),))
            del arrays["v"]
            expected = exact_weight(rule, arrays, out)
            for limit in (8, 1 << 20):
                assert same(fold(rule, arrays, out, limit)[0], expected)


@pytest.mark.parametrize("out", NARROW)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm_dim", [None, 0, 1])
def test_a_normed_weight_is_divided_by_its_own_sigma(norm_dim: int | None, dtype: str, out: str) -> None:
    for seed, shape in enumerate(SHAPES[:3]):
        for dim in (0, 1):
            arrays = {"original": normal(seed, shape, dtype), **vectors(seed, shape, dim, dtype)}
            arrays["g"] = normal(seed + 7, (1 if norm_dim is None else shape[norm_dim],), dtype)
            arrays["mask"] = normal(seed + 8, shape, "float16").astype(DTYPES[dtype])
            arrays["original"][arrays["original"] == 0] = 1
            for rule in (
                Rule((Norm(norm_dim), Spectral(dim))),
                Rule((Mask(), Norm(norm_dim), Spectral(dim))),
            ):
                if dtype == "float64" and isinstance(rule.operations[0], Mask):
                    continue  # products of float64 and a mask of other numbers are rounded
                expected = exact_weight(rule, arrays, out)
                for limit in (8, 1 << 20):
                    assert same(fold(rule, arrays, out, limit)[0], expected)


def trained(weight: Array, dim: int) -> dict[str, Array]:
    """The singular vectors of a weight, with rows along dim."""
    left, _, right = np.linalg.svd(np.moveaxis(weight, dim, 0).reshape(weight.shape[dim], -1))
    return {"original": weight, "u": left[:, 0].astype(np.float32), "v": right[0].astype(np.float32)}


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 3), (8, 8, 4, 4)])
def test_trained_vectors_tell_which_axis_are_the_rows(shape: tuple[int, ...], dim: int) -> None:
    arrays = trained(normal(3, shape, "float32"), dim)
    w, report = fold(Rule((Spectral(None),)), arrays, "float32")
    assert same(w, fold(Rule((Spectral(dim),)), arrays, "float32")[0])
    assert not RowPolicy().problems(report)
    assert not RowPolicy().note(report)


def test_vectors_that_were_never_trained_tell_no_axis_and_are_noted_where_it_is_known() -> None:
    arrays = {"original": normal(3, (16, 16), "float32"), **vectors(3, (16, 16), 0, "float32")}
    report = fold(Rule((Spectral(None),)), arrays, "float32")[1]
    (problem,) = RowPolicy(allow_nonfinite=True).problems(report)
    assert "u and v fit both axes" in problem.what
    assert "--dim 1" in problem.remedy
    known = fold(Rule((Spectral(0),)), arrays, "float32")[1]
    assert not RowPolicy().problems(known)
    assert "not trained" in RowPolicy().note(known)


def test_where_both_axes_are_one_there_is_no_doubt() -> None:
    symmetric = normal(5, (6, 6), "float32")
    symmetric = symmetric + symmetric.T
    for weight in (symmetric, np.array([[-3]], np.float32)):
        arrays = {"original": weight, **vectors(3, weight.shape, 0, "float32")}
        arrays["v"] = arrays["u"].copy()
        w, report = fold(Rule((Spectral(None),)), arrays, "float32")
        assert same(w, exact_weight(Rule((Spectral(0),)), arrays, "float32"))
        assert not RowPolicy().problems(report)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sigma_of_zero_or_nan_is_a_problem_and_goes_as_ieee_has_it(dtype: str) -> None:
    original = np.array([[1, 0], [0, -2]], DTYPES[dtype])
    arrays = {
        "original": original,
        "u": np.array([1, 0], DTYPES[dtype]),
        "v": np.array([0, 1], DTYPES[dtype]),
    }
    w, report = fold(Rule((Spectral(0),)), arrays, dtype)
    assert np.array_equal(w.astype(float), [[np.inf, np.nan], [np.nan, -np.inf]], equal_nan=True)
    assert "σ = u·w·v is 0" in RowPolicy().problems(report)[0].what
    assert not RowPolicy(allow_nonfinite=True).problems(report)
    arrays["original"] = np.array([[1, np.nan], [0, -2]], DTYPES[dtype])
    w, report = fold(Rule((Spectral(0),)), arrays, dtype)
    assert np.isnan(w.astype(float)).all()
    assert "NaN or infinity" in RowPolicy().problems(report)[0].what


def test_pruned_zeros_keep_the_signs_that_ieee_gives_them() -> None:
    for dtype in DTYPES:
        original = np.array([-1, 1, -0.0, 0.0, np.inf, np.nan], DTYPES[dtype])
        mask = np.zeros(6, DTYPES[dtype])
        w, report = fold(Rule((Mask(),)), {"original": original, "mask": mask}, dtype)
        assert np.signbit(w[:4].astype(float)).tolist() == [True, False, True, False]
        assert np.isnan(w[4:].astype(float)).all()
        assert "NaN or infinity in it" in RowPolicy().problems(report)[0].what
        kept = fold(Rule((Mask(),)), {"original": original[:4], "mask": mask[:4] + 1}, dtype)[0]
        assert same(kept, original[:4].copy())


@pytest.mark.parametrize("scale", [2.0**-140, 1e-30, 1e30, 2.0**120])
def test_sigma_at_the_ends_of_the_range(scale: float) -> None:
    arrays = {"original": normal(2, (3, 4), "float32", scale), **vectors(2, (3, 4), 0, "float32")}
    for out in NARROW:
        assert same(
            fold(Rule((Spectral(0),)), arrays, out)[0], exact_weight(Rule((Spectral(0),)), arrays, out)
        )


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_float64_quotients_are_within_an_ulp_or_two(scale: float) -> None:
    arrays = {"original": normal(2, (5, 40), "float64", scale), **vectors(2, (5, 40), 0, "float64")}
    rule = Rule((Spectral(0),))
    found, expected = fold(rule, arrays, "float64")[0], exact_weight(rule, arrays, "float64")
    assert (np.abs(found - expected) <= 3 * np.spacing(np.abs(expected))).all()


def test_operations_in_another_order_and_parts_that_do_not_fit_are_refused() -> None:
    weight = np.ones((4, 6), np.float32)
    arrays = {
        "original": weight,
        "mask": weight,
        "g": np.ones(4, np.float32),
        "u": weight[0],
        "v": weight[:, 0],
    }
    for rule, words in (
        (Rule((Norm(0), Mask())), "Mask does not come after"),
        (Rule((Spectral(0),)), "do not fit a matrix of 4 × 6"),
    ):
        with pytest.raises(LayerError, match=words):
            fold(rule, arrays, "float32")


def test_what_sigma_shows_of_its_vectors_is_said() -> None:
    assert not Divisor(0.5).note()
    note = "σ is -0.5, 20% of what singular vectors give: u and v are not trained"
    assert Divisor(-0.5, 0.2).note() == note
    assert Divisor(-0.5).note() == "σ is -0.5, and training makes none that is negative"
