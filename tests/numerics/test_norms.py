"""Norms of rows are the nearest values of their dtype."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tests.helpers.arrays import DIMS, normal, reader, same
from tests.helpers.oracle import DTYPES, exact_norms, nearest_root
from wnconvert.numerics.norms import norm_blocks, norms


@pytest.mark.parametrize("g_dtype", DTYPES)
@pytest.mark.parametrize("v_dtype", DTYPES)
def test_norms_are_correctly_rounded_in_every_dtype(v_dtype: str, g_dtype: str) -> None:
    for seed, (dim, shape) in enumerate([*DIMS, (0, (3, 900)), (1, (300, 3))]):
        v = normal(seed, shape, v_dtype)
        expected = exact_norms(v, dim, g_dtype)
        assert same(norms(v, dim, g_dtype), expected)
        found, _ = norm_blocks(
            reader(v),
            shape,
            dim,
            v_dtype,
            g_dtype,
            limit=64,
        )
        assert same(found, expected)


@pytest.mark.parametrize("scale", [5e-324, 3e-320, 1e-308, 1e-200, 1e200, 1e307])
def test_float64_norms_are_correctly_rounded_at_the_ends_of_the_range(scale: float) -> None:
    v = np.random.default_rng(1).integers(-9, 10, (20, 5)) * scale
    assert same(norms(v, 0), exact_norms(v, 0, "float64"))


@pytest.mark.parametrize(("out", "bits"), [("float32", 24), ("float16", 11), ("bfloat16", 8)])
def test_a_norm_next_to_a_midpoint_is_decided_exactly(out: str, bits: int) -> None:
    for tiny in (0.0, 2.0**-20, 2.0**-28, 2.0**-40, 2.0**-60):
        for step in range(4):
            v = np.array([[1 + (2 * step + 1) * 2.0**-bits, tiny], [1 + (2 * step + 1) * 2.0**-bits, 0.0]])
            assert same(norms(v, 0, out), exact_norms(v, 0, out))


def test_a_norm_on_a_midpoint_goes_to_even() -> None:
    # 3-4-5 triples scaled so that 5·k needs one bit more than the format has
    for k in (0x333334 - 1, 0x333334 + 1, 0x333335, 0x333337):
        v = np.array([[3.0 * k, 4.0 * k]], np.float64)
        assert float(norms(v, 0, "float32")[0]) == nearest_root(Fraction(5 * k) ** 2, "float32")
