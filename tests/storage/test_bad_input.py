"""Every bad input ends with exit code 2, what and where and what to do, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.golden import FIXTURES
from wnconvert import cli

State = dict[str, Tensor]
OLD = b"what was here before"


@dataclass(frozen=True)
class Ended:
    code: int
    stdout: str
    stderr: str


class Runner:
    """Runs the command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys = capsys
        self.monkeypatch = monkeypatch

    def __call__(self, *arguments: str | Path) -> Ended:
        self.monkeypatch.setattr(sys, "argv", ["wnconvert", *map(str, arguments)])
        self.capsys.readouterr()
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, handler)
        printed = self.capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, printed.out, printed.err)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    return Runner(capsys, monkeypatch)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(run: Runner, source: Path, *options: str | Path, says: str, fix: str | None = "") -> Ended:
    """The file is refused with these words, and its folder stays as it is, with and without an old output."""
    out = source.parent / "out.pt"
    out.write_bytes(OLD)
    before = listing(source.parent)
    where = () if "-o" in options else ("-o", out, "--force")
    ended = run("fold", source, *where, *options)
    assert (ended.code, ended.stdout) == (2, ""), ended
    assert re.search(says, ended.stderr), ended.stderr
    first, *_ = ended.stderr.splitlines()
    assert first.startswith(f"error: {source}" if source.name in first else "error: ")
    assert "Traceback" not in ended.stderr
    if fix is not None:
        last = ended.stderr.splitlines()[-1]
        assert last.startswith("fix: ")
        assert fix in last
    looked_at(run, source, ended)
    assert listing(source.parent) == before
    out.unlink()
    return ended


def looked_at(run: Runner, source: Path, folded: Ended) -> None:
    """inspect and compare refuse the file in the same words, or show what is whole in it."""
    commands: list[list[str | Path]] = [["inspect", source, "--full"], ["compare", source, source]]
    for command in commands:
        ended = run(*command)
        assert ended.code in {0, 2}, ended
        assert "Traceback" not in ended.stderr
        if ended.code == 2 and command[0] == "inspect":
            # Which of two tensors that overlap the safetensors library names is left to chance.
            words = [text.splitlines()[0].split(" for tensor ")[0] for text in (ended.stderr, folded.stderr)]
            assert words[0] == words[1]
        assert (ended.code == 0) == bool(ended.stdout)


def pair(rows: int = 4, *more: int) -> State:
    shape = (rows, *(more or (3, 2)))
    return {"a.weight_g": torch.ones(rows, *[1] * (len(shape) - 1)), "a.weight_v": torch.full(shape, 0.5)}


def saved(tree: object, folder: Path, **options: Any) -> Path:
    torch.save(tree, folder / "in.pt", **options)
    return folder / "in.pt"


def written(data: bytes, folder: Path, name: str = "in.pt") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def safetensors(header: object, body: bytes, folder: Path) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return written(struct.pack("<Q", len(text)) + text + body, folder)


