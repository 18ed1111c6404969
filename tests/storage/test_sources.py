"""Tensors are read as torch sees them, whatever their strides; a file cut short is an error."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from wnconvert.errors import FormatError, InputError
from wnconvert.storage import sources
from wnconvert.storage.sources import Source
from wnconvert.tensors.blocks import Array, blocks
from wnconvert.tensors.dtypes import dtype_named
from wnconvert.tensors.tree import ByteRange, StoredTensor, TensorInfo

BASE = torch.arange(20_000, dtype=torch.float32)

VIEWS = {
    "contiguous": BASE[7:607].view(20, 30),
    "transposed": BASE[:6000].view(60, 100).t(),
    "wide and transposed": BASE.view(4, 5000).t(),
    "high and transposed": BASE.view(5000, 4).t(),
    "channels last": BASE[:1536].view(2, 8, 8, 12).permute(0, 3, 1, 2),
    "expanded": BASE[3:8].view(5, 1, 1).expand(5, 6, 7),
    "every third": BASE[1::3],
    "a corner": BASE.view(100, 200)[90:, 190:],
    "permuted": BASE[:9000].view(10, 20, 45).permute(2, 0, 1),
    "overlapping": BASE.as_strided((50, 8, 3), (2, 5, 1), 11),
    "one element, odd strides": BASE.as_strided((1, 1), (999, 77), 5),
    "empty": BASE[:0].view(0, 4),
}


def stored(tensor: torch.Tensor, start: int = 0) -> StoredTensor:
    """A tensor whose storage lies at a place of a file."""
    dtype = dtype_named(str(tensor.dtype).removeprefix("torch."))
    storage = ByteRange(start, tensor.untyped_storage().nbytes())
    info = TensorInfo("t", dtype, tuple(tensor.shape))
    return StoredTensor(info, storage, int(tensor.storage_offset()), tuple(tensor.stride()))


def saved(folder: Path, tensor: torch.Tensor, start: int = 0) -> Path:
    """A file with the storage of a tensor at a place."""
    raw = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    path = folder / "data"
    path.write_bytes(b"?" * start + raw.numpy().tobytes())
    return path


def read_all(source: Source, tensor: StoredTensor, limit: int) -> bytes:
    read = source.reader(tensor)
    cut = blocks((tensor.info.numel,), None, tensor.info.dtype.itemsize, limit)
    return b"".join(read(block).tobytes() for block in cut)


def expected(tensor: torch.Tensor) -> bytes:
    raw: Array = tensor.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8).numpy()
    return raw.tobytes()


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("sizes", [(8 << 20, 64 << 10), (2048, 256), (512, 4096), (64, 8)])
def test_a_view_is_read_as_torch_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sizes: tuple[int, int]
) -> None:
    monkeypatch.setattr(sources, "_TILE_BYTES", sizes[0])
    monkeypatch.setattr(sources, "_SPAN_BYTES", sizes[1])
    with Source([saved(tmp_path, VIEWS[name], 13)]) as source:
        for limit in (1 << 20, 700):
            assert read_all(source, stored(VIEWS[name], 13), limit) == expected(VIEWS[name])


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex128]
)
@pytest.mark.parametrize("name", ["contiguous", "transposed"])
def test_every_dtype_is_read(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    tensor = torch.arange(600).to(dtype).view(20, 30)
    tensor = tensor if name == "contiguous" else tensor.t()
    with Source([saved(tmp_path, tensor)]) as source:
        assert read_all(source, stored(tensor), 64) == expected(tensor)


def test_a_transposed_tensor_is_read_in_long_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.zeros(2048, 1024).t()
    calls = []
    preadv = os.preadv

    def counted(fd: int, buffers: list[memoryview], at: int) -> int:
        calls.append(at)
        return preadv(fd, buffers, at)

    monkeypatch.setattr("os.preadv", counted)
    with Source([saved(tmp_path, tensor)]) as source:
        read_all(source, stored(tensor), 1 << 20)
    assert len(calls) < 200  # it has 2048 columns, and 8 blocks


def test_magnitudes_come_whole_and_stay(tmp_path: Path) -> None:
    g = BASE[:12].view(12, 1, 1)
    with Source([saved(tmp_path, g)]) as source:
        found = source.whole(stored(g))
        source.chunk(ByteRange(100, 50))
    np.testing.assert_array_equal(found, g.numpy())


@pytest.mark.parametrize("name", ["contiguous", "transposed", "expanded", "every third"])
def test_a_file_that_became_shorter_is_an_error(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, VIEWS[name])
    with Source([path]) as source:
        read = source.reader(stored(VIEWS[name]))
        os.truncate(path, 16)
        with pytest.raises(FormatError, match="it changed while it was read: it became shorter") as caught:
            read(next(blocks((VIEWS[name].numel(),), None, 4)))
    assert caught.value.where == str(path)


def test_a_file_that_is_gone_is_an_error_and_no_file_stays_open(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"")
    before = os.dup(0)
    os.close(before)
    with pytest.raises(InputError, match="it cannot be read"):
        Source([tmp_path / "there", tmp_path / "gone"])
    after = os.dup(0)
    os.close(after)
    assert after == before


def test_a_disk_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_given: object) -> int:
        raise OSError(5, "Input/output error")

    with Source([saved(tmp_path, BASE)]) as source:
        monkeypatch.setattr("os.preadv", fails)
        with pytest.raises(InputError, match="Input/output error"):
            source.chunk(ByteRange(0, 8))
