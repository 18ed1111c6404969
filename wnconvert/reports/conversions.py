"""Conversions as text: a plan or a result. For the same as data, they have ``to_dict``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wnconvert.messages import counted, listed, printable
from wnconvert.plan.plan import Plan
from wnconvert.reports.tables import bytes_text, layer_table
from wnconvert.tensors.containers import Container

if TYPE_CHECKING:
    from wnconvert.verbs.conversion.convert import Result

__all__ = ["plan_text", "result_text"]


def plan_text(plan: Plan, output: str) -> str:
    """The output of ``--dry-run``: the layers, and the files that would be written."""
    lines = [_layers(plan), f"would write {output}: {_counts(plan)}", *_files(plan), *_dropped(plan)]
    return "\n".join(line for line in lines if line)


def result_text(result: Result) -> str:
    """The output of a conversion: the layers, then counts, bytes and time."""
    sizes = f"{bytes_text(result.bytes_in)} in, {bytes_text(result.bytes_out)} out"
    lines = [
        _layers(result.plan),
        f"{result.output}: {_counts(result.plan)}; {sizes}, in {result.seconds:.2f} s",
        *_files(result.plan),
        _verified(result),
        *_dropped(result.plan),
    ]
    return "\n".join(line for line in lines if line)


def _verified(result: Result) -> str:
    if not result.verified:
        return ""
    done = "checked" if result.plan.container is Container.ONNX else "read back and recomputed"
    return f"{done} by {result.verified}"


def _layers(plan: Plan) -> str:
    rows = [row.to_dict() for row in plan.layers]
    columns = _COLUMNS[plan.verb]
    return layer_table(rows, columns).text() if rows else ""


# All layers become plain by a fold and are plain before a split, so no column says so.
_COLUMNS = {
    "fold": ["name", "form", "dim", "shape", "dtype", "rows"],
    "split": ["name", "to", "dim", "shape", "dtype", "rows"],
    "migrate": ["name", "form", "to", "dim", "shape", "dtype", "rows"],
}
_DONE = {"fold": "folded", "split": "split", "migrate": "migrated"}
_ALREADY = {"split": "split already", "migrate": "in that form already"}


def _counts(plan: Plan) -> str:
    steps = [step for planned in plan.state_dicts for step in planned.steps]
    keeps = [step for step in steps if step.is_tensor and step.kept is not None]
    cast = sum(step.dtype is not None for step in keeps)
    kept = sum(step.dtype is None and step.name == step.kept for step in keeps)
    counts = [f"{counted(len(plan.layers), 'layer')} {_DONE[plan.verb]}"]
    if plan.already:
        counts.append(f"{plan.already} {_ALREADY[plan.verb]}")
    if cast:
        counts.append(f"{counted(cast, 'tensor')} cast")
    if not plan.state_dicts:
        counts.append("there is no state dict: everything is kept as it is")
    elif kept or not cast:
        counts.append(f"{counted(kept, 'tensor')} kept")
    return ", ".join(counts)


_MOST_FILES = 10


def _files(plan: Plan) -> list[str]:
    """The files of a folder: those that are written, and those that are copied."""
    lines = [
        f"  {shard.name}: {counted(len(shard.tensors), 'tensor')}, {bytes_text(shard.size)}"
        for shard in plan.shards[:_MOST_FILES]
    ]
    if len(plan.shards) > _MOST_FILES:
        lines.append(f"  and {len(plan.shards) - _MOST_FILES} more")
    if plan.index:
        lines.append(f"  {plan.index}")
    if plan.copied:
        lines.append(f"copied as they are: {listed(map(printable, plan.copied), _MOST_FILES)}")
    return lines


def _dropped(plan: Plan) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for item in plan.dropped:
        by_reason.setdefault(item.why, []).append(printable(item.path))
    return [f"left out: {', '.join(paths)}: {printable(why)}" for why, paths in by_reason.items()]
