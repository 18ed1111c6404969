"""What the records of torch's pickles mean: storages, tensors, state dicts, modules, optimizers.

Only reading and making of records; which of them become what is decided elsewhere. Sources of the
spellings: ``torch/_utils.py`` (``_rebuild_tensor_v2`` and friends), ``torch/serialization.py``
(``persistent_id``), ``torch/nn/modules/module.py`` and ``torch/nn/utils/weight_norm.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from wnconvert.errors import FormatError
from wnconvert.pickles import Dict, Global, Object, PersistentId, Set, Value
from wnconvert.tensors import DTYPES, DType

__all__ = ["Contents", "FoundModule", "FoundOptimizer", "FoundStateDict", "Storage", "TensorRecord"]
__all__ += ["find_contents", "get", "is_script_module", "mapping_pairs", "read_storage", "read_tensor"]
__all__ += [
    "shown",
    "state_dict_node",
    "storage_record",
    "tensor_record",
    "weight_norm_hook",
    "with_pairs",
    "with_storage",
]

_STORAGES: dict[str, DType] = {dtype.storage: dtype for dtype in DTYPES.values() if dtype.storage}
_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
_MAX_RANK = 64  # torch's own limit


@dataclass(frozen=True, slots=True)
class Storage:
    """torch's ``("storage", class, key, location, numel)``; ``dtype`` is None for an untyped one (bytes).

    ``first`` is the element of the root storage at which a storage of the oldest files, a view, begins.
    """

    key: str
    dtype: DType | None
    location: str
    numel: int
    first: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes of what ``numel`` counts."""
        return self.dtype.itemsize if self.dtype else 1

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.itemsize


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor as its record states it; offset and strides count elements of ``dtype``."""

    storage: Storage
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_storage(value: Value) -> Storage | None:
    """The storage that a persistent id names, or None for any other value."""
    pid = value.pid if isinstance(value, PersistentId) else None
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        return None
    _, cls, key, location, numel = pid[:5]
    if not isinstance(cls, Global) or cls.module not in _STORAGE_MODULES:
        raise FormatError(f"a storage of it is of the unknown kind {shown(cls)}")
    if cls.name != "UntypedStorage" and cls.name not in _STORAGES:
        raise FormatError(f"a storage of it is of the unknown kind {cls.dotted}")
    first = 0
    if len(pid) == 6 and pid[5] is not None:
        # Storages that are views of a root storage, as the oldest torch wrote them.
        if not (isinstance(pid[5], tuple) and len(pid[5]) == 3 and _count(pid[5][1])):
            raise FormatError("a storage of it is a view of another in a way that torch never wrote")
        first = pid[5][1]
    if not ((isinstance(key, str) or _count(key)) and isinstance(location, str) and _count(numel)):
        raise FormatError(f"a storage of it has no sensible key, device or size: {shown(pid[2:5])}")
    return Storage(str(key), _STORAGES.get(cls.name), str(location), numel, first)


def read_tensor(value: Value) -> TensorRecord | None:
    """The tensor that a record rebuilds, or None for any other value.

    Understands ``_rebuild_tensor``, ``_rebuild_tensor_v2``, ``_rebuild_tensor_v3`` and the
    ``_rebuild_parameter`` around them. Raises ``FormatError`` where such a record makes no sense.
    """
    core = _core(value)
    if core is None:
        return None
    args = core.args
    storage = read_storage(args[0])
    if storage is None:
        raise FormatError("a tensor of it has no storage")
    offset, shape, strides = args[1:4]
    if not (
        _count(offset) and _counts(shape) and _counts(strides) and len(shape) == len(strides) <= _MAX_RANK
    ):
        raise FormatError(f"a tensor of it has an absurd offset, shape or stride: {shown(args[1:4])}")
    dtype = storage.dtype
    if core.is_call_of("torch._utils._rebuild_tensor_v3"):
        named = args[6] if len(args) > 6 else None
        dtype = DTYPES.get(named.name) if isinstance(named, Global) and named.module == "torch" else None
    if dtype is None:
        raise FormatError("a tensor of it has a dtype that is not known here")
    return TensorRecord(storage, dtype, offset + storage.first, tuple(shape), tuple(strides))


_TENSORS = tuple(f"torch._utils._rebuild_tensor{suffix}" for suffix in ("", "_v2", "_v3"))
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")


def _core(value: Value) -> Object | None:
    """The ``_rebuild_tensor`` record in a tensor's or parameter's record."""
    for _ in range(2):
        if not isinstance(value, Object) or value.op != "REDUCE" or not isinstance(value.args, tuple):
            return None
        if value.is_call_of(*_TENSORS) and len(value.args) >= 4:
            return value
        if not value.is_call_of(*_PARAMETERS) or not value.args:
            return None
        value = value.args[0]
    return None


def _count(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _counts(value: Value) -> bool:
    return isinstance(value, (tuple, list)) and all(_count(item) for item in value)


def shown(value: Value, levels: int = 2) -> str:
    """A value in few words; whatever hangs below it, this takes no time."""
    if isinstance(value, Global):
        text = value.dotted
    elif isinstance(value, tuple) and levels and len(value) <= 8:
        text = f"({', '.join(shown(item, levels - 1) for item in value)})"
    elif value is None or isinstance(value, (bool, float)):
        text = repr(value)
    elif isinstance(value, int):
        text = str(value) if value.bit_length() < 200 else "a number without end"
    elif isinstance(value, str):
        text = repr(str(value[:80]))
    else:
        text = f"a {type(value).__name__.lower()}"
    return text if len(text) <= 80 else text[:77] + "..."


# -- making


def storage_record(key: str, dtype: DType | None, location: str, numel: int) -> PersistentId:
    """The persistent id of a storage of ``numel`` elements of ``dtype``, of bytes where that is None.

    A dtype without a storage class of its own (float8, uint16) lies in an untyped storage, counted in bytes.
    """
    if dtype and dtype.storage:
        return PersistentId(("storage", Global("torch", dtype.storage), key, location, numel))
    nbytes = numel * dtype.itemsize if dtype else numel
    return PersistentId(("storage", Global("torch.storage", "UntypedStorage"), key, location, nbytes))


def with_storage(
    value: Value, storage: PersistentId, offset: int, shape: Sequence[int], strides: Sequence[int]
) -> Object:
    """The tensor or parameter record ``value`` over another storage, all else (requires_grad) as it was."""
    core = _core(value)
    if core is None:
        raise TypeError("not a tensor record")
    made = replace(core, args=(storage, offset, tuple(shape), tuple(strides), *core.args[4:]))
    if core.is_call_of("torch._utils._rebuild_tensor_v3"):
        # v3 exists for dtypes without a storage class; a foldable dtype is spelled in v2.
        made = replace(made, callee=Global("torch._utils", "_rebuild_tensor_v2"), args=made.args[:6])
    return made if core is value else replace(value, args=(made, *value.args[1:]))


def tensor_record(
    storage: PersistentId, offset: int, shape: Sequence[int], strides: Sequence[int], dtype: DType
) -> Object:
    """The record of a plain tensor, as ``torch.save`` writes it."""
    hooks = Object("REDUCE", Global("collections", "OrderedDict"), ())
    args = (storage, offset, tuple(shape), tuple(strides), False, hooks)
    if dtype.storage:
        return Object("REDUCE", Global("torch._utils", "_rebuild_tensor_v2"), args)
    rebuild = Global("torch._utils", "_rebuild_tensor_v3")
    return Object("REDUCE", rebuild, (*args, Global("torch", dtype.name)))


def state_dict_node(pairs: Sequence[tuple[str, Value]]) -> Object:
    """An ``OrderedDict`` of these pairs."""
    return Object("REDUCE", Global("collections", "OrderedDict"), (), changes=[("set", list(pairs))])


# -- mappings


def mapping_pairs(value: Value) -> list[tuple[Value, Value]] | None:
    """The pairs of a dict, or of an object that is one (``OrderedDict``, a foreign dict); else None."""
    if isinstance(value, Dict):
        return value.pairs
    if not isinstance(value, Object):
        return None
    pairs = value.pairs
    if not pairs and value.is_call_of("collections.OrderedDict"):
        # Python 2 wrote OrderedDict([[key, value], …]).
        items = value.args[0] if isinstance(value.args, tuple) and value.args else []
        if isinstance(items, list) and all(
            isinstance(item, (list, tuple)) and len(item) == 2 for item in items
        ):
            return [(item[0], item[1]) for item in items]
        return None
    return pairs if pairs or value.is_call_of("collections.OrderedDict") else None


def with_pairs(value: Value, pairs: Sequence[tuple[Value, Value]]) -> Dict | Object:
    """The mapping ``value`` with other pairs, and all else (class, ``_metadata``) as it was."""
    if isinstance(value, Dict):
        return Dict(list(pairs))
    args = () if value.is_call_of("collections.OrderedDict") else value.args
    first = next((at for at, (kind, _) in enumerate(value.changes) if kind == "set"), 0)
    others = [change for change in value.changes if change[0] != "set"]
    changes = [*others[:first], ("set", list(pairs)), *others[first:]]
    return Object(value.op, value.callee, args, value.kwargs, changes)


def get(value: Value, key: str) -> Value:
    """What a mapping has under ``key``, or None."""
    found = None
    for name, item in mapping_pairs(value) or ():
        if name == key:
            found = item  # the last one wins, as in a dict
    return found


# -- modules


def is_module(value: Value) -> bool:
    """Whether a record is a pickled ``nn.Module``."""
    state = value.state if isinstance(value, Object) else None
    return state is not None and all(get(state, key) is not None for key in ("_parameters", "_modules"))


def is_script_module(value: Value) -> bool:
    """Whether a record is an object of a TorchScript archive."""
    return (
        isinstance(value, Object)
        and isinstance(value.callee, Global)
        and value.callee.module.split(".")[0] == "__torch__"
        and isinstance(value.state, Dict)
    )


@dataclass(frozen=True, slots=True)
class FoundModule:
    """A pickled module (its record) and the prefix of its parameters' names."""

    prefix: str
    node: Object


