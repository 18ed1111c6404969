"""Real servers on this machine: S3 by rclone, files on the web, and a proxy that spoils what passes."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

KEY, SECRET = "KEY", "a-secret-that-nobody-may-see"

#: The variables by which clients find it, but for its URL.
VARIABLES = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


def free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])


def tool(name: str) -> str:
    """The path of a program that the dev extra brings."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    assert found, f"{name} comes with the dev extra"
    return found


@contextlib.contextmanager
def s3_server(folder: Path, *, for_all: bool = False, dir_cache: str = "1ms") -> Iterator[str]:
    """S3 whose buckets are the folders in ``folder``, for ``KEY`` and ``SECRET``, or ``for_all``; its URL."""
    port = free_port()
    command = [tool("rclone"), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--dir-cache-time", dir_cache]
    command += [] if for_all else ["--auth-key", f"{KEY},{SECRET}"]
    command += ["--config", "", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def _wait_for(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError("the server did not start")


@contextlib.contextmanager
def serving(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server on this machine, as long as the block runs; its URL."""
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Asked:
    """What was asked of a server: methods, paths with queries, and ranges."""

    requests: list[tuple[str, str, str]] = field(default_factory=list)


class _Server(ThreadingHTTPServer):
    """A server whose clients may be killed while it answers."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing."""


class Quiet(BaseHTTPRequestHandler):
    """A handler that says nothing of what it does."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing."""


class _Files(Quiet):
    """The files of a folder, in ranges or not; ``/to/x`` leads to ``/x``, a query must be the ``secret``."""

    def __init__(
        self, *args: object, folder: Path, asked: Asked, in_ranges: bool, sized: bool, secret: str
    ) -> None:
        self.folder, self.asked, self.in_ranges = folder, asked, in_ranges
        self.sized, self.secret = sized, secret
        super().__init__(*args)  # type: ignore[arg-type] # the library's own

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.asked.requests.append(("GET", self.path, self.headers.get("Range", "")))
        if url.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[len("/to") :])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path = self.folder / url.path[1:]
        status = 403 if url.query != self.secret else 200 if path.is_file() else 404
        if status != 200:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data, tag = path.read_bytes(), f'"{path.stat().st_mtime_ns}"'
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if span and self.in_ranges:
            first, last = int(span[1]), min(int(span[2]), len(data) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            data = data[first : last + 1]
        else:
            self.send_response(200)
        self.send_header("ETag", tag)
        if self.sized:
            self.send_header("Content-Length", str(len(data)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)


@contextlib.contextmanager
def web_server(
    folder: Path, *, in_ranges: bool = True, sized: bool = True, secret: str = ""
) -> Iterator[tuple[str, Asked]]:
    """The files of a folder on the web; its URL, and what is asked of it."""
    asked = Asked()
    files = partial(_Files, folder=folder, asked=asked, in_ranges=in_ranges, sized=sized, secret=secret)
    with serving(files) as url:
        yield url, asked


#: What a proxy may do to one answer.
Fault = str


@dataclass
class Proxy:
    """A proxy in front of a server: what it does to the next answers, and ``always`` to all else.

    ``cut`` ends a body in its middle, ``slow`` waits, ``503`` and ``429`` answer so, ``drop`` says nothing,
    ``deaf`` neither, though it was done, ``etag`` changes the ETag, ``shorter`` the size. ``only`` spoils
    requests whose line holds a text.
    """

    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    always: Fault = ""
    only: str = "GET"
    seconds: float = 0.0
    asked: Asked = field(default_factory=Asked)
    before: Callable[[str], None] = lambda line: None
    tokens: list[str] = field(default_factory=list)

    def reset(self) -> None:
        """Spoil nothing, and forget what was asked."""
        self.faults, self.always, self.only, self.seconds = [], "", "GET", 0.0
        self.asked.requests.clear()
        self.tokens.clear()
        self.before = lambda line: None

    def fault(self, line: str) -> Fault:
        if self.only not in line:
            return ""
        return self.faults.pop(0) if self.faults else self.always


class _Through(Quiet):
    """Passes a request on, and an answer back, spoilt."""

    def __init__(self, *args: object, proxy: Proxy, server: str) -> None:
        self.proxy, self.behind = proxy, urlsplit(server).netloc
        super().__init__(*args)  # type: ignore[arg-type] # the library's own

    def _pass(self) -> None:
        line = f"{self.command} {self.path}"
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.proxy.asked.requests.append((self.command, self.path, self.headers.get("Range", "")))
        self.proxy.tokens.append(self.headers.get("Authorization", ""))
        self.proxy.before(line)
        fault = self.proxy.fault(line)
        if fault == "slow":
            time.sleep(self.proxy.seconds)
        if fault == "drop":
            self.close_connection = True
            return
        if fault.isdigit():
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        with contextlib.closing(http.client.HTTPConnection(self.behind)) as behind:
            behind.request(self.command, self.path, body, dict(self.headers))
            answer = behind.getresponse()
            data = answer.read()
        if fault == "deaf":
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, _spoilt(name.lower(), value, fault))
        size = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", size or "0")
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        if fault == "cut":
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass  # noqa: N815


def _spoilt(name: str, value: str, fault: Fault) -> str:
    if fault == "etag" and name == "etag":
        return '"another"'
    if fault == "shorter" and name == "content-range":
        return f"{value.partition('/')[0]}/1000"
    return value


@contextlib.contextmanager
def proxy_before(server: str) -> Iterator[Proxy]:
    """A proxy in front of a server."""
    proxy = Proxy()
    with serving(partial(_Through, proxy=proxy, server=server)) as proxy.url:
        yield proxy


class _Hub(Quiet):
    """The few routes of the hub that its client asks for: a repository ``org/name`` of files in a folder."""

    def __init__(self, *args: object, folder: Path, asked: Asked) -> None:
        self.folder, self.asked = folder, asked
        super().__init__(*args)  # type: ignore[arg-type] # the library's own

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.requests.append((self.command, path, self.headers.get("Range", "")))
        root = "/api/models/org/name"
        if path in (root, f"{root}/revision/main"):
            self._send({"id": "org/name", "modelId": "org/name", "sha": "0" * 40, "siblings": []})
        elif path.startswith(f"{root}/paths-info/"):
            names = json.loads(body)["paths"]
            self._send([self._entry(name) for name in names if (self.folder / name).exists()])
        elif path in (f"{root}/tree/{'0' * 40}", f"{root}/tree/main"):
            self._send([self._entry(each.name) for each in sorted(self.folder.iterdir())])
        elif path.startswith("/org/name/resolve/"):
            data = (self.folder / path.rpartition("/")[2]).read_bytes()
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
            assert span, "the client asks for ranges"
            first, last = int(span[1]), int(span[2])
            self._send(data[first : last + 1], 206, f"bytes {first}-{last}/{len(data)}")
        else:
            self._send({"error": "not found"}, 404, error="EntryNotFound" if root in path else "RepoNotFound")

    def _entry(self, name: str) -> dict[str, object]:
        data = (self.folder / name).read_bytes()
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha256(data).hexdigest()[:40]}

    def _send(self, content: object, status: int = 200, span: str = "", error: str = "") -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if span:
            self.send_header("Content-Range", span)
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_HEAD = do_POST = _answer  # noqa: N815


@contextlib.contextmanager
def hub_server(folder: Path) -> Iterator[tuple[str, Asked]]:
    """The hub with one repository; its URL, and what is asked of it."""
    asked = Asked()
    with serving(partial(_Hub, folder=folder, asked=asked)) as url:
        yield url, asked
