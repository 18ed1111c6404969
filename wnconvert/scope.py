"""Which state dicts a conversion is about, which layers in them, and what the output leaves out.

What the planners of all verbs share; pure like them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from wnconvert.dims import dim_of
from wnconvert.errors import ArgumentError, LayerError
from wnconvert.order import before_children, behind_module
from wnconvert.plan import Dropped, Fold, Keep, PlannedStateDict
from wnconvert.schemes import Found, Layer, Refused, Selection, find, owner_of
from wnconvert.tensors import Entry, StateDict, StoredTensor, Tree
from wnconvert.words import listed

__all__ = ["Scope", "check_refused", "check_selection", "choose", "find_layers", "idle_excludes"]
__all__ += ["elements_of", "kept_as_is", "looks_like_layers", "notes_on", "optimizers_left_out", "placed"]
__all__ += ["refuse_modules", "scope_of", "taken", "tie_notes"]


@dataclass(frozen=True, slots=True)
class Scope:
    """The state dicts that the output has, and what it leaves out for that.

    ``only`` is the path of the one state dict that it keeps, None where it keeps all siblings.
    """

    states: tuple[StateDict, ...]
    only: str | None = None
    dropped: tuple[Dropped, ...] = ()


def choose(tree: Tree, only: str | None) -> tuple[StateDict, ...]:
    """The state dicts that ``--only`` names, or all. Raises ``ArgumentError`` where it names none."""
    if only is None:
        return tree.state_dicts
    chosen = tuple(state for state in tree.state_dicts if _shown(state) == only)
    if not chosen:
        raise ArgumentError(
            f"there is no state dict at {only!r}",
            fix=f"--only one of: {listed(map(_shown, tree.state_dicts), 8) or '(there is none)'}",
        )
    return chosen


def scope_of(
    tree: Tree, container: str, chosen: Sequence[StateDict], only: str | None, busy: Iterable[str]
) -> Scope:
    """What a file of ``container`` takes of the ``chosen`` state dicts; ``busy`` are paths with layers.

    Raises ``ArgumentError`` where a safetensors file would have to hold several state dicts.
    """
    if container != "safetensors" and only is None:
        return Scope(tuple(chosen))
    alone = _without_others(_the_one(chosen, set(busy)), tree)
    dropped = _dropped_beside(tree, alone)
    if container == "safetensors":
        dropped += tuple(_not_tensors(alone))
        alone = replace(alone, entries=tuple(entry for entry in alone.entries if entry.tensor))
    return Scope((alone,), alone.path, dropped)


def find_layers(state: StateDict, selection: Selection) -> Found:
    """The layers of a state dict as :func:`wnconvert.schemes.find` sees them, and as its hooks say."""
    found = find((tensor.info for tensor in state.tensors.values()), selection)
    others = {entry.name for entry in state.entries if entry.tensor is None}
    layers, refused = [], list(found.refused)
    for layer in found.layers:
        leave = f"--exclude '{layer.name}' leaves it as it is"
        if layer.name in others:
            reason = "something that is no plain tensor has the name of its weight"
            refused.append(Refused(layer.name, reason, leave))
        # A pickled module says its dim; g's shape must say the same (of one element, it says nothing).
        elif layer.name in state.dims and not _agrees(layer, state.dims[layer.name]):
            reason = (
                f"its WeightNorm hook says dim {state.dims[layer.name]}, "
                f"g {layer.g.shape} beside v {layer.v.shape} does not"
            )
            refused.append(Refused(layer.name, reason, leave))
        else:
            layers.append(layer)
    return replace(found, layers=tuple(layers), refused=tuple(refused))


def _agrees(layer: Layer, stated: int | None) -> bool:
    try:
        dim = dim_of(layer.g.shape, layer.v.shape, stated).dim
    except LayerError:
        return False
    return dim == layer.dim or layer.g.numel == 1


def looks_like_layers(found: Found) -> list[str]:
    """The weights of everything that looks like a layer, wanted or not."""
    layers = (layer.name for layer in found.layers)
    return [*layers, *(no.name for no in found.refused), *found.unwanted]


def check_selection(selection: Selection, names: Sequence[str], kind: str = "layer") -> None:
    """A glob that was meant to choose among ``names`` and chose nothing is a slip of the pen."""
    for glob in selection.layers if names else ():
        if not any(Selection(layers=(glob,)).wants(name) for name in names):
            raise ArgumentError(
                f"--layers {glob!r} matches no {kind}",
                fix=f"the {kind}s are: {listed(dict.fromkeys(names))}",
            )


def idle_excludes(selection: Selection, names: Sequence[str]) -> tuple[str, ...]:
    """A note on each glob that was meant to leave something out and met nothing."""
    return tuple(
        f"--exclude {glob!r} matches no layer"
        for glob in selection.exclude
        if all(Selection(exclude=(glob,)).wants(name) for name in names)
    )


def check_refused(refused: Mapping[str, Sequence[Refused]], verb: str) -> None:
    """Raise one ``LayerError`` for all layers that are refused, by the paths of their state dicts."""
    items = [(path, item) for path, of_path in refused.items() for item in of_path]
    if len(items) == 1:
        path, item = items[0]
        raise LayerError(item.reason, where=_where(path, item.name), fix=item.fix)
    if items:
        lines = "".join(f"\n  {_where(path, item.name)}: {item.reason}" for path, item in items[:10])
        more = f"\n  and {len(items) - 10} more" if len(items) > 10 else ""
        fixes = {item.fix for _, item in items}
        # What helps beside leaving them is said where it is the same for all.
        ways = {item.fix.removesuffix(f"--exclude '{item.name}' leaves it as it is") for _, item in items}
        way = ways.pop() if len(ways) == 1 else ""
        fix = fixes.pop() if len(fixes) == 1 else f"{way}--exclude leaves them as they are"
        raise LayerError(f"{len(items)} layers cannot be {verb}:{lines}{more}", fix=fix)


def _where(path: str, name: str) -> str:
    return f"{path}: layer {name}" if path else f"layer {name}"


def taken(state: StateDict, layers: Iterable[Layer]) -> Iterable[Refused]:
    """Of layers as they will be, those of which a key is there already, as something else."""
    there = {entry.name for entry in state.entries}
    for layer in layers:
        if name := next((half.name for half in layer.halves if half.name in there), ""):
            leave = f"--exclude '{layer.name}' leaves it as it is"
            yield Refused(layer.name, f"the name {name} is taken", leave)


def refuse_modules(states: Iterable[StateDict], done: str, verb: str) -> None:
    """Refuse to change the form of whole pickled modules.

    The class of a parametrized module is made at run time: no pickle can name it. Raises ``LayerError``.
    """
    for state in states:
        if state.is_module:
            raise LayerError(
                f"a whole pickled module, whose form is in its code too, cannot be {done} in the file",
                where=state.path,
                fix=f"wnconvert fold it; -o OUT.safetensors for its tensors alone; or load it and use {verb}",
            )


def placed(names: Sequence[str], layers: Iterable[Layer]) -> list[str]:
    """The keys of a state dict with the pairs of these layers in the places where torch registers them."""
    found = list(names)
    by_form: dict[str, dict[str, str]] = {}
    for layer in layers:
        owners = by_form.setdefault(layer.form, {})
        owners |= {half.name: owner_of(layer.name) for half in layer.halves}
    for form, owners in by_form.items():
        found = (behind_module if form == "parametrize" else before_children)(found, owners)
    return found


def kept_as_is(state: StateDict) -> PlannedStateDict:
    """Every key of a state dict as it is."""
    steps = (Keep(entry.name, entry.name, is_tensor=entry.tensor is not None) for entry in state.entries)
    return PlannedStateDict(state.path, tuple(steps))


def notes_on(found: Found) -> Iterable[str]:
    """What a user should know of the layers of a state dict, and of halves of some."""
    for layer in found.layers:
        if layer.note:
            yield f"{layer.name}: {layer.note}"
    for half in found.halves:
        yield f"{half} stands without its other half and is left as it is"


def optimizers_left_out(tree: Tree, why: str) -> tuple[Dropped, ...]:
    """All optimizers of a file as left out."""
    return tuple(Dropped(path, why) for path in tree.optimizers)


def tie_notes(state: StateDict, planned: PlannedStateDict) -> Iterable[str]:
    """Names of the output that are the same elements in the source, which safetensors cannot share."""
    tensors = state.tensors
    tied: dict[object, list[str]] = {}
    for step in planned.steps:
        if isinstance(step, Keep):
            sources: tuple[str, ...] = (step.source,)
        else:
            layer = step.layer
            sources = (layer.g.name, layer.v.name) if isinstance(step, Fold) else (layer.name,)
        read = [tensors[name] for name in sources if name in tensors]
        if read and all(tensor.info.numel for tensor in read):
            kind = "" if isinstance(step, (Keep, Fold)) else type(step).__name__
            tied.setdefault((kind, *map(elements_of, read)), []).append(step.name)
    for names in tied.values():
        if len(names) > 1:
            yield f"{listed(names)} share memory; a safetensors file holds a copy of each"


def elements_of(tensor: StoredTensor) -> tuple[object, ...]:
    """Equal for two tensors of the same elements in any order: what is transposed is tied too."""
    return (tensor.storage, tensor.info.dtype, tensor.offset, tensor.info.numel)


def _shown(state: StateDict) -> str:
    return state.path or "."


def _the_one(chosen: Sequence[StateDict], busy: set[str]) -> StateDict:
    """The one state dict that a safetensors file can hold: the only one, or the only one with layers."""
    candidates = [state for state in chosen if state.path in busy] or chosen
    if len(candidates) == 1:
        return candidates[0]
    paths = listed(map(_shown, candidates))
    if not candidates:
        raise ArgumentError(
            "there is no state dict in it that a safetensors file could hold", fix="-o OUT.pt"
        )
    raise ArgumentError(
        f"a safetensors file holds one state dict, and there are {len(candidates)}: {paths}",
        fix=f"--only {_shown(candidates[0])} (or another of them), or -o OUT.pt for all",
    )


def _without_others(state: StateDict, tree: Tree) -> StateDict:
    """A state dict without the keys that lead to others: ``{"step": tensor, "model": {…}}`` has two."""
    leading: set[str] = set()
    for path in (*(other.path for other in tree.state_dicts if other.path != state.path), *tree.optimizers):
        while path not in leading:
            leading.add(path)
            path = path.rpartition(".")[0]  # noqa: PLW2901 - up to the root
    kept = (entry for entry in state.entries if entry.tensor or _below(state, entry) not in leading)
    return replace(state, entries=tuple(kept))


def _below(state: StateDict, entry: Entry) -> str:
    return f"{state.path}.{entry.name}" if state.path else entry.name


def _dropped_beside(tree: Tree, alone: StateDict) -> tuple[Dropped, ...]:
    paths = [state.path for state in tree.state_dicts]
    paths += [*tree.optimizers, *(sibling.path for sibling in tree.siblings)]
    others = [path for path in paths if path not in ("", alone.path)]
    if alone.path and "" in paths:  # the root has no name; what else is in it has
        led = {path.split(".")[0] for path in paths}
        root = next(state for state in tree.state_dicts if not state.path)
        others += [entry.name for entry in root.entries if entry.name not in led]
    return tuple(
        Dropped(path, f"only {alone.path or 'the state dict'} is kept") for path in dict.fromkeys(others)
    )


def _not_tensors(state: StateDict) -> Iterable[Dropped]:
    for entry in state.entries:
        if entry.tensor is None:
            yield Dropped(_below(state, entry), "it is no tensor, and a safetensors file holds tensors alone")