#: What leads one step down: a key of a mapping, an attribute, the place in a list.
Key: TypeAlias = str | int


def _path(keys: Iterable[Key]) -> str:
    return ".".join(map(str, keys))


@dataclass(frozen=True, slots=True)
class FoundStateDict:
    """A state dict in a pickle: where it is, the record that holds it, and its items in order.

    ``keys`` leads to it from the root. For a pickled module ``modules`` are its parts and the items are
    what its ``state_dict()`` would be; ``dims`` are the dims that its ``WeightNorm`` hooks state.
    """

    keys: tuple[Key, ...]
    node: Value
    items: tuple[tuple[str, Value], ...]
    modules: tuple[FoundModule, ...] = ()

    @property
    def path(self) -> str:
        """The keys with dots between them; ``""`` for the root."""
        return _path(self.keys)

    @property
    def dims(self) -> dict[str, int | None]:
        """By weight, the dim that a ``WeightNorm`` hook states (torch's -1 is the whole tensor: None)."""
        dims = {}
        for module in self.modules:
            for _, hook in mapping_pairs(get(module.node.state, "_forward_pre_hooks")) or ():
                if named := weight_norm_hook(hook):
                    dims[module.prefix + named[0]] = named[1]
        return dims


def weight_norm_hook(hook: Value) -> tuple[str, int | None] | None:
    """Parameter name and dim of a legacy ``WeightNorm`` hook, or None for any other value."""
    if _class_of(hook) != "torch.nn.utils.weight_norm.WeightNorm":
        return None
    name, dim = get(hook.state, "name"), get(hook.state, "dim")
    if not isinstance(name, str) or not (dim is None or isinstance(dim, int)):
        return None
    return str(name), None if dim == -1 else dim


