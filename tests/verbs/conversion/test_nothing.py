"""Nothing to fold is not a fold: nothing is written, a note says what is there instead, and CI can tell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from tests.helpers.export_models import scripted
from tests.helpers.golden import FIXTURES
from tests.helpers.live_models import legacy
from tests.helpers.runner import Runner
from tests.helpers.states import output_of
from wnconvert import (
    ArgumentError,
    Result,
    TooFewLayersError,
    fold_file,
    migrate_file,
    split_file,
)

NOTHING = "; nothing is written (--copy writes a copy)"


def plain() -> dict[str, Any]:
    """Layers with spectral norm and batch norm, and none with weight norm."""
    state: dict[str, Any] = {}
    for at in range(3):
        state |= {f"critic.{at}.weight_orig": torch.randn(4, 3), f"critic.{at}.weight_u": torch.randn(4)}
        state |= {f"critic.{at}.weight_v": torch.randn(3)}
    for at in range(20):
        state |= {f"bn.{at}.{key}": value for key, value in nn.BatchNorm1d(4).state_dict().items()}
    return state


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gan.pt"
    torch.save(plain(), path)
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A file with two layers of weight norm."""
    path = tmp_path / "pairs.pt"
    torch.save(nn.Sequential(legacy(nn.Linear(3, 4)), legacy(nn.Linear(4, 2))).state_dict(), path)
    return path


def said(result: Result) -> str:
    """The note on why there is nothing to do."""
    (note,) = (note for note in result.notes if note.startswith("nothing to "))
    return note


# -- nothing is written, and it is said why


def test_nothing_is_written_and_a_note_says_what_is_there(file: Path, tmp_path: Path) -> None:
    for out in (None, tmp_path / "out.pt"):
        result = fold_file(file, out)
        assert (result.output, result.bytes_out, result.plan.writes) == (None, 0, False)
        what = "no weight norm; 3 × spectral norm (legacy), 20 × batch norm"
        assert said(result) == f"nothing to fold: {what}: wnconvert inspect {file}{NOTHING}"
    assert [path.name for path in tmp_path.iterdir()] == ["gan.pt"]


def test_the_command_says_so_and_ends_well(file: Path, run: Runner) -> None:
    ended = run("fold", file)
    assert (ended.returncode, ended.stdout) == (0, "nothing is written: 0 layers folded\n")
    assert "note: nothing to fold: no weight norm; 3 × spectral norm" in ended.stderr
    assert run("fold", file, "--dry-run").stdout == "would write nothing: 0 layers folded\n"
    data = json.loads(run("fold", file, "--json").stdout)
    assert (data["output"], data["bytes_out"], data["writes"], data["layers"]) == (None, 0, False, [])
    assert [path.name for path in file.parent.iterdir()] == ["gan.pt"]


def test_an_old_output_stays_and_is_no_error(file: Path, run: Runner) -> None:
    out = file.with_name("gan.folded.pt")
    out.write_bytes(b"old")
    for more in ([], ["--force"], ["--dry-run"]):
        ended = run("fold", file, *more)
        assert ended.returncode == 0
        assert "--force" not in ended.stderr
    assert out.read_bytes() == b"old"


def test_a_file_in_place_stays_as_it_is(file: Path) -> None:
    before = file.stat()
    assert fold_file(file, in_place=True).output is None
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert file.stat().st_ino == before.st_ino


@pytest.mark.parametrize("what", ["folded", "in that form", "split", "excluded", "no state dict", "onnx"])
def test_the_note_says_why(what: str, tmp_path: Path, pairs: Path) -> None:
    folded = tmp_path / "folded.pt"
    fold_file(pairs, folded)
    if what == "folded":
        result, why = fold_file(folded), "no weight norm; 2 layers folded before"
    elif what == "in that form":
        result, why = migrate_file(pairs, to="legacy"), "2 layers are in that form already"
    elif what == "split":
        result, why = split_file(pairs, like=pairs), "2 layers are split already"
    elif what == "excluded":
        result, why = (
            fold_file(pairs, exclude="*"),
            "--layers and --exclude leave out 2 layers, all that there are",
        )
    elif what == "no state dict":
        torch.save({"epoch": 3}, tmp_path / "epoch.pt")
        result, why = fold_file(tmp_path / "epoch.pt"), "there is no state dict in it"
    else:
        once = output_of(fold_file(FIXTURES / "tcn.onnx", tmp_path / "once.onnx"))
        result, why = fold_file(once), "no weight norm is left in the graph"
    assert result.output is None
    assert said(result).split(": ", 1)[1].startswith(f"{why}: wnconvert inspect ")


def test_layers_of_an_onnx_model_that_are_left_out_are_counted(tmp_path: Path) -> None:
    result = fold_file(FIXTURES / "tcn.onnx", tmp_path / "out.onnx", exclude="*")
    assert "--layers and --exclude leave out 6 layers, all that there are" in said(result)


def test_a_folder_and_a_pipeline_with_nothing_in_them_are_not_written(tmp_path: Path) -> None:
    folder = tmp_path / "pipe" / "vae"
    folder.mkdir(parents=True)
    safetensors.torch.save_file({"w": torch.ones(2, 2)}, folder / "model.safetensors")
    assert fold_file(folder).output is None
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    assert fold_file(tmp_path / "pipe").output is None
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


# -- what asks for an output all the same


@pytest.mark.parametrize(
    ("options", "suffix"),
    [
        ({"copy": True}, ".pt"),
        ({"dtype": "float16"}, ".pt"),
        ({"only": "."}, ".pt"),
        ({}, ".safetensors"),
        ({"as_folder": True}, ""),
    ],
    ids=["copy", "dtype", "only", "container", "folder"],
)
def test_an_output_that_is_asked_for_is_written(file: Path, options: dict[str, Any], suffix: str) -> None:
    out = file.with_name(f"out{suffix}")
    result = fold_file(file, out, **options)
    assert result.output == out
    assert out.exists()
    assert said(result).endswith(f"wnconvert inspect {file}")


