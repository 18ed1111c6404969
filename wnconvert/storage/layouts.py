"""Outputs laid out as the target's container asks. No other module chooses the writer of a format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from wnconvert.messages import option
from wnconvert.plan.layout import Layout
from wnconvert.plan.plan import Plan
from wnconvert.plan.record.history import write_history
from wnconvert.storage.checkpoint import Checkpoint
from wnconvert.tensors.claims import refuse_unfounded
from wnconvert.tensors.containers import Container
from wnconvert.tensors.limits import RECORD

__all__ = ["fitted", "layout_of"]


def fitted(plan: Plan) -> Plan:
    """The plan of a file, without its record where the container has no place for so long a one."""
    has_room = _ROOM_FOR_RECORD.get(plan.container)
    if not plan.record or has_room is None or has_room(plan):
        return plan
    note = (
        f"the record of changes is too long for {plan.container.facts.noun}, and left out: "
        "`split` needs --like or --layers"
    )
    return replace(plan, record=(), notes=(*plan.notes, note))


def layout_of(checkpoint: Checkpoint, plan: Plan) -> Layout:
    """The bytes of the output that ``plan`` describes.

    Raises ``InputError`` if it would be made of views that repeat what they hold beyond measure.
    """
    layout = _WRITERS[plan.container](checkpoint, plan)
    refuse_unfounded(layout.reads, f"{option('exclude')} leaves a layer as it is")
    return layout


# -- the writers, each imported where it is needed: they are a tenth of the time of a small fold


def _has_room_in_safetensors(plan: Plan) -> bool:
    from wnconvert.formats.safetensors import has_room_for_record

    return has_room_for_record(plan)


def _has_room_in_torch_zip(plan: Plan) -> bool:
    return len(write_history(plan.record)) <= RECORD


def _write_safetensors(checkpoint: Checkpoint, plan: Plan) -> Layout:
    from wnconvert.formats.safetensors import safetensors_layout

    return safetensors_layout(checkpoint.tree, plan)


def _write_torch_zip(checkpoint: Checkpoint, plan: Plan) -> Layout:
    from wnconvert.formats.torch.writer import torch_layout

    return torch_layout(checkpoint.torch, checkpoint.tree, plan)


def _write_npz(checkpoint: Checkpoint, plan: Plan) -> Layout:
    from wnconvert.formats.npz import npz_layout

    return npz_layout(checkpoint.tree, plan)


# What is written is of one container of each family; an ONNX model is edited (`verbs/conversion/onnx`).
_WRITERS: dict[Container, Callable[[Checkpoint, Plan], Layout]] = {
    Container.SAFETENSORS: _write_safetensors,
    Container.TORCH_ZIP: _write_torch_zip,
    Container.NPZ: _write_npz,
}
# Whether the record of a plan fits into a file, where it could be too long.
_ROOM_FOR_RECORD: dict[Container, Callable[[Plan], bool]] = {
    Container.SAFETENSORS: _has_room_in_safetensors,
    Container.TORCH_ZIP: _has_room_in_torch_zip,
}
