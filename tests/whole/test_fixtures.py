"""The files of fixtures/ are what fixtures/make.py builds."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fixtures.make import content
from tests.helpers.golden import FIXTURES, ROOT

MAKE = ROOT / "fixtures" / "make.py"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A process of its own: what else this one did with torch must not matter.
    folder = tmp_path_factory.mktemp("built")
    subprocess.run([sys.executable, "-W", "error", MAKE, "--out", folder], check=True)
    return folder


def test_every_file_has_the_bytes_that_its_seed_gives(built: Path) -> None:
    # The one place where torch's version matters, which constraints.txt pins: another writes another program.
    # magnitudes.png is drawn by a command of the docs, page.png by picture.py.
    # vocoder.py, speech.py and old_vocoder are a user's own code, normed.toml a user's recipe.
    others = {
        "golden",
        "frameworks",  # the files that other frameworks wrote: its own make.py
        "make.py",
        "vocoder.py",
        "speech.py",
        "old_vocoder",
        "normed.toml",
        "__pycache__",
        "magnitudes.png",
        "page.png",
        "picture.py",
    }
    names = {path.name for path in FIXTURES.iterdir()} - others
    assert names == {path.name for path in built.iterdir()}
    pinned = f"torch=={torch.__version__.partition('+')[0]}\n" in (ROOT / "constraints.txt").read_text()
    compared = names - (set() if pinned else {"program.pt2"})
    assert [name for name in sorted(compared) if content(FIXTURES / name) != content(built / name)] == []


@pytest.mark.full  # it builds them once more
def test_check_names_the_file_that_differs(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tied.pt").write_bytes(b"changed")
    (tmp_path / "gan.pt").unlink()
    (tmp_path / "sharded" / "config.json").unlink()
    check: list[str | Path] = [sys.executable, MAKE, "--check", "--out", tmp_path]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "differs: sharded gan.pt tied.pt\n")


def test_the_fixtures_stay_small() -> None:
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file()) < 3_000_000


def test_torch_reads_the_file_that_is_no_zip() -> None:
    read = torch.load(FIXTURES / "legacy_nonzip.pth", weights_only=True)
    assert read["epoch"] == 12
    assert read["model_state_dict"]["net.0.weight_g"].shape == (8, 1, 1)
    assert not (FIXTURES / "legacy_nonzip.pth").read_bytes().startswith(b"PK")
