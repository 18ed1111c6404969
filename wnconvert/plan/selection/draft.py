"""A plan in the making: what fold, split and migrate do alike, so that each of them supplies its steps only.

A verb begins a draft with the layers that it found, has it refuse layers, makes the steps of each state dict,
and ends the draft as a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from wnconvert.frozen import dataclass
from wnconvert.layers.find import FoundPairs
from wnconvert.layers.kinds.others import hints_on
from wnconvert.layers.schemes import Layer, Refused, Selection
from wnconvert.plan.plan import LeftOut, NormLeft, Plan, PlannedStateDict
from wnconvert.plan.record.history import Record, recorded
from wnconvert.plan.record.origins import Origin
from wnconvert.plan.selection.scope import Scope, choose, lost_texts, scope_of, tie_notes
from wnconvert.plan.selection.wanted import (
    check_names_tell,
    check_recipe_fits,
    check_refused,
    check_selection,
    find_layers,
    idle_excludes,
    looks_like_layers,
    notes_on,
    notes_on_left,
    notes_on_misfits,
    refuse_modules,
)
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import StateDict, Tree

__all__ = ["Draft", "FoundDraft"]


@dataclass(frozen=True, slots=True)
class Draft:
    """A plan without its steps.

    ``scope`` says which state dicts the output has; ``names`` are the names that the selection's globs can
    mean.
    """

    verb: str
    tree: Tree
    container: Container
    selection: Selection
    scope: Scope
    names: Sequence[str]

    @property
    def states(self) -> tuple[StateDict, ...]:
        """The state dicts that the output has, as the source has them."""
        return self.scope.states

    def check_refused(self, refused: Mapping[str, Sequence[Refused]]) -> None:
        """Raise one ``LayerError`` for the refused layers of these state dicts, by path."""
        mine = {state.path: refused.get(state.path, ()) for state in self.states}
        check_refused(mine, _DONE[self.verb])

    def refuse_modules(self, changed: Iterable[str]) -> None:
        """Raise ``LayerError`` if one of the ``changed`` state dicts is a pickled module and stays one."""
        if self.container.facts.holds_trees:
            paths = set(changed)
            states = (state for state in self.states if state.path in paths)
            refuse_modules(states, _DONE[self.verb], _FIXES_OF_MODULES[self.verb])

    def has_optimizers_to_fit(self, planned: Iterable[PlannedStateDict]) -> bool:
        """Whether layers change beside optimizers that the output would hold."""
        return (
            self.scope.only is None and bool(self.tree.optimizers) and any(item.changes for item in planned)
        )

    def without_optimizers(self, planned: Iterable[PlannedStateDict], why: str) -> tuple[LeftOut, ...]:
        """The optimizers as left out, where layers change beside them."""
        if not self.has_optimizers_to_fit(planned):
            return ()
        return tuple(LeftOut(path, why) for path in self.tree.optimizers)

    def recorded(
        self,
        before: Record,
        verb: str,
        layers: Mapping[str, Sequence[Origin]],
        gone: Mapping[str, Sequence[Layer]] = MappingProxyType({}),
    ) -> tuple[Mapping[str, Any], ...]:
        """The record of the output: the steps ``before``, and one of ``verb`` on ``layers``, by path.

        ``gone`` are layers of which those that are no pairs cannot be given back.
        """
        holds_trees = self.container.facts.holds_trees
        kept = {state.path: state.path if holds_trees else "" for state in self.states}
        return recorded(before, kept, verb, layers, gone)

    def plan(
        self,
        planned: tuple[PlannedStateDict, ...],
        *,
        record: tuple[Mapping[str, Any], ...],
        optimizers: tuple[LeftOut, ...] = (),
        already: int = 0,
        formless: int = 0,
        notes: Iterable[str] = (),
    ) -> Plan:
        """The plan that puts ``planned``, and leaves out ``optimizers`` and what the scope leaves out."""
        facts = self.container.facts
        texts = () if facts.keeps_texts else tuple(lost_texts(self.tree, record, facts.noun))
        return Plan(
            self.verb,
            self.container,
            planned,
            only=self.scope.only,
            dropped=(*optimizers, *self.scope.dropped, *texts),
            already=already,
            formless=formless,
            record=record,
            notes=(
                *self.tree.notes,
                *idle_excludes(self.selection, self.names),
                *notes,
                *(() if facts.shares_memory else tie_notes(self.states[0], planned[0], facts.noun)),
            ),
        )


_ALONE = "-o OUT.safetensors for its tensors alone"
_FIXES_OF_MODULES = {
    "fold": _ALONE,
    "split": f"wnconvert fold it; {_ALONE}; or load it and use split_module",
    "migrate": f"wnconvert fold it; {_ALONE}; or load it and use migrate_module",
}
_DONE = {"fold": "folded", "split": "split", "migrate": "migrated"}


@dataclass(frozen=True, slots=True)
class FoundDraft(Draft):
    """The draft of a verb that works on the layers that a file has; ``found`` holds them by path."""

    found: Mapping[str, FoundPairs]

    @classmethod
    def of(
        cls,
        verb: str,
        tree: Tree,
        container: Container,
        selection: Selection,
        only: str | None,
        *,
        known: Mapping[str, FoundPairs] | None = None,
    ) -> FoundDraft:
        """Find the layers of the chosen state dicts, and what of these goes into a file of ``container``.

        ``known`` are the layers by path where they were found before, by this selection.
        Raises ``ArgumentError`` where ``only`` or the selection names nothing, or a file that holds one state
        dict would have to hold several.
        """
        chosen = choose(tree, only)
        found = known
        if found is None:
            found = {state.path: find_layers(state, selection) for state in chosen}
        names = [name for item in found.values() for name in looks_like_layers(item)]
        check_selection(selection, names)
        busy = (path for path, item in found.items() if item.layers or item.refused)
        scope = scope_of(tree, container, chosen, only, busy)
        return cls(verb, tree, container, selection, scope, names, found)

    @property
    def refused(self) -> dict[str, tuple[Refused, ...]]:
        """The layers that names and shapes refuse, by path."""
        return {path: item.refused for path, item in self.found.items()}

    def check_fits(self) -> None:
        """Raise ``LayerError`` where a recipe is of none of the state dicts, or names tell nothing."""
        found = {state.shown: self.found[state.path] for state in self.states}
        check_recipe_fits(found, self.selection)
        check_names_tell(found)

    def found_notes(self) -> Iterable[str]:
        """Notes for the user on the layers that were found."""
        found = {state.shown: self.found[state.path] for state in self.states}
        yield from notes_on_misfits(found, self.selection)
        yield from notes_on_left(found)
        for state in self.states:
            yield from notes_on(self.found[state.path])

    def left_norms(self) -> Iterable[NormLeft]:
        """The norms that names do not tell the layer of, state dict by state dict."""
        for state in self.states:
            for item in self.found[state.path].left:
                yield NormLeft(state.path, item.norm, item.reason)

    def hints(self, does: str = "folds", can: Callable[[Layer], bool] = bool) -> Iterable[str]:
        """What says which layers of other kinds the verb ``can`` change too, and what ``does`` it."""
        found = [self.found[state.path] for state in self.states]
        left = [layer for item in found for layer in item.others if can(layer)]
        return hints_on(left, self.selection.kinds, (layer for item in found for layer in item.layers), does)
