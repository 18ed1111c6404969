"""torch's files: zip archives, legacy pickles and TorchScript archives, opened as a tree and byte ranges.

Only the pickle is read; storages stay where they lie. Sources of the formats: ``torch/serialization.py``
(``_save``, ``_legacy_save``, ``_legacy_load``) and ``caffe2/serialize/inline_container.cc``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from wnconvert.errors import FormatError, InputError
from wnconvert.formats.pickle.machine import CutShortError
from wnconvert.formats.pickle.reader import load, records_below
from wnconvert.formats.pickle.values import Object, Pickle, Value
from wnconvert.formats.torch.archives import PREFIX, content_of, read_saved, too_long
from wnconvert.formats.torch.arrays import HeldArrays, is_array, read_array
from wnconvert.formats.torch.contents import Contents, FoundStateDict, find_contents
from wnconvert.formats.torch.dtensors import check_whole, unwrap_whole
from wnconvert.formats.torch.names import foreign_among, foreign_names
from wnconvert.formats.torch.records import (
    Storage,
    TensorRecord,
    get,
    has_own_state,
    is_rebuilt,
    is_script_module,
    read_storage,
    read_tensor,
    shown,
)
from wnconvert.formats.zips import ZipEntry, read_comment
from wnconvert.messages import listed, printable
from wnconvert.plan.names.trees import NewNames
from wnconvert.plan.record.history import NO_HISTORY, RECORD_NAME, History, read_history
from wnconvert.tensors.containers import Container
from wnconvert.tensors.files import GET_AGAIN, ReadableFile
from wnconvert.tensors.limits import PICKLE
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

__all__ = ["FROZEN", "TorchFile", "check_storages", "open_legacy", "open_zip"]


FROZEN = "a frozen TorchScript archive: its weights are constants in its code"
_WINDOW = 64 << 10


@dataclass(frozen=True)  # without slots, for what is computed once
class TorchFile:
    """An opened torch file: its pickle as data, and where each storage's bytes lie.

    ``container`` is one of torch's; ``records`` are the other records of the archive, which must not be
    lost, by their new names; ``mark`` are its first two bytes, ``comment`` is the archive's; ``version`` is
    the version of the format.
    ``has_constants`` if there are weights in the code of a TorchScript archive. ``files`` counts the files in
    which the storages lie, ``unwrapped`` the DTensors that were made plain.
    """

    container: Container
    pickle: Pickle
    contents: Contents
    storages: Mapping[str, ByteRange]
    records: tuple[ZipEntry, ...] = ()
    mark: bytes = b"PK"
    history: History = NO_HISTORY
    version: str = ""
    has_constants: bool = False
    files: int = 1
    unwrapped: int = 0
    comment: bytes = b""

    @cached_property
    def arrays(self) -> HeldArrays:
        """The NumPy arrays of the state dicts, whose bytes stand behind the files."""
        values = (value for state in self.contents.state_dicts for _, value in state.items)
        return HeldArrays.of((value for value in values if read_tensor(value) is None), self.files)

    def stored(self, name: str, record: TensorRecord) -> StoredTensor:
        """A tensor record as a view of bytes of the file."""
        info = TensorInfo(name, record.dtype, record.shape)
        data = self.storages[record.storage.key]
        return StoredTensor(info, data, record.offset, record.strides, record.storage.location)

    def tree(self) -> Tree:
        """The content of the file, by names, dtypes and shapes.

        Raises ``InputError`` where there is no state dict but a single tensor, or a part of one.
        """
        root = self.pickle.root
        check_whole(self.pickle.nodes, (item.node for item in self.contents.optimizers))
        if single := read_tensor(root) or read_array(root):
            kind = "tensor" if read_tensor(root) else "array"
            raise InputError(
                f"a single {kind} {single.dtype} {list(single.shape)}, without a name",
                fix='save a mapping of names to tensors: torch.save({"NAME": tensor}, FILE)',
            )
        return Tree(
            state_dicts=tuple(self._state_dict(found) for found in self.contents.state_dicts),
            optimizers=tuple(item.path for item in self.contents.optimizers),
            siblings=tuple(
                Sibling(found.path, _kind(found.node), tuple(foreign_names(found.node)))
                for found in self.contents.siblings
            ),
            metadata=self.history.metadata,
            record=self.history.steps,
            notes=(*self._notes(), *self.history.notes),
            recorded_by=self.history.versions,
        )

    def renamed(self, names: Mapping[str, NewNames]) -> TorchFile:
        """The same file, whose state dicts have new names, by their paths."""
        states = self.contents.state_dicts
        found = (state.renamed(names[state.path]) if state.path in names else state for state in states)
        return replace(self, contents=replace(self.contents, state_dicts=tuple(found)))

    @property
    def is_frozen(self) -> bool:
        """Whether all weights of a TorchScript archive are constants in its code (``torch.jit.freeze``)."""
        return self.has_constants and not any(
            read_tensor(value) for found in self.contents.state_dicts for _, value in found.items
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
            stored = self.stored(name, record) if record else self.arrays.stored(name, value)
            is_other = stored is None and (is_rebuilt(value) or is_array(value))
            entries.append(Entry(name, stored, is_opaque=is_other))
        if (twice := repeated(entry.name for entry in entries)) is not None:
            where = found.path or "in it"
            raise FormatError(f"the state dict {where} has the key {twice!r} twice", fix="save it again")
        # A TorchScript archive comes out as a plain state dict.
        is_module = bool(found.modules) and self.container is not Container.TORCHSCRIPT
        return StateDict(found.path, tuple(entries), found.dims, is_module, found.buffers, found.module_names)

    def _notes(self) -> list[str]:
        notes = []
        if self.is_frozen:
            notes.append(FROZEN)
        elif self.container is Container.TORCHSCRIPT:
            notes.append("a TorchScript archive: its code is left out, its tensors become a plain state dict")
            if packed := _packed_classes(self.pickle.nodes):
                notes.append(
                    f"what a __getstate__ of its own packs is left out: only the code of {listed(packed, 3)} "
                    "knows the names of tensors in it"
                )
        elif names := foreign_among(self.pickle.nodes):
            said = "the file names classes or functions, kept as data and never imported"
            notes.append(f"{said}: {listed(names, 6)}")
        if self.unwrapped:
            notes.append("its DTensors are whole, and become plain tensors")
        if self.container is Container.TORCH_LEGACY:
            notes.append(
                "a file in torch's legacy format, which is read but not written: torch's since 1.6 is a zip"
            )
        if get(self.pickle.root, "weight") and get(self.pickle.root, "hash"):
            notes.append("the keys 'hash' and 'id' (RVC) describe the file as it was")
        return notes


def _packed_classes(nodes: Iterable[Value]) -> list[str]:
    """The classes of a TorchScript archive that pack their state in a way of their own."""
    return list(dict.fromkeys(value.callee.dotted for value in nodes if has_own_state(value)))


def _kind(value: Value) -> str:
    return type(value).__name__.lower()


# -- zip archives


def open_zip(file: ReadableFile, directory: Mapping[str, ZipEntry] | None = None) -> TorchFile:
    """Open a zip archive of torch, TorchScript or GPT-SoVITS (marked), whose ``directory`` may be read."""
    saved = read_saved(file, directory)
    records, outside, storages = saved.records, saved.outside, saved.storages
    pickle, unwrapped = _checked(load(saved.pickle), storages)
    if "constants.pkl" in records and has_own_state(pickle.root):
        raise InputError(
            "a TorchScript archive with its own __getstate__: only its code knows the names of its tensors",
            fix="in Python: torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)",
        )
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
            raise FormatError(
                f"its record {printable(record.name)} is compressed", fix="save it with torch.save"
            )
    return TorchFile(
        Container.TORCHSCRIPT if is_script else Container.TORCH_ZIP,
        pickle,
        find_contents(pickle.root, pickle.end),
        storages,
        others,
        file.read(0, 2),
        read_history(content_of(file, records, RECORD_NAME)),
        content_of(file, records, "version").decode("ascii", "replace").strip(),
        is_script and _has_weights(content_of(file, records, "constants.pkl")),
        unwrapped=unwrapped,
        comment=read_comment(file),
    )


def _has_weights(constants: bytes) -> bool:
    """Whether there are tensors of two axes or more among the constants of a TorchScript archive."""
    found = (read_tensor(value) for value in load(constants).nodes) if constants else ()
    return any(record is not None and len(record.shape) > 1 for record in found)


# Records that describe the pickle and the layout; a new file gets its own. The last two, and those in
# .data/, must never be copied: with them torch computes where storages lie instead of looking.
_OWN_RECORDS = frozenset(
    {"data.pkl", "version", "byteorder", RECORD_NAME, ".format_version", ".storage_alignment"}
)


# -- legacy pickles


class _Pickles:
    """The pickles at the start of a file, one after another; each is read in as few bytes as it may take."""

    def __init__(self, file: ReadableFile) -> None:
        self.file = file
        self.size = file.size
        self.at = 0

    def next(self) -> Pickle:
        """The next pickle."""
        window = _WINDOW
        while True:
            count = min(window, self.size - self.at, PICKLE)
            try:
                found = load(self.file.read(self.at, count))
            except CutShortError as error:
                if count == self.size - self.at:
                    raise
                if count == PICKLE:
                    raise too_long() from error
                window *= 8  # so that little is read in vain
            else:
                self.at += found.end
                return found


def open_legacy(file: ReadableFile) -> TorchFile:
    """Open a file of ``torch.save(..., _use_new_zipfile_serialization=False)``, or of torch before 1.6.

    Five pickles (magic, protocol, system, object, storage keys), then each storage as a count of
    elements (8 bytes) and its bytes.
    """
    size, stream = file.size, _Pickles(file)
    stream.next()  # the magic number, by which it was recognised
    version, system = stream.next().root, stream.next().root
    if version != 1001:
        raise FormatError(
            f"torch's legacy format {shown(version)} is not known", fix="save it with a newer torch"
        )
    if get(system, "little_endian") is False:
        raise FormatError("a big-endian file", fix="load and save it on a little-endian machine")
    pickle, keys = stream.next(), stream.next().root
    if not isinstance(keys, list) or not all(isinstance(key, (str, int)) for key in keys):
        raise FormatError("its list of storages makes no sense", fix=GET_AGAIN)
    named = _storages_of(pickle.nodes)
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
    pickle, unwrapped = _checked(pickle, storages)
    return TorchFile(
        Container.TORCH_LEGACY,
        pickle,
        find_contents(pickle.root, pickle.end),
        storages,
        version=str(version),
        unwrapped=unwrapped,
    )


# -- checks


def _checked(pickle: Pickle, storages: Mapping[str, ByteRange]) -> tuple[Pickle, int]:
    """A pickle whose tensors lie in their storages, its whole DTensors made plain; and how many these are."""
    check_storages(pickle.nodes, storages)
    unwrapped = unwrap_whole(pickle.nodes)
    return (replace(pickle, nodes=records_below(pickle.root)) if unwrapped else pickle), unwrapped


def _storages_of(values: Iterable[Value]) -> dict[str, Storage]:
    """The storages by their keys. Raises ``FormatError`` for one that is told in two ways: readers differ."""
    storages: dict[str, Storage] = {}
    for value in values:
        if (storage := read_storage(value)) is not None:
            first = storages.setdefault(storage.key, storage)
            if first is not storage and (first.dtype, first.numel) != (storage.dtype, storage.numel):
                raise FormatError(
                    f"its storage {storage.key} is said to be {_told(first)}, and {_told(storage)}",
                    fix="save it again",
                )
    return storages


def _told(storage: Storage) -> str:
    return f"{storage.numel} × {storage.dtype or 'byte'}"


def check_storages(nodes: Iterable[Value], ranges: Mapping[str, ByteRange]) -> None:
    """Raise ``FormatError`` unless every storage is there, and every tensor lies inside of its own."""
    values = tuple(nodes)
    for storage in _storages_of(values).values():
        data = ranges.get(storage.key)
        if data is None:
            raise FormatError(f"its storage {storage.key} is missing", fix=GET_AGAIN)
        if data.size < storage.nbytes:
            raise FormatError(
                f"its storage {storage.key} has {data.size} bytes of {storage.nbytes}", fix=GET_AGAIN
            )
    for value in values:
        record = read_tensor(value)
        if record is None or 0 in record.shape:
            continue
        last = record.offset
        for count, step in zip(record.shape, record.strides, strict=True):
            last += (count - 1) * step
        if (last + 1) * record.dtype.itemsize > ranges[record.storage.key].size:
            raise FormatError(
                f"a tensor of shape {record.shape}, strides {record.strides} reaches outside of its storage",
                fix=GET_AGAIN,
            )
