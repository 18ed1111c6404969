"""The client of any file system of fsspec; that of the hub is huggingface_hub's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import IO, Any

from wnconvert.errors import InputError
from wnconvert.storage.stores.remote.client import Found, missing
from wnconvert.storage.stores.remote.patience import Passing
from wnconvert.storage.stores.remote.traffic import TRAFFIC

__all__ = ["FileSystem", "hub"]


# What file systems call the tag of a file, the best first.
_TAGS = ("ETag", "etag", "version_id", "generation", "blob_id", "content_md5", "md5Hash", "mtime", "created")


def hub() -> FileSystem:
    """The hub, or what ``HF_ENDPOINT`` names, with the token that its own client finds."""
    from huggingface_hub import HfFileSystem

    return FileSystem(HfFileSystem())


class FileSystem:
    """The files of one of fsspec's file systems, by the paths that it gives them."""

    def __init__(self, system: Any) -> None:
        from fsspec.asyn import AsyncFileSystem

        self._system = system
        # Those that are not asynchronous read ahead by themselves, of what nobody asked for.
        self._alone = {} if isinstance(system, AsyncFileSystem) else {"cache_type": "none"}
        self._found: dict[str, Found] = {}

    def look(self, key: str, /) -> Found:
        """What the file system says of a file, asked anew."""
        with _told():
            TRAFFIC.add()
            self._system.invalidate_cache()
            info = self._system.info(key)
        if info.get("type") == "directory":
            raise missing()
        tag = next((str(info[name]) for name in _TAGS if info.get(name) is not None), "")
        found = self._found[key] = Found(int(info.get("size") or 0), tag)
        return found

    def read(self, key: str, at: int, buffer: memoryview, /) -> Found:
        """Fill a buffer; what it was when it was looked at last, since readings tell nothing of it."""
        with _told():
            TRAFFIC.add(fetched=len(buffer))
            data = self._system.cat_file(key, start=at, end=at + len(buffer), **self._alone)
        if len(data) != len(buffer):
            raise Passing(f"it was cut off after {len(data)} of {len(buffer)} bytes")
        buffer[:] = data
        return self._found.get(key) or self.look(key)

    def save(self, key: str, to: IO[bytes], /) -> Found:
        """Write all bytes of a file into another."""
        raise NotImplementedError("every file system has ranges")

    def names(self, key: str, /) -> list[str]:
        """The names in a folder."""
        try:
            with _told():
                TRAFFIC.add()
                found = self._system.ls(key, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        ends = {"directory": "/"}
        names = [(item["name"].rstrip("/"), ends.get(item["type"], "")) for item in found]
        return [f"{name.rpartition('/')[2]}{end}" for name, end in names]


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Errors of a file system as those of a client."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise missing() from None
    except PermissionError as error:
        raise InputError("access is forbidden", fix="log in, or take credentials that may read it") from error
    except (InputError, Passing):
        raise
    except Exception as error:
        raise _in_words(error) from error


def _in_words(error: Exception) -> Exception:
    status = getattr(getattr(error, "response", None), "status_code", 0) or getattr(error, "status", 0)
    if status in (401, 403):
        return InputError(
            f"access is forbidden ({status}), or there is no such repository",
            fix="check its name; hf auth login, or HF_TOKEN, for what is not public",
        )
    if status == 404:
        return missing()
    if status in (408, 429) or (isinstance(status, int) and status >= 500):
        return Passing(f"the store answers {status}")
    lines = (OSError, TimeoutError)
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, lines) or names & {"TransportError", "ClientError", "RequestException", "HTTPError"}:
        return Passing(f"the line broke: {type(error).__name__}")
    return InputError(
        f"its file system refuses ({type(error).__name__})", fix="check the address, and its client"
    )
