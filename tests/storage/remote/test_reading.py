"""Checkpoints in buckets and on the web, read from real servers."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.helpers.golden import FIXTURES
from tests.helpers.runner import Runner
from tests.helpers.servers import SECRET, hub_server, proxy_before, s3_server, web_server
from tests.helpers.states import output_of
from tests.storage.remote.conftest import Bucket, Web, anew
from wnconvert import compare_files, fold_file, inspect_file, migrate_file, split_file
from wnconvert.errors import FormatError, InputError
from wnconvert.storage.stores.remote import patience
from wnconvert.storage.stores.remote.client import Found
from wnconvert.storage.stores.remote.far import RemoteFile
from wnconvert.storage.stores.remote.known import Known
from wnconvert.storage.stores.remote.traffic import TRAFFIC

SOURCES = ["g_02500000", "hifigan.safetensors", "legacy_nonzip.pth", "arrays.npz", "sovits.pth"]


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between attempts."""
    monkeypatch.setattr(patience, "_PAUSE", 0.001)


@pytest.fixture(params=["bucket", "container", "web"], ids=["s3", "az", "web"])
def place(request: pytest.FixtureRequest) -> Bucket | Web:
    found: Bucket | Web = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_every_container_is_read_as_from_a_disk(place: Bucket | Web, name: str, tmp_path: Path) -> None:
    shutil.copy(FIXTURES / name, place.folder / name)
    address = f"{place.address}/{name}"
    here, there = inspect_file(FIXTURES / name, full=True), inspect_file(address, full=True)
    assert (there.source, there.layers, there.health) == (address, here.layers, here.health)
    suffix = Path(name).suffix if name != "legacy_nonzip.pth" else ".pt"
    ours, theirs = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    fold_file(address, ours)
    fold_file(FIXTURES / name, theirs)
    assert ours.read_bytes() == theirs.read_bytes()


def test_every_verb_takes_an_address(place: Bucket | Web, tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "g_02500000", place.folder)
    address = f"{place.address}/g_02500000"
    folded = output_of(fold_file(address, tmp_path / "f.pt", verify=True))
    assert split_file(folded, tmp_path / "s.pt", like=address, verify=True).layers
    assert migrate_file(address, tmp_path / "m.pt", verify=True).layers
    assert compare_files(address, folded)
    assert fold_file(address, dry_run=True).layers


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_inspect_reads_little_in_few_requests(anywhere: Bucket, suffix: str) -> None:
    layers = {}
    for number in range(6):
        layers[f"blocks.{number}.weight_g"] = np.ones((512, 1, 1), np.float32)
        layers[f"blocks.{number}.weight_v"] = np.ones((512, 512, 4), np.float32)
    safetensors.numpy.save_file(layers, anywhere.folder / "x.safetensors")
    migrate_file(anywhere.folder / "x.safetensors", anywhere.folder / f"big{suffix}")
    before = TRAFFIC.counts
    assert len(inspect_file(f"{anywhere.address}/big{suffix}").layers) == 6
    spent = TRAFFIC.counts - before
    asked = [request for request in anywhere.proxy.asked.requests if request[0] in ("GET", "HEAD")]
    assert spent.requests == len(asked) <= 12
    assert spent.fetched <= 256 << 10
    sizes = [int(at[6:].split("-")[1]) - int(at[6:].split("-")[0]) + 1 for _, _, at in asked if at]
    assert spent.fetched == sum(sizes)


