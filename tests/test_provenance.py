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

from tests.golden import FIXTURES
from wnconvert import __version__, fold_file
from wnconvert.checkpoint import open_checkpoint
from wnconvert.provenance import (
    METADATA_KEY,
    NO_HISTORY,
    RECORD_NAME,
    History,
    read_history,
    write_history,
)

STEP: dict[str, Any] = {"verb": "fold", "state_dicts": {"generator": [{"name": "conv.weight", "dim": None}]}}


def test_what_is_written_is_read_back() -> None:
    text = write_history([STEP, STEP], {"format": "pt", "é": "ü"})
    assert read_history(text) == History((STEP, STEP), {"format": "pt", "é": "ü"})
    assert read_history(text.encode()) == read_history(text)


def test_the_record_is_compact_json_in_a_fixed_order() -> None:
    assert write_history([STEP]) == (
        f'{{"schema":1,"version":"{__version__}","history":[{{"verb":"fold","state_dicts":'
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
    ids=lambda text: repr(text[:60]),
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
    assert (record["schema"], record["version"]) == (1, __version__)
    (step,) = record["history"]
    ((where, layers),) = step["state_dicts"].items()
    assert where == ("" if suffix == ".safetensors" else path)
    assert len(layers) == 78
    state = open_checkpoint(FIXTURES / source).tree.state_dicts[0]
    names = [entry.name for entry in state.entries]
    for layer in layers:
        for half in (layer["g"], layer["v"]):
            assert names[half["place"]] == half["name"]
            tensor = state.tensors[half["name"]]
            assert tuple(half["shape"]) == tensor.info.shape
            assert half["dtype"] == str(tensor.info.dtype)


def test_metadata_of_safetensors_survives_a_torch_file(tmp_path: Path) -> None:
    middle, back = tmp_path / "a.pt", tmp_path / "b.safetensors"
    fold_file(FIXTURES / "hifigan.safetensors", middle)
    fold_file(middle, back)
    with safe_open(back, framework="numpy") as file:
        assert file.metadata()["format"] == "pt"
    assert record_in(back) == {key: value for key, value in record_in(middle).items() if key != "metadata"}


def test_a_second_fold_that_folds_nothing_leaves_the_record_alone(tmp_path: Path) -> None:
    fold_file(FIXTURES / "g_02500000", tmp_path / "a.pt")
    fold_file(tmp_path / "a.pt", tmp_path / "b.pt")
    assert record_in(tmp_path / "a.pt") == record_in(tmp_path / "b.pt")


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
