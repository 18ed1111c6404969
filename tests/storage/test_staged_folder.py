"""A folder is what it was before, or what it was to become; and nothing else is left."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from wnconvert.errors import OutputError
from wnconvert.storage.staged_folder import replaced_folder
from wnconvert.storage.stores.renames import exchange

OLD = {"config.json": b"old", "model.safetensors": b"old weights", "sub/deep/tokens": b"t"}
NEW = {"config.json": b"new", "model-00001-of-00002.safetensors": b"new weights", "other/tokens": b"u"}

#: Every call that changes a file or a folder, on the way in and when it is cleaned up.
CALLS = (
    *((os, name) for name in ("fsync", "unlink", "rmdir", "open")),
    *((Path, name) for name in ("mkdir", "rename", "chmod")),
)


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A folder that exists, alone in its own."""
    path = tmp_path / "beside" / "model"
    fill(path, OLD)
    return path


def write(target: Path, files: dict[str, bytes] | None = None, *, force: bool = True) -> None:
    with replaced_folder(target, force=force) as folder:
        fill(folder, NEW if files is None else files)


def content(target: Path) -> dict[str, bytes]:
    """What is in a folder, when nothing else lies beside it."""
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    return files_of(target)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=["one step", "two renames"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How folders change names: at once, or as where the file system cannot do that."""
    if request.param == "two renames":
        monkeypatch.setattr("wnconvert.storage.stores.renames._renameat2", lambda *_: False)
    return str(request.param)


@pytest.fixture
def two_renames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wnconvert.storage.stores.renames._renameat2", lambda *_: False)


def test_a_new_folder_stands_there_when_the_block_ends(tmp_path: Path) -> None:
    with replaced_folder(tmp_path / "new", force=False) as folder:
        fill(folder, NEW)
        assert not (tmp_path / "new").exists()
        assert folder.parent == tmp_path
    assert content(tmp_path / "new") == NEW


@pytest.mark.usefixtures("swap")
def test_an_old_folder_is_replaced_whole_and_none_of_its_files_stays(target: Path) -> None:
    write(target)
    assert content(target) == NEW


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_block_that_fails_leaves_the_old_folder_and_nothing_else(
    target: Path, error: type[BaseException]
) -> None:
    def fails(folder: Path) -> None:
        fill(folder, NEW)
        raise error

    with pytest.raises(error), replaced_folder(target, force=True) as folder:
        fails(folder)
    assert content(target) == OLD


class Stages:
    """Interrupts a run before its first call, or after it, then its second, …, until it comes to its end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, after: bool) -> None:
        self.left = -1
        for owner, name in CALLS:
            monkeypatch.setattr(owner, name, self.hooked(getattr(owner, name), after=after))

    def hooked(self, call: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
        def hook(*given: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == -1 and not after:
                raise KeyboardInterrupt
            made = call(*given, **options)
            if self.left == -1 and after:
                if isinstance(made, int):
                    os.close(made)
                raise KeyboardInterrupt
            return made

        return hook


@pytest.mark.usefixtures("swap")
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_an_interrupt_at_any_call_leaves_the_old_folder_or_the_new_one_and_nothing_else(
    target: Path, monkeypatch: pytest.MonkeyPatch, *, old: bool, after: bool
) -> None:
    stages = Stages(monkeypatch, after=after)
    seen = set()
    for stage in count():
        shutil.rmtree(target.parent)
        target.parent.mkdir()
        if old:
            fill(target, OLD)
        stages.left = stage
        try:
            write(target)
        except KeyboardInterrupt:
            stages.left = -1
        else:
            break
        left = {path.name for path in target.parent.iterdir()}
        assert left <= {target.name}, f"at call {stage}"
        seen.add("none" if not left else "new" if files_of(target) == NEW else "old")
        assert not left or files_of(target) in (OLD, NEW), f"at call {stage}"
    assert stage > 10
    assert content(target) == NEW
    assert seen == {"new", "old" if old else "none"}


@pytest.mark.usefixtures("two_renames")
@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.rename"])
@pytest.mark.parametrize(
    ("code", "what"),
    [
        (errno.ENOSPC, "full"),
        (errno.EROFS, "cannot be written to"),
        (errno.EIO, "it cannot be written"),
        (errno.EBUSY, "it cannot be written"),
    ],
)
def test_a_call_that_fails_is_told_and_nothing_is_left(
    target: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, what: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(call, fail)
    with pytest.raises(OutputError, match=what):
        write(target)
    monkeypatch.undo()
    assert content(target) == OLD


def test_a_folder_that_cannot_be_made_is_told(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("pathlib.Path.mkdir", fail)
    with pytest.raises(OutputError, match="its folder cannot be written to"):
        write(target, {})
    monkeypatch.undo()
    assert content(target) == OLD


@pytest.mark.usefixtures("two_renames")
def test_where_the_new_folder_cannot_come_in_the_old_one_comes_back(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def once(path: Path, other: Path) -> Path:
        if path.name.endswith(".tmp") and not path.name.endswith(".old.tmp"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, other)

    monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(OutputError, match="cannot be written"):
        write(target)
    assert content(target) == OLD


@pytest.mark.usefixtures("swap")
def test_an_old_folder_that_cannot_be_deleted_is_named(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wnconvert.storage.staged_folder.shutil.rmtree", lambda *_, **__: None)
    with pytest.raises(OutputError, match="it is written, but the old folder could not be deleted") as caught:
        write(target)
    assert files_of(target) == NEW
    (aside,) = (path for path in target.parent.iterdir() if path != target)
    assert caught.value.fix == f"rm -r {aside}"
    assert files_of(aside) == OLD


def test_a_target_that_exists_needs_force(target: Path) -> None:
    with pytest.raises(OutputError, match="it exists") as caught:
        write(target, force=False)
    assert "--force" in caught.value.fix
    assert content(target) == OLD


@pytest.mark.parametrize("files", [OLD, {}])
def test_a_target_that_appears_meanwhile_is_not_replaced_without_force(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    target = tmp_path / "new"

    def meanwhile(folder: Path) -> None:
        fill(folder, NEW)
        target.mkdir()
        fill(target, files)

    with pytest.raises(OutputError, match="it exists"), replaced_folder(target, force=False) as folder:
        meanwhile(folder)
    assert content(target) == files


def test_what_is_no_folder_and_where_there_is_no_room_are_refused(target: Path) -> None:
    file = target / "config.json"
    for force in (False, True):
        with pytest.raises(OutputError, match="it is not a folder"):
            write(file, force=force)
    with pytest.raises(OutputError, match="is not a folder"):
        write(file / "model")
    with pytest.raises(OutputError, match="does not exist"):
        write(target / "not" / "there")
    with (
        pytest.raises(OutputError, match="the disk is full: 1152921504606846976 bytes are needed"),
        replaced_folder(target, force=True, size=1 << 60),
    ):
        pass
    assert content(target) == OLD


@pytest.mark.usefixtures("umask")
def test_a_new_folder_has_the_mode_that_umask_leaves_and_an_old_one_keeps_its_own(
    target: Path, tmp_path: Path
) -> None:
    write(tmp_path / "new")
    assert mode(tmp_path / "new") == 0o755
    target.chmod(0o770)
    with replaced_folder(target, force=True) as folder:
        assert mode(folder) == 0o700
    assert mode(target) == 0o770


def test_a_link_to_a_folder_is_followed(target: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(target)
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert content(target) == NEW


def test_a_link_into_nothing_is_followed_with_force_only(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("new")
    with pytest.raises(OutputError, match="it is a link to new, where nothing is") as caught:
        write(tmp_path / "link", force=False)
    assert caught.value.fix == f"-o {tmp_path / 'new'}, or --force"
    assert not (tmp_path / "new").exists()
    write(tmp_path / "link", force=True)
    assert files_of(tmp_path / "new") == NEW


def test_a_name_as_long_as_names_may_be_is_written(tmp_path: Path) -> None:
    write(tmp_path / ("x" * 255))
    write(tmp_path / ("x" * 255))
    assert content(tmp_path / ("x" * 255)) == NEW


def test_all_data_is_on_disk_before_a_name_changes_and_names_before_the_old_folder_goes(
    target: Path, monkeypatch: pytest.MonkeyPatch, swap: str
) -> None:
    done: list[str] = []
    fsync, rename, rmtree = os.fsync, Path.rename, shutil.rmtree

    def synced(fd: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"
        done.append(f"sync {kind}")
        fsync(fd)

    def renamed(path: Path, other: Path) -> Path:
        done.append("rename")
        return rename(path, other)

    def removed(path: Path, **options: Any) -> None:
        if path.exists():
            done.append("remove")
        rmtree(path, **options)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr("wnconvert.storage.staged_folder.shutil.rmtree", removed)
    write(target)
    assert sorted(done[:5]) == ["sync file"] * 3 + ["sync folder"] * 2
    then = ["rename", "rename", "sync folder", "remove", "sync folder"]
    assert done[5:] == (then if swap == "two renames" else ["sync folder", "remove"])


def test_names_are_exchanged_in_one_step_here(tmp_path: Path) -> None:
    # If this fails, the file system of the tests cannot do it, and one path is untested.
    fill(tmp_path / "a", OLD)
    fill(tmp_path / "b", NEW)
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert (files_of(tmp_path / "a"), files_of(tmp_path / "b")) == (NEW, OLD)
    assert not exchange(tmp_path / "a", tmp_path / "c")
    assert files_of(tmp_path / "a") == NEW


def test_links_inside_the_new_folder_are_left_as_they_are(target: Path) -> None:
    with replaced_folder(target, force=True) as folder:
        fill(folder, NEW)
        (folder / "link").symlink_to("config.json")
        (folder / "dangling").symlink_to("not there")
    assert (target / "link").read_bytes() == b"new"
    assert (target / "dangling").is_symlink()
