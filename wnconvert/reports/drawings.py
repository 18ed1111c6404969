"""The numbers of one result drawn on axes of matplotlib: magnitudes, differences, proofs."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, singledispatch
from typing import TYPE_CHECKING

from wnconvert.errors import ArgumentError
from wnconvert.frozen import dataclass
from wnconvert.messages import options_as_python, printable
from wnconvert.reports.plots import (
    check_magnitudes,
    check_matplotlib,
    draw_boxes,
    name_rows,
    picture_inches,
)
from wnconvert.reports.tables import shortened
from wnconvert.shown import Drawn
from wnconvert.verbs.comparison.result import Comparison, qualified
from wnconvert.verbs.inspection.result import Inspection
from wnconvert.verbs.models.proof.outputs import OutputProof
from wnconvert.verbs.models.proof.report import ExportReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["drawn_on"]


_GOOD, _BAD = "#4878a8", "#b4402c"
_FEW_DECADES = 1000


@dataclass(frozen=True, slots=True)
class _Drawing:
    """How many rows a picture has, and what draws it."""

    rows: int
    draw: Callable[[Axes], None]


def drawn_on(result: Drawn, ax: Axes | None = None) -> Axes:
    """Draw the numbers of a result on some axes, or on those of a new figure; the axes.

    An inspection: |g| of each layer, as boxes. A comparison: max |a-b| of each tensor that differs. A report:
    max |onnx-torch| of each output, and what was allowed at its worst element. Raises ``ArgumentError`` if
    matplotlib is not installed, or if there is nothing to draw.
    """
    check_matplotlib()
    with options_as_python():
        drawing = _drawing(result)
    if ax is None:
        from matplotlib import pyplot as plt

        _, ax = plt.subplots(figsize=picture_inches(drawing.rows), layout="constrained")
    drawing.draw(ax)
    return ax


@singledispatch
def _drawing(result: Drawn) -> _Drawing:
    raise TypeError(f"a {type(result).__name__} is not drawn")


@_drawing.register
def _of_inspection(found: Inspection) -> _Drawing:
    return _Drawing(check_magnitudes([found]), partial(draw_boxes, found=found))


@_drawing.register
def _of_comparison(found: Comparison) -> _Drawing:
    several = len(found.pairs) > 1
    rows = [
        (qualified(item.state_dict, item.name) if several else item.name, item.max_abs)
        for item in found.differing
        if item.max_abs
    ]
    if not rows:
        raise ArgumentError("no values differ: there is nothing to draw", fix="ask first: if not comparison")

    def draw(axes: Axes) -> None:
        axes.scatter([value for _, value in rows], range(len(rows)), color=_GOOD, s=14, zorder=3)
        _log(axes)
        axes.set_xlabel("max |a−b| of each tensor that differs")
        name_rows(axes, [name for name, _ in rows])
        names = " and ".join(shortened(printable(name), 32) for name in (found.a, found.b))
        axes.set_title(names, fontsize=10, parse_math=False)

    return _Drawing(len(rows), draw)


@_drawing.register
def _of_report(report: ExportReport) -> _Drawing:
    outputs = [output for output in report.outputs if output.worst is not None and output.max_abs > 0]
    if not outputs:
        raise ArgumentError("no output differs: there is nothing to draw", fix="to_pandas() has the proof")

    def draw(axes: Axes) -> None:
        places = range(len(outputs))
        allowed = [_allowed(report, output) for output in outputs]
        found = [output.max_abs for output in outputs]
        axes.hlines(places, found, allowed, color="0.8", linewidth=1.2, zorder=1)
        axes.scatter(allowed, places, marker="|", color="0.35", s=60, label="allowed there")
        for passed, color, word in ((True, _GOOD, "within"), (False, _BAD, "not within")):
            these = [place for place in places if outputs[place].passed is passed]
            values = [found[place] for place in these]
            if these:
                label = f"max |onnx−torch|, {word} the tolerance"
                axes.scatter(values, these, color=color, s=18, zorder=3, label=label)
        _log(axes)
        axes.set_xlabel(f"allowed at the worst element: {report.proof.tolerance}")
        name_rows(axes, [output.name for output in outputs])
        axes.legend(fontsize=7)
        axes.set_title(shortened(printable(report.model), 64), fontsize=10, parse_math=False)

    return _Drawing(len(outputs), draw)


def _log(axes: Axes) -> None:
    """A log axis of plain numbers: of few decades some within them, of many their ends alone."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < _FEW_DECADES else (1,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _allowed(report: ExportReport, output: OutputProof) -> float:
    """What the tolerance allows at the worst element of an output."""
    worst = output.worst
    reference = abs(worst.reference) if worst is not None and math.isfinite(worst.reference) else 0.0
    return report.proof.atol + report.proof.rtol * reference
