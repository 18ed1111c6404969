"""What a store offers: a name to a path, what is there, what is in a folder, a file opened."""

from __future__ import annotations

from enum import Enum
from pathlib import Path, PurePath, PurePosixPath

from wnconvert.frozen import dataclass
from wnconvert.tensors.files import Identity, ReadableFile

__all__ = ["Address", "PathKind", "Status", "Store"]


class PathKind(Enum):
    """What lies at a path, in the words of a message."""

    FILE = "a file"
    FOLDER = "a folder"
    PIPE = "a named pipe"
    DEVICE = "a device"
    OTHER = "a socket"


@dataclass(frozen=True, slots=True)
class Status:
    """What lies at a path, links followed: its kind, the bytes of a file; its mode, and which file it is.

    The last two are None where the store does not have them.
    """

    kind: PathKind
    size: int = 0
    mode: int | None = None
    identity: Identity | None = None


class Address(PurePosixPath):
    """The path of a file that does not lie on a disk of this machine: with a path's methods, but no file's.

    >>> shard = Address("s3://bucket/model.safetensors").parent / "b.safetensors"
    >>> str(shard), shard.scheme
    ('s3://bucket/b.safetensors', 's3')
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    @property
    def scheme(self) -> str:
        """The part before ``://``, by which the store is found."""
        return str(self).partition("://")[0]


class Store:
    """A place where files lie. The paths of a disk of this machine are ``Path``s, all others ``Address``es.

    ``status``, ``names`` and ``open`` raise ``FileNotFoundError`` where nothing is there, and any other
    ``OSError``, or ``InputError``, where it cannot be reached.
    """

    def path(self, name: str) -> PurePath:
        """The path of a name that a user gave. Raises ``InputError`` for a name that makes no sense."""
        return Address(name)

    def status(self, path: PurePath) -> Status:
        """What lies at a path."""
        raise NotImplementedError

    def names(self, folder: PurePath) -> list[str]:
        """The names in a folder, sorted."""
        raise NotImplementedError

    def entries(self, folder: PurePath) -> list[tuple[str, PathKind | None]]:
        """The names in a folder, sorted, each with what it is; None where that cannot be told."""
        return [(name, self._kind(folder / name)) for name in self.names(folder)]

    def _kind(self, path: PurePath) -> PathKind | None:
        try:
            return self.status(path).kind
        except OSError:
            return None

    def open(self, path: PurePath) -> ReadableFile:
        """A file, opened for reading."""
        raise NotImplementedError

    def local(self, path: PurePath) -> Path | None:  # noqa: ARG002 - a store may have one
        """The path by which libraries find the file on this machine, if it lies there too."""
        return None

    def real(self, path: PurePath) -> PurePath:
        """The path with all links in it followed, whether something is there or not."""
        return path
