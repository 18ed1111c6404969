"""Names of files and tensors may hold anything, and nothing of it controls a terminal or leaves its line."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers.golden import FIXTURES
from tests.helpers.runner import Runner

FILE = "x\x1b]0;t\x07\n\u202e|=.pt"
TENSOR = "=a\x1b[2J\n|`@\ud800"
SHOWN = r"=a\x1b[2J\n|`@\ud800"


def is_clean(text: str) -> bool:
    return all(char == "\n" or char.isprintable() for char in text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.save(
        {f"{TENSOR}.weight_g": torch.ones(4, 1), f"{TENSOR}.weight_v": torch.ones(4, 3)}, tmp_path / FILE
    )
    shutil.copy(tmp_path / FILE, tmp_path / f"b{FILE}")
    return tmp_path


COMMANDS = {
    "inspect": ["inspect", FILE],
    "inspect --full": ["inspect", FILE, "--full", "--tensors"],
    "two files": ["inspect", FILE, f"b{FILE}"],
    "two files, full, csv": ["inspect", FILE, f"b{FILE}", "--format", "csv"],
    "markdown": ["inspect", FILE, "--format", "markdown"],
    "csv": ["inspect", FILE, "--format", "csv"],
    "plot": ["inspect", FILE, "--plot", "p\x1b.svg"],
    "fold": ["fold", FILE],
    "fold -q": ["fold", FILE, "-q"],
    "dry run": ["fold", FILE, "-n", "--list"],
    "folder": ["fold", FILE, "--as-folder", "-o", "o\x1b"],
    "folder, dry run": ["fold", FILE, "--as-folder", "-o", "o\x1b", "-n"],
    "split": ["split", FILE, "--layers", "*"],
    "migrate": ["migrate", FILE, "--verify"],
    "compare": ["compare", FILE, f"b{FILE}"],
    "not there": ["fold", f"no{FILE}"],
    "no command": [f"no{FILE}"],
    "no option": ["fold", FILE, "--\x1b[2J"],
    "no choice": ["fold", FILE, "--dtype", "\x1b[2J"],
    "no layers": ["fold", FILE, "--layers", "\x1b[2J"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_name_controls_a_terminal(
    command: str, folder: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    ended = run(*COMMANDS[command], folder=folder)
    assert ended.returncode in {0, 1, 2}, ended
    assert is_clean(ended.stdout), ended.stdout
    assert is_clean(ended.stderr), ended.stderr
    assert ended.stdout or ended.stderr


def test_each_way_out_has_its_own_quoting_and_json_the_raw_name(folder: Path, run: Runner) -> None:
    def told(style: str) -> str:
        return str(run("inspect", FILE, "--format", style, folder=folder).stdout)

    _, row = csv.reader(io.StringIO(told("csv")))
    assert row[0] == f"'{SHOWN}.weight"
    *_, cells = told("markdown").splitlines()
    assert cells.startswith(r"| <code>=a\\x1b\[2J\\n\|\`@\\ud800.weight</code> |")
    assert json.loads(told("json"))["layers"][0]["name"] == f"{TENSOR}.weight"


def test_a_picture_shows_names_spelled_out(folder: Path, run: Runner) -> None:
    pytest.importorskip("matplotlib")
    for sources in ([FILE], [FILE, f"b{FILE}"]):
        assert run("inspect", *sources, "--plot", "p.svg", "--force", folder=folder).returncode == 0
        drawn = (folder / "p.svg").read_text().replace("\u200b", "")  # which keeps _names in a legend
        assert is_clean(drawn)
        assert SHOWN[:6] in drawn


def test_plain_names_are_shown_as_they_are(run: Runner) -> None:
    ended = run("inspect", FIXTURES / "gan.pt", "--format", "csv")
    assert "\nema.model,post.weight,parametrize," in ended.stdout
    assert "'" not in ended.stdout
