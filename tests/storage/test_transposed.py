"""Tensors with their axes in another order, some of them backwards, as NumPy transposes and flips them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wnconvert import migrate_file
from wnconvert.storage import sources
from wnconvert.storage.sources import Source
from wnconvert.tensors.blocks import blocks
from wnconvert.tensors.dtypes import dtype_named
from wnconvert.tensors.tree import ByteRange, StoredTensor, TensorInfo, contiguous_strides
from wnconvert.tensors.views.assembled import Held

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int8", "uint16", "bool")


def stored(array: Any, dtype: str = "float32") -> StoredTensor:
    info = TensorInfo("t", dtype_named(dtype), array.shape)
    return StoredTensor(info, ByteRange(0, array.nbytes), 0, contiguous_strides(array.shape))


def read(array: Any, tensor: StoredTensor, limit: int = 64) -> bytes:
    """A tensor of the bytes of an array, read in blocks."""
    with Source([Held(array.tobytes())]) as source:
        reader = source.reader(tensor)
        return b"".join(reader(block).tobytes() for block in blocks(tensor.info.shape, 0, limit))


def turned(array: Any, axes: tuple[int, ...], backwards: tuple[int, ...]) -> Any:
    return np.flip(array.transpose(axes), backwards)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_transposed_as_numpy_does_it(dtype: str) -> None:
    array = np.arange(60).reshape(3, 4, 5).astype(getattr(ml_dtypes, dtype, dtype))
    for axes in itertools.permutations(range(3)):
        for backwards in ((), (0,), (1, 2), (0, 1, 2)):
            made = stored(array, dtype).transposed(axes, backwards)
            assert made.info.shape == tuple(array.shape[axis] for axis in axes)
            assert read(array, made) == turned(array, axes, backwards).tobytes()


@given(st.data())
def test_any_shape_is_transposed_as_numpy_does_it(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=5)))
    axes = tuple(data.draw(st.permutations(range(len(shape)))))
    backwards = tuple(data.draw(st.sets(st.sampled_from(range(len(shape))))))
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    made = stored(array).transposed(axes, backwards)
    assert read(array, made, data.draw(st.integers(1, 40))) == turned(array, axes, backwards).tobytes()
    again = made.transposed([axes.index(axis) for axis in range(len(shape))], [axes[at] for at in backwards])
    assert read(array, again) == array.tobytes()


@pytest.mark.parametrize("backwards", [(), (2,), (0, 1, 2)])
def test_tiles_and_spans_of_any_size_give_the_same(
    backwards: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.arange(7 * 30 * 50, dtype=np.float32).reshape(7, 30, 50)
    expected = turned(array, (2, 1, 0), backwards).tobytes()
    for tile, span in ((64, 16), (1000, 64), (5000, 40_000), (1 << 20, 1 << 20)):
        monkeypatch.setattr(sources, "_TILE_BYTES", tile)
        monkeypatch.setattr(sources, "_SPAN_BYTES", span)
        assert read(array, stored(array).transposed((2, 1, 0), backwards), 500) == expected


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_any_number_of_threads_writes_the_same_file(threads: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        f"{name}/{leaf}": rng.standard_normal(shape).astype(np.float32)
        for name, kernel in (
            ("Conv_0", (5, 60, 70)),
            ("ConvTranspose_0", (4, 70, 30)),
            ("Dense_0", (30, 300)),
        )
        for leaf, shape in (("kernel", kernel), ("bias", kernel[-1:]))
    }
    np.savez(tmp_path / "in.npz", **arrays)
    migrate_file(tmp_path / "in.npz", tmp_path / "out.npz", to="torch", threads=threads)
    with np.load(tmp_path / "out.npz") as made:
        assert np.array_equal(made["Conv_0.weight"], arrays["Conv_0/kernel"].transpose(2, 1, 0))
        assert np.array_equal(made["Dense_0.weight"], arrays["Dense_0/kernel"].T)
        flipped = arrays["ConvTranspose_0/kernel"][::-1].transpose(1, 2, 0)
        assert np.array_equal(made["ConvTranspose_0.weight"], flipped)


@pytest.mark.alone
def test_a_large_kernel_is_transposed_in_little_memory(tmp_path: Path) -> None:
    """Each thread holds one tile of 8 MiB, whatever the size of the tensor."""
    import tracemalloc

    array = np.zeros((3, 2048, 4096), np.float32)  # 100 MB
    np.savez(tmp_path / "in.npz", **{"Conv_0/kernel": array})  # type: ignore[arg-type]
    del array
    tracemalloc.start()
    migrate_file(tmp_path / "in.npz", tmp_path / "out.npz", to="torch", threads=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20
