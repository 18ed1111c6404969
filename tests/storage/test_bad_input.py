"""Every bad input ends with exit code 2, what and where and what to do, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers.bad_files import pair, rezipped, saved, written, zipped
from tests.helpers.golden import FIXTURES
from tests.helpers.marks import some
from tests.helpers.runner import OLD, Runner, listing, refused

# -- what is no checkpoint


def test_a_file_that_is_not_there(run: Runner, tmp_path: Path) -> None:
    refused(run, tmp_path / "in.pt", says="there is no such file", fix="check the path")


def test_a_folder_that_is_no_checkpoint(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    refused(run, tmp_path / "folder", says="folder", fix=None)


def test_what_is_no_regular_file(run: Runner, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert run("fold", tmp_path / "pipe").returncode == 2


def test_a_name_in_the_place_of_a_folder(run: Runner, tmp_path: Path) -> None:
    assert run("fold", written(b"x", tmp_path) / "model.pt").returncode == 2


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
        (b"abc", "not a checkpoint"),
        (b"\0" * 100, "not a checkpoint|safetensors"),
        (b"random words that go on for a while", "not a checkpoint|header"),
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


# -- torch's files


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


def test_a_zip_without_a_pickle(run: Runner, tmp_path: Path) -> None:
    refused(run, zipped({"readme.txt": b"x"}, tmp_path), says="no data.pkl")


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("kind", [torch.Tensor, torch.nn.Parameter])
def test_a_single_tensor_is_called_so(
    kind: Callable[[torch.Tensor], torch.Tensor], as_zip: bool, run: Runner, tmp_path: Path
) -> None:
    source = saved(kind(torch.ones(3)), tmp_path, _use_new_zipfile_serialization=as_zip)
    refused(
        run, source, says=r"a single tensor float32 \[3\], without a name", fix='torch.save({"NAME": tensor}'
    )
    assert run("inspect", source).returncode == 2
    assert run("fold", saved({"NAME": torch.ones(3)}, tmp_path)).returncode == 0


def test_a_big_endian_file(run: Runner, tmp_path: Path) -> None:
    source = saved(pair(), tmp_path)
    refused(run, rezipped(source, lambda records: records.update(byteorder=b"big")), says="big-endian")
    old = saved(pair(), tmp_path, _use_new_zipfile_serialization=False).read_bytes()
    turned, count = re.subn(rb"(?<=little_endianq.)\x88", b"\x89", old)
    assert count == 1
    refused(run, written(turned, tmp_path), says="big-endian")


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
    "arrays of one text": lambda: (
        head("n" * 20_000_000) + b"q\1}(" + b"".join(head(f"{at}") + array(20_000_000) for at in range(200))
        + head("last") + array(3) + b"u"
    ),
    "doubled modules": lambda: module() + (b"q\1" + module(head("a") + b"h\1" + head("b") + b"h\1")) * 60,
    "long names": lambda: head(LONG) + b"q\2" + module() + (b"q\1" + module(b"h\2h\1")) * 1000,
    "long paths": lambda: head(LONG) + b"q\2N" + b"q\1}h\2h\1s" * 4000,
    "wide and deep": lambda: b"}(" + b"K\1}" * 100_000 + b"u" + b"q\1}K\1h\1s" * 3000,
}  # fmt: skip


def array(size: int) -> bytes:
    """The opcodes of a NumPy array of bytes whose content is the text at memo 1."""
    kind = b"cnumpy\ndtype\n(" + head("u1") + b"\x89\x88tR"
    content = b"c_codecs\nencode\nh\1" + head("latin1") + b"\x86R"
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n)" + head("b") + b"tR"
    return made + b"(K\1(J" + struct.pack("<i", size) + b"t" + kind + b"\x89" + content + b"tb"


def module(children: bytes = b"") -> bytes:
    """The opcodes of a module with these items in its ``_modules``."""
    return b"cm\nM\n)R}(" + head("_parameters") + b"}" + head("_modules") + b"}(" + children + b"uub"


@some("name", {name: name for name in HOSTILE}, [*HOSTILE][::3])
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
    assert run("fold", source, "--allow-nonfinite").returncode == 0


def test_float16_that_overflows(run: Runner, tmp_path: Path) -> None:
    state = pair()
    state["a.weight_g"][2] = 1e6
    source = saved(state, tmp_path)
    refused(run, source, "--dtype", "float16", says=r"layer a\.weight: too large.*row 2", fix="--dtype")
    state = pair() | {"b": torch.tensor([1e6])}
    refused(
        run, saved(state, tmp_path), "--dtype", "float16", says=r"b: one element is too large", fix="--dtype"
    )
    assert run("fold", source).returncode == 0


# -- outputs


def test_an_output_that_exists(run: Runner, tmp_path: Path) -> None:
    source, out = saved(pair(), tmp_path), written(OLD, tmp_path, "there.pt")
    refused(run, source, "-o", out, says=r"there\.pt: it exists", fix="--force")
    assert run("fold", source, "-o", out, "--force").returncode == 0
    assert out.read_bytes() != OLD


def test_an_output_over_its_own_source(run: Runner, tmp_path: Path) -> None:
    source = saved(pair(), tmp_path)
    refused(run, source, "-o", source, "--force", says="it is the source itself", fix="--in-place")
    assert run("fold", source, "--in-place").returncode == 0
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
                if folder.name.startswith(("pytest", "popen")):
                    folder.chmod(0o555)
            os.seteuid(65534)
        ended = run("fold", source)
    finally:
        if is_root:
            os.seteuid(0)
            for folder in tmp_path.parents[:3]:
                if folder.name.startswith(("pytest", "popen")):
                    folder.chmod(0o700)
        tmp_path.chmod(0o700)
    assert ended.returncode == 2
    assert "cannot be written to" in ended.stderr
    assert "fix: -o" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]
