"""Folders of torch.distributed.checkpoint as data: what ``dcp_to_torch_save`` would make of them, unread.

``.metadata`` is a pickle: the size and the chunks of each tensor, and in which file, from which byte on, each
chunk lies; it is a file of ``torch.save`` of its own. A value that is not a tensor is another such file.
Sources: ``torch/distributed/checkpoint/metadata.py``, ``filesystem.py``, ``default_planner.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from wnconvert.errors import FormatError, InputError
from wnconvert.formats.pickle.machine import FREE, PER_BYTE
from wnconvert.formats.pickle.reader import load, records_below
from wnconvert.formats.pickle.values import Dict, Global, Object, PersistentId, Pickle, Value, walk
from wnconvert.formats.torch.archives import read_saved
from wnconvert.formats.torch.contents import find_contents
from wnconvert.formats.torch.reader import TorchFile, check_storages
from wnconvert.formats.torch.records import (
    class_of,
    forget,
    get,
    mapping_pairs,
    read_storage,
    read_tensor,
    slots_of,
    storage_record,
    tensor_record,
)
from wnconvert.frozen import dataclass
from wnconvert.messages import printable
from wnconvert.tensors.containers import Container
from wnconvert.tensors.dtypes import DTYPES, DType
from wnconvert.tensors.files import PartOfFile, ReadableFile
from wnconvert.tensors.limits import PICKLE, megabytes
from wnconvert.tensors.tree import ByteRange, StoredTensor, TensorInfo, contiguous_strides
from wnconvert.tensors.views.assembled import Assembled, Chunk, FileView

__all__ = ["DistributedFile", "open_distributed"]


_AGAIN = "copy the folder again, all of its files: they do not belong together"
_PROTOCOL = 2  # of a file of torch.save


@dataclass(frozen=True, slots=True)
class DistributedFile:
    """A folder as one file of torch: its ``files`` by name, in order, and the ``views`` of tensors in chunks.

    A byte range's ``shard`` is a place in the two, one behind the other.
    """

    torch: TorchFile
    files: tuple[str, ...]
    views: tuple[FileView, ...]


def open_distributed(metadata: ReadableFile, open_beside: Callable[[str], ReadableFile]) -> DistributedFile:
    """Read the ``.metadata`` of a folder, and the pickles that it points to.

    ``open_beside`` opens a file of the folder, which must stay open until this returns. Raises
    ``FormatError`` where the files contradict each other, ``InputError`` for what cannot be read.
    """
    if metadata.size > PICKLE:
        raise FormatError(f"its .metadata is longer than {megabytes(PICKLE)}", fix="do not trust it")
    # It names no storages, and grows with the number of tensors as a checkpoint does.
    root = load(metadata.read(0, metadata.size), free=FREE + PER_BYTE * metadata.size).root
    if not class_of(root).endswith(".Metadata"):
        raise FormatError("its .metadata is not that of torch.distributed.checkpoint", fix=_AGAIN)
    return _Reader(slots_of(root.state), open_beside, metadata.size).read()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where something was saved: a part of a file."""

    file: str
    offset: int
    length: int


