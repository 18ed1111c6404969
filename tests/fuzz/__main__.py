"""``python -m tests.fuzz``: cases for some minutes, faults kept as files, and a table of what was found."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from tests.fuzz.case import to_file
from tests.fuzz.targets import TARGETS, made
from tests.fuzz.watch import Outcome, Worker

#: So many cases of one fault are kept, and so many minutes lie between two tables.
_KEPT = 3
_TOLD = 5


@dataclass
class _Tally:
    """What was counted: cases and commands of each target, and faults by what they say."""

    seed: int
    keep: Path
    begun: float = field(default_factory=time.monotonic)
    cases: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    faults: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self.begun) / 60

    def add(self, target: str, number: int, outcome: Outcome) -> None:
        self.cases[target] += 1
        self.runs[target] += outcome.runs
        for kind, words, run in outcome.faults:
            fault = (target, kind, _alike(words))
            self.faults[fault] += 1
            if self.faults[fault] <= _KEPT:
                self.keep.mkdir(parents=True, exist_ok=True)
                path = self.keep / f"{target}-{self.seed}-{number}.json"
                to_file(made(target, self.seed, number), path)
                print(f"{kind}: {words[:300]}\n  {run[:300]}\n  --case {path}", flush=True)

    def told(self) -> None:
        """Print the table."""
        every, runs = sum(self.cases.values()), sum(self.runs.values())
        print(f"\n{every} cases, {runs} commands, {self.minutes:.1f} min, seed {self.seed}")
        for target in TARGETS:
            faults = sum(times for (of, _, _), times in self.faults.items() if of == target)
            print(
                f"  {target:12} {self.cases[target]:8} cases {self.runs[target]:8} commands {faults:6} faults"
            )
        for (target, kind, words), times in self.faults.most_common():
            print(f"  {times:6} × {target}: {kind}: {words[:200]}")
        sys.stdout.flush()


def _alike(words: str) -> str:
    """Words without what differs from case to case: quoted texts and numbers."""
    return re.sub(r"\d+", "9", re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", words))[:160]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case of each target")
    parser.add_argument("--targets", nargs="+", choices=[*TARGETS], default=[*TARGETS])
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="the folder of failing cases")
    parser.add_argument("--case", type=Path, help="run this case again, and show what it prints")
    given = parser.parse_args()
    with Worker() as worker:
        return _again(worker, given.case) if given.case else _fuzz(worker, given)


def _again(worker: Worker, path: Path) -> int:
    outcome = worker.run(file=str(path.resolve()))
    for fault in outcome.faults:
        print(*fault, sep="\n  ")
    return int(bool(outcome.faults))


def _fuzz(worker: Worker, given: argparse.Namespace) -> int:
    tally, told = _Tally(given.seed, given.keep), 0.0
    with suppress(KeyboardInterrupt):
        for target, number in _numbered(given.targets, given.first):
            tally.add(target, number, worker.run(target=target, seed=given.seed, number=number))
            if tally.minutes > given.minutes:
                break
            if tally.minutes > told + _TOLD:
                told = tally.minutes
                tally.told()
    tally.told()
    return int(bool(tally.faults))


def _numbered(targets: Sequence[str], first: int) -> Iterator[tuple[str, int]]:
    for number in count(first):
        yield from ((target, number) for target in targets)


if __name__ == "__main__":
    sys.exit(main())
