"""Runs commands as a user's shell would and holds what they print against what is written down.

A written text is a sequence of `$ command` lines, each followed by what it prints (stdout and stderr as
they come) and, where the exit code is not 0, `[exit N]`. A command may go on after a backslash at the end
of its line. Only an elapsed time, `in 0.12 s`, may differ from run to run.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "fixtures"
GOLDEN = FIXTURES / "golden"

#: A line that stands for any lines, or in a line for any text.
ANYTHING = "..."

_TIME = re.compile(r"\bin \d+(?:\.\d+)? s\b")
_RUN = {"wnconvert", "python", "ls"}


@dataclass(frozen=True)
class Step:
    """A command as written (continued lines included) and what it prints."""

    command: str
    printed: str

    def __str__(self) -> str:
        return f"$ {self.command}\n{self.printed}"


def parse(text: str) -> list[Step]:
    """The steps of a written text.

    >>> [step.command for step in parse("$ ls\\nmodel.pt\\n$ wnconvert fold \\\\\\n  model.pt\\n")]
    ['ls', 'wnconvert fold \\\\\\n  model.pt']
    """
    steps: list[Step] = []
    for line in text.splitlines(keepends=True):
        if steps and not steps[-1].printed and steps[-1].command.endswith("\\"):
            steps[-1] = Step(f"{steps[-1].command}\n{line.rstrip()}", "")
        elif line.startswith("$ "):
            steps.append(Step(line[2:].rstrip(), ""))
        elif steps:
            steps[-1] = Step(steps[-1].command, steps[-1].printed + line)
        else:
            raise AssertionError(f"{line!r} stands before the first `$ ` line")
    if not steps:
        raise AssertionError("there is no `$ ` line: a comparison of nothing is a failure")
    return steps


def run(command: str, folder: Path) -> Step:
    """Run one command in a folder through the console entry of this interpreter's environment."""
    if shlex.split(command)[0] not in _RUN:
        raise AssertionError(f"$ {command}: only {', '.join(sorted(_RUN))} are run here")
    scripts = sysconfig.get_path("scripts")
    if not Path(scripts, "wnconvert").exists():
        raise AssertionError(f"no wnconvert beside {sys.executable}: pip install -e .")
    variables = {
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
        "PYTHONWARNINGS": "error",  # a warning must not hide: it changes what is printed
        "PYTHONUNBUFFERED": "1",  # stdout and stderr in the order of a terminal
        "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "100",
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    printed = done.stdout + ("\n" if done.stdout and not done.stdout.endswith("\n") else "")
    if str(folder) in printed:
        raise AssertionError(f"$ {command}: prints where it runs, so it differs from run to run:\n{printed}")
    return Step(command, printed + (f"[exit {done.returncode}]\n" if done.returncode else ""))


def steady(text: str) -> str:
    """A text without what differs from run to run.

    >>> steady("78 layers in 0.12 s")
    '78 layers in N s'
    """
    return _TIME.sub("in N s", text)


def says(written: str, printed: str) -> bool:
    """Whether a printed text is the written one: a line `...` stands for any lines, in a line for any text.

    >>> says("a\\n...\\nd\\n", "a\\nb\\nc\\nd\\n"), says("a\\n", "a\\nb\\n"), says("a ... c\\n", "a b c\\n")
    (True, False, True)
    """
    lines = steady(written).splitlines(keepends=True)
    pattern = "".join("(?s:.*)" if line.rstrip() == ANYTHING else _line(line) for line in lines)
    return re.fullmatch(pattern, steady(printed)) is not None


def _line(line: str) -> str:
    return re.escape(line).replace(re.escape(ANYTHING), ".*")


def sandbox(folder: Path) -> Path:
    """A copy of the fixtures in a new folder."""
    away = shutil.ignore_patterns("golden", "make.py", "README.md", "__pycache__")
    return Path(shutil.copytree(FIXTURES, folder / "fixtures", ignore=away))


def differences(written: Iterable[Step], printed: Iterable[Step]) -> str:
    """What was written and what was printed instead, for the steps that differ; empty where all agree."""
    return "\n".join(
        f"$ {old.command}\n--- written\n{old.printed}--- printed\n{new.printed}"
        for old, new in zip(written, printed, strict=True)
        if not says(old.printed, new.printed)
    )