def test_a_fold_fetches_each_byte_once_and_ahead(anywhere: Bucket, tmp_path: Path) -> None:
    size = 12 << 20
    layer = {"a.weight_g": np.ones((3, 1), np.float32), "a.weight_v": np.ones((3, size // 12), np.float32)}
    safetensors.numpy.save_file(layer, anywhere.folder / "x.safetensors")
    before = TRAFFIC.counts
    fold_file(f"{anywhere.address}/x.safetensors", tmp_path / "out.safetensors")
    spent = TRAFFIC.counts - before
    assert size < spent.fetched < size + (256 << 10)
    assert spent.requests < 20


def test_a_folder_is_read_with_its_index(anywhere: Bucket, tmp_path: Path) -> None:
    hub = anywhere.folder / "org" / "hub"
    hub.parent.mkdir()
    migrate_file(FIXTURES / "hifigan.safetensors", hub, as_folder=True, max_shard_size="100KB")
    (hub / "config.json").write_text("{}")
    address = f"{anywhere.address}/org/hub"
    result = fold_file(address, tmp_path / "out", verify=True)
    expected = output_of(fold_file(hub, tmp_path / "expected"))
    for file in expected.iterdir():
        assert (output_of(result) / file.name).read_bytes() == file.read_bytes()
    assert inspect_file(f"{address}/model.safetensors.index.json").layers
    (
        hub / json.loads((hub / "model.safetensors.index.json").read_text())["weight_map"]["conv_pre.bias"]
    ).unlink()
    with pytest.raises(InputError) as caught:
        inspect_file(address)
    assert "model-0" in str(caught.value)


# -- what fails in passing


@pytest.mark.parametrize("fault", ["503", "429", "cut", "drop"])
def test_what_fails_in_passing_is_asked_again(place: Bucket | Web, fault: str, tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "g_02500000", place.folder)
    place.proxy.faults = [fault, "", fault, fault, ""]
    fold_file(f"{place.address}/g_02500000", tmp_path / "out.pt")
    assert not place.proxy.faults
    fold_file(FIXTURES / "g_02500000", tmp_path / "expected.pt")
    assert (tmp_path / "out.pt").read_bytes() == (tmp_path / "expected.pt").read_bytes()


@pytest.mark.parametrize(
    ("fault", "says"), [("503", "answers 503"), ("cut", "line broke"), ("drop", "line broke")]
)
def test_what_goes_on_failing_is_an_error(
    place: Bucket | Web, fault: str, says: str, run: Runner, tmp_path: Path
) -> None:
    shutil.copy(FIXTURES / "g_02500000", place.folder)
    place.proxy.always = fault
    address = f"{place.address}/g_02500000"
    ended = run("fold", address, "-o", tmp_path / "out.pt")
    assert ended.returncode == 2
    first, fix = ended.stderr.splitlines()
    assert first.startswith(f"error: {address}: it cannot be reached (")
    assert says in first
    assert "asked 5 times" in first
    assert fix == "fix: try again later, or look at the network"
    assert not (tmp_path / "out.pt").exists()


def test_a_server_that_falls_silent_is_left_after_a_while(
    place: Bucket | Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wnconvert.storage.stores.remote.clients import lines, s3

    anew(monkeypatch)
    monkeypatch.setattr(s3, "SILENCE", 0.1)
    monkeypatch.setattr(lines, "SILENCE", 0.1)
    shutil.copy(FIXTURES / "g_02500000", place.folder)
    place.proxy.faults, place.proxy.seconds = ["slow", "", "slow"], 0.5
    assert inspect_file(f"{place.address}/g_02500000").layers
    assert not place.proxy.faults
    shutil.copy(FIXTURES / "g_02500000", place.folder / "other")
    place.proxy.always = "slow"
    with pytest.raises(InputError, match="fell silent"):
        inspect_file(f"{place.address}/other")


# -- what changes


@pytest.mark.parametrize("fault", ["etag", "shorter"])
def test_an_object_that_changes_between_two_requests_is_an_error(
    place: Bucket | Web, fault: str, tmp_path: Path
) -> None:
    shutil.copy(FIXTURES / "g_02500000", place.folder)
    place.proxy.faults, place.proxy.only = ["", "", "", fault], "GET"
    with pytest.raises(FormatError, match="it changed while it was read"):
        fold_file(f"{place.address}/g_02500000", tmp_path / "out.pt")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("change", ["gone", "replaced"])
def test_an_object_that_is_another_at_the_end_is_an_error(
    place: Bucket | Web, change: str, tmp_path: Path
) -> None:
    source = place.folder / "g_02500000"
    shutil.copy(FIXTURES / "g_02500000", source)
    count = [0]

    def before(line: str) -> None:
        count[0] += "g_02500000" in line
        if count[0] == 5:
            source.unlink()
            if change == "replaced":
                shutil.copy(FIXTURES / "plain.pt", source)

    place.proxy.before = before
    with pytest.raises(FormatError, match="changed while it was read"):
        fold_file(f"{place.address}/g_02500000", tmp_path / "out.pt")
    assert not list(tmp_path.glob("out*"))


# -- what a server does not have


def test_a_missing_bucket_and_a_missing_object_are_named(bucket: Bucket, run: Runner) -> None:
    ended = run("inspect", f"{bucket.address}/gone.pt")
    assert ended.stderr.splitlines()[0] == f"error: {bucket.address}/gone.pt: there is no such file"
    ended = run("inspect", "s3://no-such-bucket/gone.pt")
    assert (ended.returncode, ended.stderr.splitlines()) == (
        2,
        [
            "error: s3://no-such-bucket/gone.pt: there is no bucket no-such-bucket",
            "fix: check its name, AWS_PROFILE and AWS_ENDPOINT_URL",
        ],
    )


def test_what_is_forbidden_says_so_and_shows_no_secret(
    bucket: Bucket, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(FIXTURES / "plain.pt", bucket.folder)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"not-{SECRET}")
    anew(monkeypatch)
    ended = run("inspect", f"{bucket.address}/plain.pt")
    assert ended.returncode == 2
    assert "its credentials are not valid (SignatureDoesNotMatch)" in ended.stderr
    assert "AWS_PROFILE" in ended.stderr.splitlines()[-1]
    assert SECRET not in ended.stderr


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (400, "ExpiredToken", "the token has expired"),
        (403, "AccessDenied", "access is forbidden"),
        (403, "InvalidAccessKeyId", "credentials are not valid"),
    ],
)
def test_what_a_store_refuses_is_said_in_words(status: int, code: str, says: str) -> None:
    from botocore.exceptions import ClientError

    from wnconvert.storage.stores.remote.clients.s3 import told_of_bucket

    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    with pytest.raises(InputError, match=says) as caught, told_of_bucket("box"):
        raise ClientError(answer, "GetObject")
    assert caught.value.fix


def test_without_the_extra_a_scheme_names_it(monkeypatch: pytest.MonkeyPatch, run: Runner) -> None:
    import sys

    anew(monkeypatch)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "models")
    for name in ("botocore", "urllib3", "huggingface_hub", "google.auth"):
        monkeypatch.setitem(sys.modules, name, None)
    for address in (
        "s3://box/x.pt",
        "https://example.com/x.pt",
        "hf://org/name/x.pt",
        "gs://box/x.pt",
        "az://box/x.pt",
    ):
        ended = run("inspect", address)
        assert ended.returncode == 2
        assert "which is not installed" in ended.stderr
        assert ended.stderr.splitlines()[-1] == "fix: pip install '.[remote]'"


# -- the web


@pytest.mark.parametrize("sized", [True, False])
def test_a_server_without_ranges_is_read_through_a_temporary_file(tmp_path: Path, *, sized: bool) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    shutil.copy(FIXTURES / "g_02500000", folder)
    with web_server(folder, in_ranges=False, sized=sized) as (url, asked):
        fold_file(f"{url}/g_02500000", tmp_path / "out.pt", verify=True)
        fold_file(FIXTURES / "g_02500000", tmp_path / "expected.pt")
        assert (tmp_path / "out.pt").read_bytes() == (tmp_path / "expected.pt").read_bytes()
        assert sum(not at for _, _, at in asked.requests) == 1  # once as a whole


def test_redirects_are_followed_and_remembered(web: Web) -> None:
    shutil.copy(FIXTURES / "g_02500000", web.folder)
    assert inspect_file(f"{web.address}/to/g_02500000").source == f"{web.address}/to/g_02500000"
    assert sum(path.startswith("/to/") for _, path, _ in web.proxy.asked.requests) == 1


def test_a_signature_is_sent_and_never_shown(tmp_path: Path, run: Runner) -> None:
    folder = tmp_path / "signed"
    folder.mkdir()
    shutil.copy(FIXTURES / "g_02500000", folder / "g.pt")
    with web_server(folder, secret="sig=geheim") as (url, _):  # noqa: S106 - of a server for tests
        out = tmp_path / "out.pt"
        ended = run("fold", f"{url}/g.pt?sig=geheim", "-o", out)
        assert ended.returncode == 0, ended.stderr
        refused = run("inspect", f"{url}/g.pt?sig=falsch")
        assert (refused.returncode, refused.stderr.splitlines()[0]) == (
            2,
            f"error: {url}/g.pt#2: the server refuses it (403)",
        )
        for shown in (ended.stdout, ended.stderr, refused.stderr, out.read_bytes().decode("latin-1")):
            assert "geheim" not in shown
            assert "falsch" not in shown
        found = run("inspect", f"{url}/g.pt?sig=geheim", "--json")
        assert json.loads(found.stdout)["source"] == f"{url}/g.pt"


def test_what_is_not_on_the_web_is_named(web: Web, run: Runner) -> None:
    ended = run("inspect", f"{web.address}/gone.pt")
    assert ended.stderr.splitlines()[0] == f"error: {web.address}/gone.pt: there is no such file"
    ended = run("inspect", "http://127.0.0.1:9/x.pt")
    assert "it cannot be reached (no connection; asked 5 times)" in ended.stderr


def test_verbose_says_what_a_store_was_asked(bucket: Bucket, run: Runner) -> None:
    shutil.copy(FIXTURES / "g_02500000", bucket.folder)
    ended = run("inspect", f"{bucket.address}/g_02500000", "--verbose")
    asked = len(bucket.proxy.asked.requests)
    assert ended.stderr.startswith(f"{asked} requests, ")
    assert ended.stderr.endswith(" bytes fetched, 0 sent\n")
    assert (
        run("inspect", FIXTURES / "g_02500000", "--verbose").stderr == "0 requests, 0 bytes fetched, 0 sent\n"
    )


# -- other stores that speak the language of S3, and the hub


class _Token:
    """Credentials of Google's."""

    def before_request(self, _request: object, _method: str, _url: str, headers: Any) -> None:
        headers["Authorization"] = "Bearer a-token"


@pytest.mark.parametrize("has_token", [True, False])
def test_googles_storage_is_read_by_the_same_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_token: bool
) -> None:
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    def default(**_: object) -> tuple[object, str]:
        if not has_token:
            raise DefaultCredentialsError
        return _Token(), "project"

    monkeypatch.setattr(google.auth, "default", default)
    anew(monkeypatch)
    (tmp_path / "gs" / "box").mkdir(parents=True)
    shutil.copy(FIXTURES / "g_02500000", tmp_path / "gs" / "box")
    with s3_server(tmp_path / "gs", for_all=True) as server, proxy_before(server) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        fold_file("gs://box/g_02500000", tmp_path / "out.pt", verify=True)
        with pytest.raises(InputError, match="there is no such file"):
            inspect_file("gs://box/gone.pt")
        with pytest.raises(InputError, match="there is no bucket nobody"):
            inspect_file("gs://nobody/gone.pt")
    assert {*proxy.tokens} == ({"Bearer a-token"} if has_token else {""})


