"""A recipe that a model tells, as text: how many folds of each kind, and what stays, with the reason."""

from __future__ import annotations

from wnconvert.messages import counted, printable
from wnconvert.reports.tables import Table
from wnconvert.verbs.recipes.result import RecipeReport

__all__ = ["recipe_line", "recipe_report_text"]


_MOST = 40


def recipe_report_text(report: RecipeReport, out: str | None, width: int | None = None) -> str:
    """The folds by their kinds, what stays, and the verdict; ``--json`` has long lists whole."""
    counts = tuple((kind, op, str(count)) for (kind, op), count in report.counts.items())
    left = tuple((printable(each.name), printable(each.reason)) for each in report.left[:_MOST])
    lines = [Table(("fold", "layer", "count"), counts, frozenset(("count",))).text(width)] if counts else []
    if left:
        lines += ["", Table(("stays", "because"), left, elastic=("stays",)).text(width)]
    if len(report.left) > _MOST:
        lines.append(f"and {len(report.left) - _MOST} more: --json lists all")
    return "\n".join([*lines, *([""] if left else []), recipe_line(report, out)])


def recipe_line(report: RecipeReport, out: str | None) -> str:
    """The verdict in one line."""
    what = f"{counted(len(report.recipe.folds), 'fold')}, {len(report.left)} left"
    where = f"{out}: " if out else ""
    return printable(f"{where}{what}; proven in {report.recipe.proven}")
