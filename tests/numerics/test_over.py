"""Rows over the norms of another tensor's, beside exact fractions; and the rows that are odd."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.helpers.arrays import Array, normal, same
from tests.helpers.marks import crossed
from tests.helpers.oracle import DTYPES, NARROW
from tests.helpers.rule_oracle import exact_weight
from tests.numerics.test_rules import fold
from wnconvert.errors import LayerError
from wnconvert.layers.rules import Guard, Over, Rule
from wnconvert.numerics.rows import RowPolicy

SHAPES = ((3, 4), (2, 3, 5), (4, 1), (2, 40), (40, 2))
GUARDS = (
    None,
    Guard(1e-2),
    Guard(0.3, "norm"),
    Guard(1e-6, "squares", Fraction(1, 7)),
    Guard(0.5, "max of squares"),
)


def arrays_of(seed: int, shape: tuple[int, ...], over: Over, dtype: str, divisor: str) -> dict[str, Array]:
    made = {"original": normal(seed, shape, dtype), "divisor": normal(seed + 5, shape, divisor)}
    if over.squares:
        made["divisor"] = np.abs(made["divisor"])
    if over.gain:
        made["g"] = normal(seed + 3, (1 if over.dim is None else shape[over.dim],), dtype)
    return made


@crossed(dtype=DTYPES, divisor=DTYPES, out=NARROW, squares=[False, True], gain=[False, True])
def test_each_element_is_the_nearest_value(
    dtype: str, divisor: str, out: str, squares: bool, gain: bool
) -> None:
    for seed, shape in enumerate(SHAPES):
        for dim in (None, 0, 1):
            for guard in GUARDS:
                over = Over(dim, guard, squares, gain, Fraction(1) if gain else Fraction(5, 3))
                arrays = arrays_of(seed, shape, over, dtype, divisor)
                expected = exact_weight(Rule((over,)), arrays, out)
                for limit in (24, 1 << 20):
                    assert same(fold(Rule((over,)), arrays, out, limit)[0], expected)


@pytest.mark.parametrize("out", NARROW)
@pytest.mark.parametrize("squares", [False, True])
def test_rows_that_are_far_larger_or_smaller_than_their_norms_are_rounded_once(
    squares: bool, out: str
) -> None:
    """Those of weight norm itself are at most 1 before g; of these some overflow, and some are subnormal."""
    over = Over(0, None, squares)
    scales = np.array([1e-30, 1e-10, 1e-3, 1, 1e3, 1e10, 1e30, 1e37], np.float32)[:, None]
    for power in (-20, -6, 0, 6, 18):
        arrays = {
            "original": normal(1, (8, 33), "float32") * scales,
            "divisor": np.abs(normal(2, (8, 33), "float32")) * np.float32(10.0**power),
        }
        w, report = fold(Rule((over,)), arrays, out)
        expected = exact_weight(Rule((over,)), arrays, out)
        assert same(w, expected)
        assert report.overflow.count == np.isinf(expected).any(axis=1).sum()


def test_sums_of_which_float64_keeps_no_digits_are_exact() -> None:
    """What is beside 1 is less than its last digit, and decides on which side of a midpoint an element is."""
    for tail in (0.0, 2.0**-80, 2.0**-149):
        divisor = np.array([[1, 0, tail]], np.float32)
        original = np.array([[1 + 2.0**-12, 1 + 2.0**-11, 3]], np.float32)
        arrays = {"original": original, "divisor": divisor}
        for squares in (False, True):
            rule = Rule((Over(0, None, squares),))
            assert same(fold(rule, arrays, "float16")[0], exact_weight(rule, arrays, "float16"))


@pytest.mark.parametrize("squares", [False, True])
def test_rows_over_nothing_are_told_and_become_zero_where_that_is_asked_for(squares: bool) -> None:
    arrays = {"original": np.ones((3, 4), np.float32), "divisor": np.ones((3, 4), np.float32)}
    arrays["divisor"][1] = 0
    w, report = fold(Rule((Over(0, None, squares),)), arrays, "float32")
    (problem,) = RowPolicy().problems(report)
    assert "zero in row 1" in problem.what
    assert not RowPolicy("zero").problems(report)
    assert not w[1].any()
    assert (w[[0, 2]] == 0.5).all()


def test_with_a_guard_rows_over_nothing_are_over_the_eps() -> None:
    arrays = {"original": np.ones((2, 4), np.float32), "divisor": np.zeros((2, 4), np.float32)}
    w, report = fold(Rule((Over(0, Guard(0.25)),)), arrays, "float32")
    assert (w == 4).all()
    assert not RowPolicy().problems(report)


@pytest.mark.parametrize("where", ["original", "divisor", "g"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("squares", [False, True])
def test_rows_with_nan_or_infinities_are_told(where: str, bad: float, dtype: Any, squares: bool) -> None:
    arrays = {name: np.ones((3, 4), dtype) for name in ("original", "divisor")} | {"g": np.ones(3, dtype)}
    arrays[where].reshape(3, -1)[2, 0] = bad
    w, report = fold(Rule((Over(0, None, squares, gain=True),)), arrays, dtype)
    assert report.nonfinite.first == (2,)
    assert (w[:2] == 0.5).all()


def test_negative_numbers_are_no_squares() -> None:
    arrays = {"original": np.ones((3, 4), np.float32), "divisor": np.ones((3, 4), np.float32)}
    arrays["divisor"][2, 3] = -1e-30
    with pytest.raises(LayerError, match="negative numbers"):
        fold(Rule((Over(0, None, squares=True),)), arrays, "float32")
    assert (fold(Rule((Over(0),)), arrays, "float32")[0][:2] == 0.5).all()


@pytest.mark.parametrize("name", ["divisor", "g"])
def test_what_does_not_fit_is_refused(name: str) -> None:
    arrays = {role: np.ones((3, 4), np.float32) for role in ("original", "divisor")} | {"g": np.ones(3)}
    arrays[name] = np.ones((4, 3), np.float32)
    with pytest.raises(LayerError, match="does not fit"):
        fold(Rule((Over(0, gain=True),)), arrays, "float32")
