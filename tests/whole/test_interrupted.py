"""Ctrl-C while a command starts: words and 130, and never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.golden import FIXTURES, ROOT

SAID = "interrupted; nothing is left half written"

#: Runs the command, and sends itself a signal as something is imported.
CODE = """
import builtins, os, runpy, signal, sys
moment, name = sys.argv[1:3]
sys.argv[1:] = sys.argv[3:]
load = builtins.__import__
def late(wanted, *rest, **more):
    if wanted == moment:
        builtins.__import__ = load
        os.kill(os.getpid(), getattr(signal, name))
    return load(wanted, *rest, **more)
builtins.__import__ = late
runpy.run_module("wnconvert", run_name="__main__")
"""


def interrupted_at(moment: str, *arguments: str, name: str = "SIGINT") -> subprocess.CompletedProcess[str]:
    # In a script of its own, since Python ends by the signal where it met a text that is run.
    return subprocess.run(
        [sys.executable, "-c", CODE, moment, name, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize(
    "moment",
    [
        "wnconvert.signals",
        "click",
        "wnconvert.cli.files",
        "wnconvert.cli.words",
        "numpy",
        "wnconvert.reports.text.conversions",
    ],
)
def test_ctrl_c_while_it_is_loaded_is_told_in_words(moment: str, tmp_path: Path) -> None:
    done = interrupted_at(moment, "fold", str(FIXTURES / "gan.pt"), "-o", str(tmp_path / "o.pt"))
    assert (done.stdout, done.stderr.strip()) == ("", SAID)
    assert done.returncode in {130, -2}  # a shell calls both 130
    assert not list(tmp_path.iterdir())


def test_so_are_other_signals_and_a_script_gets_json() -> None:
    done = interrupted_at("click", "inspect", "x.pt", "--json", name="SIGTERM")
    assert done.returncode == 130
    assert json.loads(done.stdout) == {"error": {"what": SAID, "where": "", "fix": "", "exit_code": 130}}


def test_a_terminal_that_nohup_outlives_ends_nothing() -> None:
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)" + CODE
    done = subprocess.run(
        [sys.executable, "-c", code, "click", "SIGHUP", "inspect", str(FIXTURES / "gan.pt")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, "")
