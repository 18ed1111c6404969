"""Dtypes: one table for torch, safetensors, ONNX and numpy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["DTYPES", "FOLDABLE", "AnyDType", "DType", "dtype_named", "dtype_word"]


#: A dtype as users give it: a usual word, or a dtype of torch or numpy.
AnyDType: TypeAlias = "str | torch.dtype | np.dtype[Any] | type[Any]"


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
        return _numpy_of(self.name)

    def elements(self) -> np.dtype[Any]:
        """The numpy dtype that elements are read as: ``numpy()`` of a foldable dtype, else raw bytes.

        >>> dtype_named("float16").elements(), dtype_named("int16").elements()
        (dtype('float16'), dtype('V2'))
        """
        return _numpy_of(self.name if self.foldable else f"V{self.itemsize}")

    def __str__(self) -> str:
        return self.name


@cache
def _numpy_of(name: str) -> np.dtype[Any]:
    """The numpy dtype of this name, which is asked for with every tensor."""
    import numpy as np  # `--help` must not pay for numpy

    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


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
    DType("int4", 4),
    DType("uint4", 4),
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


#: Other usual words for dtypes: those of torch, of its tensors' methods, and of command lines.
_WORDS = {
    "half": "float16",
    "fp16": "float16",
    "f16": "float16",
    "bf16": "bfloat16",
    "float": "float32",
    "fp32": "float32",
    "f32": "float32",
    "single": "float32",
    "double": "float64",
    "fp64": "float64",
    "f64": "float64",
}


def dtype_word(dtype: AnyDType) -> str:
    """torch's name of a dtype that is given as a usual word, or as a dtype of torch or numpy.

    A word that nobody uses comes back as it is. Python's own float has 64 bits, the word has 32, as in torch.

    >>> dtype_word("fp16"), dtype_word("torch.bfloat16"), dtype_word("int3")
    ('float16', 'bfloat16', 'int3')
    """
    if dtype is float:
        return "float64"
    named = dtype.__name__ if isinstance(dtype, type) else str(dtype)  # numpy.float16 is a class
    word = named.removeprefix("torch.").lower()
    return word if word in DTYPES else _WORDS.get(word, named)
