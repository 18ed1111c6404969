"""Many files done side by side, in the order of completion, on to the end or not; what the report keeps."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import wnconvert
from tests.helpers.golden import FIXTURES
from wnconvert.errors import InputError, NumbersError, OutputError, TooFewLayersError
from wnconvert.verbs.fleet.executors import opened_workplace
from wnconvert.verbs.fleet.files import fold_files, inspect_files, migrate_files, planned_fleet, split_files
from wnconvert.verbs.fleet.fleet import FleetRequest
from wnconvert.verbs.fleet.jobs import FileJob
from wnconvert.verbs.fleet.result import FileResult, exit_code_of

BAD = FIXTURES / "zero_row.safetensors"


def put(folder: Path, *names: str) -> list[Path]:
    """Checkpoints of one layer each, every one with other numbers."""
    made = []
    for at, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        v = np.arange(1, 7, dtype=np.float32).reshape(2, 3) + at
        save_file({"a.weight_g": np.ones((2, 1), np.float32), "a.weight_v": v}, path)
        made.append(path)
    return made


def states(results: Iterator[FileResult]) -> dict[str, str]:
    return {Path(result.source).name: result.state for result in results}


def lines(report: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(line) for line in report.read_text().splitlines()]
    assert len({line["source"] for line in found}) == len(found), "one line for each file"
    return {Path(line["source"]).name: line for line in found}


# -- what is written


@pytest.mark.parametrize("jobs", [1, 2])
def test_each_output_is_what_the_verb_writes_of_that_file_alone(jobs: int, tmp_path: Path) -> None:
    sources = put(tmp_path, "a.safetensors", "x/b.safetensors", "x/c.safetensors")
    results = {Path(it.source): it for it in fold_files(sources, tmp_path / "out", jobs=jobs)}
    assert {*results} == {*sources}
    for source, result in results.items():
        alone = wnconvert.fold_file(source, tmp_path / "alone.safetensors", force=True)
        assert result.output is not None
        assert Path(result.output).read_bytes() == (tmp_path / "alone.safetensors").read_bytes()
        assert (result.state, result.layers, result.bytes_out) == ("done", 1, alone.bytes_out)
        assert (result.error, result.sha256) == (None, "")


def test_a_fold_of_many_is_split_and_migrated_again(tmp_path: Path) -> None:
    put(tmp_path, "a.safetensors", "b.safetensors")
    assert states(fold_files([tmp_path / "*"], tmp_path / "f", jobs=1)) == dict.fromkeys(
        ("a.safetensors", "b.safetensors"), "done"
    )
    (result, _) = split_files([tmp_path / "f"], tmp_path / "s", jobs=1, recursive=True)
    assert result.output == str(tmp_path / "s" / "a.folded.split.safetensors")
    (result, _) = migrate_files([tmp_path / "s" / "*"], tmp_path / "m", jobs=1)
    assert result.output == str(tmp_path / "m" / "a.folded.split.parametrize.safetensors")
    assert wnconvert.inspect_file(result.output).state_dicts[0].layers == {"parametrize": 1}


def test_jobs_and_results_are_small_values_that_travel(tmp_path: Path) -> None:
    put(tmp_path, "a.safetensors", "b.safetensors")
    fleet = planned_fleet("fold", [tmp_path / "*"], tmp_path / "o", FleetRequest(), {"dtype": "fp16"})
    for job in fleet.jobs:
        assert pickle.loads(pickle.dumps(job)) == job
        assert len(pickle.dumps(job)) < 1000
    (result,) = fold_files([BAD], jobs=1)
    again = pickle.loads(pickle.dumps(result))
    assert str(again.error) == str(result.error)


class Counting(ThreadPoolExecutor):
    """An executor that is not ours, and how many jobs it had at a time."""

    def __init__(self) -> None:
        super().__init__(4)
        self.open: list[Future[Any]] = []
        self.most = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.open = [future for future in self.open if not future.done()]
        self.open.append(super().submit(fn, *args, **kwargs))
        self.most = max(self.most, len(self.open))
        return self.open[-1]


def test_jobs_run_on_any_executor_a_few_at_a_time(tmp_path: Path) -> None:
    put(tmp_path, *(f"{at}.safetensors" for at in range(9)))
    with Counting() as executor:
        done = states(fold_files([tmp_path / "*"], tmp_path / "out", jobs=3, executor=executor))
    assert dict.fromkeys(done, "done") == done
    assert len(done) == 9
    assert 1 <= executor.most <= 3


def test_results_come_in_the_order_of_completion(tmp_path: Path) -> None:
    class Backwards(Executor):
        """Does the job that came last first."""

        def __init__(self) -> None:
            self.waiting: list[tuple[Future[Any], Any, Any]] = []

        def submit(self, fn: Any, /, *args: Any, **_: Any) -> Future[Any]:
            self.waiting.append((Future(), fn, args))
            if len(self.waiting) == 3:
                future, fn, args = self.waiting.pop()
                future.set_result(fn(*args))
                return future
            return self.waiting[-1][0]

    put(tmp_path, "1.safetensors", "2.safetensors", "3.safetensors")
    executor = Backwards()
    results = fold_files([tmp_path / "*"], jobs=3, executor=executor)
    assert Path(next(results).source).name == "3.safetensors"
    for future, fn, args in executor.waiting:
        future.set_result(fn(*args))
    assert len([*results]) == 2


# -- errors


def test_nothing_is_begun_after_an_error_and_what_runs_is_finished(tmp_path: Path) -> None:
    put(tmp_path, "a.safetensors", "c.safetensors", "d.safetensors")
    shutil.copy(BAD, tmp_path / "b.safetensors")
    results = [*fold_files([tmp_path / "*"], tmp_path / "out", jobs=1)]
    assert [result.state for result in results] == ["done", "failed"]
    assert isinstance(results[1].error, NumbersError)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.folded.safetensors"]
    going = states(fold_files([tmp_path / "*.safetensors"], tmp_path / "on", jobs=1, keep_going=True))
    assert [*going.values()] == ["done", "failed", "done", "done"]


def test_a_file_that_is_gone_or_damaged_is_one_result(tmp_path: Path) -> None:
    put(tmp_path, "a.safetensors")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04")
    sources = [tmp_path / "gone.pt", tmp_path / "cut.pt", tmp_path / "a.safetensors"]
    results = {Path(it.source).name: it for it in fold_files(sources, jobs=2, keep_going=True)}
    gone = results["gone.pt"].error
    assert isinstance(gone, InputError)
    assert gone.lines == [f"{tmp_path / 'gone.pt'}: there is no such file"]
    assert isinstance(results["cut.pt"].error, InputError)
    assert results["a.safetensors"].state == "done"
    assert exit_code_of(results.values()) == 2


def test_too_few_layers_are_told_and_stop_nothing(tmp_path: Path) -> None:
    put(tmp_path, "b.safetensors")
    shutil.copy(FIXTURES / "plain.pt", tmp_path / "a.pt")
    results = [*fold_files([tmp_path / "*"], jobs=1, require_layers=1)]
    assert [result.state for result in results] == ["lacking", "done"]
    assert isinstance(results[0].error, TooFewLayersError)
    assert exit_code_of(results) == 1
    assert [*states(fold_files([tmp_path / "a.pt"], jobs=1)).values()] == ["nothing"]


class Failing(Executor):
    """An executor whose jobs end with an error that is none of ours."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def submit(self, _: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ARG002 - as all have it
        future: Future[Any] = Future()
        future.set_exception(self.error)
        return future


