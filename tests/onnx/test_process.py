"""onnxruntime in a process of its own: whatever a model does there, here are words and the work goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.onnx_graphs import looping
from wnconvert.onnx.runtime.memory import free_memory
from wnconvert.onnx.runtime.process import Runtime
from wnconvert.onnx.runtime.words import NoAnswerError
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.verbs.conversion.onnx.ready import made_ready
from wnconvert.verbs.shared.options import Proving

X = {"x": np.ones((2, 4), np.float32)}
LITTLE = 200 << 20


def saved(folder: Path, turns: int) -> Path:
    path = folder / f"loop{turns}.onnx"
    path.write_bytes(looping(turns).SerializeToString())
    return path


def test_a_graph_that_computes_for_ever_is_ended_in_time(tmp_path: Path) -> None:
    with Runtime(0.4) as runtime:
        opened = runtime.open(saved(tmp_path, 1 << 60))
        for _ in range(2):
            with pytest.raises(NoAnswerError, match=r"onnxruntime took longer than 0\.4 s") as caught:
                opened.run(X)
            assert caught.value.fix == "--timeout SECONDS gives it more time"
        with pytest.raises(NoAnswerError, match="took longer"):
            runtime.open(saved(tmp_path, 3))


def test_a_graph_that_takes_a_while_is_not(tmp_path: Path) -> None:
    with Runtime(60) as runtime:
        assert runtime.open(saved(tmp_path, 10_000)).run(X)["y"].shape == (2, 4)


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (signal.SIGSEGV, r"crashed \(SIGSEGV\)"),
        (signal.SIGKILL, "was killed, as systems do where memory is short"),
    ],
)
def test_a_process_that_dies_is_told_and_another_one_is_started(
    tmp_path: Path, number: int, what: str
) -> None:
    with Runtime(60) as runtime:
        opened = runtime.open(saved(tmp_path, 1 << 60))
        process = runtime._process
        assert process is not None
        threading.Timer(0.2, os.kill, (process.child.pid, number)).start()
        for _ in range(2):
            with pytest.raises(NoAnswerError, match=what) as caught:
                opened.run(X)
            assert caught.value.fix
        assert runtime.open(saved(tmp_path, 3)).run(X)["y"].shape == (2, 4)


def test_processes_that_die_again_and_again_are_not_started_for_ever(tmp_path: Path) -> None:
    model = saved(tmp_path, 3)
    with Runtime(60) as runtime:
        for _ in range(3):
            opened, process = runtime.open(model), runtime._process
            assert process is not None
            process.child.kill()
            with pytest.raises(NoAnswerError):
                opened.run(X)
        with pytest.raises(NoAnswerError, match="was killed"):
            runtime.open(model)


def test_a_model_that_takes_all_memory_is_told_and_the_process_goes_on(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    nodes = [
        helper.make_node("ConstantOfShape", ["x"], ["c"]),
        helper.make_node("ReduceSum", ["c"], ["y"], keepdims=0),
    ]
    ports = helper.make_tensor_value_info("x", 7, [2]), helper.make_tensor_value_info("y", 1, [])
    graph = helper.make_graph(nodes, "graph", [ports[0]], [ports[1]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    with Runtime(60, memory=LITTLE) as runtime:
        opened = runtime.open(tmp_path / "model.onnx")
        assert opened.run({"x": np.array([10, 10])})["y"] == 0
        with pytest.raises(NoAnswerError, match="needs more memory for it than is free") as caught:
            opened.run({"x": np.array([1 << 14, 1 << 14])})
        assert caught.value.exit_code == 2
        assert opened.run({"x": np.array([10, 10])})["y"] == 0


def test_it_imports_what_this_process_would_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json", "numpy", "onnxruntime"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit")
    model = saved(tmp_path, 3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    with Runtime(60, memory=LITTLE) as runtime:  # one of its own
        assert runtime.open(Path(model.name)).run(X)["y"].shape == (2, 4)


def test_its_end_is_the_end_of_its_process(tmp_path: Path) -> None:
    with Runtime(60, memory=LITTLE) as runtime:
        runtime.open(saved(tmp_path, 3))
    assert runtime._process is not None
    assert runtime._process.child.returncode is not None
    with pytest.raises(NoAnswerError):
        runtime._process.ask({"do": "start", "memory": None}, {})


# -- work ahead


def test_work_ahead_is_done_once_and_its_process_goes_on(tmp_path: Path) -> None:
    model = saved(tmp_path, 3)
    with Runtime(60) as runtime:
        process = runtime._process
        made = runtime.ahead(lambda: runtime.open(model).run(X))
        assert made is not None
        assert np.array_equal(made["y"], runtime.open(model).run(X)["y"])
        assert runtime._process is process


def test_work_ahead_takes_a_tenth_of_the_time_and_what_is_asked_for_has_the_rest(tmp_path: Path) -> None:
    endless, model = saved(tmp_path, 1 << 60), saved(tmp_path, 3)
    with Runtime(10) as runtime:
        assert runtime.ahead(lambda: runtime.open(endless).run(X)) is None
        assert runtime._clock.left == pytest.approx(9, abs=0.5)
        assert runtime.open(model).run(X)["y"].shape == (2, 4)


def test_ends_of_the_process_in_work_ahead_do_not_count(tmp_path: Path) -> None:
    model = saved(tmp_path, 3)

    def die() -> None:
        opened = runtime.open(model)
        runtime.interrupt()
        opened.run(X)

    with Runtime(60) as runtime:
        for _ in range(4):
            assert runtime.ahead(die) is None
        assert runtime.open(model).run(X)["y"].shape == (2, 4)


def test_what_is_ready_ends_with_its_body_whatever_it_does(tmp_path: Path) -> None:
    opened = open_checkpoint(saved(tmp_path, 1 << 60)).onnx
    assert opened is not None

    def work() -> None:
        with made_ready(opened, Proving()):
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        work()
    assert time.monotonic() - began < 30  # a tenth of its time is 60 s


@pytest.mark.parametrize(("proof", "runs", "ahead"), [("model", 1, 1), ("layers", 1, 0), ("none", 0, 0)])
def test_what_will_be_run_is_ready_and_no_more(tmp_path: Path, proof: Any, runs: int, ahead: int) -> None:
    opened = open_checkpoint(saved(tmp_path, 3)).onnx
    assert opened is not None
    with made_ready(opened, Proving(proof)) as ready:
        assert (ready.runtime is not None) == bool(runs)
        found = ready.original()
        assert (found is not None and found.outputs["y"].shape == (2, 4)) == bool(ahead)


# -- what it may say to others


def test_one_module_alone_imports_onnxruntime() -> None:
    package = Path(__file__).parents[2] / "wnconvert"
    imported = re.compile(r"^\s*(import|from) onnxruntime", re.MULTILINE)
    importing = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if imported.search(path.read_text())
    }
    assert importing == {"onnx/runtime/session.py"}


@pytest.mark.parametrize(("given", "holds"), [(None, "1"), ("0", "0")])
def test_its_reports_are_off_before_it_is_imported_unless_the_user_says_so(
    given: str | None, holds: str
) -> None:
    code = """
