"""A few cases of each target of the fuzzer; more run by hand (`make fuzz`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.case import from_file, to_file
from tests.fuzz.targets import TARGETS, made
from tests.fuzz.watch import Worker

SEED = 0


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as started:
        yield started


@pytest.mark.parametrize("cases", [8, pytest.param(100, marks=pytest.mark.full)])
@pytest.mark.parametrize("target", TARGETS)
def test_no_case_shows_a_fault(target: str, cases: int, worker: Worker) -> None:
    for number in range(cases):
        outcome = worker.run(target=target, seed=SEED, number=number)
        assert outcome.faults == (), f"--targets {target} --seed {SEED} --first {number}"
        assert outcome.runs > 0


@pytest.mark.parametrize("target", TARGETS)
def test_a_case_is_made_of_its_seed_and_number_and_kept_whole(target: str, tmp_path: Path) -> None:
    case = made(target, SEED, 3)
    assert made(target, SEED, 3) == case != made(target, SEED, 4)
    to_file(case, tmp_path / "case.json")
    assert from_file(tmp_path / "case.json") == case


STUCK = """
import os, sys
print('{"ready": true}', flush=True)
sys.stdin.readline()
print('{"doing": ["run", "fold", "in.pt"]}', flush=True)
"""


@pytest.mark.parametrize(
    ("end", "fault"),
    [("while True: pass", "hang"), ("os.abort()", "crash (-6)"), ("sys.exit(7)", "crash (7)")],
)
def test_what_hangs_or_crashes_is_told(end: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.watch._WATCH", 0.1)
    with Worker(["-c", STUCK + end]) as worker:
        for _ in range(2):
            ((kind, words, _),) = worker.run(target="zips", seed=SEED, number=0).faults
            assert (kind, words) == (fault, "fold in.pt")
