"""The facts of the float formats, held against their numbers; casts to them."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.helpers.oracle import DTYPES, nearest_root
from wnconvert.numerics.rounding import FLOAT_FORMATS, cast, count_overflow


def test_casts_round_once_where_ml_dtypes_rounds_twice() -> None:
    for above, below in ((1 + 2.0**-8 + 2.0**-40, 1.0078125), (1 + 3 * 2.0**-8 - 2.0**-40, 1.0078125)):
        x = np.array([above, -above])
        assert cast(x, "bfloat16").astype(float).tolist() == [below, -below]
        assert x.astype(DTYPES["bfloat16"]).astype(float).tolist() != [below, -below]


@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("of", DTYPES)
def test_casts_give_the_nearest_value(of: str, to: str) -> None:
    rng = np.random.default_rng(25)
    x = rng.standard_normal(400) * 2.0 ** rng.integers(-160, 140, 400)
    x[:200] = (rng.integers(0, 4096, 200) + 0.5) * 2.0 ** rng.integers(-140, 5, 200)  # ties of short formats
    x[:100] *= 1 + rng.integers(-1, 2, 100) * 2.0**-50
    with np.errstate(over="ignore"):
        x = x.astype(DTYPES[of])
    x = x[np.isfinite(x.astype(float))]
    expected = [math.copysign(nearest_root(Fraction(float(y)) ** 2, to), y) for y in x.astype(float).tolist()]
    found = cast(x, to)
    assert found.dtype == DTYPES[to]
    assert found.astype(float).tolist() == expected
    assert count_overflow(x, found) == sum(map(math.isinf, expected))


def test_infinities_that_were_there_before_a_cast_are_no_overflow() -> None:
    x = np.array([math.inf, 65519, 65520, math.nan])
    assert count_overflow(x, cast(x, "float16")) == 1


@pytest.mark.parametrize("name", FLOAT_FORMATS)
def test_digits_and_the_least_exponent_are_those_of_the_numbers(name: str) -> None:
    form = FLOAT_FORMATS[name]
    assert form.value(1) == Fraction(2) ** form.least
    one = int(form.dtype.type(1).view(form.codes))
    assert form.value(one + 1) - 1 == Fraction(2) ** (1 - form.digits)
