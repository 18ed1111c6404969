"""Runs commands as a user's shell would and holds what they print against what is written down.

Plain ``wnconvert`` commands run in this process, which is ten times as fast; a test holds that a process
of their own prints the same.

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

from tests.helpers.tool import run_here

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "fixtures"
GOLDEN = FIXTURES / "golden"

#: A line that stands for any lines, or in a line for any text.
ANYTHING = "..."

_TIME = re.compile(r"\bin \d+(?:\.\d+)? s\b")
#: A step that is done: its name, its seconds, what it made.
_STEP = re.compile(r"(?m)^([a-z]+) +\d+\.\d s(?=  )")
_RUN = {"wnconvert", "python", "ls"}

#: A command in which one of these stands outside of quotes needs a shell.
_OF_A_SHELL = re.compile(r"[]|&;<>()$`*?\[#~]")
_QUOTED = re.compile(r"'[^']*'|\"[^\"$`]*\"")

#: The variables that every command gets.
VARIABLES = {
    "PYTHONWARNINGS": "error",  # a warning must not hide: it changes what is printed
    "PYTHONUNBUFFERED": "1",  # stdout and stderr in the order of a terminal
    "PYTHONDONTWRITEBYTECODE": "1",
    "COLUMNS": "100",
    "LC_ALL": "C.UTF-8",
}


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
    """Run one command in a folder: here if it is wnconvert alone, else as a process."""
    words = shlex.split(command.replace("\\\n", ""))
    if words[0] not in _RUN:
        raise AssertionError(f"$ {command}: only {', '.join(sorted(_RUN))} are run here")
    if words[0] != "wnconvert" or _OF_A_SHELL.search(_QUOTED.sub("", command)):
        return run_process(command, folder)
    done = run_here(
        *words[1:], folder=folder, variables=VARIABLES, warn=VARIABLES["PYTHONWARNINGS"], merged=True
    )
    return _step(command, folder, done.stdout, done.returncode)


def run_process(command: str, folder: Path) -> Step:
    """Run one command in a folder through the console entry of this interpreter's environment."""
    scripts = sysconfig.get_path("scripts")
    if not Path(scripts, "wnconvert").exists():
        raise AssertionError(f"no wnconvert beside {sys.executable}: pip install -e .")
    path = os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)])
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env={**os.environ, **VARIABLES, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return _step(command, folder, done.stdout, done.returncode)


def _step(command: str, folder: Path, output: str, code: int) -> Step:
    printed = output + ("\n" if output and not output.endswith("\n") else "")
    if str(folder) in printed:
        raise AssertionError(f"$ {command}: prints where it runs, so it differs from run to run:\n{printed}")
    return Step(command, printed + (f"[exit {code}]\n" if code else ""))


def steady(text: str) -> str:
    """A text without what differs from run to run.

    >>> steady("78 layers in 0.12 s")
    '78 layers in N s'
    >>> steady("load       0.2 s  1 input, 1 output")
    'load N s  1 input, 1 output'
    """
    return _STEP.sub(r"\1 N s", _TIME.sub("in N s", text))


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
