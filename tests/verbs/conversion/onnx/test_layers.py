"""Layers against their own arithmetic by rows, out of the range of their dtype, and in a limited process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.helpers.marks import some
from tests.helpers.onnx_graphs import COMBINED, NORMS, Build, looping
from tests.helpers.states import output_of
from tests.verbs.conversion.onnx.test_check import initializer, planned, vocoder
from wnconvert import fold_file
from wnconvert.errors import ArgumentError, FormatError, VerifyError
from wnconvert.onnx.runtime.process import Runtime
from wnconvert.onnx.runtime.words import NoAnswerError
from wnconvert.verbs.conversion.onnx import layers as onnx_layers
from wnconvert.verbs.conversion.onnx.check import check_fold
from wnconvert.verbs.shared.options import Proving

RNG = np.random.default_rng(5)
LAYERS = "onnx.checker and onnxruntime: 2 layers against the original's own arithmetic"
ALONE = "each layer was compared alone"


def of_rows(folder: Path, shape: tuple[int, ...], dim: int | None, spelled: str = "plain") -> Path:
    """A model of one layer; ``spelled`` is how its shapes stand in the graph."""
    b = Build(17)
    size = 1 if dim is None else shape[dim]
    halves = [1 if axis != dim else size for axis in range(len(shape))]
    g = b.tensor("a.weight_g", (RNG.random(halves) + 0.5).astype(np.float32))
    v = b.tensor("a.weight_v", RNG.standard_normal(shape).astype(np.float32))
    norm = NORMS["ReduceL2"](b, v, shape, dim)
    if spelled == "number of rows":
        norm = b.op("Reshape", norm, b.ints(*halves))
    elif spelled == "every size":
        v = b.op("Reshape", v, b.ints(*shape))
    w = COMBINED["g(v/n)"](b, g, v, norm)
    b.op("Mul", "x", b.op("ReduceSum", w, keepdims=0), name="y")
    path = folder / "model.onnx"
    onnx.save(b.model(["y"], {"x": (2, 3)}), path)
    return path


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of v that were computed, where some hundred elements are as many as may be at once."""
    seen: list[tuple[int, ...]] = []
    compute = Runtime.compute

    def watched(self: Runtime, model: bytes, feeds: Any) -> Any:
        found = compute(self, model, feeds)
        seen.append(next(iter(found.values())).shape)
        return found

    monkeypatch.setattr(Runtime, "compute", watched)
    monkeypatch.setattr(onnx_layers, "_PIECE", 300)
    return seen


@pytest.mark.parametrize("spelled", ["plain", "number of rows", "every size"])
@pytest.mark.parametrize(("shape", "dim"), [((20, 5, 9), 0), ((5, 20, 9), 1), ((9, 20), 1), ((20, 20, 3), 0)])
def test_a_large_layer_is_computed_by_rows(
    tmp_path: Path, shape: tuple[int, ...], dim: int, spelled: str, pieces: list[tuple[int, ...]]
) -> None:
    path = of_rows(tmp_path, shape, dim, spelled)
    result = fold_file(path)
    assert "1 layer against the original's own arithmetic, the whole model on x[2,3]" in result.verified
    assert [sum(piece[dim] for piece in pieces)] == [20]
    assert all(np.prod(piece) <= 300 for piece in pieces)
    assert {tuple(np.delete(piece, dim)) for piece in pieces} == {tuple(np.delete(shape, dim))}


@pytest.mark.parametrize("spelled", ["plain", "every size"])
def test_a_wrong_element_of_later_rows_is_named_by_its_place(
    tmp_path: Path, spelled: str, pieces: list[tuple[int, ...]]
) -> None:
    path = of_rows(tmp_path, (20, 5, 9), 0, spelled)
    proto = onnx.load(output_of(fold_file(path)))
    stored = initializer(proto, "a.weight")
    array = numpy_helper.to_array(stored).copy()
    array[17, 3, 2] *= 1.01
    stored.CopyFrom(numpy_helper.from_array(array, "a.weight"))
    onnx.save(proto, tmp_path / "spoiled.onnx")
    with pytest.raises(
        VerifyError, match=r"layer a.weight is .* at \(17, 3, 2\), where the original computes"
    ):
        check_fold(*planned(path), tmp_path / "spoiled.onnx")
    assert pieces


