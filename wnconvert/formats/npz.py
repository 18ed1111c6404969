"""NumPy's .npz files: zip archives with one member for each array: their headers in, a layout out.

Sources of the format: numpy.lib.format, and ``numpy.savez`` of numpy 2.
"""

from __future__ import annotations

import ast
import struct
from collections.abc import Mapping
from typing import Any

from wnconvert.errors import FormatError, OutputError
from wnconvert.formats.zips import NewRecord, ZipEntry, leads_out, read_directory, zip_layout
from wnconvert.messages import printable
from wnconvert.plan.layout import Layout
from wnconvert.plan.plan import Plan
from wnconvert.tensors.dtypes import DTYPES, DType
from wnconvert.tensors.files import GET_AGAIN, ReadableFile
from wnconvert.tensors.tree import (
    MAX_RANK,
    ByteRange,
    Entry,
    StateDict,
    StoredTensor,
    TensorInfo,
    Tree,
    contiguous_strides,
)

__all__ = ["npz_layout", "open_npz"]


_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000  # numpy reads no longer ones either
_MAX_NAME = 4096  # of a record that our own reader takes
#: What numpy calls the dtypes that it has.
_DESCRIPTIONS = {
    name: f"{'|' if DTYPES[name].bits == 8 else '<'}{kind}{DTYPES[name].itemsize}"
    for kind, names in (
        ("f", ("float64", "float32", "float16")),
        ("i", ("int64", "int32", "int16", "int8")),
        ("u", ("uint64", "uint32", "uint16", "uint8")),
        ("b", ("bool",)),
        ("c", ("complex128", "complex64")),
    )
    for name in names
}
_DTYPES = {description: DTYPES[name] for name, description in _DESCRIPTIONS.items()}


def open_npz(file: ReadableFile, directory: Mapping[str, ZipEntry] | None = None) -> Tree:
    """Read the headers of all arrays of an .npz file, whose ``directory`` may be read.

    Raises ``FormatError`` for one that is damaged, is compressed, or holds anything but arrays of numbers.
    """
    records = read_directory(file) if directory is None else directory
    entries = (_entry(file, record) for record in records.values())
    return Tree((StateDict("", tuple(entries)),))


def _entry(file: ReadableFile, record: ZipEntry) -> Entry:
    shown = printable(record.name)
    if not record.name.endswith(".npy"):
        raise FormatError(f"its member {shown} is not an array", fix="write the arrays alone: numpy.savez")
    if record.compressed:
        raise FormatError(
            f"its member {shown} is compressed", fix="write it with numpy.savez, not savez_compressed"
        )
    name = _name_of(record).removesuffix(".npy")
    header, start = _header(file, record)
    dtype, shape = _dtype(name, header["descr"]), header["shape"]
    strides = contiguous_strides(shape)
    if header["fortran_order"]:
        strides = contiguous_strides(shape[::-1])[::-1]
    info = TensorInfo(name, dtype, shape)
    if info.nbytes != record.data.end - start:
        raise FormatError(
            f"array {printable(name)} needs {info.nbytes} bytes and has {record.data.end - start}",
            fix=GET_AGAIN,
        )
    return Entry(name, StoredTensor(info, ByteRange(start, info.nbytes), 0, strides))


def _name_of(record: ZipEntry) -> str:
    """The name of a member; one that is not UTF-8 as numpy reads it."""
    try:
        record.name.encode()
    except UnicodeEncodeError:
        return record.name.encode("utf-8", "surrogateescape").decode("cp437")
    return record.name


def _header(file: ReadableFile, record: ZipEntry) -> tuple[dict[str, Any], int]:
    """The header of an array, its three entries checked, and the place where its elements begin."""
    data, wrong = (
        record.data,
        FormatError(f"member {printable(record.name)} has an absurd header", fix=GET_AGAIN),
    )
    head = file.read(data.start, min(12, data.size))
    width = 2 if head[6:7] == b"\1" else 4
    if head[:6] != _MAGIC or head[6:7] not in (b"\1", b"\2", b"\3") or data.size < 8 + width:
        raise wrong
    length = int.from_bytes(head[8 : 8 + width], "little")
    start = data.start + 8 + width
    if length > _MAX_HEADER or start + length > data.end:
        raise wrong
    try:
        header = ast.literal_eval(file.read(start, length).decode("utf-8" if head[6] == 3 else "latin1"))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise wrong from error
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise wrong
    shape = header["shape"]
    if not isinstance(shape, tuple) or len(shape) > MAX_RANK or type(header["fortran_order"]) is not bool:
        raise wrong
    if not all(type(size) is int and 0 <= size < 1 << 63 for size in shape):
        raise wrong
    return header, start + length


def _dtype(name: str, description: object) -> DType:
    found = _DTYPES.get(description) if isinstance(description, str) else None
    if found is None:
        what = f"is {printable(str(description))[:80]}, not an array of little-endian numbers"
        raise FormatError(
            f"array {printable(name)} {what}", fix="leave it out, or write it as float32: numpy.savez"
        )
    return found


# -- writing


def npz_layout(tree: Tree, plan: Plan) -> Layout:
    """Lay out the .npz file that ``plan`` describes, its arrays in C order and in planned order.

    Raises ``OutputError`` for a dtype that numpy does not have, or a name that the archive cannot hold.
    """
    (planned,) = plan.state_dicts
    tensors = tree.state_dict(plan.only or "").tensors
    items = [step.made_of(tensors) for step in planned.tensors]
    _check([item.info for item in items], plan.verb)
    return zip_layout(
        [
            NewRecord(f"{item.info.name}.npy", item.info.nbytes, item.work, _npy_head(item.info))
            for item in items
        ]
    )


def _check(infos: list[TensorInfo], verb: str) -> None:
    names = {info.name for info in infos}
    others = [info for info in infos if info.dtype.name not in _DESCRIPTIONS]
    if others:
        widened = "--dtype float32, or " if verb == "fold" else ""  # the other verbs change no dtype
        raise OutputError(
            f"{others[0].name} is {others[0].dtype}, which numpy does not have",
            fix=f"{widened}-o OUT.safetensors, which can hold it",
        )
    for name in names:
        absurd = leads_out(name) or any("\ud800" <= char <= "\udfff" for char in name)
        if absurd or len(name.encode("utf-8", "replace")) > _MAX_NAME - 4 or f"{name}.npy" in names:
            raise OutputError(f"an .npz file cannot name an array {name!r}", fix="-o OUT.pt, which can")


def _npy_head(info: TensorInfo) -> bytes:
    """The header of an array, as numpy writes it: a multiple of 64 bytes long."""
    text = f"{{'descr': '{_DESCRIPTIONS[info.dtype.name]}', 'fortran_order': False, 'shape': {info.shape}, }}"
    padding = -(len(_MAGIC) + 4 + len(text) + 1) % 64
    content = text.encode() + b" " * padding + b"\n"
    return _MAGIC + b"\1\0" + struct.pack("<H", len(content)) + content
