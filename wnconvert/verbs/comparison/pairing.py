"""The tensors of both sides matched: first state dicts by path, then tensors by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from glob import escape

from wnconvert.errors import ArgumentError, WnconvertError
from wnconvert.frozen import dataclass
from wnconvert.layers.find import pairs_in
from wnconvert.layers.kinds.table import ALL
from wnconvert.layers.recipes import Recipe
from wnconvert.layers.schemes import SCHEMES, Selection
from wnconvert.messages import listed, option, told
from wnconvert.plan.fold import plan_fold
from wnconvert.plan.names.prefixes import prefixes_apart
from wnconvert.plan.names.renaming import Renaming
from wnconvert.plan.names.wrappers import seen_through
from wnconvert.plan.steps import Neutral
from wnconvert.tensors.blocks import Elements
from wnconvert.tensors.containers import Container
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import StateDict, Tree
from wnconvert.verbs.comparison.items import Item, Pair, computed_item
from wnconvert.verbs.comparison.result import qualified

__all__ = ["Paired", "Rules", "Side", "paired"]


@dataclass(frozen=True, slots=True)
class Side:
    """One side, A or B: its label, its tree and its elements."""

    label: str
    tree: Tree
    elements: Elements


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules for names of both sides: the prefixes to take off, and which names are wanted."""

    renaming: Renaming
    selection: Selection

    def wants(self, name: str) -> bool:
        """Whether a name is compared; a glob may match it with its prefix or without."""
        names = {name, self.renaming(name)}
        chosen = Selection(layers=self.selection.layers)
        kept = Selection(exclude=self.selection.exclude)
        return any(map(chosen.wants, names)) and all(map(kept.wants, names))

    def names(self, name: str) -> bool:
        """Whether a name is given in full, with its prefix or without."""
        return any(map(self.selection.names, {name, self.renaming(name)}))

    def check(self, names: Collection[str]) -> None:
        """Raise ``ArgumentError`` if the globs leave no name, or if one of them matches none."""
        if not names:
            raise ArgumentError(
                f"there is nothing to compare: {option('layers')} and {option('exclude')} leave no tensor",
                fix="give other globs",
            )
        for glob in self.selection.layers:
            if not any(map(Selection(layers=(glob,)).wants, names)):
                what = f"{option('layers', glob=glob)} matches no name"
                raise ArgumentError(what, fix="leave it out, or correct it")


