"""A training run as a page: how far each layer moved from step to step, and which never did."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from wnconvert.errors import ArgumentError
from wnconvert.frozen import dataclass
from wnconvert.messages import counted
from wnconvert.reports.html.page import Page
from wnconvert.reports.tables import number_text
from wnconvert.verbs.inspection.result import Inspection, Move, moves

__all__ = ["RunSteps", "run_page", "steps_of"]


_COLUMNS = (
    ("layer", ""),
    ("moved", "number"),
    ("first", "number wide"),
    ("last", "number wide"),
    ("at the step", "number"),
    ("of the first", "number"),
)
#: So many layers have a chart of their own: those that moved most.
_MULTIPLES = 24
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class RunSteps:
    """The files of a run in the order of their steps, the number of each, and what told the numbers."""

    found: tuple[Inspection, ...]
    numbers: tuple[int, ...]
    told_by: str


def steps_of(found: Sequence[Inspection]) -> RunSteps:
    """The files of a run, by the steps that they say they are of, else by the numbers in their names.

    Where neither tells all of them apart, they stay as they are given, and count from 1.
    """
    names = {each.step[0] for each in found if each.step is not None}
    said = [each.step[1] for each in found if each.step is not None]
    in_names = [_last_number(each.source) for each in found]
    for numbers, told_by in (
        (said if len(names) == 1 else [], f"{next(iter(names), '')} in each file"),
        ([number for number in in_names if number is not None], "the last number in each name"),
    ):
        if len(set(numbers)) == len(found):
            order = sorted(range(len(found)), key=numbers.__getitem__)
            return RunSteps(tuple(found[at] for at in order), tuple(sorted(numbers)), told_by)
    return RunSteps(tuple(found), tuple(range(1, len(found) + 1)), "the order of the files")


def _last_number(source: str) -> int | None:
    """The last number in the name of a file, without its suffix.

    >>> _last_number("run2/step_1000.pt"), _last_number("g_02500000"), _last_number("model.pt")
    (1000, 2500000, None)
    """
    name = PurePath(source).name
    digits = re.findall(r"\d+", name.partition(".")[0]) or re.findall(r"\d+", name)
    return int(digits[-1]) if digits else None


def run_page(found: Sequence[Inspection]) -> Page:
    """The page of a run. Raises ``ArgumentError`` if no layer has a magnitude in two files."""
    run = steps_of(found)
    moved = [move for move in moves(run.found) if move.moved is not None]
    if not moved:
        raise ArgumentError(
            "no layer has magnitudes in two of these files: there is no run to show",
            fix="name checkpoints of one run; --full reads the magnitudes of folded layers",
        )
    still = [move for move in moved if move.moved == 0]
    known = [[value for value in move.means if value is not None] for move in moved]
    shown = {
        "facts": [
            ("files", str(len(run.found))),
            ("steps", f"{run.numbers[0]:,} to {run.numbers[-1]:,}, by {run.told_by}"),
            ("layers", f"{len(moved):,} with magnitudes in two files or more"),
            ("moved most", f"{moved[0].name}: {_percent(moved[0])}"),
            ("never moved", counted(len(still), "layer")),
        ],
        "files": [(f"{number:,}", each.source) for number, each in zip(run.numbers, run.found, strict=True)],
        "columns": _COLUMNS,
        "rows": [
            (
                (move.name, _percent(move), number_text(values[0]), number_text(values[-1]), "", ""),
                move.moved != 0,
            )
            for move, values in zip(moved, known, strict=True)
        ],
        "still": still,
        "last": len(run.numbers) - 1,
        "multiples": min(len(moved) - len(still), _MULTIPLES),
    }
    data = {
        "steps": list(run.numbers),
        "moved": len(moved) - len(still),
        "layers": [{"name": move.name, "means": [_rounded(value) for value in move.means]} for move in moved],
    }
    return Page("run", _title(run), "wnconvert inspect", shown, data)


def _title(run: RunSteps) -> str:
    first, last = (PurePath(run.found[at].source).name for at in (0, -1))
    return f"{first} to {last}"


def _percent(move: Move) -> str:
    return "" if move.moved is None else f"{move.moved:.2%}"


def _rounded(value: float | None) -> Any:
    return None if value is None else float(f"{value:.{_DIGITS}g}")
