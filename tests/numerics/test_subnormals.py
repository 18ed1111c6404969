"""Numbers in threads that take subnormal numbers for 0, as a program may have set them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.helpers.arrays import normal, same
from tests.helpers.oracle import DTYPES, NARROW
from wnconvert.numerics.folding import fold_with_report
from wnconvert.numerics.norms import norms
from wnconvert.numerics.rounding import cast
from wnconvert.numerics.splitting import split_array
from wnconvert.subnormals import subnormals


def takes_them_for_0() -> bool:
    return float(np.float64(2.0**-1022) * np.float64(0.5)) == 0


@pytest.fixture
def flushing() -> Iterator[None]:
    """This thread takes subnormal numbers for 0."""
    if not torch.set_flush_denormal(True):
        pytest.skip("torch does not know how on this processor")
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("flushing")
def test_a_thread_takes_subnormal_numbers_for_0_outside_of_it_and_after_an_error() -> None:
    assert takes_them_for_0()
    with subnormals():
        assert not takes_them_for_0()
    assert takes_them_for_0()
    with pytest.raises(KeyError), subnormals():
        raise KeyError
    assert takes_them_for_0()


def test_other_threads_compute_as_before() -> None:
    with subnormals():
        assert not takes_them_for_0()
    assert not takes_them_for_0()


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-40])
@pytest.mark.parametrize("dtype", NARROW)
def test_a_fold_and_its_norms_are_the_same_there(
    dtype: str, scale: float, request: pytest.FixtureRequest
) -> None:
    v, g = normal(1, (30, 40), dtype, min(scale * 1e3, 1.0)), normal(2, (30,), dtype, scale)
    expected = fold_with_report(v, g, 0, limit=3000), norms(v, 0)
    request.getfixturevalue("flushing")
    found = fold_with_report(v, g, 0, limit=3000), norms(v, 0)
    assert same(found[0][0], expected[0][0])
    assert found[0][1] == expected[0][1]
    assert same(found[1], expected[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_of_subnormal_numbers_is_split_as_one_that_is_not_zero(
    dtype: str, request: pytest.FixtureRequest
) -> None:
    w = normal(3, (4, 5), dtype, 1e-39)
    w[2] = 0
    expected = split_array(w, 0)
    request.getfixturevalue("flushing")
    assert all(same(found, there) for found, there in zip(split_array(w, 0), expected, strict=True))
    assert same(expected[1][:2], w[:2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cast_is_the_same_there(dtype: str, request: pytest.FixtureRequest) -> None:
    sources = [np.arange(-300, 300) * 2.0**power for power in (-25, -135, -150, -1074)]
    values = [source.astype(DTYPES[each]) for source in sources for each in DTYPES]
    expected = [cast(each, dtype) for each in values]
    request.getfixturevalue("flushing")
    for each, there in zip(values, expected, strict=True):
        assert same(cast(each, dtype), there)
