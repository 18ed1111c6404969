"""Whether the layers of an output are found in it again."""

from __future__ import annotations

from collections.abc import Iterable

from wnconvert.layers.find import FoundPairs, find_pairs
from wnconvert.layers.schemes import Selection
from wnconvert.messages import listed, option
from wnconvert.plan.plan import PlannedStateDict
from wnconvert.tensors.tree import StateDict

__all__ = ["found_in_output", "needs_naming"]


def found_in_output(state: StateDict, planned: PlannedStateDict, selection: Selection) -> FoundPairs:
    """The layers that the output of ``planned``, made of ``state``, will show."""
    tensors = state.tensors
    kept = (step.made_of(tensors).info for step in planned.tensors if step.kept is not None)
    made = (part for change in planned.changes if change.after for part in change.after.tensors)
    return find_pairs((*kept, *made), selection)


def needs_naming(state: StateDict, planned: PlannedStateDict) -> Iterable[str]:
    """A note on layers of the output that are found in it only where they are named in full."""
    made = {change.name for change in planned.changes if change.after}
    if not made:
        return
    names = [item.name for item in found_in_output(state, planned, Selection()).passed if item.name in made]
    if names:
        yield (
            f"{listed(names, 3)}: the next command finds it as a layer only by its name in full, "
            f"{option('layers', glob=names[0])}"
        )
