"""Messages about many names list ten and count the others, whatever says them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import wnconvert
from tests.cli.test_files import run
from wnconvert.tensors.blocks import Array

MANY = 78
NAMES = [f"n{at:02}.weight" for at in range(MANY)]
ONES = np.ones((2, 3), np.float32)


def pairs(g: Array = np.ones((2, 1), np.float32), v: Array = ONES) -> dict[str, Array]:  # noqa: B008
    return {f"{name}_{half}": value.copy() for name in NAMES for half, value in (("g", g), ("v", v))}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in which everything is there 78 times."""
    folder = tmp_path_factory.mktemp("many")
    every: dict[str, dict[str, Array]] = {
        "pairs": pairs(),
        "misfits": pairs(g=np.ones((5, 1), np.float32)),
        "zeros": pairs(v=np.zeros((2, 3), np.float32)),
        "halves": {key: value for key, value in pairs().items() if key.endswith("_v")} | {"one": ONES},
        "plain": {name: ONES.copy() for name in [*NAMES, "same"]},
        "others": {f"other.{name}": ONES.copy() for name in NAMES} | {"same": ONES},
    }
    every["uneven"] = {
        key: np.ones((5 + at, 1), np.float32) if key.endswith("_g") else value
        for at, (key, value) in enumerate(pairs().items())
    }
    for name, state in every.items():
        save_file(state, folder / f"{name}.safetensors")
    layer = {"x_g": torch.ones(2, 1), "x_v": torch.ones(2, 3)}
    torch.save({f"n{at:02}": dict(layer) for at in range(MANY)}, folder / "states.pt")
    torch.save({"model": dict(layer), **{f"n{at:02}": at for at in range(MANY)}}, folder / "siblings.pt")
    tied = torch.ones(2, 3)
    torch.save({**dict.fromkeys(NAMES, tied), **layer}, folder / "tied.pt")
    return folder


LINES = {
    "a glob that matches nothing": "fold pairs.safetensors --layers no.* -n",
    "layers that are refused, alike": "fold misfits.safetensors -n",
    "layers that are refused, each for its own reason": "fold uneven.safetensors -n",
    "the same, inspected": "inspect uneven.safetensors --layers n00.weight",
    "layers whose numbers are refused": "fold zeros.safetensors -o a.pt",
    "zero rows that are allowed": "fold zeros.safetensors --zero-rows zero -o b.pt -f",
    "zero rows that are compared": "compare zeros.safetensors pairs.safetensors",
    "halves alone": "fold halves.safetensors -n",
    "halves alone, inspected": "inspect halves.safetensors",
    "layers of --like that lack": "split others.safetensors --like pairs.safetensors -n",
    "names on one side": "compare plain.safetensors others.safetensors",
    "an --only that is not there": "fold states.pt --only no -n",
    "state dicts to choose from": "fold states.pt -o c.safetensors",
    "state dicts to compare": "compare states.pt plain.safetensors",
    "siblings left out": "fold siblings.pt -o d.safetensors -n",
    "siblings left out, foretold and inspected": "inspect siblings.pt",
    "tensors that share memory": "fold tied.pt -o e.safetensors -n",
}


#: These print a table of layers too.
WITH_TABLE = ("zero rows that are allowed", "zero rows that are compared")


@pytest.mark.parametrize("what", LINES)
def test_a_message_lists_ten_names(
    what: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    done = run(*LINES[what].replace("-o ", f"-o {tmp_path}/").split(" "))
    assert done.returncode < 3, done.stderr
    for line in (done.stdout + done.stderr).splitlines():
        assert len({*re.findall(r"\bn\d\d\b", line)}) <= 10, line
    names = {*re.findall(r"\bn\d\d\b", done.stdout + done.stderr)}
    assert "more" in done.stdout + done.stderr
    assert 0 < len(names) <= 10 or what in WITH_TABLE


def test_ten_names_are_all_listed(tmp_path: Path) -> None:
    state = {key: value for key, value in pairs().items() if key < "n10"}
    save_file(state, tmp_path / "ten.safetensors")
    done = run("fold", tmp_path / "ten.safetensors", "--layers", "no.*")
    assert all(name in done.stderr for name in NAMES[:10])
    assert "more" not in done.stderr


def test_only_words_are_cut_and_the_data_have_them_all(files: Path) -> None:
    with pytest.raises(wnconvert.LayerError) as caught:
        wnconvert.fold_file(files / "misfits.safetensors", dry_run=True)
    assert len(caught.value.items) == MANY
    assert len(wnconvert.inspect_file(files / "siblings.pt").siblings) == MANY


def test_what_is_true_of_many_layers_of_a_module_is_said_once() -> None:
    layers: list[Any] = [torch.nn.Linear(2, 2) for _ in range(MANY)]
    model = torch.nn.Sequential(*map(torch.nn.utils.parametrizations.spectral_norm, layers))
    (note,) = [note for note in wnconvert.inspect_module(model).notes if "left alone" in note]
    assert note.startswith("0.weight, 1.weight, ")
    assert " and 68 more are under " in note
