"""What the system refuses (memory, threads, room, names) is told in words, with a fix, and exit code 2."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.helpers.bad_files import pair, safetensors, saved
from tests.helpers.golden import FIXTURES, ROOT
from tests.helpers.runner import Runner, listing
from tests.helpers.tool import Ended
from wnconvert import compare_files, fold_file, inspect_file, split_file
from wnconvert.errors import FormatError, InputError, OutputError, WnconvertError

GAN = FIXTURES / "gan.pt"


def told(ended: Ended, what: str, fix: str) -> None:
    assert ended.returncode == 2, ended
    assert "Traceback" not in ended.stderr
    error, *_, last = ended.stderr.splitlines()
    assert error.startswith("error: ")
    assert what in error
    assert last.startswith("fix: ")
    assert fix in last


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Have the filling of the output fail so."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("wnconvert.storage.sources.Source.reader", fail)


def numpys() -> Exception:
    with pytest.raises(MemoryError) as caught:
        np.empty(1 << 50)
    return caught.value


ERRORS: dict[str, tuple[Callable[[], Exception], str, str]] = {
    "memory": (MemoryError, "not enough memory", "--threads 1"),
    "numpy's memory": (numpys, "not enough memory (Unable to allocate 8.00 PiB", "--threads 1"),
    "threads": (lambda: RuntimeError("can't start new thread"), "no more threads", "ulimit -u"),
    "room for temporary files": (
        lambda: OSError(errno.ENOSPC, "No space left", "spool/x"),
        "spool/x: the disk is full",
        "TMPDIR",
    ),
    "open files": (
        lambda: OSError(errno.EMFILE, "Too many open files", "x"),
        "too many files are open",
        "ulimit -n",
    ),
    "a library": (
        lambda: ImportError("x.so: failed to map segment from shared object"),
        "not enough memory",
        "ulimit -v",
    ),
    "no folder for temporary files": (
        lambda: FileNotFoundError(2, "No usable temporary directory found"),
        "No usable",
        "TMPDIR",
    ),
    "other calls": (
        lambda: OSError(errno.EIO, "Input/output error", "x"),
        "x: the system refuses (Input/output error)",
        "disk",
    ),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_what_the_system_refuses_is_told_in_words(
    kind: str, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, what, fix = ERRORS[kind]
    failing(monkeypatch, make())
    told(run("fold", GAN, "-o", tmp_path / "o.pt"), what, fix)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error", [KeyError("x"), OSError(errno.EBADF, "Bad file descriptor"), RuntimeError("x")]
)
def test_what_is_a_bug_is_called_one(
    error: Exception, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, error)
    ended = run("fold", GAN, "-o", tmp_path / "o.pt")
    assert ended.returncode == 3
    assert "this is a bug of wnconvert" in ended.stderr


def test_python_has_the_systems_own_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing(monkeypatch, MemoryError())
    with pytest.raises(MemoryError):
        fold_file(GAN, tmp_path / "o.pt")
    assert not list(tmp_path.iterdir())


# -- memory and threads


@pytest.mark.parametrize("mebibytes", [0, 1, 4, 16, 64])
def test_little_memory_ends_in_words_or_well(mebibytes: int, tmp_path: Path) -> None:
    saved(pair(1 << 18), tmp_path)
    # What is large is imported before: Python 3.11 itself may hang in an import for which memory is short.
    code = (
        "import resource, sys, wnconvert.cli, wnconvert.verbs.conversion.files.fold\n"
        "import wnconvert.reports.text.conversions, wnconvert.numerics.folding\n"
        f"pages = int(open('/proc/self/statm').read().split()[0]); left = {mebibytes} << 20\n"
        "resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + left,) * 2)\n"
        "sys.argv = ['wnconvert', 'fold', 'in.pt']; wnconvert.cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode in {0, 2}, done.stderr
    if done.returncode:
        told(Ended(2, done.stdout, done.stderr), "not enough memory", "--threads 1")
    assert {path.name for path in tmp_path.iterdir()} == {
        "in.pt",
        *(["in.folded.pt"] if not done.returncode else []),
    }


@pytest.mark.parametrize("more", [0, 1])
def test_where_no_more_threads_start_fewer_do_the_work(
    more: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold_file(GAN, tmp_path / "all.pt", threads=4)
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def limited(thread: threading.Thread) -> None:
        if len(started) >= more:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    fold_file(GAN, tmp_path / "few.pt", threads=4)
    assert (tmp_path / "few.pt").read_bytes() == (tmp_path / "all.pt").read_bytes()
    assert compare_files(GAN, tmp_path / "few.pt", threads=4)


# -- names

LONG = "a" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", LONG),
        ("inspect", "x.pt", "--plot", f"{LONG}.png"),
        ("fold", LONG),
        ("fold", "x.pt", "-o", LONG),
        ("fold", "x.pt", "-o", f"{LONG}/"),
        ("fold", "x.pt", "-o", f"{LONG}/o.pt"),
        ("fold", "x.pt", "-o", LONG, "--as-folder"),
        ("fold", "x.pt", "-o", LONG, "--dry-run"),
        ("fold", LONG, "--in-place"),
        ("split", "x.pt", "--like", LONG),
        ("compare", "x.pt", LONG),
        ("loads", LONG),
    ],
    ids=lambda arguments: " ".join(word.replace(LONG, "LONG") for word in arguments),
)
def test_a_name_that_is_too_long_is_told(arguments: tuple[str, ...], run: Runner, tmp_path: Path) -> None:
    shutil.copy(GAN, tmp_path / "x.pt")
    ended = run(*arguments, folder=tmp_path)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "too long" in ended.stderr
    assert "fix: choose " in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_a_name_has_no_room_for_the_verb_and_another_is_taken(run: Runner, tmp_path: Path) -> None:
    name = "a" * 250 + ".pt"
    shutil.copy(GAN, tmp_path / name)
    told(run("fold", name, folder=tmp_path), "too long", "choose a shorter name")
    longest = "b" * 252 + ".pt"
    assert run("fold", name, "-o", longest, folder=tmp_path).returncode == 0
    assert run("fold", name, "-o", longest, "--force", folder=tmp_path).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, longest]


def test_python_has_an_error_of_its_own_for_such_names(tmp_path: Path) -> None:
    for call, kind in (
        (lambda: inspect_file(LONG), InputError),
        (lambda: fold_file(LONG), InputError),
        (lambda: fold_file(GAN, tmp_path / LONG), OutputError),
        (lambda: split_file(GAN, tmp_path / "x", like=LONG), InputError),
        (lambda: compare_files(GAN, LONG), InputError),
        (lambda: inspect_file("a\0b"), InputError),
        (lambda: fold_file(GAN, "a\0b"), OutputError),
    ):
        with pytest.raises(WnconvertError) as caught:
            call()
        assert caught.type is kind
        assert caught.value.fix


def test_a_folder_that_was_deleted(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    shutil.copy(GAN, tmp_path / "x.pt")
    code = "import os, sys; os.rmdir(os.getcwd()); from wnconvert.cli import main; main()"
    for arguments in (["fold", "x.pt"], ["fold", str(tmp_path / "x.pt"), "-o", "o.pt"], ["inspect", "x.pt"]):
        gone.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=gone,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert "fix: " in done.stderr


def test_a_name_that_is_not_utf_8_goes_through_a_strict_stdout(tmp_path: Path) -> None:
    source = os.fsencode(tmp_path) + b"/\xff.pt"
    Path(os.fsdecode(source)).write_bytes(GAN.read_bytes())
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8:strict"}
    for arguments in (
        [b"fold", source],
        [b"inspect", source],
        [b"fold", source, b"-n"],
        [b"compare", source, source],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "wnconvert", *arguments], capture_output=True, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr
        assert b"\\udcff" in done.stdout + done.stderr or arguments[0] == b"compare"
    assert Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.folded.pt")).exists()


@pytest.mark.parametrize("style", ["table", "csv", "markdown", "json"])
def test_lone_surrogates_in_a_tensors_name_are_spelled_out(style: str, run: Runner, tmp_path: Path) -> None:
    tensors = {f"\ud800{name}": tensor for name, tensor in pair().items()}
    source = saved(tensors, tmp_path)
    ended = run("inspect", source, "--format", style, "--plot", tmp_path / f"{style}.svg")
    assert (ended.returncode, "ud800" in ended.stdout) == (0, True), ended
    assert r"\ud800" in (tmp_path / f"{style}.svg").read_text()


# -- formats


def test_a_tensor_has_as_many_axes_as_torch_and_numpy_have(run: Runner, tmp_path: Path) -> None:
    for axes in (64, 65):
        shape, raw = [1] * (axes - 1) + [2], bytes(8)
        header = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 8]}}
        source = safetensors(header, raw, tmp_path).rename(tmp_path / f"{axes}.safetensors")
        before = listing(tmp_path)
        for command in (["fold", source, "--copy", "--verify"], ["inspect", source, "--full"]):
            ended = run(*command)
            if axes > 64:
                told(ended, "tensor a has 65 axes", "fewer axes")
                assert listing(tmp_path) == before
            else:
                assert ended.returncode == 0, ended
    with pytest.raises(FormatError):
        inspect_file(tmp_path / "65.safetensors")


def test_a_node_that_the_onnx_package_does_not_read(run: Runner, tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    model = onnx.load(FIXTURES / "tcn.onnx")
    nodes = [node.SerializeToString() + bytes.fromhex("4a020a1e") for node in model.graph.node]
    source.write_bytes(_with_nodes(model, nodes))
    ended = run("fold", source)
    assert ended.returncode == 2, ended
    assert "holds a message that protobuf cannot read\nfix: " in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.onnx"]


def _with_nodes(model: onnx.ModelProto, nodes: list[bytes]) -> bytes:
    """The bytes of a model whose nodes have these bytes."""

    def field(number: int, content: bytes) -> bytes:
        size, length = b"", len(content)
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + content

    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    del graph.node[:]
    without = onnx.ModelProto()
    without.CopyFrom(model)
    without.ClearField("graph")
    made = graph.SerializeToString() + b"".join(field(1, node) for node in nodes)
    return bytes(without.SerializeToString() + field(7, made))
