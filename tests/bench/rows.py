"""A row of the table of figures: what wnconvert takes, what it is held against, and the bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.inputs import MIB
from tests.bench.measure import Runs

HEAD = ("", "wnconvert", "its memory", "against", "takes", "ratio")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``most``: the ratio or the bytes that are to be met, 0 for none."""

    what: str
    ours: Runs
    other: str = ""
    others: Runs | None = None
    most: float = 0
    most_anonymous: int = 0

    def cells(self) -> list[str]:
        """The cells of the line, as ``HEAD`` names them."""
        seconds = ratio = ""
        if self.others:
            quotient = self.ours.median / self.others.median
            seconds = f"{self.others.median:.3g} s"
            ratio = f"**{quotient:.2f}**" + (f" ({verdict(quotient, self.most)})" if self.most else "")
        memory = _mib(self.ours.anonymous)
        if self.most_anonymous:
            memory += f" ({verdict(self.ours.anonymous / MIB, self.most_anonymous / MIB)})"
        if self.others and self.others.anonymous:
            seconds += f", {_mib(self.others.anonymous)}"
        return [self.what, f"{self.ours.median:.3g} s", memory, self.other, seconds, ratio]


def verdict(found: float, most: float) -> str:
    """The bound, and whether it was met."""
    return f"at most {most:g}" if found <= most else f"MISSED: at most {most:g}"


def line(cells: Sequence[str]) -> str:
    """Cells as a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _mib(size: int) -> str:
    return f"{size / MIB:.0f} MiB" if size else ""
