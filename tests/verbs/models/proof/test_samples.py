from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.verbs.models.proof.test_signatures import FLOATS, INTEGERS, RANGES
from wnconvert.errors import ArgumentError
from wnconvert.tensors.dtypes import DTYPES
from wnconvert.verbs.models.proof.inputs.texts import Range
from wnconvert.verbs.models.proof.samples import (
    EXPORT_SEED,
    Sample,
    arrays,
    export_arrays,
    export_sample,
    samples_of,
)
from wnconvert.verbs.models.proof.signatures import signature_of


@given(RANGES, RANGES, st.integers(1, 12), st.integers(0, 1000))
def test_samples_are_low_then_high_then_odd_and_never_exported(
    s: Range, t: Range, count: int, seed: int
) -> None:
    signature = signature_of(["x=float32[S,T]"], {"S": s, "T": t})
    exported, found = export_sample(signature).sizes, samples_of(signature, count, seed)
    assert [sample.seed for sample in found] == list(range(seed, seed + count))
    assert EXPORT_SEED not in range(seed, seed + count)
    for letter, span in signature.ranges.items():
        sizes = [sample.sizes[letter] for sample in found]
        others = [size for size in range(span.low, span.high + 1) if size != exported[letter]]
        assert exported[letter] in span
        if not others:
            assert set(sizes) == {span.low}
            continue
        assert set(sizes) <= set(others)
        assert sizes[:2] == [others[0], others[-1]][:count]
        low, *inside, high = others if len(others) > 1 else (others[0], others[0])
        evens = [size for size in sizes[2:] if size % 2 == 0]
        if low % 2 and high % 2 and count > 2 and any(size % 2 == 0 for size in inside):
            assert len(evens) >= 1
            assert len(evens) == 1 or not any(size % 2 for size in inside)
        elif any(size % 2 for size in inside):
            assert not evens


@pytest.mark.parametrize("text", ["B=3..41", "B=1..9", "B=5..301", "B=1..3"])
def test_where_both_ends_are_odd_an_even_size_is_among_the_samples(text: str) -> None:
    for count in (3, 4, 20):
        drawn = samples_of(signature_of(["x=float32[B]"], [text]), count)
        assert {sample.sizes["B"] % 2 for sample in drawn} == {0, 1} or text == "B=1..3"


@pytest.mark.parametrize("name", ["flag", "causal", "eos", "down", "left"])
@pytest.mark.parametrize("kind", ["bool[]", "bool[1]", "int64[]<2", "int64[]<3", "uint8[1]<4"])
def test_inputs_of_few_values_take_them_in_turn(name: str, kind: str) -> None:
    signature = signature_of([f"{name}={kind}"])
    drawn = [int(arrays(signature, sample)[name].reshape(-1)[0]) for sample in samples_of(signature)]
    below = signature.inputs[0].below or 2
    assert set(drawn) == set(range(below))
    assert set(drawn) - {int(export_arrays(signature)[name].reshape(-1)[0])}


def test_inputs_of_few_values_are_not_in_step_for_ever() -> None:
    signature = signature_of(["u=int64[]<4", "v=int64[]<4", "a=bool[]", "b=bool[]", "c=bool[]", "d=bool[]"])
    drawn = [arrays(signature, sample) for sample in samples_of(signature, 100)]
    assert len({(int(found["u"]), int(found["v"])) for found in drawn}) == 16
    for one in "abcd":
        for other in "abcd".replace(one, ""):
            assert len({(bool(found[one]), bool(found[other])) for found in drawn}) == 4


def test_three_flags_take_all_pairs_of_values_in_four_samples() -> None:
    signature = signature_of(["a=bool[]", "b=bool[]", "c=bool[]"])
    drawn = [arrays(signature, sample) for sample in samples_of(signature, seed=7)]
    for one, other in (("a", "b"), ("a", "c"), ("b", "c")):
        assert len({(bool(found[one]), bool(found[other])) for found in drawn}) == 4


def test_samples_spread_over_a_range_without_repeating() -> None:
    found = [sample.sizes["T"] for sample in samples_of(signature_of(["x=bool[T]"], ["T=16..400"]), 20)]
    assert len(set(found)) == 20
    assert np.histogram(found, bins=4)[0].min() >= 4


def test_several_letters_differ_where_they_may() -> None:
    signature = signature_of(["x=bool[T]", "y=bool[S]"], {"T": (16, 400), "S": (16, 400)})
    assert all(sample.sizes["T"] != sample.sizes["S"] for sample in samples_of(signature)[2:])


def test_fixed_shapes_give_one_seed_a_sample() -> None:
    assert samples_of(signature_of(["x=bool[2]"]), 2, 5) == (Sample(5, {}), Sample(6, {}, 1))


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (-1, 0), (4, -1), (4, EXPORT_SEED)])
def test_counts_and_seeds_that_are_none_are_refused(count: int, seed: int) -> None:
    with pytest.raises(ArgumentError):
        samples_of(signature_of(["x=bool[2]"]), count, seed)


@pytest.mark.parametrize("name", [*FLOATS, "bool"])
def test_values_have_their_dtype_and_shape_and_come_back_with_their_seed(name: str) -> None:
    signature = signature_of([f"x={name}[3,T]", f"y={name}[3,T]", f"z={name}[]"])
    first = arrays(signature, Sample(1, {"T": 50}))
    again, other = arrays(signature, Sample(1, {"T": 50})), arrays(signature, Sample(2, {"T": 50}))
    assert first["x"].shape == (3, 50)
    assert first["z"].shape == ()
    assert all(array.dtype == DTYPES[name].numpy() for array in first.values())
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not np.array_equal(first["x"], other["x"])
    assert not np.array_equal(first["x"], first["y"])


def test_floats_are_standard_normal() -> None:
    drawn = arrays(signature_of(["x=float32[10000]", "h=bfloat16[10000]"]), Sample(0, {}))
    assert drawn["h"].dtype == ml_dtypes.bfloat16
    for array in drawn.values():
        values = array.astype(np.float64)
        assert abs(values.mean()) < 0.05
        assert abs(values.std() - 1) < 0.05


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_are_uniform_below_their_bound(name: str) -> None:
    drawn = arrays(signature_of([f"x={name}[1000]<7"]), Sample(0, {}))["x"]
    assert drawn.dtype == name
    assert set(drawn.tolist()) == set(range(7))


def test_the_largest_bounds_can_be_drawn() -> None:
    texts = [f"{name}={name}[100]<{int(np.iinfo(name).max) + 1}" for name in INTEGERS]
    assert all(array.min() >= 0 for array in arrays(signature_of(texts), Sample(0, {})).values())


def test_sizes_past_all_memory_are_refused() -> None:
    signature = signature_of(["x=float32[2000000000,2000000000]"])
    with pytest.raises(ArgumentError, match="do not fit in memory"):
        arrays(signature, Sample(0, {}))
