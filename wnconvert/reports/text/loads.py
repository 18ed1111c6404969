"""Whether a folder loads, as text: a row for each tensor that does not fit, and the verdict."""

from __future__ import annotations

from collections.abc import Callable

from wnconvert.messages import counted, printable
from wnconvert.reports.tables import Table
from wnconvert.verbs.loads.result import LoadReport

__all__ = ["loads_line", "loads_text"]


_MOST = 40


def loads_text(report: LoadReport, width: int | None = None, alarm: Callable[[str], str] = str) -> str:
    """The output of ``loads``; long lists are cut, which ``--json`` has whole. ``alarm`` marks a misfit."""
    rows = [
        *(("missing", name, "") for name in report.missing),
        *(
            ("other shape", item.name, f"{_shape(item.shape)}, expected {_shape(item.expected)}")
            for item in report.misfits
        ),
        *(("unexpected", name, "") for name in report.unexpected),
    ]
    shown = tuple((what, printable(name), shape) for what, name, shape in rows[:_MOST])
    table = Table(("", "tensor", "shape"), shown, elastic=("tensor",))
    if not report.misfits:
        table = Table(table.heads[:2], tuple(row[:2] for row in shown), elastic=("tensor",))
    lines = [table.text(width)] if rows else []
    lines += [f"and {len(rows) - _MOST} more: --json lists all"] if len(rows) > _MOST else []
    lost = len(report.missing) + len(report.misfits)
    lines += [f"from_pretrained would leave {counted(lost, 'tensor')} random"] if lost else []
    return "\n".join([*lines, loads_line(report, alarm)])


def loads_line(report: LoadReport, alarm: Callable[[str], str] = str) -> str:
    """The verdict in one line: the class, and how many tensors do not fit."""
    cls = f"{report.class_name} of {report.library} {report.version}"
    there = counted(report.tensors, "tensor")
    if report:
        return printable(f"{report.folder} loads into {cls}: {there}, none missing, none unexpected")
    counts = [f"{len(report.missing)} missing"] if report.missing else []
    counts += [f"{len(report.misfits)} of another shape"] if report.misfits else []
    counts += [f"{len(report.unexpected)} unexpected"] if report.unexpected else []
    how = alarm("does not load")
    return f"{printable(report.folder)} {how} {printable(f'into {cls}: {there}, ' + ', '.join(counts))}"


def _shape(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes)) or "()"
