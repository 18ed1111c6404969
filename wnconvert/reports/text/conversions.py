"""Conversions as text: a plan or a result, and its last line. For the same as data, they have ``to_dict``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wnconvert.layers.rules import Norm
from wnconvert.messages import counted, few, listed, printable
from wnconvert.plan.plan import Plan, PlannedConstant
from wnconvert.reports.tables import Table, bytes_text, layer_table
from wnconvert.tensors.containers import Container

if TYPE_CHECKING:
    from wnconvert.verbs.conversion.convert import Result

__all__ = [
    "plan_counts",
    "plan_line",
    "plan_more",
    "plan_table",
    "plan_text",
    "result_line",
    "result_text",
    "verified_lines",
]


def plan_text(plan: Plan, output: str, most: int | None = None) -> str:
    """The output of ``--dry-run``: the layers (the first ``most``), and the files that would be written."""
    return "\n".join([*_details(plan, most), plan_line(plan, output)])


def plan_line(plan: Plan, output: str) -> str:
    """The last line of ``--dry-run``: what would be written."""
    return f"would write {printable(output) if plan.writes else 'nothing'}: {plan_counts(plan)}"


def result_text(result: Result, most: int | None = None) -> str:
    """The output of a conversion: the layers (the first ``most``), what goes along, and the last line."""
    details = [] if result.output is None else _details(result.plan, most)
    return "\n".join([*details, *verified_lines(result), result_line(result)])


def result_line(result: Result) -> str:
    """The last line of a conversion: counts, bytes and time."""
    if result.output is None:
        return f"nothing is written: {plan_counts(result.plan)}"
    sizes = f"{bytes_text(result.bytes_in)} in, {bytes_text(result.bytes_out)} out"
    return f"{printable(str(result.output))}: {plan_counts(result.plan)}; {sizes}, in {result.seconds:.2f} s"


def verified_lines(result: Result) -> list[str]:
    """What was checked and proven of an output."""
    done = "checked" if result.plan.container is Container.ONNX else "read back and recomputed"
    lines = [f"{done} by {result.verified}"] if result.verified else []
    if (proof := result.proof) is not None:
        said = f"proven equal to {proof.reference} on {counted(proof.samples, 'sample')}"
        lines.append(f"{printable(said)}, within {proof.tolerance}")
    return lines


def _details(plan: Plan, most: int | None) -> list[str]:
    return [*_layers(plan, most), *plan_more(plan)]


def _layers(plan: Plan, most: int | None) -> list[str]:
    """The layers as a table; of more than ``most`` (a line is not left out for one layer) the first ones."""
    if (table := plan_table(plan)) is None:
        return []
    left = 0 if most is None else len(table.rows) - most
    if left <= 1:
        return [table.text()]
    return [replace(table, rows=table.rows[:most]).text(), f"… {left} more (--list)"]


def plan_table(plan: Plan) -> Table | None:
    """The layers of a plan, or None without any."""
    if not plan.layers:
        return None
    columns = list(_COLUMNS[plan.verb])
    if any(row.kind != Norm.kind for row in plan.layers):
        columns = ["name", "kind", *columns[1:]]
    if any(row.norm for row in plan.layers):
        columns.insert(1, "norm")
    return layer_table([row.to_dict() for row in plan.layers], columns)


# All layers become plain by a fold and are plain before a split, so no column says so.
_COLUMNS = {
    "fold": ["name", "form", "dim", "shape", "dtype", "rows"],
    "split": ["name", "to", "dim", "shape", "dtype", "rows"],
    "migrate": ["name", "form", "to", "dim", "shape", "dtype", "rows"],
}
_DONE = {"fold": "folded", "split": "split", "migrate": "migrated"}
_ALREADY = {"split": "split already", "migrate": "in that form already"}


def plan_counts(plan: Plan) -> str:
    """How much of what a plan does, in words."""
    steps = [step for planned in plan.state_dicts for step in planned.steps]
    keeps = [step for step in steps if step.is_tensor and step.kept is not None]
    cast = sum(step.dtype is not None for step in keeps)
    kept = sum(step.dtype is None and step.name == step.kept for step in keeps)
    counts = [f"{counted(len(plan.changes), 'layer')} {_DONE[plan.verb]}"]
    counts += PlannedConstant.counts(plan.constants)
    if plan.norms:
        counts.append(f"{counted(plan.norms, 'norm')} folded into them")
    if plan.already:
        counts.append(f"{plan.already} {_ALREADY[plan.verb]}")
    if plan.renamed:
        counts.append(f"{counted(plan.renamed, 'name')} changed")
    if cast:
        counts.append(f"{counted(cast, 'tensor')} cast")
    if not plan.state_dicts:
        counts.append("there is no state dict: everything is kept as it is")
    elif plan.writes and (kept or not cast):
        counts.append(f"{counted(kept, 'tensor')} kept")
    return ", ".join(counts)


def plan_more(plan: Plan) -> list[str]:
    """What a plan has beside its layers: evaluated weights, the files of a folder, and what is left out."""
    return [*few(map(str, plan.constants)), *_files(plan), *_dropped(plan)]


def _files(plan: Plan) -> list[str]:
    """The files of a folder: those that are written, and those that are copied."""
    files = (
        f"{printable(shard.name)}: {counted(len(shard.tensors), 'tensor')}, {bytes_text(shard.size)}"
        for shard in plan.shards
    )
    lines = [f"  {line}" for line in few(files)]
    if plan.index:
        lines.append(f"  {printable(plan.index)}")
    if plan.copied:
        lines.append(f"copied as they are: {listed(map(printable, plan.copied))}")
    return lines


def _dropped(plan: Plan) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for item in plan.dropped:
        by_reason.setdefault(item.why, []).append(printable(item.path))
    return [f"left out: {listed(paths)}: {printable(why)}" for why, paths in by_reason.items()]
