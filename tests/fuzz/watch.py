"""The worker from outside: it is asked for cases, and ended where one hangs."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

__all__ = ["Outcome", "Worker"]

#: Seconds of a processor that one command may take, and seconds by the clock, which a busy machine stretches.
_WATCH = 5.0
_BLOCKED = 120.0
#: Cases that one process runs: each command leaves some kilobytes of its streams, which its limit counts.
_MOST_CASES = 1000


@dataclass(frozen=True)
class Outcome:
    """What came of a case: how many commands ran, and kinds of faults with words and the command."""

    runs: int
    faults: tuple[tuple[str, str, str], ...]


class Worker:
    """A process that runs cases, started again after one that hangs or crashes."""

    def __init__(self, command: Sequence[str] = ("-m", "tests.fuzz.worker")) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._cases = 0

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._end()

    def run(self, **request: Any) -> Outcome:
        """Have a case run: ``target``, ``seed`` and ``number``, or a ``file``."""
        self._cases += 1
        if self._cases % _MOST_CASES == 0:
            self._end()
        process = self._started()
        _stream(process.stdin).write(json.dumps(request).encode() + b"\n")
        _stream(process.stdin).flush()
        doing: list[str] = []
        runs = 0
        while True:
            said = self._line(process)
            if "faults" in said:
                return Outcome(said["runs"], tuple(map(tuple, said["faults"])))
            if "doing" in said:
                runs += doing[:1] == ["run"]
                doing = said["doing"]
                continue
            code = self._end()
            if doing[:1] != ["run"]:  # another reader, or what is ours: making the case
                return Outcome(
                    runs, () if doing else (("fuzzer", f"ended with {code} before a command", ""),)
                )
            fault = "hang" if said.get("hangs") else f"crash ({code})"
            return Outcome(runs, ((fault, " ".join(doing[1:3]), str(doing[1:])),))

    def _line(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """The next line that the worker tells; without one, whether it hangs."""
        begun, clock = _spent(process.pid), time.monotonic()
        out = _stream(process.stdout)
        while not select.select([out], [], [], 0.5)[0]:
            if process.poll() is not None:
                return {}
            if _spent(process.pid) - begun > _WATCH or time.monotonic() - clock > _BLOCKED:
                return {"hangs": True}
        line = out.readline()
        said: dict[str, Any] = json.loads(line) if line else {}
        return said

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None:
            return self._process
        variables = {
            "OMP_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",
            "PYTHONFAULTHANDLER": "1",
            "MPLBACKEND": "agg",
        }
        process = self._process = subprocess.Popen(
            [sys.executable, *self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env=os.environ | variables,
            bufsize=0,
        )
        ready = _stream(process.stdout).readline()
        if not ready:
            raise RuntimeError("the worker does not start")
        return process

    def _end(self) -> int:
        """End the process, and return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        if process.poll() is None:
            process.kill()
        for stream in (process.stdin, process.stdout):
            _stream(stream).close()
        return process.wait()


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _spent(pid: int) -> float:
    """Seconds of processors that a process has used, with its children that ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
