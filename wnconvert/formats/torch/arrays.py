"""NumPy arrays in a pickle, in NumPy's own spellings of every protocol; NumPy is not imported.

Protocols 0 to 4 call ``_reconstruct`` for an empty array and set its state; its bytes are a text that
``_codecs.encode`` would make bytes, or from protocol 3 on bytes. Protocol 5 calls ``_frombuffer``. Sources:
``array_reduce`` and ``array_reduce_ex_picklebuffer`` of ``numpy/_core/src/multiarray/methods.c``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from wnconvert.errors import FormatError
from wnconvert.formats.pickle.skimming import Span, span_of
from wnconvert.formats.pickle.values import Global, Object, Unwritten, Value
from wnconvert.frozen import dataclass
from wnconvert.tensors.dtypes import DTYPES, DType
from wnconvert.tensors.files import GET_AGAIN
from wnconvert.tensors.tree import ByteRange, StoredTensor, TensorInfo, contiguous_strides
from wnconvert.tensors.views.assembled import Decoded, FileView, Held

__all__ = ["ArrayRecord", "HeldArrays", "is_array", "read_array", "with_content"]


# NumPy 2 has these modules under `_core`.
_RECONSTRUCT = ("numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct")
_FROM_BUFFER = ("numpy._core.numeric._frombuffer", "numpy.core.numeric._frombuffer")
_CODES = {
    "f8": "float64",
    "f4": "float32",
    "f2": "float16",
    "i8": "int64",
    "i4": "int32",
    "i2": "int16",
    "i1": "int8",
    "u8": "uint64",
    "u4": "uint32",
    "u2": "uint16",
    "u1": "uint8",
    "b1": "bool",
    "c8": "complex64",
    "c16": "complex128",
}
_MOST_AXES = 64


@dataclass(frozen=True, slots=True)
class ArrayRecord:
    """An array as its record states it; strides count elements. ``dtype`` is None for one of objects.

    Its ``content`` is a span where the bytes were not read.
    """

    dtype: DType | None
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    content: bytes | Span
    is_swapped: bool = False

    @property
    def view(self) -> FileView | None:
        """What gives its bytes; None where they lie in the file as they are."""
        if isinstance(self.content, bytes):
            return Held(self.content)
        return Decoded(self.content.data, self.nbytes) if self.content.is_text else None

    @property
    def nbytes(self) -> int:
        """The bytes of its elements."""
        return math.prod(self.shape) * (self.dtype.itemsize if self.dtype else 0)


def is_array(value: Value) -> bool:
    """Whether a record is a NumPy array."""
    if not isinstance(value, Object) or value.op != "REDUCE" or not isinstance(value.args, tuple):
        return False
    if value.is_call_of(*_FROM_BUFFER):
        return len(value.args) >= 4
    first = value.args[0] if value.args else None
    is_plain = isinstance(first, Global) and first.dotted == "numpy.ndarray"
    return value.is_call_of(*_RECONSTRUCT) and is_plain and len(_state(value)) == 5


def _state(value: Object) -> tuple[Value, ...]:
    return value.state if isinstance(value.state, tuple) else ()


def read_array(value: Value, known: dict[int, bytes] | None = None) -> ArrayRecord | None:
    """The array that a record makes, or None for any other value.

    ``known`` keeps the bytes of each text, by ``id``: many records may share one. Raises ``FormatError``
    where such a record makes no sense.
    """
    if not is_array(value):
        return None
    if value.is_call_of(*_FROM_BUFFER):
        content, kind, shape, order, *axes = value.args
    else:
        _, shape, kind, is_fortran, content = value.state
        order, axes = "F" if is_fortran is True else "C", []
    dtype, is_swapped = _dtype(kind)
    if not isinstance(shape, tuple) or len(shape) > _MOST_AXES or not all(map(_is_count, shape)):
        raise FormatError("an array of it has an absurd shape", fix=GET_AGAIN)
    sizes: tuple[int, ...] = tuple(shape)
    if dtype is None:
        return ArrayRecord(None, sizes, (), b"")
    data = _content_of(content, {} if known is None else known)
    least, most = _lengths(data)
    if not least <= math.prod(sizes) * dtype.itemsize <= most:
        raise FormatError(f"an array of shape {sizes} has {most} bytes", fix=GET_AGAIN)
    if order == "F":
        backwards = contiguous_strides(sizes[::-1])
        return ArrayRecord(dtype, sizes, backwards[::-1], data, is_swapped)
    strides = contiguous_strides(sizes)
    if order == "K" and axes and axes[0] is not None:
        turned = axes[0]
        if not isinstance(turned, tuple) or sorted(turned) != list(range(len(sizes))):
            raise FormatError("an array of it has an absurd order of axes", fix=GET_AGAIN)
        sizes, strides = (tuple(each[axis] for axis in turned) for each in (sizes, strides))
    return ArrayRecord(dtype, sizes, strides, data, is_swapped)


def _dtype(kind: Value) -> tuple[DType | None, bool]:
    """The dtype that a record of ``numpy.dtype`` names, and whether its bytes are in the other order."""
    if not isinstance(kind, Object) or not kind.is_call_of("numpy.dtype") or not isinstance(kind.args, tuple):
        return None, False
    code = kind.args[0] if kind.args else None
    if isinstance(code, Global):  # ml_dtypes.bfloat16
        return (DTYPES.get(code.name) if code.module.split(".")[0] == "ml_dtypes" else None), False
    name = _CODES.get(code.lstrip("<=|>")) if isinstance(code, str) else None
    order = _state(kind)[1] if len(_state(kind)) > 1 else "<"
    return (DTYPES[name] if name else None), order == ">"


def _lengths(content: bytes | Span) -> tuple[int, int]:
    """How many bytes a content can be: of a text that was not read, each character takes one or two."""
    if isinstance(content, bytes):
        return len(content), len(content)
    size = content.data.size
    return (-(-size // 2) if content.is_text else size), size


def _content_of(content: Value, known: dict[int, bytes]) -> bytes | Span:
    """The bytes of an array as data: bytes, or a text whose characters they are."""
    text = content
    if isinstance(content, Object) and isinstance(content.args, tuple):
        if content.is_call_of("_codecs.encode") and content.args[1:] in (("latin1",), ("latin-1",)):
            text = content.args[0]
        elif content.is_call_of("__builtin__.bytes", "builtins.bytes") and not content.args:
            text = b""
    if span := span_of(text):
        return span
    if id(text) not in known:
        try:
            known[id(text)] = text.encode("latin-1") if isinstance(text, str) else bytes(memoryview(text))
        except (TypeError, UnicodeEncodeError) as error:
            raise FormatError("an array of it has bytes that make no sense", fix=GET_AGAIN) from error
    return known[id(text)]


def _is_count(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


@dataclass(frozen=True, slots=True)
class HeldArrays:
    """Arrays of a file by the ``id`` of their records, each with the place of its bytes.

    ``views`` give the bytes of those that do not lie in the file as they are.
    """

    records: Mapping[int, tuple[ByteRange, ArrayRecord]]
    views: tuple[FileView, ...]

    @classmethod
    def of(cls, values: Iterable[Value], first: int) -> HeldArrays:
        """The arrays among some values, each once, their views numbered from ``first`` on."""
        found: dict[int, tuple[ByteRange, ArrayRecord]] = {}
        views: list[FileView] = []
        known: dict[int, bytes] = {}
        for value in values:
            if id(value) in found or (record := read_array(value, known)) is None:
                continue
            if (view := record.view) is not None:
                found[id(value)] = ByteRange(0, record.nbytes, first + len(views)), record
                views.append(view)
            elif isinstance(record.content, Span):
                found[id(value)] = record.content.data, record
        return cls(found, tuple(views))

    def stored(self, name: str, value: Value) -> StoredTensor | None:
        """An array as a view of its bytes; None for one of objects, or another value.

        Raises ``FormatError`` for big-endian numbers.
        """
        data, record = self.records.get(id(value), (None, None))
        if data is None or record is None or record.dtype is None:
            return None
        if record.is_swapped:
            raise FormatError(
                f"{name} is an array of big-endian numbers",
                fix='save array.astype(array.dtype.newbyteorder("=")) of it',
            )
        return StoredTensor(TensorInfo(name, record.dtype, record.shape), data, 0, record.strides)


# -- making


def with_content(value: Object, what: object, dtype: DType, shape: Sequence[int], protocol: int) -> Object:
    """The record of an array like ``value`` of another content, which is not known yet (``what`` makes it).

    It is spelled as ``value`` is. In protocols below 3, which have no bytes, its content is a text.
    """
    size = math.prod(shape) * dtype.itemsize
    if value.is_call_of(*_FROM_BUFFER):
        kind = "bytearray" if isinstance(value.args[0], bytearray) else "bytes"
        made = Unwritten(kind, size, what)
        return replace(value, args=(made, _dtype_record(value.args[1], dtype), tuple(shape), "C"))
    content: Value = Unwritten("bytes", size, what)
    if protocol < 3:
        text = Unwritten("text", size, what)
        content = Object("REDUCE", Global("_codecs", "encode"), (text, "latin1"))
    state = (1, tuple(shape), _dtype_record(value.state[2], dtype), False, content)
    return replace(value, changes=[("build", state)])


def _dtype_record(before: Object, dtype: DType) -> Object:
    """The record of a dtype: that of the array before, if it is the same."""
    if _dtype(before)[0] == dtype:
        return before
    code = next((code for code, name in _CODES.items() if name == dtype.name), None)
    kind = code or Global("ml_dtypes", dtype.name)
    state = (3, "<", None, None, None, *((-1, -1, 0) if code else (dtype.itemsize, dtype.itemsize, 64)))
    return Object("REDUCE", Global("numpy", "dtype"), (kind, False, True), changes=[("build", state)])
