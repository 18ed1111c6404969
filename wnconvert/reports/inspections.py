"""Inspections as text: facts, then a row a layer; or one row a layer over several files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from wnconvert.messages import counted, printable
from wnconvert.reports.tables import Table, bytes_text, exact_text, layer_table, number_text
from wnconvert.tensors.containers import Container
from wnconvert.verbs.inspection.result import Inspection, moves

__all__ = ["SORTS", "arranged", "inspection_text", "moves_text"]


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


def arranged(found: Inspection, *, sort: str | None = None, top: int | None = None) -> Inspection:
    """The same inspection with its layers in another order, and the first ``top`` of them alone."""
    layers = list(found.layers)
    if sort is not None:
        key = _sort_key(SORTS[sort])
        layers.sort(key=lambda layer: key(_flat(layer.to_dict())))
    return replace(found, layers=tuple(layers[:top]))


def inspection_text(found: Inspection, *, style: str = "table", width: int | None = None) -> str:
    """An inspection as text, Markdown, or CSV (the layers alone)."""
    layers = [_flat(item.to_dict()) for item in found.layers]
    of_v = ["‖v‖ mean", "g/‖v‖ min", "g/‖v‖ max"] if any(row["norm"] for row in layers) else []
    columns = ["name", "form", "dim", "shape", "dtype", *(f"|g| {part}" for part in _PARTS), *of_v, "flags"]
    if style == "csv":
        return layer_table(layers, columns, exact_text).csv()
    # What is the same in every row is said above, or is nothing.
    dull = {column for column in ("form", "dtype", "flags") if len({str(row[column]) for row in layers}) == 1}
    dull -= {"flags"} if any(row["flags"] for row in layers) else set()
    table = layer_table(layers, [column for column in columns if column not in dull])
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
    version = f" version {found.version}" if found.version else ""
    if found.container == Container.ONNX:
        version = f", {found.version}"
    files = f", {counted(len(found.files), 'file')}" if found.files else ""
    what = f"{found.container}{version}{files}, {bytes_text(found.bytes)}"
    yield "folder" if found.files else "file", f"{found.source} ({what})"
    dtypes = ", ".join(f"{name} {count:,}" for name, count in found.dtypes.items())
    yield "parameters", f"{found.parameters:,}" + (f" ({dtypes})" if dtypes else "")
    yield "devices", ", ".join(found.devices) or "none named"
    for state in found.state_dicts:
        forms = ", ".join(f"{count} {form}" for form, count in state.layers.items()) or "no layers"
        tensors = f"{counted(state.tensors, 'tensor')}, {bytes_text(state.bytes)}, layers: {forms}"
        yield "state dict", f"{state.path or '(root)'}: {tensors}"
    if not found.state_dicts:
        yield "state dict", "none"
    for sibling in found.siblings:
        yield "sibling", f"{sibling.path} ({sibling.kind}, {bytes_text(sibling.bytes)})"
    if found.foreign:
        yield "names", f"{', '.join(found.foreign)} (kept as data, never imported)"
    if found.dangerous:
        yield "DANGER", f"{', '.join(found.dangerous)} would run something where this file is loaded"
    for kind in found.kinds:
        example = f"{kind.state_dict}: {kind.example}" if kind.state_dict else kind.example
        folds = {"yes": "folds exactly", "no": "does not fold", "if known": "folds exactly only"}[kind.folds]
        yield "also", f"{kind.count} × {kind.kind} (as {example}), {folds}: {kind.how}"
    yield "fold", found.fold
    if found.split:
        yield "split", found.split
    if found.migrate:
        yield "migrate", found.migrate
    for note in found.notes:
        yield "note", note


def moves_text(
    found: Sequence[Inspection], *, style: str = "table", top: int | None = None, width: int | None = None
) -> str:
    """Mean |g| of each layer over several files, the layers that moved most first."""
    number, part = (exact_text, exact_text) if style == "csv" else (number_text, _percent)
    heads = ("layer", *_apart([inspection.source for inspection in found]), "moved")
    rows = tuple((move.name, *map(number, move.means), part(move.moved)) for move in moves(found)[:top])
    table = Table(heads, rows, frozenset(heads[1:]), elastic=("layer",))
    if style == "csv":
        return table.csv()
    return table.markdown() if style == "markdown" else table.text(width)


def _percent(part: float | None) -> str:
    return "" if part is None else f"{part:.2%}"


def _apart(paths: Sequence[str]) -> list[str]:
    """File names where these differ, else paths."""
    names = [path.rpartition("/")[2] for path in paths]
    return names if len(set(names)) == len(names) else list(paths)
