"""A store by its client: what lies at an address, what is in a folder, an object opened."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeVar

from wnconvert.errors import InputError
from wnconvert.messages import to_install
from wnconvert.storage.stores.disk import OpenedFile
from wnconvert.storage.stores.remote.client import Client, Found, missing
from wnconvert.storage.stores.remote.known import Known
from wnconvert.storage.stores.remote.patience import patiently
from wnconvert.storage.stores.store import Address, PathKind, Status, Store
from wnconvert.tensors.files import ReadableFile, changed_while_read

if TYPE_CHECKING:
    from wnconvert.storage.stores.remote.uploads import Planned, Upload, Writer

__all__ = ["EXTRA", "Buckets", "OpenedSystem", "Remote", "WebAddresses"]


_Answer = TypeVar("_Answer")

#: The extra that brings the clients, in a clone.
EXTRA = "'.[remote]'"

# What was looked at a moment ago is opened without another look: each of its bytes is compared anyway.
_MOMENT = 1.0
# The objects of which something is known.
_MOST_KNOWN = 32


class Remote(Store):
    """A store whose addresses begin with ``scheme``; its client is made when it is first needed."""

    def __init__(self, scheme: str, connect: Callable[[], Client]) -> None:
        self._scheme = scheme
        self.connect = connect
        self._client: Client | None = None
        self._lock = threading.Lock()
        self._known: OrderedDict[PurePath, Known] = OrderedDict()
        self._looked: dict[PurePath, float] = {}
        self._saved: dict[PurePath, tuple[Found, int]] = {}

    def key(self, path: PurePath) -> str:
        """What the client calls an object."""
        return str(path).partition("://")[2]

    def client(self) -> Client:
        """The client. Raises ``InputError`` where the extra that brings it is not installed."""
        with self._lock:
            if self._client is None:
                try:
                    self._client = self.connect()
                except ModuleNotFoundError as error:
                    raise InputError(
                        f"{self._scheme}:// needs {error.name}, which is not installed", fix=to_install(EXTRA)
                    ) from error
            return self._client

    def status(self, path: PurePath) -> Status:
        """A file without a mode, or a folder: the beginning of other names."""
        try:
            found = self._look(path).found
        except FileNotFoundError:
            self.names(path)
            return Status(PathKind.FOLDER)
        return Status(PathKind.FILE, found.size, identity=found.identity)

    def names(self, folder: PurePath) -> list[str]:
        """The names in a folder, sorted."""
        return sorted({name for name, _ in self.entries(folder)})

    def entries(self, folder: PurePath) -> list[tuple[str, PathKind | None]]:
        """The names in a folder, sorted, and what they are, by the requests for the names alone."""
        found = self._asked(folder, lambda client: client.names(self.key(folder)))
        if not found:
            raise missing()
        kinds = {True: PathKind.FOLDER, False: PathKind.FILE}
        return [(name.rstrip("/"), kinds[name.endswith("/")]) for name in sorted(set(found))]

    def open(self, path: PurePath) -> ReadableFile:
        """An object, opened: read in ranges, or through a temporary file where its server has none."""
        known = self._known.get(path)
        if known is None or time.monotonic() - self._looked.get(path, 0) > _MOMENT:
            known = self._look(path)
        if not known.found.in_ranges:
            return self._whole(path, known.found)
        from wnconvert.storage.stores.remote.far import RemoteFile  # and threads

        return RemoteFile(self.client(), self.key(path), known, str(path))

    def _look(self, path: PurePath) -> Known:
        found = self._asked(path, lambda client: client.look(self.key(path)))
        with self._lock:
            known = self._known.get(path)
            if known is None or known.found != found:
                known = self._known[path] = Known(found)
            self._known.move_to_end(path)
            self._looked[path] = time.monotonic()
            while len(self._known) > _MOST_KNOWN:
                old, _ = self._known.popitem(last=False)
                self._looked.pop(old, None)
        return known

    def _asked(self, path: PurePath, ask: Callable[[Client], _Answer]) -> _Answer:
        return patiently(lambda: ask(self.client()), str(path))

    def _whole(self, path: PurePath, found: Found) -> ReadableFile:
        """An object as a temporary file, which is kept as long as the process lives."""
        before = self._saved.get(path)
        if before is None or before[0] != found:
            if before is not None:
                os.close(self._saved.pop(path)[1])
            import tempfile  # which few need

            with tempfile.TemporaryFile(prefix="wnconvert-") as made:

                def save(client: Client) -> Found:
                    made.seek(0)
                    made.truncate()
                    return client.save(self.key(path), made)

                now = self._asked(path, save)
                if now.tag != found.tag or found.size not in (0, now.size):
                    raise changed_while_read(str(path), "another one took its place")
                made.flush()
                self._saved[path] = found, os.dup(made.fileno())
        file = OpenedFile(os.dup(self._saved[path][1]), str(path))
        file.identity = found.identity
        return file


class Buckets(Remote):
    """A store that takes objects too."""

    connect: Callable[[], Writer]

    def upload(self, path: PurePath, planned: Planned) -> Upload:
        """Begin an upload, as ``Upload`` has it."""
        from wnconvert.storage.stores.remote.uploads import Upload  # and threads

        return Upload(self.writer(), self.key(path), str(path), planned)

    def unfinished(self, path: PurePath) -> list[tuple[Address, str]]:
        """The unfinished uploads of an object and of all that lie below it."""
        found = patiently(lambda: self.writer().unfinished(self.key(path)), str(path))
        return [(Address(f"{self._scheme}://{key}"), upload) for key, upload in found]

    def abort(self, path: PurePath, upload: str) -> bool:
        """Forget an upload of an earlier run; False where that is when an object is made in its place."""
        patiently(lambda: self.writer().abort(self.key(path), upload), str(path))
        return self.writer().aborts

    def sweep(self, path: PurePath, upload: str) -> None:
        """Forget an upload, as ``Writer`` has it."""
        patiently(lambda: self.writer().sweep(self.key(path), upload), str(path))

    def delete(self, path: PurePath, tag: str) -> None:
        """Delete an object, as ``Writer`` has it."""
        patiently(lambda: self.writer().delete(self.key(path), tag), str(path))

    def writer(self) -> Writer:
        """The client. Raises ``InputError`` as ``client`` does."""
        made: Any = self.client()
        writer: Writer = made
        return writer


class OpenedSystem(Remote):
    """The files of a file system of fsspec that is open; ``root`` is what its paths begin with."""

    def __init__(self, scheme: str, connect: Callable[[], Client], system: object, root: str) -> None:
        super().__init__(scheme, connect)
        self.system = system
        self._root = root

    def key(self, path: PurePath) -> str:
        """The path that the file system knows."""
        return self._root + super().key(path)


class WebAddresses(Remote):
    """Files of web servers by their URLs. What stands behind a ``?`` may be a signature, and is not shown."""

    def __init__(self, scheme: str, connect: Callable[[], Client]) -> None:
        super().__init__(scheme, connect)
        self._urls: dict[PurePath, str] = {}

    def path(self, name: str) -> PurePath:
        """The path of a URL without its query and password; of two one is ``…#2``."""
        url = name.partition("#")[0]
        host, slash, rest = url.partition("://")[2].partition("/")
        shown = Address(f"{self._scheme}://{host.rpartition('@')[2]}{slash}{rest.partition('?')[0]}")
        key, path, number = url.partition("://")[2], shown, 1
        while self._urls.setdefault(path, key) != key:
            number += 1
            path = shown.with_name(f"{shown.name}#{number}")
        return path

    def key(self, path: PurePath) -> str:
        """The URL behind its scheme, with its query; that of a path beside another has none."""
        return self._urls.get(path) or super().key(path)
