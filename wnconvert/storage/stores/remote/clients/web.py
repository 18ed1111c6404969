"""The client of web servers: ranges of files by their URLs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from wnconvert.errors import InputError
from wnconvert.storage.stores.remote.client import Found, missing
from wnconvert.storage.stores.remote.clients.lines import Lines, fill_from
from wnconvert.storage.stores.remote.patience import Passing
from wnconvert.storage.stores.remote.traffic import TRAFFIC

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

__all__ = ["Web"]


_RANGE = re.compile(r"bytes (?P<first>\d+)-\d+/(?P<size>\d+)")
_PIECE = 256 << 10


class Web:
    """Files by their URLs, whose beginning is ``scheme``; a key may have a query, which is never shown."""

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme
        self._lines = Lines(scheme)
        self._moved: dict[str, str] = {}

    def look(self, key: str, /) -> Found:
        """What an answer for the first byte says: servers that sign addresses do so for one method."""
        with self._answer(key, (0, 1)) as answer:
            TRAFFIC.add()
            return _found(answer)

    def read(self, key: str, at: int, buffer: memoryview, /) -> Found:
        """Fill a buffer by one request."""
        with self._answer(key, (at, at + len(buffer))) as answer:
            TRAFFIC.add(fetched=len(buffer))
            found = _found(answer)
            place = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if place is None or int(place["first"]) != at:
                raise Passing("a part was asked for, and another came")
            fill_from(answer, buffer)
            return found

    def save(self, key: str, to: IO[bytes], /) -> Found:
        """Write all bytes into a file."""
        with self._answer(key, None) as answer:
            size = 0
            for data in answer.stream(_PIECE, decode_content=False):
                size += to.write(data)
            TRAFFIC.add(fetched=size)
            return Found(size, _found(answer).tag, in_ranges=False)

    def names(self, key: str, /) -> list[str]:
        """No names: web servers have no folders."""
        del key
        return []

    @contextlib.contextmanager
    def _answer(self, key: str, span: tuple[int, int] | None) -> Iterator[BaseHTTPResponse]:
        """The answer to a request for a part of a file, or for all of it."""
        from urllib.parse import urljoin

        headers = {"Accept-Encoding": "identity", "User-Agent": "wnconvert"}
        if span is not None:
            headers["Range"] = f"bytes={span[0]}-{span[1] - 1}"
        url = self._moved.get(key, f"{self._scheme}://{key}")
        with self._lines.asked("GET", url, headers) as answer:
            if answer.status >= 400 and self._moved.pop(key, ""):  # what a redirect signed may expire
                raise Passing("the address that it leads to expired")
            _check(answer)
            for step in answer.retries.history if answer.retries else ():
                url = urljoin(url, step.redirect_location or "")
                self._moved[key] = url
            yield answer


def _found(answer: BaseHTTPResponse) -> Found:
    """What the headers of an answer say."""
    headers = answer.headers
    tag = headers.get("ETag") or headers.get("Last-Modified") or ""
    place = _RANGE.fullmatch(headers.get("Content-Range", ""))
    if answer.status == 206 and place:
        return Found(int(place["size"]), tag)
    return Found(int(headers.get("Content-Length") or 0), tag, in_ranges=False)


def _check(answer: BaseHTTPResponse) -> None:
    """Raise where an answer has no file."""
    status = answer.status
    if status in (404, 410):
        raise missing()
    if status in (401, 403):
        raise InputError(
            f"the server refuses it ({status})",
            fix="a signed address expires: get a new one; or download it by the client that has the rights",
        )
    if status in (408, 425, 429) or status >= 500:
        raise Passing(f"the server answers {status}")
    if status == 416:
        raise InputError("an empty file", fix="download the file itself")
    if status >= 300:
        raise InputError(f"the server answers {status}", fix="check the address in a browser")
