"""Results as text: tables for people. As data, each result has its own ``to_dict``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wnconvert.convert import Result
from wnconvert.errors import printable
from wnconvert.plan import Keep, Plan, describe_layer
from wnconvert.tables import Table, number_text

if TYPE_CHECKING:
    from wnconvert.inspection import Inspection

__all__ = ["FORMATS", "SORTS", "bytes_text", "inspection_text", "moves_text", "plan_text", "result_text"]


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
        if size < 999.95:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _layers(plan: Plan) -> str:
    rows = [describe_layer(path, fold) for path, fold in plan.layers]
    columns = ["name", "form", "dim", "shape", "dtype", "rows"]
    return _table(rows, columns).text() if rows else ""


_HEADS = {"name": "layer", "state_dict": "state dict", "zero_rows": "zero rows"}
_RIGHT = frozenset(("dim", "rows", "zero rows", "count", "tensors", "parameters", "bytes"))


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    """Rows of named values as a table; where they are of several state dicts, these come first."""
    if len({row["state_dict"] for row in rows}) > 1:
        columns = ["state_dict", *columns]
    heads = tuple(_HEADS.get(column, column) for column in columns)
    cells = tuple(tuple(_cell(column, row[column]) for column in columns) for row in rows)
    right = _RIGHT | {head for head in heads if head.startswith(("|", "‖", "g/"))}
    return Table(heads, cells, right, elastic=("layer", "flags"))


def _cell(column: str, value: Any) -> str:
    if column == "dim":
        return "none" if value is None else str(value)
    if column == "shape":
        return "×".join(map(str, value)) or "()"
    if column == "flags":
        return ", ".join(value)
    if value is None or isinstance(value, float):
        return number_text(value)
    return str(value)


def _counts(plan: Plan) -> str:
    steps = [step for planned in plan.state_dicts for step in planned.steps]
    cast = sum(isinstance(step, Keep) and step.dtype is not None for step in steps)
    kept = sum(isinstance(step, Keep) and step.is_tensor for step in steps) - cast
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
    return [f"left out: {', '.join(paths)} ({printable(why)})" for why, paths in by_reason.items()]


# -- inspect

#: Formats of ``inspect``.
FORMATS = ("table", "json", "csv", "markdown")

#: What ``inspect --sort`` takes, and the value that it sorts by: names upwards, numbers the largest first.
SORTS = {
    "name": "name",
    "form": "form",
    "rows": "rows",
    "g-min": "|g| min",
    "g-mean": "|g| mean",
    "g-max": "|g| max",
    "norm": "‖v‖ mean",
    "ratio": "g/‖v‖ max",
}
_PARTS = ("min", "mean", "max")


def inspection_text(
    found: Inspection,
    *,
    style: str = "table",
    sort: str | None = None,
    top: int | None = None,
    width: int | None = None,
) -> str:
    """An inspection as text, Markdown, or CSV (the layers alone)."""
    layers = [_flat(item.to_dict()) for item in found.layers]
    if sort is not None:
        layers.sort(key=_sort_key(SORTS[sort]))
    layers = layers[:top]
    of_v = ["‖v‖ mean", "g/‖v‖ min", "g/‖v‖ max"] if any(row["norm"] for row in layers) else []
    columns = ["name", "form", "dim", "shape", "dtype", *(f"|g| {part}" for part in _PARTS), *of_v, "flags"]
    if style == "csv":
        return _table(layers, columns).csv()
    # What is the same in every row is said above, or is nothing.
    dull = {column for column in ("dtype", "flags") if len({str(row[column]) for row in layers}) == 1}
    dull -= {"flags"} if any(row["flags"] for row in layers) else set()
    table = _table(layers, [column for column in columns if column not in dull])
    if style == "markdown":
        facts = "\n".join(f"- **{name}**: {printable(text)}" for name, text in _facts(found))
        return "\n\n".join([facts, *([table.markdown()] if layers else [])])
    facts = "\n".join(f"{name + ':':<13} {printable(text)}" for name, text in _facts(found))
    return "\n\n".join([facts, *([table.text(width)] if layers else [])])


def _flat(layer: dict[str, Any]) -> dict[str, Any]:
    """A layer's spreads as columns of their own."""
    for name, sign in (("g", "|g|"), ("norm", "‖v‖"), ("ratio", "g/‖v‖")):
        layer |= {f"{sign} {part}": layer[name][part] if layer[name] else None for part in _PARTS}
    return layer


def _sort_key(column: str) -> Callable[[dict[str, Any]], Any]:
    if column in ("name", "form"):
        return lambda row: str(row[column])
    return lambda row: -row[column] if row[column] is not None else math.inf


def _facts(found: Inspection) -> Iterator[tuple[str, str]]:
    """The first block: what the file is, what it holds, what could be done with it."""
    yield "file", f"{found.source} ({found.container}, {bytes_text(found.bytes)})"
    dtypes = ", ".join(f"{name} {count:,}" for name, count in found.dtypes.items())
    yield "parameters", f"{found.parameters:,}" + (f" ({dtypes})" if dtypes else "")
    yield "devices", ", ".join(found.devices) or "none named"
    for state in found.state_dicts:
        forms = ", ".join(f"{count} {form}" for form, count in state.layers.items()) or "no layers"
        tensors = f"{_number(state.tensors, 'tensor')}, {bytes_text(state.bytes)}, layers: {forms}"
        yield "state dict", f"{state.path or '(root)'}: {tensors}"
    if not found.state_dicts:
        yield "state dict", "none"
    for sibling in found.siblings:
        size = f", {bytes_text(sibling.bytes)} of tensors" if sibling.bytes else ""
        yield "sibling", f"{sibling.path} ({sibling.kind}{size})"
    if found.foreign:
        yield "names", f"{', '.join(found.foreign)} (kept as data, never imported)"
    if found.dangerous:
        yield "DANGER", f"{', '.join(found.dangerous)} would run something where this file is loaded"
    for kind in found.kinds:
        example = f"{kind.state_dict}: {kind.example}" if kind.state_dict else kind.example
        folds = {"yes": "folds exactly", "no": "does not fold", "if known": "folds exactly only"}[kind.folds]
        yield "also", f"{kind.count} × {kind.kind} (as {example}), {folds}: {kind.how}"
    yield "fold", found.fold
    yield "migrate", found.migrate
    for note in found.notes:
        yield "note", note


def moves_text(
    found: Sequence[Inspection], *, style: str = "table", top: int | None = None, width: int | None = None
) -> str:
    """Mean |g| of each layer over several files, the layers that moved most first."""
    from wnconvert.inspection import moves  # which a fold's table need not wait for

    heads = ("layer", *_apart([inspection.source for inspection in found]), "moved")
    rows = tuple(
        (move.name, *map(number_text, move.means), f"{move.moved:.2%}") for move in moves(found)[:top]
    )
    table = Table(heads, rows, frozenset(heads[1:]), elastic=("layer",))
    if style == "csv":
        return table.csv()
    return table.markdown() if style == "markdown" else table.text(width)


def _apart(paths: Sequence[str]) -> list[str]:
    """File names where these differ, else paths."""
    names = [path.rpartition("/")[2] for path in paths]
    return names if len(set(names)) == len(names) else list(paths)
