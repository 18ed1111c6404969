"""The index of a checkpoint in several files: which tensor is in which of them. Text in, text out; no files.

``{"metadata": {"total_size": …}, "weight_map": {tensor: file, …}}``, as huggingface_hub and transformers
write it. An index is not trusted: it may name only files in its own folder, and the tensors of the shards are
compared with it one by one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from wnconvert.errors import FormatError
from wnconvert.frozen import dataclass
from wnconvert.messages import listed
from wnconvert.tensors.files import read_json

__all__ = ["SUFFIXES", "ShardIndex", "check_held", "read_index", "write_index"]


#: The suffixes of files of weights.
SUFFIXES = (".safetensors", ".bin")

_AGAIN = "download the index again, and the files that it names: they do not belong together"
_DISTRUST = "an index names files of its own folder alone: do not trust it"


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """An index that makes sense: the file of each tensor, and the ``metadata``."""

    weight_map: Mapping[str, str]
    metadata: Mapping[str, Any]

    @property
    def files(self) -> tuple[str, ...]:
        """The files, sorted: their numbers have leading zeros."""
        return tuple(sorted(set(self.weight_map.values())))

    @property
    def suffix(self) -> str:
        """The suffix of all of them: ``.safetensors`` or ``.bin``."""
        return next(suffix for suffix in SUFFIXES if self.files[0].endswith(suffix))


def read_index(text: bytes) -> ShardIndex:
    """Read an index. Raises ``FormatError`` for one that makes no sense or cannot be trusted.

    >>> read_index(b'{"weight_map": {"a.weight": "model-00001-of-00001.safetensors"}}').files
    ('model-00001-of-00001.safetensors',)
    """
    try:
        data = read_json(text, what="the index", fix=_AGAIN)
        json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair can be written nowhere
    except (ValueError, RecursionError) as error:
        raise FormatError("the index is not a JSON text", fix=_AGAIN) from error
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict):
        raise FormatError("the index has no weight_map, which says where each tensor is", fix=_AGAIN)
    if not weight_map:
        raise FormatError("the weight_map of the index names no tensor", fix=_AGAIN)
    for name, file in weight_map.items():
        _check_file(name, file)
    suffixes = {suffix for suffix in SUFFIXES for file in weight_map.values() if file.endswith(suffix)}
    if len(suffixes) > 1:
        raise FormatError(f"the index names files of two kinds: {listed(sorted(suffixes))}", fix=_DISTRUST)
    return ShardIndex(weight_map, _metadata(data.get("metadata")))


def _check_file(name: str, file: object) -> None:
    """Raise ``FormatError`` unless a file is a plain name with a known suffix: not a path, not hidden."""
    if not isinstance(file, str):
        raise FormatError(
            f"the index says that {name!r} is in {file!r:.80}, which is not the name of a file", fix=_AGAIN
        )
    if "/" in file or "\\" in file or ":" in file or file.startswith("."):
        raise FormatError(f"the index names {file!r}, which is not a name in its folder", fix=_DISTRUST)
    if not file.isprintable() or len(file.encode()) > 255:
        raise FormatError(f"the index names {file[:80]!r}, which no file is called", fix=_DISTRUST)
    if not file.endswith(SUFFIXES):
        raise FormatError(
            f"the index names {file!r}, which ends in neither of {listed(SUFFIXES)}", fix=_DISTRUST
        )


def _metadata(metadata: object) -> Mapping[str, Any]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise FormatError("the metadata of the index is not a mapping", fix=_AGAIN)
    size = metadata.get("total_size", 0)
    # transformers wrote it as a float for a while.
    whole = isinstance(size, (int, float)) and not isinstance(size, bool) and 0 <= size < 1 << 63
    if not whole or size != int(size):
        raise FormatError(f"the index has the total_size {size!r:.80}, which is not a size", fix=_AGAIN)
    return metadata


def check_held(index: ShardIndex, held: Mapping[str, Iterable[str]]) -> None:
    """Compare the tensors of every file with the index.

    Raises ``FormatError`` where a file lacks a tensor that the index has in it, holds one that the index does
    not name, or one that the index has in another file.

    >>> check_held(read_index(b'{"weight_map": {"a": "x.bin", "b": "y.bin"}}'), {"x.bin": "a", "y.bin": "b"})
    """
    names = {file: set(tensors) for file, tensors in held.items()}
    first: dict[str, str] = {}
    for file, tensors in names.items():
        for name in sorted(tensors):
            if name in first:
                raise FormatError(f"the tensor {name} is in {first[name]} and in {file}", fix=_AGAIN)
            first[name] = file
    lacks = [name for name, file in index.weight_map.items() if name not in names.get(file, ())]
    if lacks:
        file = index.weight_map[lacks[0]]
        raise FormatError(
            f"{file} lacks {listed([name for name in lacks if index.weight_map[name] == file], 3)}, "
            "which the index has in it",
            fix=_AGAIN,
        )
    for file, tensors in names.items():
        if more := sorted(tensors - set(index.weight_map)):
            raise FormatError(f"{file} holds {listed(more, 3)}, which the index does not name", fix=_AGAIN)


def write_index(weight_map: Mapping[str, str], total_size: int, metadata: Mapping[str, Any]) -> bytes:
    """The text of an index as transformers writes it; ``metadata`` is kept but for the size.

    >>> read_index(write_index({"a": "x.bin"}, 8, {"total_parameters": 2, "total_size": 0})).metadata
    {'total_parameters': 2, 'total_size': 8}
    """
    data = {"metadata": {**metadata, "total_size": total_size}, "weight_map": dict(weight_map)}
    return (json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