import os, sys
from wnconvert.onnx.runtime.session import onnxruntime
class Seen:
    def find_spec(self, name, *_):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))
            raise SystemExit
sys.meta_path.insert(0, Seen())
onnxruntime()
"""
    variables = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    variables |= {} if given is None else {"ORT_DISABLE_TELEMETRY": given}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=variables, check=True
    )
    assert done.stdout.split() == [holds]


# -- how much memory is free


def system(folder: Path, *, limit: str) -> tuple[Path, Path]:
    proc, groups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (groups / "box").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\nSwapFree:   1000 kB\n")
    (proc / "self/cgroup").write_text("0::/box\n")
    (groups / "box/memory.max").write_text(f"{limit}\n")
    (groups / "box/memory.current").write_text("3000000\n")
    (groups / "box/memory.stat").write_text("anon 1\nfile 1000000\n")
    return proc, groups


@pytest.mark.parametrize(("limit", "free"), [("max", 6000 << 10), ("4000000", 2_000_000), ("1000000", 0)])
def test_free_memory_is_that_of_the_machine_or_of_the_control_group(
    tmp_path: Path, limit: str, free: int
) -> None:
    assert free_memory(*system(tmp_path, limit=limit)) == free


def test_where_nothing_says_so_it_is_not_known(tmp_path: Path) -> None:
    assert free_memory(tmp_path, tmp_path) is None


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "9", True, None])
def test_a_timeout_that_is_none_is_refused(timeout: object) -> None:
    from wnconvert.errors import ArgumentError

    with pytest.raises(ArgumentError, match="a timeout of"):
        Proving(timeout=timeout)  # type: ignore[arg-type]
