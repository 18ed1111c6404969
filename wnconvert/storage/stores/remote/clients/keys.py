"""What proves to Azure's storage who asks: a key, a signature in the address, a token, or nothing."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Callable, Mapping
from dataclasses import field
from email.utils import formatdate
from urllib.parse import parse_qsl, urlsplit

from wnconvert.errors import InputError
from wnconvert.frozen import dataclass

__all__ = ["FROM", "Account", "account_of"]


#: Where credentials are looked for, in the words of a fix.
FROM = (
    "AZURE_STORAGE_CONNECTION_STRING; or AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY, "
    "AZURE_STORAGE_SAS_TOKEN, or az login and pip install azure-identity"
)
_VERSION = "2021-12-02"
_SCOPE = "https://storage.azure.com/.default"
#: The headers that are signed by their values alone, in this order.
_SIGNED = (
    *("Content-Encoding", "Content-Language", "Content-Length", "Content-MD5", "Content-Type", "Date"),
    *("If-Modified-Since", "If-Match", "If-None-Match", "If-Unmodified-Since", "Range"),
)


@dataclass(frozen=True, slots=True)
class Account:
    """A storage account: the URL of its blobs, and one of three proofs, or none for what is public.

    >>> account = account_of({"AZURE_STORAGE_ACCOUNT": "models", "AZURE_STORAGE_KEY": "c2VjcmV0"})
    >>> account, account.url
    (Account(name='models', url='https://models.blob.core.windows.net'), 'https://models.blob.core.windows.net')
    """

    name: str
    url: str
    key: bytes = field(default=b"", repr=False)
    signature: str = field(default="", repr=False)
    token: Callable[[], str] | None = field(default=None, repr=False)

    def address(self, path: str, query: Mapping[str, str]) -> str:
        """The URL of a request; ``path`` is quoted."""
        from urllib.parse import urlencode

        asked = "&".join(part for part in (urlencode(query), self.signature) if part)
        return f"{self.url}/{path}{'?' if asked else ''}{asked}"

    def headers(self, method: str, url: str, given: Mapping[str, str], size: int) -> dict[str, str]:
        """The headers of a request with a body of ``size`` bytes, and among them what proves who asks.

        The signature is Azure's "Shared Key" (Authorize with Shared Key, in its REST reference).
        """
        headers = {"x-ms-version": _VERSION, "x-ms-date": formatdate(usegmt=True), **given}
        if self.token is not None:
            return {**headers, "Authorization": f"Bearer {self.token()}"}
        if not self.key:
            return headers
        lengths = {**headers, "Content-Length": str(size) if size else ""}
        ours = sorted(name for name in headers if name.startswith("x-ms-"))
        address = urlsplit(url)
        asked = sorted(parse_qsl(address.query, keep_blank_values=True))
        text = "\n".join(
            [
                method,
                *(lengths.get(name, "") for name in _SIGNED),
                *(f"{name}:{headers[name]}" for name in ours),
                f"/{self.name}{address.path}",
                *(f"{name}:{value}" for name, value in asked),
            ]
        )
        proof = base64.b64encode(hmac.digest(self.key, text.encode(), hashlib.sha256)).decode()
        return {**headers, "Authorization": f"SharedKey {self.name}:{proof}"}


def account_of(variables: Mapping[str, str] = os.environ) -> Account:
    """The account that the usual variables name, those of Azure's own tools first.

    Raises ``InputError`` where none is named, or where a key is none.

    >>> account_of({"AZURE_STORAGE_ACCOUNT_NAME": "models"}).url
    'https://models.blob.core.windows.net'
    """
    said = _said(variables.get("AZURE_STORAGE_CONNECTION_STRING", ""))
    name = said.get("accountname") or _first(variables, "ACCOUNT", "ACCOUNT_NAME")
    url = said.get("blobendpoint") or _first(variables, "SERVICE_ENDPOINT", "ENDPOINT")
    if not url and name:
        scheme = said.get("defaultendpointsprotocol", "https")
        url = f"{scheme}://{name}.blob.{said.get('endpointsuffix', 'core.windows.net')}"
    if not url:
        raise InputError("no storage account of Azure is named", fix=FROM)
    key = said.get("accountkey") or _first(variables, "KEY", "ACCOUNT_KEY", "ACCESS_KEY")
    signature = said.get("sharedaccesssignature") or _first(variables, "SAS_TOKEN")
    try:
        secret = base64.b64decode(key, validate=True)
    except binascii.Error as error:
        raise InputError("the key of the storage account is not in base64", fix=FROM) from error
    proven = bool(secret or signature)
    name = name or (urlsplit(url).hostname or "").partition(".")[0]
    return Account(name, url.rstrip("/"), secret, signature.lstrip("?"), None if proven else _token())


def _said(text: str) -> dict[str, str]:
    """What a connection string says, by names in small letters."""
    pairs = (part.partition("=") for part in text.split(";") if "=" in part)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _first(variables: Mapping[str, str], *names: str) -> str:
    return next((found for name in names if (found := variables.get(f"AZURE_STORAGE_{name}"))), "")


def _token() -> Callable[[], str] | None:
    """What gives a token of Entra by azure-identity, which keeps and renews it; None for the public alone."""
    try:
        from azure.core.exceptions import ClientAuthenticationError
        from azure.identity import DefaultAzureCredential
    except ImportError:
        return None
    credential = DefaultAzureCredential()
    try:
        credential.get_token(_SCOPE)
    except ClientAuthenticationError:
        return None
    return lambda: str(credential.get_token(_SCOPE).token)
