"""The client of Azure's storage, by its REST interface: blobs are made of blocks, sent in any order.

Azure has no upload that could be aborted. Blocks of which no blob was made are seen by nobody; they are
dropped when a blob is made there, and after a week.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import secrets
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote, unquote

from wnconvert.errors import InputError
from wnconvert.storage.stores.remote.client import Found, missing
from wnconvert.storage.stores.remote.clients.keys import FROM, Account, account_of
from wnconvert.storage.stores.remote.clients.lines import Lines, fill_from
from wnconvert.storage.stores.remote.patience import Passing
from wnconvert.storage.stores.remote.traffic import TRAFFIC

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

__all__ = ["Azure", "microsoft"]


#: What refuses a request, by the code that Azure gives, in words, with what to do.
_REFUSED = {
    "ContainerNotFound": ("there is no container {}", "check its name, and the storage account"),
    "ContainerBeingDeleted": ("the container {} is being deleted", "check its name"),
    "BlobArchived": ("it is archived", "az storage blob set-tier brings it back, in some hours"),
    "InvalidBlobOrBlock": (
        "another program's upload of it is unfinished, and names its blocks in another way",
        "wnconvert clean, or wait a week",
    ),
}
_REFUSED["InvalidBlockId"] = _REFUSED["InvalidBlobOrBlock"]
_BUSY = ("ServerBusy", "OperationTimedOut", "InternalError", "Md5Mismatch")


def microsoft() -> Azure:
    """The storage account that the usual variables name."""
    return Azure(account_of())


class Azure:
    """Blobs in the containers of an account."""

    aborts: ClassVar[bool] = False

    def __init__(self, account: Account) -> None:
        self._account = account
        self._lines = Lines(account.url.partition("://")[0])

    def look(self, key: str, /) -> Found:
        """What an answer without a body says."""
        if not key.partition("/")[2]:
            raise missing()
        with self._asked("HEAD", key) as answer:
            TRAFFIC.add()
            if answer.headers.get("x-ms-meta-hdi_isfolder") == "true":
                raise missing()
            return _found(answer, answer.headers.get("Content-Length", ""))

    def read(self, key: str, at: int, buffer: memoryview, /) -> Found:
        """Fill a buffer by one request."""
        span = {"Range": f"bytes={at}-{at + len(buffer) - 1}"}
        with self._asked("GET", key, headers=span) as answer:
            TRAFFIC.add(fetched=len(buffer))
            found = _found(answer, answer.headers.get("Content-Range", "").rpartition("/")[2])
            fill_from(answer, buffer)
            return found

    def save(self, key: str, to: IO[bytes], /) -> Found:
        """Write all bytes of a blob into a file."""
        raise NotImplementedError("every blob has ranges")

    def names(self, key: str, /) -> list[str]:
        """The names of blobs, and of folders, which are beginnings of their names and end with a slash."""
        name = key.partition("/")[2]
        prefix = f"{name}/" if name else ""
        listed = self._listed(key, {"prefix": prefix, "delimiter": "/"})
        return [each for name, _ in listed if (each := name[len(prefix) :])]

    def begin(self, key: str, /) -> str:
        """A name for an upload; nothing is asked."""
        del key
        return secrets.token_hex(8)

    def put(self, key: str, upload: str, number: int, data: bytearray, /) -> str:
        """Send a block, with its checksum; its name."""
        block = _block(upload, number)
        # As the protocol has it: it tells an accident on the line, and no attack.
        checksum = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        asked = {"comp": "block", "blockid": block}
        with self._asked("PUT", key, asked, {"Content-MD5": checksum}, data):
            TRAFFIC.add(sent=len(data))
        return block

    def parts(self, key: str, upload: str, /) -> dict[int, tuple[int, str]]:
        """The blocks of an upload that are there."""
        return {
            int(base64.b64decode(name).decode().rpartition("-")[2]): (size, name)
            for name, size in self._blocks(key)
            if base64.b64decode(name).startswith(f"{upload}-".encode())
        }

    def complete(self, key: str, upload: str, tags: list[str], /, *, force: bool) -> None:
        """Make a blob of the blocks, in place of none unless ``force``; all other blocks are dropped."""
        del upload
        self._commit(key, tags, {} if force else {"If-None-Match": "*"})

    def abort(self, key: str, upload: str, /) -> None:
        """Nothing: what was sent is dropped when a blob is made there, or after a week."""

    def sweep(self, key: str, upload: str, /) -> None:
        """Drop the blocks, by an empty blob that is deleted at once, unless a blob is there."""
        del upload
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            self.delete(key, self._commit(key, [], {"If-None-Match": "*"}).strip('"'))

    def delete(self, key: str, tag: str, /) -> None:
        """Delete a blob that has this ETag still, or is gone."""
        headers = {"If-Match": f'"{tag.partition(" ")[0]}"'}
        gone = contextlib.suppress(FileExistsError, FileNotFoundError)
        with gone, self._asked("DELETE", key, headers=headers):
            TRAFFIC.add()

    def unfinished(self, key: str, /) -> list[tuple[str, str]]:
        """The blobs, an own one and all below it, that have blocks alone."""
        container, _, name = key.partition("/")
        below = name and f"{name}/"
        listed = self._listed(key, {"prefix": name, "include": "uncommittedblobs"})
        found = [f"{container}/{each}" for each, size in listed if not size]
        ours = [each for each in found if not name or each == key or each.startswith(f"{container}/{below}")]
        return [(each, "") for each in ours if self._blocks(each)]

    def _blocks(self, key: str) -> list[tuple[str, int]]:
        """The names and sizes of the blocks that no blob is made of."""
        asked = {"comp": "blocklist", "blocklisttype": "uncommitted"}
        with contextlib.suppress(FileNotFoundError), self._asked("GET", key, asked) as answer:
            TRAFFIC.add()
            blocks = _xml(answer).iter("Block")
            return [(block.findtext("Name"), int(block.findtext("Size"))) for block in blocks]
        return []

    def _commit(self, key: str, blocks: list[str], headers: Mapping[str, str]) -> str:
        """Make a blob of blocks; its ETag."""
        named = "".join(f"<Uncommitted>{block}</Uncommitted>" for block in blocks)
        text = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{named}</BlockList>'.encode()
        given = {"Content-Type": "application/xml", **headers}
        with self._asked("PUT", key, {"comp": "blocklist"}, given, text) as answer:
            TRAFFIC.add()
            return str(answer.headers.get("ETag", ""))

    def _listed(self, key: str, asked: Mapping[str, str]) -> Iterator[tuple[str, int]]:
        """The names that a container lists, and the bytes of each: 0 for folders."""
        container = key.partition("/")[0]
        marker = ""
        while True:
            query = {
                "restype": "container",
                "comp": "list",
                **asked,
                **({"marker": marker} if marker else {}),
            }
            with self._asked("GET", container, query) as answer:
                TRAFFIC.add()
                page = _xml(answer)
            for item in page.find("Blobs"):
                name = item.find("Name")
                text = unquote(name.text) if name.get("Encoded") == "true" else name.text
                yield text, int(item.findtext("Properties/Content-Length") or 0)
            if not (marker := page.findtext("NextMarker") or ""):
                return

    @contextlib.contextmanager
    def _asked(
        self,
        method: str,
        key: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | bytearray | None = None,
    ) -> Iterator[BaseHTTPResponse]:
        """The answer to a request. Raises as ``Client`` says."""
        url = self._account.address(quote(key), query or {})
        given = {"Accept-Encoding": "identity", "User-Agent": "wnconvert", **(headers or {})}
        made = self._account.headers(method, url, given, len(body or b""))
        with self._lines.asked(method, url, made, body) as answer:
            if answer.status >= 300:
                raise _in_words(answer.status, answer.headers.get("x-ms-error-code", ""), key)
            yield answer


def _block(upload: str, number: int) -> str:
    """The name of a block: all of a blob have names of one length."""
    return base64.b64encode(f"{upload}-{number:05}".encode()).decode()


def _found(answer: BaseHTTPResponse, size: str) -> Found:
    if not size.isdecimal():
        raise Passing("a part was asked for, and another came")
    headers = answer.headers
    tag = headers.get("ETag", "").strip('"')
    return Found(int(size), f"{tag} {headers.get('x-ms-version-id', '')}".strip())


def _xml(answer: BaseHTTPResponse) -> Any:
    """The text of an answer."""
    from xml.etree import ElementTree as ET

    try:
        return ET.fromstring(answer.read())  # noqa: S314 - of the store that holds the user's data
    except ET.ParseError as error:
        raise Passing("its answer was cut off") from error


def _in_words(status: int, code: str, key: str) -> Exception:
    """An answer that is an error, in words; its text may show a signature, and is left out."""
    container = key.partition("/")[0]
    if status == 429 or status >= 500 or code in _BUSY:
        return Passing(f"the store answers {status}")
    if code in _REFUSED:
        what, fix = _REFUSED[code]
        return InputError(what.format(container), fix=fix)
    if status == 404:
        return missing()
    if status in (409, 412) and code in ("BlobAlreadyExists", "ConditionNotMet", ""):
        return FileExistsError(17, "it exists")
    if status in (401, 403) or code == "PublicAccessNotPermitted":
        return InputError(
            f"access is forbidden, or a signature or token has expired ({code or status})",
            fix=f"credentials that may read and list {container}: {FROM}",
        )
    return InputError(
        f"the store refuses ({status} {code})", fix="check the address, and the storage account"
    )
