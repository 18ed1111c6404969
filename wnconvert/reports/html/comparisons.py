"""A comparison as a page: what differs and by how much, the worst elements, and names on one side only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from wnconvert.messages import counted
from wnconvert.reports.html.page import Page
from wnconvert.reports.tables import number_text
from wnconvert.reports.text.comparisons import comparison_line, comparison_table
from wnconvert.verbs.comparison.result import Comparison, Difference

__all__ = ["comparison_page"]


#: The columns that stay where the screen is narrow.
_NARROW = {"name", "max abs", "ulps"}
_WORST = ("A there", "B there")


def comparison_page(found: Comparison) -> Page:
    """The page of a comparison."""
    table = comparison_table(found)
    heads, rows = (table.heads, table.rows) if table is not None else ((), ())
    numbers = frozenset((*(table.right if table is not None else ()), *_WORST)) - {"worst at"}
    shown = {
        "found": found,
        "verdict": comparison_line(found),
        "advice": found.advice,
        "facts": list(_facts(found)),
        "columns": [(head, _css(head, numbers)) for head in (*heads, *_WORST)] if rows else [],
        "rows": [
            ((*row, number_text(item.worst_a), number_text(item.worst_b)), item.why)
            for row, item in zip(rows, found.differing, strict=True)
        ],
        "whys": list(dict.fromkeys(item.why for item in found.differing)),
        "sides": [("A", found.a, found.only_in_a), ("B", found.b, found.only_in_b)],
        "has_values": any(item.spread for item in found.differing),
    }
    title = " and ".join(PurePath(side).name or side for side in (found.a, found.b))
    names = [row[0] for row in rows]
    drawn = [_data(name, item) for name, item in zip(names, found.differing, strict=True)]
    return Page("comparison", title, "wnconvert compare", shown, {"rows": drawn})


def _facts(found: Comparison) -> Iterator[tuple[str, str]]:
    yield "A", found.a
    yield "B", found.b
    paths = [pair for pair in found.pairs if pair != ("", "")]
    if paths:
        yield (
            "state dicts",
            "; ".join(a if a == b else f"{a or '(root)'} and {b or '(root)'}" for a, b in paths),
        )
    layers = counted(found.layers, "layer")
    yield "compared", f"{counted(found.compared, 'tensor')}, {layers} among them, by the weights they compute"
    yield "equal means", found.tolerance
    if found.tolerance_needed is not None:
        yield "largest distance", f"{found.tolerance_needed.ulps:,} ulps of the coarser dtype"


def _css(head: str, numbers: frozenset[str]) -> str:
    kind = ["number"] if head in numbers else [] if head == "name" else ["word"]
    return " ".join([*kind, *([] if head in _NARROW else ["wide"])])


def _data(name: str, item: Difference) -> dict[str, Any]:
    return {
        "name": name,
        "ulps": item.ulps,
        "max abs": item.max_abs,
        "SNR dB": item.snr_db,
        "spread": list(item.spread),
        "why": item.why,
    }