def test_a_bug_is_raised_and_no_result() -> None:
    with pytest.raises(KeyError):
        [*fold_files([FIXTURES / "gan.pt"], jobs=1, executor=Failing(KeyError("x")), keep_going=True)]


def test_what_is_there_is_an_error_or_skipped_or_replaced(tmp_path: Path) -> None:
    put(tmp_path, "a.safetensors", "b.safetensors")
    out = tmp_path / "out"
    assert [*states(fold_files([tmp_path / "a*"], out, jobs=1)).values()] == ["done"]
    (result,) = fold_files([tmp_path / "a*"], out, jobs=1)
    assert isinstance(result.error, OutputError)
    skipped = fold_files([tmp_path / "*"], out, jobs=1, skip_existing=True)
    assert states(skipped) == {"a.safetensors": "skipped", "b.safetensors": "done"}
    assert [*states(fold_files([tmp_path / "*"], out, jobs=1, force=True)).values()] == ["done", "done"]


def test_a_dry_run_writes_nothing_no_report_either(tmp_path: Path) -> None:
    put(tmp_path, "a.safetensors", "b.safetensors")
    report = tmp_path / "r.jsonl"
    planned = fold_files([tmp_path / "*"], tmp_path / "out", dry_run=True, report=report)
    assert {*states(planned).values()} == {"planned"}
    assert len([*tmp_path.iterdir()]) == 2


def test_a_worker_that_is_killed_is_an_error_that_says_so(tmp_path: Path) -> None:
    broken = Failing(BrokenProcessPool("ended"))
    put(tmp_path, "a.safetensors", "b.safetensors")
    (result,) = fold_files([tmp_path / "*"], jobs=1, executor=broken, keep_going=True)
    assert "ended from outside" in str(result.error)


# -- in place


