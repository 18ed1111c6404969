from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wnconvert.errors import ArgumentError
from wnconvert.tensors.dtypes import DTYPES
from wnconvert.verbs.models.proof.inputs.texts import InputSpec, Range, parse_input, parse_range
from wnconvert.verbs.models.proof.samples import export_arrays, export_sample
from wnconvert.verbs.models.proof.signatures import signature_of

FLOATS = ("float64", "float32", "float16", "bfloat16", "complex64", "complex128")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64")

LETTERS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True)
SHAPES = st.lists(st.one_of(st.integers(1, 2**31 - 1), LETTERS), max_size=5).map(tuple)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_./]{0,8}", fullmatch=True)
PORTS = st.one_of(st.just(""), st.from_regex(r"[A-Za-z0-9_.:/]{1,9}", fullmatch=True))
SPECS = st.one_of(
    st.builds(
        InputSpec,
        NAMES,
        st.sampled_from([DTYPES[name] for name in (*FLOATS, "bool")]),
        SHAPES,
        st.none(),
        PORTS,
    ),
    st.builds(
        InputSpec,
        NAMES,
        st.sampled_from([DTYPES[name] for name in INTEGERS]),
        SHAPES,
        st.integers(1, 128),
        PORTS,
    ),
)
RANGES = st.tuples(st.integers(1, 60), st.integers(0, 60)).map(lambda ends: Range(ends[0], sum(ends)))


@given(SPECS)
def test_an_input_is_read_back_from_its_text(spec: InputSpec) -> None:
    assert parse_input(str(spec)) == spec


@given(LETTERS, RANGES)
def test_a_range_is_read_back_from_its_text(letter: str, span: Range) -> None:
    assert parse_range(f"{letter}={span}") == (letter, span)


def test_spaces_around_sizes_are_no_matter() -> None:
    assert parse_input(" mel=float32[1, 80, T] ") == parse_input("mel=float32[1,80,T]")


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("", "NAME=DTYPE", "mel=float32[1,80,T]"),
        ("mel", "NAME=DTYPE", "mel=float32[1,80,T]"),
        ("mel=float32", "NAME=DTYPE", "mel=float32[1,80,T]"),
        ("mel=float32[1,80,T", "NAME=DTYPE", "mel=float32[1,80,T]"),
        ("=float32[1]", "NAME=DTYPE", "mel=float32[1,80,T]"),
        ("mel=float32[1]<", "NAME=DTYPE", "mel=float32[1,80,T]"),
        ("mel=float23[1]", "no dtype is called float23", "float32"),
        ("mel=qqqq[1]", "no dtype is called qqqq", "float32, float16"),
        ("mel=float8_e5m2[1]", "no values of float8_e5m2", "float32"),
        ("mel=float32[1,,2]", "'' is not a size", "mel=float32[1,80,T]"),
        ("mel=float32[1,]", "'' is not a size", "mel=float32[1,80,T]"),
        ("mel=float32[0,2]", "'0' is not a size", "mel=float32[1,80,T]"),
        ("mel=float32[-1,2]", "'-1' is not a size", "mel=float32[1,80,T]"),
        ("mel=float32[1.5]", "'1.5' is not a size", "mel=float32[1,80,T]"),
        ("mel=float32[2T]", "'2T' is not a size", "mel=float32[1,80,T]"),
        ("mel=float32[99999999999]", "'99999999999' is not a size", "mel=float32[1,80,T]"),
        ("mel=float32[1]<5", "float32 does not take a bound", "ids=int64"),
        ("flag=bool[]<2", "bool does not take a bound", "flag=bool[]"),
        ("ids=int64[1,L]", "integers need a bound", "ids=int64[1,L]<100"),
        ("ids=int64[1]<0", "0 is not a bound for int64", "1 to 9223372036854775808"),
        ("ids=int8[1]<129", "129 is not a bound for int8", "1 to 128"),
    ],
)
def test_a_malformed_input_is_refused_with_its_text_and_an_example(text: str, what: str, fix: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse_input(text)
    assert f"'{text}'" in caught.value.what
    assert what in caught.value.what
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    "text", ["", "T", "T=16", "T=16-400", "T=400..16", "T=0..4", "2=1..4", "T=a..b", "=1..2"]
)
def test_a_malformed_range_is_refused_with_its_text_and_an_example(text: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"'{text}'")) as caught:
        parse_range(text)
    assert "T=16..400" in caught.value.fix