def test_an_opened_file_system_of_fsspec_is_read(tmp_path: Path) -> None:
    import fsspec

    from wnconvert import path_on

    system = fsspec.filesystem("memory")
    system.pipe("/models/g.pt", (FIXTURES / "g_02500000").read_bytes())
    source = path_on(system, "/models/g.pt")
    assert inspect_file(source).layers
    assert fold_file(source, tmp_path / "out.pt", verify=True).layers
    assert path_on(system, "/models/g.pt") == source
    with pytest.raises(InputError, match="there is no such file"):
        inspect_file(path_on(system, "/models/gone.pt"))


def test_the_hub_is_read_by_its_own_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfFileSystem

    from wnconvert.storage import files
    from wnconvert.storage.stores.remote.clients.filesystems import FileSystem
    from wnconvert.storage.stores.remote.remote import Remote

    anew(monkeypatch)
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy(FIXTURES / "g_02500000", folder / "g.pt")
    with hub_server(folder) as (url, asked):
        system = HfFileSystem(endpoint=url, skip_instance_cache=True)
        monkeypatch.setitem(files.STORES, "hf", Remote("hf", lambda: FileSystem(system)))
        fold_file("hf://org/name/g.pt", tmp_path / "out.pt", verify=True)
        fold_file(FIXTURES / "g_02500000", tmp_path / "expected.pt")
        assert (tmp_path / "out.pt").read_bytes() == (tmp_path / "expected.pt").read_bytes()
        assert any(at.startswith("bytes=0-32767") for _, _, at in asked.requests)
        with pytest.raises(InputError, match="there is no such file"):
            inspect_file("hf://org/name/gone.pt")
        with pytest.raises(InputError, match="there is no such file"):
            inspect_file("hf://org/nobody/g.pt")


