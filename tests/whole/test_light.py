"""The light package, in an environment of its own that has no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.golden import ROOT, sandbox
from tests.helpers.marks import crossed, some

pytestmark = pytest.mark.alone

SOURCES = ["g_02500000", "hifigan.safetensors", "lightning.ckpt", "legacy_nonzip.pth", "waveglow_module.pt"]


def quiet(*command: str | Path, folder: Path) -> str:
    """Run a command that must succeed; what it printed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of a new environment with the light package, under the pinned versions."""
    folder = tmp_path_factory.mktemp("light")
    quiet(sys.executable, "-m", "venv", "env", folder=folder)
    commands = folder / "env" / "bin"
    install: list[str | Path] = [commands / "python", "-m", "pip", "install", "--quiet"]
    quiet(*install, "--constraint", ROOT / "constraints.txt", ROOT, folder=folder)
    return commands


def test_the_light_environment_has_no_torch(light: Path) -> None:
    heavy = ("torch", "onnx", "matplotlib", "jinja2")
    find = f"import importlib.util as u; print([n for n in {heavy} if u.find_spec(n)])"
    assert quiet(light / "python", "-c", find, folder=light) == "[]\n"


@crossed(source=SOURCES, suffix=[".pt", ".safetensors"])
def test_fold_needs_no_torch(light: Path, tmp_path: Path, source: str, suffix: str) -> None:
    folder = sandbox(tmp_path)
    out = folder / f"out{suffix}"
    quiet(light / "wnconvert", "fold", source, "-o", out, folder=folder)
    assert out.stat().st_size > 0


@some("source", {source: source for source in SOURCES}, ["hifigan.safetensors", "waveglow_module.pt"])
def test_dry_run_verify_inspect_and_compare_need_no_torch(light: Path, tmp_path: Path, source: str) -> None:
    folder, tool = sandbox(tmp_path), light / "wnconvert"
    assert "would write" in quiet(tool, "fold", source, "--dry-run", folder=folder)
    assert "read back and recomputed" in quiet(
        tool, "fold", source, "-o", "out.pt", "--verify", folder=folder
    )
    assert "layers:" in quiet(tool, "inspect", source, "--full", folder=folder)
    assert "equal" in quiet(tool, "compare", source, "out.pt", folder=folder)
