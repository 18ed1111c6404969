"""Rows divided by norms with an eps, beside exact fractions: wherever it stands, for all dtypes and sizes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tests.helpers.arrays import Array, normal, same
from tests.helpers.marks import crossed
from tests.helpers.oracle import DTYPES, NARROW
from tests.helpers.rule_oracle import exact_weight
from tests.numerics.test_rules import fold
from wnconvert.layers.rules import Guard, GuardAt, Mask, Norm, NormBehind, Rule, Unit
from wnconvert.numerics.rows import Rows

PLACES: tuple[GuardAt, ...] = ("max", "max of squares", "norm", "squares")
SHAPES = ((3, 4), (2, 3, 5), (4, 1), (1, 5), (2, 40), (40, 2))
#: float32's 1e-12 and 1e-4, and eps that matter.
EPSILONS = (float(np.float32(1e-12)), float(np.float32(1e-4)), 1.0, float(np.float32(3.7)))
SCALES = (1.0, 1e-4, 1e-9)
SHARES = (Fraction(1), Fraction(1, 15), Fraction(float(np.float32(1 / 3))))


def _short(value: object) -> str:
    """A number in few digits, for the name of a test."""
    return f"{float(value):.3g}" if isinstance(value, (float, Fraction)) else str(value)


def arrays_for(rule: Rule, seed: int, shape: tuple[int, ...], dtype: str, scale: float) -> dict[str, Array]:
    made = {"original": normal(seed, shape, dtype, scale)}
    made["original"][made["original"] == 0] = 1
    if isinstance(norm := rule.operations[0], Norm):
        made["g"] = normal(seed + 4, (norm.norms(shape),), dtype)
    return made


@crossed(ids=_short, at=PLACES, eps=EPSILONS, share=SHARES, dtype=DTYPES, out=NARROW)
def test_each_element_is_the_nearest_value(
    at: GuardAt, eps: float, share: Fraction, dtype: str, out: str
) -> None:
    guard = Guard(eps, at, share)
    for seed, shape in enumerate(SHAPES):
        scale = SCALES[(seed + EPSILONS.index(eps)) % len(SCALES)]  # each shape meets each, over the eps
        for operation in (Norm(0, guard), Norm(None, guard), Unit(1, guard, Fraction(-10, 3))):
            rule = Rule((operation,))
            arrays = arrays_for(rule, seed, shape, dtype, scale)
            expected = exact_weight(rule, arrays, out)
            for limit in (8, 1 << 20):
                assert same(fold(rule, arrays, out, limit)[0], expected)


@pytest.mark.parametrize("at", PLACES)
def test_values_between_two_others_go_to_the_even_one(at: GuardAt) -> None:
    v = np.array([[3, 4], [30, 40], [0.75, 1]], np.float32)
    eps = {"max": 8.0, "max of squares": 64.0, "norm": 3.0, "squares": 39.0}[at]
    for tie in range(1, 200, 2):
        g = np.full(3, np.float32((1024 + tie / 2) / 4 * 8), np.float32)
        rule, arrays = Rule((Norm(0, Guard(eps, at)),)), {"original": v, "g": g}
        assert same(fold(rule, arrays, "float16")[0], exact_weight(rule, arrays, "float16"))


@pytest.mark.parametrize("at", PLACES)
@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_float64_is_within_four_ulp(at: GuardAt, scale: float) -> None:
    for eps in (1e-12, 1.0, 1e-290, 1e290):
        rule = Rule((Norm(0, Guard(eps, at)),))
        arrays = arrays_for(rule, 3, (5, 40), "float64", scale)
        found, expected = fold(rule, arrays, "float64")[0], exact_weight(rule, arrays, "float64")
        assert (np.abs(found - expected) <= 4 * np.spacing(np.abs(expected))).all()


def test_a_guard_and_a_mask_and_a_norm_behind_are_rounded_once() -> None:
    behind = NormBehind(0, 1e-5, shift=False)
    for at in PLACES:
        rule = Rule((Mask(), Norm(0, Guard(0.5, at)), behind))
        arrays = {
            "original": normal(1, (6, 7), "float32"),
            "mask": np.round(np.abs(normal(2, (6, 7), "float32"))),
            "g": normal(3, (6,), "float32"),
            "gamma": normal(4, (6,), "float32"),
            "variance": np.abs(normal(5, (6,), "float32")),
        }
        for out in NARROW:
            assert same(fold(rule, arrays, out)[0], exact_weight(rule, arrays, out))


def test_rows_of_zeros_are_zero_under_a_guard_and_reported_without_one() -> None:
    arrays = {"original": np.array([[3, 4], [0, 0]], np.float32), "g": np.array([1, 2], np.float32)}
    for at in PLACES:
        w, report = fold(Rule((Norm(0, Guard(1e-12, at)),)), arrays, "float32")
        assert not w[1].any()
        assert not report.zero.count
    root_mean = Guard(0.0, "squares", Fraction(1, 2))
    for operation in (Norm(0), Norm(0, root_mean), Unit(0, root_mean), Unit(0)):
        assert fold(Rule((operation,)), arrays, "float32")[1].zero == Rows(1, (1,))


def test_a_row_that_is_its_own_weight_is_that_only_above_the_least_norm() -> None:
    v = normal(7, (3, 9), "float32")
    g = np.sqrt(np.square(v.astype(np.float64)).sum(1)).astype(np.float32)
    above = fold(Rule((Norm(0, Guard(1e-12)),)), {"original": v, "g": g}, "float32")
    assert same(above[0], v)
    below = fold(Rule((Norm(0, Guard(100.0)),)), {"original": v, "g": g}, "float32")
    assert same(below[0], exact_weight(Rule((Norm(0, Guard(100.0)),)), {"original": v, "g": g}, "float32"))


def test_what_is_not_finite_or_too_large_is_reported() -> None:
    guard = Guard(float(np.float32(1e-12)))
    arrays = {"original": np.array([[1, np.nan], [2, 1]], np.float32), "g": np.array([1, 1], np.float32)}
    assert fold(Rule((Norm(0, guard),)), arrays, "float32")[1].nonfinite == Rows(1, (0,))
    arrays = {"original": np.array([[1e-13, 0]], np.float32), "g": np.array([3e38], np.float32)}
    assert not fold(Rule((Norm(0, guard),)), arrays, "float32")[1].overflow.count
    arrays = {"original": np.array([[1, 0]], np.float32), "g": np.array([7e4], np.float32)}
    assert fold(Rule((Norm(0, guard),)), arrays, "float16")[1].overflow == Rows(1, (0,))
