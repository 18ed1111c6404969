"""Folds a file in many children, each killed at another moment, and tells what each left.

``python -m tests.helpers.kill_folds SOURCE TARGET`` prints a line of JSON a child: how it was killed,
whether it was, the state of the target (``before``, ``new`` or ``broken``), and the names of what else
lies beside it. The target is an old file first, then none. Children are forked after all imports, so a
hundred take seconds.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.helpers.kills import killed_after_a_while, killed_at_each_call
from wnconvert.storage.stores import filling, renames, system
from wnconvert.verbs.conversion.files.fold import fold_file

#: Every call that changes a file or a folder.
CALLS = (
    *((os, name) for name in ("open", "pwrite", "copy_file_range", "fsync", "fchmod", "link", "unlink")),
    (Path, "replace"),
    (system, "_allocate"),
    (renames, "_renameat2"),
)


def main(source: Path, target: Path) -> None:
    fold_file(source, target)
    new = target.read_bytes()

    def act() -> None:
        fold_file(source, target, force=target.exists(), threads=2)

    for kill in (killed_at_each_call, killed_after_a_while):
        for before in (b"old", None):
            prepare(target, before)
            for status in kill(act, CALLS, 0.08):
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
    filling._DIRECT_FILE = 0
    main(Path(sys.argv[1]), Path(sys.argv[2]))
