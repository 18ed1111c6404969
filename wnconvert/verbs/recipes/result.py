"""What ``recipe_of`` found: the recipe, and the norms that stay, each with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from wnconvert.frozen import dataclass
from wnconvert.layers.recipes import RECIPE_SCHEMA, Recipe
from wnconvert.messages import counted, short_repr
from wnconvert.verbs.models.proof.report import TimedStep

__all__ = ["Left", "RecipeReport"]


@dataclass(frozen=True, slots=True)
class Left:
    """A norm, or a weight that is computed, that stays as it is: its module's name, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, repr=False)
class RecipeReport:
    """A proven recipe, and the norms that no fold of it takes. ``apart`` is the figure of the proof."""

    recipe: Recipe
    left: tuple[Left, ...]
    samples: int
    apart: float
    steps: tuple[TimedStep, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return short_repr(
            f"RecipeReport: {counted(len(self.recipe.folds), 'fold')}, proven: {self.recipe.proven}",
            [f"{fold.norm or fold.weight}" for fold in self.recipe.folds],
            f"{counted(len(self.left), 'norm')} left" if self.left else "",
        )

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        """The number of folds by their kind and what they fold into."""
        return Counter((fold.kind, fold.op) for fold in self.recipe.folds)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able data; docs/json.md documents it."""
        return {
            "schema": 1,
            "recipe": {"schema": RECIPE_SCHEMA, **asdict(self.recipe)},
            "left": [asdict(each) for each in self.left],
            "samples": self.samples,
            "apart": self.apart,
            "steps": [asdict(step) for step in self.steps],
            "notes": list(self.notes),
        }