def zipped(records: dict[str, bytes], folder: Path, kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(folder / "in.pt", "w", kind) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return folder / "in.pt"


def rezipped(
    source: Path, change: Callable[[dict[str, bytes]], object], kind: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(source) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(records)
    return zipped({f"x/{name}": data for name, data in records.items()}, source.parent, kind)


# -- what is no checkpoint


def test_a_file_that_is_not_there(run: Runner, tmp_path: Path) -> None:
    refused(run, tmp_path / "in.pt", says="there is no such file", fix="check the path")


def test_a_folder_that_is_no_checkpoint(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    refused(run, tmp_path / "folder", says="folder", fix=None)


def test_what_is_no_regular_file(run: Runner, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert run("fold", tmp_path / "pipe").code == 2


def test_a_name_in_the_place_of_a_folder(run: Runner, tmp_path: Path) -> None:
    assert run("fold", written(b"x", tmp_path) / "model.pt").code == 2


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "Git-LFS pointer"),
        (b"<!DOCTYPE html>\n<html><head>", "web page"),
        (b"\n  <html lang=en>", "web page"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\0", "gzip"),
        (b"PK\5\6" + bytes(18), "empty zip"),
        (b'{"weight_map": {}}', "names no tensor"),
        (b"\x80\x02}q\0.", "plain pickle"),
        (b"abc", "no checkpoint"),
        (b"\0" * 100, "no checkpoint|safetensors"),
        (b"random words that go on for a while", "no checkpoint|header"),
        (b"PK\3\4" + bytes(40), "zip directory"),
        (b"03\3\4" + bytes(40), "zip directory"),
    ],
)
def test_what_is_no_checkpoint_is_named(data: bytes, says: str, run: Runner, tmp_path: Path) -> None:
    refused(run, written(data, tmp_path), says=says)


def test_a_tar_is_named(run: Runner, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "in.pt", "w") as archive:
        archive.add(FIXTURES / "tied.pt", "tied.pt")
    refused(run, tmp_path / "in.pt", says="a tar archive", fix="unpack")


# -- cut short


@pytest.mark.parametrize(
    "name", ["tied.pt", "legacy_nonzip.pth", "zero_row.safetensors", "sovits.pth", "scripted.pt"]
)
def test_a_file_cut_at_any_byte_is_refused(name: str, run: Runner, tmp_path: Path) -> None:
    data = (FIXTURES / name).read_bytes()
    chance = random.Random(name)
    source = tmp_path / "in.pt"
    for end in sorted({*chance.sample(range(len(data)), 60), *range(20), *range(len(data) - 30, len(data))}):
        source.write_bytes(data[:end])
        ended = run("fold", source)
        assert ended.code == 2, (end, ended)
        assert f"error: {source}" in ended.stderr
        assert "fix: " in ended.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


# -- safetensors


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS: dict[str, tuple[object, str]] = {
    "overlapping": ({"a": TENSOR, "b": TENSOR}, "refuses"),
    "outside": ({"a": {**TENSOR, "data_offsets": [0, 80]}}, "refuses"),
    "reversed": ({"a": {**TENSOR, "data_offsets": [8, 0]}}, "refuses"),
    "a gap": ({"a": {**TENSOR, "shape": [1], "data_offsets": [4, 8]}}, "refuses"),
    "a shape too large": ({"a": {**TENSOR, "shape": [3]}}, "refuses"),
    "an absurd shape": ({"a": {**TENSOR, "shape": [1 << 62, 1 << 62]}}, "refuses"),
    "a negative shape": ({"a": {**TENSOR, "shape": [-2]}}, "refuses"),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, "refuses"),
    "an unknown dtype": ({"a": {**TENSOR, "dtype": "F31"}}, "refuses"),
    "no object": ([1], "refuses|no checkpoint"),
    "no JSON": (b"{abc", "refuses"),
    "deep JSON": (b'{"a":' + b"[" * 100_000, "refuses"),
    "a key twice": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        "twice|refuses",
    ),
}


@pytest.mark.parametrize(("header", "says"), HEADERS.values(), ids=HEADERS.keys())
def test_a_safetensors_header_that_contradicts_itself(
    header: object, says: str, run: Runner, tmp_path: Path
) -> None:
    refused(run, safetensors(header, bytes(8), tmp_path), says=says)


@pytest.mark.parametrize("length", [10_000, 1 << 40, 1 << 60])
def test_a_header_longer_than_the_file(length: int, run: Runner, tmp_path: Path) -> None:
    refused(run, written(struct.pack("<Q", length) + b"{}", tmp_path), says="header claims")


# -- torch's files


def test_a_storage_that_is_missing_or_short(run: Runner, tmp_path: Path) -> None:
    source = saved(pair(), tmp_path)
    refused(run, rezipped(source, lambda records: records.pop("data/1")), says="storage 1 is missing")
    source = saved(pair(), tmp_path)
    refused(
        run,
        rezipped(source, lambda records: records.update({"data/1": b"1234"})),
        says="storage 1 has 4 bytes",
    )


