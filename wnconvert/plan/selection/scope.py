"""The state dicts that an output has, and what it leaves out; pure, and shared by all planners."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from wnconvert.errors import ArgumentError
from wnconvert.frozen import dataclass
from wnconvert.layers.schemes import Layer, owner_of
from wnconvert.messages import listed, option
from wnconvert.plan.order import before_children, behind_module
from wnconvert.plan.plan import LeftOut, PlannedStateDict
from wnconvert.plan.record.history import Record
from wnconvert.plan.steps import Keep
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import Entry, StateDict, StoredTensor, Tree

__all__ = [
    "Scope",
    "choose",
    "elements_of",
    "in_torch_order",
    "kept_as_is",
    "leading",
    "lost_texts",
    "scope_of",
    "tie_notes",
]


@dataclass(frozen=True, slots=True)
class Scope:
    """The state dicts that the output has, and what it leaves out because of that.

    ``only`` is the path of the one state dict that it keeps, or None if it keeps everything.
    """

    states: tuple[StateDict, ...]
    only: str | None = None
    dropped: tuple[LeftOut, ...] = ()


def choose(tree: Tree, only: str | None) -> tuple[StateDict, ...]:
    """The state dict that ``--only`` names, or all. Raises ``ArgumentError`` if none is there."""
    if only is None:
        return tree.state_dicts
    chosen = tuple(state for state in tree.state_dicts if state.shown == only)
    if not chosen:
        offered = listed((state.shown for state in tree.state_dicts), 8)
        raise ArgumentError(
            f"there is no state dict at {only!r}",
            fix=f"{option('only')} one of: {offered or '(there is none)'}",
        )
    return chosen


def scope_of(
    tree: Tree, container: Container, chosen: Sequence[StateDict], only: str | None, busy: Iterable[str]
) -> Scope:
    """The part of the ``chosen`` state dicts that a file of ``container`` can hold; ``busy`` have layers.

    Raises ``ArgumentError`` where a file that holds one state dict would have to hold several.
    """
    facts = container.facts
    if facts.holds_trees and only is None:
        return Scope(tuple(chosen))
    alone = _without_others(_the_one(chosen, set(busy), facts.noun), tree)
    dropped = _dropped_beside(tree, alone)
    if not facts.holds_trees:
        dropped += tuple(_not_tensors(alone, facts.noun))
        alone = replace(alone, entries=tuple(entry for entry in alone.entries if entry.tensor))
    return Scope((alone,), alone.path, dropped)


def in_torch_order(names: Sequence[str], layers: Iterable[Layer]) -> list[str]:
    """The keys of a state dict with the parts of these layers in the places where torch registers them."""
    hooked: dict[str, str] = {}
    buffers: dict[str, str] = {}
    parametrized: dict[str, str] = {}
    for layer in layers:
        owner = owner_of(layer.name)
        own = dict.fromkeys((part.name for part in layer.parameters), owner)
        more = dict.fromkeys((part.name for part in layer.buffers), owner)
        if layer.form == "parametrize":
            parametrized |= own | more
        else:
            hooked |= own
            buffers |= more
    found = before_children([name for name in names if name not in buffers], hooked)
    found = before_children([*found, *(name for name in names if name in buffers)], buffers, lambda _: False)
    return behind_module(found, parametrized)


def kept_as_is(state: StateDict) -> PlannedStateDict:
    """Every key of a state dict as it is."""
    steps = (Keep(entry.name, entry.name, is_tensor=entry.tensor is not None) for entry in state.entries)
    return PlannedStateDict(state.path, tuple(steps))


def tie_notes(state: StateDict, planned: PlannedStateDict, noun: str) -> Iterable[str]:
    """Notes on names that share memory in the source; the output, which is ``noun``, cannot share it."""
    tensors = state.tensors
    tied: dict[object, list[str]] = {}
    for step in planned.steps:
        read = [tensors[name] for name in step.sources if name in tensors]
        if read and all(tensor.info.numel for tensor in read):
            tied.setdefault((type(step), *map(elements_of, read)), []).append(step.name)
    for names in tied.values():
        if len(names) > 1:
            yield f"{listed(names)} share memory; {noun} holds a copy of each"


def lost_texts(tree: Tree, record: Record, noun: str) -> Iterable[LeftOut]:
    """The texts that the output, which is ``noun``, has no place for."""
    if set(tree.metadata) - {"format"}:
        yield LeftOut("metadata", f"{noun} holds only tensors")
    if record:
        yield LeftOut(
            "the record of changes", f"{noun} holds only tensors, so `split` needs --like or --layers"
        )


def elements_of(tensor: StoredTensor) -> tuple[object, ...]:
    """A key that is equal for two tensors of the same elements in any order, transposed ones too."""
    return (tensor.storage, tensor.info.dtype, tensor.offset, tensor.info.numel)


def _the_one(chosen: Sequence[StateDict], busy: set[str], noun: str) -> StateDict:
    """The one state dict that the output can hold: the only one, or the only one with layers."""
    candidates = [state for state in chosen if state.path in busy] or chosen
    if len(candidates) == 1:
        return candidates[0]
    paths = listed(state.shown for state in candidates)
    if not candidates:
        raise ArgumentError(f"there is no state dict in it that {noun} could hold", fix="-o OUT.pt")
    raise ArgumentError(
        f"{noun} holds one state dict, and there are {len(candidates)}: {paths}",
        fix=f"{option('only')} {candidates[0].shown} (or another of them), or -o OUT.pt for all",
    )


def _without_others(state: StateDict, tree: Tree) -> StateDict:
    """A state dict without the keys that lead to others: ``{"step": tensor, "model": {…}}`` has two."""
    leads = leading(tree, state.path)
    kept = (entry for entry in state.entries if entry.tensor or _below(state, entry) not in leads)
    return replace(state, entries=tuple(kept))


def leading(tree: Tree, apart: str) -> set[str]:
    """The paths that lead to state dicts other than the one at ``apart``, and to optimizers."""
    found: set[str] = set()
    for path in (*(other.path for other in tree.state_dicts if other.path != apart), *tree.optimizers):
        while path not in found:
            found.add(path)
            path = path.rpartition(".")[0]  # noqa: PLW2901 - up to the root
    return found


def _below(state: StateDict, entry: Entry) -> str:
    return f"{state.path}.{entry.name}" if state.path else entry.name


def _dropped_beside(tree: Tree, alone: StateDict) -> tuple[LeftOut, ...]:
    paths = [*(state.path for state in tree.state_dicts), *tree.optimizers]
    siblings = [sibling.path for sibling in tree.siblings]
    others = [path for path in paths if path not in ("", alone.path)] + siblings
    if alone.path and "" in paths:  # the root has no name; what else is in it has
        led = {path.split(".")[0] for path in (*paths, *siblings)}
        root = tree.state_dict("")
        others += [entry.name for entry in root.entries if entry.name not in led]
    return tuple(
        LeftOut(path, f"only {alone.path or 'the state dict'} is kept") for path in dict.fromkeys(others)
    )


def _not_tensors(state: StateDict, noun: str) -> Iterable[LeftOut]:
    for entry in state.entries:
        if entry.tensor is None:
            yield LeftOut(_below(state, entry), f"it is not a tensor, and {noun} holds only tensors")
