"""Trees whose keys have new names: the keys, the record of earlier runs, the modules in ``_metadata``.

A pair goes by the name of its weight, so that it stays a pair: what renames ``conv.weight`` renames
``conv.weight_g`` and ``conv.parametrizations.weight.original0``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from wnconvert.errors import ArgumentError
from wnconvert.frozen import dataclass
from wnconvert.layers.find import pairs_in
from wnconvert.layers.schemes import owner_of, renamed_halves
from wnconvert.messages import counted, printable, raise_listed
from wnconvert.plan.names.renaming import Renaming
from wnconvert.plan.record.history import renamed_record
from wnconvert.plan.selection.scope import leading
from wnconvert.tensors.tree import Entry, StateDict, StoredTensor, Tree

__all__ = ["NewNames", "renamed_keys", "renamed_modules", "renamed_state", "renamed_tree", "weights_of"]


#: What gives a name its new one.
_Namer: TypeAlias = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class NewNames:
    """The new names of the keys of one state dict, by the old ones, and the rules that made them."""

    keys: Mapping[str, str]
    rules: Renaming

    @property
    def old(self) -> dict[str, str]:
        """The old names by the new ones."""
        return {new: old for old, new in self.keys.items()}

    @property
    def changed(self) -> int:
        """How many keys are renamed."""
        return sum(old != new for old, new in self.keys.items())


def weights_of(state: StateDict) -> dict[str, str]:
    """The name by which each key goes: that of its weight for a half of a pair, else its own."""
    found = {entry.name: entry.name for entry in state.entries}
    for layer in pairs_in(state).layers:
        found |= dict.fromkeys((half.name for half in layer.halves), layer.name)
    return found


def renamed_keys(
    tree: Tree, states: Sequence[StateDict], rules: Renaming, beside: Iterable[str] = ()
) -> dict[str, NewNames]:
    """The new names of these state dicts of a tree, by path.

    State dicts whose names have no modules, such as the state of a random number generator beside a model,
    keep their names; so do keys that lead to other state dicts. ``beside`` are names elsewhere, which a rule
    may meet too. Raises ``ArgumentError`` for a rule that meets nothing, and for names that become one.
    """
    if not rules:
        return {}
    models = [state for state in states if any("." in name for name in state.tensors)] or list(states)
    ours = {state.path: _renamable(state, leading(tree, state.path)) for state in models}
    rules.check_met(
        [*dict.fromkeys(name for of_state in ours.values() for name in of_state.values()), *beside]
    )
    return {state.path: NewNames(_checked(state, rules, ours[state.path]), rules) for state in models}


def _renamable(state: StateDict, leads: set[str]) -> dict[str, str]:
    """The keys that may be renamed: tensors, and what else belongs to modules, as extra state does."""
    held = {entry.name for entry in state.entries if entry.tensor or entry.is_opaque or "." in entry.name}
    at = f"{state.path}." if state.path else ""
    return {key: name for key, name in weights_of(state).items() if key in held and at + key not in leads}


def _checked(state: StateDict, namer: _Namer, ours: Mapping[str, str]) -> dict[str, str]:
    keys = _new_keys(state, namer, ours)
    by_new: dict[str, list[str]] = {}
    for old, new in keys.items():
        by_new.setdefault(new, []).append(old)
    if "" in by_new:
        raise ArgumentError(f"nothing would be left of the name {by_new[''][0]}", fix="give other names")
    clashes = {new: old for new, old in by_new.items() if len(old) > 1}
    raise_listed(
        ArgumentError,
        f"{counted(len(clashes), 'name')} would be given twice",
        [
            (printable(new), f"the new name of {' and of '.join(map(printable, old))}")
            for new, old in clashes.items()
        ],
        fix="give other names: none of the keys may be lost",
    )
    return keys


def _new_keys(state: StateDict, namer: _Namer, ours: Mapping[str, str]) -> dict[str, str]:
    """The new name of each key; those that are not among ``ours`` keep theirs."""
    keys = {entry.name: namer(entry.name) if entry.name in ours else entry.name for entry in state.entries}
    for layer in pairs_in(state).layers:
        new = namer(layer.name)
        for half, name in zip(layer.halves, renamed_halves(layer, namer), strict=True):
            keys[half.name] = name if new != layer.name else half.name
    return keys


def renamed_state(state: StateDict, namer: _Namer, keys: Mapping[str, str] | None = None) -> StateDict:
    """A state dict with these keys, or those that ``namer`` gives; the dims of its layers follow.

    Raises ``ArgumentError`` for names that become one.
    """
    keys = _checked(state, namer, weights_of(state)) if keys is None else keys
    return replace(
        state,
        entries=tuple(_renamed_entry(entry, keys[entry.name]) for entry in state.entries),
        dims={namer(name): dim for name, dim in state.dims.items()},
        buffers=frozenset(keys.get(name, name) for name in state.buffers),
        modules=tuple(dict.fromkeys(_renamed_module(name, namer) for name in state.modules)),
    )


def _renamed_module(module: str, namer: _Namer) -> str:
    """The new name of a module; those of a weight's parametrizations go by the name of the weight."""
    owner, sign, param = module.rpartition("parametrizations.")
    if not sign:
        return namer(f"{module}." if module else "").rstrip(".")
    param, dot, number = param.partition(".")
    weight = namer(owner + param)
    above = owner_of(weight)
    return f"{above}{sign}{weight[len(above) :]}{dot}{number}"


