"""safetensors files: the header in, validated by the safetensors library; the layout of a new file out.

Source of the format: https://github.com/huggingface/safetensors (README).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError, safe_open

from wnconvert.errors import FormatError, OutputError
from wnconvert.heap import give_back
from wnconvert.plan.layout import Blob, Layout
from wnconvert.plan.plan import Plan
from wnconvert.plan.record.history import METADATA_KEY, read_history, write_history
from wnconvert.tensors.dtypes import DTYPES
from wnconvert.tensors.files import GET_AGAIN, ReadableFile, read_json
from wnconvert.tensors.limits import SAFETENSORS_HEADER, megabytes
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

__all__ = ["check_header", "has_room_for_record", "open_safetensors", "read_metadata", "safetensors_layout"]


# A shape, and the strides of a tensor that lies end to end in it.
_View: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
# What a header says of a tensor: its dtype, its shape, and where its bytes begin and end, behind the header.
_Said: TypeAlias = tuple[str, tuple[int, ...], int, int]

_CODES = {dtype.code: dtype for dtype in DTYPES.values() if dtype.code}


def open_safetensors(file: ReadableFile) -> Tree:
    """Read the header of a safetensors file.

    Raises ``FormatError`` where the safetensors library refuses it or a name stands in it twice.
    """
    size = file.size
    (length,) = struct.unpack("<Q", file.read(0, 8))
    if length > SAFETENSORS_HEADER:
        raise FormatError(f"its header claims {length} bytes, more than the format allows", fix=GET_AGAIN)
    if 8 + length > size:
        raise FormatError(f"its header claims {length} bytes, the file has {size}", fix=GET_AGAIN)
    if file.path is not None:
        check_header(file.path)
    else:
        _check_copy(file.read(8, length), size)
    header = _read_header(file, length)
    metadata = header.pop("__metadata__", None) or {}
    # The library has checked shapes, sizes and offsets; sorted by place, they leave no gap.
    views: dict[tuple[int, ...], _View] = {}
    entries = tuple(Entry(name, _stored(name, header.pop(name), 8 + length, views)) for name in list(header))
    history = read_history(metadata.get(METADATA_KEY, ""))
    return Tree(
        state_dicts=(StateDict("", entries),),
        metadata={key: value for key, value in metadata.items() if key != METADATA_KEY},
        record=history.steps,
        notes=history.notes,
        recorded_by=history.versions,
    )


def read_metadata(file: ReadableFile) -> dict[str, str]:
    """The metadata of a safetensors file that has been opened before, all as they stand there."""
    (length,) = struct.unpack("<Q", file.read(0, 8))
    return _read_header(file, length).get("__metadata__") or {}


def _read_header(file: ReadableFile, length: int) -> dict[str, Any]:
    """The metadata of a header, and what it says of each tensor, by name."""
    header: dict[str, Any] = read_json(
        file.read(8, length), what="its header", fix="save it again", made=_said
    )
    return header


def check_header(path: Path) -> None:
    """Have the safetensors library check a file's header and the place of every tensor.

    The library opens the file by itself, by its path. Raises ``FormatError`` with the library's words.
    """
    try:
        with safe_open(os.fspath(path), framework="numpy"):
            pass
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise FormatError(f"the safetensors library refuses it: {reason}", fix=GET_AGAIN) from error
    give_back()  # what the library took: 600 bytes a tensor


def _check_copy(text: bytes, size: int) -> None:
    """The same for a file without a path: check one of the same size with its header and a hole."""
    import tempfile  # which only files without a path need

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "header.safetensors")
        with path.open("wb") as copy:
            copy.write(struct.pack("<Q", len(text)) + text)
            copy.truncate(size)
        check_header(path)


def _said(mapping: dict[str, Any]) -> Any:
    """What a header says of a tensor, as a tuple: the mappings of many take most of the memory."""
    dtype, shape = mapping.get("dtype"), mapping.get("shape")
    if not (isinstance(dtype, str) and isinstance(shape, list)):
        return mapping  # the metadata, whose values are texts, or the whole header
    return (dtype, tuple(shape), *mapping["data_offsets"])


def _stored(name: str, said: _Said, base: int, views: dict[tuple[int, ...], _View]) -> StoredTensor:
    """A tensor of the header; ``views`` holds the shapes so far, of which many tensors have few."""
    code, shape, start, end = said
    dtype = _CODES.get(code)
    if dtype is None:
        raise FormatError(f"tensor {name} has the dtype {code}, which is not known here")
    if shape not in views:
        views[shape] = _view(name, shape)
    shape, strides = views[shape]
    return StoredTensor(TensorInfo(name, dtype, shape), ByteRange(base + start, end - start), 0, strides)


def _view(name: str, shape: tuple[int, ...]) -> _View:
    """A shape and its strides. Raises ``FormatError`` for one that no tensor has."""
    if any(size >= 1 << 63 for size in shape):
        raise FormatError(f"tensor {name} has the absurd shape {shape}", fix=GET_AGAIN)
    if len(shape) > MAX_RANK:
        what = f"tensor {name} has {len(shape)} axes, and neither torch nor NumPy has more than {MAX_RANK}"
        raise FormatError(what, fix="save it with fewer axes")
    return shape, contiguous_strides(shape)


# -- writing


def _is_no_text(name: str) -> bool:
    """Whether a name has half of a character in it, which UTF-8 does not have."""
    return not name.isascii() and any("\ud800" <= char <= "\udfff" for char in name)


def safetensors_layout(tree: Tree, plan: Plan) -> Layout:
    """Lay out the safetensors file that ``plan`` describes.

    The header names tensors in planned order; their bytes lie with wider dtypes first, as the safetensors
    library lays them, so that each is aligned. Raises ``OutputError`` for a dtype or a name that
    safetensors does not have, and for more names than a header takes.
    """
    (planned,) = plan.state_dicts
    path = plan.only or ""
    tensors = tree.state_dict(path).tensors
    items = [step.made_of(tensors) for step in planned.tensors]
    for info in (item.info for item in items):
        if not info.dtype.code:
            raise OutputError(
                f"{info.name} is {info.dtype}, which safetensors cannot hold", fix="-o OUT.pt, which can"
            )
        if info.name == "__metadata__" or _is_no_text(info.name):
            raise OutputError(f"safetensors cannot name a tensor {info.name!r}", fix="-o OUT.pt, which can")
    starts: dict[str, int] = {}
    at = 0
    for info in sorted((item.info for item in items), key=lambda info: -info.dtype.bits):
        starts[info.name] = at
        at += info.nbytes
    text = _header(tree, plan, (item.info for item in items), starts)
    if len(text) > SAFETENSORS_HEADER:
        raise OutputError(
            f"its header would take {megabytes(len(text))}, and safetensors allows "
            f"{megabytes(SAFETENSORS_HEADER)}",
            fix="-o OUT.pt; or -o FOLDER/ --max-shard-size, for several files",
        )
    base = 8 + len(text)
    blobs = tuple(Blob(base + starts[item.info.name], item.info.nbytes, item.work) for item in items)
    return Layout(base + at, ((0, struct.pack("<Q", len(text)) + text),), blobs)


def _header(tree: Tree, plan: Plan, infos: Iterable[TensorInfo], starts: Mapping[str, int]) -> bytes:
    metadata = {"format": "pt", **tree.metadata}
    if plan.record:
        metadata[METADATA_KEY] = write_history(plan.record)
    # Written piece by piece, which json.dumps would do in many more.
    told = [f'{{"__metadata__":{_json(metadata)}']
    for info in infos:
        start, shape = starts[info.name], ",".join(map(str, info.shape))
        told.append(
            f'{_json(info.name)}:{{"dtype":"{info.dtype.code}","shape":[{shape}],'
            f'"data_offsets":[{start},{start + info.nbytes}]}}'
        )
    text = (",".join(told) + "}").encode()
    return text + b" " * (-len(text) % 8)


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


#: About the bytes of a header that a tensor takes beside its name.
_PER_TENSOR = 160


def has_room_for_record(plan: Plan) -> bool:
    """Whether the record of a plan is sure to fit into the header."""
    names = sum(len(json.dumps(step.name)) + _PER_TENSOR for step in plan.state_dicts[0].tensors)
    return names + len(json.dumps(write_history(plan.record))) <= SAFETENSORS_HEADER