@dataclass(frozen=True, slots=True)
class Paired:
    """The paths of the state dicts that are compared, the names on both sides, and those on one side."""

    states: tuple[tuple[str, str], ...]
    pairs: tuple[Pair, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    notes: tuple[str, ...]


def paired(a: Side, b: Side, rules: Rules, only: tuple[str, ...] = ()) -> Paired:
    """Match the names of both sides; ``only`` is the path of a state dict, or two: A's and B's.

    Raises ``LayerError`` for a layer that is refused, and ``ArgumentError`` if there is nothing to compare or
    the state dicts to compare are ambiguous.
    """
    states, notes = _state_pairs(a, b, only)
    recipe = rules.selection.recipe
    if recipe is not None:
        notes = [*notes, *_recipe_notes((a, b), states, recipe)]
    pairs: list[Pair] = []
    only_in_a: list[str] = []
    only_in_b: list[str] = []
    names: set[str] = set()
    hints: list[str] = []
    for state_a, state_b in states:
        items_a, notes_a = _items(a, state_a, rules)
        items_b, notes_b = _items(b, state_b, rules)
        seen = seen_through(items_a, items_b)
        both = {name: other for name in items_a if (other := seen(name)) in items_b}
        pairs += [Pair(state_a.path, items_a[name], items_b[other]) for name, other in both.items()]
        matched = set(both.values())
        path = state_a.path if len(states) > 1 else ""
        only_in_a += [qualified(path, name) for name in items_a if name not in both]
        only_in_b += [qualified(path, name) for name in items_b if name not in matched]
        names |= {name for item in (*items_a.values(), *items_b.values()) for name in (item.name, item.key)}
        half = -(-min(len(items_a), len(items_b)) // 2)  # less is a name or two that two models share
        if not both and (apart := prefixes_apart(items_a.keys(), items_b.keys(), least=half)):
            hints.append(apart.fix)
        notes += [*notes_a, *notes_b, *seen.notes()]
    rules.check(names)
    if not pairs:
        fix = hints[0] if hints else "compare two checkpoints of the same model"
        raise ArgumentError(
            f"there is nothing to compare: {a.label} and {b.label} have no name in common", fix=fix
        )
    return Paired(
        tuple((state_a.path, state_b.path) for state_a, state_b in states),
        tuple(pairs),
        tuple(only_in_a),
        tuple(only_in_b),
        (*notes, *hints, *_dtype_notes(pairs)),
    )


def _recipe_notes(
    sides: tuple[Side, Side], states: Iterable[tuple[StateDict, StateDict]], recipe: Recipe
) -> Iterator[str]:
    """Notes on sides that are compared as they are. Raises ``ArgumentError`` if the recipe fits no side."""
    misfits = [
        (side, state, _fitting(state, recipe)[1])
        for pair in states
        for side, state in zip(sides, pair, strict=True)
    ]
    if all(why for _, _, why in misfits):
        side, _, why = misfits[0]
        raise ArgumentError(
            f"the recipe fits neither side: {why}", where=side.label, fix=f"leave {option('recipe')} out"
        )
    for side, state, why in misfits:
        if why:
            yield f"{side.label}: {state.shown} is compared as it is, since the recipe does not fit: {why}"


def _fitting(state: StateDict, recipe: Recipe | None) -> tuple[Recipe | None, str]:
    """The recipe, if it is one of this state dict, or why it is not."""
    why = "" if recipe is None else pairs_in(state, replace(_EVERY_KIND, recipe=recipe)).misfit
    return (None, why) if why else (recipe, "")


def _state_pairs(
    a: Side, b: Side, only: tuple[str, ...]
) -> tuple[list[tuple[StateDict, StateDict]], list[str]]:
    """Pairs of state dicts to compare, and notes on those that are left out."""
    states = [[state for state in side.tree.state_dicts if state.tensors] for side in (a, b)]
    for side, found in zip((a, b), states, strict=True):
        if not found:
            raise ArgumentError("there is nothing to compare: it holds no tensor", where=side.label)
    if not only and {state.path for state in states[0]} & {state.path for state in states[1]}:
        return _by_path(a, b, *states), []
    both = only if len(only) == 2 else (only or (None,)) * 2
    chosen = [_named(found, path) for found, path in zip(states, both, strict=True)]
    if only and (chosen == [None, None] or (len(only) == 2 and None in chosen)):
        missing = only[chosen.index(None) % len(only)]
        raise ArgumentError(
            f"there is no state dict at {missing!r}: {_offered(a, states[0])}; {_offered(b, states[1])}",
            fix="--only one of these, once for both sides, or twice: A's, then B's",
        )
    picked = []
    for at, found in enumerate(states):
        candidates = [state for state in found if _has_layers(state)] or found
        state = chosen[at] if only and chosen[at] else None
        if state is None and len(candidates) > 1:
            raise ArgumentError(
                "there are several state dicts, and it is not clear which to compare: "
                f"{_offered(a, states[0])}; {_offered(b, states[1])}",
                fix=f"--only {candidates[0].shown} (or another), once for both, or twice: A's, then B's",
            )
        picked.append(state or candidates[0])
    notes = [
        f"{side.label}: {listed(left)} {'is' if len(left) == 1 else 'are'} not compared"
        for side, found, one in zip((a, b), states, picked, strict=True)
        if not only and (left := [state.shown for state in found if state is not one])
    ]
    return [(picked[0], picked[1])], notes


def _by_path(
    a: Side, b: Side, of_a: Sequence[StateDict], of_b: Sequence[StateDict]
) -> list[tuple[StateDict, StateDict]]:
    """State dicts of the same path, and one more pair if each side has a single one left over.

    Raises ``ArgumentError`` for state dicts that one side alone has: they must not be passed over in silence.
    """
    others = {state.path: state for state in of_b}
    pairs = [(state, others[state.path]) for state in of_a if state.path in others]
    left_a = [state for state in of_a if state.path not in others]
    left_b = [state for state in of_b if state.path not in {one.path for one, _ in pairs}]
    if len(left_a) == len(left_b) == 1:
        return [*pairs, (left_a[0], left_b[0])]
    if left_a or left_b:
        side, left = (a, left_a) if left_a else (b, left_b)
        raise ArgumentError(
            f"only {side.label} has the state dict {listed(state.shown for state in left)}",
            fix=f"--only {pairs[0][0].shown} compares what both have",
        )
    return pairs


def _named(states: Sequence[StateDict], path: str | None) -> StateDict | None:
    return next((state for state in states if state.shown == path), None)


def _offered(side: Side, states: Sequence[StateDict]) -> str:
    return f"{side.label} has {listed(state.shown for state in states)}"


def _has_layers(state: StateDict) -> bool:
    found = pairs_in(state, _EVERY_KIND)
    return bool(found.layers or found.refused)


#: All layers that keys prove.
_EVERY_KIND = Selection(kinds=ALL)


def _items(side: Side, state: StateDict, rules: Rules) -> tuple[dict[str, Item], list[str]]:
    """The weights and other tensors of a state dict by name, and notes.

    Raises ``LayerError`` for a layer that is refused, ``ArgumentError`` for a tensor that cannot be compared.
    """
    tensors = state.tensors
    for entry in state.entries:
        if entry.is_opaque and rules.wants(entry.name):
            raise ArgumentError(
                f"{entry.name} is a quantized, sparse or meta tensor, which cannot be compared",
                where=side.label,
                fix=f"{option('exclude', glob=entry.name)} compares the rest",
            )
    found = pairs_in(state, _EVERY_KIND)
    unwanted = {item.name for item in found.refused if not rules.wants(item.name)}
    pairs = {item.name for item in pairs_in(state).refused}
    as_stored = [item for item in found.refused if item.name not in pairs | unwanted]
    selection = Selection(
        exclude=tuple(map(escape, (*unwanted, *(item.name for item in as_stored)))),
        kinds=ALL,
        named=tuple(item.name for item in found.passed if rules.names(item.name)),
        recipe=_fitting(state, rules.selection.recipe)[0],
    )
    try:
        plan = plan_fold(Tree((state,)), Container.TORCH_ZIP, selection=selection).doubted()
    except WnconvertError as error:
        error.where = f"{side.label}: {error.where}" if error.where else side.label
        raise
    items: dict[str, Item] = {}
    for step in plan.state_dicts[0].steps:
        if step.layer is not None:
            item = computed_item(rules.renaming(step.name), step, step.layer, tensors)
        elif isinstance(step, Neutral):
            stored = tensors[step.name]
            item = Item(rules.renaming(step.name), step.name, "plain", stored, constant=step.value)
        elif step.name not in tensors or (unwanted and _weight_of(step.name) in unwanted):
            continue
        else:
            item = Item(rules.renaming(step.name), step.name, "plain", tensors[step.name])
        if not rules.wants(step.name):
            continue
        if item.name in items:
            raise ArgumentError(
                f"without the prefix, two of its names are {item.name!r}",
                where=side.label,
                fix=f"give a longer prefix: {option('strip_prefix', metavar='PREFIX')}",
            )
        items[item.name] = item
    others = sum(entry.tensor is None for entry in state.entries)
    said = told(((item.name, item.reason) for item in as_stored), *_AS_STORED)
    notes = [f"{side.label}: {note}" for note in (*plan.notes, *said)]
    if others:
        what = (
            "one value that is not a tensor is"
            if others == 1
            else f"{others} values that are not tensors are"
        )
        notes.append(f"{side.label}: {what} not compared")
    return items, notes


_AS_STORED = (" is compared as it is stored: ", " are compared as they are stored: ")


def _weight_of(key: str) -> str:
    """The weight to which a key would belong as a half of a layer, or the key itself."""
    for scheme in SCHEMES:
        for pattern in (scheme.g, scheme.v, scheme.beside):
            if match := pattern.fullmatch(key):
                return match["owner"] + match["param"]
    return key


def _dtype_notes(pairs: Iterable[Pair]) -> Iterator[str]:
    """Notes on floats whose dtypes differ between both sides."""
    names: dict[tuple[DType, DType, DType], list[str]] = {}
    for pair in pairs:
        if not pair.why and pair.a.dtype != pair.b.dtype:
            names.setdefault((pair.a.dtype, pair.b.dtype, pair.coarser), []).append(pair.a.name)
    for (a, b, coarser), of_one in names.items():
        who = f"{of_one[0]} is" if len(of_one) == 1 else f"{len(of_one)} tensors are"
        yield f"{who} {a} in A and {b} in B: compared as {coarser}"
