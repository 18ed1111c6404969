"""Large tensors of an output are read past the page cache, where that can be done, and where they lie."""

from __future__ import annotations

import errno
import os
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from wnconvert.errors import FormatError, InputError, VerifyError
from wnconvert.storage.stores.system import read_into
from wnconvert.storage.stores.windows import PAGE
from wnconvert.tensors.tree import ByteRange
from wnconvert.verbs.conversion.files.fold import fold_file
from wnconvert.verbs.conversion.verify import readers, uncached
from wnconvert.verbs.conversion.verify.uncached import uncached_reader

#: No whole number of pages, and more than two windows.
CONTENT = os.urandom((5 << 20) + 1234)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(CONTENT)
    return tmp_path / "file"


@pytest.fixture(
    params=["past the cache", "no such way", "refused when opened", "refused when read", "in parts"]
)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How far the system lets a file be read past the page cache."""
    if not hasattr(os, "O_DIRECT"):
        pytest.skip("this system has no direct reads")
    opened, direct = os.open, set[int]()

    def open_so(path: Any, flags: int, *more: Any) -> int:
        if flags & os.O_DIRECT and request.param == "refused when opened":
            raise OSError(errno.EINVAL, "Invalid argument")
        found = opened(path, flags, *more)
        (direct.add if flags & os.O_DIRECT else direct.discard)(found)
        return found

    def read_so(descriptor: int, buffer: memoryview, at: int) -> int:
        if descriptor in direct and request.param == "refused when read":
            raise OSError(errno.EINVAL, "Invalid argument")
        return read_into(descriptor, buffer[: 5000 if request.param == "in parts" else None], at)

    if request.param == "no such way":
        monkeypatch.delattr(os, "O_DIRECT")
    elif request.param != "past the cache":
        monkeypatch.setattr(os, "open", open_so)
        monkeypatch.setattr(uncached, "read_into", read_so)
    return str(request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("first", [0, 1, 4095, 4096, 70_001])
@pytest.mark.parametrize("size", [1 << 20, 999_999, 40_000])
def test_pieces_are_the_bytes_of_the_file(file: Path, first: int, size: int) -> None:
    data = ByteRange(first, len(CONTENT) - first)
    read = uncached_reader(file, data)
    for at in range(0, data.size, size):
        some = min(size, data.size - at)
        assert bytes(read(at, some)) == CONTENT[first + at :][:some]


@pytest.mark.usefixtures("way")
def test_readers_by_turns_and_in_threads_do_not_disturb_each_other(file: Path) -> None:
    wrong: list[int] = []

    def read_two() -> None:
        first, second = (uncached_reader(file, ByteRange(start, 2 << 20)) for start in (10, 1 << 20))
        for at in [*range(0, 2 << 20, 300_000), 5, 0, (2 << 20) - 7]:
            size = min(300_000, (2 << 20) - at)
            for start, read in ((10, first), (1 << 20, second)):
                if bytes(read(at, size)) != CONTENT[start + at :][:size]:
                    wrong.append(at)

    threads = [threading.Thread(target=read_two) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pieces_of_one_size_are_read_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    read_file = uncached._read

    def counted(path: Path, at: int, size: int) -> memoryview:
        asked.append((at, at + size))
        return read_file(path, at, size)

    monkeypatch.setattr(uncached, "_read", counted)
    read = uncached_reader(file, ByteRange(777, len(CONTENT) - 777))
    for at in range(0, len(CONTENT) - 777, 700_000):
        read(at, min(700_000, len(CONTENT) - 777 - at))
    assert asked[0][0] == 0
    assert asked[-1][1] == len(CONTENT)
    assert all(later - PAGE < end and later <= end for (_, end), (later, _) in pairwise(asked))
    assert len(asked) == 4


@pytest.mark.usefixtures("way")
def test_a_file_that_became_shorter_or_is_gone_is_told(file: Path) -> None:
    read = uncached_reader(file, ByteRange(0, len(CONTENT)))
    os.truncate(file, 3 << 20)
    assert bytes(read(0, 100)) == CONTENT[:100]
    with pytest.raises(FormatError, match="it became shorter"):
        read(len(CONTENT) - 100, 100)
    file.unlink()
    with pytest.raises(InputError, match="it cannot be read"):
        read(2 << 20, 100)


def test_a_large_tensor_must_lie_where_the_safetensors_library_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    save_file(
        {"weight_g": torch.rand(600, 1), "weight_v": torch.randn(600, 2000)}, tmp_path / "in.safetensors"
    )
    found = readers._large_in
    monkeypatch.setattr(
        readers,
        "_large_in",
        lambda path: {name: ByteRange(data.start - 4, data.size) for name, data in found(path).items()},
    )
    with pytest.raises(VerifyError, match="another place of a tensor"):
        fold_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors", verify=True)
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]
    monkeypatch.undo()
    made = fold_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors", verify=True)
    assert made.verified == "the safetensors library, large tensors past the page cache"
