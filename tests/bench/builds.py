"""The commands that are timed: wnconvert as it is, wnconvert as it was, and plain copies."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import Command

ROOT = Path(__file__).parents[2]
USUAL = Path(__file__).with_name("usual.py")


@dataclass(frozen=True, slots=True)
class Build:
    """A tree of wnconvert, run by the same interpreter as any other."""

    root: Path = ROOT

    def command(self, *arguments: str | Path) -> Command:
        """The command line ``wnconvert ARGUMENTS`` of this build."""
        return ["env", f"--chdir={self.root}", sys.executable, "-m", "wnconvert", *arguments]

    def fold(self, source: Path, target: Path, *options: str | Path) -> Command:
        """Fold a file or folder."""
        return self.command("fold", source, "-o", target, *options)


NOW = Build()


@contextlib.contextmanager
def build_of(commit: str, folder: Path) -> Iterator[Build]:
    """The build of another commit of this repository, in a folder that is removed afterwards.

    Its kernel is compiled, as that of an installed one is.
    """
    root = folder / "before"
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(root), commit], check=True)
    try:
        if (root / "hatch_build.py").exists():
            subprocess.run(
                [sys.executable, "hatch_build.py"], cwd=root, stdout=subprocess.DEVNULL, check=True
            )
        yield Build(root)
    finally:
        subprocess.run([*git, "remove", "--force", str(root)], check=True)


def usual(source: Path, target: Path) -> Command:
    """The script that people write with torch."""
    return [sys.executable, USUAL, source, target]


def usual_fusion(source: Path, target: Path) -> Command:
    """The script that people write to fold the batch norms of a ResNet-50."""
    return ["env", f"--chdir={ROOT}", sys.executable, "-m", "tests.bench.usual_fusion", source, target]


def cached_copy(source: Path, target: Path) -> Command:
    """A copy through the page cache, put on the disk at the end."""
    return ["dd", f"if={source}", f"of={target}", "bs=4M", "conv=fsync", "status=none"]


def direct_copy(source: Path, target: Path) -> Command:
    """A copy that is written past the page cache."""
    return ["dd", f"if={source}", f"of={target}", "bs=4M", "oflag=direct", "conv=fsync", "status=none"]


def kernel_copy(source: Path, target: Path) -> Command:
    """A copy that the kernel makes, put on the disk at the end."""
    return ["sh", "-c", 'cp --reflink=never "$1" "$2" && sync "$2"', "sh", source, target]
