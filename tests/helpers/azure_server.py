"""Azure's storage on this machine: the requests that its clients make, answered from a folder.

It stands in for Azurite, which needs node; ``tests/packages/test_azurite.py`` is about that. A
client that is not ours (rclone's, on Microsoft's library) is held against it in
``tests/storage/remote/test_azure.py``.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.helpers.servers import Quiet, serving

#: The account that Azurite has, with the key that everyone knows.
NAME = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

#: How many names a page of a list has.
PAGE = 3


def connection_string(url: str) -> str:
    """What clients are told of an account."""
    return f"AccountName={NAME};AccountKey={KEY};BlobEndpoint={url}/{NAME}"


@dataclass
class Blobs:
    """What lies in the containers: blobs in a folder, and the blocks that none is made of yet."""

    folder: Path
    blocks: dict[str, dict[str, bytes]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tag(self, key: str) -> str:
        path = self.folder / key
        return f'"0x{path.stat().st_mtime_ns:X}{path.stat().st_ino:X}"' if path.is_file() else ""

    def put(self, key: str, data: bytes) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        made = self.folder / f".{hashlib.sha256(key.encode()).hexdigest()}"
        made.write_bytes(data)
        made.replace(path)
        self.blocks.pop(key, None)


class _RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class _Azure(Quiet):
    def __init__(self, *args: object, blobs: Blobs, signature: str) -> None:
        self.blobs, self.signature = blobs, signature
        super().__init__(*args)  # type: ignore[arg-type] # the library's own

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self.query = dict(parse_qsl(url.query, keep_blank_values=True))
        self.key = unquote(url.path).removeprefix(f"/{NAME}/")
        try:
            self._prove(url.path)
            with self.blobs.lock:
                self._do(body)
        except _RefusedError as refused:
            self._send(refused.status, headers={"x-ms-error-code": refused.code})

    def _prove(self, path: str) -> None:
        """Whether who asks may: by the key of the account, or a signature that is known."""
        if self.signature and self.query.get("sig") == self.signature:
            return
        names = "encoding language length md5 type".split()
        values = [self.headers.get(f"Content-{name}", "") for name in names]
        values[2] = "" if values[2] == "0" else values[2]
        others = ("Date", "If-Modified-Since", "If-Match", "If-None-Match", "If-Unmodified-Since", "Range")
        values += [self.headers.get(name, "") for name in others]
        lines = [self.command, *values]
        ours = {
            name.lower(): value for name, value in self.headers.items() if name.lower().startswith("x-ms-")
        }
        lines += [f"{name}:{ours[name]}" for name in sorted(ours)]
        lines += [f"/{NAME}{path}", *(f"{name.lower()}:{self.query[name]}" for name in sorted(self.query))]
        made = hmac.digest(base64.b64decode(KEY), "\n".join(lines).encode(), "sha256")
        if self.headers.get("Authorization") != f"SharedKey {NAME}:{base64.b64encode(made).decode()}":
            raise _RefusedError(403, "AuthenticationFailed")

    def _do(self, body: bytes) -> None:
        container, _, name = self.key.partition("/")
        if self.query.get("restype") == "container" and self.command == "PUT":
            if (self.blobs.folder / container).is_dir():
                raise _RefusedError(409, "ContainerAlreadyExists")
            (self.blobs.folder / container).mkdir()
            self._send(201)
        elif not (self.blobs.folder / container).is_dir():
            raise _RefusedError(404, "ContainerNotFound")
        elif self.query.get("comp") == "list":
            self._list(container)
        elif not name:
            self._send(200)
        elif self.command == "PUT":
            self._put(body)
        elif self.query.get("comp") == "blocklist":
            self._blocks()
        else:
            self._blob()

    def _put(self, body: bytes) -> None:
        comp, key = self.query.get("comp"), self.key
        checksum = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        if self.headers.get("Content-MD5", checksum) != checksum:
            raise _RefusedError(400, "Md5Mismatch")
        blocks = self.blobs.blocks.get(key, {})
        if comp == "block":
            name = self.query["blockid"]
            if any(len(other) != len(name) for other in blocks):
                raise _RefusedError(400, "InvalidBlobOrBlock")
            self.blobs.blocks.setdefault(key, {})[name] = body
            self._send(201)
            return
        if self.headers.get("If-None-Match") == "*" and self.blobs.tag(key):
            raise _RefusedError(409, "BlobAlreadyExists")
        if comp == "blocklist":
            names = re.findall(r"<(?:Latest|Uncommitted)>(.*?)</", body.decode())
            if not blocks.keys() >= {*names}:
                raise _RefusedError(400, "InvalidBlockList")
            body = b"".join(blocks[name] for name in names)
        self.blobs.put(key, body)
        self._send(201, headers={"ETag": self.blobs.tag(key)})

    def _blob(self) -> None:
        tag, path = self.blobs.tag(self.key), self.blobs.folder / self.key
        if not tag:
            raise _RefusedError(404, "BlobNotFound")
        if self.command == "DELETE":
            if self.headers.get("If-Match", tag) != tag:
                raise _RefusedError(412, "ConditionNotMet")
            path.unlink()
            self._send(202)
            return
        data, status, headers = path.read_bytes(), 200, {"ETag": tag, "x-ms-blob-type": "BlockBlob"}
        asked = str(self.headers.get("Range") or self.headers.get("x-ms-range") or "")
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", asked):
            last = min(int(span[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {span[1]}-{last}/{len(data)}"
            data, status = data[int(span[1]) : last + 1], 206
        self._send(status, data, {**headers, "Last-Modified": "Sun, 29 Nov 2026 12:00:00 GMT"})

    def _blocks(self) -> None:
        blocks = self.blobs.blocks.get(self.key, {})
        if not blocks and not self.blobs.tag(self.key):
            raise _RefusedError(404, "BlobNotFound")
        items = "".join(
            f"<Block><Name>{name}</Name><Size>{len(data)}</Size></Block>" for name, data in blocks.items()
        )
        uncommitted = f"<UncommittedBlocks>{items}</UncommittedBlocks>"
        self._text(f"<BlockList><CommittedBlocks/>{uncommitted}</BlockList>")

    def _list(self, container: str) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        root = self.blobs.folder / container
        sizes = {
            path.relative_to(root).as_posix(): path.stat().st_size
            for path in root.rglob("*")
            if path.is_file()
        }
        if "uncommittedblobs" in self.query.get("include", ""):
            ours = [key for key in self.blobs.blocks if key.startswith(f"{container}/")]
            sizes = {key.partition("/")[2]: 0 for key in ours} | sizes
        found: dict[str, int | None] = {}
        for name, size in sizes.items():
            rest = name.removeprefix(prefix)
            if name.startswith(prefix):
                head, cut, _ = rest.partition(delimiter) if delimiter else (rest, "", "")
                found[f"{prefix}{head}{cut}"] = None if cut else size
        rest_of = sorted(found)[int(self.query.get("marker") or 0) :]
        items = "".join(
            f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>"
            if found[name] is None
            else f"<Blob><Name>{escape(name)}</Name><Properties>"
            f"<Content-Length>{found[name]}</Content-Length><BlobType>BlockBlob</BlobType></Properties></Blob>"
            for name in rest_of[:PAGE]
        )
        more = str(int(self.query.get("marker") or 0) + PAGE) if len(rest_of) > PAGE else ""
        results = f"<Blobs>{items}</Blobs><NextMarker>{more}</NextMarker>"
        self._text(f"<EnumerationResults>{results}</EnumerationResults>")

    def _text(self, text: str) -> None:
        self._send(200, f'<?xml version="1.0" encoding="utf-8"?>{text}'.encode())

    def _send(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_DELETE = _answer  # noqa: N815


@contextlib.contextmanager
def azure_server(folder: Path, *, signature: str = "") -> Iterator[str]:
    """Azure's storage whose containers are the folders in ``folder``; its URL.

    ``signature`` is one that proves as the key of the account does.
    """
    with serving(partial(_Azure, blobs=Blobs(folder), signature=signature)) as url:
        yield url
        shutil.rmtree(folder, ignore_errors=True)
