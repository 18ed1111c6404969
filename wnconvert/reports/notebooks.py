"""What a result shows of itself: the cell of a notebook, a frame, a picture (see ``wnconvert.shown``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING

from wnconvert.frozen import dataclass
from wnconvert.messages import few, options_as_python
from wnconvert.plan.plan import Plan
from wnconvert.reports.cards import card_text
from wnconvert.reports.drawings import drawn_on
from wnconvert.reports.frames import frame_of
from wnconvert.reports.html.comparisons import comparison_page, folders_page
from wnconvert.reports.html.inspections import inspection_page
from wnconvert.reports.html.models import models_page
from wnconvert.reports.html.page import Page, page_text, write_page
from wnconvert.reports.html.proofs import proof_page
from wnconvert.reports.tables import Table, html_text
from wnconvert.reports.text.comparisons import comparison_line, comparison_more, comparison_table
from wnconvert.reports.text.conversions import (
    plan_counts,
    plan_more,
    plan_table,
    result_line,
    verified_lines,
)
from wnconvert.reports.text.exports import proof_more, proof_table
from wnconvert.reports.text.inspections import inspection_facts, inspection_tables
from wnconvert.shown import Drawn, Paged, Shown
from wnconvert.verbs.comparison.result import Comparison
from wnconvert.verbs.conversion.convert import Result
from wnconvert.verbs.export.pairs.result import OnnxComparison
from wnconvert.verbs.fleet.comparing import FolderComparison
from wnconvert.verbs.inspection.result import Inspection
from wnconvert.verbs.models.proof.report import ExportReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

__all__ = ["MOST_ROWS", "cell_html", "drawing", "frame", "model_card", "page_html", "write_page_of"]


#: The most rows of a table in a cell.
MOST_ROWS = 20
#: Names with dollar signs are no formulas: notebooks set what stands between two of them as such.
_NO_FORMULAS = 'class="tex2jax_ignore mathjax_ignore"'


def cell_html(result: Shown) -> str:
    """A result as the command line prints it, as HTML: at most 20 rows of a table, every text escaped."""
    with options_as_python():
        cell = _cell(result)
        facts = [f"<b>{html_text(name)}</b>: {html_text(text)}" for name, text in cell.facts]
        tables = [table.html(MOST_ROWS) for table in cell.tables]
        lines = [html_text(line) for line in cell.lines]
    parts = [_paragraph(facts), *tables, _paragraph(lines)]
    return "\n".join([f"<div {_NO_FORMULAS}>", *filter(None, parts), "</div>"])


def frame(result: Shown) -> DataFrame:
    """The rows of a result as a frame."""
    return frame_of(result)


def drawing(result: Drawn, ax: Axes | None) -> Axes:
    """The axes on which the numbers of a result were drawn."""
    return drawn_on(result, ax)


def page_html(result: Paged) -> str:
    """A result as a page of its own."""
    return page_text(_page(result))


def write_page_of(result: Paged, path: str | Path, *, force: bool) -> None:
    """Write the page of a result."""
    write_page(_page(result), path, force=force)


@singledispatch
def _page(result: Paged) -> Page:
    raise TypeError(f"{type(result).__name__} has no page")


@_page.register
def _page_of_inspection(found: Inspection) -> Page:
    return inspection_page(found)


@_page.register
def _page_of_comparison(found: Comparison) -> Page:
    with options_as_python():
        return comparison_page(found)


@_page.register
def _page_of_folders(found: FolderComparison) -> Page:
    with options_as_python():
        return folders_page(found)


@_page.register
def _page_of_models(found: OnnxComparison) -> Page:
    with options_as_python():
        return models_page(found)


@_page.register
def _page_of_report(report: ExportReport) -> Page:
    with options_as_python():
        return proof_page(report)


def model_card(found: Shown, report: Shown) -> str:
    """The model card of an ONNX model, of its inspection and the report of its export."""
    if not isinstance(found, Inspection) or not isinstance(report, ExportReport):
        raise TypeError(f"no card is made of {type(found).__name__} and {type(report).__name__}")
    return card_text(found, report)


def _paragraph(lines: Sequence[str]) -> str:
    return f'<p style="white-space:pre-wrap">{"<br>".join(lines)}</p>' if lines else ""


@dataclass(frozen=True, slots=True)
class _Cell:
    """What a cell shows: facts by name, tables, and lines below them."""

    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    lines: Sequence[str] = ()


@singledispatch
def _cell(result: Shown) -> _Cell:
    raise TypeError(f"{type(result).__name__} is not shown in a notebook")


@_cell.register
def _of_plan(plan: Plan) -> _Cell:
    line = f"{'would write' if plan.writes else 'would write nothing'}: {plan_counts(plan)}"
    return _Cell((), _tables(plan_table(plan)), [*plan_more(plan), line, *_noted(plan.notes)])


@_cell.register
def _of_result(result: Result) -> _Cell:
    written = result.output is not None
    tables = _tables(plan_table(result.plan)) if written else ()
    more = plan_more(result.plan) if written else ()
    lines = [*more, *verified_lines(result), result_line(result), *_noted(result.notes)]
    return _Cell((), tables, lines)


@_cell.register
def _of_inspection(found: Inspection) -> _Cell:
    return _Cell(list(inspection_facts(found)), inspection_tables(found))


@_cell.register
def _of_comparison(found: Comparison) -> _Cell:
    lines = [*comparison_more(found), comparison_line(found), *_noted(found.notes)]
    return _Cell((), _tables(comparison_table(found)), lines)


@_cell.register
def _of_report(report: ExportReport) -> _Cell:
    return _Cell((), _tables(proof_table(report.proof)), [*proof_more(report), *_noted(report.notes)])


def _tables(*tables: Table | None) -> Sequence[Table]:
    return [table for table in tables if table is not None]


def _noted(notes: Iterable[str]) -> list[str]:
    return [f"note: {note}" for note in few(notes)]
