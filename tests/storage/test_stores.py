"""Where files lie: a disk, file:// addresses, and a store that is a class and a line."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path, PurePath

import pytest

from tests.helpers.golden import FIXTURES
from tests.helpers.runner import Runner
from tests.helpers.states import output_of
from wnconvert import compare_files, fold_file, inspect_file, migrate_file
from wnconvert.errors import InputError
from wnconvert.storage.files import STORES, kind_of, listing_of, located, open_file, real_of, status_of
from wnconvert.storage.stores.store import Address, PathKind, Status, Store
from wnconvert.tensors.files import MemoryFile, ReadableFile


class Memory(Store):
    """A store as a new one is written: three methods."""

    def __init__(self, *sources: Path, under: str) -> None:
        self.files = {f"{under}/{path.name}": path.read_bytes() for path in sources}

    def status(self, path: PurePath) -> Status:
        if str(path) in self.files:
            return Status(PathKind.FILE, len(self.files[str(path)]))
        if any(name.startswith(f"{path}/") for name in self.files):
            return Status(PathKind.FOLDER)
        raise FileNotFoundError(2, "nothing there")

    def names(self, folder: PurePath) -> list[str]:
        return sorted(
            {name[len(f"{folder}/") :].split("/")[0] for name in self.files if name.startswith(f"{folder}/")}
        )

    def open(self, path: PurePath) -> ReadableFile:
        return MemoryFile(self.files[str(path)])


@pytest.fixture
def shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of several files, and the same at mem://box/hub."""
    source = tmp_path / "hub"
    migrate_file(FIXTURES / "hifigan.safetensors", source, as_folder=True, max_shard_size="20KB")
    (source / "config.json").write_text("{}")
    monkeypatch.setitem(STORES, "mem", Memory(*source.iterdir(), under="mem://box/hub"))
    return source


def test_a_store_of_one_class_and_one_line_is_read_like_a_disk(shards: Path, tmp_path: Path) -> None:
    assert len(listing_of(located("mem://box/hub"))) > 3
    found = inspect_file("mem://box/hub")
    assert (found.source, found.files) == ("mem://box/hub", inspect_file(shards).files)
    result = fold_file("mem://box/hub", tmp_path / "out", verify=True)
    assert result.verified
    expected = fold_file(shards, tmp_path / "expected")
    for file in output_of(expected).iterdir():
        assert (output_of(result) / file.name).read_bytes() == file.read_bytes()
    assert compare_files("mem://box/hub", output_of(expected))
    assert fold_file("mem://box/hub/model.safetensors.index.json", tmp_path / "one.pt").plan.layers


@pytest.mark.usefixtures("shards")
def test_what_a_store_does_not_have_is_an_error_that_names_it_and_the_default_output_is_here(
    tmp_path: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = run("inspect", "mem://box/gone.pt")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: mem://box/gone.pt: there is no such file")
    monkeypatch.chdir(tmp_path)
    assert output_of(fold_file("mem://box/hub")) == Path("hub.folded")
    ended = run("fold", FIXTURES / "plain.pt", "-o", "mem://box/x.pt")
    assert ended.stderr.splitlines()[0].startswith("error: mem://box/x.pt: outputs are written to disks")


def test_an_address_has_the_methods_of_a_path() -> None:
    at = Address("s3x://box/a/b.pt")
    assert (str(at.parent), at.name, at.suffix, at.scheme) == ("s3x://box/a", "b.pt", ".pt", "s3x")
    assert str(at.parent / "c.pt") == os.fspath(at.with_name("c.pt")) == "s3x://box/a/c.pt"
    assert at == Address("s3x://box/a/b.pt")
    assert located(at) is at


@pytest.mark.parametrize("host", ["", "localhost"])
def test_a_file_address_is_the_file(tmp_path: Path, host: str) -> None:
    source = tmp_path / "two words + 100%.pt"
    source.write_bytes((FIXTURES / "plain.pt").read_bytes())
    address = source.as_uri().replace("file://", f"file://{host}")
    assert "%20" in address
    assert located(address) == source
    assert inspect_file(address).source == str(source)
    assert kind_of(located(address)) is PathKind.FILE


@pytest.mark.parametrize("name", ["file://other/share/x.pt", "file://", "file://x.pt"])
def test_a_file_address_of_another_machine_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="a file:// address") as caught:
        located(name)
    assert caught.value.where == name
    assert "three slashes" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("abfs://where/x.pt", "copy it to this machine"),
    ],
)
def test_an_address_without_a_store_is_an_error_in_words_and_no_path(
    run: Runner, tmp_path: Path, name: str, fix: str
) -> None:
    for command in (["inspect", name], ["fold", name], ["compare", name, name], ["fold", name, "-o", "x.pt"]):
        ended = run(*command, folder=tmp_path)
        assert ended.returncode == 2
        assert ended.stderr.startswith(f"error: {name}: an address, and of those only file, https")
        assert fix in ended.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())
    ended = run("fold", FIXTURES / "plain.pt", "-o", name, "--dry-run")
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (
        2,
        "fix: -o FILE, and copy it there afterwards",
    )


def test_a_path_object_of_an_address_is_known_although_it_has_lost_a_slash() -> None:
    assert str(located(Path("s3://bucket/x.pt"))) == str(located("S3://bucket/x.pt")) == "s3://bucket/x.pt"


@pytest.mark.parametrize("name", ["c:/x.pt", "a:b.pt", "run:1/x.pt", "x.pt", "./s3://x.pt", "run:/x.pt"])
def test_names_with_colons_are_still_paths(name: str) -> None:
    assert located(name) == Path(name)


def test_a_disk_tells_what_lies_at_a_path(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    file.chmod(0o640)
    (tmp_path / "link").symlink_to(file)
    os.mkfifo(tmp_path / "pipe")
    assert replace(status_of(tmp_path / "link"), identity=None) == Status(PathKind.FILE, 3, 0o640)
    assert real_of(tmp_path / "link") == real_of(file)
    assert kind_of(tmp_path) is PathKind.FOLDER
    assert kind_of(tmp_path / "pipe") is PathKind.PIPE
    assert kind_of(Path(os.devnull)) is PathKind.DEVICE
    assert kind_of(tmp_path / "gone") is None
    assert listing_of(tmp_path) == ["file", "link", "pipe"]
    open_file(tmp_path / "link").close()
