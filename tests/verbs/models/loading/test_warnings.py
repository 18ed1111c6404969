"""torch's warnings about weight norm in a user's code: they reach nobody, and are no failure of it."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

#: A project that makes its models as torch 1 did, of which torch warns: on import, and when it is called.
CODE = """
import torch
from torch.nn.utils import weight_norm

MADE = weight_norm(torch.nn.Linear(3, 3))

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.lin = weight_norm(torch.nn.Linear(3, 2))

    def forward(self, x):
        return self.lin(x)
"""
#: Runs commands in one process, one a line of the input, and stops at the first that fails.
RUNS = """
import shlex, sys
from wnconvert import cli

for line in sys.stdin:
    sys.argv = ["wnconvert", *shlex.split(line)]
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{line}ended with {ended.code}")
"""
ASKED = "--input x=float32[B,3] --range B=1..4"


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(CODE, encoding="utf-8")
    return path


def test_the_code_itself_makes_torch_warn(code: Path) -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        made = runpy.run_path(str(code))
    with pytest.warns(FutureWarning, match="weight_norm"):
        made["Net"]()


@pytest.mark.parametrize(
    ("warn", "exporter"),
    [
        ("error", "torchscript"),
        *(pytest.param(warn, "dynamo", marks=pytest.mark.full) for warn in ("error", "always")),
    ],
)
def test_no_warning_reaches_who_exports_checks_or_migrates_a_model_of_old_weight_norm(
    code: Path, tmp_path: Path, warn: str, exporter: str
) -> None:
    torch.save({"lin.weight_g": torch.ones(2, 1), "lin.weight_v": torch.ones(2, 3)}, tmp_path / "old.pt")
    commands = [
        f"export {code}:Net -o {tmp_path}/net.onnx --exporter {exporter} {ASKED}",
        f"export {code}:MADE -o {tmp_path}/made.onnx --exporter {exporter} {ASKED.replace('x', 'input', 1)}",
        f"check {tmp_path}/net.onnx {code}:Net {ASKED}",
        f"migrate {tmp_path}/old.pt",
    ]
    done = subprocess.run(
        [sys.executable, "-W", warn, "-c", RUNS],
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.count("equal to ") == 3
    assert (tmp_path / "old.parametrize.pt").exists()