def test_what_cannot_be_computed_by_rows_is_computed_whole(
    tmp_path: Path, pieces: list[tuple[int, ...]]
) -> None:
    assert "1 layer against the original's own" in fold_file(of_rows(tmp_path, (20, 5, 9), None)).verified
    assert pieces == [(20, 5, 9)]


def test_what_is_too_large_for_that_is_held_against_the_formula(
    tmp_path: Path, pieces: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_layers, "_MOST_WHOLE", 100)
    result = fold_file(of_rows(tmp_path, (20, 5, 9), None))
    assert "1 layer against g·v/‖v‖, the whole model" in result.verified
    assert not pieces


# -- out of the range of the dtype


def with_row(folder: Path, change: Callable[[Any], Any], kind: Any, norm: str) -> Path:
    """A vocoder whose layer a has an odd row."""
    proto = vocoder(kind, norm)
    stored = initializer(proto, "a.weight_v")
    array = numpy_helper.to_array(stored).copy()
    array[3] = change(array[3])
    stored.CopyFrom(numpy_helper.from_array(array, stored.name))
    onnx.save(proto, folder / "model.onnx")
    return folder / "model.onnx"


def with_one(value: float) -> Callable[[Any], Any]:
    def change(row: Any) -> Any:
        row = np.ones_like(row)
        row.reshape(-1)[0] = value
        return row

    return change


ODD: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "squares overflow": (with_one(1e30), np.float32),
    "squares of float64 overflow": (with_one(1e300), np.float64),
    "squares are coarse": (lambda row: row * row.dtype.type(1e-22), np.float32),
}


@pytest.mark.parametrize("norm", ["ReduceL2", "Pow 2, Sqrt"])
@pytest.mark.parametrize("odd", ODD)
def test_rows_that_the_original_computes_otherwise_are_told(tmp_path: Path, odd: str, norm: str) -> None:
    change, kind = ODD[odd]
    result = fold_file(with_row(tmp_path, change, kind, norm))
    dtype = np.dtype(kind).name
    said = f"that the original computes otherwise: its steps leave the range of {dtype}"
    assert any(note.startswith("layer a.weight: ") and note.endswith(said) for note in result.notes)
    assert f"the whole model was not run: the original computes a.weight otherwise; {ALONE}" in result.notes


@pytest.mark.parametrize(("row", "factor"), [(3, 1.01), (2, 1.01)])
def test_beside_such_a_row_and_in_it_a_wrong_element_is_caught(
    tmp_path: Path, row: int, factor: float
) -> None:
    path = with_row(tmp_path, with_one(1e30), np.float32, "ReduceL2")
    proto = onnx.load(output_of(fold_file(path)))
    stored = initializer(proto, "a.weight")
    array = numpy_helper.to_array(stored).copy()
    array[row, 0, 0] *= factor
    stored.CopyFrom(numpy_helper.from_array(array, stored.name))
    onnx.save(proto, tmp_path / "spoiled.onnx")
    with pytest.raises(VerifyError, match=rf"layer a\.weight is .* at \({row}, 0, 0\)"):
        check_fold(*planned(path), tmp_path / "spoiled.onnx")


# -- more data files than may be open


