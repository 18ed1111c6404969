"""Exported programs (``.pt2``, torch.export.save): their weights as data; the program itself is not read.

From torch 2.8 on each weight is a record of bytes, and a JSON text says which dtype, sizes and strides it
has. Before that, the state dict was a file of ``torch.save`` inside the archive. Sources:
``torch/export/pt2_archive/_package.py``, ``torch/_export/serde/schema.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from wnconvert.errors import FormatError, InputError
from wnconvert.formats.torch.reader import open_zip
from wnconvert.formats.zips import ZipEntry, read_directory
from wnconvert.tensors.dtypes import DTYPES, DType
from wnconvert.tensors.files import GET_AGAIN, PartOfFile, ReadableFile, read_json
from wnconvert.tensors.tree import Entry, StateDict, StoredTensor, TensorInfo, Tree

__all__ = ["open_exported"]


_MOST_JSON = 32 << 20
_CONFIG = "_weights_config.json"
_OLD = "serialized_state_dict.pt"
_NOTE = "an exported program: its graph is left out, its weights become a plain state dict"
_STRIDED = 7
# torch's numbers for dtypes (schema.ScalarType), which are not those of the C++ library.
_DTYPES: dict[int, DType] = {
    number: DTYPES[name]
    for number, name in {
        1: "uint8",
        2: "int8",
        3: "int16",
        4: "int32",
        5: "int64",
        6: "float16",
        7: "float32",
        8: "float64",
        9: "complex32",
        10: "complex64",
        11: "complex128",
        12: "bool",
        13: "bfloat16",
        28: "uint16",
        29: "float8_e4m3fn",
        30: "float8_e5m2",
        31: "float8_e4m3fnuz",
        32: "float8_e5m2fnuz",
        33: "float8_e8m0fnu",
        34: "uint32",
        35: "uint64",
    }.items()
}


def open_exported(file: ReadableFile, directory: Mapping[str, ZipEntry] | None = None) -> Tree:
    """Read the weights of an exported program; each of several programs in a file is a state dict.

    Raises ``FormatError`` where the texts that describe the weights contradict the archive.
    """
    records = read_directory(file) if directory is None else directory
    configs = {name: record for name, record in records.items() if name.endswith(_CONFIG)}
    if configs:
        names = {name.rpartition("/")[2].removesuffix(_CONFIG): name for name in configs}
        states = tuple(
            StateDict(program if len(names) > 1 else "", tuple(_entries(file, records, name)))
            for program, name in names.items()
        )
        return Tree(states, notes=(_NOTE,))
    old = next((record for name, record in records.items() if f"/{name}".endswith(f"/{_OLD}")), None)
    if old is None or old.compressed:
        raise InputError(
            "an exported program (torch.export) without weights that can be read",
            fix="export it again with torch 2.8 or newer, or name its checkpoint",
        )
    tree = open_zip(PartOfFile(file, old.data.start, old.data.size)).tree()
    states = tuple(replace(state, entries=_moved(state.entries, old)) for state in tree.state_dicts)
    return Tree(states, notes=(_NOTE, *tree.notes))


def _moved(entries: tuple[Entry, ...], inside: ZipEntry) -> tuple[Entry, ...]:
    """Entries of a file that is a record of another, as entries of that."""

    def moved(tensor: StoredTensor) -> StoredTensor:
        return replace(
            tensor, storage=replace(tensor.storage, start=tensor.storage.start + inside.data.start)
        )

    return tuple(
        entry if entry.tensor is None else replace(entry, tensor=moved(entry.tensor)) for entry in entries
    )


def _entries(file: ReadableFile, records: Mapping[str, ZipEntry], config: str) -> Iterator[Entry]:
    """The weights that one text describes; its records lie beside it."""
    folder = config.rpartition("/")[0]
    payloads = _json(file, records[config]).get("config")
    if not isinstance(payloads, dict):
        raise FormatError(f"{config} does not describe weights", fix=GET_AGAIN)
    for name, payload in payloads.items():
        if not isinstance(payload, dict):
            raise FormatError(f"{config} does not say what {name} is", fix=GET_AGAIN)
        meta = payload.get("tensor_meta")
        if payload.get("use_pickle") or not isinstance(meta, dict) or meta.get("layout") != _STRIDED:
            yield Entry(name, None, is_opaque=True)
            continue
        record = records.get(f"{folder}/{payload.get('path_name')}")
        if record is None or record.compressed:
            raise FormatError(f"the record of {name} is missing or compressed", fix=GET_AGAIN)
        yield Entry(name, _stored(name, meta, record))


def _stored(name: str, meta: Mapping[str, Any], record: ZipEntry) -> StoredTensor:
    number = meta.get("dtype")
    dtype = _DTYPES.get(number) if isinstance(number, int) else None
    sizes, strides = _numbers(meta.get("sizes")), _numbers(meta.get("strides"))
    (offset,) = _numbers([meta.get("storage_offset")])
    if dtype is None or len(sizes) != len(strides) or -1 in (*sizes, *strides, offset):
        raise FormatError(f"{name} has a dtype, size or stride that makes no sense here", fix=GET_AGAIN)
    last = offset + sum((size - 1) * step for size, step in zip(sizes, strides, strict=True))
    if 0 not in sizes and (last + 1) * dtype.itemsize > record.data.size:
        raise FormatError(f"{name} {sizes} reaches outside of its record", fix=GET_AGAIN)
    device = meta.get("device")
    kind = device.get("type") if isinstance(device, dict) else None
    info = TensorInfo(name, dtype, sizes)
    return StoredTensor(info, record.data, offset, strides, kind if isinstance(kind, str) else "cpu")


def _numbers(values: Any) -> tuple[int, ...]:
    """torch's numbers (``{"as_int": 8}``); -1 stands for what is not one."""
    listed = values if isinstance(values, list) else [None]
    found = (value.get("as_int") if isinstance(value, dict) else None for value in listed)
    return tuple(
        number if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 1 << 63 else -1
        for number in found
    )


def _json(file: ReadableFile, record: ZipEntry) -> dict[str, Any]:
    if record.compressed or record.data.size > _MOST_JSON:
        raise FormatError(f"its record {record.name} is compressed, or longer than any", fix=GET_AGAIN)
    try:
        text = file.read(record.data.start, record.data.size)
        found = read_json(text, what=record.name, fix=GET_AGAIN)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"its record {record.name} is not a JSON text", fix=GET_AGAIN) from error
    return found if isinstance(found, dict) else {}
