"""The plan of ``migrate``: every wanted layer gets the names of the other form; no tensor changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from wnconvert.errors import LayerError
from wnconvert.layers.conventions import CONVENTIONS
from wnconvert.layers.dims import dim_of
from wnconvert.layers.find import FoundPairs
from wnconvert.layers.kinds.others import as_form, has_form
from wnconvert.layers.kinds.table import in_words
from wnconvert.layers.rules import Spectral
from wnconvert.layers.schemes import FORMS, Layer, Selection, is_pair
from wnconvert.messages import counted, listed, option
from wnconvert.plan.names.frameworks import InFramework
from wnconvert.plan.order import is_buffer, restored
from wnconvert.plan.plan import Change, Plan, PlannedStateDict
from wnconvert.plan.record.history import Record, origins, without_layers
from wnconvert.plan.record.origins import Origin, origin_of
from wnconvert.plan.selection.again import needs_naming
from wnconvert.plan.selection.draft import FoundDraft
from wnconvert.plan.selection.scope import in_torch_order, kept_as_is
from wnconvert.plan.selection.wanted import name_conflicts
from wnconvert.plan.steps import Keep
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import Shape, StateDict, Tree

__all__ = ["plan_migrate", "plan_relaid"]


def plan_migrate(
    tree: Tree,
    container: Container,
    *,
    to: str = "parametrize",
    selection: Selection = Selection(),  # noqa: B008 - frozen
    only: str | None = None,
    drop_optimizer: bool = False,
    known: Mapping[str, FoundPairs] | None = None,
) -> Plan:
    """Plan the renaming of every wanted layer of ``tree`` to the form ``to``, into a file of ``container``.

    ``known`` are its layers by path, where this selection found them before.
    Pairs stand where torch would register them, or where they stood before an earlier, recorded migration.

    Raises as ``plan_fold`` does, and ``LayerError`` for whole pickled modules, for names that are taken, and
    if parameters would change their order beside an optimizer's state, which is by position.
    """
    draft = FoundDraft.of("migrate", tree, container, selection, only, known=known)
    wanted = {
        state.path: [layer for layer in draft.found[state.path].layers if _moves(layer, to)]
        for state in draft.states
    }
    draft.check_refused(
        {
            state.path: (
                *draft.refused[state.path],
                *name_conflicts(
                    state,
                    (after for layer in wanted[state.path] if (after := as_form(layer, to))),
                    freed=[part.name for layer in wanted[state.path] for part in layer.tensors],
                ),
            )
            for state in draft.states
        }
    )
    draft.refuse_modules(path for path, layers in wanted.items() if layers)
    made = {
        state.path: _Migration(tree, state, wanted[state.path], to)
        for state in draft.states
        if wanted[state.path]
    }
    planned = tuple(
        made[state.path].planned if state.path in made else kept_as_is(state) for state in draft.states
    )
    if draft.has_optimizers_to_fit(planned) and not drop_optimizer:
        _check_order(tree, made.values())
    undone = {path: [layer.name for layer in wanted[path]] for path, item in made.items() if item.origins}
    record = {path: item.record for path, item in made.items()}
    found = [draft.found[state.path] for state in draft.states]
    plan = draft.plan(
        planned,
        record=draft.recorded(_without_last(tree.record, undone), "migrate", record),
        optimizers=draft.without_optimizers(planned, f"left out as asked ({option('drop_optimizer', True)})")
        if drop_optimizer
        else (),
        already=sum(layer.form == to for item in found for layer in item.layers),
        formless=sum(layer.form != to and not has_form(layer, to) for item in found for layer in item.layers),
        notes=(
            *draft.found_notes(),
            *_made_notes(draft.states, planned),
            *_kinds_notes((layer for item in found for layer in item.layers), to),
        ),
    )
    hints = draft.hints("migrates", lambda layer: _moves(layer, to))
    return replace(plan, kinds=selection.kinds, hints=tuple(hints))


def plan_relaid(
    tree: Tree, container: Container, *, relaid: Mapping[str, InFramework], only: str | None = None
) -> Plan:
    """Plan a file of ``container`` of a ``tree`` whose state dict has another framework's layout already.

    ``relaid`` holds it by its path, with the pairs that it had and has.
    """
    draft = FoundDraft.of("migrate", tree, container, Selection(), only)
    planned = tuple(
        replace(
            kept_as_is(state),
            changes=tuple(
                Change(before, after, before.original.dtype) for before, after in relaid[state.path].pairs
            ),
        )
        for state in draft.states
    )
    notes = (note for state in draft.states for note in relaid[state.path].notes)
    plan = draft.plan(planned, record=(), notes=notes)
    return replace(plan, renamed=sum(len(state.entries) for state in draft.states))


def _moves(layer: Layer, to: str) -> bool:
    """Whether a layer is of another form, and can have this one."""
    return layer.form != to and has_form(layer, to)


def _kinds_notes(layers: Iterable[Layer], to: str) -> Iterable[str]:
    """Notes on layers that have no other form, and on what the other form does otherwise in training."""
    alone: Counter[tuple[str, ...]] = Counter()
    spectral = 0
    others: dict[str, list[str]] = {}
    for layer in layers:
        if is_pair(layer) and CONVENTIONS[layer.form].keys is None:
            others.setdefault(layer.form, []).append(layer.name)
        elif layer.form != to:
            alone[layer.rule.kinds] += not has_form(layer, to)
            spectral += _moves(layer, to) and Spectral.kind in layer.rule.kinds
    for kinds, count in (+alone).items():
        stays = "stays as it is" if count == 1 else "stay as they are"
        whose = CONVENTIONS[to].library
        form = f"{to} form of it" if to in FORMS else "weight norm of such a name and shape"
        yield f"{counted(count, 'layer')} of {in_words(kinds)} {stays}: {whose} has no {form}"
    for form, names in others.items():
        yield f"{listed(names, 3)}: the axes of {form} kernels are in another order, so names alone do not do"
    if spectral:
        yield (
            f"{counted(spectral, 'layer')} of spectral norm: in eval no bit changes; the next training step "
            "differs, for torch's two forms iterate u and v in another order"
        )


def _made_notes(states: Sequence[StateDict], planned: Sequence[PlannedStateDict]) -> Iterable[str]:
    """Notes on magnitudes that get another shape, and on layers that must be named to be found again."""
    for state, item in zip(states, planned, strict=True):
        pairs = [(change.before, change.after) for change in item.changes]
        halves = [(was, now) for was, now in pairs if was and now and is_pair(was)]
        shaped = [(was, now) for was, now in halves if was.g.shape != now.g.shape]
        if shaped:
            was, now = shaped[0]
            more = f", and {len(shaped) - 1} more so" if len(shaped) > 1 else ""
            yield f"{was.g.name} {was.g.shape} is written in the shape {now.g.shape}{more}"
        yield from needs_naming(state, item)


class _Migration:
    """One state dict with layers that change their form."""

    def __init__(self, tree: Tree, state: StateDict, layers: Sequence[Layer], to: str) -> None:
        self.path = state.path
        recorded = _recorded_shapes(tree, state)
        after = {layer.name: made for layer in layers if (made := _after(layer, to, recorded))}
        pairs = [layer for layer in layers if is_pair(layer)]
        shapes = {
            layer.g.name: after[layer.name].g.shape
            for layer in pairs
            if after[layer.name].g.shape != layer.g.shape
        }
        new = {
            old.name: after[layer.name].parts[role].name
            for layer in layers
            for role, old in layer.parts.items()
        }
        old = {renamed: name for name, renamed in new.items()}
        before = [entry.name for entry in state.entries]
        self.in_place = [new.get(name, name) for name in before]
        self.origins = _recorded_order(tree, state, after)
        if self.origins:
            others = [layer for layer in after.values() if not is_pair(layer)]
            self.order = restored(in_torch_order(self.in_place, others), _places(self.origins))
        else:
            self.order = in_torch_order(self.in_place, after.values())
        tensors = state.tensors
        self.planned = PlannedStateDict(
            state.path,
            tuple(
                Keep(name, source, is_tensor=source in tensors, shape=shapes.get(source))
                for name in self.order
                for source in (old.get(name, name),)
            ),
            tuple(Change(layer, after[layer.name], layer.original.dtype) for layer in layers),
        )
        buffers = {part.name for layer in after.values() for part in layer.buffers}
        self.parameters = {new.get(name, name) for name in tensors} - buffers
        self.record: list[Origin] = []
        if not self.origins and (shapes or not self._is_undone_by_rule(layers, old, before)):
            place = {name: at for at, name in enumerate(before)}
            self.record = [origin_of(layer, place) for layer in pairs]

    def _is_undone_by_rule(self, layers: Sequence[Layer], old: Mapping[str, str], before: list[str]) -> bool:
        back = [old.get(name, name) for name in self.order]
        return in_torch_order(back, layers) == before

    def passing(self) -> tuple[str, str] | None:
        """A key whose place among the parameters changes, and the one it passes; None if the order stays."""
        left, right = (
            [name for name in names if name in self.parameters and not is_buffer(name)]
            for names in (self.in_place, self.order)
        )
        return next(((was, now) for was, now in zip(left, right, strict=True) if was != now), None)


def _recorded_order(tree: Tree, state: StateDict, after: Mapping[str, Layer]) -> tuple[Origin, ...]:
    """The layers of the last recorded migration, if they are exactly the layers that go back now."""
    steps = origins(tree.record, state.path, "migrate")
    last = steps[-1] if steps else ()
    said = {origin.layer.name: (origin.layer.g.name, origin.layer.v.name) for origin in last}
    meant = {name: (layer.g.name, layer.v.name) for name, layer in after.items() if is_pair(layer)}
    return last if said == meant else ()


def _recorded_shapes(tree: Tree, state: StateDict) -> dict[tuple[str, str], Shape]:
    """The shapes that g had before earlier migrations, by its name then and its weight."""
    return {
        (origin.layer.g.name, origin.layer.name): origin.layer.g.shape
        for step in origins(tree.record, state.path, "migrate")
        for origin in step
    }


def _after(layer: Layer, to: str, recorded: Mapping[tuple[str, str], Shape]) -> Layer | None:
    """A layer in the form that it gets."""
    made = as_form(layer, to)
    return _in_shape(made, recorded) if made is not None and is_pair(made) else made


def _in_shape(layer: Layer, recorded: Mapping[tuple[str, str], Shape]) -> Layer:
    """A layer with its g in the shape that it had before, if that fits."""
    shape = recorded.get((layer.g.name, layer.name))
    if shape is None:
        return layer
    try:
        fit = dim_of(shape, layer.v.shape)
    except LayerError:
        return layer
    if fit.dim != layer.dim and layer.rows != 1:
        return layer
    return layer.with_halves(replace(layer.g, shape=shape), layer.v)


def _without_last(record: Record, undone: Mapping[str, Iterable[str]]) -> Record:
    """The record without the last migration of each state dict whose layers, by path, it just undid.

    An earlier one may record the same layers: a mixture that became one form, and then the other.
    """
    steps = list(record)
    for path, names in undone.items():
        last = max(at for at, step in enumerate(steps) if origins([step], path, "migrate"))
        steps[last : last + 1] = without_layers(steps[last : last + 1], "migrate", {path: names})
    return steps


def _places(steps: Iterable[Origin]) -> dict[str, int]:
    return {
        half.name: place
        for origin in steps
        for half, place in zip(origin.layer.halves, origin.places, strict=True)
    }


def _check_order(tree: Tree, migrations: Iterable[_Migration]) -> None:
    """Raise ``LayerError`` if a pair passes another parameter: optimizer state is by position."""
    for item in migrations:
        if passing := item.passing():
            where = f"{item.path}: " if item.path else ""
            drop, exclude = option("drop_optimizer", True), option("exclude")
            raise LayerError(
                f"{where}{passing[0]} and {passing[1]} would change their order, and the optimizer's state "
                f"({listed(tree.optimizers, 3)}) is by position",
                fix=f"{drop} leaves the state out; {exclude} leaves a layer as it is",
            )
