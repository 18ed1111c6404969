"""Where the state dicts and optimizers of a pickle are, at any depth, and the values beside them.

A state dict is a mapping with tensors in it (single numbers beside other values are settings), or a whole
pickled module as its ``state_dict()`` would be; an optimizer is a dict, or an object, with ``state`` and
``param_groups``. Everything below one belongs to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from wnconvert.errors import FormatError
from wnconvert.formats.pickle.values import Dict, Object, Set, Value
from wnconvert.formats.torch.arrays import is_array
from wnconvert.formats.torch.records import (
    class_of,
    get,
    is_module,
    is_script_module,
    mapping_pairs,
    read_tensor,
)
from wnconvert.plan.names.trees import NewNames

__all__ = [
    "ComputingHook",
    "Contents",
    "FoundItem",
    "FoundModule",
    "FoundStateDict",
    "Key",
    "computing_hook",
    "find_contents",
    "is_optimizer",
]


@dataclass(frozen=True, slots=True)
class FoundModule:
    """A pickled module (its record) and the prefix of its parameters' names."""

    prefix: str
    node: Object


#: One step down: a key of a mapping, an attribute, the place in a list.
Key: TypeAlias = str | int


def _path(keys: Iterable[Key]) -> str:
    return ".".join(map(str, keys))


@dataclass(frozen=True, slots=True)
class FoundStateDict:
    """A state dict in a pickle: where it is, the record that holds it, and its items in order.

    ``keys`` leads to it from the root. For a pickled module ``modules`` are its parts and the items are
    what its ``state_dict()`` would be; ``dims`` are the dims that torch's hooks in it state. The items have
    the ``names`` that they shall have, if these are new.
    """

    keys: tuple[Key, ...]
    node: Value
    items: tuple[tuple[str, Value], ...]
    modules: tuple[FoundModule, ...] = ()
    names: NewNames | None = None

    def renamed(self, names: NewNames) -> FoundStateDict:
        """The same with new names for its items."""
        items = tuple((names.keys[key], value) for key, value in self.items)
        return replace(self, items=items, names=names)

    @property
    def path(self) -> str:
        """The keys with dots between them; ``""`` for the root."""
        return _path(self.keys)

    @property
    def dims(self) -> dict[str, int | None]:
        """By weight, the dim that its hook of torch's states; None for the whole tensor, or for none."""
        return {
            module.prefix + found.name: found.dim
            for module in self.modules
            for _, hook in mapping_pairs(get(module.node.state, "_forward_pre_hooks")) or ()
            if (found := computing_hook(hook))
        }

    @property
    def buffers(self) -> frozenset[str]:
        """The names of the buffers that a pickled module states."""
        return frozenset(
            module.prefix + key
            for module in self.modules
            for key, _ in _named(get(module.node.state, "_buffers"))
        )

    @property
    def module_names(self) -> tuple[str, ...]:
        """The names of all modules in their order, as ``_metadata`` or a pickled module has them."""
        if self.modules:
            return tuple(module.prefix.removesuffix(".") for module in self.modules)
        state = self.node.state if isinstance(self.node, Object) else None
        return tuple(key for key, _ in _named(get(state, "_metadata")))


_UTILS = "torch.nn.utils"
_PRUNING = """
    Identity RandomUnstructured L1Unstructured RandomStructured LnStructured CustomFromMask PruningContainer
"""
#: The classes of hooks that compute a weight: the attribute that names it, what it is computed of.
_HOOKS = {
    f"{_UTILS}.weight_norm.WeightNorm": ("name", ("_g", "_v")),
    f"{_UTILS}.spectral_norm.SpectralNorm": ("name", ("_orig", "_u", "_v")),
    **{f"{_UTILS}.prune.{name}": ("_tensor_name", ("_orig", "_mask")) for name in _PRUNING.split()},
}


@dataclass(frozen=True, slots=True)
class ComputingHook:
    """A hook of torch's that computes a weight, in a pickled module: its name, dim, and what it reads."""

    name: str
    dim: int | None
    inputs: tuple[str, ...]


def computing_hook(hook: Value) -> ComputingHook | None:
    """What a hook computes, if its class is one of torch's that compute weights; a subclass may differ."""
    if class_of(hook) not in _HOOKS:
        return None
    attribute, ends = _HOOKS[class_of(hook)]
    name, dim = get(hook.state, attribute), get(hook.state, "dim")
    if not isinstance(name, str) or not (dim is None or isinstance(dim, int)):
        return None
    return ComputingHook(str(name), None if dim == -1 else dim, tuple(name + end for end in ends))


class _Names:
    """A limit on the memory for names: references make many and long ones out of few bytes."""

    def __init__(self, held: int) -> None:
        # A tensor with a name of its own takes more bytes of a pickle than that.
        self.left = (16 << 20) + 4 * held

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
    """The pairs of a mapping whose keys are strings, themselves where they can be: there may be many."""
    pairs = (pair for pair in mapping_pairs(value) or () if isinstance(pair[0], str))
    return [pair if type(pair[0]) is str else (str(pair[0]), pair[1]) for pair in pairs]


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