def _class_of(value: Value) -> str:
    """The dotted name of the class of which a record is an instance."""
    if not isinstance(value, Object):
        return ""
    cls = value.callee
    if value.is_call_of("copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__"):
        cls = value.args[0] if isinstance(value.args, tuple) and value.args else None  # protocols 0 and 1
    return cls.dotted if isinstance(cls, Global) else ""


class _Names:
    """What the names of a file may take: references make many and long ones out of few bytes."""

    def __init__(self) -> None:
        self.left = 16 << 20  # 100,000 tensors with names of 80 letters take 14 MiB

    def spend(self, *names: str) -> None:
        self.left -= sum(len(name) for name in names) + 64
        if self.left < 0:
            raise FormatError("its names take more than any checkpoint needs", fix="do not trust this file")


def _module_state(keys: tuple[Key, ...], root: Object, names: _Names) -> FoundStateDict:
    """A pickled module as its ``state_dict()`` would be, in torch's order."""
    items: list[tuple[str, Value]] = []
    modules: list[FoundModule] = []
    todo: list[tuple[str, Object, frozenset[int]]] = [("", root, frozenset())]
    while todo:
        prefix, node, above = todo.pop()
        names.spend(prefix)
        modules.append(FoundModule(prefix, node))
        tensors, children = _parts_of(node)
        for key, value in tensors:
            names.spend(prefix, key)
            items.append((prefix + key, value))
        above |= {
            id(node)
        }  # a module under two names has its keys twice; one that contains itself ends there
        todo += [
            (f"{prefix}{key}.", item, above) for key, item in reversed(children) if id(item) not in above
        ]
    return FoundStateDict(keys, root, tuple(items), tuple(modules))


