"""Two folders of checkpoints compared file by file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.helpers.golden import FIXTURES
from tests.helpers.runner import Runner
from tests.storage.remote.conftest import Bucket
from wnconvert import compare_folders, fold_files
from wnconvert.errors import FormatError, InputError


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    (folder / "x").mkdir(parents=True)
    shutil.copy(FIXTURES / "gan.pt", folder / "gan.pt")
    shutil.copy(FIXTURES / "step_1000.safetensors", folder / "x" / "step_1000.safetensors")
    shutil.copy(FIXTURES / "step_2000.safetensors", folder / "x" / "step_2000.safetensors")
    return folder


def test_what_was_folded_is_compared_with_its_sources(runs: Path, tmp_path: Path) -> None:
    [*fold_files([runs], tmp_path / "out", jobs=1, recursive=True)]
    found = compare_folders(runs, tmp_path / "out")
    assert found
    assert found.exit_code == 0
    assert [(item.a, item.b) for item in found.files] == [
        ("gan.pt", "gan.folded.pt"),
        ("x/step_1000.safetensors", "x/step_1000.folded.safetensors"),
        ("x/step_2000.safetensors", "x/step_2000.folded.safetensors"),
    ]
    assert all(item.found is not None and item.found.layers for item in found.files)


def test_what_differs_and_what_is_missing_is_told(runs: Path, tmp_path: Path, run: Runner) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs, other)
    shutil.copy(FIXTURES / "step_3000.safetensors", other / "x" / "step_2000.safetensors")
    (other / "gan.pt").rename(other / "more.pt")
    found = compare_folders(runs, other)
    assert [bool(item) for item in found.files] == [True, False]
    assert (found.only_in_a, found.only_in_b) == (("gan.pt",), ("more.pt",))
    assert found.exit_code == 1
    ended = run("compare", runs, other)
    assert ended.returncode == 1
    first, second, *rest = ended.stdout.splitlines()
    assert first.startswith("x/step_1000.safetensors: equal: ")
    assert second.startswith("x/step_2000.safetensors: different: ")
    assert rest == [
        f"only in {runs}: gan.pt",
        f"only in {other}: more.pt",
        "different: 2 pairs of files: 1 equal, 1 different, 2 only on one side",
    ]
    data = json.loads(run("compare", runs, other, "--json").stdout)
    assert [item["equal"] for item in data["files"]] == [True, False]
    assert data["files"][1]["comparison"]["different"]


def test_a_tolerance_holds_for_every_file(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs, other)
    shutil.copy(FIXTURES / "step_3000.safetensors", other / "x" / "step_2000.safetensors")
    assert not compare_folders(runs, other, atol=0.001)
    assert compare_folders(runs, other, atol=1000.0)


def test_a_file_that_cannot_be_read_is_one_row_and_the_others_go_on(
    runs: Path, tmp_path: Path, run: Runner
) -> None:
    other = tmp_path / "other"
    shutil.copytree(runs, other)
    (other / "gan.pt").write_bytes(b"PK\x03\x04")
    found = compare_folders(runs, other)
    assert isinstance(found.files[0].error, (InputError, FormatError))
    assert all(found.files[1:])
    ended = run("compare", runs, other)
    assert ended.returncode == 2
    assert ended.stdout.splitlines()[0] == "gan.pt: not compared"
    assert f"error: {other / 'gan.pt'}: " in ended.stderr
    assert ended.stdout.splitlines()[-1] == "different: 3 pairs of files: 2 equal, 1 not compared"


def test_names_that_could_belong_to_two_belong_to_none(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(FIXTURES / "gan.pt", out / "gan.folded.pt")
    shutil.copy(FIXTURES / "gan.pt", out / "gan.legacy.pt")
    found = compare_folders(runs, out)
    assert found.files == ()
    assert len(found.only_in_a) == 3
    assert found.only_in_b == ("gan.folded.pt", "gan.legacy.pt")
    assert not found


def test_folders_that_are_a_checkpoint_each_are_compared_as_checkpoints(tmp_path: Path, run: Runner) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(FIXTURES / "gan.pt", tmp_path / "one" / "gan.pt")
    for a in (FIXTURES / "sharded", tmp_path / "one"):
        ended = run("compare", a, a, "--json")
        assert ended.returncode == 0
        assert "compared" in json.loads(ended.stdout)


def test_a_folder_without_a_checkpoint_is_an_error(runs: Path, tmp_path: Path, run: Runner) -> None:
    (tmp_path / "empty").mkdir()
    ended = run("compare", runs, tmp_path / "empty")
    assert (ended.returncode, ended.stderr.splitlines()[0]) == (
        2,
        f"error: {tmp_path / 'empty'}: no checkpoint in it",
    )


def test_a_folder_of_a_store_is_compared_with_one_here(bucket: Bucket, runs: Path, run: Runner) -> None:
    shutil.copytree(runs, bucket.folder / "runs")
    ended = run("compare", runs, f"{bucket.address}/runs")
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "equal: 3 pairs of files: 3 equal")


def test_two_onnx_models_of_one_name_are_an_error_that_says_how(tmp_path: Path) -> None:
    for side in "ab":
        (tmp_path / side).mkdir()
        for name in ("tcn.onnx", "other.onnx"):
            shutil.copy(FIXTURES / "tcn.onnx", tmp_path / side / name)
    found = compare_folders(tmp_path / "a", tmp_path / "b")
    errors = {item.a: item.error for item in found.files}
    assert found.exit_code == 2
    error = errors["tcn.onnx"]
    assert error is not None
    assert "two ONNX models are compared by themselves" in str(error)
    assert error.fix == f"wnconvert compare {tmp_path}/a/tcn.onnx {tmp_path}/b/tcn.onnx"