def _renamed_entry(entry: Entry, name: str) -> Entry:
    if name == entry.name:
        return entry
    return replace(entry, name=name, tensor=_renamed_tensor(entry.tensor, name))


def _renamed_tensor(tensor: StoredTensor | None, name: str) -> StoredTensor | None:
    return None if tensor is None else replace(tensor, info=replace(tensor.info, name=name))


def renamed_tree(tree: Tree, new: Mapping[str, NewNames]) -> Tree:
    """A tree whose state dicts have new names; its record knows the same layers by them."""
    return replace(
        tree,
        state_dicts=tuple(
            renamed_state(state, new[state.path].rules, new[state.path].keys) if state.path in new else state
            for state in tree.state_dicts
        ),
        record=renamed_record(tree.record, {path: names.rules for path, names in new.items()}),
    )


def renamed_modules(modules: Sequence[str], rules: Renaming, keys: Iterable[str]) -> dict[str, str | None]:
    """The keys of ``_metadata`` under new names, each with its old one; None for a module that is new.

    A module that has nothing left below it goes, and one that holds others now comes. ``keys`` are the new
    names of tensors.

    >>> renamed_modules(["", "module", "module.conv"], Renaming(strip=("module.",)), ["conv.weight"])
    {'': 'module', 'conv': 'module.conv'}
    """
    new = {old: _new_module(old, rules) for old in modules}
    moved = {old for old, name in new.items() if name != old}
    held = {above for old in new for above in _above(old)}
    holds = {above for name in new.values() for above in _above(name)}
    holds |= {owner_of(key).rstrip(".") for key in keys}
    made: dict[str, str | None] = {}
    for old, name in new.items():
        if old in held and name not in holds:
            continue
        for above in reversed(_above(name) if old in moved else []):
            made.setdefault(above, None)
        if old in moved or made.get(name) is None:
            made[name] = old
    return made


def _new_module(old: str, rules: Renaming) -> str:
    return rules(f"{old}." if old else "").rstrip(".")


_DEEPEST = 200  # the names above a deeper module take the square of its length


def _above(module: str) -> list[str]:
    """The modules that hold a module, the nearest first; the root last."""
    found: list[str] = []
    if module.count(".") > _DEEPEST:
        return found
    while module:
        module = module.rpartition(".")[0]
        found.append(module)
    return found
