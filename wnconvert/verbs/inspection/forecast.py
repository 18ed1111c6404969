"""What fold, split and migrate would do with a checkpoint, in words."""

from __future__ import annotations

from collections.abc import Sequence

from wnconvert.errors import LayerError
from wnconvert.layers.schemes import FORMS
from wnconvert.messages import counted, listed
from wnconvert.plan.fold import plan_fold
from wnconvert.plan.migrate import plan_migrate
from wnconvert.plan.record import origins
from wnconvert.plan.split.plan import plan_split
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import Tree
from wnconvert.verbs.inspection.magnitudes import LayerStats

__all__ = ["fold_in_words", "migrate_in_words", "split_in_words"]


def fold_in_words(tree: Tree, rows: Sequence[LayerStats]) -> str:
    """What ``fold`` would do, as far as what was read tells."""
    bad = [
        row.name for row in rows if (row.zero_rows and row.norm) or any("NaN" in flag for flag in row.flags)
    ]
    if bad:
        return f"would refuse the numbers of {listed(bad, 3)} (see the flags)"
    try:
        plan = plan_fold(tree, Container.TORCH_ZIP)
    except LayerError as error:
        return f"would refuse: {error.what.splitlines()[0].rstrip(':')} ({error.fix})"
    count = len(plan.layers)
    if not count:
        return "nothing to fold"
    left = f", and leave out {', '.join(item.path for item in plan.dropped)}" if plan.dropped else ""
    return f"would make {count} plain weight{'' if count == 1 else 's'}{left}"


def split_in_words(tree: Tree) -> str:
    """What ``split`` would do by the file's own record, if it has one."""
    if not any(origins(tree.record, state.path, "fold") for state in tree.state_dicts):
        return ""
    try:
        plan = plan_split(tree, Container.TORCH_ZIP)
    except LayerError as error:
        return f"would refuse: {error.what.splitlines()[0].rstrip(':')} ({error.fix})"
    forms = dict.fromkeys(change.layer.form for _, change in plan.layers)
    if not forms:
        return "nothing to split"
    return f"would give {counted(len(plan.layers), 'layer')} their g and v back ({listed(forms)})"


def migrate_in_words(tree: Tree) -> str:
    """What ``migrate`` would do, in the directions in which there is something to do."""
    said = []
    for to in reversed(FORMS):
        try:
            plan = plan_migrate(tree, Container.TORCH_ZIP, to=to)
        except LayerError as error:
            return f"would refuse: {error.what.splitlines()[0].rstrip(':')} ({error.fix})"
        if plan.layers:
            (before,) = {change.layer.form for _, change in plan.layers}
            how = " (--to legacy)" if to == "legacy" else ""
            said.append(f"{counted(len(plan.layers), 'layer')} from {before} to {to}{how}")
    return f"would take {', or '.join(said)}" if said else "nothing to migrate"