def test_what_is_copied_has_every_bit_and_a_cast_is_a_cast(file: Path) -> None:
    copied = output_of(fold_file(file, copy=True))
    after = torch.load(copied, weights_only=True)
    assert all(torch.equal(after[name], value) for name, value in torch.load(file, weights_only=True).items())
    cast = output_of(fold_file(file, file.with_name("half.pt"), dtype="float16"))
    assert torch.load(cast, weights_only=True)["critic.0.weight_orig"].dtype == torch.float16


def test_torchscript_becomes_a_state_dict_which_is_another_container(tmp_path: Path) -> None:
    scripted(nn.Linear(3, 2)).save(str(tmp_path / "linear.ts"))
    result = fold_file(tmp_path / "linear.ts", tmp_path / "out.pt")
    assert result.output == tmp_path / "out.pt"
    assert list(torch.load(tmp_path / "out.pt", weights_only=True)) == ["weight", "bias"]


def test_shards_of_another_size_are_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    safetensors.torch.save_file({f"w{at}": torch.ones(8, 8) for at in range(4)}, folder / "model.safetensors")
    assert fold_file(folder, max_shard_size="300").output is not None
    assert fold_file(folder, tmp_path / "x").output is None


def test_one_layer_is_a_fold_and_needs_no_option(pairs: Path) -> None:
    result = fold_file(pairs, exclude="0.*")
    assert result.output == pairs.with_name("pairs.folded.pt")
    assert not any(note.startswith("nothing to ") for note in result.notes)


# -- --require-layers


@pytest.mark.parametrize("verb", ["fold", "split", "migrate"])
def test_fewer_layers_than_required_are_exit_1_and_nothing_is_written(
    verb: str, file: Path, pairs: Path, run: Runner, tmp_path: Path
) -> None:
    arguments: dict[str, list[str | Path]] = {
        "fold": [file],
        "split": [pairs, "--like", pairs],
        "migrate": [pairs, "--to", "legacy"],
    }
    before = sorted(tmp_path.iterdir())
    for more in ([], ["--dry-run"], ["--copy"], ["--force"]):
        for required in (["--require-layers"], ["--require-layers", "1"], ["--require-layers=5"]):
            ended = run(verb, *arguments[verb], *more, *required)
            assert (ended.returncode, ended.stdout) == (1, ""), ended
            assert f": 0 layers to {verb}, and {required[-1][-1] if required[1:] else 1}" in ended.stderr or (
                f": 0 layers to {verb}, and 5 asked for" in ended.stderr
            )
            assert ended.stderr.splitlines()[-1].startswith("fix: wnconvert inspect ")
    assert sorted(tmp_path.iterdir()) == before


def test_as_many_layers_as_required_are_a_fold(pairs: Path, run: Runner) -> None:
    assert run("fold", "--require-layers", pairs).returncode == 0  # it may stand before the file
    assert run("fold", pairs, "--force", "--require-layers", "2").returncode == 0
    ended = run("fold", pairs, "--force", "--require-layers", "3")
    assert ended.returncode == 1
    assert "2 layers to fold, and 3 asked for\n" in ended.stderr


def test_in_python_too_few_layers_are_an_error_of_their_own(file: Path, pairs: Path) -> None:
    with pytest.raises(
        TooFewLayersError, match="0 layers to fold, and 1 asked for: no weight norm; 3 × "
    ) as caught:
        fold_file(file, require_layers=1)
    assert (caught.value.exit_code, caught.value.where) == (1, str(file))
    plan = fold_file(pairs, require_layers=2, dry_run=True)
    assert len(plan.layers) == 2
    assert fold_file(pairs, require_layers=2).output is not None


@pytest.mark.parametrize("count", [0, -1])
def test_to_require_no_layer_makes_no_sense(count: int, pairs: Path, run: Runner) -> None:
    with pytest.raises(ArgumentError, match="layers are always there"):
        fold_file(pairs, require_layers=count)
    assert run("fold", pairs, f"--require-layers={count}").returncode == 2


# -- new names, and stdout, ask for an output


def test_new_names_ask_for_an_output(tmp_path: Path) -> None:
    result = fold_file(FIXTURES / "plain.pt", tmp_path / "out.pt", add_prefix="net")
    assert (len(result.plan.layers), result.plan.writes) == (0, True)
    assert result.plan.renamed == 6
    made = torch.load(tmp_path / "out.pt", weights_only=True)["state_dict"]
    assert made
    assert all(name.startswith("net.") for name in made)


def test_a_pipe_gets_a_file_where_nothing_is_folded(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wnconvert", "fold", "-"]
    with (FIXTURES / "plain.pt").open("rb") as source:
        done = subprocess.run(command, stdin=source, capture_output=True, check=False)
    assert done.returncode == 0
    assert b"nothing to fold: no weight norm" in done.stderr
    assert b"nothing is written" not in done.stderr
    fold_file(FIXTURES / "plain.pt", tmp_path / "copy.pt", copy=True)
    assert done.stdout == (tmp_path / "copy.pt").read_bytes()


@pytest.mark.parametrize("option", ["--in-place", "--as-folder"])
def test_what_needs_a_disk_is_refused_where_the_output_goes_to_stdout(option: str, run: Runner) -> None:
    done = run("fold", FIXTURES / "gan.pt", "-o", "-", option)
    assert done.returncode == 2
    assert f"{option} writes to a disk, and this goes to stdout" in done.stderr
