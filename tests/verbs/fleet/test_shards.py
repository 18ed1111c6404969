"""A folder of shards is one job for each shard: the same bytes, whole or not at all, on any executor."""

from __future__ import annotations

import json
import os
import pickle
import signal
import threading
from collections import Counter
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import wnconvert
from tests.verbs.fleet.test_runs import put
from wnconvert.errors import FormatError, NumbersError, WnconvertError
from wnconvert.verbs.conversion.folders.shards import ShardJob, write_shard
from wnconvert.verbs.fleet.executors import _Shared
from wnconvert.verbs.fleet.files import fold_files, inspect_files, migrate_files, split_files
from wnconvert.verbs.fleet.jobs import FileJob

INDEX = "model.safetensors.index.json"
SIZE = 500_000


def sharded(folder: Path, count: int = 4, *, zero_in: tuple[int, ...] = ()) -> Path:
    """A folder of so many shards: g of each layer stands in the one behind that of its v."""
    rng = np.random.default_rng(count)
    names = [f"model-{at + 1:05}-of-{count:05}.safetensors" for at in range(count)]
    shards: dict[str, dict[str, Any]] = {name: {} for name in names}
    for at, name in enumerate(names):
        v = rng.standard_normal((96, 1024), np.float32)
        if at in zero_in:
            v[3] = 0
        shards[name][f"l{at}.weight_v"] = v
        shards[names[at - 1]][f"l{at}.weight_g"] = rng.standard_normal((96, 1), np.float32)
    folder.mkdir(parents=True)
    for name, tensors in shards.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    (folder / "model-00001-of-00004.txt").write_text("no weights")
    return folder


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of a folder, and its mode."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mode)
        for path in folder.rglob("*")
        if path.is_file()
    }


class Telling(ThreadPoolExecutor):
    """An executor that is not ours, what it was asked to do, and how much at a time."""

    def __init__(self) -> None:
        super().__init__(8)
        self.asked: Counter[str] = Counter()
        self.open: list[Future[Any]] = []
        self.most = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.asked[getattr(fn, "__name__", "another")] += 1
        self.open = [future for future in self.open if not future.done()]
        self.open.append(super().submit(fn, *args, **kwargs))
        self.most = max(self.most, len(self.open))
        return self.open[-1]


# -- what is written


@pytest.mark.parametrize("options", [{}, {"dtype": "float16"}, {"max_shard_size": "800KB"}])
def test_each_shard_is_a_job_and_the_folder_is_the_same_as_of_one(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """A layer's g and v stand in two files, and the files that are written are others than those read."""
    source = sharded(tmp_path / "model")
    options = {"max_shard_size": SIZE} | options
    with Telling() as executor:
        (result,) = fold_files([source], tmp_path / "out", executor=executor, jobs=3, **options)
    alone = wnconvert.fold_file(source, tmp_path / "alone", **options)
    assert (result.state, result.layers, result.notes) == ("done", 4, alone.notes)
    made = Path(str(result.output))
    assert content(made) == content(tmp_path / "alone")
    count = len([*made.glob("*.safetensors")])
    assert count > 1
    assert executor.asked == {"write_shard": count}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.folded"]


@pytest.mark.parametrize("named", ["folder", "index"])
def test_processes_share_the_shards_of_one_folder(named: str, tmp_path: Path) -> None:
    source = sharded(tmp_path / "model")
    asked = source if named == "folder" else source / INDEX
    (result,) = fold_files([asked], tmp_path / "out", jobs=2, max_shard_size=SIZE, verify=True)
    wnconvert.fold_file(source, tmp_path / "alone", max_shard_size=SIZE)
    assert content(Path(str(result.output))) == content(tmp_path / "alone")


def test_split_and_migrate_share_shards_too_and_in_place(tmp_path: Path) -> None:
    source = sharded(tmp_path / "model")
    before = content(source)
    with Telling() as executor:
        run: dict[str, Any] = {"executor": executor, "jobs": 3, "max_shard_size": SIZE}
        (moved,) = migrate_files([source], tmp_path / "m", **run)
        (folded,) = fold_files([source], tmp_path / "f", **run)
        (cut,) = split_files([Path(str(folded.output))], tmp_path / "s", to="legacy", **run)
        back = wnconvert.migrate_file(str(moved.output), tmp_path / "b", to="legacy", max_shard_size=SIZE)
        assert content(source) == before
        (there,) = fold_files([source], in_place=True, **run)
    for result in (moved, folded, cut, there):
        assert (result.state, result.error) == ("done", None)
    assert {*executor.asked} == {"write_shard"}
    assert back.output is not None
    assert {"l0.weight_g", "l0.weight_v"} <= names_in(Path(str(cut.output))) & names_in(Path(back.output))
    assert names_in(source) == {f"l{at}.weight" for at in range(4)}


def names_in(folder: Path) -> set[str]:
    return {name for path in folder.glob("*.safetensors") for name in load_file(path)}


def pipeline(folder: Path) -> Path:
    """A pipeline of two components of several files each."""
    sharded(folder / "unet", 2)
    sharded(folder / "vocoder", 3)
    listed = {part: ["diffusers", "Model"] for part in ("unet", "vocoder")}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "P", **listed}))
    return folder


