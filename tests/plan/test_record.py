"""The record of what was done: written, read back, and doubted like any other input."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.helpers.golden import FIXTURES
from tests.helpers.states import output_of, state_dicts
from wnconvert import __version__, fold_file, split_file
from wnconvert.errors import WnconvertError
from wnconvert.plan.record.history import (
    METADATA_KEY,
    NO_HISTORY,
    RECORD_NAME,
    History,
    read_history,
    write_history,
)
from wnconvert.plan.record.origins import origins_in
from wnconvert.storage.checkpoint import open_checkpoint

STEP: dict[str, Any] = {"verb": "fold", "state_dicts": {"generator": [{"name": "conv.weight", "dim": None}]}}


def test_what_is_written_is_read_back() -> None:
    text = write_history([STEP, STEP], {"format": "pt", "é": "ü"})
    assert read_history(text) == History((STEP, STEP), {"format": "pt", "é": "ü"}, versions=(__version__,))
    assert read_history(text.encode()) == read_history(text)


def test_the_record_is_compact_json_in_a_fixed_order() -> None:
    assert write_history([STEP]) == (
        f'{{"schema":2,"version":"{__version__}","history":[{{"verb":"fold","state_dicts":'
        '{"generator":[{"name":"conv.weight","dim":null}]}}]}'
    )


def test_no_record_is_no_history_and_no_note() -> None:
    for nothing in ("", b""):
        assert read_history(nothing) is NO_HISTORY


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "null",
        "[]",
        "{}",
        '{"history": {}}',
        '{"history": [1]}',
        '{"history": [{"verb": "fold"}]}',
        '{"history": [{"verb": 1, "state_dicts": {}}]}',
        '{"history": [{"verb": "fold", "state_dicts": []}]}',
        '{"history": [{"verb": "fold", "state_dicts": {"": {}}}]}',
        '{"history": [], "metadata": []}',
        '{"history": [], "metadata": {"format": "\\ud800"}}',
        b"\xff\xfe",
        "[" * 100_000,
        '{"history": [' + "9" * 10_000 + "]}",
    ],
    ids=lambda text: repr(text[:30]),
)
def test_a_record_that_makes_no_sense_is_left_out_with_a_note(text: str | bytes) -> None:
    history = read_history(text)
    assert (history.steps, history.metadata) == ((), {})
    assert history.notes == ("its wnconvert record makes no sense and is left out",)


def test_metadata_is_text_whatever_the_record_says() -> None:
    assert read_history('{"history": [], "metadata": {"n": 1}}').metadata == {"n": "1"}


def record_in(path: Path) -> Any:
    """The record of a file as others read it."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(f"/{RECORD_NAME}"))
            return json.loads(archive.read(name))
    with safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()[METADATA_KEY])


@pytest.mark.parametrize(("source", "path"), [("g_02500000", "generator"), ("hifigan.safetensors", "")])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_says_what_was_done_to_it(source: str, path: str, suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"out{suffix}"
    fold_file(FIXTURES / source, out)
    record = record_in(out)
    assert (record["schema"], record["version"]) == (2, __version__)
    (step,) = record["history"]
    ((where, rows),) = step["state_dicts"].items()
    assert where == ("" if suffix == ".safetensors" else path)
    layers = origins_in(rows)
    assert len(layers) == 78
    state = open_checkpoint(FIXTURES / source).tree.state_dicts[0]
    names = [entry.name for entry in state.entries]
    for origin in layers:
        for half, place in zip(origin.layer.halves, origin.places, strict=True):
            assert names[place] == half.name
            assert state.tensors[half.name].info == half


def test_metadata_of_safetensors_survives_a_torch_file(tmp_path: Path) -> None:
    middle, back = tmp_path / "a.pt", tmp_path / "b.safetensors"
    fold_file(FIXTURES / "hifigan.safetensors", middle)
    fold_file(middle, back)
    with safe_open(back, framework="numpy") as file:
        assert file.metadata()["format"] == "pt"
    assert record_in(back) == {key: value for key, value in record_in(middle).items() if key != "metadata"}


def test_a_second_fold_that_folds_nothing_leaves_the_record_alone(tmp_path: Path) -> None:
    fold_file(FIXTURES / "g_02500000", tmp_path / "a.pt")
    fold_file(tmp_path / "a.pt", tmp_path / "b.pt", copy=True)
    assert record_in(tmp_path / "a.pt") == record_in(tmp_path / "b.pt")


def planted(history: Any, path: Path) -> Path:
    """A file of one folded layer with this history in it."""
    tensors = {"a.weight": torch.ones(8, 4, 3), "bias": torch.ones(8)}
    text = json.dumps({"history": history})
    if path.suffix == ".safetensors":
        save_file(tensors, path, {METADATA_KEY: text})
        return path
    torch.save(tensors, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].split('/')[0]}/{RECORD_NAME}", text)
    return path


