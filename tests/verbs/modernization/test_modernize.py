"""Projects on disk: what is found, read and written, and that torch runs what was written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.golden import FIXTURES
from tests.helpers.runner import Runner, listing
from wnconvert import ArgumentError, InputError, OutputError, WnconvertError, migrate_file, modernize_code
from wnconvert.cli.modernize import RULE_CHOICES
from wnconvert.cli.options import FORM_CHOICES
from wnconvert.source.names import CODE_FORMS, GROUPS

OLD = "from torch.nn.utils import weight_norm\nm = weight_norm(m)\n"
NEW = "from torch.nn.utils.parametrizations import weight_norm\nm = weight_norm(m)\n"
VOCODER = FIXTURES / "old_vocoder"


@pytest.fixture
def vocoder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(VOCODER, tmp_path / "vocoder", ignore=shutil.ignore_patterns("__pycache__")))


def python(script: Path, *arguments: str | Path, warn: str) -> None:
    command: list[str | Path] = [sys.executable, "-B", "-W", warn, script, *arguments]
    subprocess.run(command, check=True, cwd=script.parent, capture_output=True)


def test_training_goes_on_in_migrated_code_with_the_same_losses(vocoder: Path, tmp_path: Path) -> None:
    three, six, moved, new = (tmp_path / name for name in ("3.pt", "6.pt", "3n.pt", "6n.pt"))
    python(vocoder / "train.py", three, warn="ignore")
    python(vocoder / "train.py", six, three, warn="ignore")
    assert modernize_code(vocoder, write=True)
    migrate_file(three, moved)
    python(vocoder / "train.py", new, moved, warn="error")  # torch's FutureWarning among them
    old, now = (torch.load(path, weights_only=True) for path in (six, new))
    assert len(set(old["losses"])) == 3
    assert now["losses"] == old["losses"]
    for a, b in zip(old["generator"].values(), now["generator"].values(), strict=True):
        assert torch.equal(a, b)


def test_migrated_layers_are_removed_and_the_old_checkpoint_still_loads(
    vocoder: Path, tmp_path: Path
) -> None:
    python(vocoder / "train.py", tmp_path / "3.pt", warn="ignore")
    assert modernize_code(vocoder, write=True)
    (vocoder / "use.py").write_text(
        "import copy, sys, torch\nfrom models import generator\nmodel = generator()\n"
        "model.load_state_dict(torch.load(sys.argv[1], weights_only=True)['generator'])\n"
        "x = torch.randn(1, 8, 5)\ny = model(x)\nassert torch.equal(copy.deepcopy(model)(x), y)\n"
        "model.remove_weight_norm()\nassert torch.allclose(model(x), y)\n"
        "assert 'conv_pre.weight' in model.state_dict()\nmodel.remove_weight_norm()\n"
    )
    python(vocoder / "use.py", tmp_path / "3.pt", warn="error")


def test_the_files_are_as_they_were_after_going_there_and_back(vocoder: Path) -> None:
    assert modernize_code(vocoder, write=True)
    assert modernize_code(vocoder, to="legacy", write=True)
    back = (vocoder / "train.py").read_text()
    assert back == (VOCODER / "train.py").read_text()
    assert "parametrizations" not in (vocoder / "models.py").read_text()


def test_nothing_is_written_unless_it_is_asked_for(vocoder: Path) -> None:
    before = listing(vocoder)
    report = modernize_code(vocoder)
    assert listing(vocoder) == before
    assert (bool(report), report.written, report.findings) == (False, False, 0)
    assert report.changes == sum(len(file.changes) for file in report.files) > 0
    assert report.diff.startswith(f"--- a/{vocoder}/layers.py\n+++ b/{vocoder}/layers.py\n@@")
    assert modernize_code(vocoder, write=True)
    assert modernize_code(vocoder).changes == 0


def test_a_patch_of_the_difference_gives_the_files(vocoder: Path, tmp_path: Path) -> None:
    if shutil.which("patch") is None:
        pytest.fail("patch is not installed")
    other = Path(shutil.copytree(vocoder, tmp_path / "other"))
    (tmp_path / "d").write_text(modernize_code(vocoder).diff)
    command: list[str | Path] = ["patch", "-s", "-d", "/", "-p1", "-i", tmp_path / "d"]
    subprocess.run(command, check=True, capture_output=True)
    assert modernize_code(other, write=True)
    assert {path.name: path.read_bytes() for path in vocoder.glob("*.py")} == {
        path.name: path.read_bytes() for path in other.glob("*.py")
    }


def test_folders_of_tools_and_of_other_people_are_passed_over(tmp_path: Path) -> None:
    for name in (".venv", "build", "site-packages", "third_party", "src"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text(OLD)
    (tmp_path / "link").symlink_to(tmp_path / "src")
    (tmp_path / "b.py").symlink_to(tmp_path / "src" / "a.py")
    (tmp_path / "note.txt").write_text(OLD)

    def found(**options: Any) -> list[str]:
        return [os.path.relpath(file.path, tmp_path) for file in modernize_code(tmp_path, **options).files]

    assert found() == ["src/a.py"]
    assert found(include=["third_*"]) == ["src/a.py", "third_party/a.py"]
    assert [file.path for file in modernize_code(tmp_path / "build").files] == [
        str(tmp_path / "build" / "a.py")
    ]


def test_files_without_the_words_are_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("this is no Python\n")
    (tmp_path / "b.py").write_text(OLD)
    report = modernize_code(tmp_path)
    assert (report.seen, report.read, report.unparsed) == (2, 1, ())


def test_a_file_that_does_not_parse_is_told_and_left_alone(tmp_path: Path, run: Runner) -> None:
    bad = f"{OLD}print 'Python 2'\n"
    (tmp_path / "a.py").write_text(bad)
    (tmp_path / "b.py").write_text(OLD)
    (tmp_path / "c.ipynb").write_text("weight_norm")
    done = run("modernize", tmp_path, "--write")
    assert done.returncode == 0
    assert f"{tmp_path}/a.py:3: not parsed: " in done.stdout
    assert f"{tmp_path}/c.ipynb:1: not parsed: it is not a notebook" in done.stdout
    assert (tmp_path / "a.py").read_text() == bad
    assert (tmp_path / "b.py").read_text() == NEW
    assert run("modernize", tmp_path, "--check").returncode == 1


def test_a_notebook_is_migrated_and_keeps_its_outputs(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    cell = {"cell_type": "code", "source": OLD, "outputs": [{"x": OLD}], "metadata": {}, "execution_count": 3}
    path.write_text(json.dumps({"cells": [cell], "metadata": {"k": 1}, "nbformat": 4, "nbformat_minor": 5}))
    report = modernize_code(path, write=True)
    assert [(place.cell, place.line) for place in report.files[0].changes] == [(1, 1)]
    made = json.loads(path.read_text())
    assert made["cells"] == [{**cell, "source": NEW}]
    assert made["metadata"] == {"k": 1}
    assert f"--- a/{path} (cell 1)\n" in report.diff


def test_modes_and_links_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(OLD)
    path.chmod(0o755)
    modernize_code(path, write=True)
    assert path.stat().st_mode & 0o777 == 0o755
    assert path.read_text() == NEW


def test_all_files_are_written_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.py").write_text(OLD)
    before = listing(tmp_path)
    from wnconvert.storage import staging

    publish = staging._publish
    done = []

    def failing(temporary: Path, target: Path, real: Path, *, force: bool) -> None:
        done.append(target)
        if len(done) == 2:
            raise OSError(28, "No space left on device")
        publish(temporary, target, real, force=force)

    monkeypatch.setattr(staging, "_publish", failing)
    with pytest.raises(OutputError, match="the disk is full"):
        modernize_code(tmp_path, write=True)
    assert len(done) > 1
    assert listing(tmp_path) == before


def test_a_file_that_changes_meanwhile_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wnconvert.verbs.modernization import modernize
    from wnconvert.verbs.modernization.writing import write_all

    path = tmp_path / "a.py"
    path.write_text(OLD)

    def late(rewrites: Any) -> None:
        path.write_text("# another\n")
        write_all(rewrites)

    monkeypatch.setattr(modernize, "write_all", late)
    with pytest.raises(InputError, match="changed while"):
        modernize_code(path, write=True)
    assert listing(tmp_path) == {"a.py": b"# another\n"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"to": "new"}, "'new' is no form"),
        ({"rules": ["all"]}, "no rules called 'all'"),
        ({"rules": []}, "no rules called nothing"),
        ({"to": "legacy", "compat": True}, "runs on every torch"),
    ],
)
def test_options_that_make_no_sense_are_told(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ArgumentError, match=says) as caught:
        modernize_code(VOCODER, **options)
    assert caught.value.fix


@pytest.mark.parametrize("name", ["no.py", "a.txt", ""])
def test_sources_that_are_no_code_are_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text(OLD)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WnconvertError) as caught:
        modernize_code(name)
    assert caught.value.fix
    with pytest.raises(ArgumentError, match="no files"):
        modernize_code()


def test_without_libcst_its_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import util

    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match="LibCST") as caught:
        modernize_code(VOCODER)
    assert caught.value.fix == "pip install libcst"


# -- the command


def test_the_command_shows_checks_and_writes(vocoder: Path, run: Runner) -> None:
    shown = run("modernize", vocoder)
    assert shown.returncode == 0
    assert shown.stdout.startswith("--- a/")
    assert shown.stdout.endswith("12 places to change in 3 files; 3 files seen, 3 with such words\n")
    checked = run("modernize", vocoder, "--check")
    assert checked.returncode == 1
    assert checked.stdout.startswith(f"{vocoder}/layers.py:5: import: from torch.nn.utils import")
    assert "---" not in checked.stdout
    written = run("modernize", vocoder, "--write")
    assert written.stdout == "12 places changed in 3 files; 3 files seen, 3 with such words\n"
    assert run("modernize", vocoder, "--check", "--silent").returncode == 0


def test_what_is_left_is_listed_and_is_1_in_a_check(tmp_path: Path, run: Runner) -> None:
    (tmp_path / "a.py").write_text(f'{NEW}sd["weight_g"]\n# wnconvert\nx["weight_v"]  # wnconvert: keep\n')
    done = run("modernize", tmp_path, "--write")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == f"{tmp_path}/a.py:3: key: a key spells weight_g"
    assert done.stdout.splitlines()[1].startswith("  fix: new names have parametrizations.weight.original0")
    assert "nothing to change, 1 left to you, 1 kept; " in done.stdout
    assert run("modernize", tmp_path, "--check", "-q").returncode == 1


def test_choices_are_those_of_python() -> None:
    assert RULE_CHOICES == GROUPS
    assert FORM_CHOICES == CODE_FORMS
