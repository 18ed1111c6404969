"""Numbers behind codes, read as a file: any bytes of it, in any order, as numpy makes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wnconvert.errors import FormatError
from wnconvert.storage.sources import Source
from wnconvert.tensors.blocks import Block
from wnconvert.tensors.dtypes import dtype_named
from wnconvert.tensors.files import MemoryFile
from wnconvert.tensors.tree import ByteRange, StoredTensor, TensorInfo, contiguous_strides
from wnconvert.tensors.views.dequantized import Dequantized, coded, dequantized, packed
from wnconvert.tensors.views.quantization import Quantization

SHAPE = (5, 6, 3)


def tensor(data: bytearray, array: NDArray[Any], dtype: str, shape: tuple[int, ...]) -> StoredTensor:
    """A tensor behind what the file has already."""
    start = len(data)
    info = TensorInfo(dtype, dtype_named(dtype), shape)
    codes = dtype.startswith(("int", "uint"))
    data += (packed(array, info.dtype) if codes else array).tobytes()
    return StoredTensor(info, ByteRange(start, info.nbytes), 0, contiguous_strides(shape))


def built(dtype: str, axis: int | None, block: int) -> tuple[bytes, Dequantized, NDArray[Any]]:
    random, data = np.random.default_rng(2), bytearray(b"head")
    signed = not dtype.startswith("u")
    codes = random.integers(-8 if signed else 0, 8 if signed else 16, SHAPE)
    code = tensor(data, codes, dtype, SHAPE)
    beside: tuple[int, ...] = ()
    if axis is not None:
        blocks = (*SHAPE[:axis], -(-SHAPE[axis] // (block or 1)), *SHAPE[axis + 1 :])
        beside = blocks if block else (SHAPE[axis],)
    scale = random.uniform(0.01, 0.1, beside).astype(np.float32)
    zero = random.integers(0, 4, beside)
    how = Quantization(
        dtype_named(dtype),
        tensor(data, scale, "float32", beside),
        tensor(data, zero, dtype, beside),
        axis,
        block,
    )
    assert how.fits(SHAPE)
    wide = [scale.astype(np.float64), zero.astype(np.float64)]
    if axis is not None:
        spread = (
            [np.repeat(each, block, axis)[tuple(map(slice, SHAPE))] for each in wide]
            if block
            else [each.reshape([-1 if at == axis else 1 for at in range(3)]) for each in wide]
        )
        wide = spread
    return bytes(data), Dequantized(code, how), ((codes - wide[1]) * wide[0]).astype(np.float32)


@pytest.mark.parametrize(("axis", "block"), [(None, 0), (0, 0), (2, 0), (1, 2), (1, 4), (0, 3)])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4", "uint4", "int16", "uint16"])
def test_a_view_reads_the_numbers_that_codes_stand_for(dtype: str, axis: int | None, block: int) -> None:
    data, view, expected = built(dtype, axis, block)
    file = view.over([MemoryFile(data)])
    assert file.read(0, file.size) == expected.tobytes()


@settings(deadline=None)
@given(
    start=st.integers(0, 359),
    size=st.integers(0, 359),
    dtype=st.sampled_from(["int4", "int8"]),
    axis=st.integers(0, 2),
)
def test_any_bytes_of_a_view_are_those_of_the_whole(start: int, size: int, dtype: str, axis: int) -> None:
    data, view, expected = built(dtype, axis, 0)
    size = min(size, 360 - start)
    assert view.over([MemoryFile(data)]).read(start, size) == expected.tobytes()[start : start + size]


def test_a_view_ends_where_its_codes_do() -> None:
    data, view, expected = built("int4", 0, 0)
    with pytest.raises(FormatError):
        view.over([MemoryFile(data)]).read(expected.nbytes - 1, 2)


def test_a_source_reads_such_a_tensor_in_any_order(tmp_path: Path) -> None:
    data, view, expected = built("int8", 1, 2)
    path = tmp_path / "data"
    path.write_bytes(data)
    made = dequantized(view.codes, view.how)
    turned = replace(made, info=replace(made.info, shape=SHAPE[::-1]), strides=made.strides[::-1])
    with Source([path]) as source:
        np.testing.assert_array_equal(source.whole(made), expected)
        np.testing.assert_array_equal(source.whole(turned), expected.T)
        block = Block(7, (1, 1, 20), 0)
        np.testing.assert_array_equal(source.reader(made)(block).reshape(-1), expected.reshape(-1)[7:27])
        assert len(source.files) == 2  # the view is opened once


def test_codes_are_rounded_half_to_even_and_held_in_their_range() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.6, 300, -300, np.inf, -np.inf, np.nan])
    expected = [0, 2, 2, 0, -2, 127, 127, -128, 127, -128, 0]
    np.testing.assert_array_equal(coded(x, np.zeros(1), dtype_named("int8")), expected)
    np.testing.assert_array_equal(coded(x[:4], np.array([128.0]), dtype_named("uint8")), [128, 130, 130, 128])


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"])
def test_codes_of_float8_are_their_own_numbers(dtype: str) -> None:
    kind = getattr(ml_dtypes, dtype)
    codes = np.arange(0, 256, dtype=np.uint8).view(kind)
    data = bytearray(codes.tobytes())
    code = StoredTensor(TensorInfo("c", dtype_named(dtype), (256,)), ByteRange(0, 256), 0, (1,))
    scale = np.array(0.3, np.float32)
    how = Quantization(dtype_named(dtype), tensor(data, scale, "float32", ()))
    file = Dequantized(code, how).over([MemoryFile(bytes(data))])
    with np.errstate(all="ignore"):
        expected = (codes.astype(np.float64) * np.float64(scale)).astype(np.float32)
    np.testing.assert_array_equal(np.frombuffer(file.read(0, file.size), np.float32), expected)
