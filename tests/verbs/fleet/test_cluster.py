"""Many files on a cluster of dask.distributed: a scheduler and three workers, one of which is killed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from distributed import Client
from safetensors.numpy import save_file

from tests.helpers.clusters import dask_cluster
from tests.helpers.tool import run_here
from tests.verbs.fleet.test_shards import SIZE, content, sharded
from wnconvert import fold_file
from wnconvert.errors import ArgumentError, InputError
from wnconvert.verbs.fleet.files import fold_files

FILES = 24


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    with dask_cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found


def put(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for at in range(FILES):
        v = rng.standard_normal((1024, 2048), np.float32)
        save_file(
            {"a.weight_g": np.ones((1024, 1), np.float32), "a.weight_v": v}, folder / f"{at}.safetensors"
        )


@pytest.mark.alone
def test_a_worker_that_is_killed_while_it_works_loses_nothing_and_does_nothing_twice(
    cluster: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path
) -> None:
    address, workers = cluster
    put(tmp_path / "in")
    report = tmp_path / "r.jsonl"
    results = fold_files([tmp_path / "in" / "*"], tmp_path / "out", cluster=address, report=report)
    done = [next(results)]
    with Client(address, set_as_default=False) as client:
        info: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
        (victim,) = (at for at, worker in info.items() if str(worker["id"]) == "0")
        until = time.monotonic() + 60
        while not client.processing()[victim]:
            done.append(next(results))
            assert time.monotonic() < until
        os.kill(workers[0].pid, signal.SIGKILL)
    done += results
    assert [result.state for result in done] == ["done"] * FILES
    assert len({result.source for result in done}) == FILES
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert len(lines) == FILES
    for line in lines:
        written = Path(line["output"]).read_bytes()
        assert line["sha256"] == hashlib.sha256(written).hexdigest()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    made = {f"{at}.folded.safetensors" for at in range(FILES)}
    assert made <= names
    # A killed process leaves its temporary file, which the next run names, and --clean deletes.
    assert len(names - made) <= 1
    assert all(name.endswith(".tmp") for name in names - made)


@pytest.mark.alone
def test_what_is_there_is_not_replaced_by_a_cluster_either(
    cluster: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path
) -> None:
    put(tmp_path / "in")
    (tmp_path / "out").mkdir()
    there = tmp_path / "out" / "3.folded.safetensors"
    there.write_bytes(b"mine")
    asked = ["--cluster", cluster[0], "--keep-going", "--json"]
    ended = run_here("fold", "in/3.safetensors", "in/4.safetensors", "-o", "out", *asked, folder=tmp_path)
    assert ended.returncode == 2
    assert {Path(it["source"]).name: it["state"] for it in json.loads(ended.stdout)["files"]} == {
        "3.safetensors": "failed",
        "4.safetensors": "done",
    }
    assert there.read_bytes() == b"mine"


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "tcp://", "none"])
def test_where_no_scheduler_answers_that_is_said_and_no_thread_is_left(tmp_path: Path, address: str) -> None:
    put(tmp_path / "in")
    threads = threading.active_count()
    with pytest.raises(InputError, match=rf"{re.escape(address)}: no scheduler of dask answers there"):
        [*fold_files([tmp_path / "in" / "*"], cluster=address)]
    assert threading.active_count() == threads
    assert not list(tmp_path.glob("in/*.folded.*"))


def test_without_ray_its_cluster_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "in")
    monkeypatch.setitem(sys.modules, "ray", None)
    for address in ("ray", "ray://127.0.0.1:10001"):
        with pytest.raises(ArgumentError, match="--cluster ray needs ray, which is not installed"):
            [*fold_files([tmp_path / "in" / "*"], cluster=address)]


def test_a_cluster_of_ray_is_given_jobs_and_ends_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its door, with the few calls that are made of it; ``tests/packages/test_ray.py`` has ray itself."""
    put(tmp_path / "in")
    asked: list[object] = []
    with ThreadPoolExecutor(2) as executor:

        class Remote:
            def __init__(self, function: Any) -> None:
                self.function = function

            def remote(self, *given: Any) -> Any:
                return SimpleNamespace(future=lambda: executor.submit(self.function, *given))

        ray = ModuleType("ray")
        ray.__dict__.update(
            init=lambda address, **_: asked.append(address),
            cluster_resources=lambda: {"CPU": 2.0},
            remote=Remote,
            shutdown=lambda: asked.append("ended"),
        )
        monkeypatch.setitem(sys.modules, "ray", ray)
        results = [*fold_files([tmp_path / "in" / "1*"], tmp_path / "out", cluster="ray")]
    assert {result.state for result in results} == {"done"}
    assert asked == ["auto", "ended"]


class _WorkerCrashedError(Exception):
    __module__ = "ray.exceptions"


class RayTaskErrorOfAKind(Exception):  # noqa: N818 - as it is called there
    """What ray makes of an error of the job itself."""

    __module__ = "ray.exceptions"


def test_a_worker_of_ray_that_is_lost_is_a_row_and_a_bug_in_it_is_raised(tmp_path: Path) -> None:
    class Failing(Executor):
        def __init__(self, error: Exception) -> None:
            self.error = error

        def submit(self, _: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ARG002 - as all have it
            future: Future[Any] = Future()
            future.set_exception(self.error)
            return future

    put(tmp_path / "in")
    source = [tmp_path / "in" / "1.safetensors"]
    (lost,) = fold_files(source, jobs=1, executor=Failing(_WorkerCrashedError()))
    assert "ended from outside" in str(lost.error)
    with pytest.raises(RayTaskErrorOfAKind):
        [*fold_files(source, jobs=1, executor=Failing(RayTaskErrorOfAKind()))]


@pytest.mark.alone
def test_the_shards_of_a_folder_survive_a_worker_that_is_killed(
    cluster: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path
) -> None:
    address, workers = cluster
    source = sharded(tmp_path / "model", 40)
    with Client(address, set_as_default=False) as client:
        info: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
        (victim,) = (at for at, worker in info.items() if str(worker["id"]) == "1")
        results = fold_files(
            [source], tmp_path / "out", cluster=address, max_shard_size=SIZE, dtype="float16"
        )
        with ThreadPoolExecutor(1) as beside:
            done = beside.submit(list, results)
            until = time.monotonic() + 60
            while not done.done() and not client.processing().get(victim):
                assert time.monotonic() < until
            os.kill(workers[1].pid, signal.SIGKILL)
            (result,) = done.result()
    assert (result.state, result.layers) == ("done", 40)
    fold_file(source, tmp_path / "alone", max_shard_size=SIZE, dtype="float16")
    assert content(Path(str(result.output))) == content(tmp_path / "alone")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.folded"]
