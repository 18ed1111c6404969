"""An output is what its suffix says, or refused with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.golden import FIXTURES
from tests.helpers.runner import Runner
from wnconvert import fold_file, inspect_file
from wnconvert.errors import ArgumentError
from wnconvert.tensors import suffixes

FOREIGN = (
    *(
        ".gguf",
        ".h5",
        ".hdf5",
        ".msgpack",
        ".tflite",
        ".json",
        ".mlpackage",
        ".mlmodel",
        ".pdparams",
        ".nemo",
    ),
    *(
        ".ts",
        ".pt2",
        ".keras",
        ".npy",
        ".engine",
        ".xml",
        ".ort",
        ".distcp",
        ".zip",
        ".gz",
        ".pb",
        ".yaml",
        ".mar",
    ),
)


@pytest.mark.parametrize("suffix", FOREIGN)
def test_the_suffix_of_another_format_is_refused_with_what_to_do(
    tmp_path: Path, run: Runner, suffix: str
) -> None:
    ended = run("fold", FIXTURES / "plain.pt", "-o", tmp_path / f"x{suffix}")
    assert ended.returncode == 2
    first, last = ended.stderr.splitlines()
    assert f"x{suffix} would not be a" in first
    assert first.endswith(", as its name says, but a torch file")
    assert last.startswith("fix: ")
    assert "-o OUT" in last
    assert not list(tmp_path.iterdir())


def test_every_suffix_is_told_in_any_case_by_every_verb_and_before_the_plan(tmp_path: Path) -> None:
    for out in ("x.GGUF", "a.b.Json"):
        with pytest.raises(ArgumentError, match="as its name says"):
            fold_file(FIXTURES / "g_02500000", tmp_path / out, dry_run=True)


def test_a_folder_and_a_model_have_words_of_their_own(tmp_path: Path, run: Runner) -> None:
    ended = run("fold", FIXTURES / "sharded", "-o", tmp_path / "x.mlpackage")
    assert "x.mlpackage would not be a Core ML model, as its name says, but a folder" in ended.stderr
    ended = run("fold", FIXTURES / "tcn.onnx", "-o", tmp_path / "x.tflite")
    assert "but an ONNX model\nfix: -o OUT.onnx\n" in ended.stderr


@pytest.mark.parametrize(
    "name", ["x", "x.folded", "x.model", "v1.5", "x.weights", "g_02500000", "x.gguf.pt", ".json"]
)
def test_any_other_name_is_a_torch_file(tmp_path: Path, name: str) -> None:
    assert fold_file(FIXTURES / "g_02500000", tmp_path / name).output == tmp_path / name


def test_a_folder_with_a_slash_or_that_exists_may_have_any_name(tmp_path: Path) -> None:
    fold_file(FIXTURES / "sharded", f"{tmp_path}/x.json/")
    assert inspect_file(tmp_path / "x.json").files


def test_the_default_name_is_never_refused(tmp_path: Path) -> None:
    source = tmp_path / "model.ts"
    source.write_bytes((FIXTURES / "scripted.pt").read_bytes())
    assert fold_file(source).output == tmp_path / "model.ts.folded"


def test_no_suffix_that_is_written_is_among_the_foreign_ones() -> None:
    from wnconvert.tensors.containers import Container

    written = {suffix for container in Container for suffix in container.facts.suffixes}
    assert not written & suffixes._FOREIGN.keys()
    assert {*FOREIGN} <= suffixes._FOREIGN.keys()
