"""The client of web servers: ranges of files, by urllib3, which keeps connections and follows redirects."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from wnconvert.errors import InputError
from wnconvert.storage.stores.remote.client import Found, missing
from wnconvert.storage.stores.remote.patience import SILENCE, Passing
from wnconvert.storage.stores.remote.traffic import TRAFFIC

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

__all__ = ["Web", "fill_from"]


_RANGE = re.compile(r"bytes (?P<first>\d+)-\d+/(?P<size>\d+)")
_PIECE = 256 << 10


class Web:
    """Files by their URLs, whose beginning is ``scheme``; a key may have a query, which is never shown."""

    def __init__(self, scheme: str) -> None:
        from urllib.request import getproxies

        self._scheme = scheme
        self._direct, self._proxied = _pool(""), _pool(getproxies().get(scheme, ""))
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
        from urllib.parse import urljoin, urlsplit
        from urllib.request import proxy_bypass

        from urllib3.exceptions import HTTPError, LocationParseError

        headers = {"Accept-Encoding": "identity", "User-Agent": "wnconvert"}
        if span is not None:
            headers["Range"] = f"bytes={span[0]}-{span[1] - 1}"
        url = self._moved.get(key, f"{self._scheme}://{key}")
        pool = self._direct if proxy_bypass(urlsplit(url).hostname or "") else self._proxied
        try:
            answer = pool.request("GET", url, headers=headers, preload_content=False)
        except LocationParseError as error:
            raise InputError("this is no address of a file", fix="check it") from error
        except HTTPError as error:
            raise Passing(_in_words(error)) from error
        try:
            if answer.status >= 400 and self._moved.pop(key, ""):  # what a redirect signed may expire
                raise Passing("the address that it leads to expired")
            _check(answer)
            for step in answer.retries.history if answer.retries else ():
                url = urljoin(url, step.redirect_location or "")
                self._moved[key] = url
            yield answer
        except HTTPError as error:
            raise Passing(_in_words(error)) from error
        finally:
            if answer.length_remaining:
                answer.close()
            answer.release_conn()


def _pool(proxy: str) -> PoolManager:
    """Connections, by a proxy if it is named."""
    import urllib3

    timeout = urllib3.Timeout(connect=SILENCE, read=SILENCE)
    retries = urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=10)
    if proxy:
        return urllib3.ProxyManager(proxy, maxsize=16, timeout=timeout, retries=retries)
    return urllib3.PoolManager(maxsize=16, timeout=timeout, retries=retries)


def fill_from(answer: BaseHTTPResponse, buffer: memoryview) -> None:
    """Fill a buffer with the bytes of an answer. Raises ``Passing`` where it ends too early."""
    done = 0
    while done < len(buffer):
        count = answer.readinto(buffer[done : done + _PIECE])
        if not count:
            raise Passing(f"it was cut off after {done} of {len(buffer)} bytes")
        done += count


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


def _in_words(error: Exception) -> str:
    """What happened on the line."""
    from urllib3 import exceptions as http

    inner = getattr(error, "reason", None) or error
    words = {
        http.ReadTimeoutError: "the server fell silent",
        http.NameResolutionError: "there is no such host",
        http.NewConnectionError: "no connection",
        http.ConnectTimeoutError: "nothing answers",
        http.SSLError: f"its certificate is not trusted, or it speaks no TLS: {inner}",
    }
    return next((said for kind, said in words.items() if isinstance(inner, kind)), "the line broke")
