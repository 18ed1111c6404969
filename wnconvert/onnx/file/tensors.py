"""Tensors of an ONNX model: their dtype, shape and where their elements lie, in the model or in a data file.

Everything in a file is untrusted: sizes are held against the bytes that are there, and a data file must lie
in the folder of the model. No large tensor is read.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from wnconvert.errors import FormatError, InputError
from wnconvert.messages import printable
from wnconvert.onnx.file.model import Constant
from wnconvert.onnx.file.wire import BYTES, Wire, WireField
from wnconvert.tensors.dtypes import DTYPES, DType
from wnconvert.tensors.files import GET_AGAIN, ReadableFile
from wnconvert.tensors.tree import ByteRange, StoredTensor, TensorInfo, contiguous_strides
from wnconvert.tensors.views.assembled import Held
from wnconvert.tensors.views.quantization import ViewedTensor

__all__ = ["CODES", "EXTERNAL", "Tensors", "stated_sizes"]


#: TensorProto.DataType of the dtypes that we know; a few are smaller than a byte, or texts.
CODES: dict[str, int] = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "uint16": 4,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
    "uint32": 12,
    "uint64": 13,
    "complex64": 14,
    "complex128": 15,
    "bfloat16": 16,
    "float8_e4m3fn": 17,
    "float8_e4m3fnuz": 18,
    "float8_e5m2": 19,
    "float8_e5m2fnuz": 20,
    "uint4": 21,
    "int4": 22,
    "float8_e8m0fnu": 24,
}
_DTYPES = {code: DTYPES[name] for name, code in CODES.items()}
_BITS = {code: dtype.bits for code, dtype in _DTYPES.items()}
_BITS |= {23: 4, 25: 2, 26: 2, 27: 6, 28: 6}  # float4, uint2, int2, float6
_STRING = 8

# The fields that hold elements as numbers, and those whose elements lie end to end: their code and size.
_DIMS, _TYPE, _NAME, _RAW, _ENTRY, _LOCATION = 1, 2, 8, 9, 13, 14
_RUNS = {4: "f", 10: "d"}
_WHOLE = {5, 7, 11}
_TEXTS = 6
#: TensorProto.DataLocation of elements that lie in another file.
EXTERNAL = 1

_STRUCT = {
    "float64": "d",
    "float32": "f",
    "float16": "e",
    "int64": "q",
    "int32": "i",
    "int16": "h",
    "int8": "b",
    "uint64": "Q",
    "uint32": "I",
    "uint16": "H",
    "uint8": "B",
    "bool": "B",
}
_FEW = 64
#: Elements of a tensor that is held in memory, where its bytes stand as varints: as many zero points.
_MOST_HELD = 1 << 16
_MOST_DIMS = 64


@dataclass(slots=True)
class _Parts:
    """The content of a TensorProto's records."""

    dims: list[int] = field(default_factory=list)
    code: int = 0
    name: str = ""
    raw: ByteRange | None = None
    runs: list[WireField] = field(default_factory=list)
    texts: bool = False
    entries: dict[str, str] = field(default_factory=dict)
    is_external: bool = False


