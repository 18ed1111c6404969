"""Forecasts of fold, split and migrate for a checkpoint, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wnconvert.errors import LayerError
from wnconvert.layers.conventions import has_eps
from wnconvert.layers.find import FoundPairs
from wnconvert.layers.recipes import Recipe
from wnconvert.layers.schemes import FORMS, Selection
from wnconvert.messages import counted, listed, option
from wnconvert.plan.fold import plan_fold
from wnconvert.plan.migrate import plan_migrate
from wnconvert.plan.record.history import origins
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import Tree
from wnconvert.verbs.inspection.magnitudes import LayerStats

__all__ = ["fold_in_words", "migrate_in_words", "refusal_in_words", "split_in_words"]


def fold_in_words(
    tree: Tree,
    rows: Sequence[LayerStats],
    known: Mapping[str, FoundPairs] | None = None,
    recipe: Recipe | None = None,
) -> str:
    """A forecast of ``fold``, as far as the values that were read allow one.

    ``known`` as for a plan, by a selection without the ``recipe``.
    """
    bad = [
        row.name
        for row in rows
        if row.has_nonfinite or (row.zero_rows and row.norm and not has_eps(row.form))
    ]
    if bad:
        return f"would refuse the numbers of {listed(bad, 3)} (see the flags)"
    try:
        selection = Selection(recipe=recipe)
        plan = plan_fold(
            tree, Container.TORCH_ZIP, selection=selection, known=None if recipe is not None else known
        )
    except LayerError as error:
        return refusal_in_words(error)
    count = len(plan.layers)
    if not count:
        return "nothing to fold"
    left = f", and leave out {listed(item.path for item in plan.dropped)}" if plan.dropped else ""
    into = f", and fold {counted(plan.norms, 'norm')} into them" if plan.norms else ""
    return f"would make {count} plain weight{'' if count == 1 else 's'}{into}{left}"


def split_in_words(tree: Tree) -> str:
    """A forecast of ``split`` by the file's own record; ``""`` if it has none."""
    if not any(origins(tree.record, state.path, "fold") for state in tree.state_dicts):
        return ""
    from wnconvert.plan.split.plan import plan_split

    try:
        plan = plan_split(tree, Container.TORCH_ZIP)
    except LayerError as error:
        return refusal_in_words(error)
    forms = dict.fromkeys(row.to for row in plan.layers)
    if not forms:
        return "nothing to split"
    whose = "its" if len(plan.layers) == 1 else "their"
    return f"would give {counted(len(plan.layers), 'layer')} {whose} g and v back ({listed(forms)})"


def migrate_in_words(tree: Tree, known: Mapping[str, FoundPairs] | None = None) -> str:
    """A forecast of ``migrate``, in each direction in which it would change something."""
    directions = []
    for to in reversed(FORMS):
        try:
            plan = plan_migrate(tree, Container.TORCH_ZIP, to=to, known=known)
        except LayerError as error:
            return refusal_in_words(error)
        if plan.layers:
            before = listed(dict.fromkeys(row.form for row in plan.layers))
            how = f" ({option('to', 'legacy')})" if to == "legacy" else ""
            directions.append(f"{counted(len(plan.layers), 'layer')} from {before} to {to}{how}")
    return f"would take {', or '.join(directions)}" if directions else "nothing to migrate"


def refusal_in_words(error: LayerError) -> str:
    """A forecast of the error that a verb would raise."""
    return f"would refuse: {error.heading} ({error.fix})"
