"""The request of an inspection: which weights to show, and how much to read."""

from __future__ import annotations

import os
from collections.abc import Iterable

from wnconvert.frozen import dataclass
from wnconvert.layers.recipes import Recipe
from wnconvert.layers.schemes import Selection
from wnconvert.verbs.shared.recipes import recipe_given
from wnconvert.verbs.shared.selections import selection_of

__all__ = ["InspectRequest", "request_of"]


@dataclass(frozen=True, slots=True)
class InspectRequest:
    """The weights that a user wants to see, and how much is read for them.

    ``selection`` chooses weights by name. ``full`` reads v too, and the weights that the record of a fold
    names; ``all_weights`` reads every plain weight of two and more dimensions. ``recipe`` is one that a fold
    would be given.
    """

    selection: Selection
    recipe: Recipe | None = None
    full: bool = False
    all_weights: bool = False

    @property
    def reads_weights(self) -> bool:
        """Whether plain weights are read."""
        return self.full or self.all_weights


def request_of(
    layers: Iterable[str],
    *,
    full: bool,
    all_weights: bool,
    recipe: str | os.PathLike[str] | Recipe | None = None,
) -> InspectRequest:
    """The request that the options of ``inspect`` make. Raises ``ArgumentError``, and as a recipe is read."""
    selection = selection_of(layers, (), "auto")
    return InspectRequest(selection, recipe_given(recipe), full=full, all_weights=all_weights)
