"""Comparisons as pages: what differs and by how much, of two checkpoints, or of two folders file by file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from wnconvert.frozen import dataclass
from wnconvert.messages import counted
from wnconvert.reports.html.page import Page
from wnconvert.reports.tables import distance_text, number_text
from wnconvert.reports.text.comparisons import comparison_line, comparison_table
from wnconvert.reports.text.fleets import folders_line, pair_text
from wnconvert.verbs.comparison.result import Comparison, Difference
from wnconvert.verbs.fleet.comparing import FileComparison, FolderComparison

__all__ = ["ABOUT", "ShownComparison", "comparison_page", "folders_page", "shown_comparison", "sides_text"]


#: What stands above the title of each of these pages.
ABOUT = "wnconvert compare"
#: The columns that stay where the screen is narrow.
_NARROW = {"name", "max abs", "ulps"}
_WORST = ("A there", "B there")
#: The most tensors, and names on one side, that a pair of many shows.
_MOST_OF_MANY = 200


@dataclass(frozen=True, slots=True)
class ShownComparison:
    """What a template shows of a comparison: a verdict, facts, columns, rows of cells (and why each differs).

    ``noun`` is what is compared, ``has_distances`` whether there are several to draw, and ``left_out`` the
    number of differences that are not shown. ``data`` is what the script draws, by name.
    """

    found: Comparison
    noun: str
    verdict: str
    advice: str
    facts: tuple[tuple[str, str], ...]
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[tuple[str, ...], str], ...]
    whys: tuple[str, ...]
    sides: tuple[tuple[str, str, tuple[str, ...]], ...]
    has_distances: bool
    left_out: int
    data: Mapping[str, Any]


def shown_comparison(found: Comparison, noun: str = "tensor", most: int | None = None) -> ShownComparison:
    """A comparison as templates show it, with ``most`` of the differences, the first ones."""
    differing = found.differing[:most]
    table = comparison_table(found)
    heads, cells = (table.heads, table.rows[:most]) if table is not None else ((), ())
    numbers = frozenset((*(table.right if table is not None else ()), *_WORST)) - {"worst at"}
    rows = tuple(
        ((*row, number_text(item.worst_a), number_text(item.worst_b)), item.why)
        for row, item in zip(cells, differing, strict=True)
    )
    drawn = [_data(row[0], item) for row, item in zip(cells, differing, strict=True)]
    return ShownComparison(
        found,
        noun,
        comparison_line(found),
        found.advice,
        tuple(_facts(found, noun)),
        tuple((head, _css(head, numbers)) for head in (*heads, *_WORST)) if rows else (),
        rows,
        tuple(dict.fromkeys(item.why for item in differing)),
        (("A", found.a, found.only_in_a), ("B", found.b, found.only_in_b)),
        sum(bool(item.spread) for item in differing) > 1,
        len(found.differing) - len(rows),
        {"noun": noun, "rows": drawn},
    )


def comparison_page(found: Comparison) -> Page:
    """The page of a comparison of two checkpoints."""
    compared = shown_comparison(found)
    title = sides_text(found.a, found.b)
    return Page("comparison", title, ABOUT, {"compared": compared}, {"comparisons": [compared.data]})


def sides_text(a: str, b: str) -> str:
    """Two files in a title.

    >>> sides_text("runs/a.pt", "b.pt")
    'a.pt and b.pt'
    """
    return " and ".join(PurePath(side).name or side for side in (a, b))


def _facts(found: Comparison, noun: str) -> Iterator[tuple[str, str]]:
    yield "A", found.a
    yield "B", found.b
    paths = [pair for pair in found.pairs if pair != ("", "")]
    if paths:
        yield (
            "state dicts",
            "; ".join(a if a == b else f"{a or '(root)'} and {b or '(root)'}" for a, b in paths),
        )
    layers = counted(found.layers, "layer")
    yield "compared", f"{counted(found.compared, noun)}, {layers} among them, by the weights they compute"
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


# -- folders


_FILE_COLUMNS = (
    ("file", ""),
    ("verdict", "word long-word"),
    ("compared", "number wide"),
    ("different", "number"),
    ("only in A", "number wide"),
    ("only in B", "number wide"),
    ("ulps", "number"),
    ("max abs", "number"),
    ("SNR dB", "number wide"),
)


@dataclass(frozen=True, slots=True)
class _ShownPair:
    """Two files: what they are called, the cells of their row, and the comparison below it, or the error."""

    name: str
    verdict: str
    cells: tuple[str, ...]
    compared: ShownComparison | None
    error: tuple[str, ...]


def folders_page(found: FolderComparison) -> Page:
    """The page of two folders: a row for each pair of files, and each pair's comparison below."""
    pairs = tuple(map(_shown_pair, found.files))
    shown = {
        "found": found,
        "verdict": folders_line(found),
        "facts": [("A", found.a), ("B", found.b)],
        "columns": _FILE_COLUMNS,
        "pairs": pairs,
        "verdicts": list(dict.fromkeys(pair.verdict for pair in pairs)),
        "sides": [("A", found.a, found.only_in_a), ("B", found.b, found.only_in_b)],
    }
    data = [pair.compared.data if pair.compared else {"noun": "tensor", "rows": []} for pair in pairs]
    title = sides_text(found.a, found.b)
    return Page("folders", title, ABOUT, shown, {"comparisons": data}, uses=("comparison",))


def _shown_pair(item: FileComparison) -> _ShownPair:
    name, found, error = pair_text(item), item.found, item.error
    if found is None:
        said = tuple(filter(None, (error.heading, error.fix))) if error is not None else ()
        return _ShownPair(name, "not compared", ("",) * (len(_FILE_COLUMNS) - 2), None, said)
    compared = shown_comparison(found, most=_MOST_OF_MANY)
    verdict = "equal" if found else "different"
    return _ShownPair(name, verdict, tuple(_counts(found)), compared, ())


def _counts(found: Comparison) -> Iterator[str]:
    """The cells of a pair's row behind its verdict."""
    sizes = (found.compared, len(found.differing), len(found.only_in_a), len(found.only_in_b))
    yield from (f"{size:,}" for size in sizes)
    ulps, largest, snr = (
        _extreme(most, found.differing, name)
        for most, name in ((max, "ulps"), (max, "max_abs"), (min, "snr_db"))
    )
    yield "" if ulps is None else f"{ulps:,}"
    yield distance_text(largest, sum(item.unmatched for item in found.differing))
    yield number_text(snr)


def _extreme(most: Any, items: Sequence[Difference], name: str) -> float | None:
    """The largest or the least of a number that some differences have; None where none has it."""
    values = [value for item in items if (value := getattr(item, name)) is not None]
    return most(values, default=None)  # type: ignore[no-any-return]
