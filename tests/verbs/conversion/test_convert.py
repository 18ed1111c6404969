"""The executor: the same bytes with any number of threads, whole or not at all, whatever happens."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from fixtures import make
from tests.helpers.golden import FIXTURES, ROOT
from wnconvert.errors import ArgumentError, FormatError, NumbersError, OutputError
from wnconvert.numerics.folding import fold_array
from wnconvert.plan.layout import Blob
from wnconvert.storage.sources import Source
from wnconvert.storage.stores import filling
from wnconvert.storage.stores.filling import Filling
from wnconvert.verbs.conversion import executor
from wnconvert.verbs.conversion.files.fold import fold_file
from wnconvert.verbs.shared.options import RunOptions

#: Every fixture, but those with a layer that is refused.
FOLDABLE = sorted(
    name for name in make.FIXTURES if Path(name).stem not in {"float8", "misfit", "stack", "zero_row"}
)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Layers of several blocks in each way of cutting them, beside small ones, strided ones and copies."""
    generator = torch.Generator().manual_seed(0)

    def layer(name: str, shape: tuple[int, ...], dim: int | None) -> dict[str, torch.Tensor]:
        v = torch.randn(shape, generator=generator)
        g = torch.rand([size if axis == dim else 1 for axis, size in enumerate(shape)], generator=generator)
        return {f"{name}.weight_g": g + 0.5, f"{name}.weight_v": v}

    state = layer("rows", (700, 900), 0) | layer("inner", (500, 40, 30), 2) | layer("whole", (700, 800), None)
    state |= layer("long_rows", (2, 400_000), 0)
    for number in range(40):
        state |= layer(f"small.{number}", (5, 4, 3), 0) | {f"small.{number}.bias": torch.zeros(5)}
    state["transposed.weight_v"] = torch.randn((900, 700), generator=generator).t()
    state["transposed.weight_g"] = torch.ones(700, 1)
    state["copied"] = torch.randn(600_000, generator=generator)
    state["copied_transposed"] = torch.randn((600, 700), generator=generator).t()
    path = tmp_path / "large.pt"
    torch.save({"generator": state, "steps": 3}, path)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """One layer of 4 MiB, and 30 tensors of 64 KiB."""
    state = {f"kept.{number}": torch.randn(16_384) for number in range(30)}
    state |= {"conv.weight_g": torch.ones(512, 1), "conv.weight_v": torch.randn(512, 2048)}
    save_file(state, tmp_path / "pair.safetensors")
    return tmp_path / "pair.safetensors"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_same_bytes_with_any_threads(source: Path, out: Path, *counts: int, **options: str) -> None:
    made = []
    for threads in counts or (1, 2, 7):
        fold_file(source, out, threads=threads, force=True, copy=True, **options)  # type: ignore[call-overload]
        made.append(out.read_bytes())
    assert len({*made}) == 1


@pytest.mark.parametrize("name", FOLDABLE)
def test_every_fixture_gives_the_same_bytes_with_1_2_and_7_threads(tmp_path: Path, name: str) -> None:
    suffix = ".onnx" if name.endswith(".onnx") else ".pt"
    assert_same_bytes_with_any_threads(FIXTURES / name, tmp_path / f"out{suffix}")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}])