# -- pieces


class Counting:
    """The client of a store whose objects are zeros, and how many bytes it was asked for."""

    def __init__(self, size: int) -> None:
        self.found = Found(size, "tag")
        self.fetched = 0
        self.lock = threading.Lock()

    def look(self, _key: str, /) -> Found:
        return self.found

    def read(self, _key: str, _at: int, buffer: memoryview, /) -> Found:
        with self.lock:
            self.fetched += len(buffer)
        return self.found

    def save(self, key: str, to: Any, /) -> Found:
        raise NotImplementedError

    def names(self, key: str, /) -> list[str]:
        raise NotImplementedError


@pytest.mark.parametrize("readers", [1, 2, 4, 6])
@pytest.mark.parametrize("tensor", [3 << 20, 5 << 20, (9 << 19) + 4096])
def test_tensors_that_are_read_beside_each_other_are_fetched_once(readers: int, tensor: int) -> None:
    """Each begins within a piece where another ends, and is read while others are: in blocks, by turns."""
    count = 24
    client = Counting(count * tensor)
    file = RemoteFile(client, "key", Known(client.found), "s3://box/x")
    buffer = memoryview(bytearray(1 << 20))
    waiting = iter(range(count))
    at_work = {
        reader: (index * tensor, (index + 1) * tensor)
        for reader, index in zip(range(readers), waiting, strict=False)
    }
    while at_work:
        for reader, (at, end) in [*at_work.items()]:
            part = buffer[: min(len(buffer), end - at)]
            file.read_into(at, part)
            at_work[reader] = (at + len(part), end)
            if at + len(part) == end:
                del at_work[reader]
                if (index := next(waiting, None)) is not None:
                    at_work[reader] = (index * tensor, (index + 1) * tensor)
    file.close()
    assert client.fetched == client.found.size


def test_what_is_read_again_is_fetched_again_where_it_was_let_go() -> None:
    """Memory is bounded: of a tensor that is read twice, only the last pieces are still there."""
    client = Counting(80 << 20)
    file = RemoteFile(client, "key", Known(client.found), "s3://box/x")
    buffer = memoryview(bytearray(1 << 20))
    for _ in range(2):
        for at in range(0, client.found.size, len(buffer)):
            file.read_into(at, buffer)
    assert len(file._pieces) <= 12
    file.close()
    assert client.fetched > client.found.size * 3 // 2
