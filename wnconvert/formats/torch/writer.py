"""A plan and an opened source to the layout of a torch zip archive.

The source's pickle is not changed: edits are new records that the pickle writer puts in the place of old
ones. A storage is written once, when the first record that uses it is; one that nothing refers to any more
(g and v of a folded layer) is not written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from wnconvert.errors import OutputError
from wnconvert.formats.pickle.values import Dict, Global, Object, PersistentId, Unwritten, Value, walk
from wnconvert.formats.pickle.writer import dump_around
from wnconvert.formats.torch.archives import PREFIX
from wnconvert.formats.torch.arrays import is_array, with_content
from wnconvert.formats.torch.contents import FoundStateDict, Key
from wnconvert.formats.torch.edits import module_edits, optimizer_edits, renames
from wnconvert.formats.torch.names import Dangers, dangerous_names
from wnconvert.formats.torch.reader import TorchFile
from wnconvert.formats.torch.records import (
    get,
    mapping_pairs,
    read_storage,
    read_tensor,
    state_dict_node,
    storage_record,
    tensor_record,
    with_pairs,
    with_storage,
)
from wnconvert.formats.zips import MARKS, NewRecord, zip_layout
from wnconvert.messages import listed, option
from wnconvert.plan.layout import CopyBytes, Gather, Layout, Part, Parts, Work
from wnconvert.plan.names.trees import renamed_modules
from wnconvert.plan.order import NEW_ENTRY, SPECTRAL_VERSIONS, Versions, metadata_keys, versions_moved
from wnconvert.plan.plan import Plan, PlannedStateDict
from wnconvert.plan.record.history import RECORD_NAME, write_history
from wnconvert.plan.steps import MadeTensor, Step
from wnconvert.tensors.containers import Container
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.limits import PICKLE, megabytes
from wnconvert.tensors.tree import ByteRange, Shape, StoredTensor, TensorInfo, Tree, contiguous_strides

__all__ = ["torch_layout"]


def torch_layout(source: TorchFile | None, tree: Tree, plan: Plan) -> Layout:
    """Lay out the torch zip archive that ``plan`` describes.

    ``source`` is None where the tensors come from a file without a pickle (safetensors).
    Raises ``OutputError`` where the pickle would hand on a name that runs something.
    """
    runs, storages = _pickled(source, tree, plan)
    records = [
        _pickle_record(runs),
        NewRecord(PREFIX + "byteorder", 6, b"little"),
        *storages,
        NewRecord(PREFIX + "version", 2, b"3\n"),
    ]
    others = source.records if source else ()
    records += [NewRecord(other.name, other.data.size, CopyBytes(other.data)) for other in others]
    if plan.record or tree.metadata:
        history = write_history(plan.record, tree.metadata).encode()
        records.append(NewRecord(PREFIX + RECORD_NAME, len(history), history))
    mark = source.mark if source and source.mark in MARKS else b"PK"
    return zip_layout(records, mark=mark, comment=source.comment if source else b"")


def _pickled(
    source: TorchFile | None, tree: Tree, plan: Plan
) -> tuple[list[bytes | Unwritten], list[NewRecord]]:
    """The new pickle, and the storages that it names."""
    editor = _Editor(source, tree)
    root, edits, protocol = editor.root(plan), editor.edits, editor.protocol
    del editor  # what else it knows takes as much
    archive = _Storages(source)
    dangers = Dangers()

    def written(value: Value) -> Value:
        made = edits.get(id(value), value)
        if type(made) is PersistentId:
            made = archive.take(made)
        dangers.look_at(made)
        return made

    runs = dump_around(root, protocol, written)
    if dangers.names:
        raise OutputError(
            f"the file names {listed(dangers.names, 6)}, which could run something where it is loaded",
            fix=_fix_of(dangers.names, source),
        )
    return runs, list(archive.records())


def _fix_of(dangers: Sequence[str], source: TorchFile | None) -> str:
    """What to do about dangerous names: those beside state dicts can be left out."""
    tensors_alone = "-o OUT.safetensors, which holds tensors alone"
    siblings = source.contents.siblings if source else ()
    beside = {name for sibling in siblings for name in dangerous_names([sibling.node])}
    if beside.issuperset(dangers):
        return f"{option('drop_foreign', True)}, which leaves out what names them, or {tensors_alone}"
    return tensors_alone


def _pickle_record(runs: Sequence[bytes | Unwritten]) -> NewRecord:
    """The record of the pickle; that of new arrays is made when they are."""
    name = PREFIX + "data.pkl"
    if len(runs) == 1 and isinstance(runs[0], bytes):
        _check_length(len(runs[0]))
        return NewRecord(name, len(runs[0]), runs[0])
    parts = tuple(
        run if isinstance(run, bytes) else Part(_work_of(run), run.size, run.kind == "text") for run in runs
    )
    size = sum(len(part) if isinstance(part, bytes) else part.most for part in parts)
    _check_length(size)
    return NewRecord(name, size, Parts(parts))


def _check_length(size: int) -> None:
    """Raise ``OutputError`` for a pickle that would not be read."""
    if size > PICKLE:
        raise OutputError(
            f"its pickle would take {megabytes(size)}, and {megabytes(PICKLE)} are the most that is read",
            fix="-o OUT.safetensors, which has no pickle",
        )


def _work_of(run: Unwritten) -> Work:
    assert isinstance(run.what, _Making)  # noqa: S101 - no other is made here
    return run.what.work


@dataclass(frozen=True, slots=True)
class _Making:
    """Stands for a storage, or the bytes of an array, that does not exist yet: how it will be made."""

    work: Work
    nbytes: int


class _Storages:
    """The storages of the new archive, numbered in the order in which the pickle names them."""

    def __init__(self, source: TorchFile | None) -> None:
        self.source = source
        self.numbers: dict[Work, int] = {}
        self.sizes: list[int] = []
        self.locations: dict[Value, Value] = {}

    def take(self, value: PersistentId) -> Value:
        """A persistent id with the number that its storage has in the new archive; others as they are."""
        if not (isinstance(value.pid, tuple) and len(value.pid) > 2):
            return value
        if value.pid[0] == "module" and isinstance(value.pid[1], Global):
            return value.pid[1]  # legacy files name a module's class so, beside its source text
        if value.pid[0] != "storage":
            return value
        making = value.pid[2]
        if isinstance(making, _Making):
            numel = value.pid[4]
        else:
            storage = read_storage(value)
            if storage is None or self.source is None:
                return value
            data = self.source.storages[storage.key]
            making = _Making(CopyBytes(data), data.size)
            numel = data.size // storage.itemsize  # a legacy file may say fewer; torch then reads them all
        number = self.numbers.setdefault(making.work, len(self.numbers))
        if number == len(self.sizes):
            self.sizes.append(making.nbytes)
        _, cls, _, location = value.pid[:4]
        # Texts that are one object are written once: a storage that was made is spelled as one that was kept.
        location = self.locations.setdefault(location, location)
        return PersistentId(("storage", cls, str(number), location, numel))

    def records(self) -> Iterable[NewRecord]:
        for (work, number), size in zip(self.numbers.items(), self.sizes, strict=True):
            yield NewRecord(f"{PREFIX}data/{number}", size, work)


class _Editor:
    """Makes the records that stand in the place of old ones."""

    def __init__(self, source: TorchFile | None, tree: Tree) -> None:
        self.source = source
        self.tensors = tree.tensors
        self.edits: dict[int, Value] = {}
        self.made: dict[tuple[object, ...], Value] = {}  # a value under two names stays one value
        self.names: dict[tuple[int, str], str] = {}  # a text that is two keys stays one text
        self.renamed: set[int] = set()  # the metadata whose modules have their new names
        self.views: dict[tuple[str, ByteRange], set[object]] = {}  # of what is kept beside casts
        self.protocol = source.pickle.protocol if source else 2

    def edited(self, value: Value) -> Value:
        return self.edits.get(id(value), value)

    def root(self, plan: Plan) -> Value:
        """The root of the new pickle."""
        for planned in plan.state_dicts:
            if any(step.kept is not None and step.dtype for step in planned.steps):
                self._note_views(planned)
        if self.source is None or self.source.container is Container.TORCHSCRIPT:
            pairs = {planned.path: self._pairs(planned, {}) for planned in plan.state_dicts}
            root = pairs.pop("", [])
            below = ((path, state_dict_node(items)) for path, items in pairs.items())
            return state_dict_node([*root, *below])
        found = {state.path: state for state in self.source.contents.state_dicts}
        self._straighten_views()
        for planned in plan.state_dicts:
            state = found[planned.path]
            if state.modules:
                value_of = partial(self._value, planned.path, values=dict(state.items))
                self.edits |= module_edits(state.modules, planned, value_of)
            else:
                self._edit_mapping(state, planned)
        if plan.only is not None:
            return _nested(found[plan.only].keys, found[plan.only].node)
        dropped, names = {item.path for item in plan.dropped}, renames(plan, self.source.contents)
        for beside in (*self.source.contents.optimizers, *self.source.contents.siblings):
            if beside.path in dropped:
                self.edits[id(beside.holder)] = _without(self.edited(beside.holder), beside.node)
        for item in self.source.contents.optimizers:
            if item.path not in dropped:
                self.edits |= optimizer_edits(item.node, names)
        return self.source.pickle.root

    def _note_views(self, planned: PlannedStateDict) -> None:
        """Note the views of each storage that a state dict keeps, where some are cast."""
        for step in planned.steps:
            stored = None if step.kept is None else self.tensors[planned.path].get(step.kept)
            if stored is not None:
                self.views.setdefault((planned.path, stored.storage), set()).add(stored.view)

    def _straighten_views(self) -> None:
        """Storages that are views of a root storage (the oldest files) become the root itself."""
        if self.source is None or self.source.container is not Container.TORCH_LEGACY:
            return
        for value in walk(self.source.pickle.root):
            record = read_tensor(value)
            if record and record.storage.first and value.is_call_of(*_REBUILDS):
                storage = record.storage
                base = storage_record(storage.key, storage.dtype, storage.location, storage.numel)
                self.edits[id(value)] = with_storage(value, base, record.offset, record.shape, record.strides)

    # -- tensors

    def _pairs(self, planned: PlannedStateDict, values: dict[str, Value]) -> list[tuple[str, Value]]:
        """The items of a state dict as planned."""
        return [(self._name(step), self._value(planned.path, step, values)) for step in planned.steps]

    def _name(self, step: Step) -> str:
        """The key of a step; of copies of a state dict, which share their keys, the renamed ones do too."""
        source = step.name if step.kept is None else step.kept
        return self.names.setdefault((id(source), step.name), step.name)

    def _value(self, path: str, step: Step, values: dict[str, Value]) -> Value:
        tensors = self.tensors[path]
        if step.kept is not None:
            stored, value = tensors.get(step.kept), values.get(step.kept)
            if stored is None or (value is not None and step.is_as_it_was):
                return value
            if value is not None and step.dtype is None:
                return self._shaped(value, step.made_of(tensors, path).info.shape, stored)
            if value is not None and step.dtype and len(self.views[path, stored.storage]) > 1:
                return self._cast_storage(value, stored, step.dtype)
        item = step.made_of(tensors, path)
        return self._tensor(values.get(item.like.info.name), item)

    def _tensor(self, value: Value, item: MadeTensor) -> Value:
        """A contiguous tensor of its own storage, of the device of its source."""
        info = item.info
        if info.dtype.bits < 8:
            raise OutputError(
                f"{info.name} is {info.dtype}, which a torch file cannot hold", fix="-o OUT.safetensors"
            )
        key = (id(value), item.work) if value is not None else (item.work,)
        made = self.made.get(key)
        if made is None:
            made = self.made[key] = self._made(value, item)
        return made

    def _made(self, value: Value, item: MadeTensor) -> Value:
        """The record of a new tensor, like ``value`` where there is one."""
        info = item.info
        if is_array(value):
            making = _Making(item.work, info.nbytes)
            return with_content(value, making, info.dtype, info.shape, self.protocol)
        storage = _storage(item.work, info.nbytes, info.dtype, item.like.location, info.numel)
        strides = contiguous_strides(info.shape)
        if value is None:
            return tensor_record(storage, 0, info.shape, strides, info.dtype)
        return with_storage(value, storage, 0, info.shape, strides)

    def _shaped(self, value: Value, shape: Shape, stored: StoredTensor) -> Value:
        """The same elements of the same storage in another shape; two names of one tensor stay that."""
        key = (id(value), shape)
        record = read_tensor(value)
        if record is None:
            raise TypeError("not a tensor record")
        if key not in self.made:
            storage = record.storage
            base = storage_record(storage.key, storage.dtype, storage.location, storage.numel)
            made = stored.shaped(shape)
            self.made[key] = with_storage(value, base, record.offset, shape, made.strides)
        return self.made[key]

    def _cast_storage(self, value: Value, stored: StoredTensor, dtype: DType) -> Value:
        """The same view of a cast copy of the whole storage, so that all its views stay views of one."""
        key = (id(value), dtype)
        if key not in self.made:
            numel = stored.storage.size // stored.info.dtype.itemsize
            whole = StoredTensor(TensorInfo("", stored.info.dtype, (numel,)), stored.storage, 0, (1,))
            work = Gather(whole, dtype, f"the storage of {stored.info.name}")
            storage = _storage(work, numel * dtype.itemsize, dtype, stored.location, numel)
            self.made[key] = with_storage(value, storage, stored.offset, stored.info.shape, stored.strides)
        return self.made[key]

    # -- mappings

    def _edit_mapping(self, state: FoundStateDict, planned: PlannedStateDict) -> None:
        others = [pair for pair in mapping_pairs(state.node) or () if not isinstance(pair[0], str)]
        pairs = [*self._pairs(planned, dict(state.items)), *others]
        self.edits[id(state.node)] = with_pairs(state.node, pairs)
        metadata = get(state.node.state, "_metadata") if isinstance(state.node, Object) else None
        before = self.edited(metadata)  # two state dicts may share it
        if entries := mapping_pairs(before):
            others = [pair for pair in entries if not isinstance(pair[0], str)]
            known = {str(key): value for key, value in entries if isinstance(key, str)}
            if state.names and id(metadata) not in self.renamed:
                modules = renamed_modules(list(known), state.names.rules, state.names.keys.values())
                known = {
                    new: Dict(_entry(known)) if old is None else known[old] for new, old in modules.items()
                }
            self.renamed.add(id(metadata))
            keys, moved = metadata_keys(planned, list(known)), versions_moved(planned)
            new = [
                (key, _with_versions(known[key], moved.get(key)) if key in known else Dict(_entry(known)))
                for key in keys
            ]
            self.edits[id(metadata)] = with_pairs(before, [*new, *others])


def _with_versions(entry: Value, moved: Versions | None) -> Value:
    """The entry of a module without the versions that are gone, and with those that come."""
    before = mapping_pairs(entry)
    if moved is None or before is None:
        return entry
    there = [value for name, value in before if name == SPECTRAL_VERSIONS]
    versions = there[0] if there else Dict([])
    pairs = mapping_pairs(versions)
    if pairs is None:
        return entry
    left = [pair for pair in pairs if pair[0] not in moved.gone]
    left += [(name, NEW_ENTRY["version"]) for name in moved.come]
    others = [pair for pair in before if pair[0] != SPECTRAL_VERSIONS]
    return with_pairs(entry, [*others, (SPECTRAL_VERSIONS, with_pairs(versions, left))] if left else others)


def _entry(known: Mapping[str, Value]) -> list[tuple[Value, Value]]:
    """The items of the entry of a new module.

    A pickle has equal texts twice where they are two objects: torch's "version" is one in all entries.
    """
    names = [name for value in known.values() for name, _ in mapping_pairs(value) or ()]
    own = {name: name for name in names if isinstance(name, str)}
    return [(own.get(name, name), value) for name, value in NEW_ENTRY.items()]


_REBUILDS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")


def _storage(work: Work, nbytes: int, dtype: DType, location: str, numel: int) -> PersistentId:
    record = storage_record("", dtype, location, numel)
    kind, cls, _, *rest = record.pid
    return PersistentId((kind, cls, _Making(work, nbytes), *rest))


def _nested(keys: Sequence[Key], node: Value) -> Value:
    """``node`` under the keys that led to it, where loaders look for it (``ckpt["generator"]``)."""
    for key in reversed(keys):
        node = Dict([(key, node)])
    return node


def _without(holder: Value, item: Value) -> Value:
    """A list or mapping without one of its items; in a tuple, whose places count, None stands for it."""
    if isinstance(holder, tuple):
        return tuple(None if value is item else value for value in holder)
    if isinstance(holder, list):
        return [value for value in holder if value is not item]
    return with_pairs(holder, [pair for pair in mapping_pairs(holder) or () if pair[1] is not item])
