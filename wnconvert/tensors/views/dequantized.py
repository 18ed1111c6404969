"""The numbers that codes stand for, as a file: (code − zero)·scale, each rounded once to the scale's dtype.

That product is exact in float64 for codes of at most 16 bits, so what is read is what every runtime computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wnconvert.frozen import dataclass
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.files import Identity, ReadableFile, became_shorter
from wnconvert.tensors.tree import ByteRange, Shape, StoredTensor, TensorInfo, contiguous_strides
from wnconvert.tensors.views.assembled import FileView
from wnconvert.tensors.views.quantization import Quantization, ViewedTensor

__all__ = [
    "CODED",
    "Dequantized",
    "coded",
    "dequantized",
    "numbers_of_codes",
    "packed",
    "quantized_in",
    "range_of",
    "scale_places",
    "stored_codes",
]


#: The dtypes of codes that can be read. int32, which biases have, may lose digits in a runtime's float32.
CODED = frozenset(
    {
        "int4",
        "uint4",
        "int8",
        "uint8",
        "int16",
        "uint16",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
    }
)
#: Elements that are made at a time.
_PIECE = 1 << 16

_Array: TypeAlias = NDArray[Any]
_Floats: TypeAlias = NDArray[np.float64]
#: What reads all elements of a small tensor.
_Small: TypeAlias = Callable[[StoredTensor], _Array]


@dataclass(frozen=True, slots=True)
class Dequantized(FileView):
    """The numbers that ``codes`` stand for, end to end in C order, in the dtype of their scale."""

    codes: StoredTensor
    how: Quantization

    def over(self, files: Sequence[ReadableFile]) -> ReadableFile:
        """The numbers as a file."""
        return _DequantizedFile(self, files)


def dequantized(codes: StoredTensor, how: Quantization) -> ViewedTensor:
    """The numbers that codes stand for, as a tensor."""
    info = TensorInfo(codes.info.name, how.scale.info.dtype, codes.info.shape)
    nowhere = ByteRange(0, info.nbytes, codes.storage.shard)
    return ViewedTensor(info, nowhere, 0, contiguous_strides(info.shape), made=Dequantized(codes, how))


class _DequantizedFile:
    """Makes numbers of codes when they are read, a piece at a time."""

    path: Path | None = None
    identity: Identity | None = None

    def __init__(self, view: Dequantized, files: Sequence[ReadableFile]) -> None:
        self._view = view
        self._files = files
        self._dtype = view.how.scale.info.dtype.numpy()
        self.size = view.codes.info.numel * self._dtype.itemsize

    def read(self, at: int, size: int, /) -> bytes:
        """All of ``size`` bytes, beginning at byte ``at``."""
        made = bytearray(size)
        self.read_into(at, memoryview(made))
        return bytes(made)

    def read_into(self, at: int, buffer: memoryview, /) -> None:
        """Fill a buffer with the bytes that begin at byte ``at``."""
        if at + len(buffer) > self.size:
            raise became_shorter()
        done, itemsize = 0, self._dtype.itemsize
        while done < len(buffer):
            first, inside = divmod(at + done, itemsize)
            last = min(first + _PIECE, -(-(at + len(buffer)) // itemsize))
            made = self._numbers(first, last).view(np.uint8).data[inside:]
            part = buffer[done : done + len(made)]
            part[:] = made[: len(part)]
            done += len(part)

    def close(self) -> None:
        """Let go of it: the files belong to whoever opened them."""

    def _numbers(self, first: int, last: int) -> _Array:
        """The elements from ``first`` on."""
        codes, how = self._view.codes, self._view.how
        values = numbers_of_codes(self._codes(codes, first, last), codes.info.dtype)
        scale, zero = self._scales
        at = scale_places(how, codes.info.shape, first, last)
        made: _Array = ((values - zero[at]) * scale[at]).astype(self._dtype)
        return made

    def _codes(self, codes: StoredTensor, first: int, last: int) -> bytes:
        """The bytes of some codes; of those of 4 bits, from the byte on in which ``first`` lies."""
        bits = codes.info.dtype.bits
        start, stop = first * bits // 8, -(-last * bits // 8)
        found = self._bytes(codes, start, stop - start)
        if bits % 8 == 0:
            return found
        return _halves(found)[first % 2 : first % 2 + last - first]

    @cached_property
    def _scales(self) -> tuple[_Floats, _Floats]:
        return quantized_in(self._view.how, self._small)

    def _small(self, tensor: StoredTensor) -> _Array:
        found, dtype = self._bytes(tensor, 0, tensor.data.size), tensor.info.dtype
        if dtype.foldable:
            return np.frombuffer(found, dtype.numpy())
        return stored_codes(found, tensor.info)

    def _bytes(self, tensor: StoredTensor, at: int, size: int) -> bytes:
        """Some bytes of a tensor, the first of which is ``at``."""
        data = tensor.data
        if isinstance(tensor, ViewedTensor):
            return tensor.made.over(self._files).read(data.start + at, size)
        return self._files[data.shard].read(data.start + at, size)


def _halves(found: bytes) -> bytes:
    """Elements of 4 bits, each as a byte: the lower half of a byte comes first."""
    pairs = np.frombuffer(found, np.uint8)
    return np.stack((pairs & 15, pairs >> 4), axis=-1).tobytes()


def stored_codes(found: bytes, info: TensorInfo) -> _Array:
    """All codes of a tensor as numbers in float64, from the bytes in which they lie end to end."""
    return numbers_of_codes(_halves(found)[: info.numel] if info.dtype.bits % 8 else found, info.dtype)


def packed(codes: _Array, dtype: DType) -> _Array:
    """Codes as the bytes in which they are stored: an even number of those that have 4 bits, or the last.

    >>> from wnconvert.tensors.dtypes import dtype_named
    >>> packed(np.array([1, -1, 2]), dtype_named("int4")).tolist()
    [241, 2]
    """
    if dtype.bits % 8 == 0:
        return np.ascontiguousarray(codes, dtype.name)
    halves = (codes.reshape(-1).astype(np.int16) & 15).astype(np.uint8)
    if len(halves) % 2:
        halves = np.append(halves, np.uint8(0))
    made: _Array = halves[::2] | halves[1::2] << 4
    return made


def numbers_of_codes(found: bytes, dtype: DType) -> _Array:
    """Codes as numbers in float64, without scale and zero.

    >>> from wnconvert.tensors.dtypes import dtype_named
    >>> numbers_of_codes(bytes([255, 1]), dtype_named("int8")).tolist()
    [-1.0, 1.0]
    """
    if dtype.bits == 4:
        halves = np.frombuffer(found, np.uint8).astype(np.int8)
        return np.asarray(halves - 16 * (halves > 7) if dtype.name == "int4" else halves, np.float64)
    if dtype.is_float8:
        import ml_dtypes  # only for these

        return np.frombuffer(found, getattr(ml_dtypes, dtype.name)).astype(np.float64)
    return np.frombuffer(found, dtype.name).astype(np.float64)


def quantized_in(how: Quantization, small: _Small) -> tuple[_Floats, _Floats]:
    """The scales and zeros of a quantization in float64, flat; ``small`` reads such a tensor."""
    scale: _Floats = small(how.scale).astype(np.float64).reshape(-1)
    zero = np.zeros_like(scale) if how.zero is None else small(how.zero).astype(np.float64).reshape(-1)
    return scale, zero


def scale_places(how: Quantization, shape: Shape, start: int, stop: int) -> Any:
    """The places among the scales that belong to elements ``start`` to ``stop``, in C order."""
    if how.axis is None:
        return slice(0, 1)
    index = np.arange(start, stop)
    inner, size = math.prod(shape[how.axis + 1 :]), shape[how.axis]
    if not how.block:
        return index // inner % size
    blocks = -(-size // how.block)
    outer, place = index // (inner * size), index // inner % size // how.block
    return (outer * blocks + place) * inner + index % inner


def coded(quotients: _Array, zero: _Array, dtype: DType) -> _Floats:
    """Whole numbers of a dtype for x / scale: rounded half to even, moved by zero, held in its range.

    NaN, for which there is none, becomes 0.

    >>> from wnconvert.tensors.dtypes import dtype_named
    >>> coded(np.array([0.5, 1.5, -300, 200]), np.array([0.0]), dtype_named("int8")).tolist()
    [0.0, 2.0, -128.0, 127.0]
    """
    least, most = range_of(dtype)
    made: _Floats = np.clip(np.rint(quotients.astype(np.float64)) + zero, least, most)
    return np.where(np.isnan(made), 0.0, made)


def range_of(dtype: DType) -> tuple[int, int]:
    """The least and the greatest number of a dtype of whole numbers."""
    if dtype.name.startswith("u"):
        return 0, (1 << dtype.bits) - 1
    return -(1 << dtype.bits - 1), (1 << dtype.bits - 1) - 1
