"""Many files in buckets of real servers: found by patterns, written into buckets, taken up again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.helpers.golden import FIXTURES
from tests.helpers.runner import listing
from tests.helpers.tool import run_here
from tests.storage.remote.conftest import Bucket
from wnconvert import fold_file, path_on
from wnconvert.errors import ArgumentError, InputError, WnconvertError
from wnconvert.storage.stores.remote import patience
from wnconvert.verbs.fleet.files import fold_files, inspect_files
from wnconvert.verbs.fleet.sources import sources_of


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between attempts."""
    monkeypatch.setattr(patience, "_PAUSE", 0.001)


def put(folder: Path, *names: str, number: float = 1.0, rows: int = 2) -> None:
    """Checkpoints of one layer each."""
    for at, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        v = np.arange(1, 3 * rows + 1, dtype=np.float32).reshape(rows, 3) + at
        save_file({"a.weight_g": np.full((rows, 1), number, np.float32), "a.weight_v": v}, path)


def states(results: Any) -> dict[str, str]:
    return {result.source.rpartition("/")[2]: result.state for result in results}


def test_patterns_are_read_and_outputs_keep_the_tree_below_the_common_root(
    anywhere: Bucket, tmp_path: Path
) -> None:
    put(anywhere.folder, "runs/a.safetensors", "runs/x/b.safetensors", "runs/x/y/c.safetensors", "other/d.pt")
    (anywhere.folder / "runs" / "log.txt").write_text("no checkpoint")
    out = f"{anywhere.address}/out"
    results = fold_files([f"{anywhere.address}/runs/**/*.safetensors"], out, jobs=1)
    assert {result.state for result in results} == {"done"}
    written = listing(anywhere.folder / "out")
    assert sorted(written) == [
        "a.folded.safetensors",
        "x/b.folded.safetensors",
        "x/y/c.folded.safetensors",
    ]
    for name, data in written.items():
        source = anywhere.folder / "runs" / name.replace(".folded", "")
        fold_file(source, tmp_path / "alone.safetensors", force=True)
        assert data == (tmp_path / "alone.safetensors").read_bytes()
    found = [result.source for result in inspect_files([f"{anywhere.address}/runs"], recursive=True)]
    assert [name.removeprefix(f"{anywhere.address}/runs/") for name in found] == [
        "a.safetensors",
        "x/b.safetensors",
        "x/y/c.safetensors",
    ]


def test_names_are_found_by_lists_alone(bucket: Bucket) -> None:
    put(bucket.folder, *(f"runs/{run}/{step}.safetensors" for run in range(3) for step in range(20)))
    bucket.proxy.asked.requests.clear()
    assert len(sources_of([f"{bucket.address}/runs/**/*.safetensors"])) == 60
    # Whether the pattern is a name itself; then each of the four folders, as it is and with what is below it.
    assert len(bucket.proxy.asked.requests) <= 2 + 2 * 4
    bucket.proxy.asked.requests.clear()
    assert len(sources_of([f"{bucket.address}/runs"], recursive=True)) == 60
    assert len(bucket.proxy.asked.requests) <= 8


def test_a_second_run_does_what_is_new_or_another_object_now(anywhere: Bucket, tmp_path: Path) -> None:
    put(anywhere.folder, "in/a.safetensors", "in/b.safetensors")
    report, out = tmp_path / "r.jsonl", f"{anywhere.address}/out"

    def run() -> dict[str, str]:
        return states(fold_files([f"{anywhere.address}/in/*"], out, jobs=1, report=report, keep_going=True))

    assert run() == {"a.safetensors": "done", "b.safetensors": "done"}
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert all(line["tag"] and not line["mtime_ns"] for line in lines)
    assert len({line["tag"] for line in lines}) == 2
    before = listing(anywhere.folder / "out")
    assert run() == {"a.safetensors": "skipped", "b.safetensors": "skipped"}
    assert listing(anywhere.folder / "out") == before
    put(anywhere.folder, "in/a.safetensors", "in/c.safetensors", number=2.0)  # as large as before
    assert run() == {"a.safetensors": "done", "b.safetensors": "skipped", "c.safetensors": "done"}
    after = listing(anywhere.folder / "out")
    assert after["a.folded.safetensors"] != before["a.folded.safetensors"]
    assert after["b.folded.safetensors"] == before["b.folded.safetensors"]


