"""The rows of a record: layers that go on alike take few bytes, come back as they were, and are doubted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wnconvert.layers.schemes import Layer, spelled
from wnconvert.plan.record.history import believable, read_history, write_history
from wnconvert.plan.record.origins import Origin, count_layers, origins_in, record_rows
from wnconvert.plan.record.patterns import (
    packed_names,
    packed_numbers,
    skeleton,
    unpacked_names,
    unpacked_numbers,
)
from wnconvert.tensors.dtypes import dtype_named
from wnconvert.tensors.tree import TensorInfo


def origin(name: str, place: int, *, form: str = "legacy", rows: int = 8, dim: int | None = 0) -> Origin:
    f32 = dtype_named("float32")
    g, v = spelled(form, name) or ("", "")
    shape = (rows, 4, 3)
    of_g = TensorInfo(g, f32, (rows, 1, 1) if dim == 0 else ())
    return Origin(Layer.of_pair(name, form, dim, of_g, TensorInfo(v, f32, shape)), (place, place + 1))


def text_of(origins: list[Origin]) -> str:
    return write_history([{"verb": "fold", "state_dicts": {"": record_rows(origins)}}])


def test_layers_that_go_on_alike_take_no_bytes_of_their_own() -> None:
    few, many = (
        [origin(f"layers.{at}.conv.weight", 3 * at) for at in range(count)] for count in (64, 64_000)
    )
    assert len(text_of(many)) - len(text_of(few)) < 20


def test_blocks_of_several_layers_take_few_bytes_a_layer() -> None:
    names = [
        f"decoder.stages.{stage}.blocks.{block}.convs{pair}.{at}.weight"
        for stage in range(40)
        for block in range(20)
        for pair in (1, 2)
        for at in range(3)
    ]
    origins = [origin(name, 3 * at, rows=8 << (at // 1200)) for at, name in enumerate(names)]
    assert len(text_of(origins)) <= 25 * len(names)
    assert list(origins_in(record_rows(origins))) == origins


def test_names_that_share_nothing_take_little_more_than_themselves() -> None:
    names = [
        f"{at * 7919 % 10007:x}q{at:o}z".translate(dict(zip(b"0123456789", "ghijklmnop", strict=True)))
        for at in range(500)
    ]
    text = text_of([origin(f"{name}.weight", 3 * at) for at, name in enumerate(names)])
    assert len(text) <= sum(len(name) + len(".weight") + 12 for name in names)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 50) | st.integers(0, (1 << 63) - 1)))
def test_numbers_come_back(numbers: list[int]) -> None:
    packed = json.loads(json.dumps(packed_numbers(numbers)))
    assert unpacked_numbers(packed) == numbers


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text("ab.0179é_", min_size=1), unique=True), st.data())
def test_layers_come_back_in_their_order(names: list[str], data: st.DataObject) -> None:
    kinds = [
        data.draw(st.sampled_from([("legacy", 0), ("parametrize", None), ("physicsnemo", 0)])) for _ in names
    ]
    origins = [
        origin(name, 2 * at, form=form, dim=dim)
        for at, (name, (form, dim)) in enumerate(zip(names, kinds, strict=True))
    ]
    history = read_history(text_of(origins))
    assert list(origins_in(history.steps[0]["state_dicts"][""])) == origins


@pytest.mark.parametrize(
    "name", ["conv.0.weight", "conv.00.weight", "a.1", "1", "1.1", "x" + "9" * 40, "٣.weight", ""]
)
def test_a_name_is_that_of_its_skeleton(name: str) -> None:
    texts, numbers = skeleton(name)
    assert list(unpacked_names(packed_names(texts, [numbers]))) == [name]


ROW: dict[str, Any] = {
    "form": "legacy",
    "dim": 0,
    "names": [["a.", [[0, 1, 3]], ".weight"], "b.weight"],
    "g": {"shape": [8, 1, 1], "dtype": "float32", "places": [[0, 2, 4]]},
    "v": {"shape": [8, 4, 3], "dtype": "float32", "places": [[1, 2, 4]]},
}


def test_a_row_that_makes_sense_has_its_layers() -> None:
    found = origins_in([ROW])
    assert [item.layer.name for item in found] == ["a.0.weight", "a.1.weight", "a.2.weight", "b.weight"]
    assert [item.places for item in found] == [(0, 1), (2, 3), (4, 5), (6, 7)]


@pytest.mark.parametrize(
    "change",
    [
        {"form": "lolcat"},
        {"form": 7},
        {"dim": 3},
        {"dim": True},
        {"names": 7},
        {"names": [7]},
        {"names": ["a.weight"]},
        {"names": [["a.", [[0, 1, 4]], 7]]},
        {"names": [["a.", [[0, 1, 4]]]]},
        {"names": [["a."]]},
        {"names": [[]]},
        {"names": [["a.", [[0, 1, 4]], "x", [[0, 1, 3]], ""]]},
        {"names": [["a.", [[0, -1, 4]], ""]]},
        {"names": [["a.", [[0, 1 << 62, 4]], ""]]},
        {"names": [["a.", [[0, 1]], ""], *["b"] * 3]},
        {"names": [["a.", [True, 1, 2, 3], ""]]},
        {"names": [["a.", [[0, 1, 0]], ""], *["b"] * 4]},
        {"g": {**ROW["g"], "places": [[0, 2, 3]]}},
        {"g": {**ROW["g"], "places": None}},
        {"v": {**ROW["v"], "places": [0.5, 1, 2, 3]}},
        {"v": {**ROW["v"], "shape": [8, -4, 3]}},
        {"v": {**ROW["v"], "dtype": "float31"}},
        {"v": None},
    ],
    ids=lambda change: json.dumps(change)[:60],
)
def test_a_row_that_makes_no_sense_has_none(change: dict[str, Any]) -> None:
    assert origins_in([{**ROW, **change}]) == ()


def test_a_row_that_claims_very_many_layers_is_counted_before_they_are_made() -> None:
    bomb = {**ROW, "names": [["a.", [[0, 1, 1 << 40]], ""]]}
    assert count_layers([bomb]) == 1 << 40
    record = ({"verb": "fold", "state_dicts": {"": [bomb]}},)
    assert not believable(record, {"": 1000})
    assert not believable(record, {})
    honest = ({"verb": "fold", "state_dicts": {"": [ROW]}},)
    assert believable(honest, {"": 4})
    assert believable(honest, {})  # its state dict may have gone