def test_control_characters_of_a_text_are_spelled_out() -> None:
    with pytest.raises(ArgumentError) as caught:
        parse_input("a\x1b[2J")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "ranges", "what"),
    [
        ([], [], "no inputs"),
        ({}, [], "no inputs"),
        (["x=bool[]", "x=bool[2]"], [], "two inputs are called x"),
        (["x=bool[T]"], ["S=1..2"], "no input has the size S"),
        (["x=bool[2]"], ["T=1..2"], "no input has the size T"),
        (["x=bool[T]"], ["T=1..2", "T=1..3"], "two ranges for T"),
        (["x=bool[T]"], {"T": 3}, "not a pair of numbers"),
        (["x=bool[T]"], {"T": (3, 2)}, "3..2"),
        ([3.5], [], "float is not a tensor"),
        ([np.array(["a"])], [], "not a tensor"),
        ([np.zeros((0, 2))], [], "no elements"),
        ([np.array([-3])], [], "negative"),
    ],
)
def test_what_can_be_no_signature_is_refused(inputs: object, ranges: object, what: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(what)) as caught:
        signature_of(inputs, ranges)  # type: ignore[arg-type]
    assert caught.value.fix


@pytest.mark.parametrize(
    ("dynamic", "ranges", "what"),
    [
        ({"x": {2: "T"}}, [], "no axis 2"),
        ({"x": {0: "2"}}, [], "not a letter"),
        ({"y": {0: "T"}}, [], "no example tensor is called y"),
        ({"x": {0: "T", 1: "T"}}, [], "T is 3 here and 2 elsewhere"),
        ({"x": {1: "T"}}, ["T=4..9"], "the example has T = 3"),
    ],
)
def test_dynamic_axes_must_fit_the_example(
    dynamic: dict[str, dict[int, str]], ranges: list[str], what: str
) -> None:
    with pytest.raises(ArgumentError, match=what):
        signature_of({"x": np.zeros((2, 3))}, ranges, dynamic=dynamic)


def test_a_letter_without_a_range_gets_one_that_is_noted() -> None:
    signature = signature_of(["x=float32[T]", "y=float32[S]"], ["S=2..3"])
    assert signature.ranges == {"T": Range(16, 128), "S": Range(2, 3)}
    assert signature.notes == ("T: no range was given; it is 16..128",)


def test_example_tensors_are_specs_and_the_exported_values() -> None:
    mel, ids = torch.randn(1, 2, 200), np.array([[3, 0, 7]])
    signature = signature_of({"mel": mel, "ids": ids, "on": "bool[]"}, dynamic={"mel": {-1: "T"}})
    assert [str(spec) for spec in signature.inputs] == ["mel=float32[1,2,T]", "ids=int64[1,3]<8", "on=bool[]"]
    assert signature.ranges == {"T": Range(16, 200)}
    assert export_sample(signature).sizes == {"T": 200}
    exported = export_arrays(signature)
    assert np.array_equal(exported["mel"], mel.numpy())
    assert np.array_equal(exported["ids"], ids)
    assert exported["on"].shape == ()


def test_example_tensors_by_position_take_names_that_are_given() -> None:
    both = [np.zeros(2, np.float32), torch.zeros(3, dtype=torch.bfloat16)]
    assert signature_of(both, names=["a"]).names == ("a", "input_1")
    assert signature_of(torch.zeros(2, 2), names=["x"]).names == ("x",)
    assert signature_of(both).inputs[1].dtype.name == "bfloat16"