class _Reader:
    """Makes the pickle that ``torch.save`` would have written, over the bytes where they lie."""

    def __init__(
        self, metadata: Mapping[str, Value], open_beside: Callable[[str], ReadableFile], held: int
    ) -> None:
        self.metadata = metadata
        self.held = held
        self.places = dict(_places(metadata.get("storage_data")))
        self.files = tuple(sorted({place.file for place in self.places.values()}))
        self.number = {name: at for at, name in enumerate(self.files)}
        self.opened = {name: open_beside(name) for name in self.files}
        self.storages: dict[str, ByteRange] = {}
        self.views: list[FileView] = []
        self.known: dict[bytes, Pickle] = {}  # chunks of one shape have one pickle

    def read(self) -> DistributedFile:
        """The whole folder."""
        values = {str(name): self.value(str(name), value) for name, value in self.described()}
        root = _nested(values, dict(_paths(self.metadata.get("planner_data"))))
        contents = find_contents(root, self.held)
        stated = self.metadata.get("version")
        opened = TorchFile(
            Container.DISTRIBUTED,
            Pickle(root, _PROTOCOL, nodes=records_below(root)),
            contents,
            self.storages,
            version=stated if isinstance(stated, str) else "",
            files=len(self.files) + len(self.views),
        )
        return DistributedFile(opened, self.files, (*self.views, *opened.arrays.views))

    def described(self) -> Iterator[tuple[str, Value]]:
        """What ``.metadata`` says of each value, in the order of the state dict, which the planner kept."""
        pairs = mapping_pairs(self.metadata.get("state_dict_metadata"))
        if pairs is None or not all(isinstance(name, str) for name, _ in pairs):
            raise FormatError("its .metadata does not say what was saved", fix=_AGAIN)
        found = dict(pairs)
        planned = [name for name, _ in _paths(self.metadata.get("planner_data")) if name in found]
        for name in dict.fromkeys((*planned, *found)):
            yield name, found[name]

    def value(self, name: str, described: Value) -> Value:
        """A value as a pickle has it: the record of a tensor, or what was saved."""
        kind = class_of(described).rpartition(".")[2]
        if kind == "BytesStorageMetadata":
            return self.saved(self.place(name, None))
        if kind != "TensorStorageMetadata":
            raise FormatError(f"its .metadata does not say what {printable(name)} is", fix=_AGAIN)
        facts = slots_of(described.state)
        dtype, shape = _dtype(facts.get("properties")), _sizes(facts.get("size"))
        chunks = [_box(chunk) for chunk in facts.get("chunks") or ()]
        if dtype is None or shape is None or None in chunks:
            raise FormatError(f"the dtype, size or chunks of {printable(name)} make no sense", fix=_AGAIN)
        parts = [self.chunk(name, dtype, *box) for box in chunks if box is not None and 0 not in box[1]]
        _check_filled(name, shape, [box for box, _ in parts])
        return self.tensor(name, dtype, shape, parts)

    def place(self, name: str, offsets: tuple[int, ...] | None) -> _Place:
        found = self.places.get((name, offsets))
        if found is None:
            raise FormatError(f"its .metadata does not say where {printable(name)} lies", fix=_AGAIN)
        return found

    def part(self, place: _Place) -> tuple[Value, Mapping[str, ByteRange]]:
        """The value in a file of ``torch.save`` that is a part of another, and its storages."""
        file = self.opened[place.file]
        if place.offset + place.length > file.size:
            raise FormatError(f"{place.file} ends before what .metadata has in it", fix=_AGAIN)
        saved = read_saved(PartOfFile(file, place.offset, place.length))
        pickle = self.known.get(saved.pickle)
        if pickle is None:
            pickle = load(saved.pickle)
            if read_tensor(pickle.root):
                self.known[saved.pickle] = pickle
        check_storages(pickle.nodes, saved.storages)
        return pickle.root, saved.storages

    def moved(self, data: ByteRange, place: _Place) -> ByteRange:
        """Bytes of a part, as bytes of the file that it is a part of."""
        return ByteRange(place.offset + data.start, data.size, self.number[place.file])

    def chunk(
        self, name: str, dtype: DType, offsets: tuple[int, ...], sizes: tuple[int, ...]
    ) -> tuple[Chunk, StoredTensor]:
        """A box of a tensor, and the tensor that was saved as this box."""
        place = self.place(name, offsets)
        root, storages = self.part(place)
        record = read_tensor(root)
        if record is None or record.dtype != dtype or record.shape != sizes:
            raise FormatError(
                f"{place.file} has something else in the place of {printable(name)}", fix=_AGAIN
            )
        info, data = TensorInfo(name, dtype, sizes), self.moved(storages[record.storage.key], place)
        stored = StoredTensor(info, data, record.offset, record.strides, record.storage.location)
        return Chunk(offsets, sizes, stored.data if stored.is_contiguous else stored.storage), stored

    def tensor(
        self,
        name: str,
        dtype: DType,
        shape: tuple[int, ...],
        parts: Sequence[tuple[Chunk, StoredTensor]],
    ) -> Object:
        """The record of a tensor: over the one part that it was saved as, or over a view of several."""
        key = str(len(self.storages))
        if len(parts) == 1:
            stored = parts[0][1]
            self.storages[key] = stored.storage
            numel = stored.storage.size // dtype.itemsize
            storage = storage_record(key, dtype, stored.location, numel)
            return tensor_record(storage, stored.offset, shape, stored.strides, dtype)
        if not all(stored.is_contiguous for _, stored in parts):
            raise InputError(
                f"a chunk of {printable(name)} was saved in another order of its axes (channels last)",
                fix="save it contiguous, or with get_model_state_dict(…, full_state_dict=True)",
            )
        size = math.prod(shape) * dtype.itemsize
        self.storages[key] = ByteRange(0, size, len(self.files) + len(self.views))
        self.views.append(Assembled(shape, dtype.itemsize, tuple(chunk for chunk, _ in parts)))
        location = parts[0][1].location if parts else "cpu"
        storage = storage_record(key, dtype, location, math.prod(shape))
        return tensor_record(storage, 0, shape, contiguous_strides(shape), dtype)

    def saved(self, place: _Place) -> Value:
        """A value that is not a tensor, with its storages called as those of the whole."""
        root, storages = self.part(place)
        for value in walk(root):
            storage = read_storage(value)
            if storage is not None and isinstance(value, PersistentId):
                key = str(len(self.storages))
                self.storages[key] = self.moved(storages[storage.key], place)
                kind, cls, _, *rest = value.pid
                value.pid = (kind, cls, key, *rest)
        for value in walk(root):
            forget(value)
        return root


# -- what .metadata says


