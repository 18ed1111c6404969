"""What killed runs left is told from what runs still write, and from what is somebody else's."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from wnconvert.storage.stores import temporary
from wnconvert.storage.stores.renames import linked_new, rename_new
from wnconvert.storage.stores.system import lock
from wnconvert.storage.stores.temporary import (
    Leftover,
    aside_of,
    held_file,
    held_folder,
    leftovers_of,
    mark_replaced,
    remove_leftover,
)


@pytest.fixture
def real(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


def left_file(real: Path, content: bytes = b"half") -> Path:
    """A file as a killed run leaves it."""
    path, descriptor = held_file(real, 0o600)
    os.write(descriptor, content)
    os.close(descriptor)
    return path


def left_folder(real: Path, **files: bytes) -> Path:
    path, let_go = held_folder(real, 0o700)
    for name, content in files.items():
        (path / name.replace("__", ".")).write_bytes(content)
    let_go()
    return path


def only(real: Path) -> Leftover:
    (left,) = leftovers_of(real)
    return left


# -- who holds what


def test_a_file_is_held_while_it_is_open_and_a_folder_until_it_is_let_go(real: Path) -> None:
    path, descriptor = held_file(real, 0o600)
    assert only(real) == Leftover(path, real, lives=True, is_old=False)
    assert not remove_leftover(only(real))
    os.close(descriptor)
    assert only(real) == Leftover(path, real, lives=False, is_old=False)
    assert remove_leftover(only(real))
    folder, let_go = held_folder(real, 0o700)
    assert only(real).lives
    let_go()
    assert only(real) == Leftover(folder, real, lives=False, is_old=False)
    assert remove_leftover(only(real))
    assert list(real.parent.iterdir()) == []


def test_what_came_to_life_since_the_look_is_not_removed(real: Path) -> None:
    path = left_file(real)
    left = only(real)
    descriptor = os.open(path, os.O_RDONLY)
    assert lock(descriptor)
    assert not remove_leftover(left)
    os.close(descriptor)
    assert path.exists()


def test_what_somebody_took_for_a_leftover_before_it_was_held_is_made_again(
    real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making a file and locking it another run with --clean may come."""
    again = iter([True, True, False])

    def late(descriptor: int) -> bool | None:
        if next(again, False):
            for path in real.parent.iterdir():
                (Path.rmdir if path.is_dir() else Path.unlink)(path)
        return lock(descriptor)

    monkeypatch.setattr(temporary, "lock", late)
    path, descriptor = held_file(real, 0o600)
    assert list(real.parent.iterdir()) == [path]
    os.close(descriptor)
    path.unlink()
    again = iter([True, True, False])
    folder, let_go = held_folder(real, 0o700)
    let_go()
    assert list(real.parent.iterdir()) == [folder]
    folder.rmdir()
    locked = iter([False, None])  # by a run that looks whether it is held
    monkeypatch.setattr(temporary, "lock", lambda _: next(locked))
    path, descriptor = held_file(real, 0o600)
    os.close(descriptor)
    assert list(real.parent.iterdir()) == [path]


def test_without_locks_nobody_can_tell_and_nothing_is_removed(
    real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuses)
    path = left_file(real)
    assert only(real).lives is None
    assert not remove_leftover(only(real))
    assert path.exists()


def test_what_is_only_read_is_still_told(real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_file(real)
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "no")))
    assert only(real).lives is None


# -- what is not ours


def test_nothing_else_that_lies_beside_is_taken_for_a_leftover(real: Path) -> None:
    ours = left_file(real).name
    token = ours.removeprefix("model.pt.wnconvert-").removesuffix(".tmp")
    decoys = [
        "model.pt",
        "model.pt.tmp",
        "model.pt.wnconvert-.tmp",
        "model.pt.wnconvert-backup.tmp",
        "model.pt.wnconvert-deadbeef.tmp",
        "model.pt.wnconvert-deadbeefcafe.tmp",
        f"model.pt.wnconvert-{token}",
        f"model.pt.wnconvert-{token}.tmp.bak",
        f"model.pt.wnconvert-{token.upper()}.tmp" if token.upper() != token else "x",
        f"model.pt.wnconvert-{token[::-1]}.tmp" if token[::-1] != token else "y",
        f"copy of {ours}",
        f"other.pt.wnconvert-{token}.tmp",
        f"model.pt.wnconvert-{token}.new.tmp",
    ]
    for name in decoys:
        (real.parent / name).write_bytes(b"precious")
    link = real.with_name(left_file(real).name)
    link.unlink()
    link.symlink_to(real)
    assert [left.path.name for left in leftovers_of(real)] == [ours]
    assert remove_leftover(only(real))
    assert sorted(path.name for path in real.parent.iterdir()) == sorted({*decoys, link.name})


def test_leftovers_of_another_target_are_not_those_of_this(real: Path) -> None:
    path = left_file(real.with_name("model.pt2"))
    assert leftovers_of(real) == []
    assert only(real.with_name("model.pt2")).path == path
    assert leftovers_of(real.parent / "none" / "x") == []


