"""``python -m tests.fuzz``: cases for some minutes, faults kept as files, and a table of what was found."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from tests.fuzz.case import to_file
from tests.fuzz.targets import TARGETS, made
from tests.fuzz.watch import Outcome, Worker

#: So many cases of one fault are kept.
_KEPT = 3


@dataclass
class _Tally:
    """What was counted: cases and commands of each target, and faults by what they say."""

    folder: Path
    cases: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    faults: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def add(self, target: str, seed: int, number: int, outcome: Outcome) -> None:
        self.cases[target] += 1
        self.runs[target] += outcome.runs
        for kind, words, run in outcome.faults:
            fault = (target, kind, _alike(words))
            self.faults[fault] += 1
            if self.faults[fault] <= _KEPT:
                self.folder.mkdir(parents=True, exist_ok=True)
                path = self.folder / f"{target}-{seed}-{number}.json"
                to_file(made(target, seed, number), path)
                print(f"{kind}: {words[:300]}\n  {run[:300]}\n  --case {path}", flush=True)

    def told(self, minutes: float, seed: int) -> None:
        """Print the table."""
        print(f"\n{sum(self.cases.values())} cases, {sum(self.runs.values())} commands, {minutes:.1f} min, seed {seed}")
        for target in TARGETS:
            faults = sum(times for (of, _, _), times in self.faults.items() if of == target)
            print(f"  {target:12} {self.cases[target]:8} cases {self.runs[target]:8} commands {faults:6} faults")
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
        if given.case:
            outcome = worker.run(file=str(given.case.resolve()))
            for fault in outcome.faults:
                print(*fault, sep="\n  ")
            return bool(outcome.faults)
        return _run(worker, given.targets, given.minutes, given.seed, given.first, given.keep)


def _run(worker: Worker, targets: Iterable[str], minutes: float, seed: int, first: int, keep: Path) -> int:
    tally, begun, told = _Tally(keep), time.monotonic(), 0.0
    try:
        for number in count(first):
            for target in targets:
                tally.add(target, seed, number, worker.run(target=target, seed=seed, number=number))
                passed = (time.monotonic() - begun) / 60
                if passed > minutes:
                    tally.told(passed, seed)
                    return bool(tally.faults)
                if passed - told > 5:
                    told = passed
                    tally.told(passed, seed)
    except KeyboardInterrupt:
        tally.told((time.monotonic() - begun) / 60, seed)
    return bool(tally.faults)


if __name__ == "__main__":
    sys.exit(main())
