"""Many files in one run, against one run for each."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.bench import inputs
from tests.bench.builds import NOW, usual
from tests.bench.measure import Command, in_turns
from tests.bench.rows import Row

#: The files of either; WNCONVERT_BENCH_FILES makes them fewer.
FILES = int(os.environ.get("WNCONVERT_BENCH_FILES", "100"))
SMALL = 10 * FILES


def many(folder: Path, rounds: int, files: int = FILES) -> Iterator[Row]:
    """A hundred checkpoints of 50 MB: one run, a loop of the shell, a loop of the usual script."""
    source = _copies(folder / "many", inputs.hifigan(), files)
    out = folder / "out"
    ours = NOW.command("fold", "-r", source, "-o", out)
    loop = _loop(source, out, NOW.fold(Path("$file"), Path("$out")))
    script = _loop(source, out, usual(Path("$file"), Path("$out")))
    runs, loops, scripts = in_turns(rounds, ours, loop, script, target=out)
    what = f"{files} files of 56 MB"
    yield Row(what, runs, "a loop of `wnconvert fold`", loops, 0.5)
    yield Row(what, runs, "a loop of the torch script", scripts, 0.15)
    shutil.rmtree(source)


def looked_at(folder: Path, rounds: int, files: int = SMALL) -> Iterator[Row]:
    """A thousand checkpoints of 1 MB inspected: in one process, against one for each."""
    source = _copies(folder / "small", inputs.layer("conv", 512, 512), files)
    ours = NOW.command("inspect", "-r", source, "--format", "csv")
    loop = _loop(source, folder / "none", NOW.command("inspect", Path("$file")))
    runs, loops = in_turns(rounds, ours, loop)
    yield Row(f"`inspect`, {files} files of 1 MB", runs, "a loop of `wnconvert inspect`", loops, 0.2)
    shutil.rmtree(source)


def _copies(folder: Path, shapes: inputs.Shapes, files: int) -> Path:
    """A folder of files that are the same."""
    folder.mkdir()
    first = folder / "0.safetensors"
    inputs.write(first, shapes)
    for at in range(1, files):
        (folder / f"{at}.safetensors").write_bytes(first.read_bytes())
    return folder


def _loop(source: Path, out: Path, command: Command) -> Command:
    """A loop of the shell over the files of a folder."""
    words = " ".join(
        {"$file": '"$file"', "$out": f'{shlex.quote(str(out))}/"${{file##*/}}"'}.get(
            str(word), shlex.quote(str(word))
        )
        for word in command
    )
    loop = f"mkdir -p {shlex.quote(str(out))}; for file in {shlex.quote(str(source))}/*; do {words}; done"
    return ["sh", "-c", f"set -e; {loop}"]


#: Each by its name on the command line.
BENCHES = (many, looked_at)