def _places(storage: Value) -> Iterator[tuple[tuple[str, tuple[int, ...] | None], _Place]]:
    """Where each chunk lies, by the name of its tensor and where it begins in that; values begin nowhere."""
    for index, info in mapping_pairs(storage) or ():
        key, place = (slots_of(item.state) if isinstance(item, Object) else {} for item in (index, info))
        name, offsets = key.get("fqn"), key.get("offset")
        file, offset, length = place.get("relative_path"), place.get("offset", -1), place.get("length", -1)
        begins = None if offsets is None else _sizes(offsets)
        are_names = (
            isinstance(name, str) and isinstance(file, str) and (offsets is None or begins is not None)
        )
        if not are_names or not _is_count(offset) or not _is_count(length):
            raise FormatError("its .metadata does not say where things lie", fix=_AGAIN)
        if place.get("transform_descriptors"):
            raise InputError(
                f"{printable(str(name))} was saved through an extension (compressed, or the like)",
                fix="save it without extensions",
            )
        yield (str(name), begins), _Place(str(file), offset, length)


def _paths(planned: Value) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """The keys that lead to each value in the state dict that was saved, by the value's name."""
    for name, path in mapping_pairs(planned) or ():
        is_path = (
            isinstance(path, tuple) and path and all(isinstance(key, str) or _is_count(key) for key in path)
        )
        if isinstance(name, str) and is_path:
            yield str(name), path


def _nested(values: Mapping[str, Value], paths: Mapping[str, tuple[str | int, ...]]) -> Value:
    """The values under the keys that led to them; under their own names where these contradict each other."""
    root: dict[str | int, Value] = {}
    for name, value in values.items():
        at: Value = root
        *above, last = paths.get(name, (name,))
        for key in above:
            at = at.setdefault(key, {}) if isinstance(at, dict) else None
        if not isinstance(at, dict) or last in at:
            return Dict(list(values.items()))
        at[last] = value
    return _as_values(root)


def _as_values(mapping: dict[str | int, Value]) -> Value:
    """Nested mappings as a pickle has them: those of the numbers from 0 on are lists."""
    made: dict[int, Value] = {}
    todo: list[dict[str | int, Value]] = [mapping]
    for each in todo:
        todo += (value for value in each.values() if isinstance(value, dict))
    for each in reversed(todo):
        items = [(key, made[id(value)] if isinstance(value, dict) else value) for key, value in each.items()]
        is_list = each is not mapping and [key for key, _ in items] == list(range(len(items)))
        made[id(each)] = [value for _, value in items] if is_list else Dict(list(items))
    return made[id(mapping)]


def _dtype(properties: Value) -> DType | None:
    """The dtype in the properties of a tensor, whose state is a tuple, or in older files a mapping."""
    state = properties.state if isinstance(properties, Object) else None
    named = state[0] if isinstance(state, tuple) and state else get(state, "dtype")
    return DTYPES.get(named.name) if isinstance(named, Global) and named.module == "torch" else None


def _sizes(value: Value) -> tuple[int, ...] | None:
    """The numbers of a ``torch.Size``; None for anything else."""
    if isinstance(value, Object) and value.is_call_of("torch.Size") and isinstance(value.args, tuple):
        value = value.args[0] if value.args else ()
    is_sizes = isinstance(value, (tuple, list)) and all(map(_is_count, value)) and len(value) <= 64
    return tuple(value) if is_sizes else None


def _box(chunk: Value) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Where a chunk begins on each axis, and its sizes."""
    facts = slots_of(chunk.state) if isinstance(chunk, Object) else {}
    offsets, sizes = _sizes(facts.get("offsets")), _sizes(facts.get("sizes"))
    return None if offsets is None or sizes is None or len(offsets) != len(sizes) else (offsets, sizes)


def _is_count(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _check_filled(name: str, shape: tuple[int, ...], chunks: Sequence[Chunk]) -> None:
    """Raise ``FormatError`` unless the chunks fill a tensor, and no two of them overlap."""
    inside = all(
        len(chunk.sizes) == len(shape)
        and all(
            start + size <= whole
            for start, size, whole in zip(chunk.offsets, chunk.sizes, shape, strict=True)
        )
        for chunk in chunks
    )
    filled = sum(math.prod(chunk.sizes) for chunk in chunks) == math.prod(shape)
    if not inside or not filled or _overlap(chunks):
        raise FormatError(f"the chunks of {printable(name)} do not make a tensor of {shape}", fix=_AGAIN)


def _overlap(chunks: Sequence[Chunk]) -> bool:
    """Whether two chunks have an element in common; sorted, so that those far apart are not compared."""
    ordered = sorted(chunks, key=lambda chunk: chunk.offsets)
    for at, one in enumerate(ordered):
        for other in ordered[at + 1 :]:
            if one.offsets and other.offsets[0] >= one.offsets[0] + one.sizes[0]:
                break
            if all(
                a < b + n and b < a + m
                for a, m, b, n in zip(one.offsets, one.sizes, other.offsets, other.sizes, strict=True)
            ):
                return True
    return False