def _parts_of(node: Object) -> tuple[list[tuple[str, Value]], list[tuple[str, Object]]]:
    """The own parameters and buffers of a module, and its children."""
    if is_script_module(node):
        pairs = _named(node.state)
        tensors = [(key, value) for key, value in pairs if read_tensor(value)]
        return tensors, [(key, value) for key, value in pairs if is_script_module(value)]
    hidden = _set_items(get(node.state, "_non_persistent_buffers_set"))
    tensors = [
        (key, value)
        for kind in ("_parameters", "_buffers")
        for key, value in _named(get(node.state, kind))
        if value is not None and not (kind == "_buffers" and key in hidden)
    ]
    return tensors, [(key, value) for key, value in _named(get(node.state, "_modules")) if is_module(value)]


def _named(value: Value) -> list[tuple[str, Value]]:
    """The pairs of a mapping whose keys are strings."""
    return [(str(key), item) for key, item in mapping_pairs(value) or () if isinstance(key, str)]


def _set_items(value: Value) -> set[str]:
    """The strings in a set."""
    if isinstance(value, Set):
        return {item for item in value.items if isinstance(item, str)}
    if isinstance(value, Object) and value.is_call_of("builtins.set", "__builtin__.set"):
        # Protocols 0 to 3 call it with a list.
        lists = value.args if isinstance(value.args, tuple) else ()
        return {item for part in lists if isinstance(part, list) for item in part if isinstance(item, str)}
    return set()


# -- finding


def _children(value: Value) -> Iterator[tuple[Key, Value, Value]]:
    """What hangs below a value: its key, the value that directly holds it, and itself.

    Items of mappings and lists, and attributes of objects.
    """
    if isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield index, value, item
        return
    for key, item in mapping_pairs(value) or ():
        if isinstance(key, str) or (isinstance(key, int) and key.bit_length() < 64):
            yield key, value, item
    if isinstance(value, Object) and isinstance(value.state, Dict):
        for key, item in value.state.pairs:
            if isinstance(key, str) and key != "_metadata":
                yield key, value.state, item


