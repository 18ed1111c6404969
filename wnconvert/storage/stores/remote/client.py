"""What is asked of the client of a store. Keys are what stands behind ``scheme://`` in an address."""

from __future__ import annotations

from typing import IO, Protocol

from wnconvert.frozen import dataclass
from wnconvert.tensors.files import Identity

__all__ = ["Client", "Found", "missing"]


@dataclass(frozen=True, slots=True)
class Found:
    """What an answer says of an object: its size, and its tag (ETag, version), or when it was changed.

    ``in_ranges`` says whether parts of it can be asked for.
    """

    size: int
    tag: str
    in_ranges: bool = True

    @property
    def identity(self) -> Identity:
        """Which object it is, as files of a disk have it."""
        return Identity(0, 0, self.size, 0, 0, self.tag)


class Client(Protocol):
    """The client of a store; any thread may call it.

    All but ``names`` raise ``FileNotFoundError`` where there is no such object; all raise ``Passing`` where
    asking again may help, and ``InputError``, without a place, where it does not.
    """

    def look(self, key: str, /) -> Found:
        """What an object is, without its bytes."""

    def read(self, key: str, at: int, buffer: memoryview, /) -> Found:
        """Fill a buffer with the bytes that begin at byte ``at``, in one request; what it was then."""

    def save(self, key: str, to: IO[bytes], /) -> Found:
        """Write all bytes of an object into a file; what it was then."""

    def names(self, key: str, /) -> list[str]:
        """The names in a folder, in any order, those of folders with a slash behind; none where it is not."""


def missing() -> FileNotFoundError:
    """The error for an object that is not there."""
    return FileNotFoundError(2, "there is no such object")