#: Bits of a number that is a key: hashes are, and one of thousands takes long to be written in digits.
_LONGEST_KEY = 512


def _children(value: Value) -> Iterator[tuple[Key, Value, Value]]:
    """The values below a value: the key of each, the value that directly holds it, and itself.

    Items of mappings and lists, and attributes of objects.
    """
    if isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield index, value, item
        return
    for key, item in mapping_pairs(value) or ():
        if isinstance(key, str) or (isinstance(key, int) and key.bit_length() <= _LONGEST_KEY):
            yield key, value, item
    if not isinstance(value, Object):
        return
    if isinstance(value.args, tuple):  # a namedtuple is made of its items
        for index, item in enumerate(value.args):
            yield index, value.args, item
    # The state of a class with slots is (its dict or None, its slots).
    for state in value.state if isinstance(value.state, tuple) else (value.state,):
        for key, item in state.pairs if isinstance(state, Dict) else ():
            if isinstance(key, str) and key != "_metadata":
                yield key, state, item


def is_optimizer(value: Value) -> bool:
    """Whether a value is an optimizer: a dict, or an object, with ``state`` and ``param_groups``."""
    mapping = value.state if isinstance(value, Object) and isinstance(value.state, Dict) else value
    names = {key for key, _ in mapping_pairs(mapping) or () if isinstance(key, str)}
    return {"state", "param_groups"} <= names


@dataclass(frozen=True, slots=True)
class FoundItem:
    """An optimizer, or another value beside state dicts: its path, the record that holds it, and itself."""

    path: str
    holder: Value
    node: Value


@dataclass(frozen=True, slots=True)
class Contents:
    """The state dicts and optimizers of a pickle, and the rest: its siblings."""

    state_dicts: tuple[FoundStateDict, ...]
    optimizers: tuple[FoundItem, ...]
    siblings: tuple[FoundItem, ...]


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


def find_contents(root: Value, held: int) -> Contents:
    """Find every state dict and optimizer below ``root``, outermost first, in the order of the file.

    Mappings of NumPy arrays count where there is no state dict of tensors: beside one, they are statistics
    and the like. ``held`` counts the bytes that hold all this. Raises ``FormatError`` where two of them have
    one path, and where there are more and longer names than so many bytes hold.
    """
    found, has_arrays = _find(root, lambda value: read_tensor(value) is not None, held)
    return _find(root, is_array, held)[0] if has_arrays and not found.state_dicts else found


def _find(root: Value, is_tensor: Callable[[Value], bool], held: int) -> tuple[Contents, bool]:
    """What is below ``root``, where the state dicts are those of such tensors; and whether it met arrays."""
    states: list[FoundStateDict] = []
    optimizers: dict[int, list[FoundItem]] = {}  # by the record, which two holders may share
    top = _Place(None, "")
    todo: list[tuple[_Place, Value, Value]] = [(top, None, root)]
    seen: set[int] = set()
    branches: list[tuple[_Place, Value]] = []  # values that are searched and are not state dicts
    ends: list[_Place] = []
    names = _Names(held)
    has_arrays = False
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
                found = FoundItem(place.path, holder, value)
                optimizers.setdefault(id(value), []).append(found)
            continue
        if is_module(value) or is_script_module(value):
            ends.append(place)
            names.spend(*map(str, place.keys))
            states.append(_module_state(place.keys, value, names))
            continue
        items = _named(value)
        if _is_state_dict(items, is_tensor):
            ends.append(place)
            names.spend(*map(str, place.keys))
            for key, _ in items:
                names.spend(key)
            states.append(FoundStateDict(place.keys, value, tuple(items)))
        else:
            branches.append((place, value))
        below = []
        for last, direct, item in _children(value):
            if not isinstance(item, (tuple, list, Dict, Object)) or read_tensor(item):
                continue
            if is_array(item):
                has_arrays = True
            else:
                below.append((_Place(place, last), direct, item))
        todo += reversed(below)
    _check_paths(states)
    every = tuple(item for of_one in optimizers.values() for item in of_one)
    return Contents(tuple(states), every, tuple(_siblings(branches, ends, top))), has_arrays


def _is_state_dict(items: Sequence[tuple[str, Value]], is_tensor: Callable[[Value], bool]) -> bool:
    """Whether a mapping with these items is a state dict.

    Single numbers beside other values are settings and scores, such as those of Lightning's callbacks.
    """
    tensors = [item for _, item in items if is_tensor(item)]
    others = any(not name.endswith("_extra_state") for name, item in items if not is_tensor(item))
    return any(not others or (record := read_tensor(item)) is None or record.shape for item in tensors)


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
) -> Iterator[FoundItem]:
    """The values beside the ways to state dicts and optimizers, and everything at the top."""
    led = {(id(place.above), place.key) for end in ends for place in end.way}
    ways = {above for above, _ in led} | {id(top)}
    for place, value in branches:
        if id(place) in ways:
            for key, holder, item in _children(value):
                if (id(place), key) not in led:
                    yield FoundItem(_path((*place.keys, key)), holder, item)
