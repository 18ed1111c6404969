"""Other kinds of layers, and norms, in a tree: how often, whether they fold, how many of them names tell."""

from __future__ import annotations

from collections.abc import Iterator

from wnconvert.layers.kinds.table import Kind, find_kinds
from wnconvert.tensors.tree import StateDict, Tree
from wnconvert.verbs.inspection.result import KindSummary

__all__ = ["kinds_in"]


def kinds_in(tree: Tree) -> Iterator[KindSummary]:
    """The kinds that are in each state dict, with weight norm left out; of norms, what names tell of them."""
    for state in tree.state_dicts:
        for found in find_kinds(tensor.info for tensor in state.tensors.values()):
            kind = found.kind
            words = kind.folds, kind.how, kind.words, _told(state, kind)
            yield KindSummary(state.path, kind.name, found.count, found.example, *words)


def _told(state: StateDict, kind: Kind) -> int | None:
    """Of how many norms names tell the layer; None of another kind."""
    from wnconvert.layers.telling.arrangement import STATISTICS
    from wnconvert.layers.telling.neighbours import told_by_names

    return len(told_by_names(state, _ANY_EPS).folds) if kind.keys == STATISTICS else None


#: Which norms are told does not depend on it.
_ANY_EPS = 0.0
