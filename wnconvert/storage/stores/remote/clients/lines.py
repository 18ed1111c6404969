"""Connections to web servers, by urllib3, which keeps them and follows redirects."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from wnconvert.errors import InputError
from wnconvert.storage.stores.remote.patience import SILENCE, Passing

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

__all__ = ["Lines", "fill_from"]


_PIECE = 256 << 10


class Lines:
    """Connections to the servers of one ``scheme``, by the proxy that the environment names for it."""

    def __init__(self, scheme: str) -> None:
        from urllib.request import getproxies

        self._direct, self._proxied = _pool(""), _pool(getproxies().get(scheme, ""))

    @contextlib.contextmanager
    def asked(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | bytearray | None = None
    ) -> Iterator[BaseHTTPResponse]:
        """The answer to a request, its body not read.

        Raises ``Passing`` where the line breaks, inside too, and ``InputError`` for what is no URL.
        """
        from urllib.parse import urlsplit
        from urllib.request import proxy_bypass

        from urllib3.exceptions import HTTPError, LocationParseError

        pool = self._direct if proxy_bypass(urlsplit(url).hostname or "") else self._proxied
        try:
            given: Any = body  # http.client takes any buffer
            answer = pool.request(method, url, body=given, headers=dict(headers), preload_content=False)
        except LocationParseError as error:
            raise InputError("this is no address of a file", fix="check it") from error
        except HTTPError as error:
            raise Passing(_in_words(error)) from error
        try:
            yield answer
        except HTTPError as error:
            raise Passing(_in_words(error)) from error
        finally:
            if answer.length_remaining:
                answer.close()
            answer.release_conn()


def fill_from(answer: BaseHTTPResponse, buffer: memoryview) -> None:
    """Fill a buffer with the bytes of an answer. Raises ``Passing`` where it ends too early."""
    done = 0
    while done < len(buffer):
        count = answer.readinto(buffer[done : done + _PIECE])
        if not count:
            raise Passing(f"it was cut off after {done} of {len(buffer)} bytes")
        done += count


def _pool(proxy: str) -> PoolManager:
    """Connections, by a proxy if it is named."""
    import urllib3

    timeout = urllib3.Timeout(connect=SILENCE, read=SILENCE)
    retries = urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=10)
    if proxy:
        return urllib3.ProxyManager(proxy, maxsize=16, timeout=timeout, retries=retries)
    return urllib3.PoolManager(maxsize=16, timeout=timeout, retries=retries)


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
