"""Comparing files of 2 GiB: in one form against ``cmp``, across forms against ``fold``.

``python -m tests.bench.compare [--rounds N] [--folder DIR]``; the folder needs 10 GiB.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.bench.inputs import GIB, MIB, many_layers, write
from tests.bench.measure import Command, Runs, in_turns, machine, run

WNCONVERT = Path(sys.executable).with_name("wnconvert")
#: What the command does, without its table.
CODE = "import sys; from wnconvert.compare import compare_files as c; sys.exit(not c(*sys.argv[1:]))"

HEAD: tuple[str, ...] = ("", "wnconvert", "its memory", "against", "takes", "ratio", "at most")


def compare(a: Path, b: Path) -> Command:
    return [sys.executable, "-c", CODE, a, b]


def rows(folder: Path, rounds: int) -> Iterator[tuple[str, ...]]:
    """Same form, across forms, and with every tensor an ulp off, so that each block is computed."""
    source, same, folded = (folder / f"{name}.safetensors" for name in ("source", "same", "folded"))
    write(source, many_layers(2 * GIB))
    write(same, many_layers(2 * GIB))
    run([WNCONVERT, "fold", source, "-o", folded, "--quiet"])
    ours, other = in_turns(rounds, compare(source, same), ["cmp", source, same], memory=True)
    yield row("2 GiB, one form", ours, "`cmp`", other, 2)
    fold: Command = [WNCONVERT, "fold", source, "-o", folder / "again.safetensors", "--force", "--quiet"]
    ours, other = in_turns(rounds, compare(source, folded), fold, memory=True)
    yield row("2 GiB, across forms", ours, "`wnconvert fold`", other, 1.5)
    shift(folded)
    ours, other = in_turns(rounds, compare(source, folded), fold, memory=True)
    yield row("2 GiB, across forms, all an ulp off", ours, "`wnconvert fold`", other, 1.5)


def shift(path: Path) -> None:
    """Make each float32 of a safetensors file its neighbour."""
    data = np.memmap(path, np.uint8, "r+")
    values = data[8 + int(data[:8].view("<u8")[0]) :].view("<i4")
    for at in range(0, values.size, MIB):
        values[at : at + MIB] += 1
    data.flush()


def row(what: str, ours: Runs, other: str, others: Runs, most: float) -> tuple[str, ...]:
    ratio = ours.median / others.median
    said = f"{most:g}" if ratio <= most else f"{most:g}: MISSED"
    memory = f"{ours.anonymous / MIB:.0f} MiB"
    return (what, f"{ours.median:.3g} s", memory, other, f"{others.median:.3g} s", f"**{ratio:.2f}**", said)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="more give steadier medians")
    parser.add_argument("--folder", type=Path, default=Path("build"), help="a folder on the disk to be used")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(machine())
    print("Medians; files in the page cache; memory is the largest `RssAnon`.\n")
    for cells in (HEAD, ("---",) * len(HEAD)):
        print(f"| {' | '.join(cells)} |", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-") as folder:
        for cells in rows(Path(folder), options.rounds):
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
