"""What is read back is held against plain arithmetic: a number beside the right one is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers.oracle import DTYPES, NARROW, Array, exact_fold
from wnconvert.errors import VerifyError
from wnconvert.layers.schemes import Layer
from wnconvert.numerics.folding import fold_array
from wnconvert.numerics.rounding import cast
from wnconvert.numerics.splitting import split_array
from wnconvert.plan.steps import Direction, Fold, Keep, Step
from wnconvert.tensors.dtypes import dtype_named
from wnconvert.tensors.memory import InMemory, stored_tensor
from wnconvert.tensors.tree import TensorInfo
from wnconvert.verbs.conversion.verify import pieces
from wnconvert.verbs.conversion.verify.steps import Both, check_step

SHAPE = (6, 5, 4)
DIMS = [0, 1, 2, None]


def check(step: Step, before: dict[str, Array], after: dict[str, Array]) -> int:
    """Check a step on arrays in memory; the bytes that were checked."""
    tensors = {name: tensor for name, value in before.items() if (tensor := stored_tensor(name, value))}
    done = [0]
    both = Both(
        tensors,
        InMemory(before),
        lambda name: lambda block, piece: np.asarray(after[name].reshape(after[name].shape or (1,))[piece]),
        lambda name: lambda at: None,
        done.append,
    )
    check_step(step, both)
    return sum(done)


def layer(g: Array, v: Array, dim: int | None) -> Layer:
    of_g, of_v = (
        TensorInfo(name, dtype_named(value.dtype.name), value.shape)
        for name, value in (("w_g", g), ("w_v", v))
    )
    return Layer.of_pair("w", "legacy", dim, of_g, of_v)


def is_fold(v: Array, g: Array, w: Array, dim: int | None) -> bool:
    """Whether w passes as the fold of v and g."""
    try:
        done = check(Fold(layer(g, v, dim), dtype_named(w.dtype.name)), {"w_g": g, "w_v": v}, {"w": w})
    except VerifyError:
        return False
    assert done == w.nbytes
    return True


def random(dtype: str, shape: tuple[int, ...] = SHAPE, scale: float = 1.0, seed: int = 0) -> Array:
    return cast(np.random.default_rng(seed).standard_normal(shape) * scale, dtype)


def magnitudes(dim: int | None, dtype: str, shape: tuple[int, ...] = SHAPE) -> Array:
    size = 1 if dim is None else shape[dim]
    return cast(np.random.default_rng(1).uniform(0.5, 2, size), dtype)


def beside(w: Array, at: int, by: int) -> Array:
    """An array whose element at a place is the number ``by`` units further."""
    new = w.copy()
    new.reshape(-1).view(f"u{w.itemsize}")[at] += np.array(by).astype(f"u{w.itemsize}")
    return new


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [1 << 20, 64])
def test_an_element_that_is_the_next_number_is_found(
    monkeypatch: pytest.MonkeyPatch, dtype: str, dim: int | None, block: int
) -> None:
    monkeypatch.setattr(pieces, "BLOCK_BYTES", block)
    v, g = random(dtype), magnitudes(dim, dtype)
    w = fold_array(v, g, dim)
    assert is_fold(v, g, w, dim)
    units = 6 if dtype == "float64" else 1  # which may be four off
    for at in range(0, w.size, 17):
        for by in (units, -units):
            assert not is_fold(v, g, beside(w, at, by), dim)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_changed_places_are_found(dtype: str, dim: int | None) -> None:
    v, g = random(dtype), magnitudes(dim, dtype)
    w = fold_array(v, g, dim)
    axis = dim or 0
    order = [1, 0, *range(2, w.shape[axis])]
    assert not is_fold(v, g, np.take(w, order, axis), dim)
    assert is_fold(v, g, np.take(np.take(w, order, axis), order, axis), dim)
    if dim is not None:
        assert not is_fold(v, g[order], w, dim)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", NARROW)
def test_a_row_whose_g_is_its_norm_is_v_or_the_quotient_and_no_third(dtype: str, dim: int | None) -> None:
    w = random(dtype)
    g, v = split_array(w, dim)
    quotient = exact_fold(v, g, dim, dtype)
    assert is_fold(v, g, v, dim)
    assert is_fold(v, g, quotient, dim)
    assert is_fold(v, g, fold_array(v, g, dim), dim)
    for at in range(0, w.size, 13):
        for by in (1, -1):
            third = beside(w, at, by)
            assert is_fold(v, g, third, dim) == np.array_equal(third.flat[at], quotient.flat[at])


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("of_g", DTYPES)
@pytest.mark.parametrize("of_v", DTYPES)
def test_every_mixture_of_dtypes_is_checked(of_v: str, of_g: str, out: str) -> None:
    v, g = random(of_v), magnitudes(1, of_g)
    w = fold_array(v, g, 1, dtype=out)
    assert is_fold(v, g, w, 1)
    assert not is_fold(v, g, beside(w, 17, 6 if out == "float64" else 1), 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_at_the_ends_of_the_range_are_right_and_those_beside_them_wrong(dtype: str) -> None:
    form = {"float64": (-1074, 1023), "float32": (-149, 127), "float16": (-24, 15), "bfloat16": (-133, 127)}
    least, most = form[dtype]
    real = np.longdouble if dtype == "float64" else np.float64
    base = np.random.default_rng(2).uniform(1, 2, (8, 16)).astype(real)
    v = random(dtype, (8, 16))
    for power in (least + 1, least + 5, (least + most) // 2, most - 1):
        g = cast(np.ldexp(base[:, 0], power).astype(np.float64), dtype)
        w = fold_array(v, g, 0)
        assert is_fold(v, g, w, 0)
        assert not is_fold(v, g, beside(w, 3, 6 if dtype == "float64" else 1), 0)
    tiny = cast(np.ldexp(base, least + 3).astype(np.float64), dtype)
    g = magnitudes(0, dtype, (8,))
    assert is_fold(tiny, g, fold_array(tiny, g, 0), 0)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_have_signs_and_what_has_no_answer_is_as_it_came(dtype: str, dim: int | None) -> None:
    v, g = random(dtype), magnitudes(dim, dtype)
    v[2, 3, 1] = -0.0
    g[0] = -g[0]
    w = fold_array(v, g, dim)
    assert is_fold(v, g, w, dim)
    other = w.copy()
    other[2, 3, 1] = -other[2, 3, 1]
    assert not is_fold(v, g, other, dim)
    for value in (np.inf, -np.inf, np.nan):
        odd = v.copy()
        odd[1, 2, 3] = value
        with np.errstate(all="ignore"):
            w = fold_array(odd, g, dim)
            assert is_fold(odd, g, w, dim)
            w[1, 2, 3] = 1
            assert not is_fold(odd, g, w, dim)
    for value in (np.inf, np.nan):
        with np.errstate(all="ignore"):
            odd_g = g.copy()
            odd_g[0] = value
            assert is_fold(v, odd_g, fold_array(v, odd_g, dim), dim)


def test_what_is_past_the_largest_number_is_infinite_and_only_that() -> None:
    v, g = np.array([[1], [-1], [1], [1]], np.float32), np.array([1e5, 1e5, 65519, 65521], np.float32)
    w = np.array([[np.inf], [-np.inf], [65504], [np.inf]], np.float16)
    assert is_fold(v, g, w, 0)
    for at in range(4):
        assert not is_fold(v, g, beside(w, at, -1), 0)
        assert not is_fold(v, g, beside(w, at, 1), 0)
        assert not is_fold(v, g, beside(w, at, 1 << 15), 0)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_halves_are_checked_with_rows_of_zeros(dtype: str, dim: int | None) -> None:
    w = random(dtype)
    if dim is not None:
        np.moveaxis(w, dim, 0)[2] = np.copysign(np.zeros((), w.dtype), np.moveaxis(w, dim, 0)[2])
    g, v = split_array(w, dim)

    def is_split(g: Array, v: Array) -> bool:
        try:
            done = check(Direction(layer(g, v, dim)), {"w": w}, {"w_g": g, "w_v": v})
        except VerifyError:
            return False
        assert done == g.nbytes + v.nbytes
        return True

    assert is_split(g, v)
    units = 6 if dtype == "float64" else 1
    for at in range(0, w.size, 5):
        assert not is_split(g, beside(v, at, units))
        assert not is_split(g, beside(v, at, 1 << (8 * v.itemsize - 1)))
    for at in range(g.size):
        for by in (1, 1 << (8 * v.itemsize - 1)):
            assert not is_split(beside(g, at, by), v)


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_cast_is_rounded_once_and_to_even(dtype: str, out: str) -> None:
    ties = cast(1 + np.arange(64) * 2.0**-9, dtype)
    values = np.concatenate([random(dtype, (20,)), ties, random(dtype, (10,), 1e-6)])
    values[:5] = np.array([0.0, -0.0, np.inf, -np.inf, np.nan])
    made = cast(values, out)

    def is_cast(found: Array) -> bool:
        try:
            check(Keep("to", "from", dtype_named(out)), {"from": values}, {"to": found})
        except VerifyError:
            return False
        return True

    assert is_cast(made)
    for at in (0, 2, *range(5, values.size)):
        for by in (1, -1):
            assert not is_cast(beside(made, at, by)), (at, values[at])


@pytest.mark.parametrize("dtype", ["int64", "int8", "bool", "float32"])
def test_what_is_kept_has_the_same_bytes(dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 2, 1003).astype(dtype)
    assert check(Keep("to", "from"), {"from": values}, {"to": values.copy()}) == values.nbytes
    for at in (0, 500, 1002):
        other: Any = values.copy()
        other.view(np.uint8)[at * values.itemsize] ^= 1
        with pytest.raises(VerifyError, match="other values"):
            check(Keep("to", "from"), {"from": values}, {"to": other})
