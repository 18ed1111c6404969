"""Inspections as text: facts, then a row for each layer; for several files, a row for each layer over all."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from wnconvert.layers.rules import Norm
from wnconvert.messages import counted, few, listed, option, printable
from wnconvert.plan.plan import ComputedWeight
from wnconvert.reports.tables import (
    Table,
    bytes_text,
    exact_text,
    layer_table,
    markdown_text,
    number_text,
)
from wnconvert.tensors.containers import Container
from wnconvert.verbs.inspection.magnitudes import LayerStats
from wnconvert.verbs.inspection.result import Inspection, NormSummary, moves

__all__ = [
    "SORTS",
    "arranged",
    "healths_text",
    "inspection_facts",
    "inspection_rows",
    "inspection_tables",
    "inspection_text",
    "moves_text",
    "rounding_text",
    "weights_section",
]


#: The choices of ``inspect --sort``, each with its column: names are sorted upwards, numbers downwards.
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
    """The same inspection with its layers in another order, and only the first ``top`` of them.

    Tensors are sorted by name alone.
    """
    layers = list(found.layers)
    if sort is not None:
        key = _sort_key(SORTS[sort])
        layers.sort(key=lambda layer: key(_flat(layer)))
    tensors = found.tensors
    if tensors is not None:
        tensors = tuple(sorted(tensors, key=lambda it: it.name) if sort == "name" else tensors)[:top]
    return replace(found, layers=tuple(layers[:top]), tensors=tensors)


def inspection_text(
    found: Inspection,
    *,
    style: str = "table",
    width: int | None = None,
    alarm: Callable[[str], str] = str,
) -> str:
    """An inspection as text, Markdown, or CSV (of its table only: the layers, or what was asked for).

    ``alarm`` marks what is dangerous.
    """
    if style == "csv":
        tables = [*_metadata_tables(found), *_row_tables(found, style)]
        return tables[0].csv() if found.tensors is None else tables[-1].csv()
    tables = inspection_tables(found)
    if style == "markdown":
        return weights_section(found)
    said = ((f"{name + ':':<13} {printable(text)}", name) for name, text in inspection_facts(found))
    facts = "\n".join(alarm(line) if name == "DANGER" else line for line, name in said)
    return "\n\n".join([facts, *(table.text(width) for table in tables)])


def weights_section(found: Inspection) -> str:
    """An inspection in Markdown, as a section of a model card: what is folded, the facts, the tables."""
    facts = "\n".join(f"- **{name}**: {markdown_text(text)}" for name, text in inspection_facts(found))
    folded = [sentence] if (sentence := _folded(found)) else []
    tables = [table.markdown() for table in inspection_tables(found)]
    return "\n\n".join(["## Weights", *folded, facts, *tables])


def _folded(found: Inspection) -> str:
    """What the record of a file says of its folded layers, as a sentence; empty without any."""
    count = sum(state.layers.get("folded", 0) for state in found.state_dicts)
    if not count:
        return ""
    versions = f" {listed(found.recorded_by)}" if found.recorded_by else ""
    said = f"{counted(count, 'layer')} folded with wnconvert{versions}, {rounding_text(found.dtypes)}"
    return f"{said}, by the record in the file."


def rounding_text(dtypes: Collection[str]) -> str:
    """How near folded weights of some dtypes are to the exact ones."""
    return "correctly rounded" + (" (float64: within 4 ulp)" if "float64" in dtypes else "")


def inspection_tables(found: Inspection) -> list[Table]:
    """The tables of an inspection that have rows: its metadata, then its tensors or layers."""
    return [table for table in (*_metadata_tables(found), *_row_tables(found, "table")) if table.rows]


def _metadata_tables(found: Inspection) -> list[Table]:
    """What the file says of itself, where that was asked for."""
    rows = None if found.metadata is None else tuple(found.metadata.items())
    return [] if rows is None else [Table(("metadata", "value"), rows, elastic=("value",))]


def _row_tables(found: Inspection, style: str) -> list[Table]:
    """The tensors, where they were asked for, else the layers."""
    if found.tensors is not None:
        rows = [asdict(item) | {"form": "", "bytes": str(item.bytes)} for item in found.tensors]
        return [layer_table(rows, ["name", "dtype", "shape", "bytes"], name="tensor")]
    return [inspection_rows(found, style)]


def inspection_rows(found: Inspection, style: str = "table") -> Table:
    """The layers of an inspection as a table, all columns for CSV, else those that differ from row to row."""
    layers = list(map(_flat, found.layers))
    of_v = ["‖v‖ mean", "g/‖v‖ min", "g/‖v‖ max"] if any(row["norm"] for row in layers) else []
    kind = ["kind"] if any(row["kind"] != Norm.kind for row in layers) else []
    of_g = [f"|g| {part}" for part in _PARTS] if not kind or any(row["g"] for row in layers) else []
    more = [name for name in (*_SPECTRAL, "zeros") if any(row[name] is not None for row in layers)]
    columns = ["name", *kind, "form", "dim", "shape", "dtype", *of_g, *of_v, *more, "flags"]
    if style == "csv":
        return layer_table(layers, columns, exact_text)
    # A column that is the same in every row is left out: the facts above state it, or it is empty.
    dull = {column for column in ("form", "dtype", "flags") if len({str(row[column]) for row in layers}) == 1}
    dull -= {"flags"} if any(row["flags"] for row in layers) else set()
    return layer_table(layers, [column for column in columns if column not in dull])


#: What of a layer is a column, or says which columns there are.
_OWN = (
    *("state_dict", "name", "kind", "form", "dim", "shape", "dtype", "rows"),
    *("zero_rows", "zeros", "flags", "g", "norm"),
)


def _flat(layer: LayerStats) -> dict[str, Any]:
    """A layer as a row, with the numbers of its spreads as columns."""
    row = {name: getattr(layer, name) for name in _OWN}
    for sign, spread in (("|g|", layer.g), ("‖v‖", layer.norm), ("g/‖v‖", layer.ratio)):
        row |= {f"{sign} {part}": None if spread is None else getattr(spread, part) for part in _PARTS}
    spectral = layer.spectral
    return row | {
        head: None if spectral is None else getattr(spectral, name) for head, name in _SPECTRAL.items()
    }


#: The columns of spectral norm, each with its name in the data.
_SPECTRAL = {"σ": "sigma", "σ/largest": "ratio", "‖u‖": "u", "‖v‖": "v"}


def _sort_key(column: str) -> Callable[[dict[str, Any]], Any]:
    if column in ("name", "form"):
        return lambda row: str(row[column])
    return lambda row: -row[column] if row[column] is not None else math.inf


def inspection_facts(found: Inspection) -> Iterator[tuple[str, str]]:
    """The first block of a report, each fact with its word: the file, its contents, forecasts, health."""
    yield from _of_the_file(found)
    for state in found.state_dicts:
        forms = ", ".join(f"{count} {form}" for form, count in state.layers.items()) or "no layers"
        tensors = f"{counted(state.tensors, 'tensor')}, {bytes_text(state.bytes)}, layers: {forms}"
        yield "state dict", f"{state.path or '(root)'}: {tensors}"
    if not found.state_dicts:
        yield "state dict", "none"
    for sibling in few(f"{item.path} ({item.kind}, {bytes_text(item.bytes)})" for item in found.siblings):
        yield "sibling", sibling
    if found.foreign:
        yield "names", f"{listed(found.foreign)} (kept as data, never imported)"
    if found.dangerous:
        yield "DANGER", f"{listed(found.dangerous)} could run something when this file is loaded"
    for kind in found.kinds:
        example = f"{kind.state_dict}: {kind.example}" if kind.state_dict else kind.example
        folds = {"yes": "folds exactly", "no": "does not fold", "if known": "folds exactly only"}[kind.folds]
        flag = f" ({option('kinds', kind.kinds)})" if kind.kinds else ""
        told = f"; {_told(kind.told, kind.count)}" if kind.told is not None else ""
        yield "also", f"{kind.count} × {kind.kind} (as {example}), {folds}: {kind.how}{flag}{told}"
    yield from (("norms", text) for text in _norms(found.norms or ()))
    yield from (("computed", text) for text in ComputedWeight.told(found.computed))
    yield "fold", found.fold
    if found.split:
        yield "split", found.split
    if found.migrate:
        yield "migrate", found.migrate
    if found.metadata is not None and not found.metadata:
        yield "metadata", "none: only a safetensors file and an ONNX model have some"
    for note in found.notes:
        yield "note", note
    yield from _health(found)


def _of_the_file(found: Inspection) -> Iterator[tuple[str, str]]:
    """What the file is, and how much it holds."""
    version = f" version {found.version}" if found.version else ""
    if found.container == Container.ONNX:
        version = f", {found.version}"
    files = f", {counted(len(found.files), 'file')}" if found.files else ""
    what = f"{found.container}{version}{files}, {bytes_text(found.bytes)}"
    yield "folder" if found.files else "file", f"{found.source} ({what})"
    if found.sha256:
        yield "sha256", found.sha256
    by_name = f"{found.parameters_by_name:,} by name"
    is_shared = found.parameters_by_name != found.parameters
    yield "parameters", _elements(found.parameters, by_name if is_shared else "", found.dtypes)
    if found.buffers:
        yield "buffers", _elements(sum(found.buffers.values()), "", found.buffers)
    yield "devices", ", ".join(found.devices) or "none named"


def _told(told: int, count: int) -> str:
    """How norms with running statistics are folded, and of how many names tell the layer."""
    by_names = f"{option('norm', 'by-names')} {option('eps', metavar='E')}"
    return f"{by_names} tells {told} of {count}, or {option('recipe')}"


def _norms(norms: Sequence[NormSummary]) -> Iterator[str]:
    """What is remarkable in norms with running statistics; nothing where there are none."""
    if not norms:
        return
    said = f"{counted(sum(norm.channels for norm in norms), 'channel')} in {counted(len(norms), 'norm')}"
    for what, counts in (
        ("dead (variance below 1e-12)", {norm.name: norm.dead for norm in norms}),
        ("with γ = 0", {norm.name: norm.zero_gains for norm in norms}),
        ("with γ < 0", {norm.name: norm.negative_gains for norm in norms}),
    ):
        names = [name for name, count in counts.items() if count]
        if names:
            said += f"; {sum(count or 0 for count in counts.values())} {what} in {listed(names, 3)}"
    yield said
    if never := [norm.name for norm in norms if norm.batches == 0]:
        yield f"never trained, by their batches: {listed(never, 3)}"


def _elements(count: int, by_name: str, dtypes: Mapping[str, int]) -> str:
    """A number of elements, and in brackets more about it."""
    by_dtype = ", ".join(f"{dtype} {of_dtype:,}" for dtype, of_dtype in dtypes.items())
    more = "; ".join(filter(None, (by_name, by_dtype)))
    return f"{count:,} ({more})" if more else f"{count:,}"


_MOST_FAULTS = 10


def _health(found: Inspection) -> Iterator[tuple[str, str]]:
    """What a full inspection says of the health of a file: each fault, and what was not looked at."""
    health = found.health
    if health is None:
        return
    read = f"{counted(health.read, 'float tensor')} read"
    if health:
        yield "health", f"healthy: {read}"
    else:
        yield "health", f"{counted(len(health.faults), 'fault')}, {read}"
        yield from (("health", str(fault)) for fault in health.faults[:_MOST_FAULTS])
        if len(health.faults) > _MOST_FAULTS:
            yield "health", f"and {len(health.faults) - _MOST_FAULTS} more"
    yield from (("not read", what) for what in health.not_read)


def healths_text(found: Sequence[Inspection]) -> str:
    """What full inspections say of the health of several files, a line each; empty without any."""
    return "\n".join(
        printable(f"{item.source}: {what}: {text}") for item in found for what, text in _health(item)
    )


def moves_text(
    found: Sequence[Inspection], *, style: str = "table", top: int | None = None, width: int | None = None
) -> str:
    """Mean |g| of each layer over several files, starting with the layers that moved most."""
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
    """File names if these differ, else paths."""
    names = [path.rpartition("/")[2] for path in paths]
    return names if len(set(names)) == len(names) else list(paths)
