"""The layers of a state dict that are wanted, and the errors and notes about those that are not converted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from wnconvert.errors import ArgumentError, LayerError
from wnconvert.layers.conventions import CONVENTIONS, has_eps
from wnconvert.layers.dims import dim_of
from wnconvert.layers.evidence import notes_on_passed
from wnconvert.layers.find import FoundPairs, pairs_in
from wnconvert.layers.kinds.others import along
from wnconvert.layers.schemes import Layer, Refused, Selection, fix_of, is_pair
from wnconvert.layers.telling.asked import SaidStandardize
from wnconvert.messages import listed, option, raise_listed, told
from wnconvert.plan.selection.ties import refused_for_ties
from wnconvert.tensors.tree import StateDict

__all__ = [
    "check_eps",
    "check_names_tell",
    "check_recipe_fits",
    "check_refused",
    "check_selection",
    "find_layers",
    "fitting_layers",
    "idle_excludes",
    "looks_like_layers",
    "name_conflicts",
    "notes_on",
    "notes_on_left",
    "notes_on_misfits",
    "optimizer_is_stale",
    "refuse_modules",
]


def find_layers(state: StateDict, selection: Selection) -> FoundPairs:
    """The layers of a state dict by names and shapes, and by its hooks, which name layers and state dims."""
    named = frozenset((*selection.named, *state.dims))
    return fitting_layers(state, pairs_in(state, replace(selection, named=named)))


def fitting_layers(state: StateDict, found: FoundPairs) -> FoundPairs:
    """What was found by names and shapes, with those layers refused that the state dict speaks against."""
    others = {entry.name for entry in state.entries if entry.tensor is None}
    tied = {item.name: item for item in refused_for_ties(state, found.layers)}
    layers, refused = [], [*found.refused, *tied.values()]
    for layer in found.layers:
        if layer.name in tied:
            continue
        if taken := next((name for name in (layer.name, layer.bias) if name in others), ""):
            what = "weight" if taken == layer.name else "bias"
            reason = f"a value that is not a plain tensor has the name of its {what}"
            refused.append(Refused(layer.name, reason))
        elif layer.name in state.dims:
            stated = _as_stated(layer, state.dims[layer.name])
            if isinstance(stated, Layer):
                layers.append(stated)
            else:
                refused.append(stated)
        else:
            layers.append(layer)
    return replace(found, layers=tuple(layers), refused=tuple(refused))


def _as_stated(layer: Layer, dim: int | None) -> Layer | Refused:
    """A layer of a pickled module, which states its dim; the shapes must say the same."""
    if is_pair(layer):
        does_not = f"g {layer.g.shape} beside v {layer.v.shape} does not"
        reason = f"its WeightNorm hook says dim {dim}, {does_not}"
        return layer if _agrees(layer, dim) else Refused(layer.name, reason)
    try:
        return along(layer, dim)
    except LayerError as error:
        return Refused(layer.name, f"its hook says dim {dim}, {error.what}")


def _agrees(layer: Layer, stated: int | None) -> bool:
    """Whether g's shape says the same; of one element, it says nothing."""
    try:
        dim = dim_of(layer.g.shape, layer.v.shape, stated).dim
    except LayerError:
        return False
    return dim == layer.dim or layer.g.numel == 1


def looks_like_layers(found: FoundPairs) -> list[str]:
    """The weights of everything that looks like a layer, wanted or not."""
    layers = (layer.name for layer in found.layers)
    passed = (item.name for item in found.passed)
    return [*layers, *(no.name for no in found.refused), *passed, *found.unwanted]


def check_selection(selection: Selection, names: Sequence[str], kind: str = "layer") -> None:
    """Raise ``ArgumentError`` for a glob that matches none of the ``names``: it is a typing error."""
    for glob in selection.layers if names else ():
        if not any(Selection(layers=(glob,)).wants(name) for name in names):
            raise ArgumentError(
                f"{option('layers', glob=glob)} matches no {kind}",
                fix=f"the {kind}s are: {listed(dict.fromkeys(names))}",
            )


def idle_excludes(selection: Selection, names: Sequence[str]) -> tuple[str, ...]:
    """A note on each ``exclude`` glob that matches no layer."""
    return tuple(
        f"{option('exclude', glob=glob)} matches no layer"
        for glob in selection.exclude
        if all(Selection(exclude=(glob,)).wants(name) for name in names)
    )


def check_refused(refused: Mapping[str, Sequence[Refused]], verb: str) -> None:
    """Raise one ``LayerError`` for all layers that are refused, by the paths of their state dicts."""
    items = [(path, item) for path, of_path in refused.items() for item in of_path]
    raise_listed(
        LayerError,
        f"{len(items)} layers cannot be {verb}",
        [(_where(path, item.name), item.reason) for path, item in items],
        fix=fix_of([item for _, item in items]) if items else "",
    )


