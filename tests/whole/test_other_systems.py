"""Other systems: what macOS and Windows lack is taken away here, and everything must go on working.

Windows has no preadv, pread, pwrite and fchmod, opens no file without waiting, has no SIGHUP, and cannot sync
what is opened for reading; macOS lacks few of them.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.helpers.golden import FIXTURES
from tests.helpers.runner import Runner
from tests.helpers.states import output_of
from wnconvert.storage.files import open_file
from wnconvert.storage.staging import staged
from wnconvert.storage.stores import system
from wnconvert.verbs.conversion.files.fold import fold_file

LACKING = {
    "macOS": ["sched_getaffinity", "posix_fadvise", "copy_file_range", "O_DIRECT", "pread64"],
    "an older macOS": [
        *("sched_getaffinity", "posix_fadvise", "copy_file_range", "O_DIRECT", "preadv", "pwritev"),
    ],
    "Windows": [
        *("sched_getaffinity", "posix_fadvise", "copy_file_range", "O_DIRECT", "sendfile"),
        *("preadv", "pwritev", "pread", "pwrite", "fchmod"),
        *("O_CLOEXEC", "O_NONBLOCK", "fork", "mkfifo", "getuid", "chown", "geteuid"),
    ],
}


@pytest.fixture(params=LACKING)
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in LACKING[request.param]:
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(system, "_allocate", lambda _descriptor, _size: errno.ENOSYS)  # it asks for Linux
    if request.param == "Windows":
        monkeypatch.delattr(signal, "SIGHUP")
        synced = os.fsync

        def fsync(descriptor: int) -> None:
            import fcntl

            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                raise OSError(errno.EBADF, "Bad file descriptor")
            synced(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
    return str(request.param)


@pytest.mark.usefixtures("elsewhere")
def test_files_are_the_same_bytes_on_every_system(tmp_path: Path, run: Runner) -> None:
    for source, out in (("g_02500000", "x.pt"), ("sharded", "x"), ("hifigan.safetensors", "x.npz")):
        ended = run("fold", FIXTURES / source, "-o", tmp_path / out, "--verify", "--threads", "4")
        assert (ended.returncode, ended.stderr) == (0, "")
    assert run("split", tmp_path / "x.pt", "-o", tmp_path / "y.pt").returncode == 0
    assert run("migrate", FIXTURES / "gan.pt", "-o", tmp_path / "z.pt", "--verify").returncode == 0
    assert run("inspect", FIXTURES / "vits.pth", "--full").returncode == 0
    assert run("compare", FIXTURES / "g_02500000", tmp_path / "x.npz", "--only", "generator").returncode == 0
    assert not [name for name in tmp_path.iterdir() if name.suffix == ".tmp"]


def test_the_bytes_are_those_of_this_system(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    here = output_of(fold_file(FIXTURES / "gan.pt", tmp_path / "here.pt")).read_bytes()
    for name in LACKING["Windows"]:
        request.getfixturevalue("monkeypatch").delattr(os, name, raising=False)
    assert not hasattr(os, "preadv")
    assert output_of(fold_file(FIXTURES / "gan.pt", tmp_path / "there.pt", threads=4)).read_bytes() == here


def test_threads_that_seek_in_one_file_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LACKING["Windows"]:
        monkeypatch.delattr(os, name, raising=False)
    content = bytes(range(256)) * 64
    with staged(tmp_path / "x", force=False) as target:

        def write(part: int) -> None:
            for at in range(part * 64, len(content), 256):
                target.write(content[at : at + 64], at)

        threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (tmp_path / "x").read_bytes() == content
    file = open_file(tmp_path / "x")
    assert file.read(100, 50) == content[100:150]
    file.close()


def test_an_output_is_closed_before_it_is_renamed_or_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []

    def checked(path: Path, *_given: object, **_more: object) -> None:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(opened[-1])
        assert path.name.startswith("x.")

    monkeypatch.setattr(Path, "unlink", checked)
    with pytest.raises(KeyError), staged(tmp_path / "x", force=False) as target:  # noqa: PT012 - it raises inside
        opened.append(target.fd)
        raise KeyError
    monkeypatch.setattr(os, "link", checked)
    with staged(tmp_path / "x", force=False) as target:
        opened.append(target.fd)


def test_help_and_import_work_where_the_names_are_missing_from_the_start() -> None:
    code = f"""
import os, signal, sys
for name in {LACKING["Windows"]!r}:
    vars(os).pop(name, None)
del signal.SIGHUP
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
import wnconvert
from wnconvert.cli import main
for name in wnconvert.__all__:
    if "module" not in name and "onnx" not in name:
        getattr(wnconvert, name)
sys.argv = ["wnconvert", *sys.argv[1:]]
main()
"""
    for arguments in (["--help"], ["fold", "--help"], ["inspect", str(FIXTURES / "vits.pth")]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
def test_a_stream_that_lacks_a_character_gets_another_one(encoding: str) -> None:
    command = [sys.executable, "-m", "wnconvert", "inspect", str(FIXTURES / "gan.pt"), "--full"]
    done = subprocess.run(
        command, capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": encoding}
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"generator" in done.stdout


def test_the_fallbacks_say_what_the_calls_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"abcdef")
    descriptor = os.open(tmp_path / "x", system.READING)

    def read() -> tuple[object, ...]:
        buffer = memoryview(bytearray(4))
        return (
            system.read_at(descriptor, 3, 4),
            system.read_at(descriptor, 3, 9),
            system.read_into(descriptor, buffer, 4),
            bytes(buffer),
        )

    before = read()
    for name in LACKING["Windows"]:
        monkeypatch.delattr(os, name, raising=False)
    assert read() == before == (b"ef", b"", 2, b"ef\0\0")
    os.close(descriptor)
