"""Plans: what every output tensor will be, as plain frozen data.

A plan is made from a :class:`~wnconvert.tensors.Tree` alone, before a tensor is read; ``--dry-run`` prints
it, and ``wnconvert.convert`` runs exactly it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from wnconvert.dims import dim_of
from wnconvert.errors import ArgumentError, LayerError
from wnconvert.schemes import Found, Layer, Refused, Selection, find
from wnconvert.tensors import DType, Entry, StateDict, StoredTensor, Tree
from wnconvert.words import listed

__all__ = ["Dropped", "Fold", "Keep", "Plan", "PlannedStateDict", "Step"]
__all__ += ["describe_layer", "metadata_gone", "plan_fold"]


@dataclass(frozen=True, slots=True)
class Keep:
    """Put the value of ``source`` under ``name``; a tensor is cast where ``dtype`` differs from its own."""

    name: str
    source: str
    dtype: DType | None = None
    is_tensor: bool = True


@dataclass(frozen=True, slots=True)
class Fold:
    """Put w = g·v/‖v‖ of ``layer`` under its name, in ``dtype``."""

    layer: Layer
    dtype: DType

    @property
    def name(self) -> str:
        """The name of the weight."""
        return self.layer.name


Step: TypeAlias = Keep | Fold


@dataclass(frozen=True, slots=True)
class PlannedStateDict:
    """The steps that make one state dict of the output, in output order.

    ``path`` is where it is in the source.
    """

    path: str
    steps: tuple[Step, ...]

    @property
    def tensors(self) -> tuple[Step, ...]:
        """The steps that put a tensor."""
        return tuple(step for step in self.steps if isinstance(step, Fold) or step.is_tensor)

    @property
    def folds(self) -> tuple[Fold, ...]:
        """The layers that are folded in it."""
        return tuple(step for step in self.steps if isinstance(step, Fold))


@dataclass(frozen=True, slots=True)
class Dropped:
    """Something of the source that the output does not have, and why."""

    path: str
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a conversion will do, whole: the output is these state dicts, less what is dropped.

    ``only`` is the path of the one state dict that the output holds, or None where it keeps all siblings.
    ``record`` is what will be written into the output so that ``split`` can restore the form.
    """

    verb: str
    container: str
    state_dicts: tuple[PlannedStateDict, ...]
    only: str | None = None
    dropped: tuple[Dropped, ...] = ()
    record: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> list[tuple[str, Fold]]:
        """Every layer that is folded, with the path of its state dict."""
        return [(planned.path, fold) for planned in self.state_dicts for fold in planned.folds]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-able data; README documents it."""
        return {
            "schema": 1,
            "verb": self.verb,
            "container": self.container,
            "only": self.only,
            "layers": [describe_layer(path, fold) for path, fold in self.layers],
            "state_dicts": [
                {"path": planned.path, "tensors": len(planned.tensors), "layers": len(planned.folds)}
                for planned in self.state_dicts
            ],
            "dropped": [{"path": item.path, "why": item.why} for item in self.dropped],
            "notes": list(self.notes),
        }


def describe_layer(path: str, fold: Fold) -> dict[str, Any]:
    """One layer of a plan as JSON-able data."""
    layer = fold.layer
    return {
        "state_dict": path,
        "name": layer.name,
        "form": layer.form,
        "dim": layer.dim,
        "shape": list(layer.v.shape),
        "dtype": str(fold.dtype),
        "rows": layer.rows,
    }


def plan_fold(
    tree: Tree,
    container: str,
    *,
    selection: Selection = Selection(),  # noqa: B008 - frozen
    only: str | None = None,
    dtype: DType | None = None,
    keep_optimizer: bool = False,
) -> Plan:
    """Plan the folding of every wanted layer of ``tree`` into a file of ``container``.

    ``container`` is ``"torch"`` (all state dicts and siblings) or ``"safetensors"`` (one state dict).
    Raises ``LayerError`` where layers are refused and ``ArgumentError`` where ``only`` or the selection
    names nothing, or a safetensors file would have to hold several state dicts.
    """
    chosen = _choose(tree, only)
    found = {state.path: _find(state, selection) for state in chosen}
    idle = _check_selection(selection, found.values())
    alone = container == "safetensors" or only is not None
    if alone:
        chosen = (_without_others(_the_one(chosen, found), tree),)
    _check_refused({state.path: found[state.path].refused for state in chosen})
    not_tensors: tuple[Dropped, ...] = ()
    if container == "safetensors":
        not_tensors = tuple(_not_tensors(chosen[0]))
        chosen = (replace(chosen[0], entries=tuple(entry for entry in chosen[0].entries if entry.tensor)),)
    planned = tuple(
        PlannedStateDict(state.path, _fold_steps(state, found[state.path].layers, dtype)) for state in chosen
    )
    dropped: tuple[Dropped, ...] = ()
    if alone:
        dropped = _dropped_beside(tree, chosen[0])
    elif any(item.folds for item in planned) and not keep_optimizer:
        dropped = _dropped_optimizers(tree)
    plan = Plan(
        "fold",
        container,
        planned,
        only=chosen[0].path if alone else None,
        dropped=(*dropped, *not_tensors),
        notes=(
            *tree.notes,
            *idle,
            *(note for state in chosen for note in _notes(found[state.path])),
            *(_tie_notes(chosen[0], planned[0]) if container == "safetensors" else ()),
        ),
    )
    return replace(plan, record=_record(tree, plan, chosen))


def metadata_gone(planned: PlannedStateDict) -> set[str]:
    """Keys of ``_metadata`` that go with parametrized keys: ``P.parametrizations``, ``.N`` and ``.N.0``."""
    mark = "parametrizations"
    left = {
        step.name[: step.name.rindex(f"{mark}.") + len(mark)]
        for step in planned.steps
        if f"{mark}." in step.name
    }
    gone: set[str] = set()
    for fold in planned.folds:
        if fold.layer.form == "parametrize":
            of_weight = fold.layer.g.name.removesuffix(".original0")
            gone |= {of_weight, f"{of_weight}.0", of_weight.rpartition(".")[0]}
    return gone - left


def _choose(tree: Tree, only: str | None) -> tuple[StateDict, ...]:
    if only is None:
        return tree.state_dicts
    chosen = tuple(state for state in tree.state_dicts if _shown(state) == only)
    if not chosen:
        raise ArgumentError(
            f"there is no state dict at {only!r}",
            fix=f"--only one of: {listed(map(_shown, tree.state_dicts), 8) or '(there is none)'}",
        )
    return chosen


def _shown(state: StateDict) -> str:
    return state.path or "."


def _find(state: StateDict, selection: Selection) -> Found:
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


def _check_selection(selection: Selection, found: Iterable[Found]) -> tuple[str, ...]:
    """A glob that was meant to choose and chose nothing is a slip of the pen; one that excludes, a note."""
    names = [
        name
        for item in found
        for name in (
            *(layer.name for layer in item.layers),
            *(no.name for no in item.refused),
            *item.unwanted,
        )
    ]
    for glob in selection.layers if names else ():
        if not any(Selection(layers=(glob,)).wants(name) for name in names):
            raise ArgumentError(
                f"--layers {glob!r} matches no layer", fix=f"the layers are: {listed(dict.fromkeys(names))}"
            )
    return tuple(
        f"--exclude {glob!r} matches no layer"
        for glob in selection.exclude
        if all(Selection(exclude=(glob,)).wants(name) for name in names)
    )


def _the_one(chosen: Sequence[StateDict], found: Mapping[str, Found]) -> StateDict:
    """The one state dict that a safetensors file can hold: the only one, or the only one with layers."""
    with_layers = [state for state in chosen if found[state.path].layers or found[state.path].refused]
    candidates = with_layers or chosen
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


def _check_refused(refused: Mapping[str, Sequence[Refused]]) -> None:
    items = [(path, item) for path, of_path in refused.items() for item in of_path]
    if len(items) == 1:
        path, item = items[0]
        raise LayerError(item.reason, where=_where(path, item.name), fix=item.fix)
    if items:
        lines = "".join(f"\n  {_where(path, item.name)}: {item.reason}" for path, item in items[:10])
        more = f"\n  and {len(items) - 10} more" if len(items) > 10 else ""
        fixes = {item.fix for _, item in items}
        fix = fixes.pop() if len(fixes) == 1 else "--exclude leaves them as they are"
        raise LayerError(f"{len(items)} layers cannot be folded:{lines}{more}", fix=fix)


def _where(path: str, name: str) -> str:
    return f"{path}: layer {name}" if path else f"layer {name}"


def _fold_steps(state: StateDict, layers: Sequence[Layer], dtype: DType | None) -> tuple[Step, ...]:
    """Every key in its place; w stands where the first half of its pair stood."""
    half_of = {half.name: layer for layer in layers for half in (layer.g, layer.v)}
    steps: dict[str, Step] = {}
    for entry in state.entries:
        layer = half_of.get(entry.name)
        if layer is None:
            is_tensor = entry.tensor is not None
            steps[entry.name] = Keep(entry.name, entry.name, _cast(entry, dtype), is_tensor)
        elif layer.name not in steps:
            steps[layer.name] = Fold(layer, dtype or layer.v.dtype)
    return tuple(steps.values())


def _cast(entry: Entry, dtype: DType | None) -> DType | None:
    if dtype is None or entry.tensor is None or not entry.tensor.info.dtype.foldable:
        return None
    return dtype if dtype != entry.tensor.info.dtype else None


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


def _dropped_optimizers(tree: Tree) -> tuple[Dropped, ...]:
    why = "optimizer state is by position, and folding changes the positions; --keep-optimizer keeps it"
    return tuple(Dropped(path, why) for path in tree.optimizers)


def _not_tensors(state: StateDict) -> Iterable[Dropped]:
    for entry in state.entries:
        if entry.tensor is None:
            yield Dropped(_below(state, entry), "it is no tensor, and a safetensors file holds tensors alone")


def _record(tree: Tree, plan: Plan, chosen: Sequence[StateDict]) -> tuple[Mapping[str, Any], ...]:
    """The record of the output: earlier steps on the state dicts that it keeps, and this fold.

    A step holds, by path in the output, what ``split`` needs to give each pair its names, shapes and
    places (among all keys that the output keeps) back.
    """
    kept = {state.path: "" if plan.container == "safetensors" else state.path for state in chosen}
    steps = []
    for step in tree.record:
        of_states = {kept[path]: layers for path, layers in step["state_dicts"].items() if path in kept}
        if of_states:
            steps.append({**step, "state_dicts": of_states})
    folded = {}
    for state, planned in zip(chosen, plan.state_dicts, strict=True):
        place = {entry.name: index for index, entry in enumerate(state.entries)}
        if planned.folds:
            folded[kept[state.path]] = [_fold_origin(fold.layer, place) for fold in planned.folds]
    return (*steps, *([{"verb": "fold", "state_dicts": folded}] if folded else ()))


def _fold_origin(layer: Layer, place: Mapping[str, int]) -> dict[str, Any]:
    halves = {
        half: {
            "name": info.name,
            "shape": list(info.shape),
            "dtype": str(info.dtype),
            "place": place[info.name],
        }
        for half, info in (("g", layer.g), ("v", layer.v))
    }
    return {"name": layer.name, "form": layer.form, "dim": layer.dim, **halves}


def _notes(found: Found) -> Iterable[str]:
    for layer in found.layers:
        if layer.note:
            yield f"{layer.name}: {layer.note}"
    for half in found.halves:
        yield f"{half} stands without its other half and is left as it is"


def _tie_notes(state: StateDict, planned: PlannedStateDict) -> Iterable[str]:
    """Names of the output that are the same elements in the source, which safetensors cannot share."""
    tensors = state.tensors
    tied: dict[object, list[str]] = {}
    for step in planned.steps:
        sources = (step.layer.g.name, step.layer.v.name) if isinstance(step, Fold) else (step.source,)
        read = [tensors[name] for name in sources if name in tensors]
        if read and all(tensor.info.numel for tensor in read):
            tied.setdefault(tuple(map(_elements, read)), []).append(step.name)
    for names in tied.values():
        if len(names) > 1:
            yield f"{listed(names)} share memory; a safetensors file holds a copy of each"


def _elements(tensor: StoredTensor) -> tuple[object, ...]:
    """Equal for two tensors of the same elements in any order: what is transposed is tied too."""
    return (tensor.storage, tensor.info.dtype, tensor.offset, tensor.info.numel)
