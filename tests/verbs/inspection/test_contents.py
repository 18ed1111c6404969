"""inspect --tensors and --metadata: every tensor, and what a file says of itself."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from safetensors import safe_open
from safetensors.numpy import save_file

from tests.cli.test_files import run
from tests.helpers.golden import FIXTURES
from wnconvert import fold_file, inspect_file


def test_every_tensor_is_listed_as_the_file_has_it() -> None:
    path = FIXTURES / "codec_bf16.safetensors"
    found = inspect_file(path, tensors=True).tensors
    assert found is not None
    with safe_open(path, framework="pt") as file:
        every = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    assert {row.name: (row.dtype, row.shape, row.bytes) for row in found} == {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), tensor.nbytes)
        for name, tensor in every.items()
    }
    assert inspect_file(path).tensors is None, "where it is not asked for"


def test_tensors_of_several_state_dicts_have_their_paths() -> None:
    found = inspect_file(FIXTURES / "gan.pt", tensors=True).tensors
    assert found is not None
    assert [row.state_dict for row in found] == ["generator"] * 6 + ["discriminator"] * 6 + ["ema.model"] * 6


def test_layers_choose_tensors_by_their_own_names_and_by_those_of_their_layers() -> None:
    def names(*globs: str) -> list[str]:
        found = inspect_file(FIXTURES / "g_02500000", layers=globs, tensors=True).tensors
        return sorted(row.name for row in found or ())

    assert names("conv_pre.weight") == ["conv_pre.weight_g", "conv_pre.weight_v"]
    assert names("conv_pre.bias") == ["conv_pre.bias"]
    assert names("conv_pre.*") == ["conv_pre.bias", "conv_pre.weight_g", "conv_pre.weight_v"]


def test_a_folder_and_an_onnx_model_list_theirs() -> None:
    folder = inspect_file(FIXTURES / "sharded", tensors=True).tensors
    model = inspect_file(FIXTURES / "tcn.onnx", tensors=True).tensors
    stored = onnx.load(FIXTURES / "tcn.onnx").graph.initializer
    assert len(folder or ()) == 234
    assert {row.name for row in model or ()} >= {item.name for item in stored}


def test_the_table_is_of_tensors_and_top_and_sort_hold_for_it() -> None:
    big, chosen = FIXTURES / "g_02500000", ["--top", "3", "--sort", "name"]
    rows = [*csv.reader(io.StringIO(run("inspect", big, "--tensors", *chosen, "--format", "csv").stdout))]
    assert rows[0] == ["tensor", "dtype", "shape", "bytes"]
    assert [row[0] for row in rows[1:]] == ["conv_post.bias", "conv_post.weight_g", "conv_post.weight_v"]
    text = run("inspect", FIXTURES / "gan.pt", "--tensors").stdout
    assert "state dict     tensor" in text
    assert "|g| mean" not in text
    assert "|g| mean" in run("inspect", FIXTURES / "gan.pt").stdout


def test_several_files_need_json_for_these() -> None:
    steps = [FIXTURES / f"step_{at}000.safetensors" for at in (1, 2)]
    for option in ("--tensors", "--metadata"):
        wrong = run("inspect", *steps, option)
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert "are for one file" in wrong.stderr
    found = json.loads(run("inspect", *steps, "--tensors", "--json").stdout)
    assert all(len(item["tensors"]) == 18 for item in found["files"])


# -- metadata


def test_metadata_of_a_safetensors_file_are_shown_as_they_are(tmp_path: Path) -> None:
    said = {"format": "pt", "modelspec.title": "a, b", "text": "two\nlines \x1b[2J"}
    path = tmp_path / "a.safetensors"
    save_file({"w": np.ones(3, np.float32)}, path, said)
    assert inspect_file(path, metadata=True).metadata == said
    assert inspect_file(path).metadata is None, "where it is not asked for"
    done = run("inspect", path, "--metadata")
    assert "\nmodelspec.title  a, b\n" in done.stdout
    assert "two\\nlines \\x1b[2J" in done.stdout
    assert json.loads(run("inspect", path, "--metadata", "--json").stdout)["metadata"] == said


def test_what_comes_from_stdin_is_told_too() -> None:
    for name in ("step_1000.safetensors", "tcn.onnx"):
        command = [sys.executable, "-m", "wnconvert", "inspect", "-", "--metadata", "--tensors", "--json"]
        with (FIXTURES / name).open("rb") as file:
            done = subprocess.run(command, stdin=file, capture_output=True, text=True, check=False)
        found, same = json.loads(done.stdout), inspect_file(FIXTURES / name, tensors=True, metadata=True)
        assert found["metadata"] == same.metadata
        assert len(found["tensors"]) == len(same.tensors or ())


def test_the_record_of_a_fold_is_among_them(tmp_path: Path) -> None:
    fold_file(FIXTURES / "step_1000.safetensors", tmp_path / "a.safetensors")
    metadata = inspect_file(tmp_path / "a.safetensors", metadata=True).metadata or {}
    assert json.loads(metadata["wnconvert"])["history"][0]["verb"] == "fold"


def test_metadata_of_a_folder_are_those_of_its_index_and_its_files() -> None:
    metadata = inspect_file(FIXTURES / "sharded", metadata=True).metadata or {}
    index = json.loads(next((FIXTURES / "sharded").glob("*.index.json")).read_text())
    assert metadata["total_size"] == str(index["metadata"]["total_size"])


def test_what_an_onnx_model_says_of_itself_is_shown(tmp_path: Path) -> None:
    model = onnx.load(FIXTURES / "tcn.onnx")
    model.producer_version, model.domain, model.model_version = "2.9", "org.example", 7
    model.doc_string = model.graph.doc_string = "made by hand"
    model.metadata_props.add(key="sample_rate", value="22050")
    model.graph.metadata_props.add(key="source", value="a paper")
    model.opset_import.add(domain="com.example", version=3)
    onnx.save(model, tmp_path / "a.onnx")
    assert inspect_file(tmp_path / "a.onnx", metadata=True).metadata == {
        "ir_version": str(model.ir_version),
        "producer_name": model.producer_name,
        "producer_version": "2.9",
        "domain": "org.example",
        "model_version": "7",
        "doc_string": "made by hand",
        "graph.name": model.graph.name,
        "graph.doc_string": "made by hand",
        "graph.source": "a paper",
        "opset_import[ai.onnx]": str(model.opset_import[0].version),
        "opset_import[com.example]": "3",
        "sample_rate": "22050",
    }


def test_a_file_that_says_nothing_of_itself_says_so(tmp_path: Path) -> None:
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "a.safetensors")
    for path in (FIXTURES / "gan.pt", tmp_path / "a.safetensors"):
        assert inspect_file(path, metadata=True).metadata == {}
        assert "\nmetadata:     none" in run("inspect", path, "--metadata").stdout
