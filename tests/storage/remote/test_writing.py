"""Outputs in buckets of a real server: whole or not at all, in parts, without a copy on the disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.helpers.contracts import WriterContract
from tests.helpers.golden import FIXTURES, ROOT
from tests.helpers.runner import Runner, listing
from tests.helpers.states import output_of
from tests.storage.remote.conftest import Bucket
from wnconvert import clean_store, compare_files, fold_file, migrate_file
from wnconvert.errors import FormatError, NumbersError, OutputError, VerifyError
from wnconvert.storage.files import located, stored
from wnconvert.storage.stores.remote import patience, uploads
from wnconvert.storage.stores.remote.uploads import Outline, Planned
from wnconvert.storage.stores.store import Address


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between attempts."""
    monkeypatch.setattr(patience, "_PAUSE", 0.001)


def at(address: str) -> Address:
    path = located(address)
    assert isinstance(path, Address)
    return path


def unfinished(bucket: Bucket) -> list[str]:
    return [str(path) for path, _ in stored(at(bucket.address)).unfinished(at(bucket.address))]


def left_by_failure(bucket: Bucket) -> list[str]:
    """The uploads that a run left which could abort them: nothing aborts one of Azure's."""
    return [] if bucket.address.startswith("az:") else unfinished(bucket)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("g_02500000", ".pt"),
        ("hifigan.safetensors", ".safetensors"),
        ("legacy_nonzip.pth", ".pt"),
        ("arrays.npz", ".npz"),
        ("sovits.pth", ".npz"),
        ("waveglow_module.pt", ".pt"),
    ],
)
def test_an_output_in_a_bucket_is_that_of_a_disk(
    anywhere: Bucket, name: str, suffix: str, tmp_path: Path
) -> None:
    result = fold_file(FIXTURES / name, f"{anywhere.address}/a/out{suffix}")
    fold_file(FIXTURES / name, tmp_path / f"out{suffix}")
    assert str(result.output) == f"{anywhere.address}/a/out{suffix}"
    written = anywhere.folder / "a" / f"out{suffix}"
    assert written.read_bytes() == (tmp_path / f"out{suffix}").read_bytes()
    assert result.bytes_out == written.stat().st_size
    assert not unfinished(anywhere)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_parts_are_sent_as_they_become_full(
    anywhere: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suffix: str, threads: int
) -> None:
    monkeypatch.setattr(uploads, "_PART", 64 << 10)
    monkeypatch.setattr(uploads, "_SMALL", 8 << 10)
    layers = {}
    for number in range(9):
        layers[f"{number}.weight_g"] = np.ones((16, 1), np.float32)
        layers[f"{number}.weight_v"] = np.full((16, 999 * number + 1), 1.5, np.float32)
    safetensors.numpy.save_file(layers, tmp_path / "in.safetensors")
    fold_file(tmp_path / "in.safetensors", f"{anywhere.address}/out{suffix}", threads=threads)
    fold_file(tmp_path / "in.safetensors", tmp_path / f"out{suffix}")
    assert (anywhere.folder / f"out{suffix}").read_bytes() == (tmp_path / f"out{suffix}").read_bytes()
    sent = [path for method, path, _ in anywhere.proxy.asked.requests if method == "PUT"]
    parts = [path for path in sent if "comp=blocklist" not in path]
    assert len(parts) == -(-(tmp_path / f"out{suffix}").stat().st_size // (64 << 10)) > 30


def test_from_a_bucket_into_a_bucket_no_file_is_made(
    anywhere: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(FIXTURES / "g_02500000", anywhere.folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    fold_file(f"{anywhere.address}/g_02500000", f"{anywhere.address}/out.pt")
    assert compare_files(f"{anywhere.address}/g_02500000", f"{anywhere.address}/out.pt")
    assert not list(tmp_path.iterdir())


def test_an_object_that_is_there_is_replaced_by_force_alone(anywhere: Bucket, run: Runner) -> None:
    out = f"{anywhere.address}/out.pt"
    (anywhere.folder / "out.pt").write_bytes(b"old")
    ended = run("fold", FIXTURES / "g_02500000", "-o", out)
    assert (ended.returncode, ended.stderr.splitlines()[-2:]) == (
        2,
        [f"error: {out}: it exists", "fix: --force replaces it, or choose another -o"],
    )
    assert (anywhere.folder / "out.pt").read_bytes() == b"old"
    assert f"{out} exists: --force" in run("fold", FIXTURES / "g_02500000", "-o", out, "--dry-run").stderr
    fold_file(FIXTURES / "g_02500000", out, force=True)
    assert (anywhere.folder / "out.pt").stat().st_size > 1000


def test_an_object_that_comes_meanwhile_is_not_replaced(anywhere: Bucket) -> None:
    def before(line: str) -> None:
        if line.startswith("PUT"):
            (anywhere.folder / "out.pt").write_bytes(b"another's")

    anywhere.proxy.before = before
    with pytest.raises(OutputError, match="it exists"):
        fold_file(FIXTURES / "g_02500000", f"{anywhere.address}/out.pt")
    assert (anywhere.folder / "out.pt").read_bytes() == b"another's"
    assert not left_by_failure(anywhere)


def test_the_store_is_asked_to_replace_nothing(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    from wnconvert.storage.stores.remote.clients.s3 import S3

    given: list[dict[str, object]] = []
    made = S3.complete

    def complete(self: S3, key: str, upload: str, tags: list[str], *, force: bool) -> None:
        self.client.meta.events.register(
            "before-call.s3.CompleteMultipartUpload", lambda params, **_: given.append(params["headers"])
        )
        made(self, key, upload, tags, force=force)

    monkeypatch.setattr(S3, "complete", complete)
    fold_file(FIXTURES / "g_02500000", f"{bucket.address}/out.pt")
    assert given[0]["If-None-Match"] == "*"
    fold_file(FIXTURES / "g_02500000", f"{bucket.address}/out.pt", force=True)
    assert "If-None-Match" not in given[-1]


# -- what fails


def bad(folder: Path) -> Path:
    source = folder / "bad.safetensors"
    pair = {"a.weight_g": np.ones((2, 1), np.float32), "a.weight_v": np.zeros((2, 3), np.float32)}
    safetensors.numpy.save_file(pair, source)
    return source


def test_a_fold_that_fails_leaves_nothing(anywhere: Bucket, tmp_path: Path) -> None:
    with pytest.raises(NumbersError):
        fold_file(bad(tmp_path), f"{anywhere.address}/out.safetensors")
    assert listing(anywhere.folder) == {}
    assert not left_by_failure(anywhere)


def test_a_source_that_changes_leaves_nothing(anywhere: Bucket, tmp_path: Path) -> None:
    source = tmp_path / "g.pt"
    shutil.copy(FIXTURES / "g_02500000", source)

    def before(line: str) -> None:
        if line.startswith("PUT"):
            source.write_bytes(b"another")

    anywhere.proxy.before = before
    with pytest.raises(FormatError, match="it changed while it was read"):
        fold_file(source, f"{anywhere.address}/out.pt")
    assert listing(anywhere.folder) == {}
    assert not left_by_failure(anywhere)


@pytest.mark.parametrize("fault", ["503", "drop"])
@pytest.mark.parametrize("step", ["part", "made", "any"])
def test_sending_fails_in_passing_and_is_done_again(
    anywhere: Bucket, fault: str, step: str, tmp_path: Path
) -> None:
    words = {"s3": {"part": "PUT", "made": "POST", "any": "uploadId"}}
    words["az"] = {"part": "comp=block&", "made": "PUT /devstoreaccount1", "any": "comp=block"}
    anywhere.proxy.faults, anywhere.proxy.only = [fault, fault], words[anywhere.address[:2]][step]
    fold_file(FIXTURES / "g_02500000", f"{anywhere.address}/out.pt")
    assert not anywhere.proxy.faults
    fold_file(FIXTURES / "g_02500000", tmp_path / "out.pt")
    assert (anywhere.folder / "out.pt").read_bytes() == (tmp_path / "out.pt").read_bytes()


@pytest.mark.parametrize("old", [b"", b"old"])
def test_an_object_that_was_made_without_an_answer_is_made(anywhere: Bucket, old: bytes) -> None:
    if old:
        (anywhere.folder / "out.pt").write_bytes(old)
    made = {"s3": f"POST /{anywhere.folder.name}/out.pt?uploadId", "az": "out.pt?comp=blocklist"}
    anywhere.proxy.faults, anywhere.proxy.only = ["deaf"], made[anywhere.address[:2]]
    result = fold_file(FIXTURES / "g_02500000", f"{anywhere.address}/out.pt", force=bool(old))
    assert not anywhere.proxy.faults
    assert (anywhere.folder / "out.pt").stat().st_size == result.bytes_out


@pytest.mark.parametrize("fault", ["503", "403"])
def test_sending_that_goes_on_failing_names_the_output(anywhere: Bucket, fault: str, run: Runner) -> None:
    anywhere.proxy.always, anywhere.proxy.only = fault, "PUT"
    ended = run("fold", FIXTURES / "g_02500000", "-o", f"{anywhere.address}/out.pt")
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-2].startswith(f"error: {anywhere.address}/out.pt: ")
    assert listing(anywhere.folder) == {}
    anywhere.proxy.always = ""
    assert not left_by_failure(anywhere)


def test_a_part_that_the_store_has_otherwise_is_seen_before_the_object_is_there(bucket: Bucket) -> None:
    bucket.proxy.faults, bucket.proxy.only = ["etag"], "PUT"
    with pytest.raises(VerifyError, match=r"other parts than were sent \(1\)"):
        fold_file(FIXTURES / "g_02500000", f"{bucket.address}/out.pt")
    assert listing(bucket.folder) == {}


def test_a_structure_that_cannot_be_read_is_seen_before_the_object_is_there(
    anywhere: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Outline.put
    monkeypatch.setattr(Outline, "put", lambda self, at, data: made(self, at, bytes(len(data))))
    with pytest.raises(VerifyError, match="cannot be read back"):
        fold_file(FIXTURES / "g_02500000", f"{anywhere.address}/out.pt")
    assert listing(anywhere.folder) == {}
    assert not left_by_failure(anywhere)


FOLD = """
import sys
from wnconvert.cli import main
sys.argv = ["wnconvert", *sys.argv[1:]]
main()
"""


def started(bucket: Bucket, source: Path, until: Callable[[], bool]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", FOLD, "fold", str(source), "-o", f"{bucket.address}/out.safetensors"]
    bucket.proxy.always, bucket.proxy.only, bucket.proxy.seconds = "slow", "PUT", 1.0
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
    )
    while not until() and process.poll() is None:
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_killed_leaves_at_most_an_upload_that_the_next_run_aborts(
    anywhere: Bucket, tmp_path: Path, number: signal.Signals, run: Runner
) -> None:
    pair = {"a.weight_g": np.ones((40, 1), np.float32), "a.weight_v": np.ones((40, 1 << 17), np.float32)}
    source = tmp_path / "in.safetensors"
    safetensors.numpy.save_file(pair, source)
    sent = anywhere.proxy.asked.requests
    process = started(anywhere, source, lambda: any(method == "PUT" for method, *_ in sent))
    process.send_signal(number)
    process.wait(60)
    until = time.monotonic() + 30
    while number == signal.SIGKILL and not unfinished(anywhere):  # the proxy still passes on what was sent
        assert time.monotonic() < until
        time.sleep(0.05)
    anywhere.proxy.always = ""
    out = f"{anywhere.address}/out.safetensors"
    assert not (anywhere.folder / "out.safetensors").exists()
    assert left_by_failure(anywhere) == ([out] if number == signal.SIGKILL and out.startswith("s3") else [])
    if number == signal.SIGKILL:
        dry = run("fold", source, "-o", out, "--dry-run")
        assert f"note: an upload of {out} is unfinished: the next run aborts it" in dry.stderr
        ended = run("fold", source, "-o", out)
        becomes = "is aborted" if out.startswith("s3") else "goes when this one is done"
        assert f"note: an unfinished upload of {out} {becomes}" in ended.stderr
        assert not unfinished(anywhere)
        assert compare_files(source, out)


def test_clean_aborts_what_is_unfinished_below_an_address(anywhere: Bucket, run: Runner) -> None:
    for name in ("models/a.pt", "models/b/c.pt", "modelsx.pt"):
        upload = stored(at(anywhere.address)).upload(at(f"{anywhere.address}/{name}"), Planned(10))
        writer = stored(at(anywhere.address)).writer()
        writer.put(f"{anywhere.folder.name}/{name}", upload.upload, 0, bytearray(10))
    shown = run("clean", f"{anywhere.address}/models", "--dry-run")
    assert shown.stdout.splitlines() == [
        f"an upload of {anywhere.address}/models/a.pt is unfinished",
        f"an upload of {anywhere.address}/models/b/c.pt is unfinished",
    ]
    assert len(unfinished(anywhere)) == 3
    assert run("clean", f"{anywhere.address}/models").stdout.count("is aborted") == 2
    assert unfinished(anywhere) == [f"{anywhere.address}/modelsx.pt"]
    assert clean_store(anywhere.address) == (f"{anywhere.address}/modelsx.pt",)
    assert run("clean", anywhere.address).stdout == "nothing is unfinished\n"
    ended = run("clean", "some/folder")
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (
        2,
        "fix: fold, split and migrate clean beside OUT with --clean",
    )


# -- what is verified


@pytest.mark.parametrize("name", ["g_02500000", "hifigan.safetensors", "arrays.npz"])
def test_an_output_is_read_back_from_the_store(anywhere: Bucket, name: str) -> None:
    suffix = Path(name).suffix or ".pt"
    result = fold_file(FIXTURES / name, f"{anywhere.address}/out{suffix}", verify=True)
    assert result.verified == "wnconvert's own reader"
    asked = [at for method, path, at in anywhere.proxy.asked.requests if method == "GET" and "out." in path]
    assert any(asked)


def test_an_output_that_is_wrong_in_the_store_is_deleted(
    anywhere: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = uploads.Upload.complete

    def complete(self: uploads.Upload, *, force: bool) -> None:
        made(self, force=force)
        (file,) = anywhere.folder.glob("out*")
        data = bytearray(file.read_bytes())
        data[-100] ^= 0x40
        file.write_bytes(data)

    monkeypatch.setattr(uploads.Upload, "complete", complete)
    with pytest.raises(VerifyError):
        fold_file(FIXTURES / "hifigan.safetensors", f"{anywhere.address}/out.safetensors", verify=True)
    assert listing(anywhere.folder) == {}


def test_what_another_writes_while_it_is_read_back_is_not_deleted(
    anywhere: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(*_: object) -> None:
        (anywhere.folder / "out.pt").write_bytes(b"another's")
        raise VerifyError("wrong")

    monkeypatch.setattr("wnconvert.verbs.conversion.places.stored.verify_output", verify)
    with pytest.raises(VerifyError):
        fold_file(FIXTURES / "g_02500000", f"{anywhere.address}/out.pt", verify=True)
    assert listing(anywhere.folder) == {"out.pt": b"another's"}


def test_nothing_is_replaced_by_what_is_verified(anywhere: Bucket) -> None:
    (anywhere.folder / "out.pt").write_bytes(b"old")
    with pytest.raises(OutputError, match="takes the place of nothing"):
        fold_file(FIXTURES / "g_02500000", f"{anywhere.address}/out.pt", verify=True, force=True)
    assert (anywhere.folder / "out.pt").read_bytes() == b"old"
    assert fold_file(FIXTURES / "g_02500000", f"{anywhere.address}/new.pt", verify=True, force=True).verified


def test_a_folder_is_read_back_and_deleted_where_it_is_wrong(
    anywhere: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub"
    migrate_file(FIXTURES / "hifigan.safetensors", hub, as_folder=True, max_shard_size="100KB")
    (hub / "config.json").write_text("{}")
    assert fold_file(hub, f"{anywhere.address}/right", verify=True).verified == "wnconvert's own reader"

    def verify(*_: object) -> None:
        raise VerifyError("wrong")

    monkeypatch.setattr("wnconvert.verbs.conversion.places.stored.verify_copies", verify)
    with pytest.raises(VerifyError):
        fold_file(hub, f"{anywhere.address}/wrong", verify=True)
    assert {name.partition("/")[0] for name in listing(anywhere.folder)} == {"right"}


# -- folders


def test_a_folder_becomes_objects_with_the_index_last(anywhere: Bucket, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    migrate_file(FIXTURES / "hifigan.safetensors", hub, as_folder=True, max_shard_size="100KB")
    (hub / "config.json").write_text("{}")
    (hub / "empty.txt").write_text("")
    address = f"{anywhere.address}/org/model"
    result = fold_file(hub, address, max_shard_size="100KB")
    expected = output_of(fold_file(hub, tmp_path / "expected", max_shard_size="100KB"))
    assert listing(anywhere.folder / "org" / "model") == listing(expected)
    assert str(result.output) == address
    done = [
        path.split("?")[0]
        for method, path, _ in anywhere.proxy.asked.requests
        if (method == "POST" and "uploadId" in path) or (method == "PUT" and "comp=blocklist" in path)
    ]
    assert [Path(path).name for path in done[-2:]] == ["model.safetensors.index.json", ".wnconvert.json"]
    assert compare_files(hub, address)
    with pytest.raises(OutputError, match="no store replaces a folder whole"):
        fold_file(hub, address, force=True)


def test_a_folder_that_fails_leaves_nothing(anywhere: Bucket, tmp_path: Path) -> None:
    with pytest.raises(NumbersError):
        fold_file(bad(tmp_path), f"{anywhere.address}/model", as_folder=True)
    assert listing(anywhere.folder) == {}
    assert not left_by_failure(anywhere)


def test_an_address_with_a_slash_at_its_end_is_a_folder_to_put_it_in(anywhere: Bucket) -> None:
    result = fold_file(FIXTURES / "g_02500000", f"{anywhere.address}/runs/")
    assert str(result.output) == f"{anywhere.address}/runs/g_02500000.folded"
    assert (anywhere.folder / "runs" / "g_02500000.folded").exists()


# -- what no store can


def test_an_onnx_model_is_not_written_there(anywhere: Bucket) -> None:
    with pytest.raises(OutputError, match="an ONNX model is run where it lies"):
        fold_file(FIXTURES / "tcn.onnx", f"{anywhere.address}/out.onnx")
    assert listing(anywhere.folder) == {}


def test_what_is_read_is_not_written(anywhere: Bucket) -> None:
    shutil.copy(FIXTURES / "g_02500000", anywhere.folder / "g.pt")
    with pytest.raises(OutputError, match="it is read, or lies in what is read"):
        fold_file(f"{anywhere.address}/g.pt", f"{anywhere.address}/g.pt", force=True)


def test_a_bucket_that_is_not_there_is_named(bucket: Bucket, run: Runner) -> None:
    del bucket
    ended = run("fold", FIXTURES / "g_02500000", "-o", "s3://no-such-bucket/out.pt")
    assert ended.returncode == 2
    assert (
        ended.stderr.splitlines()[-2]
        == "error: s3://no-such-bucket/out.pt: there is no bucket no-such-bucket"
    )


@pytest.mark.parametrize("out", ["https://example.com/out.pt", "hf://org/name/out.pt"])
def test_other_stores_are_only_read(out: str, run: Runner) -> None:
    ended = run("fold", FIXTURES / "plain.pt", "-o", out)
    assert ended.returncode == 2
    assert f"error: {out}: outputs are written to disks, s3, gs and az" in ended.stderr


class TestTorchZipInABucket(WriterContract):
    SOURCES = ("g_02500000", "hifigan.safetensors")
    SUFFIX = ".pt"

    @pytest.fixture(autouse=True)
    def _in(self, anywhere: Bucket) -> None:
        self.bucket = anywhere

    def written(self, source: str, folder: Path, **options: object) -> object:  # type: ignore[override]
        from dataclasses import replace

        result = fold_file(FIXTURES / source, f"{self.bucket.address}/out.pt", force=True, **options)  # type: ignore[call-overload]
        return replace(result, output=Path(shutil.copy(self.bucket.folder / "out.pt", folder / "out.pt")))

    def read(self, path: Path) -> dict[str, object]:
        from tests.helpers.states import state_dicts

        found = state_dicts(path)
        return {f"{at}.{name}": value.numpy() for at, state in found.items() for name, value in state.items()}