@pytest.mark.parametrize("name", ["x" * 255, "€" * 85, "a\nb"])
def test_names_of_any_kind_are_found_again(tmp_path: Path, name: str) -> None:
    real = tmp_path / name
    path = left_file(real)
    assert only(real).path == path
    assert len(os.fsencode(aside_of(path).name)) <= 255


# -- what comes back, and what goes along


def test_an_old_folder_whose_place_was_not_taken_comes_back(tmp_path: Path) -> None:
    real = tmp_path / "model"
    new = left_folder(real, config__json=b"new")
    old = aside_of(new)
    old.mkdir()
    (old / "config.json").write_bytes(b"old")
    found = {left.path: left for left in leftovers_of(real)}
    assert {path: left.is_old for path, left in found.items()} == {new: False, old: True}
    assert all(remove_leftover(left) for left in found.values())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (real / "config.json").read_bytes() == b"old"


def test_an_old_folder_goes_where_the_new_one_stands(tmp_path: Path) -> None:
    real = tmp_path / "model"
    old = aside_of(left_folder(real))
    old.with_name(old.name.replace(".old.tmp", ".tmp")).rename(old)
    real.mkdir()
    assert remove_leftover(only(real))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_old_folder_aside_is_held_by_the_run_whose_new_one_stands(tmp_path: Path) -> None:
    real = tmp_path / "model"
    new, let_go = held_folder(real, 0o700)
    old = aside_of(new)
    old.mkdir()
    assert {left.lives for left in leftovers_of(real)} == {True}
    new.rename(real)
    assert only(real) == Leftover(old, real, lives=True, is_old=True)
    let_go()
    assert only(real).lives is False


@pytest.mark.parametrize("stands", [True, False])
def test_data_goes_only_where_the_file_that_names_it_was_not_placed(real: Path, *, stands: bool) -> None:
    data = real.with_name("model.pt.data")
    other = real.with_name("model.pt.2.data")
    folder = left_folder(real, model__pt=b"new", model__pt__data=b"data", model__pt__2__data=b"2")
    assert linked_new(folder / data.name, data)
    other.write_bytes(b"of another")
    if stands:
        rename_new(folder / real.name, real)
    else:
        real.write_bytes(b"old")
    assert remove_leftover(only(real))
    left = {path.name: path.read_bytes() for path in real.parent.iterdir()}
    kept = {real.name: b"new", data.name: b"data"} if stands else {real.name: b"old"}
    assert left == {**kept, other.name: b"of another"}


# -- names that nothing has


@pytest.fixture(params=["one step", "links", "neither"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a file gets a name that nothing has, by what the system can do."""
    if request.param != "one step":
        monkeypatch.setattr("wnconvert.storage.stores.renames._renameat2", lambda *_: False)
    if request.param == "neither":
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no")))
    return str(request.param)


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("there", ["a file", "an empty file", "a link into nothing", "a folder"])
def test_a_file_is_never_renamed_over_what_is_there(tmp_path: Path, there: str) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"new")
    if there == "a folder":
        other.mkdir()
    elif there == "a link into nothing":
        other.symlink_to("nothing")
    else:
        other.write_bytes(b"old" if there == "a file" else b"")
    with pytest.raises(FileExistsError):
        rename_new(one, other)
    assert one.read_bytes() == b"new"
    assert there != "a file" or other.read_bytes() == b"old"
    assert os.path.lexists(other)


@pytest.mark.usefixtures("how")
def test_a_folder_is_never_renamed_over_what_is_there(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / folder.name).touch()
    with pytest.raises(FileExistsError):
        rename_new(one, other)
    assert (one / "one").exists()
    assert (other / "other").exists()
    (other / "other").unlink()
    other.rmdir()
    rename_new(one, other)
    assert not one.exists()
    assert (other / "one").exists()


def test_this_system_renames_in_one_step(tmp_path: Path) -> None:
    # If this fails, the file system of the tests cannot do it, and one path is untested.
    from wnconvert.storage.stores.renames import _NOREPLACE, _renameat2

    (tmp_path / "one").touch()
    assert _renameat2(tmp_path / "one", tmp_path / "other", _NOREPLACE)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_another_error_of_a_rename_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        rename_new(tmp_path / "none", tmp_path / "other")


@pytest.mark.parametrize("stands", [True, False])
def test_what_a_replaced_file_needed_is_handed_on_only_where_it_was_replaced(
    real: Path, *, stands: bool
) -> None:
    data, other = real.with_name("model.pt.data"), real.with_name("other.data")
    for path in (data, other):
        path.write_bytes(b"old data")
    real.write_bytes(b"old")
    folder = left_folder(real, model__pt=b"new")
    mark_replaced(folder, [data])
    if stands:
        (folder / real.name).replace(real)
    handed: list[Path] = []
    assert remove_leftover(only(real), handed.extend)
    assert handed == ([data] if stands else [])
    assert sorted(real.parent.iterdir()) == sorted([real, data, other]), "nothing else is deleted here"


def test_what_is_not_ours_to_tell_is_left_out(real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_file(real)
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no")))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert leftovers_of(real) == []
