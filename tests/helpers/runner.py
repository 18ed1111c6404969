"""How every command refuses a file that cannot be read."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from tests.helpers.tool import Ended

OLD = b"what was here before"


#: The command line in this process: arguments in, how it ended out.
Runner: TypeAlias = Callable[..., Ended]


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(run: Runner, source: Path, *options: str | Path, says: str, fix: str | None = "") -> Ended:
    """The file is refused with these words, and its folder stays as it is, with and without an old output."""
    out = source.parent / "out.pt"
    out.write_bytes(OLD)
    before = listing(source.parent)
    where = () if "-o" in options else ("-o", out, "--force")
    ended = run("fold", source, *where, *options)
    assert (ended.returncode, ended.stdout) == (2, ""), ended
    assert re.search(says, ended.stderr), ended.stderr
    first, *_ = ended.stderr.splitlines()
    assert first.startswith(f"error: {source}" if source.name in first else "error: ")
    assert "Traceback" not in ended.stderr
    if fix is not None:
        last = ended.stderr.splitlines()[-1]
        assert last.startswith("fix: ")
        assert fix in last
    looked_at(run, source, ended)
    assert listing(source.parent) == before
    out.unlink()
    return ended


def looked_at(run: Runner, source: Path, folded: Ended) -> None:
    """inspect and compare refuse the file in the same words, or show what is whole in it."""
    commands: list[list[str | Path]] = [["inspect", source, "--full"], ["compare", source, source]]
    for command in commands:
        ended = run(*command)
        assert ended.returncode in {0, 2}, ended
        assert "Traceback" not in ended.stderr
        if ended.returncode == 2 and command[0] == "inspect":
            # Which of two tensors that overlap the safetensors library names is left to chance.
            words = [text.splitlines()[0].split(" for tensor ")[0] for text in (ended.stderr, folded.stderr)]
            assert words[0] == words[1]
        assert (ended.returncode == 0) == bool(ended.stdout)