def test_a_pipelines_components_are_jobs_beside_each_other(tmp_path: Path) -> None:
    pipe = pipeline(tmp_path / "pipe")
    with Telling() as executor:
        (result,) = fold_files([pipe], tmp_path / "out", executor=executor, jobs=2, max_shard_size=SIZE)
    wnconvert.fold_file(pipe, tmp_path / "alone", max_shard_size=SIZE)
    assert content(Path(str(result.output))) == content(tmp_path / "alone")
    assert executor.asked == {"write_shard": 5}


def test_files_and_shards_together_are_no_more_than_were_asked_for(tmp_path: Path) -> None:
    put(tmp_path / "in", *(f"{at}.safetensors" for at in range(6)))
    for name in ("a", "b", "c"):
        pipeline(tmp_path / "in" / name)
    with Telling() as executor:
        found = fold_files([tmp_path / "in"], tmp_path / "out", executor=executor, jobs=3, recursive=True)
        assert {result.state for result in found} == {"done"}
    assert executor.asked == {"run_job": 6, "write_shard": 3 * 2}
    assert 2 <= executor.most <= 3


# -- what is none


@pytest.mark.parametrize(
    ("what", "jobs"),
    [("one file", 3), ("a folder of one file", 3), ("a dry run", 3), ("one job", 1)],
)
def test_what_has_no_shards_to_share_is_one_job(what: str, jobs: int, tmp_path: Path) -> None:
    (alone,) = put(tmp_path, "alone/model.safetensors")
    several = sharded(tmp_path / "model")
    source = {"one file": alone, "a folder of one file": alone.parent}.get(what, several)
    run: dict[str, Any] = {"jobs": jobs, "dry_run": what == "a dry run"}
    with Telling() as executor:
        (result,) = fold_files([source], tmp_path / "out", executor=executor, **run)
    assert result.error is None
    assert executor.asked == {"run_job": 1}


def test_a_folder_that_becomes_a_file_or_an_object_has_no_shards_to_share(tmp_path: Path) -> None:
    source = str(sharded(tmp_path / "model"))

    def shares(output: str) -> bool:
        return FileJob(source, "fold", output, is_folder=True).has_shards

    assert [shares(f"{tmp_path}/{name}") for name in ("out", "out.pt", "out.safetensors")] == [
        True,
        False,
        False,
    ]
    assert not shares("s3://bucket/out")


def test_an_inspection_of_a_folder_is_one_job(tmp_path: Path) -> None:
    with Telling() as executor:
        (result,) = inspect_files([sharded(tmp_path / "model")], executor=executor, jobs=3)
    assert result.inspection is not None
    assert executor.asked == {"run_job": 1}


# -- whole or not at all


def test_bad_numbers_in_several_shards_are_told_at_once_and_nothing_is_left(tmp_path: Path) -> None:
    source = sharded(tmp_path / "model", zero_in=(0, 3))
    with Telling() as executor:
        (result,) = fold_files([source], tmp_path / "out", executor=executor, jobs=3, max_shard_size=SIZE)
    with pytest.raises(NumbersError) as alone:
        wnconvert.fold_file(source, tmp_path / "alone", max_shard_size=SIZE)
    assert str(result.error) == str(alone.value)
    assert "l0" in str(result.error)
    assert "l3" in str(result.error)
    assert not (tmp_path / "out").exists()


