"""A target is what it was before, or what it was to become; and nothing else is left."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from wnconvert.errors import OutputError
from wnconvert.storage.staging import Staged, file_in, free_name, staged, staged_folder
from wnconvert.storage.stores import filling
from wnconvert.storage.stores.renames import rename_new


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A target that exists, alone in its folder."""
    path = tmp_path / "folder" / "model.pt"
    path.parent.mkdir()
    path.write_bytes(b"old")
    return path


def write(target: Path, content: bytes = b"new", *, force: bool = True) -> None:
    with staged(target, force=force) as file, file.filling(len(content), 1) as filled:
        filled.write(content, 0)


def content(target: Path) -> bytes:
    """What stands at a path, when nothing else lies in its folder."""
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    return target.read_bytes()


def fail(code: int) -> Callable[..., object]:
    def call(*_args: object, **_options: object) -> object:
        raise OSError(code, os.strerror(code))

    return call


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_stands_there_when_the_block_ends(tmp_path: Path) -> None:
    with staged(tmp_path / "new.pt", force=False) as file:
        file.write(b"tail", 4)
        file.write(memoryview(b"head"), 0)
        assert not (tmp_path / "new.pt").exists()
    assert content(tmp_path / "new.pt") == b"headtail"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(
    target: Path, error: type[BaseException]
) -> None:
    def fails(file: Staged) -> None:
        file.write(b"half", 0)
        raise error

    with pytest.raises(error), staged(target, force=True) as file:
        fails(file)
    assert content(target) == b"old"


