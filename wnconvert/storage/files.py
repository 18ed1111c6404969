"""Names become paths, and paths opened files, here and nowhere else: the list of stores.

A new store is a class (`stores/`) and a line of ``STORES``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from operator import and_
from pathlib import Path, PurePath
from typing import TypeAlias

from wnconvert.errors import FormatError, InputError, OutputError
from wnconvert.messages import printable, refuse_other_than_path
from wnconvert.storage.stores.disk import Disk, FileAddresses
from wnconvert.storage.stores.standard import STANDARD, StandardInput
from wnconvert.storage.stores.store import Address, PathKind, Status, Store
from wnconvert.tensors.files import Identity, ReadableFile, changed_while_read

__all__ = [
    "STORES",
    "Name",
    "Seen",
    "blaming_changes",
    "check_as_seen",
    "common_mode",
    "kind_of",
    "listing_of",
    "local_path",
    "located",
    "open_beside",
    "open_file",
    "output_path",
    "real_of",
    "reopened",
    "seen_in",
    "status_of",
    "unchanging",
]


#: The name of a file or folder, as a user gives it.
Name: TypeAlias = str | os.PathLike[str]

#: What files were when they were first opened, by their paths.
Seen: TypeAlias = Mapping[PurePath, Identity | None]

_DISK = Disk()

#: The stores by the schemes of their addresses; what has no scheme lies on a disk of this machine.
STORES: dict[str, Store] = {"file": FileAddresses(), "stdin": StandardInput()}

# One letter is a drive. A path object swallows the second slash.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)")
#: How to get a file from elsewhere, by scheme.
_GET = {
    "http": "curl -LO {name}",
    "https": "curl -LO {name}",
    "s3": "aws s3 cp {name} .",
    "gs": "gcloud storage cp {name} .",
    "hf": "hf download ORG/NAME FILE",
}


def located(name: Name) -> PurePath:
    """The path of a name: a ``Path`` for files of this machine, an ``Address`` for those of other stores.

    Raises ``InputError`` for an address whose scheme has no store, ``ArgumentError`` for an empty name.

    >>> located("x.pt").name, located("file:///data/x.pt").as_posix()
    ('x.pt', '/data/x.pt')
    """
    if isinstance(name, Address):
        return name
    if name == STANDARD:  # as a text: Path("-") is a file, as ./- is
        return STORES["stdin"].path(name)
    refuse_other_than_path(name)
    text = os.fspath(name)
    found = _SCHEME.match(text)
    if found is None or not (found[2] or found[1] in _GET or found[1] in STORES):
        _check_name(text)
        return _DISK.path(text)
    scheme, text = found[1].lower(), f"{found[1]}://{text[found.end() :]}"
    if scheme in STORES:
        return STORES[scheme].path(text)
    get = _GET.get(scheme)
    raise InputError(
        "an address, and only files of this machine are read and written",
        where=text,
        fix=f"{get.format(name=shlex.quote(text))}, and name the file"
        if get
        else "copy it to this machine, and name the file",
    )


#: What is wrong with names that no file can have.
_TOO_LONG = "its name is too long for this system"
_WITH_NULL = "a name with a null character"


def _check_name(text: str) -> None:
    """Raise ``InputError`` for a name that no file of this machine can have."""
    try:
        os.lstat(text)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(_TOO_LONG, where=text, fix="choose a shorter name") from None
    except ValueError:
        raise InputError(_WITH_NULL, where=text, fix="choose a name without it") from None


def _store_of(path: PurePath) -> Store:
    return STORES[path.scheme] if isinstance(path, Address) else _DISK


def open_file(path: PurePath) -> ReadableFile:
    """Open a file for reading; close it afterwards.

    Raises ``InputError`` for a file that is not there, cannot be read, or is not a regular file.
    """
    return _store_of(path).open(path)


def status_of(path: PurePath) -> Status:
    """What lies at a path. Raises ``OSError`` where nothing does, or where it cannot be told."""
    return _store_of(path).status(path)


def kind_of(path: PurePath) -> PathKind | None:
    """What lies at a path; None where nothing does, or where it cannot be told."""
    try:
        return status_of(path).kind
    except OSError:
        return None


def listing_of(folder: PurePath) -> list[str]:
    """The names in a folder, sorted. Raises ``OSError`` where it cannot be read."""
    return _store_of(folder).names(folder)


def real_of(path: PurePath) -> PurePath:
    """A path with all links in it followed."""
    return _store_of(path).real(path)


def local_path(path: PurePath, use: str) -> Path:
    """The path by which libraries find a file on this machine. Raises ``InputError`` where there is none.

    ``use`` says who needs it.
    """
    found = _store_of(path).local(path)
    if found is None:
        raise InputError(f"{use}, and it is not a file here", where=str(path), fix="save it to one first")
    return found


def reopened(path: PurePath, seen: Seen) -> ReadableFile:
    """Open a file as ``open_file`` does. Raises ``FormatError`` where it is not what was ``seen``."""
    file = open_file(path)
    if file.identity != seen.get(path, file.identity):
        file.close()
        raise changed_while_read(os.fspath(path), _how(seen[path], file.identity))
    return file


def seen_in(every: Iterable[Seen]) -> Seen:
    """What was seen, all of it."""
    return {path: before for seen in every for path, before in seen.items()}


def check_as_seen(seen: Seen) -> None:
    """Raise ``FormatError`` where a file is not any more what was ``seen``: written to, replaced or gone."""
    for path, before in seen.items():
        try:
            now = status_of(path).identity
        except (OSError, InputError):
            now = None
        if before is not None and now != before:
            raise changed_while_read(os.fspath(path), _how(before, now))


def _how(before: Identity | None, now: Identity | None) -> str:
    """How a file changed, in words."""
    if before is None or now is None:
        return "it is gone"
    if (now.device, now.inode) != (before.device, before.inode):
        return "another one took its place"
    if now.size != before.size:
        return f"it became {'shorter' if now.size < before.size else 'longer'}"
    return "it was written to" if now.mtime_ns != before.mtime_ns else "its links or its mode changed"


@contextlib.contextmanager
def blaming_changes(seen: Seen) -> Iterator[None]:
    """Where reading fails inside, and a file changed, that is why: raises as ``check_as_seen`` does."""
    try:
        yield
    except OutputError:  # of what is written
        raise
    except Exception as error:
        try:
            check_as_seen(seen)
        except FormatError as changed:
            raise changed from error
        raise


@contextlib.contextmanager
def unchanging(seen: Seen) -> Iterator[None]:
    """What is read inside is of one moment; raises as ``check_as_seen`` does, at the end at the latest."""
    with blaming_changes(seen):
        yield
    check_as_seen(seen)


def output_path(out: Name) -> Path:
    """The path of an output by its name. Raises ``OutputError`` where it is not one of this machine."""
    fix = "-o FILE, and copy it there afterwards"
    try:
        path = located(out)
    except InputError as error:
        told = error.fix if error.heading in (_TOO_LONG, _WITH_NULL) else fix
        raise OutputError(error.heading, where=error.where, fix=told) from None
    if isinstance(path, Path):
        return path
    if out == STANDARD:
        raise OutputError("only fold, split and migrate write there", where="stdout", fix="name a file")
    raise OutputError("outputs are written to disks", where=str(path), fix=fix)


def common_mode(paths: Iterable[PurePath]) -> int | None:
    """The mode bits that all of these files have; None where none of them has a mode."""
    modes = [mode for path in paths if (mode := status_of(path).mode) is not None]
    return reduce(and_, modes) if modes else None


def open_beside(model: PurePath, location: str) -> ReadableFile:
    """Open a data file of an ONNX model by its path in the model's folder.

    Raises ``FileNotFoundError`` for one that is not there, and ``InputError`` for one that leaves the
    folder, cannot be read, or is not a regular file.
    """
    path, shown = model.parent / location, printable(location)
    try:
        # A model that is itself a link has data beside the link or beside the file: caches are made so.
        homes = (real_of(model.parent), real_of(model).parent)
        inside = any(real_of(path).is_relative_to(home) for home in homes)
        regular = status_of(path).kind is PathKind.FILE if inside else False
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"its data file {shown} cannot be read ({error.strerror})") from error
    if not inside:
        raise InputError(
            f"its data file {shown} is a link that leaves the model's folder",
            fix="copy the files themselves into one folder",
        )
    if not regular:
        raise InputError(f"its data file {shown} is not a regular file", fix=f"put {shown} beside the model")
    return open_file(path)
