"""Ratios within one run, as a Markdown table: wnconvert against copies, the usual script, and its past.

``python -m tests.bench [names…] [--rounds N] [--folder DIR] [--before COMMIT]``; the folder needs 36 GiB for
all of them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.bench import checkpoints, fleets, pages, stores, targets
from tests.bench.builds import build_of
from tests.bench.measure import machine
from tests.bench.rows import HEAD, line

#: The last commit before files were written past the page cache.
BEFORE = "c2f5b07"

_OTHERS = (*stores.BENCHES, *fleets.BENCHES, *pages.BENCHES)
_ALONE = {bench.__name__: bench for bench in (*checkpoints.BENCHES, *_OTHERS)}
_BESIDE = {bench.__name__: bench for bench in targets.BENCHES}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [*_ALONE, *_BESIDE]
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names)}; all of them without a name")
    parser.add_argument("--rounds", type=int, default=7, help="more give steadier medians")
    parser.add_argument("--folder", type=Path, default=Path("build"), help="a folder on the disk to be used")
    parser.add_argument("--before", default=BEFORE, help="the commit that is measured beside this one")
    options = parser.parse_args()
    if wrong := set(options.names) - set(names):
        parser.error(f"no bench is called {', '.join(sorted(wrong))}")
    options.folder.mkdir(parents=True, exist_ok=True)
    print(machine())
    print("Medians of whole processes in turns; input in the page cache; memory is the largest `RssAnon`.")
    print(
        "wnconvert, cp and dd end when the output is on the disk; the torch script does not wait for that.\n"
    )
    print(line(HEAD), line(["---"] * len(HEAD)), sep="\n", flush=True)
    with (
        tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-") as made,
        build_of(options.before, folder := Path(made).resolve()) as before,
    ):
        for name in options.names or names:
            rounds = options.rounds
            rows = _ALONE[name](folder, rounds) if name in _ALONE else _BESIDE[name](folder, rounds, before)
            for row in rows:
                print(line(row.cells()), flush=True)


if __name__ == "__main__":
    main()
