"""Names become paths, and paths opened files, here and nowhere else: the list of stores.

A new store is a class (`stores/`) and a line of ``STORES``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial, reduce
from operator import and_
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, TypeAlias

from wnconvert.errors import FormatError, InputError, OutputError
from wnconvert.messages import printable, refuse_other_than_path
from wnconvert.storage.stores.disk import Disk, FileAddresses
from wnconvert.storage.stores.remote.client import Client
from wnconvert.storage.stores.remote.remote import Buckets, OpenedSystem, Remote, WebAddresses
from wnconvert.storage.stores.standard import STANDARD, StandardInput
from wnconvert.storage.stores.store import Address, PathKind, Status, Store
from wnconvert.tensors.files import Identity, ReadableFile, changed_while_read

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

    from wnconvert.storage.stores.remote.uploads import Writer

__all__ = [
    "STORES",
    "Name",
    "Seen",
    "blaming_changes",
    "check_as_seen",
    "common_mode",
    "entries_of",
    "is_opened",
    "kind_of",
    "listing_of",
    "local_path",
    "located",
    "open_beside",
    "open_file",
    "output_path",
    "path_on",
    "real_of",
    "reopened",
    "seen_in",
    "status_of",
    "stored",
    "stored_output",
    "unchanging",
]


#: The name of a file or folder, as a user gives it.
Name: TypeAlias = str | os.PathLike[str]

#: What files were when they were first opened, by their paths.
Seen: TypeAlias = Mapping[PurePath, Identity | None]

_DISK = Disk()


# -- the clients, each imported where it is needed


def _web(scheme: str) -> Client:
    from wnconvert.storage.stores.remote.clients.web import Web

    return Web(scheme)


def _amazon() -> Writer:
    from wnconvert.storage.stores.remote.clients.s3 import amazon

    return amazon()


def _google() -> Writer:
    from wnconvert.storage.stores.remote.clients.s3 import google

    return google()


def _microsoft() -> Writer:
    from wnconvert.storage.stores.remote.clients.azure import microsoft

    return microsoft()


def _hub() -> Client:
    from wnconvert.storage.stores.remote.clients.filesystems import hub

    return hub()


#: The stores by the schemes of their addresses; what has no scheme lies on a disk of this machine.
STORES: dict[str, Store] = {
    "file": FileAddresses(),
    "stdin": StandardInput(),
    "https": WebAddresses("https", partial(_web, "https")),
    "http": WebAddresses("http", partial(_web, "http")),
    "s3": Buckets("s3", _amazon),
    "gs": Buckets("gs", _google),
    "az": Buckets("az", _microsoft),
    "hf": Remote("hf", _hub),
}

# One letter is a drive. A path object swallows the second slash.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)")


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
    if found is None or not (found[2] or found[1] in STORES):
        _check_name(text)
        return _DISK.path(text)
    scheme, text = found[1].lower(), f"{found[1]}://{text[found.end() :]}"
    if scheme in STORES:
        return STORES[scheme].path(f"{scheme}{text[len(scheme) :]}")
    raise InputError(
        "an address, and of those only file, https, s3, gs, az and hf are known",
        where=text,
        fix="copy it to this machine, and name the file",
    )


def path_on(system: AbstractFileSystem, path: str) -> PurePath:
    """The path of a file on an opened file system of fsspec, which every verb takes as the name of a source.

    >>> import fsspec
    >>> source = path_on(fsspec.filesystem("file"), os.path.abspath("fixtures/plain.pt"))
    >>> status_of(source).size
    3453
    """
    from wnconvert.storage.stores.remote.clients.filesystems import FileSystem

    protocol = system.protocol if isinstance(system.protocol, str) else system.protocol[0]
    number, scheme = 1, f"{protocol}+1"
    while scheme in STORES and getattr(STORES[scheme], "system", None) is not system:
        number, scheme = number + 1, f"{protocol}+{number + 1}"
    if scheme not in STORES:
        STORES[scheme] = OpenedSystem(scheme, lambda: FileSystem(system), system, system.root_marker)
    return Address(f"{scheme}://{path.removeprefix(system.root_marker)}")


def is_opened(path: Address) -> bool:
    """Whether a path is one of a file system that was opened in this process, as ``path_on`` gives."""
    return isinstance(STORES[path.scheme], OpenedSystem)


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


def entries_of(folder: PurePath) -> list[tuple[str, PathKind | None]]:
    """The names in a folder, sorted, each with what it is, links followed. Raises as ``listing_of`` does."""
    return _store_of(folder).entries(folder)


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
    if now.size == before.size and now.tag != before.tag:
        return "it was written to, or another one took its place"
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


def stored_output(out: Name) -> Address | None:
    """The address of an output by its name, if it lies in a store that takes objects; else None."""
    if out == STANDARD:
        return None
    path = located(out)
    return path if isinstance(path, Address) and isinstance(_store_of(path), Buckets) else None


def stored(path: Address) -> Buckets:
    """The store of an address that ``stored_output`` gave."""
    store = _store_of(path)
    assert isinstance(store, Buckets)  # noqa: S101 - that is how it was found
    return store


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
    raise OutputError("outputs are written to disks, s3, gs and az", where=str(path), fix=fix)


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