def check_recipe_fits(found: Mapping[str, FoundPairs], selection: Selection) -> None:
    """Raise ``LayerError`` if what tells norms is of none of these state dicts, which are by their paths."""
    misfits = [(path, item.misfit) for path, item in found.items() if item.misfit]
    if len(misfits) == len(found):
        near = [(path, item.misfit) for path, item in found.items() if not item.is_foreign]
        raise_listed(
            LayerError,
            f"{_teller(selection)} fits none of {len(found)} state dicts",
            [(_of_state(path), f"{_teller(selection)} does not fit: {why}") for path, why in near or misfits],
            fix=f"{_own(selection)}; --strip-prefix where the names have a prefix more",
        )


def check_eps(found: Iterable[FoundPairs], selection: Selection) -> None:
    """Raise ``ArgumentError`` for an eps that is given where no layer divides by a norm with one."""
    if selection.eps is None:
        return
    forms = list(filter(has_eps, CONVENTIONS))
    if not any(layer.form in forms for each in found for layer in each.layers):
        raise ArgumentError(
            f"{option('eps')} belongs to {option('norm')}, or to layers of {listed(forms)}: there are none",
            fix="say that too, or leave it out",
        )


def check_names_tell(found: Mapping[str, FoundPairs]) -> None:
    """Raise ``LayerError`` where names tell no layer for any of the norms of these state dicts, by path."""
    left = _left(found)
    if left and not any(layer.grade == "names" for of_path in found.values() for layer in of_path.layers):
        recipe, pair = option("recipe", metavar="FILE"), option("norm", glob="NORM=LAYER")
        raise_listed(
            LayerError,
            f"names tell the layer of none of {len(left)} norms",
            [(norm, f"the norm is not told by names: {reason}") for norm, reason in left],
            fix=f"{recipe}, made with the model's code; or {pair}",
        )


def notes_on_left(found: Mapping[str, FoundPairs]) -> Iterable[str]:
    """A note on each norm that names do not tell the layer of, by the paths of their state dicts."""
    return told(_left(found), " stays, not told by names: ", " stay, not told by names: ")


def _left(found: Mapping[str, FoundPairs]) -> list[tuple[str, str]]:
    """The norms that names do not tell the layer of, each with its reason."""
    return [
        (item.norm if path == "." else f"{path}: {item.norm}", item.reason)
        for path, of_path in found.items()
        for item in of_path.left
    ]


def _of_state(path: str) -> str:
    return "" if path == "." else path


def notes_on_misfits(found: Mapping[str, FoundPairs], selection: Selection) -> Iterable[str]:
    """Notes on state dicts that have some of what a recipe names; those with nothing of it need none."""
    stay = "weights" if isinstance(selection.asked, SaidStandardize) else "norms"
    for path, item in found.items():
        if item.misfit and not item.is_foreign:
            yield f"{path}: {_teller(selection)} does not fit, so its {stay} stay: {item.misfit}"


def _teller(selection: Selection) -> str:
    """What tells the norms, as the user gave it."""
    if isinstance(selection.asked, SaidStandardize):
        return option("standardize")
    return "the recipe" if selection.asked is None else option("norm")


def _own(selection: Selection) -> str:
    """What to give instead."""
    return (
        "a recipe of this very model" if selection.asked is None else "names that `wnconvert inspect` shows"
    )


def _where(path: str, name: str) -> str:
    return f"{path}: layer {name}" if path else f"layer {name}"


def name_conflicts(
    state: StateDict, layers: Iterable[Layer], freed: Collection[str] = ()
) -> Iterable[Refused]:
    """The refusals of new layers that need a key which the state dict has already, and keeps.

    ``freed`` are the keys that these layers had before.
    """
    there = {entry.name for entry in state.entries} - set(freed)
    for layer in layers:
        if name := next((part.name for part in layer.tensors if part.name in there), ""):
            yield Refused(layer.name, f"the name {name} is taken")


def refuse_modules(states: Iterable[StateDict], done: str, fix: str) -> None:
    """Refuse to change what whole pickled modules compute their weights from.

    The class of a parametrized module is made at run time: no pickle can name it; a class that has a g of
    its own goes on using it. Raises ``LayerError``.
    """
    for state in states:
        if state.is_module:
            raise LayerError(
                f"a whole pickled module, whose form is in its code too, cannot be {done} in the file",
                where=state.path,
                fix=fix,
            )


def optimizer_is_stale(doing: str) -> str:
    """Why an output has no optimizers; ``doing`` is what changes the positions of its parameters."""
    keep = option("keep_optimizer", True)
    return f"optimizer state is by position, and {doing} changes the positions; {keep} keeps it"


def notes_on(found: FoundPairs) -> Iterable[str]:
    """Notes on the layers of a state dict, on halves that stand alone, and on pairs that are passed over."""
    yield from told((layer.name, layer.note) for layer in found.layers if layer.note)
    one = " stands without its other half and is left as it is"
    several = " stand without their other halves and are left as they are"
    yield from told(((half, "") for half in found.halves), one, several)
    yield from notes_on_passed(found.passed)
