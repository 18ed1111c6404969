"""Folds a file in many children, each killed at another moment, and tells what each left.

``python -m tests.kill_folds SOURCE TARGET`` prints a line of JSON a child: how it was killed, whether it was,
the state of the target (``before``, ``new`` or ``broken``), and the names of what else lies beside it. The
target is an old file first, then none. Children are forked after all imports, so a hundred take seconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wnconvert.files import fold_file

#: Every call that changes a file or a folder.
CALLS = (
    *((os, name) for name in ("open", "ftruncate", "pwrite", "fsync", "fchmod", "link", "unlink")),
    (Path, "replace"),
)


def fold_in_child(source: Path, target: Path, hook: Callable[[], None]) -> int:
    """Fork a child that folds and runs ``hook`` before each of the calls; the id of its process."""
    pid = os.fork()
    if pid:
        return pid
    for owner, name in CALLS:
        call = getattr(owner, name)

        def hooked(*given: Any, call: Callable[..., Any] = call, **options: Any) -> Any:
            hook()
            return call(*given, **options)

        setattr(owner, name, hooked)
    try:
        fold_file(source, target, force=target.exists(), threads=2)
    finally:
        os._exit(0)  # a fork must not go on as its parent; what it left tells how it went


def killed_at_each_call(source: Path, target: Path) -> Iterator[int]:
    """Kill the child before its first call, its second, …, until it comes to its end."""
    for stage in range(10_000):
        left = iter(range(stage))

        def hook(left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        status = os.waitpid(fold_in_child(source, target, hook), 0)[1]
        yield status
        if not os.WIFSIGNALED(status):
            return


def killed_after_a_while(source: Path, target: Path, times: int = 24) -> Iterator[int]:
    """Kill a child whose calls are slow after a random time."""
    rng = random.Random(0)
    for _ in range(times):
        pid = fold_in_child(source, target, lambda: time.sleep(0.001))
        time.sleep(rng.uniform(0, 0.08))
        os.kill(pid, signal.SIGKILL)
        yield os.waitpid(pid, 0)[1]


def main(source: Path, target: Path) -> None:
    fold_file(source, target)
    new = target.read_bytes()
    for kill in (killed_at_each_call, killed_after_a_while):
        for before in (b"old", None):
            prepare(target, before)
            for status in kill(source, target):
                after = target.read_bytes() if target.exists() else None
                state = "before" if after == before else "new" if after == new else "broken"
                others = [path.name for path in target.parent.iterdir() if path != target]
                print(json.dumps([kill.__name__, os.WIFSIGNALED(status), state, others]), flush=True)
                prepare(target, before)


def prepare(target: Path, before: bytes | None) -> None:
    """Leave the target alone in its folder, as it was before."""
    for path in target.parent.iterdir():
        path.unlink()
    if before is not None:
        target.write_bytes(before)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
