"""What is Azure's own: who asks, blocks that are left; and a client that is not ours beside it."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.helpers.azure_server import KEY, NAME, azure_server
from tests.helpers.golden import FIXTURES
from tests.helpers.runner import Runner
from tests.helpers.servers import tool
from tests.storage.remote.conftest import Bucket, anew
from wnconvert import clean_store, fold_file, inspect_file
from wnconvert.errors import InputError, OutputError, VerifyError
from wnconvert.storage.files import listing_of, located
from wnconvert.storage.stores.remote import patience
from wnconvert.storage.stores.remote.clients.azure import microsoft
from wnconvert.storage.stores.remote.clients.keys import account_of


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between attempts."""
    monkeypatch.setattr(patience, "_PAUSE", 0.001)


def rclone(container: Bucket, *words: str) -> None:
    """A client that is not ours, which sends and fetches in parts of 1 MiB."""
    remote = f":azureblob,account={NAME},key={KEY},endpoint='{container.proxy.url}/{NAME}':"
    command = [
        tool("rclone"),
        "--config",
        "",
        "--azureblob-upload-cutoff",
        "1M",
        "--azureblob-chunk-size",
        "1M",
    ]
    command += [word.replace("az:", remote) for word in words]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def test_another_client_reads_what_we_write_and_we_what_it_writes(container: Bucket, tmp_path: Path) -> None:
    pair = {"a.weight_g": np.ones((8, 1), np.float32), "a.weight_v": np.ones((8, 1 << 17), np.float32)}
    source = tmp_path / "in.safetensors"
    safetensors.numpy.save_file(pair, source)
    name = "größe +%20&x=1.safetensors"
    rclone(container, "copyto", str(source), f"az:{container.folder.name}/a b/{name}")
    blocks = [path for method, path, _ in container.proxy.asked.requests if "blockid=" in path]
    assert len(blocks) == 5  # of 1 MiB at most
    address = f"{container.address}/a b/{name}"
    fold_file(address, f"{container.address}/out/{name}")
    fold_file(source, tmp_path / "expected.safetensors")
    rclone(container, "copyto", f"az:{container.folder.name}/out/{name}", str(tmp_path / "fetched"))
    assert (tmp_path / "fetched").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()


