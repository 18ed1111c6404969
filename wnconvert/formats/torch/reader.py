"""torch's files: zip archives, legacy pickles and TorchScript archives, opened as a tree and byte ranges.

Only the pickle is read; storages stay where they lie. Sources of the formats: ``torch/serialization.py``
(``_save``, ``_legacy_save``, ``_legacy_load``) and ``caffe2/serialize/inline_container.cc``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from wnconvert.errors import FormatError
from wnconvert.formats.pickle.reader import load
from wnconvert.formats.pickle.values import Object, PersistentId, Pickle, Value, walk
from wnconvert.formats.torch.contents import Contents, FoundStateDict, find_contents
from wnconvert.formats.torch.names import foreign_names
from wnconvert.formats.torch.records import (
    Storage,
    TensorRecord,
    get,
    is_rebuilt,
    is_script_module,
    read_storage,
    read_tensor,
    shown,
)
from wnconvert.formats.zips import ZipEntry, read_directory
from wnconvert.messages import listed
from wnconvert.plan.record import NO_HISTORY, RECORD_NAME, History, read_history
from wnconvert.tensors.containers import Container
from wnconvert.tensors.files import GET_AGAIN, ReadableFile
from wnconvert.tensors.tree import (
    ByteRange,
    Entry,
    Sibling,
    StateDict,
    StoredTensor,
    TensorInfo,
    Tree,
    repeated,
)

__all__ = ["PREFIX", "TorchFile", "open_legacy", "open_zip"]


MAX_PICKLE = 24 << 20  # 24 MiB of text with one emoji in it take 168 MiB while they are read
PREFIX = "archive/"  # of the records of a new archive, as torch.save has it
_MAX_RECORD = 8 << 20
_WINDOW = 64 << 10


@dataclass(frozen=True, slots=True)
class TorchFile:
    """An opened torch file: its pickle as data, and where each storage's bytes lie.

    ``container`` is one of torch's; ``records`` are the other records of the archive, which must not be
    lost, by their new names; ``mark`` are its first two bytes; ``version`` is the version of the format.
    """

    container: Container
    pickle: Pickle
    contents: Contents
    storages: Mapping[str, ByteRange]
    records: tuple[ZipEntry, ...] = ()
    mark: bytes = b"PK"
    history: History = NO_HISTORY
    version: str = ""

    def stored(self, name: str, record: TensorRecord) -> StoredTensor:
        """A tensor record as a view of bytes of the file."""
        info = TensorInfo(name, record.dtype, record.shape)
        data = self.storages[record.storage.key]
        return StoredTensor(info, data, record.offset, record.strides, record.storage.location)

    def tree(self) -> Tree:
        """The content of the file, by names, dtypes and shapes."""
        return Tree(
            state_dicts=tuple(self._state_dict(found) for found in self.contents.state_dicts),
            optimizers=tuple(item.path for item in self.contents.optimizers),
            siblings=tuple(Sibling(path, _kind(value)) for path, value in self.contents.siblings),
            metadata=self.history.metadata,
            record=self.history.steps,
            notes=(*self._notes(), *self.history.notes),
        )

    @property
    def knows_modules(self) -> bool:
        """Whether a state dict in it has ``_metadata``: the versions of its modules."""
        nodes = (found.node for found in self.contents.state_dicts)
        return any(isinstance(node, Object) and get(node.state, "_metadata") is not None for node in nodes)

    def _state_dict(self, found: FoundStateDict) -> StateDict:
        entries = []
        for name, value in found.items:
            record = read_tensor(value)
            if record and record.is_lazy:
                raise FormatError(
                    f"{name} is stored with torch's negative or conjugate bit set",
                    fix="save tensor.resolve_neg().resolve_conj() of it",
                )
            stored = self.stored(name, record) if record else None
            entries.append(Entry(name, stored, is_opaque=stored is None and is_rebuilt(value)))
        if (twice := repeated(entry.name for entry in entries)) is not None:
            where = found.path or "in it"
            raise FormatError(f"the state dict {where} has the key {twice!r} twice", fix="save it again")
        # A TorchScript archive comes out as a plain state dict.
        is_module = bool(found.modules) and self.container is not Container.TORCHSCRIPT
        return StateDict(found.path, tuple(entries), found.dims, is_module)

    def _notes(self) -> list[str]:
        notes = []
        if self.container is Container.TORCHSCRIPT:
            notes.append("a TorchScript archive: its code is left out, its tensors become a plain state dict")
        elif names := foreign_names(self.pickle.root):
            said = "the file names classes or functions, kept as data and never imported"
            notes.append(f"{said}: {listed(names, 6)}")
        if self.container is Container.TORCH_LEGACY:
            notes.append(
                "a file in torch's legacy format, which is read but not written: torch's since 1.6 is a zip"
            )
        if get(self.pickle.root, "weight") and get(self.pickle.root, "hash"):
            notes.append("the keys 'hash' and 'id' (RVC) describe the file as it was")
        return notes


def _kind(value: Value) -> str:
    return type(value).__name__.lower()


# -- zip archives


def open_zip(file: ReadableFile) -> TorchFile:
    """Open a zip archive of torch, TorchScript or GPT-SoVITS (marked)."""
    directory = read_directory(file)
    # The shortest: an archive may carry other files of that name in folders of its own.
    pickled = min((name for name in directory if f"/{name}".endswith("/data.pkl")), key=len, default=None)
    if pickled is None:
        raise FormatError("a zip archive, but not one of torch (it has no data.pkl)", fix="name a checkpoint")
    prefix = pickled.removesuffix("data.pkl")
    records = {
        name.removeprefix(prefix): record for name, record in directory.items() if name.startswith(prefix)
    }
    outside = {name: record for name, record in directory.items() if not name.startswith(prefix)}
    if any(name.startswith(PREFIX) for name in outside):
        raise FormatError(f"its records lie in {prefix}, and others in {PREFIX}", fix=GET_AGAIN)
    if _content(file, records, "byteorder").strip() == b"big":
        raise FormatError("a big-endian file", fix="load and save it on a little-endian machine")
    if records["data.pkl"].compressed:
        raise FormatError(
            "its data.pkl is compressed", fix="save it with torch.save, which does not compress"
        )
    if records["data.pkl"].data.size > MAX_PICKLE:
        raise _too_long()
    pickle = load(_content(file, records, "data.pkl", MAX_PICKLE))
    storages = {}
    for name, record in records.items():
        if name.startswith("data/"):
            if record.compressed:
                raise FormatError(f"its storage {name} is compressed", fix="save it with torch.save")
            storages[name.removeprefix("data/")] = record.data
    _check_storages(pickle.root, storages)
    is_script = "constants.pkl" in records and is_script_module(pickle.root)
    kept = {
        PREFIX + name: record
        for name, record in records.items()
        if name and name not in _OWN_RECORDS and not name.startswith((".data/", "data/"))
    }
    others = tuple(
        ZipEntry(name, record.data, record.compressed)
        for name, record in ({} if is_script else {**kept, **outside}).items()
    )
    for record in others:
        if record.compressed:
            raise FormatError(f"its record {record.name} is compressed", fix="save it with torch.save")
    return TorchFile(
        Container.TORCHSCRIPT if is_script else Container.TORCH_ZIP,
        pickle,
        find_contents(pickle.root),
        storages,
        others,
        file.read(0, 2),
        read_history(_content(file, records, RECORD_NAME)),
        _content(file, records, "version").decode("ascii", "replace").strip(),
    )


# Records that describe the pickle and the layout; a new file gets its own. The last two, and those in
# .data/, must never be copied: with them torch computes where storages lie instead of looking.
_OWN_RECORDS = frozenset(
    {"data.pkl", "version", "byteorder", RECORD_NAME, ".format_version", ".storage_alignment"}
)


def _content(
    file: ReadableFile, records: Mapping[str, ZipEntry], name: str, most: int = _MAX_RECORD
) -> bytes:
    record = records.get(name)
    if record is None or record.compressed or record.data.size > most:
        return b""
    return file.read(record.data.start, record.data.size)


# -- legacy pickles


class _Pickles:
    """The pickles at the start of a file, as a stream that refuses to go on behind ``MAX_PICKLE`` bytes.

    A window of the file is kept, since pickles are read in pieces of a few bytes.
    """

    def __init__(self, file: ReadableFile) -> None:
        self.file = file
        self.end = min(file.size, MAX_PICKLE + 1)
        self.at = 0  # where reading goes on
        self.start = 0  # of the window
        self.window = b""

    def read(self, size: int, /) -> bytes:
        self._hold(size)
        return self._take(size)

    def readline(self) -> bytes:
        wanted = searched = 0
        while True:
            wanted = min(max(2 * wanted, _WINDOW), self.end - self.at)
            self._hold(wanted)
            at = self.at - self.start
            line = self.window.find(b"\n", at + searched, at + wanted) + 1 - at
            if line > 0 or wanted == self.end - self.at:
                return self._take(line if line > 0 else wanted)
            searched = wanted

    def _hold(self, size: int) -> None:
        """Have the next ``size`` bytes in the window, or all up to the end."""
        if self.at + size > self.start + len(self.window):
            self.start = self.at
            self.window = self.file.read(self.at, min(max(size, _WINDOW), self.end - self.at))

    def _take(self, size: int) -> bytes:
        at = self.at - self.start
        data = self.window[at : at + size]
        self.at += len(data)
        if self.at > MAX_PICKLE:
            raise _too_long()
        return data


def _too_long() -> FormatError:
    return FormatError(f"its pickle is longer than {MAX_PICKLE >> 20} MiB", fix="keep bulk data in tensors")


def open_legacy(file: ReadableFile) -> TorchFile:
    """Open a file of ``torch.save(..., _use_new_zipfile_serialization=False)``, or of torch before 1.6.

    Five pickles (magic, protocol, system, object, storage keys), then each storage as a count of
    elements (8 bytes) and its bytes.
    """
    size, stream = file.size, _Pickles(file)
    load(stream)  # the magic number, by which it was recognised
    version, system = load(stream).root, load(stream).root
    if version != 1001:
        raise FormatError(
            f"torch's legacy format {shown(version)} is not known", fix="save it with a newer torch"
        )
    if get(system, "little_endian") is False:
        raise FormatError("a big-endian file", fix="load and save it on a little-endian machine")
    pickle, keys = load(stream), load(stream).root
    if not isinstance(keys, list) or not all(isinstance(key, (str, int)) for key in keys):
        raise FormatError("its list of storages makes no sense", fix=GET_AGAIN)
    named = _storages_of(walk(pickle.root))
    storages: dict[str, ByteRange] = {}
    at = stream.at
    for key in map(str, keys):
        if key not in named:
            raise FormatError(f"its storage {key} belongs to no tensor", fix=GET_AGAIN)
        if at + 8 > size:
            raise FormatError(f"its storage {key} is missing: the file ends before it", fix=GET_AGAIN)
        (count,) = struct.unpack("<q", file.read(at, 8))
        itemsize = named[key].itemsize
        if count < 0 or at + 8 + count * itemsize > size:
            raise FormatError(f"its storage {key} is cut short", fix=GET_AGAIN)
        storages[key] = ByteRange(at + 8, count * itemsize)
        at += 8 + count * itemsize
    _check_storages(pickle.root, storages)
    return TorchFile(
        Container.TORCH_LEGACY, pickle, find_contents(pickle.root), storages, version=str(version)
    )


# -- checks


def _storages_of(values: Iterable[Value]) -> dict[str, Storage]:
    storages = (read_storage(value) for value in values if isinstance(value, PersistentId))
    return {storage.key: storage for storage in storages if storage is not None}


def _check_storages(root: Value, ranges: Mapping[str, ByteRange]) -> None:
    """Every storage is there and long enough, and no tensor reaches outside of its own."""
    values = list(walk(root))
    for storage in _storages_of(values).values():
        if storage.key not in ranges:
            raise FormatError(f"its storage {storage.key} is missing", fix=GET_AGAIN)
        if ranges[storage.key].size < storage.nbytes:
            raise FormatError(
                f"its storage {storage.key} has {ranges[storage.key].size} bytes of {storage.nbytes}",
                fix=GET_AGAIN,
            )
    for value in values:
        record = read_tensor(value)
        if record is None or 0 in record.shape:
            continue
        last = record.offset + sum(
            (n - 1) * step for n, step in zip(record.shape, record.strides, strict=True)
        )
        if (last + 1) * record.dtype.itemsize > ranges[record.storage.key].size:
            raise FormatError(
                f"a tensor of shape {record.shape}, strides {record.strides} reaches outside of its storage",
                fix=GET_AGAIN,
            )
