"""Temporary names beside a target: held by a lock while their run lives, found again when it was killed.

A name is ``NAME.wnconvert-TOKEN.tmp``, and the end of TOKEN is a sum of the rest of it and of NAME: a name
that somebody else gives, or the name of a copy, is not taken for one of these. The lock goes with the
process, however it ends, so what is not locked was left.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from wnconvert.frozen import dataclass
from wnconvert.storage.stores.renames import linked_new, rename_new
from wnconvert.storage.stores.system import READING, WRITING_NEW, lock

__all__ = [
    "Leftover",
    "aside_of",
    "held_file",
    "held_folder",
    "kept_open",
    "leftovers_of",
    "mark_replaced",
    "remove_leftover",
]


_NAME = re.compile(r"\.wnconvert-(?P<token>[0-9a-f]{8})(?P<sum>[0-9a-f]{4})(?P<aside>\.old)?\.tmp")


def _beside(real: Path, token: str, ending: str = "") -> Path:
    # A name of 255 bytes has no room for a suffix.
    name = os.fsdecode(os.fsencode(real.name)[:200])
    total = zlib.crc32(os.fsencode(name) + token.encode()) & 0xFFFF
    return real.with_name(f"{name}.wnconvert-{token}{total:04x}{ending}.tmp")


def _new_beside(real: Path) -> Path:
    return _beside(real, os.urandom(4).hex())


def aside_of(temporary: Path) -> Path:
    """The temporary name under which an old folder lies while the new one, ``temporary``, takes its place."""
    return temporary.with_name(f"{temporary.name.removesuffix('.tmp')}.old.tmp")


def held_file(real: Path, mode: int) -> tuple[Path, int]:
    """A new file under a temporary name beside ``real``, opened for reading and writing, and locked."""
    while True:
        path = _new_beside(real)
        with _gone_after_errors(path):
            descriptor = os.open(path, WRITING_NEW, mode)
            if _held(descriptor, path):
                return path, descriptor


def held_folder(real: Path, mode: int) -> tuple[Path, Callable[[], None]]:
    """A new folder under a temporary name beside ``real``, locked until the function is called."""
    while True:
        path = _new_beside(real)
        with _gone_after_errors(path):
            path.mkdir(mode)
            try:
                descriptor = os.open(path, READING)
            except OSError:  # Windows opens no folders
                return path, lambda: None
            if _held(descriptor, path):
                return path, partial(os.close, descriptor)


@contextlib.contextmanager
def _gone_after_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            _delete(path)
        raise


def _held(descriptor: int, path: Path) -> bool:
    """Lock what was just made; False, and it is gone, where somebody took it for a leftover before that."""
    if lock(descriptor) is not False:
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return True
    os.close(descriptor)
    with contextlib.suppress(FileNotFoundError):
        _delete(path)
    return False


@contextlib.contextmanager
def kept_open(descriptor: int) -> Iterator[None]:
    """Keep the lock of a file after it is closed, where the system renames and deletes opened files."""
    again = None if os.name == "nt" else os.dup(descriptor)
    try:
        yield
    finally:
        if again is not None:
            os.close(again)


#: The folder in a temporary one for second names of files that are not needed once the target is replaced.
_REPLACED = "replaced"


def mark_replaced(temporary: Path, files: Iterable[Path]) -> None:
    """Give files that lie beside a target, and may go with it, second names in a temporary folder.

    By these they are found again where the run that replaced the target was killed before they went.
    """
    for path in files:
        (temporary / _REPLACED).mkdir(0o700, exist_ok=True)
        linked_new(path, temporary / _REPLACED / path.name)


# -- what killed runs left


@dataclass(frozen=True, slots=True)
class Leftover:
    """A temporary file or folder beside ``real``, and whether its run lives; None where nobody can tell.

    ``is_old`` marks the folder that stood at ``real`` before, and lies aside whole.
    """

    path: Path
    real: Path
    lives: bool | None
    is_old: bool


def leftovers_of(real: Path) -> list[Leftover]:
    """What runs left beside a target, or keep there now; nothing else that lies there.

    What is another user's is left out, unless it can be told whether its run lives.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(real.parent) if ".wnconvert-" in entry.name)
    except OSError:
        return []
    found = []
    for name in names:
        match = _NAME.search(name)
        if match is None or match.end() != len(name):
            continue
        path = _beside(real, match["token"], match["aside"] or "")
        if path.name != name or path.is_symlink():
            continue
        lives = _lives(path, real, match["token"])
        if lives is not None or _is_own(path):
            found.append(Leftover(path, real, lives, bool(match["aside"])))
    return found


def _is_own(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return not hasattr(os, "geteuid") or path.stat().st_uid == os.geteuid()
    return False


def _lives(path: Path, real: Path, token: str) -> bool | None:
    """Whether a run is at work: it holds what it writes, and in the end the folder that it put in place."""
    places = {path, _beside(real, token), *([real] if real.is_dir() else [])}
    states = [_is_held(place) for place in places if os.path.lexists(place)]
    return True if True in states else None if None in states else False


def _is_held(path: Path) -> bool | None:
    with _locked(path) as locked:
        return None if locked is None else not locked


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool | None]:
    """Lock what lies at a path; False where a run holds it, None where that cannot be told."""
    try:
        descriptor = os.open(path, READING)
    except OSError:
        yield None
        return
    try:
        yield lock(descriptor)
    finally:
        os.close(descriptor)


def remove_leftover(
    left: Leftover, remove_unneeded: Callable[[list[Path]], object] = lambda files: None
) -> bool:
    """Delete what a killed run left, and what it had put beside its target, if that does not name it yet.

    An old folder whose place was not taken goes back there. ``remove_unneeded`` gets the files that may go
    with a target that was replaced. False, and nothing is done, where its run lives, or nobody can tell.
    Raises ``OSError`` where it cannot be deleted.
    """
    with _locked(left.path) as locked:
        if not locked or left.lives is not False:
            return False
        if left.is_old and not os.path.lexists(left.real):
            rename_new(left.path, left.real)
        else:
            placed, replaced = _beside_target(left)
            for path in placed:
                path.unlink()
            if replaced:
                remove_unneeded(replaced)
            _delete(left.path)
    return True


def _delete(path: Path) -> None:
    if stat.S_ISDIR(path.lstat().st_mode):
        shutil.rmtree(path)
    else:
        path.unlink()


def _beside_target(left: Leftover) -> tuple[list[Path], list[Path]]:
    """The files beside a target that have a second name in a leftover, those that are of no use any more.

    These are what was put there for a target that was not, or else what one needed that was replaced.
    """
    files = [Path(folder, name) for folder, _, names in os.walk(left.path) for name in names]
    both = {file: real for file in files if _is_one(file, real := left.real.with_name(file.name))}
    waits = any(file.name == left.real.name and file not in both for file in files)
    others = [(file.parent.name == _REPLACED, real) for file, real in both.items() if real != left.real]
    placed, replaced = ([real for is_old, real in others if is_old is which] for which in (False, True))
    return (placed, []) if waits else ([], replaced)


def _is_one(file: Path, other: Path) -> bool:
    return os.path.lexists(other) and file.samefile(other)
