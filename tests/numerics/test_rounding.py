"""The facts of the float formats, held against their numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest

from wnconvert.numerics.rounding import FLOAT_FORMATS


@pytest.mark.parametrize("name", FLOAT_FORMATS)
def test_digits_and_the_least_exponent_are_those_of_the_numbers(name: str) -> None:
    form = FLOAT_FORMATS[name]
    assert form.value(1) == Fraction(2) ** form.least
    one = int(form.dtype.type(1).view(form.codes))
    assert form.value(one + 1) - 1 == Fraction(2) ** (1 - form.digits)
