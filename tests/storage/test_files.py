"""Opened files: the same from a disk and from memory, and enough to open every kind of checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from fixtures.make import FIXTURES as MADE
from tests.helpers.golden import FIXTURES
from wnconvert.errors import FormatError, InputError
from wnconvert.formats.safetensors import open_safetensors
from wnconvert.storage.checkpoint import open_checkpoint, read_checkpoint
from wnconvert.storage.files import open_file
from wnconvert.storage.sources import Source
from wnconvert.tensors.files import MemoryFile, ReadableFile

CONTENT = bytes(range(256)) * 1000


def on_disk(folder: Path) -> ReadableFile:
    (folder / "file").write_bytes(CONTENT)
    return open_file(folder / "file")


def in_memory(_folder: Path) -> ReadableFile:
    return MemoryFile(CONTENT)


OPENERS = pytest.mark.parametrize("opener", [on_disk, in_memory])


@OPENERS
@pytest.mark.parametrize(
    ("at", "size"), [(0, 0), (0, 8), (255, 70_000), (len(CONTENT) - 1, 1), (len(CONTENT), 0)]
)
def test_a_file_is_read_at_any_place(
    tmp_path: Path, opener: Callable[[Path], ReadableFile], at: int, size: int
) -> None:
    with closing(opener(tmp_path)) as file:
        buffer = memoryview(bytearray(size))
        file.read_into(at, buffer)
        assert file.size == len(CONTENT)
        assert file.read(at, size) == buffer.tobytes() == CONTENT[at : at + size]


@OPENERS
@pytest.mark.parametrize(("at", "size"), [(len(CONTENT) - 1, 2), (len(CONTENT) + 7, 1), (0, 1 << 20)])
def test_what_lies_past_the_end_is_an_error(
    tmp_path: Path, opener: Callable[[Path], ReadableFile], at: int, size: int
) -> None:
    with closing(opener(tmp_path)) as file:
        for read in (
            lambda: file.read(at, size),
            lambda: file.read_into(at, memoryview(bytearray(size))),
        ):
            with pytest.raises(FormatError, match="it changed while it was read: it became shorter"):
                read()


def test_a_file_tells_its_size_as_it_is_now(tmp_path: Path) -> None:
    with closing(on_disk(tmp_path)) as file:
        os.truncate(tmp_path / "file", 16)
        assert (file.path, file.size) == (tmp_path / "file", 16)
        with pytest.raises(FormatError, match="it became shorter") as caught:
            file.read(0, 17)
    assert caught.value.where == str(tmp_path / "file")


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, says in (
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
        (Path(os.devnull), "not a regular file"),
        (tmp_path / "gone", "it cannot be read"),
    ):
        with pytest.raises(InputError, match=says) as caught:
            open_file(path)
        assert caught.value.where == str(path)


@pytest.mark.parametrize("name", sorted(name for name in MADE if (FIXTURES / name).is_file()))
def test_every_kind_of_checkpoint_is_read_from_memory(name: str) -> None:
    path = FIXTURES / name
    opened, content = open_checkpoint(path), path.read_bytes()
    found = read_checkpoint(MemoryFile(content), Path("nowhere") / name)
    assert (found.container, found.size, found.tree) == (opened.container, opened.size, opened.tree)
    tensors = [tensor for state in found.tree.state_dicts for tensor in state.tensors.values()]
    assert tensors
    with (
        Source(found.shards, opener=lambda _path: MemoryFile(content)) as memory,
        Source(opened.shards) as disk,
    ):
        for tensor in tensors:
            if tensor.info.dtype.foldable:
                assert memory.whole(tensor).tobytes() == disk.whole(tensor).tobytes()


def test_the_safetensors_library_checks_a_file_without_a_path_too() -> None:
    content = (FIXTURES / "hifigan.safetensors").read_bytes()
    with pytest.raises(FormatError, match="the safetensors library refuses it"):
        open_safetensors(MemoryFile(content[:-1]))
    with pytest.raises(FormatError, match="the safetensors library refuses it"):
        open_safetensors(MemoryFile(content.replace(b"F32", b"F31", 1)))
