"""A few cases of each target of the fuzzer; more run by hand (`make fuzz`)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.fuzz.case import Case, from_file, to_file
from tests.fuzz.check import after_run
from tests.fuzz.targets import TARGETS, made
from tests.fuzz.watch import Worker
from tests.helpers.bad_files import pair, saved
from tests.helpers.tool import Ended, run_here
from wnconvert import fold_file

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


# -- what is seen as a fault


DONE = Ended(0, "", "")
FOLD = ("fold", "in.pt", "-o", "out.pt")


def spoilt_by(data: bytes, value: bytes, other: bytes) -> bytes:
    assert value in data
    return data.replace(value, other)


def test_a_number_beside_the_right_one_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(pair(4, 2, 2) | {"bias": torch.full((3,), 7.0)}, tmp_path)
    monkeypatch.chdir(tmp_path)
    for verb, *options in (("fold",), ("split", "--layers", "*"), ("migrate",)):
        (tmp_path / "out.pt").unlink(missing_ok=True)
        source = "in.pt" if verb != "split" else "folded.pt"
        if verb == "split":
            fold_file("in.pt", "folded.pt")
        run = (verb, source, "-o", "out.pt", *options)
        assert run_here(*run).returncode == 0
        case = Case("zips", {}, source, (run,))
        assert list(after_run(case, run, DONE)) == []
        whole = (tmp_path / "out.pt").read_bytes()
        for value, near in ((0.5, 0.50000006), (7.0, 7.0000005)):
            one, other = (struct.pack("<f", number) * 3 for number in (value, near))
            (tmp_path / "out.pt").write_bytes(spoilt_by(whole, one, other))
            assert "wrong numbers" in {kind for kind, _ in after_run(case, run, DONE)}, (verb, value)


def test_an_output_that_no_other_reader_takes_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(pair(), tmp_path)
    (tmp_path / "out.pt").write_bytes(source.read_bytes()[:-9])
    monkeypatch.chdir(tmp_path)
    assert [kind for kind, _ in after_run(Case("zips", {}, "in.pt", (FOLD,)), FOLD, DONE)] == [
        "unreadable output"
    ]


LOOK = ("inspect", "in.pt")
ENDINGS = {
    "exit code 3": (FOLD, Ended(3, "", "Traceback (most recent call last):\nKeyError: 1\n")),
    "raw exception": (FOLD, Ended(2, "", "error: x\nTraceback (most recent call last):\nKeyError: 1\n")),
    "more than 512 MiB": (FOLD, Ended(2, "", "error: not enough memory\n")),
    "called a bug": (FOLD, Ended(1, "", "error: x\nfix: this is a bug of wnconvert\n")),
    "no words": (FOLD, Ended(2, "", "x\n")),
    "control characters": (FOLD, Ended(2, "", "error: \x1b\n")),
    "false refusal": (LOOK, Ended(2, "", "error: in.pt: a new reason\n")),
}


@pytest.mark.parametrize("kind", ENDINGS)
def test_each_bad_ending_is_seen(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(pair(), tmp_path)
    monkeypatch.chdir(tmp_path)
    run, ended = ENDINGS[kind]
    case = Case("zips", {}, "in.pt", (LOOK, FOLD))
    assert [name for name, _ in after_run(case, run, ended)] == [kind]


def test_a_refusal_that_is_meant_or_that_others_share_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(pair(), tmp_path)
    monkeypatch.chdir(tmp_path)
    case = Case("zips", {}, "in.pt", (LOOK,))
    meant = Ended(2, "", "error: in.pt: its storage data/0 is compressed\nfix: save it with torch.save\n")
    assert list(after_run(case, LOOK, meant)) == []
    (tmp_path / "in.pt").write_bytes(b"x")
    assert list(after_run(case, LOOK, Ended(2, "", "error: in.pt: not a checkpoint\n"))) == []