@pytest.mark.parametrize("name", ["data.pkl", "data/0", "extra"])
def test_a_compressed_record(name: str, run: Runner, tmp_path: Path) -> None:
    source = saved(pair(), tmp_path)
    with zipfile.ZipFile(source) as archive:
        records = {other: archive.read(other) for other in archive.namelist()} | {"in/extra": b"x" * 100}
    with zipfile.ZipFile(source, "w") as archive:
        for other, data in records.items():
            kind = zipfile.ZIP_DEFLATED if other == f"in/{name}" else zipfile.ZIP_STORED
            archive.writestr(other, data, kind)
    refused(run, source, says=f"{name} is compressed", fix="save it with torch.save")


def test_a_record_twice(run: Runner, tmp_path: Path) -> None:
    source = saved(pair(), tmp_path)
    with zipfile.ZipFile(source, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("in/data/0", bytes(96))
    refused(run, source, says="in/data/0 is in its zip directory twice")


def test_records_that_overlap(run: Runner, tmp_path: Path) -> None:
    source = saved(pair(), tmp_path)
    data = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as archive:
        first = archive.getinfo("in/data/0").header_offset
    at = data.rfind(b"in/data/1") - 46  # its entry in the directory
    assert data[at : at + 4] == b"PK\1\2"
    data[at + 42 : at + 46] = struct.pack("<I", first)
    refused(run, written(bytes(data), tmp_path), says="overlap|lies outside")


def test_a_zip_without_a_pickle(run: Runner, tmp_path: Path) -> None:
    refused(run, zipped({"readme.txt": b"x"}, tmp_path), says="no data.pkl")


def test_a_big_endian_file(run: Runner, tmp_path: Path) -> None:
    source = saved(pair(), tmp_path)
    refused(run, rezipped(source, lambda records: records.update(byteorder=b"big")), says="big-endian")
    old = saved(pair(), tmp_path, _use_new_zipfile_serialization=False).read_bytes()
    turned, count = re.subn(rb"(?<=little_endianq.)\x88", b"\x89", old)
    assert count == 1
    refused(run, written(turned, tmp_path), says="big-endian")


ABSURD: dict[str, tuple[tuple[object, ...], str]] = {
    "strides outside": ((0, (4, 3), (100, 1)), "reaches outside"),
    "an offset outside": ((20, (4, 3), (3, 1)), "reaches outside"),
    "an absurd shape": ((0, (1 << 62, 1 << 62), (1, 1)), "reaches outside"),
    "a negative shape": ((0, (-4, 3), (3, 1)), "absurd"),
    "a negative stride": ((12, (4, 3), (-3, 1)), "absurd"),
    "too large a number": ((0, (1 << 70,), (1,)), "absurd"),
    "two ranks": ((0, (4, 3), (3,)), "absurd"),
    "no numbers": ((0, ("4", 3), (3, 1)), "absurd"),
    "a hundred axes": ((0, (1,) * 100, (1,) * 100), "absurd"),
    "no shape": ((0, None, None), "absurd"),
    "a truth value": ((True, (1,), (1,)), "absurd"),
}


class Rebuilt:
    def __init__(self, storage: object, *args: object) -> None:
        self.args = (storage, *args, False, None)

    def __reduce__(self) -> tuple[object, ...]:
        return torch._utils._rebuild_tensor_v2, self.args


@pytest.mark.parametrize(("args", "says"), ABSURD.values(), ids=ABSURD.keys())
@pytest.mark.parametrize("as_zip", [True, False])
def test_a_tensor_that_reaches_outside_of_its_storage(
    args: tuple[object, ...], says: str, as_zip: bool, run: Runner, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = torch.ones(12).storage()  # type: ignore[no-untyped-call]
        tree = {"x": Rebuilt(storage, *args), **pair()}
        source = saved(tree, tmp_path, _use_new_zipfile_serialization=as_zip)
    refused(run, source, says=says, fix=None)


def test_a_tensor_without_a_storage(run: Runner, tmp_path: Path) -> None:
    refused(run, saved({"x": Rebuilt(None, 0, (1,), (1,))}, tmp_path), says="has no storage", fix=None)


# -- hostile pickles, with a look at memory


def hostile(pickle: bytes, folder: Path) -> Path:
    return zipped({"x/data.pkl": pickle, "x/version": b"3\n"}, folder)


def head(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


LONG = "n" * 500_000
STORAGE = b"ctorch\nFloatStorage\n"
NONES = b"Nq\0" + b"h\0h\0\x86q\0" * 60 + b"0"  # a tuple of 2^60 Nones, at memo 0
HOSTILE: dict[str, Callable[[], bytes]] = {
    "marks": lambda: b"(" * 100_000,
    "deep lists": lambda: b"]" * 100_000 + b"a" * 99_999,
    "memo": lambda: b"Nr\xff\xff\xff\xff",
    "lists": lambda: b"(" + b"]" * 20_000_000 + b"l",
    "wide text": lambda: struct.pack("<cI", b"X", 23 << 20) + b"a" * 24_117_244 + "😀".encode() + b"0",
    "8 EB": lambda: b"\x8e\0\0\0\0\0\0\0\x10",
    "a storage of 2^60": lambda: NONES + b"(" + head("storage") + b"h\0h\0h\0h\0tQ",
    "a shape of 2^60": lambda: (
        NONES + b"ctorch._utils\n_rebuild_tensor_v2\n((" + head("storage") + STORAGE
        + head("0") + head("cpu") + b"K\1tQK\0h\0h\0tR"
    ),
    "a storage with a long number": lambda: (
        b"(" + head("storage") + STORAGE + b"\x8b\xff\xff\x0f\0" + b"\x7f" * 0xFFFFF + head("cpu") + b"K\1tQ"
    ),
    "doubled modules": lambda: module() + (b"q\1" + module(head("a") + b"h\1" + head("b") + b"h\1")) * 60,
    "long names": lambda: head(LONG) + b"q\2" + module() + (b"q\1" + module(b"h\2h\1")) * 1000,
    "long paths": lambda: head(LONG) + b"q\2N" + b"q\1}h\2h\1s" * 4000,
    "wide and deep": lambda: b"}(" + b"K\1}" * 100_000 + b"u" + b"q\1}K\1h\1s" * 3000,
}  # fmt: skip


def module(children: bytes = b"") -> bytes:
    """The opcodes of a module with these items in its ``_modules``."""
    return b"cm\nM\n)R}(" + head("_parameters") + b"}" + head("_modules") + b"}(" + children + b"uub"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_takes_little_time_and_memory(name: str, tmp_path: Path) -> None:
    source = hostile(b"\x80\x02" + HOSTILE[name]() + b".", tmp_path)
    command = "from wnconvert.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "fold", source],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        # Anonymous memory, less what a thread's stack and numpy's own tables reserve.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (300 << 20, 300 << 20)),
    )
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
    if name in ("long paths", "wide and deep"):
        assert done.returncode == 0
    else:
        assert done.stderr.startswith(f"error: {source}: ")
        assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


# -- layers and numbers


@pytest.mark.parametrize(
    ("name", "says", "fix"),
    [
        ("misfit.safetensors", r"layer dec\.0\.weight: g \(12,\) does not fit v \(16, 8, 3\)", "--exclude"),
        ("stack.safetensors", r"layer both\.weight: .*stacked", "--exclude"),
        ("float8.safetensors", r"layer conv\.weight: .*float8", "--exclude"),
        ("zero_row.safetensors", r"layer dec\.0\.weight: .*zero in 2 rows \(2, 5\)", "--zero-rows"),
    ],
)
def test_a_layer_that_cannot_be_folded(name: str, says: str, fix: str, run: Runner, tmp_path: Path) -> None:
    refused(run, Path(shutil.copy(FIXTURES / name, tmp_path)), says=says, fix=fix)


@pytest.mark.parametrize("half", ["a.weight_g", "a.weight_v"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none(half: str, value: float, run: Runner, tmp_path: Path) -> None:
    state = pair()
    state[half][1] = value
    source = saved({"model": state}, tmp_path)
    refused(run, source, says=r"model: layer a\.weight: NaN or infinity.*row 1", fix="--allow-nonfinite")
    assert run("fold", source, "--allow-nonfinite").code == 0


def test_float16_that_overflows(run: Runner, tmp_path: Path) -> None:
    state = pair()
    state["a.weight_g"][2] = 1e6
    source = saved(state, tmp_path)
    refused(run, source, "--dtype", "float16", says=r"layer a\.weight: too large.*row 2", fix="--dtype")
    state = pair() | {"b": torch.tensor([1e6])}
    refused(
        run, saved(state, tmp_path), "--dtype", "float16", says=r"b: one element is too large", fix="--dtype"
    )
    assert run("fold", source).code == 0


# -- outputs


def test_an_output_that_exists(run: Runner, tmp_path: Path) -> None:
    source, out = saved(pair(), tmp_path), written(OLD, tmp_path, "there.pt")
    refused(run, source, "-o", out, says=r"there\.pt: it exists", fix="--force")
    refused(run, source, "-o", tmp_path, says="the source lies in it", fix="-o")
    assert run("fold", source, "-o", out, "--force").code == 0
    assert out.read_bytes() != OLD


def test_an_output_over_its_own_source(run: Runner, tmp_path: Path) -> None:
    source = saved(pair(), tmp_path)
    assert run("fold", source, "-o", source, "--force").code == 0
    assert list(torch.load(source)) == ["a.weight"]


def test_an_output_folder_that_is_not_there(run: Runner, tmp_path: Path) -> None:
    refused(
        run, saved(pair(), tmp_path), "-o", tmp_path / "no" / "out.pt", says="does not exist", fix="mkdir -p"
    )


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_full_disk(suffix: str, tmp_path: Path) -> None:
    source = saved({**pair(), "big": torch.ones(1 << 18)}, tmp_path)
    out = written(OLD, tmp_path, f"out.{suffix}")

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    before = listing(tmp_path)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from wnconvert.cli import main; main()",
            "fold",
            source,
            "-o",
            out,
            "--force",
        ],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=few,
    )
    assert done.returncode == 2, done.stderr
    assert re.search("the disk is full|cannot be written", done.stderr)
    assert "fix: " in done.stderr
    assert "Traceback" not in done.stderr
    assert listing(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no user ids here")
def test_a_folder_that_cannot_be_written_to(run: Runner, tmp_path: Path) -> None:
    source = saved(pair(), tmp_path)
    source.chmod(0o644)
    tmp_path.chmod(0o555)
    is_root = os.geteuid() == 0
    try:
        if is_root:  # to whom no folder is read-only
            for folder in (tmp_path, *tmp_path.parents[:3]):
                if folder.name.startswith("pytest"):
                    folder.chmod(0o555)
            os.seteuid(65534)
        ended = run("fold", source)
    finally:
        if is_root:
            os.seteuid(0)
            for folder in tmp_path.parents[:3]:
                if folder.name.startswith("pytest"):
                    folder.chmod(0o700)
        tmp_path.chmod(0o700)
    assert ended.code == 2
    assert "cannot be written to" in ended.stderr
    assert "fix: -o" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


# -- whatever else


SMALL = ["tied.pt", "plain.pt", "legacy_nonzip.pth", "sovits.pth", "scripted.pt", "waveglow_module.pt",
         "lightning.ckpt", "zero_row.safetensors", "codec_bf16.safetensors", "gan.pt"]  # fmt: skip


def flipped(data: bytes, chance: random.Random) -> bytes:
    """A file with a few bytes, or a word, that are not what they were."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(made))
        if chance.random() < 0.5:
            made[at] ^= 1 << chance.randrange(8)
        else:
            word = chance.choice((b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\1\0\0\0", b"(]}."))
            made[at : at + 4] = word[: len(made) - at]
    return bytes(made)


@pytest.mark.parametrize("name", SMALL)
def test_a_file_with_wrong_bytes_is_folded_or_refused(name: str, run: Runner, tmp_path: Path) -> None:
    data = (FIXTURES / name).read_bytes()
    chance = random.Random(name)
    source, out = tmp_path / "in.pt", tmp_path / "out.pt"
    for _ in range(30):
        source.write_bytes(flipped(data, chance))
        ended = run("fold", source, "-o", out, "--force")
        assert ended.code in (0, 2), ended.stderr
        assert ended.code == 0 or ended.stderr.startswith("error: ")
        assert run("inspect", source, "--full").code in (0, 2)
        assert run("compare", source, source).code in (0, 1, 2)
        assert {path.name for path in tmp_path.iterdir()} <= {"in.pt", "out.pt"}