def test_in_place_many_are_written_over_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    put(tmp_path, "a.safetensors", "b.safetensors")
    report = tmp_path / "r.jsonl"

    def run() -> dict[str, str]:
        return states(fold_files([tmp_path / "*.safetensors"], jobs=1, in_place=True, report=report))

    assert run() == {"a.safetensors": "done", "b.safetensors": "done"}
    assert wnconvert.inspect_file(tmp_path / "a.safetensors").fold == "nothing to fold"
    assert run() == {"a.safetensors": "skipped", "b.safetensors": "skipped"}
    put(tmp_path, "a.safetensors")
    assert run() == {"a.safetensors": "done", "b.safetensors": "skipped"}


# -- the report


@pytest.fixture
def three(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    put(folder, "a.safetensors", "b.safetensors")
    shutil.copy(FIXTURES / "plain.pt", folder / "c.pt")
    return folder


def folded(folder: Path, **options: Any) -> dict[str, str]:
    out, report = folder.parent / "out", folder.parent / "r.jsonl"
    return states(fold_files([folder / "*"], out, jobs=1, keep_going=True, report=report, **options))


def test_the_report_has_a_line_for_each_file(three: Path) -> None:
    shutil.copy(BAD, three / "d.safetensors")
    folded(three)
    report = lines(three.parent / "r.jsonl")
    assert {name: line["state"] for name, line in report.items()} == {
        "a.safetensors": "done", "b.safetensors": "done", "c.pt": "nothing", "d.safetensors": "failed",
    }  # fmt: skip
    line = report["a.safetensors"]
    output = three.parent / "out" / "a.folded.safetensors"
    assert line["output"] == str(output)
    assert line["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    found = (three / "a.safetensors").stat()
    assert (line["size"], line["mtime_ns"]) == (found.st_size, found.st_mtime_ns)
    assert (line["layers"], line["error"], line["verb"]) == (1, None, "fold")
    assert any(note.startswith("nothing to fold") for note in report["c.pt"]["notes"])
    assert report["d.safetensors"]["error"]["fix"].startswith("--zero-rows zero")
    assert not (three.parent / "r.jsonl.begun").exists()


def test_a_second_run_does_what_changed_what_failed_and_what_is_new(three: Path) -> None:
    shutil.copy(BAD, three / "d.safetensors")
    folded(three)
    before = (three.parent / "out" / "a.folded.safetensors").read_bytes()
    put(three, "x.safetensors", "a.safetensors")  # other numbers, a later time
    (three.parent / "out" / "b.folded.safetensors").unlink()
    assert folded(three) == {
        "a.safetensors": "done", "b.safetensors": "done", "c.pt": "skipped", "d.safetensors": "failed",
        "x.safetensors": "done",
    }  # fmt: skip
    assert (three.parent / "out" / "a.folded.safetensors").read_bytes() != before
    assert len(lines(three.parent / "r.jsonl")) == 5
    again = folded(three)
    assert again.pop("d.safetensors") == "failed"
    assert {*again.values()} == {"skipped"}


def test_what_somebody_else_wrote_in_the_place_of_an_output_is_not_replaced(three: Path) -> None:
    folded(three)
    output = three.parent / "out" / "a.folded.safetensors"
    output.write_bytes(b"x" * output.stat().st_size)
    put(three, "a.safetensors")
    assert folded(three)["a.safetensors"] == "failed"
    assert output.read_bytes()[:1] == b"x"


def test_other_options_or_another_output_are_other_work(three: Path) -> None:
    folded(three)
    assert {*folded(three).values()} == {"skipped"}
    assert folded(three, threads=1)["a.safetensors"] == "skipped"
    assert folded(three, dtype="float32")["a.safetensors"] == "done"
    report = three.parent / "r.jsonl"
    elsewhere = fold_files([three / "a*"], three.parent / "other", jobs=1, report=report)
    assert [*states(elsewhere).values()] == ["done"]


def test_a_line_that_was_cut_off_is_done_again_and_a_foreign_file_is_refused(three: Path) -> None:
    folded(three)
    report = three.parent / "r.jsonl"
    text = report.read_text()
    report.write_text(text[: len(text) - 20])  # within the line of c.pt
    assert folded(three) == {"a.safetensors": "skipped", "b.safetensors": "skipped", "c.pt": "nothing"}
    assert len(lines(report)) == 3
    report.write_text('{"loss": 1}\n')
    with pytest.raises(InputError, match="its line 1 is not of a report of wnconvert"):
        folded(three)
    assert report.read_text() == '{"loss": 1}\n'


def test_a_report_is_taken_up_from_another_folder(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folded(three)
    monkeypatch.chdir(three)
    report = Path("..") / "r.jsonl"
    again = fold_files(["a.safetensors"], Path("..") / "out", jobs=1, report=report)
    assert [*states(again).values()] == ["skipped"]


def test_inspections_are_reported_with_what_was_found(three: Path) -> None:
    report = three.parent / "r.jsonl"
    for _ in range(2):
        results = [*inspect_files([three / "*"], report=report)]
        assert [result.layers for result in results[:2]] == [1, 1]
        assert len(results) == 3
        assert lines(report)["a.safetensors"]["inspection"]["fold"] == "would make 1 plain weight"


# -- killed


def begun(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "wnconvert", "fold", "-r", "in", "-o", "out", "--report", "r.jsonl"]
    return subprocess.Popen(
        [*command, *more],
        cwd=folder,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def left_in(session: int) -> list[str]:
    """The processes of a session that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            state, _, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(of) == session and state != "Z":
            found.append(entry.name)
    return found


@pytest.mark.alone
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_run_that_is_killed_at_any_point_is_taken_up_and_loses_only_what_was_in_work(
    jobs: str, tmp_path: Path
) -> None:
    names = [f"{at}.safetensors" for at in range(40)]
    put(tmp_path / "in", *names)
    report = tmp_path / "r.jsonl"
    kept: dict[str, Any] = {}
    for least in (1, 10, 25):
        process = begun(tmp_path, "--jobs", jobs)
        until = time.monotonic() + 120
        while (report.read_text().count("\n") if report.exists() else 0) < least:
            assert time.monotonic() < until
            assert process.poll() is None or least <= len(lines(report))
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        while left_in(process.pid):  # the processes that worked for it end with it
            assert time.monotonic() < until
            time.sleep(0.01)
        written = {name: line for name, line in lines_whole(report).items() if line["state"] == "done"}
        assert {name: written[name]["sha256"] for name in kept} == {n: kept[n]["sha256"] for n in kept}
        kept = written
        assert len(kept) >= least
    process = begun(tmp_path, "--jobs", jobs)
    assert process.wait() == 0
    done = lines(report)
    assert sorted(done) == sorted(names)
    for name in names:
        output = tmp_path / "out" / f"{Path(name).stem}.folded.safetensors"
        assert done[name]["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
        if name in kept:  # it was not done again
            assert done[name] == kept[name]
    assert not report.with_name("r.jsonl.begun").exists()


def lines_whole(report: Path) -> dict[str, dict[str, Any]]:
    """The lines of a report that was cut off anywhere, less the one that is not whole."""
    *whole, _ = report.read_text().split("\n")
    return {Path(line["source"]).name: line for line in map(json.loads, whole)}


def test_of_a_killed_run_only_outputs_that_it_began_are_replaced(three: Path) -> None:
    out, report = three.parent / "out", three.parent / "r.jsonl"
    out.mkdir()
    for name in "ab":
        (out / f"{name}.folded.safetensors").write_bytes(b"half")
    report.write_bytes(b"")
    report.with_name("r.jsonl.begun").write_text(
        json.dumps({"output": str(out / "a.folded.safetensors")}) + '\n{"output": "cut o'
    )
    assert folded(three) == {"a.safetensors": "done", "b.safetensors": "failed", "c.pt": "nothing"}


def test_a_job_says_what_it_is() -> None:
    job = FileJob("a.pt", "fold", "a.folded.pt")
    assert job.key == str(Path.cwd() / "a.pt")
    result = FileResult("a.pt", "fold", "done", "a.folded.pt", 2)
    assert repr(result) == "FileResult: fold a.pt: done, 2 layers\n  a.folded.pt"


def test_outputs_are_looked_at_several_at_a_time_and_told_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at a store takes a while: four here wait for each other."""
    together = threading.Barrier(4, timeout=60)

    def is_there(_: str) -> bool:
        together.wait()
        return True

    monkeypatch.setattr("wnconvert.verbs.fleet.fleet.is_there", is_there)
    sources = put(tmp_path, *(f"{at}.safetensors" for at in range(8)))
    results = [*fold_files(sources, tmp_path / "out", jobs=1, skip_existing=True)]
    assert [result.state for result in results] == ["skipped"] * 8
    assert [result.source for result in results] == [str(source) for source in sources]


def test_workers_have_the_environment_of_their_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("first", "second"):  # the process that forks them goes on from one run to the next
        monkeypatch.setenv("WNCONVERT_TRIED", value)
        with opened_workplace(2) as place:
            assert place.executor.submit(os.getenv, "WNCONVERT_TRIED").result() == value


def test_a_folder_that_is_made_for_outputs_that_fail_goes_again(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "bad.pt").write_bytes(b"none")
    for out in ("new/below", "kept"):
        (result,) = migrate_files([tmp_path / "bad.pt"], tmp_path / out, jobs=1)
        assert result.state == "failed"
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "kept").is_dir()