@pytest.mark.parametrize("call", ["os.pwrite", "os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize(
    ("code", "what"),
    [
        (errno.ENOSPC, "full"),
        (errno.EDQUOT, "full"),
        (errno.EFBIG, "it cannot be written .File too large."),
        (errno.EROFS, "cannot be written to"),
        (errno.EIO, "it cannot be written"),
        (errno.EBUSY, "it cannot be written"),
    ],
)
def test_a_call_that_fails_is_told_and_nothing_is_left(
    target: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, what: str
) -> None:
    monkeypatch.setattr(call, fail(code))
    with pytest.raises(OutputError, match=what):
        write(target)
    assert content(target) == b"old"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_folder_that_cannot_be_written_to_is_refused(
    target: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr("os.open", fail(code))
    with pytest.raises(OutputError, match="folder cannot be written to"):
        write(target)
    monkeypatch.undo()
    assert content(target) == b"old"


def test_a_read_only_folder_is_refused() -> None:
    # Root may write to any folder, so a root becomes nobody: in a process, and a folder, of its own.
    code = """
import os, pathlib, sys
from wnconvert.storage.staging import staged
from wnconvert.errors import OutputError
if os.geteuid() == 0:
    os.setuid(65534)
try:
    with staged(pathlib.Path(sys.argv[1], "x"), force=True):
        pass
except OutputError as error:
    print(error.what)
"""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
        )
        assert done.stdout == "its folder cannot be written to\n"
        assert list(Path(folder).iterdir()) == []
        Path(folder).chmod(0o755)


def test_a_target_that_exists_needs_force(target: Path) -> None:
    with pytest.raises(OutputError, match="it exists") as caught:
        write(target, force=False)
    assert "--force" in caught.value.fix
    assert content(target) == b"old"
    write(target)
    assert content(target) == b"new"


@pytest.mark.parametrize("links", [True, False])
def test_a_target_that_appears_meanwhile_is_not_replaced_without_force(
    target: Path, monkeypatch: pytest.MonkeyPatch, *, links: bool
) -> None:
    target.unlink()
    if not links:
        monkeypatch.setattr("os.link", fail(errno.EPERM))
    with pytest.raises(OutputError, match="it exists"), staged(target, force=False):
        target.write_bytes(b"of another process")
    assert content(target) == b"of another process"


@pytest.mark.parametrize("how", ["one step", "links", "neither"])
def test_a_target_that_appears_at_the_last_moment_is_not_replaced(
    target: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    target.unlink()
    if how != "one step":
        monkeypatch.setattr("wnconvert.storage.stores.renames._renameat2", lambda *_: False)
    if how == "neither":
        monkeypatch.setattr("os.link", fail(errno.ENOTSUP))

    def late(one: Path, other: Path) -> None:
        target.write_bytes(b"of another process")
        rename_new(one, other)

    monkeypatch.setattr("wnconvert.storage.staging.rename_new", late)
    with pytest.raises(OutputError, match="it exists"):
        write(target, force=False)
    assert content(target) == b"of another process"


@pytest.mark.parametrize("links", [True, False])
def test_a_system_without_such_a_rename_gets_the_new_file_all_the_same(
    target: Path, monkeypatch: pytest.MonkeyPatch, *, links: bool
) -> None:
    target.unlink()
    monkeypatch.setattr("wnconvert.storage.stores.renames._renameat2", lambda *_: False)
    if not links:
        monkeypatch.setattr("os.link", fail(errno.ENOTSUP))
    write(target, force=False)
    assert content(target) == b"new"


def test_a_folder_a_device_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    for path, what in (
        (tmp_path, "a folder"),
        (Path(os.devnull), "not a regular file"),
        (tmp_path / "none" / "x", "none does not exist"),
    ):
        with pytest.raises(OutputError, match=what):
            write(path)
    assert not list(tmp_path.iterdir())


def test_what_the_disk_cannot_hold_is_refused_before_it_is_written(target: Path) -> None:
    with (
        pytest.raises(OutputError, match="the disk is full"),
        staged(target, force=True, size=1 << 60),
    ):
        pytest.fail("the block must not run")
    assert content(target) == b"old"


def test_a_new_file_has_the_mode_that_umask_leaves(tmp_path: Path, umask: Callable[[int], int]) -> None:
    for mask in (0o022, 0o077, 0o002):
        umask(mask)
        write(tmp_path / f"{mask}")
        assert mode(tmp_path / f"{mask}") == 0o666 & ~mask


@pytest.mark.parametrize("wanted", [0o600, 0o664, 0o444])
def test_a_target_keeps_its_mode_and_its_content_is_never_more_open(
    target: Path, umask: Callable[[int], int], wanted: int
) -> None:
    target.chmod(wanted)
    umask(0o027)
    with staged(target, force=True) as file:
        assert mode(file.path) == wanted
        file.write(b"new", 0)
    assert mode(target) == wanted
    assert content(target) == b"new"


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed(target: Path, tmp_path: Path, *, exists: bool) -> None:
    if not exists:
        target.unlink()
    link = tmp_path / "link.pt"
    link.symlink_to(target)
    write(link)
    assert link.is_symlink()
    assert content(target) == b"new"


@pytest.mark.parametrize("name", ["x" * 255, "€" * 85])
def test_a_name_as_long_as_names_may_be_is_written(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    assert content(tmp_path / name) == b"new"


def test_data_is_on_disk_before_its_name_and_the_name_before_the_end(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, replace = os.fsync, Path.replace

    def synced(fd: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def replaced(source: Path, to: Path) -> Path:
        calls.append("rename")
        return replace(source, to)

    monkeypatch.setattr("os.fsync", synced)
    monkeypatch.setattr("pathlib.Path.replace", replaced)
    write(target)
    assert calls == ["file", "rename", "folder"]


def test_a_file_that_is_only_passing_is_not_synced_and_stays_in_the_cache(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", synced)
    monkeypatch.setattr(filling, "_DIRECT_FILE", 0)
    monkeypatch.setattr(filling, "open_direct", fail(errno.EIO))
    with staged(target, force=True) as file:
        file.passing = True
        with file.filling(3, 1) as filled:
            filled.write(b"new", 0)
    assert content(target) == b"new"
    assert calls == ["folder"]


def test_a_short_write_is_continued(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr("os.pwrite", lambda fd, data, at: pwrite(fd, data[:2], at))
    write(target, b"more than two bytes")
    assert content(target) == b"more than two bytes"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts the files in /proc")
def test_no_file_stays_open(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - as long as it is listed, it is open
    write(target)
    monkeypatch.setattr("os.fsync", fail(errno.EIO))
    with pytest.raises(OutputError):
        write(target)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


# -- a file and what it names


def write_both(target: Path, *, force: bool = True, data: str = "model.pt.data") -> None:
    with staged_folder(target, force=force) as folder:
        for name, content in ((target.name, b"new"), (data, b"new data")):
            with file_in(folder, name, target) as file:
                file.write(content, 0)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_files_of_a_folder_stand_beside_the_target_when_the_block_ends(target: Path) -> None:
    write_both(target)
    assert contents(target.parent) == {"model.pt": b"new", "model.pt.data": b"new data"}
    target.unlink()
    write_both(target, force=False, data=free_name(target))
    assert contents(target.parent) == {
        "model.pt": b"new",
        "model.pt.data": b"new data",
        "model.pt.2.data": b"new data",
    }


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_of_a_block_that_fails_no_file_is_left(target: Path, error: type[BaseException]) -> None:
    def fails(folder: Path) -> None:
        (folder / "model.pt").write_bytes(b"half")
        (folder / "model.pt.data").write_bytes(b"half")
        raise error

    with pytest.raises(error), staged_folder(target, force=True) as folder:
        fails(folder)
    assert content(target) == b"old"


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("force", [True, False])
def test_what_the_target_names_is_never_put_over_a_file(
    target: Path, monkeypatch: pytest.MonkeyPatch, *, force: bool, links: bool
) -> None:
    if not force:
        target.unlink()
    if not links:
        monkeypatch.setattr("os.link", fail(errno.ENOTSUP))
    (target.parent / "model.pt.data").write_bytes(b"of another")
    before = contents(target.parent)
    with pytest.raises(OutputError, match="it exists"):
        write_both(target, force=force)
    assert contents(target.parent) == before


@pytest.mark.parametrize("links", [True, False])
def test_where_the_target_cannot_be_placed_nothing_else_stays(
    target: Path, monkeypatch: pytest.MonkeyPatch, *, links: bool
) -> None:
    if not links:
        monkeypatch.setattr("os.link", fail(errno.ENOTSUP))
    monkeypatch.setattr("pathlib.Path.replace", fail(errno.EIO))
    with pytest.raises(OutputError, match="it cannot be written"):
        write_both(target)
    assert content(target) == b"old"


def test_a_target_that_appears_while_a_folder_is_filled_is_not_replaced(target: Path) -> None:
    target.unlink()

    def fill(folder: Path) -> None:
        (folder / "model.pt").write_bytes(b"new")
        target.write_bytes(b"of another process")

    with pytest.raises(OutputError, match="it exists"), staged_folder(target, force=False) as folder:
        fill(folder)
    assert content(target) == b"of another process"


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.mkdir"])
def test_a_call_that_fails_for_a_folder_is_told(
    target: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(call, fail(errno.ENOSPC))
    with pytest.raises(OutputError, match="the disk is full"):
        write_both(target)
    assert content(target) == b"old"


def test_a_folder_is_refused_what_a_file_is(target: Path) -> None:
    for path, force, what in (
        (target, False, "it exists"),
        (target.parent, True, "a folder"),
        (target.parent / "none" / "x", True, "does not exist"),
    ):
        with pytest.raises(OutputError, match=what), staged_folder(path, force=force):
            pytest.fail("the block must not run")
    with pytest.raises(OutputError, match="disk is full"), staged_folder(target, force=True, size=1 << 60):
        pytest.fail("the block must not run")
    assert content(target) == b"old"


def test_the_folder_is_private_and_its_files_get_the_mode_of_the_target(target: Path) -> None:
    target.chmod(0o600)
    with staged_folder(target, force=True) as folder:
        assert mode(folder) == 0o700
        (folder / "model.pt").write_bytes(b"new")
        (folder / "model.pt.data").write_bytes(b"new data")
    assert mode(target) == mode(target.with_name("model.pt.data")) == 0o600


def test_through_a_link_a_file_is_written_but_none_that_needs_another(target: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.pt"
    link.symlink_to(target)
    with pytest.raises(OutputError, match="link into another folder"):
        write_both(link, data="link.pt.data")
    assert content(target) == b"old"
    with staged_folder(link, force=True) as folder:
        (folder / "link.pt").write_bytes(b"new")
    assert link.is_symlink()
    assert content(target) == b"new"


def test_the_data_is_on_disk_under_its_name_before_the_target_is(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, replace, link = os.fsync, Path.replace, os.link

    def synced(fd: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def linked(source: Path, to: Path) -> None:
        calls.append("data")
        link(source, to)

    def replaced(source: Path, to: Path) -> Path:
        calls.append("target")
        return replace(source, to)

    monkeypatch.setattr("os.fsync", synced)
    monkeypatch.setattr("os.link", linked)
    monkeypatch.setattr("pathlib.Path.replace", replaced)
    write_both(target)
    assert calls == ["file", "file", "data", "folder", "target", "folder"]
