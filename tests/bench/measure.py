"""Wall time, CPU time of the user and anonymous memory of whole processes, in turns."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

Command = Sequence[str | Path]

# Installed packages are compiled; without this a source tree would be compiled in every run.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


@dataclass(frozen=True, slots=True)
class Runs:
    """What runs of one command took: seconds each, and the most anonymous memory (0: not looked at).

    That is of a process and those that it has started, together.

    ``user`` are the seconds that processors spent on each, without those in the kernel.
    """

    seconds: tuple[float, ...]
    anonymous: int = 0
    user: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def in_user(self) -> Runs:
        """The same runs by the time of processors alone."""
        return Runs(self.user)


def run(
    command: Command, *, target: Path | None = None, memory: bool = False, may_differ: bool = False
) -> Runs:
    """Run a command that must succeed; what it wrote to ``target`` is removed.

    One that compares may end with 1 too, if what it compares ``may_differ``.
    """
    os.sync()  # what other runs have left to be written is not this one's time
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=_ENVIRONMENT) as process:
        most = _most_anonymous(process) if memory else 0
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = code = os.waitstatus_to_exitcode(status)
    if code > may_differ:
        raise subprocess.CalledProcessError(code, command)
    if target is not None and target.is_dir():
        shutil.rmtree(target)
    elif target is not None:
        target.unlink()
    return Runs((seconds,), most, (used.ru_utime,))


def _most_anonymous(process: subprocess.Popen[bytes]) -> int:
    """The largest sum of ``RssAnon`` of a process and of those below it, until it ends.

    ``ru_maxrss`` counts mapped files and misleads.
    """
    most = 0
    while not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
        most = max(most, _anonymous(process.pid))
        time.sleep(0.004)
    return most


def _anonymous(process: int) -> int:
    """What a process and those below it hold."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
        below = Path(f"/proc/{process}/task").glob("*/children")
        children = [int(each) for threads in below for each in threads.read_text().split()]
        return (int(found[1]) * 1024 if found else 0) + sum(map(_anonymous, children))
    return 0


def bytes_read(command: Command) -> int:
    """What a command reads in all, by any call but through mapped memory."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=_ENVIRONMENT) as process:
        os.waitid(
            os.P_PID, process.pid, os.WEXITED | os.WNOWAIT
        )  # what it did is told until it is waited for
        found = re.search(r"rchar: (\d+)", Path(f"/proc/{process.pid}/io").read_text())
    if process.returncode or not found:
        raise subprocess.CalledProcessError(process.returncode, command)
    return int(found[1])


def in_turns(
    rounds: int,
    *commands: Command,
    target: Path | None = None,
    memory: bool = False,
    may_differ: bool = False,
) -> list[Runs]:
    """Run commands one after another, ``rounds`` times over, after one round that warms the caches."""
    asked: dict[str, Any] = {"target": target, "memory": memory, "may_differ": may_differ}
    made = [[run(command, **asked) for command in commands] for _ in range(rounds + 1)][1:]
    return [
        Runs(
            tuple(runs.seconds[0] for runs in of_one),
            max(runs.anonymous for runs in of_one),
            tuple(runs.user[0] for runs in of_one),
        )
        for of_one in zip(*made, strict=True)
    ]


def machine() -> str:
    """The machine and the versions, in a line."""
    cpus = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "torch", "safetensors"))
    return (
        f"{cpus[0] if cpus else platform.machine()}, {os.cpu_count()} processors, {memory:.0f} GiB; "
        f"Python {platform.python_version()}, {packages}."
    )
