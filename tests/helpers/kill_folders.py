"""Folds a folder in many children, each killed at another moment, and tells what each left.

``python -m tests.helpers.kill_folders SOURCE TARGET [two]`` prints a line of JSON a child: how it was
killed, whether it was, the state of the target (``before``, ``new``, ``aside``: both are there, whole,
under temporary names, or ``broken``), and the names of what else lies beside it. The target is an old
folder first, then none. With ``two`` the names of folders are not exchanged in one step, but in two renames.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from tests.helpers.kills import killed_after_a_while, killed_at_each_call
from wnconvert.storage.folder.written import MANIFEST, manifest
from wnconvert.storage.stores import renames
from wnconvert.verbs.conversion.files.fold import fold_file

#: Every call that changes a file or a folder; ``os.open`` opens what is read, too.
CALLS = (
    *((os, name) for name in ("open", "pwrite", "copy_file_range", "fsync", "fchmod", "unlink", "rmdir")),
    *((Path, name) for name in ("mkdir", "rename", "chmod", "symlink_to")),
    (renames, "_renameat2"),
)
OLD = {"config.json": b"old", "model.safetensors": b"old weights", "sub/tokens": b"t"}
OLD[MANIFEST] = manifest({name: len(content) for name, content in OLD.items()})
Contents = dict[str, bytes]


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
        renames._renameat2 = lambda *_: False
    fold_file(source, target, max_shard_size="3KB")
    new = contents(target) or {}

    def act() -> None:
        fold_file(source, target, force=target.exists(), threads=2, max_shard_size="3KB")

    for kill in (killed_at_each_call, killed_after_a_while):
        for before in (OLD, None):
            prepare(target, before)
            for status in kill(act, CALLS, 0.2):
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