class Tensors:
    """Reads tensors of a model, and opens the data files that they name with ``open_beside``, one at a time.

    ``locations`` are the paths of the data files, in the order in which they are named; the bytes of the
    first are shard 1. ``externals`` has the place of every tensor that lies in a data file, by the start of
    its record.
    """

    def __init__(self, wire: Wire, open_beside: Callable[[str], ReadableFile]) -> None:
        self._wire = wire
        self._open_beside = open_beside
        self._places: dict[str, int] = {}
        self._open: tuple[int, ReadableFile] | None = None
        self._sizes = [wire.size]
        self.locations: list[str] = []
        self.externals: dict[int, ByteRange] = {}

    def constant(self, record: WireField) -> Constant:
        """A tensor by its record.

        Raises ``FormatError`` where its shape needs more or fewer bytes, and ``InputError`` for a data
        file that is not there or must not be read.
        """
        parts = self._parts(record)
        shown = printable(parts.name) or "without a name"
        if any(size < 0 or size >= 1 << 62 for size in parts.dims) or len(parts.dims) > _MOST_DIMS:
            raise FormatError(f"tensor {shown} has the absurd shape {parts.dims[:_MOST_DIMS]}", fix=GET_AGAIN)
        numel = math.prod(parts.dims)
        data: ByteRange | None
        if parts.is_external:
            if parts.code not in _BITS:
                raise FormatError(
                    f"tensor {shown} lies in a data file and does not consist of numbers", fix=GET_AGAIN
                )
            data = self._external(parts, shown, (numel * _BITS[parts.code] + 7) // 8)
            self.externals[record.start] = data
        else:
            data = self._inside(parts, shown, numel)
        dtype = _DTYPES.get(parts.code)
        if dtype is None:
            return Constant(parts.name, None, None, record.range, parts.is_external)
        info = TensorInfo(parts.name, dtype, tuple(parts.dims))
        stored = None if data is None else StoredTensor(info, data, 0, contiguous_strides(info.shape))
        values = self._values(parts, dtype, numel, data, shown) if numel <= _FEW else None
        held = self._held(parts, info) if data is None and numel <= _MOST_HELD else None
        return Constant(parts.name, stored, values, record.range, parts.is_external, info, held)

    def _parts(self, record: WireField) -> _Parts:
        wire, parts = self._wire, _Parts()
        for item in wire.records(record):
            if item.number == _DIMS:
                parts.dims += wire.wholes(item)
            elif item.number == _TYPE:
                parts.code = wire.whole(item)
            elif item.number == _NAME:
                parts.name = wire.text(item)
            elif item.number == _RAW:
                if item.wire != BYTES or parts.raw is not None:
                    raise wire.damaged(item.start, "a tensor has its bytes twice, or not at all")
                parts.raw = ByteRange(item.body, item.end - item.body)
            elif item.number in _RUNS or item.number in _WHOLE:
                if item.end > item.body:
                    parts.runs.append(item)
            elif item.number == _TEXTS:
                parts.texts = True
            elif item.number == _ENTRY:
                key, value = self._entry(item)
                parts.entries[key] = value
            elif item.number == _LOCATION:
                parts.is_external = wire.whole(item) == EXTERNAL
        return parts

    def _entry(self, record: WireField) -> tuple[str, str]:
        """Key and value of a StringStringEntryProto."""
        texts = {1: "", 2: ""}
        for item in self._wire.records(record):
            if item.number in texts:
                texts[item.number] = self._wire.text(item)
        return texts[1], texts[2]

    # -- elements in the model

    def _inside(self, parts: _Parts, shown: str, numel: int) -> ByteRange | None:
        """The bytes of the elements; None where they do not lie end to end."""
        if parts.code not in _BITS:
            return None  # texts, or a type of tomorrow
        needed = (numel * _BITS[parts.code] + 7) // 8
        if parts.raw is not None and (parts.runs or parts.texts):
            raise FormatError(f"tensor {shown} has its elements twice", fix=GET_AGAIN)
        if parts.raw is None and parts.runs:
            if {run.number for run in parts.runs} != {_field_of(parts.code)}:
                raise FormatError(f"tensor {shown} has elements of another dtype than its own", fix=GET_AGAIN)
            if parts.runs[0].number in _WHOLE:
                return None
            if len(parts.runs) > 1 or parts.runs[0].wire != BYTES:
                return None  # each with a tag of its own, which no exporter writes
            parts.raw = ByteRange(parts.runs[0].body, parts.runs[0].end - parts.runs[0].body)
        have = ByteRange(0, 0) if parts.raw is None else parts.raw
        if have.size != needed:
            shape = tuple(parts.dims)
            raise FormatError(
                f"tensor {shown} of shape {shape} needs {needed} bytes and has {have.size}", fix=GET_AGAIN
            )
        return have

    def _values(
        self, parts: _Parts, dtype: DType, numel: int, data: ByteRange | None, shown: str
    ) -> tuple[int | float, ...] | None:
        """The elements of a small tensor as numbers."""
        if data is not None:
            return _numbers(self._bytes(data), dtype)
        if dtype.bits < 8:  # several elements share a number
            return None
        found: list[int | float] = []
        for run in parts.runs:
            code = _RUNS.get(run.number)
            found += self._wire.wholes(run) if code is None else self._wire.floats(run, code)
            if len(found) > 2 * _FEW:
                break
        if dtype.name.startswith("complex"):
            return None
        if len(found) != numel:
            raise FormatError(
                f"tensor {shown} does not have the elements that its shape needs", fix=GET_AGAIN
            )
        if dtype.name in ("float16", "bfloat16") or dtype.is_float8:  # their bits, as whole numbers
            bits = b"".join(
                (int(value) & (1 << dtype.bits) - 1).to_bytes(dtype.itemsize, "little") for value in found
            )
            return _numbers(bits, dtype)
        return tuple(found)

    def _held(self, parts: _Parts, info: TensorInfo) -> StoredTensor | None:
        """A tensor of bytes that stand as varints, as zero points do; None for other dtypes."""
        if info.dtype.name not in {"int8", "uint8"}:
            return None
        found = [whole for run in parts.runs for whole in self._wire.wholes(run)]
        if len(found) != info.numel:
            return None
        made = Held(bytes(whole & 255 for whole in found))
        return ViewedTensor(info, ByteRange(0, info.nbytes), 0, contiguous_strides(info.shape), made=made)

    def _bytes(self, data: ByteRange) -> bytes:
        if not data.size:
            return b""
        file = self._file(data.shard) if data.shard else self._wire.file
        return file.read(data.start, data.size)

    def _file(self, shard: int) -> ReadableFile:
        """A data file, opened; the one before it is closed."""
        if self._open is None or self._open[0] != shard:
            self.close()
            self._open = shard, self._open_beside(self.locations[shard - 1])
        return self._open[1]

    def close(self) -> None:
        """Close the data file that is open."""
        if self._open is not None:
            self._open[1].close()
        self._open = None

    # -- elements in a data file

    def _external(self, parts: _Parts, shown: str, needed: int) -> ByteRange:
        where = f"tensor {shown}"
        if parts.raw is not None or parts.runs:
            raise FormatError(
                f"{where} has its elements twice, in the model and in a data file", fix=GET_AGAIN
            )
        shard = self._shard(parts.entries.get("location", ""), where)
        start = _whole(parts.entries, "offset", where) or 0
        length = _whole(parts.entries, "length", where)
        if length is not None and length != needed:
            raise FormatError(
                f"{where} needs {needed} bytes, and its external data has {length}", fix=GET_AGAIN
            )
        if start + needed > self._sizes[shard]:
            file = PurePath(self.locations[shard - 1]).name
            raise FormatError(
                f"{where} ends at byte {start + needed} of {printable(file)}, which has {self._sizes[shard]}",
                fix=f"get {printable(file)} again: it is cut short or of another model",
            )
        return ByteRange(start, needed, shard)

    def _shard(self, location: str, where: str) -> int:
        """The number of a data file."""
        if location in self._places:
            return self._places[location]
        shown = printable(location)
        leaves = (
            PurePath(location).is_absolute()
            or ".." in PurePath(location).parts
            or re.match(r"[A-Za-z]:", location)
        )
        if not location or "\0" in location or leaves:
            raise InputError(
                f"{where} asks for the data file {shown!r}, which is not a path inside the model's folder",
                fix="do not trust it; data files lie beside the model, and onnx.save writes such a model",
            )
        try:
            self.locations.append(location)
            self._sizes.append(self._file(len(self.locations)).size)
        except FileNotFoundError as error:
            raise InputError(
                f"its data file {shown} is not there ({where} lies in it)",
                fix=f"put {shown} beside the model",
            ) from error
        self._places[location] = len(self.locations)
        return self._places[location]


def stated_sizes(wire: Wire, types: Iterable[WireField]) -> tuple[int | None, ...] | None:
    """The sizes of a tensor that its TypeProto states, None for one that is not; None without a shape."""
    shapes = [shape for each in _inside(wire, types, 1) for shape in _inside(wire, [each], 2)]
    if not shapes:
        return None
    dims = _inside(wire, shapes[-1:], 1)
    sizes = ([wire.whole(size) for size in wire.records(dim) if size.number == 1] for dim in dims)
    return tuple(size[-1] if size else None for size in sizes)


def _inside(wire: Wire, messages: Iterable[WireField], number: int) -> Iterator[WireField]:
    """The messages in a field of messages."""
    for message in messages:
        for record in wire.records(message):
            if record.number == number and record.wire == BYTES:
                yield record


def _whole(entries: Mapping[str, str], key: str, where: str) -> int | None:
    text = entries.get(key)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise FormatError(
            f"{where} has the {key} {printable(text)[:40]!r} in its external data", fix=GET_AGAIN
        )
    return int(text)


def _field_of(code: int) -> int:
    """The field in which elements of a dtype stand as numbers."""
    return {1: 4, 14: 4, 11: 10, 15: 10, 7: 7, 12: 11, 13: 11}.get(code, 5)


def _numbers(data: bytes, dtype: DType) -> tuple[int | float, ...] | None:
    """Bytes as the numbers that they are; None for dtypes whose numbers nobody asks for."""
    if dtype.name == "bfloat16":
        wide = b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2))
        return struct.unpack(f"<{len(data) // 2}f", wide)
    code = _STRUCT.get(dtype.name)
    return None if code is None else struct.unpack(f"<{len(data) // dtype.itemsize}{code}", data)