def test_a_signature_in_place_of_a_key_is_sent_and_never_shown(
    container: Bucket, run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (container.folder / "g.pt").write_bytes((FIXTURES / "g_02500000").read_bytes())
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    monkeypatch.setenv("AZURE_STORAGE_SERVICE_ENDPOINT", f"{container.proxy.url}/{NAME}")
    said = {}
    for signature, code in (("geheim", 0), ("falsch", 2)):
        anew(monkeypatch)
        monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", f"?sv=2021-12-02&sig={signature}")
        ended = run("fold", f"{container.address}/g.pt", "-o", tmp_path / f"{code}.pt", "--verbose")
        assert ended.returncode == code
        assert signature not in ended.stdout + ended.stderr
        said[code] = ended.stderr
    assert f"error: {container.address}/g.pt: access is forbidden" in said[2]
    assert "AZURE_STORAGE_CONNECTION_STRING" in said[2]
    assert "geheim" not in (tmp_path / "0.pt").read_bytes().decode("latin-1")
    assert all("sig=" in path for _, path, _ in container.proxy.asked.requests)


@pytest.mark.parametrize("logged_in", [True, False])
def test_a_token_of_entra_is_asked_of_its_own_library(
    container: Bucket, monkeypatch: pytest.MonkeyPatch, *, logged_in: bool
) -> None:
    class RefusedError(Exception):
        pass

    class Credential:
        def get_token(self, scope: str) -> Any:
            assert scope == "https://storage.azure.com/.default"
            if not logged_in:
                raise RefusedError
            return types.SimpleNamespace(token="a-token")  # noqa: S106 - of nobody

    modules: dict[str, Any] = {
        "azure.identity": {"DefaultAzureCredential": Credential},
        "azure.core.exceptions": {"ClientAuthenticationError": RefusedError},
    }
    for name, content in {"azure": {}, "azure.core": {}, **modules}.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", NAME)
    monkeypatch.setenv("AZURE_STORAGE_SERVICE_ENDPOINT", f"{container.proxy.url}/{NAME}")
    with pytest.raises(InputError, match="access is forbidden"):  # the server knows no token
        inspect_file(f"{container.address}/g.pt")
    assert {*container.proxy.tokens} == ({"Bearer a-token"} if logged_in else {""})


@pytest.mark.parametrize(
    ("variables", "url", "key"),
    [
        ({"ACCOUNT": "m", "KEY": "a2V5"}, "https://m.blob.core.windows.net", b"key"),
        ({"ACCOUNT_NAME": "m", "ACCOUNT_KEY": "a2V5"}, "https://m.blob.core.windows.net", b"key"),
        ({"ACCOUNT": "m", "ENDPOINT": "https://x.net/"}, "https://x.net", b""),
        (
            {"CONNECTION_STRING": "AccountName=m;AccountKey=a2V5;EndpointSuffix=core.chinacloudapi.cn"},
            "https://m.blob.core.chinacloudapi.cn",
            b"key",
        ),
    ],
)
def test_an_account_is_named_by_the_usual_variables(variables: dict[str, str], url: str, key: bytes) -> None:
    account = account_of({f"AZURE_STORAGE_{name}": value for name, value in variables.items()})
    assert (account.name, account.url, account.key) == ("m", url, key)
    assert "key" not in repr(account)


def test_without_an_account_and_with_a_damaged_key_that_is_said(
    run: Runner, monkeypatch: pytest.MonkeyPatch, container: Bucket
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    anew(monkeypatch)
    ended = run("inspect", f"{container.address}/x.pt")
    assert (ended.returncode, ended.stderr.splitlines()[0]) == (
        2,
        f"error: {container.address}/x.pt: no storage account of Azure is named",
    )
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "m")
    monkeypatch.setenv("AZURE_STORAGE_KEY", "not base64!")
    ended = run("inspect", f"{container.address}/x.pt")
    assert "the key of the storage account is not in base64" in ended.stderr
    assert "not base64!" not in ended.stderr


def test_a_container_that_is_not_there_is_named(container: Bucket, run: Runner) -> None:
    del container
    for command in (
        ["inspect", "az://nobody/x.pt"],
        ["fold", FIXTURES / "g_02500000", "-o", "az://nobody/x.pt"],
    ):
        ended = run(*command)
        assert ended.returncode == 2
        assert "error: az://nobody/x.pt: there is no container nobody" in ended.stderr


def test_lists_are_read_to_their_last_page(container: Bucket) -> None:
    for name in [*"abcdefgh", "runs/x", "runs/y"]:
        (container.folder / name).parent.mkdir(exist_ok=True)
        (container.folder / name).write_bytes(b"x")
    assert listing_of(located(container.address)) == [*"abcdefgh", "runs"]
    assert listing_of(located(f"{container.address}/runs")) == ["x", "y"]


def test_a_blob_that_comes_while_the_last_request_is_made_is_not_replaced(container: Bucket) -> None:
    def before(line: str) -> None:
        if "comp=blocklist" in line and line.startswith("PUT"):
            (container.folder / "out.pt").write_bytes(b"another's")

    container.proxy.before = before
    with pytest.raises(OutputError, match="it exists"):
        fold_file(FIXTURES / "g_02500000", f"{container.address}/out.pt")
    assert (container.folder / "out.pt").read_bytes() == b"another's"


def test_blocks_that_another_program_left_are_said_and_cleaned(container: Bucket) -> None:
    client = microsoft()
    key = f"{container.folder.name}/out.pt"
    with client._asked("PUT", key, {"comp": "block", "blockid": "QUFB"}, body=b"left"):
        pass
    with pytest.raises(OutputError, match="another program's upload of it is unfinished"):
        fold_file(FIXTURES / "g_02500000", f"{container.address}/out.pt")
    assert clean_store(container.address) == (f"{container.address}/out.pt",)
    assert not (container.folder / "out.pt").exists()
    fold_file(FIXTURES / "g_02500000", f"{container.address}/out.pt")


def test_cleaning_leaves_a_blob_that_is_there(container: Bucket) -> None:
    client, key = microsoft(), f"{container.folder.name}/out.pt"
    client.put(key, client.begin(key), 0, bytearray(b"part"))
    (container.folder / "out.pt").write_bytes(b"whole")
    client.sweep(key, "")
    assert (container.folder / "out.pt").read_bytes() == b"whole"


def test_a_block_that_was_lost_is_seen_before_the_blob_is_there(
    container: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = type(microsoft())
    monkeypatch.setattr(client, "put", lambda self, key, upload, number, data: "QUFB")
    with pytest.raises((VerifyError, OutputError)):
        fold_file(FIXTURES / "g_02500000", f"{container.address}/out.pt")
    assert not (container.folder / "out.pt").exists()


def test_the_server_of_these_tests_refuses_a_wrong_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "box").mkdir()
    anew(monkeypatch)
    with azure_server(tmp_path) as url:
        told = f"AccountName={NAME};AccountKey=YW5vdGhlcg==;BlobEndpoint={url}/{NAME}"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", told)
        with pytest.raises(InputError, match=r"access is forbidden.*\(AuthenticationFailed\)"):
            inspect_file("az://box/x.pt")