def test_a_folder_in_a_store_whose_shards_change_is_done_again(bucket: Bucket, tmp_path: Path) -> None:
    hub = bucket.folder / "in" / "hub"
    shutil.copytree(FIXTURES / "sharded", hub)
    report = tmp_path / "r.jsonl"

    def run(out: str) -> list[str]:
        found = fold_files([f"{bucket.address}/in"], tmp_path / out, jobs=1, recursive=True, report=report)
        return [result.state for result in found]

    assert run("out") == ["done"]
    assert run("out") == ["skipped"]
    shard = next(hub.glob("model-00001*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert run("out") == ["done"]


def test_what_is_there_is_an_error_or_skipped(anywhere: Bucket) -> None:
    put(anywhere.folder, "in/a.safetensors", "in/b.safetensors")
    (anywhere.folder / "out").mkdir()
    (anywhere.folder / "out" / "a.folded.safetensors").write_bytes(b"mine")
    pattern, out = f"{anywhere.address}/in/*", f"{anywhere.address}/out"
    assert states(fold_files([pattern], out, jobs=1)) == {"a.safetensors": "failed"}
    skipped = states(fold_files([pattern], out, jobs=1, skip_existing=True))
    assert skipped == {"a.safetensors": "skipped", "b.safetensors": "done"}
    assert (anywhere.folder / "out" / "a.folded.safetensors").read_bytes() == b"mine"


def test_an_object_that_vanishes_after_the_list_is_one_row_and_the_others_go_on(anywhere: Bucket) -> None:
    put(anywhere.folder, *(f"in/{name}.safetensors" for name in "abc"))
    results = fold_files([f"{anywhere.address}/in/*"], f"{anywhere.address}/out", jobs=1, keep_going=True)
    first = next(iter(results))
    (anywhere.folder / "in" / "b.safetensors").unlink()
    rest = {result.source.rpartition("/")[2]: result for result in results}
    assert first.state == rest["c.safetensors"].state == "done"
    gone = rest["b.safetensors"].error
    assert isinstance(gone, WnconvertError)
    assert gone.lines == [f"{anywhere.address}/in/b.safetensors: there is no such file"]


def test_what_may_not_be_read_is_one_row(bucket: Bucket) -> None:
    put(bucket.folder, "in/a.safetensors", "in/b.safetensors")
    sources = [f"{bucket.address}/in/a.safetensors", f"{bucket.address}/in/b.safetensors"]
    bucket.proxy.always, bucket.proxy.only = "403", "in/a.safetensors"
    results = {it.source: it for it in fold_files(sources, f"{bucket.address}/out", jobs=1, keep_going=True)}
    assert "access is forbidden" in str(results[sources[0]].error)
    assert results[sources[1]].state == "done"


def test_a_bucket_that_is_not_there_is_named_before_anything_begins(bucket: Bucket) -> None:
    del bucket
    with pytest.raises(InputError, match="there is no bucket nobody"):
        [*fold_files(["s3://nobody/**/*.pt"], jobs=1)]


def test_processes_share_the_work_and_a_killed_run_is_taken_up(bucket: Bucket, tmp_path: Path) -> None:
    names = [f"in/{at}.safetensors" for at in range(12)]
    put(bucket.folder, *names, rows=2000)
    asked = [
        "fold",
        f"{bucket.address}/in/*",
        "-o",
        f"{bucket.address}/out",
        "--report",
        "r.jsonl",
        "--jobs",
        "2",
    ]
    report = tmp_path / "r.jsonl"
    with subprocess.Popen(
        [sys.executable, "-m", "wnconvert", *asked],
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        until = time.monotonic() + 120
        while not report.exists() or report.read_text().count("\n") < 3:
            assert time.monotonic() < until
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    kept = {line["source"]: line for line in map(json.loads, report.read_text().split("\n")[:-1])}
    ended = run_here(*asked, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    done = {line["source"]: line for line in map(json.loads, report.read_text().splitlines())}
    assert len(done) == len(names)
    assert {name: done[name] for name in kept} == kept
    written = listing(bucket.folder / "out")
    assert len(written) == len(names)
    for name in names:
        fold_file(bucket.folder / name, tmp_path / "alone.safetensors", force=True)
        output = f"{Path(name).stem}.folded.safetensors"
        assert written[output] == (tmp_path / "alone.safetensors").read_bytes()


def test_file_addresses_may_be_patterns(tmp_path: Path) -> None:
    put(tmp_path, "in/a.safetensors", "in/x/b.safetensors")
    results = fold_files([f"file://{tmp_path}/in/**/*.safetensors"], f"file://{tmp_path}/out", jobs=1)
    assert states(results) == {"a.safetensors": "done", "b.safetensors": "done"}
    assert sorted(listing(tmp_path / "out")) == ["a.folded.safetensors", "x/b.folded.safetensors"]


def test_a_file_system_that_is_open_is_read_in_this_process_alone(tmp_path: Path) -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    for name in ("a", "x/b"):
        system.pipe(f"/fleet/{name}.pt", (FIXTURES / "gan.pt").read_bytes())
    pattern = path_on(system, "/fleet/**/*.pt")
    assert states(fold_files([pattern], tmp_path / "out")) == {"a.pt": "done", "b.pt": "done"}
    assert sorted(listing(tmp_path / "out")) == ["a.folded.pt", "x/b.folded.pt"]
    with pytest.raises(ArgumentError, match="opened in this process"):
        fold_files([pattern], tmp_path / "other", jobs=2)