def history(**changes: Any) -> list[Any]:
    """What a fold of that layer records, but for some values."""
    halves = {
        half: {"name": f"a.weight_{half}", "shape": shape, "dtype": "float32", "place": place}
        for half, shape, place in (("g", [8, 1, 1], 0), ("v", [8, 4, 3], 1))
    }
    layer = {"name": "a.weight", "form": "legacy", "dim": 0, **halves, **changes}
    return [{"verb": "fold", "state_dicts": {"": [layer]}}]


LIES: list[Any] = [
    [],
    [1],
    {},
    "fold",
    [{"verb": "fold", "state_dicts": {"": 7}}],
    [{"verb": "fold", "state_dicts": {"": [7, None, [], "a.weight"]}}],
    [{"verb": "fold", "state_dicts": {"elsewhere": history()[0]["state_dicts"][""]}}],
    [{"verb": ["fold"], "state_dicts": {}}],
    history(dim=1),
    history(dim=1 << 200),
    history(dim=-3),
    history(form="__class__"),
    history(name="../../a.weight"),
    history(name="b.weight"),
    history(g={"name": "a.weight_g", "shape": [1] * 100_000, "dtype": "float32", "place": 0}),
    history(g={"name": "a.weight_g", "shape": [1 << 62, 1, 1], "dtype": "float32", "place": 0}),
    history(g={"name": "bias", "shape": [8, 1, 1], "dtype": "float32", "place": 0}),
    history(v={"name": "a.weight_v", "shape": [1 << 62, 4, 3], "dtype": "float32", "place": 0}),
    history(v={"name": "a.weight_v", "shape": [8, 4, 3], "dtype": "object", "place": 0}),
    history() * 3 + history(dim=2),
]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("lie", LIES, ids=lambda lie: json.dumps(lie)[-30:])
def test_a_record_that_lies_is_refused_in_words_and_nothing_is_written(
    tmp_path: Path, lie: Any, suffix: str
) -> None:
    source = planted(lie, tmp_path / f"in{suffix}")
    with pytest.raises(WnconvertError) as caught:
        split_file(source, tmp_path / f"out{suffix}")
    assert caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
    honest = planted(history(), tmp_path / f"honest{suffix}")
    assert list(load(output_of(split_file(honest)))) == ["a.weight_g", "a.weight_v", "bias"]
    # What is wrong in the record is no obstacle where it is not gone by.
    assert split_file(source, tmp_path / f"out{suffix}", layers="a.weight", dim=0).plan.layers


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_a_record_says_of_places_dtypes_and_steps_changes_no_number(tmp_path: Path, suffix: str) -> None:
    half = {"name": "a.weight_g", "shape": [8], "dtype": "float64", "place": (1 << 63) - 1}
    for number, odd in enumerate(
        (
            history(g=half),
            history(g={**half, "dtype": "bool"}),
            history(g={**half, "place": 0}) + history() + history(g=half),
            history(extra={"deep": [[[]]]}),
        )
    ):
        source = planted(odd, tmp_path / f"{number}{suffix}")
        out = output_of(split_file(source, verify=True))
        state = load(out)
        assert sorted(state) == ["a.weight_g", "a.weight_v", "bias"]
        assert torch.equal(state["a.weight_v"], torch.ones(8, 4, 3))
        assert torch.equal(state["a.weight_g"].flatten().float(), torch.full((8,), 12**0.5))


def test_a_record_of_very_many_steps_takes_no_square_of_time(tmp_path: Path) -> None:
    tensors = {f"{at}.weight": torch.ones(2, 2) for at in range(2000)} | {"a.weight": torch.ones(8, 4, 3)}
    steps = history(name="gone", g=half_of("gone", "g"), v=half_of("gone", "v")) * 20_000
    text = json.dumps({"history": history() + steps})
    save_file(tensors, tmp_path / "in.safetensors", {METADATA_KEY: text})
    plan = split_file(tmp_path / "in.safetensors", exclude="gone", dry_run=True)
    assert [change.name for _, change in plan.changes] == ["a.weight"]


def half_of(name: str, half: str) -> dict[str, Any]:
    shape = [8, 1, 1] if half == "g" else [8, 4, 3]
    return {"name": f"{name}_{half}", "shape": shape, "dtype": "float32", "place": 0}


def load(path: Path) -> dict[str, torch.Tensor]:
    """A file's tensors in the order of its keys, as others read them."""
    ((_, state),) = state_dicts(path).items()
    return state


def test_a_planted_record_does_no_harm(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"w_g": torch.ones(2, 1), "w_v": torch.ones(2, 2)}, buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        prefix = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{prefix}/{RECORD_NAME}", '{"history": [{"verb": "fold", "state_dicts": 7}]}')
    path = tmp_path / "planted.pt"
    path.write_bytes(buffer.getvalue())
    result = fold_file(path, tmp_path / "out.pt")
    assert result.notes == ("its wnconvert record makes no sense and is left out",)
    assert [step["verb"] for step in record_in(tmp_path / "out.pt")["history"]] == ["fold"]


def test_a_record_in_the_metadata_of_a_record_is_left_out() -> None:
    text = write_history([STEP], {"format": "pt", METADATA_KEY: write_history([STEP])})
    assert read_history(text).metadata == {"format": "pt"}