def is_optimizer(value: Value) -> bool:
    """Whether a value is an optimizer: a dict, or an object, with ``state`` and ``param_groups``."""
    mapping = value.state if isinstance(value, Object) and isinstance(value.state, Dict) else value
    names = {key for key, _ in mapping_pairs(mapping) or () if isinstance(key, str)}
    return {"state", "param_groups"} <= names


@dataclass(frozen=True, slots=True)
class FoundOptimizer:
    """An optimizer in a pickle: its path, and the record whose item it is."""

    path: str
    holder: Value
    node: Value


@dataclass(frozen=True, slots=True)
class Contents:
    """The state dicts and optimizers of a pickle, and the rest: ``siblings`` by path."""

    state_dicts: tuple[FoundStateDict, ...]
    optimizers: tuple[FoundOptimizer, ...]
    siblings: tuple[tuple[str, Value], ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """A key below another place; linked, so that a million of them stay small."""

    above: _Place | None
    key: Key

    @property
    def way(self) -> list[_Place]:
        """The places from below the root to this one."""
        places: list[_Place] = []
        place = self
        while place.above is not None:
            places.append(place)
            place = place.above
        return places[::-1]

    @property
    def keys(self) -> tuple[Key, ...]:
        return tuple(place.key for place in self.way)

    @property
    def path(self) -> str:
        return _path(self.keys)


def find_contents(root: Value) -> Contents:
    """Find every state dict and optimizer below ``root``, outermost first, in the order of the file.

    Raises ``FormatError`` where two of them have one path.
    """
    states: list[FoundStateDict] = []
    optimizers: dict[int, list[FoundOptimizer]] = {}  # by the record, which two holders may share
    top = _Place(None, "")
    todo: list[tuple[_Place, Value, Value]] = [(top, None, root)]
    seen: set[int] = set()
    branches: list[tuple[_Place, Value]] = []  # what is searched and is no state dict itself
    ends: list[_Place] = []
    names = _Names()
    while todo:
        place, holder, value = todo.pop()
        if id(value) in seen and id(value) not in optimizers:
            continue
        is_new = id(value) not in seen
        seen.add(id(value))
        if not is_new or is_optimizer(value):
            # A file that is only an optimizer has nothing that a conversion could change.
            if place is not top:
                ends.append(place)
                names.spend(*map(str, place.keys))
                found = FoundOptimizer(place.path, holder, value)
                optimizers.setdefault(id(value), []).append(found)
            continue
        if is_module(value) or is_script_module(value):
            ends.append(place)
            names.spend(*map(str, place.keys))
            states.append(_module_state(place.keys, value, names))
            continue
        items = _named(value)
        if any(read_tensor(item) for _, item in items):
            ends.append(place)
            names.spend(*map(str, place.keys))
            for key, _ in items:
                names.spend(key)
            states.append(FoundStateDict(place.keys, value, tuple(items)))
        else:
            branches.append((place, value))
        below = [
            (_Place(place, key), direct, item)
            for key, direct, item in _children(value)
            if isinstance(item, (tuple, list, Dict, Object)) and not read_tensor(item)
        ]
        todo += reversed(below)
    _check_paths(states)
    every = tuple(item for of_one in optimizers.values() for item in of_one)
    return Contents(tuple(states), every, tuple(_siblings(branches, ends, top)))


def _check_paths(states: Sequence[FoundStateDict]) -> None:
    paths: set[str] = set()
    for state in states:
        if state.path in paths:
            raise FormatError(
                f"it has two state dicts at {state.path}", fix="save one of them under another key"
            )
        paths.add(state.path)


def _siblings(
    branches: Sequence[tuple[_Place, Value]], ends: Sequence[_Place], top: _Place
) -> Iterator[tuple[str, Value]]:
    """What stands beside state dicts and optimizers on the way to them, and everything at the top."""
    led = {(id(place.above), place.key) for end in ends for place in end.way}
    ways = {above for above, _ in led} | {id(top)}
    for place, value in branches:
        if id(place) in ways:
            for key, _, item in _children(value):
                if (id(place), key) not in led:
                    yield _path((*place.keys, key)), item
