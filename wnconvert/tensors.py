"""Names, dtypes and shapes of tensors, and where their bytes lie.

This is the common tongue of the package: the readers produce it, the rules and plans speak it, the
executor follows it to the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DTYPES", "FOLDABLE", "ByteRange", "DType", "Entry", "Sibling", "StateDict", "StoredTensor"]
__all__ += ["TensorInfo", "Tree", "contiguous_strides", "dtype_named"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type under its names in torch, in safetensors and in torch's pickles.

    ``bits`` is the size of an element; ``code`` is safetensors' name, ``storage`` the class that torch's
    pickles name (both empty where the format has none). ``str()`` gives torch's name.

    >>> dtype_named("bfloat16").code, dtype_named("bfloat16").storage
    ('BF16', 'BFloat16Storage')
    """

    name: str
    bits: int
    code: str = ""
    storage: str = ""

    @property
    def itemsize(self) -> int:
        """Bytes of one element (for the 4- and 6-bit types, which no torch file holds, rounded up)."""
        return -(-self.bits // 8)

    @property
    def is_float8(self) -> bool:
        """Whether this is one of the float8 types, whose layers are refused."""
        return self.name.startswith("float8")

    @property
    def foldable(self) -> bool:
        """Whether a layer of this dtype can be folded."""
        return self.name in FOLDABLE

    def holds(self, other: DType) -> bool:
        """Whether every value of ``other`` is a value of this dtype (both foldable)."""
        return other.name in FOLDABLE[self.name]

    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype of a foldable dtype (bfloat16 comes from ml_dtypes)."""
        import numpy as np  # `--help` must not pay for numpy

        if self.name == "bfloat16":
            import ml_dtypes

            bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
            return bfloat16
        return np.dtype(self.name)

    def __str__(self) -> str:
        return self.name


# The dtypes that can be folded, each with the dtypes whose every value it holds. float16 and bfloat16
# hold neither the other: one has the precision, the other the range.
FOLDABLE: dict[str, frozenset[str]] = {
    "float64": frozenset({"float64", "float32", "float16", "bfloat16"}),
    "float32": frozenset({"float32", "float16", "bfloat16"}),
    "float16": frozenset({"float16"}),
    "bfloat16": frozenset({"bfloat16"}),
}

_ALL = (
    DType("float64", 64, "F64", "DoubleStorage"),
    DType("float32", 32, "F32", "FloatStorage"),
    DType("float16", 16, "F16", "HalfStorage"),
    DType("bfloat16", 16, "BF16", "BFloat16Storage"),
    DType("int64", 64, "I64", "LongStorage"),
    DType("int32", 32, "I32", "IntStorage"),
    DType("int16", 16, "I16", "ShortStorage"),
    DType("int8", 8, "I8", "CharStorage"),
    DType("uint8", 8, "U8", "ByteStorage"),
    DType("bool", 8, "BOOL", "BoolStorage"),
    DType("uint16", 16, "U16"),
    DType("uint32", 32, "U32"),
    DType("uint64", 64, "U64"),
    DType("complex32", 32),
    DType("complex64", 64, "C64", "ComplexFloatStorage"),
    DType("complex128", 128, "", "ComplexDoubleStorage"),
    DType("float8_e4m3fn", 8, "F8_E4M3"),
    DType("float8_e5m2", 8, "F8_E5M2"),
    DType("float8_e8m0fnu", 8, "F8_E8M0"),
    DType("float8_e4m3fnuz", 8, "F8_E4M3FNUZ"),
    DType("float8_e5m2fnuz", 8, "F8_E5M2FNUZ"),
    DType("float4_e2m1fn_x2", 8),  # torch counts pairs, safetensors counts numbers
    DType("float4_e2m1fn", 4, "F4"),
    DType("float6_e2m3fn", 6, "F6_E2M3"),
    DType("float6_e3m2fn", 6, "F6_E3M2"),
    DType("qint8", 8, "", "QInt8Storage"),
    DType("quint8", 8, "", "QUInt8Storage"),
    DType("qint32", 32, "", "QInt32Storage"),
)

#: Every known dtype by torch's name.
DTYPES: dict[str, DType] = {dtype.name: dtype for dtype in _ALL}


def dtype_named(name: str) -> DType:
    """The dtype with torch's ``name``; the name is known to exist.

    >>> dtype_named("float32").itemsize
    4
    """
    return DTYPES[name]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's name, dtype and shape: all that naming rules and plans look at."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the elements take when they lie end to end."""
        return (self.numel * self.dtype.bits + 7) // 8


@dataclass(frozen=True, slots=True)
class ByteRange:
    """``size`` bytes from ``start`` of file number ``shard`` of a checkpoint (one file is shard 0)."""

    start: int
    size: int
    shard: int = 0

    @property
    def end(self) -> int:
        """The offset after the last byte."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a view of a storage: ``shape`` and ``strides`` from element ``offset`` of ``storage``.

    Two names on one storage share memory; two names with equal views are tied. ``location`` is the
    device that the file names (``cpu``, ``cuda:1``).
    """

    info: TensorInfo
    storage: ByteRange
    offset: int
    strides: tuple[int, ...]
    location: str = "cpu"

    @property
    def view(self) -> tuple[object, ...]:
        """Equal for two tensors exactly where they are the same elements of the same storage."""
        return (self.storage, self.info.dtype, self.offset, self.info.shape, self.strides)

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie end to end in C order (``torch.Tensor.is_contiguous``)."""
        if self.info.numel == 0:
            return True
        step = 1
        for size, stride in zip(reversed(self.info.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True

    @property
    def data(self) -> ByteRange:
        """The bytes of a contiguous tensor."""
        start = self.storage.start + self.offset * self.info.dtype.itemsize
        return ByteRange(start, self.info.nbytes, self.storage.shard)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a C-contiguous tensor, as torch gives them.

    >>> contiguous_strides((2, 3, 4))
    (12, 4, 1)
    """
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a state dict; ``tensor`` is None for a value that is no plain tensor.

    ``is_opaque`` where it is a tensor all the same: quantized, sparse, on the meta device.
    """

    name: str
    tensor: StoredTensor | None
    is_opaque: bool = False


@dataclass(frozen=True, slots=True)
class StateDict:
    """A mapping of names to tensors inside a file, at a path such as ``generator`` (the root is ``""``).

    ``dims`` holds, by weight, the dim that a pickled module's own ``WeightNorm`` records state;
    ``is_module`` where it is a whole pickled module and stays one in a torch file.
    """

    path: str
    entries: tuple[Entry, ...]
    dims: Mapping[str, int | None] = field(default_factory=dict)
    is_module: bool = False

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """The tensors by name."""
        return {entry.name: entry.tensor for entry in self.entries if entry.tensor is not None}


@dataclass(frozen=True, slots=True)
class Sibling:
    """Anything else in a file, by its path, with what it is in a word or two."""

    path: str
    kind: str


@dataclass(frozen=True, slots=True)
class Tree:
    """What a checkpoint holds, by names, dtypes and shapes.

    ``metadata`` is safetensors' own; ``record`` what earlier runs of wnconvert left in the file; ``notes``
    are the reader's.
    """

    state_dicts: tuple[StateDict, ...]
    optimizers: tuple[str, ...] = ()
    siblings: tuple[Sibling, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    record: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