class Failing(Telling):
    """An executor one of whose jobs fails, or the process of it does."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.asked["write_shard"] == 2:
            fn = partial(_raise, self.error)
        return super().submit(fn, *args, **kwargs)


def _raise(error: Exception, *_: object) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (FormatError("it changed", where="x"), "it changed"),
        (MemoryError(), "not enough memory"),
        (BrokenProcessPool("killed"), "ended from outside"),
    ],
)
def test_where_one_shard_fails_the_old_folder_stays_and_nothing_else(
    error: Exception, says: str, tmp_path: Path
) -> None:
    source = sharded(tmp_path / "model", 6)
    run: dict[str, Any] = {"jobs": 2, "max_shard_size": SIZE, "force": True}
    with Telling() as executor:
        [*fold_files([source], tmp_path / "out", executor=executor, **run)]
    before = content(tmp_path / "out")
    with Failing(error) as executor:
        (result,) = fold_files([source], tmp_path / "out", executor=executor, dtype="float16", **run)
    assert says in str(result.error)
    assert content(tmp_path / "out") == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.folded"]


def test_a_shard_that_was_written_to_meanwhile_is_an_error(tmp_path: Path) -> None:
    source = sharded(tmp_path / "model")

    class Changing(Telling):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            os.utime(next(source.glob("model-00003*")), (0, 0))
            return super().submit(fn, *args, **kwargs)

    with Changing() as executor:
        (result,) = fold_files([source], tmp_path / "out", executor=executor, jobs=2, max_shard_size=SIZE)
    assert isinstance(result.error, FormatError)
    assert "model-00003" in str(result.error)
    assert not (tmp_path / "out").exists()


def _ended(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_with_a_shard_leaves_nothing(tmp_path: Path) -> None:
    source = sharded(tmp_path / "model", 6)

    class Killed(Executor):
        def __init__(self, pool: ProcessPoolExecutor) -> None:
            self.pool = pool
            self.count = 0

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            self.count += 1
            return self.pool.submit(_ended if self.count == 3 else fn, *args, **kwargs)

    with ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as pool:
        (result,) = fold_files([source], tmp_path / "out", executor=Killed(pool), jobs=2, max_shard_size=SIZE)
    assert "the process that worked on it was ended from outside" in str(result.error)
    assert not (tmp_path / "out").exists()


def test_a_shard_that_is_done_twice_is_there_once(tmp_path: Path) -> None:
    """A cluster begins a job again whose worker it holds for lost, and that one may be at work still."""
    source = sharded(tmp_path / "model")

    class Twice(Telling):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            fn(*args, **kwargs)
            return super().submit(fn, *args, **kwargs)

    with Twice() as executor:
        (result,) = fold_files([source], tmp_path / "out", executor=executor, jobs=2, max_shard_size=SIZE)
    wnconvert.fold_file(source, tmp_path / "alone", max_shard_size=SIZE)
    assert content(Path(str(result.output))) == content(tmp_path / "alone")


def test_who_stops_asking_for_results_leaves_no_half_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = put(tmp_path, "a/model.safetensors")[0].parent, sharded(tmp_path / "b", 12)
    begun, over = threading.Event(), threading.Event()
    end = _Shared.end

    def ended(shared: _Shared) -> None:
        end(shared)
        over.set()

    monkeypatch.setattr(_Shared, "end", ended)

    class Waiting(Telling):
        """Has what it began of the second folder at work until nobody asks any more."""

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            if isinstance(args[0], ShardJob):
                late = super().submit(partial(self.late, fn), *args, **kwargs)
                begun.set()
                return late
            return super().submit(fn, *args, **kwargs)

        def late(self, fn: Any, *args: Any) -> Any:
            assert over.wait(60)
            return fn(*args)

    with Waiting() as executor:
        run: dict[str, Any] = {"executor": executor, "jobs": 3, "max_shard_size": SIZE}
        found = fold_files([first, second], tmp_path / "out", **run)
        assert next(found).source == str(first)
        assert begun.wait(60)
        found.close()  # type: ignore[attr-defined]  # a generator is what it is
    assert 1 < sum(executor.asked.values()) <= 1 + 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.folded"]


def test_a_job_is_a_small_value_that_travels(tmp_path: Path) -> None:
    source = sharded(tmp_path / "model")
    seen: list[ShardJob] = []

    class Travelling(Telling):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            assert fn is write_shard
            assert len(pickle.dumps(args)) < 10_000
            seen.append(args[0])
            return super().submit(fn, *pickle.loads(pickle.dumps(args)), **kwargs)

    with Travelling() as executor:
        (result,) = fold_files([source], tmp_path / "out", executor=executor, jobs=2, max_shard_size=SIZE)
    assert result.error is None
    assert len({job.path for job in seen}) == len(seen) > 1


def test_what_cannot_be_written_is_the_users_error_and_names_the_folder(tmp_path: Path) -> None:
    source = sharded(tmp_path / "model")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.folded").write_text("a file")
    with Telling() as executor:
        (result,) = fold_files([source], tmp_path / "out", executor=executor, jobs=2, max_shard_size=SIZE)
    assert isinstance(result.error, WnconvertError)
    assert "model.folded" in str(result.error)
    assert (tmp_path / "out" / "model.folded").read_text() == "a file"
