"""Why a plan changes nothing, in words, with what the checkpoint holds instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from wnconvert.layers.find import pairs_in
from wnconvert.layers.kinds.others import as_form
from wnconvert.layers.kinds.table import WORDS, find_kinds
from wnconvert.layers.schemes import FORMS, Layer, Selection
from wnconvert.messages import counted, listed, option
from wnconvert.plan.plan import Plan
from wnconvert.plan.record.history import gone, origins
from wnconvert.tensors.tree import StateDict, TensorInfo, Tree

__all__ = ["why_nothing"]


#: How many kinds of normalization are listed.
_MOST = 6


def why_nothing(plan: Plan, tree: Tree) -> str:
    """Why a plan for ``tree`` has no layers: what is there in place of what the verb looks for.

    >>> from wnconvert.tensors.containers import Container
    >>> why_nothing(Plan("fold", Container.TORCH_ZIP, ()), Tree(()))
    'there is no state dict in it'
    """
    paths = {planned.path for planned in plan.state_dicts}
    states = [state for state in tree.state_dicts if state.path in paths]
    if not states:
        return "there is no state dict in it"
    if plan.already:
        how = "split already" if plan.verb == "split" else "in that form already"
        return f"{counted(plan.already, 'layer')} {'is' if plan.already == 1 else 'are'} {how}"
    if plan.verb == "split":
        return "none of its weights is one to split"
    found = [layer for state in states for layer in pairs_in(state, Selection(kinds=plan.kinds)).layers]
    if plan.formless:
        can = "can have that form" if any(map(_has_two_forms, found)) else "has another form"
        return f"none of its layers {can}"
    if count := len(found) or plan.unwanted:
        globs = f"{option('layers')} and {option('exclude')}"
        return f"{globs} leave out {counted(count, 'layer')}, all that there are"
    return "; ".join((f"no {' or '.join(WORDS[kind] for kind in plan.kinds)}", *_instead(tree, states)))


def _has_two_forms(layer: Layer) -> bool:
    return all(as_form(layer, form) for form in FORMS)


def _infos(state: StateDict) -> list[TensorInfo]:
    return [tensor.info for tensor in state.tensors.values()]


def _instead(tree: Tree, states: Sequence[StateDict]) -> list[str]:
    """What was folded before, and other normalizations, each with its count."""
    names = {
        (state.path, origin.layer.name)
        for state in states
        for step in origins(tree.record, state.path, "fold")
        for origin in step
    }
    names |= {(state.path, name) for state in states for name in gone(tree.record, state.path)}
    folded = [f"{counted(len(names), 'layer')} folded before"] if names else []
    kinds: Counter[str] = Counter()
    for state in states:
        for found in find_kinds(_infos(state)):
            kinds[found.kind.name] += found.count
    there = listed((f"{count} × {name}" for name, count in kinds.items()), _MOST)
    return [*folded, *([there] if there else [])]
