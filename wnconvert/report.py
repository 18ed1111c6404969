"""Results as text: tables for people. As data, each result has its own ``to_dict``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from wnconvert.convert import Result
from wnconvert.errors import printable
from wnconvert.plan import Keep, Plan, describe_layer

__all__ = ["bytes_text", "plan_text", "result_text"]


def plan_text(plan: Plan, output: str) -> str:
    """What ``--dry-run`` prints: the layers, and what would be written."""
    lines = [_layers(plan), f"would write {output}: {_counts(plan)}", *_dropped(plan)]
    return "\n".join(line for line in lines if line)


def result_text(result: Result) -> str:
    """What a conversion prints: the layers, then counts, bytes and time."""
    sizes = f"{bytes_text(result.bytes_in)} in, {bytes_text(result.bytes_out)} out"
    lines = [
        _layers(result.plan),
        f"{result.output}: {_counts(result.plan)}; {sizes}, in {result.seconds:.2f} s",
        f"read back and recomputed by {result.verified}" if result.verified else "",
        *_dropped(result.plan),
    ]
    return "\n".join(line for line in lines if line)


def bytes_text(count: int) -> str:
    """A number of bytes in decimal units.

    >>> bytes_text(999), bytes_text(1_234_567)
    ('999 B', '1.2 MB')
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _layers(plan: Plan) -> str:
    rows = [describe_layer(path, fold) for path, fold in plan.layers]
    columns = ["name", "form", "dim", "shape", "dtype", "rows"]
    if len({row["state_dict"] for row in rows}) > 1:
        columns.insert(0, "state_dict")
    heads = ["layer" if column == "name" else column.replace("_", " ") for column in columns]
    cells = [[_cell(column, row[column]) for column in columns] for row in rows]
    return _table(heads, cells) if rows else ""


def _cell(column: str, value: Any) -> str:
    if column == "dim":
        return "none" if value is None else str(value)
    if column == "shape":
        return "×".join(map(str, value)) or "()"
    return printable(str(value))


def _table(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    align = ["right" if head in ("dim", "rows") else "left" for head in heads]
    text = tabulate(cells, heads, tablefmt="simple", disable_numparse=True, colalign=align)
    return "\n".join(line.rstrip() for line in text.splitlines())


def _counts(plan: Plan) -> str:
    steps = [step for planned in plan.state_dicts for step in planned.steps]
    cast = sum(isinstance(step, Keep) and step.dtype is not None for step in steps)
    kept = sum(isinstance(step, Keep) for step in steps) - cast
    counts = [f"{_number(len(plan.layers), 'layer')} folded"]
    if cast:
        counts.append(f"{_number(cast, 'tensor')} cast")
    if kept or not cast:
        counts.append(f"{_number(kept, 'tensor')} kept")
    return ", ".join(counts)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _dropped(plan: Plan) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for item in plan.dropped:
        by_reason.setdefault(item.why, []).append(printable(item.path))
    return [f"left out: {', '.join(paths)} ({why})" for why, paths in by_reason.items()]
