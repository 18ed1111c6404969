"""Folds a folder in many children, each killed at another moment, and tells what each left.

``python -m tests.kill_folders SOURCE TARGET [two]`` prints a line of JSON a child: how it was killed, whether
it was, the state of the target (``before``, ``new``, ``aside``: both are there, whole, under temporary names,
or ``broken``), and the names of what else lies beside it. The target is an old folder first, then none. With
``two`` the names of folders are not exchanged in one step, but in two renames.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wnconvert import atomic_folder
from wnconvert.files import fold_file

#: Every call that changes a file or a folder; ``os.open`` opens what is read, too.
CALLS = (
    *((os, name) for name in ("open", "ftruncate", "pwrite", "fsync", "fchmod", "unlink", "rmdir")),
    *((Path, name) for name in ("mkdir", "rename", "chmod", "symlink_to")),
    (atomic_folder, "_exchange"),
)
OLD = {"config.json": b"old", "model.safetensors": b"old weights", "sub/tokens": b"t"}
Contents = dict[str, bytes]


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
        fold_file(source, target, force=target.exists(), threads=2, max_shard_size="3KB")
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
        time.sleep(rng.uniform(0, 0.2))
        os.kill(pid, signal.SIGKILL)
        yield os.waitpid(pid, 0)[1]


def contents(folder: Path) -> Contents | None:
    """What is in a folder, or None where there is none."""
    if not folder.exists():
        return None
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def state(target: Path, before: Contents | None, new: Contents) -> str:
    """What a child left at the target."""
    after = contents(target)
    if after == before:
        return "before"
    if after == new:
        return "new"
    beside = [contents(path) for path in target.parent.iterdir()]
    return "aside" if after is None and before in beside and new in beside else "broken"


def main(source: Path, target: Path, *, two: bool) -> None:
    if two:
        atomic_folder._exchange = lambda *_: False
    fold_file(source, target, max_shard_size="3KB")
    new = contents(target) or {}
    for kill in (killed_at_each_call, killed_after_a_while):
        for before in (OLD, None):
            prepare(target, before)
            for status in kill(source, target):
                others = [path.name for path in target.parent.iterdir() if path != target]
                told = [kill.__name__, os.WIFSIGNALED(status), state(target, before, new), others]
                print(json.dumps(told), flush=True)
                prepare(target, before)


def prepare(target: Path, before: Contents | None) -> None:
    """Leave the target alone in its folder, as it was before."""
    for path in target.parent.iterdir():
        shutil.rmtree(path)
    for name, content in (before or {}).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), two=sys.argv[3:] == ["two"])