@pytest.fixture
def few_files() -> Iterator[None]:
    """Forty files more may be open, and as many as were closed below the last one."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    last = max(int(path.name) for path in Path("/dev/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + 40, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_files")
def test_a_model_of_more_data_files_than_may_be_open_is_folded(tmp_path: Path) -> None:
    b = Build(17)
    x = "x"
    for at in range(30):
        g = b.tensor(f"l{at}.weight_g", RNG.random((3, 1)).astype(np.float32) + 1)
        v = b.tensor(f"l{at}.weight_v", RNG.standard_normal((3, 3)).astype(np.float32))
        x = b.op("MatMul", x, COMBINED["g(v/n)"](b, g, v, NORMS["ReduceL2"](b, v, (3, 3), 0)))
    b.op("Identity", x, name="y")
    model = b.model(["y"], {"x": (2, 3)})
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    assert len(list(tmp_path.iterdir())) == 61
    result = fold_file(path, verify=True)
    assert "30 layers against the original's own arithmetic, the whole model on x[2,3]" in result.verified


# -- damaged messages


def test_a_node_with_a_part_that_is_no_message_is_told(tmp_path: Path) -> None:
    from wnconvert.onnx.file.wire import bytes_record

    proto = vocoder()
    nodes = [
        bytes_record(1, node.SerializeToString() + bytes.fromhex("4a020a1e")) for node in proto.graph.node
    ]
    del proto.graph.node[:]
    graph = b"".join(nodes) + proto.graph.SerializeToString()
    proto.ClearField("graph")
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString() + bytes_record(7, graph))
    with pytest.raises(
        FormatError, match=r"it is damaged: the record at byte .* protobuf cannot read"
    ) as caught:
        fold_file(tmp_path / "model.onnx")
    assert caught.value.exit_code == 2
    assert caught.value.fix
    assert not (tmp_path / "model.folded.onnx").exists()


# -- time, and what is run


def test_a_model_that_computes_for_ever_is_folded_and_told(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(looping(1 << 60).SerializeToString())
    result = fold_file(tmp_path / "model.onnx", timeout=0.5)
    assert result.verified == "onnx.checker and onnxruntime: 1 layer against the original's own arithmetic"
    assert result.notes[-1] == f"the whole model was not run (onnxruntime took longer than 0.5 s); {ALONE}"


def test_a_model_that_kills_onnxruntime_is_folded_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_bytes(looping(3).SerializeToString())
    open_ = Runtime.open

    def kill(self: Runtime, *given: Any, **options: Any) -> Any:
        opened = open_(self, *given, **options)
        assert self._process is not None
        os.kill(self._process.child.pid, signal.SIGSEGV)
        return opened

    monkeypatch.setattr(Runtime, "open", kill)
    result = fold_file(tmp_path / "model.onnx")
    assert result.notes[-1] == f"the whole model was not run (onnxruntime crashed (SIGSEGV)); {ALONE}"


def test_layers_that_kill_onnxruntime_are_held_against_the_formula(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(vocoder(), tmp_path / "model.onnx")

    def kill(*_: object) -> Any:
        raise NoAnswerError("onnxruntime crashed (SIGSEGV)")

    monkeypatch.setattr(Runtime, "compute", kill)
    result = fold_file(tmp_path / "model.onnx")
    assert "2 layers against g·v/‖v‖, the whole model on x[1,4,16]" in result.verified


@pytest.mark.parametrize(
    ("proof", "verified"),
    [
        ("model", f"{LAYERS}, the whole model on x[1,4,16]"),
        ("layers", LAYERS),
        ("none", "onnx.checker"),
    ],
)
def test_what_is_run_can_be_chosen(tmp_path: Path, proof: Any, verified: str) -> None:
    onnx.save(vocoder(), tmp_path / "model.onnx")
    result = fold_file(tmp_path / "model.onnx", proof=proof)
    assert result.verified == verified
    assert not any("alone" in note for note in result.notes)


def test_where_nothing_is_run_onnxruntime_is_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    onnx.save(vocoder(), tmp_path / "model.onnx")
    assert fold_file(tmp_path / "model.onnx", proof="none").verified == "onnx.checker"


def test_another_proof_is_refused() -> None:
    with pytest.raises(ArgumentError, match="proof 'all' is not offered") as caught:
        Proving("all")  # type: ignore[arg-type]
    assert caught.value.fix == "one of model, layers, none"


@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children stand in /proc")
@some("number", {"INT": signal.SIGINT, "TERM": signal.SIGTERM}, ["INT"])
def test_ctrl_c_ends_a_model_that_computes_for_ever(tmp_path: Path, number: int) -> None:
    (tmp_path / "model.onnx").write_bytes(looping(1 << 60).SerializeToString())
    command = [sys.executable, "-m", "wnconvert", "fold", str(tmp_path / "model.onnx")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        child = busy_child(running.pid)
        os.kill(running.pid, number)
        said = running.communicate(timeout=30)[1]
    assert (running.returncode, said.split("\n")[-2]) == (130, "interrupted; nothing is left half written")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def busy_child(parent: int) -> int:
    """The process in which onnxruntime works, once it has for half a second."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            ticks = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11])
            if ticks * 2 > os.sysconf("SC_CLK_TCK"):
                return int(child)
        time.sleep(0.05)
    raise AssertionError("it does not work")


@pytest.fixture(autouse=True)
def no_files_stay(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.glob("*.tmp"))
