"""A bucket on a real server, files on the web, and a proxy in front of either."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.azure_server import azure_server, connection_string
from tests.helpers.servers import VARIABLES, Proxy, proxy_before, s3_server, web_server
from wnconvert.storage import files
from wnconvert.storage.stores.remote.clients.s3 import amazon
from wnconvert.storage.stores.remote.remote import Buckets, Remote
from wnconvert.storage.stores.remote.uploads import Writer


@dataclass(frozen=True)
class Bucket:
    """A bucket: its folder on this machine, its address, and the proxy through which it is reached."""

    folder: Path
    proxy: Proxy
    address: str = "s3://box"


@dataclass(frozen=True)
class Server:
    """S3 on this machine, its folder, the proxy before it, and a client, which takes a while to make."""

    folder: Path
    proxy: Proxy
    client: Writer


#: The stores that answer over the network, as they are made.
REMOTE = {
    scheme: (type(store), store.connect)
    for scheme, store in files.STORES.items()
    if isinstance(store, Remote)
}


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """S3 on this machine, as long as the tests run."""
    folder = tmp_path_factory.mktemp("s3")
    with s3_server(folder) as url, proxy_before(url) as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in {**VARIABLES, "AWS_ENDPOINT_URL": proxy.url}.items():
            patch.setenv(name, value)
        client = amazon()
        yield Server(folder, proxy, client)


@pytest.fixture
def bucket(s3: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket of its own for a test, reached by the usual variables."""
    name = f"box-{len([*s3.folder.iterdir()])}"
    (s3.folder / name).mkdir()
    for variable, value in {**VARIABLES, "AWS_ENDPOINT_URL": s3.proxy.url}.items():
        monkeypatch.setenv(variable, value)
    anew(monkeypatch)
    monkeypatch.setitem(files.STORES, "s3", Buckets("s3", lambda: s3.client))
    s3.proxy.reset()
    yield Bucket(s3.folder / name, s3.proxy, f"s3://{name}")
    s3.proxy.reset()


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Proxy]]:
    """Azure's storage on this machine, as long as the tests run: its folder, and the proxy before it."""
    folder = tmp_path_factory.mktemp("azure")
    with azure_server(folder, signature="geheim") as url, proxy_before(url) as proxy:
        yield folder, proxy


@pytest.fixture
def container(azure: tuple[Path, Proxy], monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A container of its own for a test, reached by the usual variable."""
    folder, proxy = azure
    name = f"box-{len([*folder.iterdir()])}"
    (folder / name).mkdir()
    for variable in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string(proxy.url))
    anew(monkeypatch)
    proxy.reset()
    yield Bucket(folder / name, proxy, f"az://{name}")
    proxy.reset()


@pytest.fixture(params=["s3", "az"])
def anywhere(request: pytest.FixtureRequest) -> Bucket:
    """A bucket of S3, or a container of Azure's."""
    found: Bucket = request.getfixturevalue("bucket" if request.param == "s3" else "container")
    return found


def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores that know nothing yet."""
    for scheme, (kind, connect) in REMOTE.items():
        monkeypatch.setitem(files.STORES, scheme, kind(scheme, connect))


@dataclass(frozen=True)
class Web:
    """A folder of files on the web, reached through a proxy."""

    folder: Path
    proxy: Proxy

    @property
    def address(self) -> str:
        return self.proxy.url


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    folder = tmp_path / "web"
    folder.mkdir()
    anew(monkeypatch)
    with web_server(folder) as (url, _), proxy_before(url) as proxy:
        yield Web(folder, proxy)