def test_layers_of_many_blocks_give_the_same_bytes_with_1_2_and_7_threads(
    tmp_path: Path, large: Path, suffix: str, options: dict[str, str]
) -> None:
    assert_same_bytes_with_any_threads(large, tmp_path / f"out{suffix}", **options)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_is_written_past_the_cache_has_the_same_bytes(
    tmp_path: Path, large: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    fold_file(large, tmp_path / f"cached{suffix}")
    monkeypatch.setattr(filling, "_DIRECT_FILE", 0)
    out = tmp_path / f"out{suffix}"
    assert_same_bytes_with_any_threads(large, out, 1, 3, 64)
    assert out.read_bytes() == (tmp_path / f"cached{suffix}").read_bytes()


def test_layers_of_many_blocks_are_folded_as_torch_folds_them(tmp_path: Path, large: Path) -> None:
    fold_file(large, tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    state = torch.load(large)["generator"]
    for name, dim in {
        "rows": 0,
        "inner": 2,
        "whole": -1,
        "long_rows": 0,
        "transposed": 0,
        "small.7": 0,
    }.items():
        v, g = (state[f"{name}.weight_{half}"].double() for half in "vg")
        torch.testing.assert_close(
            found[f"{name}.weight"], torch._weight_norm(v, g, dim).float(), rtol=1e-7, atol=0
        )
    for name in ("copied", "copied_transposed"):
        assert torch.equal(found[name], state[name])


def test_a_file_may_be_folded_in_place(tmp_path: Path, large: Path) -> None:
    fold_file(large, tmp_path / "beside.pt")
    with pytest.raises(OutputError, match="it is the source itself"):
        fold_file(large, large, force=True)
    fold_file(large, in_place=True)
    assert large.read_bytes() == (tmp_path / "beside.pt").read_bytes()
    assert names(tmp_path) == ["beside.pt", "large.pt"]


def test_progress_counts_every_byte_that_is_written_once(tmp_path: Path, large: Path) -> None:
    seen: list[tuple[int, int]] = []
    fold_file(large, tmp_path / "out.pt", progress=lambda done, total: seen.append((done, total)))
    done, totals = [number for number, _ in seen], {total for _, total in seen}
    assert done == sorted(done)
    assert totals == {done[-1]}
    assert (tmp_path / "out.pt").stat().st_size > done[-1] > 0


def test_a_progress_that_fails_ends_the_fold(tmp_path: Path, pair: Path) -> None:
    def fails(_done: int, _total: int) -> None:
        raise RuntimeError("from the caller")

    with pytest.raises(RuntimeError, match="from the caller"):
        fold_file(pair, tmp_path / "out.pt", progress=fails)
    assert names(tmp_path) == ["pair.safetensors"]


# -- what goes wrong in a thread


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_first_error_is_told_and_the_other_threads_stop(
    tmp_path: Path, pair: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    fill, calls, failed = Source.fill, Counter[bool](), threading.Event()

    def fails(self: Source, buffer: memoryview, at: int, shard: int = 0) -> None:
        calls[failed.is_set()] += 1
        if calls.total() == 3:
            failed.set()
            raise FormatError("the third read fails")
        if failed.is_set():
            raise FormatError("a later one")
        time.sleep(0.002)
        fill(self, buffer, at, shard)

    monkeypatch.setattr(Source, "fill", fails)
    before = {*threading.enumerate()}
    with pytest.raises(FormatError, match="the third read fails"):
        fold_file(pair, tmp_path / "out.pt", threads=threads)
    assert calls[True] < threads
    assert names(tmp_path) == ["pair.safetensors"]
    assert {*threading.enumerate()} <= before


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("before", [0, 3], ids=["at words", "across words"])
def test_w_is_the_same_where_it_is_made_in_the_output_and_where_it_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, dtype: str, before: int
) -> None:
    monkeypatch.setattr(filling, "_DIRECT_FILE", 0)
    chance = np.random.default_rng(0)
    v = {
        name: chance.standard_normal((3, rows, 700)).astype(np.float16)
        for name, rows in (("a", 500), ("b", 9))
    }
    g = chance.random((1, 500, 1)).astype(np.float16)
    state: dict[str, NDArray[Any]] = {"0": np.ones(before, np.uint8), "a.weight_v": v["a"], "a.weight_g": g}
    state |= {"b.weight_v": v["b"], "b.weight_g": g[:, :9]}
    # safetensors would put the bytes last
    sizes = [each.nbytes for each in state.values()]
    ends = [*itertools.accumulate(sizes)]
    rows = zip(state, state.values(), sizes, ends, strict=True)
    header = json.dumps(
        {
            name: {
                "dtype": "U8" if name == "0" else "F16",
                "shape": each.shape,
                "data_offsets": [end - size, end],
            }
            for name, each, size, end in rows
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    source, out = tmp_path / "in.safetensors", tmp_path / f"out{suffix}"
    source.write_bytes(
        len(header).to_bytes(8, "little") + header + b"".join(each.tobytes() for each in state.values())
    )
    fold_file(source, out, dtype=dtype, threads=2)
    found = torch.load(out) if suffix == ".pt" else load_file(out)
    for name, rows_of in (("a", g), ("b", g[:, :9])):
        w = fold_array(v[name], rows_of, 1, dtype=dtype)
        assert found[f"{name}.weight"].view(torch.uint8).numpy().tobytes() == w.tobytes()


def test_an_interrupt_stops_every_thread(
    tmp_path: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, calls = executor._Sink.count, Counter[bool]()

    def slow(self: executor._Sink, data: memoryview) -> None:
        calls["interrupted" in names(tmp_path)] += 1
        if calls.total() == 5:
            (tmp_path / "interrupted").touch()
            raise KeyboardInterrupt
        time.sleep(0.01)
        count(self, data)

    monkeypatch.setattr(executor._Sink, "count", slow)
    before = {*threading.enumerate()}
    with pytest.raises(KeyboardInterrupt):
        fold_file(large, tmp_path / "out.pt", threads=4)
    assert calls[True] <= 4
    assert names(tmp_path) == ["interrupted", "large.pt"]
    assert {*threading.enumerate()} <= before


def test_where_no_thread_can_start_one_does_the_work_and_the_bytes_are_the_same(
    tmp_path: Path, pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def made(name: str) -> bytes:
        fold_file(pair, tmp_path / name, threads=2)
        return (tmp_path / name).read_bytes()

    several = made("several.pt")
    monkeypatch.setattr(threading.Thread, "start", fails)
    assert made("one.pt") == several
    assert names(tmp_path) == ["one.pt", "pair.safetensors", "several.pt"]


def test_every_bad_tensor_is_told_at_once(tmp_path: Path) -> None:
    state = {}
    for number in range(12):
        state[f"{number:02}.weight_v"] = torch.zeros(2, 3) if number % 4 else torch.ones(2, 3)
        state[f"{number:02}.weight_g"] = torch.ones(2, 1)
    save_file(state, tmp_path / "in.safetensors")
    with pytest.raises(NumbersError, match="9 tensors") as caught:
        fold_file(tmp_path / "in.safetensors", tmp_path / "out.pt", threads=3)
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:4]] == [
        "layer 01.weight", "layer 02.weight", "layer 03.weight",
    ]  # fmt: skip
    assert names(tmp_path) == ["in.safetensors"]


# -- a source that changes


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_source_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path, large: Path, suffix: str) -> None:
    def truncate(_done: int, _total: int) -> None:
        os.truncate(large, 5000)

    with pytest.raises(FormatError, match="it changed while it was read: it became shorter"):
        fold_file(large, tmp_path / f"out{suffix}", progress=truncate)
    assert names(tmp_path) == ["large.pt"]


def test_a_source_that_goes_while_it_is_read_is_an_error(tmp_path: Path, large: Path) -> None:
    with pytest.raises(FormatError, match="it changed while it was read: it is gone"):
        fold_file(large, tmp_path / "out.pt", progress=lambda done, total: large.unlink(missing_ok=True))
    assert names(tmp_path) == []


# -- the end of the process

SLOW = """
import sys, time
from wnconvert.storage.stores import filling
from wnconvert.cli import main
write = filling.write_at
filling.write_at = lambda *given: time.sleep(1) or write(*given)
sys.argv[0] = "wnconvert"
main()
"""


@pytest.mark.alone
def test_a_fold_that_is_killed_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    # Layers so large that each is written in calls of its own, and small tensors, which are not.
    halves = {
        f"{at}.weight_{half}": torch.rand(64, size)
        for at in range(12)
        for half, size in (("g", 1), ("v", 4096))
    }
    torch.save({"net": halves, "step": 1}, tmp_path / "source.pt")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.helpers.kill_folds",
            tmp_path / "source.pt",
            tmp_path / "folder" / "out.pt",
        ],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # a process with threads should not fork
        capture_output=True,
        text=True,
        check=True,
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert {state for _, _, state, _ in told} == {"before", "new"}
    assert Counter(how for how, killed, _, _ in told if killed)["killed_at_each_call"] > 60
    assert all(len(others) <= 1 for _, _, _, others in told)
    assert all(name.startswith("out.pt.wnconvert-") for _, _, _, others in told for name in others)
    assert all(state == "new" and not others for _, killed, state, others in told if not killed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_fold_that_is_interrupted_ends_at_once_with_130_and_cleans_up(
    tmp_path: Path, large: Path, number: signal.Signals, threads: int
) -> None:
    out = tmp_path / "out.pt"
    out.write_bytes(b"old")
    command = [sys.executable, "-c", SLOW, "fold", str(large), "-o", str(out), "--force"]
    command.append(f"--threads={threads}")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while len(names(tmp_path)) < 3:
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(0.05)
        process.send_signal(number)
        began = time.monotonic()
        _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in told
    assert time.monotonic() - began < 5
    assert out.read_bytes() == b"old"
    assert names(tmp_path) == ["large.pt", "out.pt"]


def test_a_file_larger_than_the_limit_of_the_process_is_refused(tmp_path: Path, large: Path) -> None:
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n{SLOW}"
    done = subprocess.run(
        [sys.executable, "-c", limit, "fold", large, "-o", tmp_path / "out.pt"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert names(tmp_path) == ["large.pt"]


def test_the_largest_blobs_are_taken_first(
    tmp_path: Path, pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    blob = executor._Run.blob

    def noted(self: executor._Run, file: Filling, given: Blob) -> executor.Outcome:
        sizes.append(given.size)
        return blob(self, file, given)

    monkeypatch.setattr(executor._Run, "blob", noted)
    fold_file(pair, tmp_path / "out.safetensors", threads=1)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 4 << 20


def test_options_of_a_run_are_checked_and_can_be_pickled() -> None:
    with pytest.raises(ArgumentError, match="0 threads"):
        RunOptions(threads=0)
    options = RunOptions(force=True, threads=2)
    assert pickle.loads(pickle.dumps(options)) == options


def test_the_plan_is_told_before_anything_is_written_and_once(tmp_path: Path) -> None:
    told: list[tuple[object, bool]] = []
    out = tmp_path / "out.pt"
    done = fold_file(FIXTURES / "gan.pt", out, on_plan=lambda plan: told.append((plan, out.exists())))
    assert told == [(done.plan, False)]
    fold_file(FIXTURES / "gan.pt", out, on_plan=lambda plan: told.append((plan, True)), dry_run=True)
    assert len(told) == 1  # a dry run returns it


def test_a_function_that_is_told_the_plan_may_stop_the_run(tmp_path: Path) -> None:
    def stop(_plan: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fold_file(FIXTURES / "gan.pt", tmp_path / "out.pt", on_plan=stop)
    assert not list(tmp_path.iterdir())
