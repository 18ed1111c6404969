"""DTensors in a pickle (FSDP2, tensor parallelism): one rank's part of a tensor, and how it is spread.

Where a part is the whole tensor (it is replicated, or there is one rank), its record becomes that of the
part: a plain tensor. Any other cannot be converted. Sources: ``torch/distributed/tensor/_api.py``, and
``Tensor.__reduce_ex__`` of ``torch/_tensor.py``, which pickles a wrapper with its attributes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from wnconvert.errors import InputError
from wnconvert.formats.pickle.values import Global, Object, Value, walk
from wnconvert.formats.torch.records import class_of, forget, get, read_tensor, slots_of
from wnconvert.messages import counted

__all__ = ["check_whole", "unwrap_whole"]


_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
_SPREAD = ("DTensor", "ShardedTensor")


def unwrap_whole(nodes: Collection[Value]) -> int:
    """Make every DTensor among some nodes that is whole the plain tensor that it holds; how many they are."""
    count = 0
    for value in _where_named(nodes):
        local = _whole_local(value)
        if local is not None:
            count += 1
            value.op, value.callee, value.args = local.op, local.callee, local.args
            value.kwargs, value.changes = local.kwargs, local.changes
            forget(value)
    return count


def check_whole(nodes: Collection[Value], optimizers: Iterable[Value]) -> None:
    """Raise ``InputError`` if there are parts of tensors among some nodes but in the ``optimizers``."""
    parts = [value for value in _where_named(nodes) if _is_spread(value)]
    if parts:
        aside = {id(value) for optimizer in optimizers for value in walk(optimizer)}
        parts = [value for value in parts if id(value) not in aside]
    if parts:
        raise InputError(
            f"one rank's shard: it holds only a part of {counted(len(parts), 'tensor')} (DTensor)",
            fix="save a full state dict, get_model_state_dict(model, options="
            "StateDictOptions(full_state_dict=True)); or name a folder of torch.distributed.checkpoint",
        )


def _where_named(nodes: Collection[Value]) -> Collection[Value]:
    """The nodes, if the class of a DTensor is among them, as it is in few files; else none."""
    named = (node for node in nodes if type(node) is Global)
    return nodes if any(_is_class_of_spread(node) for node in named) else ()


def _is_class_of_spread(named: Global) -> bool:
    return named.name.rpartition(".")[2] in _SPREAD


def _is_spread(value: Value) -> bool:
    """Whether a record is a DTensor, or its older kin."""
    if not isinstance(value, Object) or (
        isinstance(value.callee, Global) and value.callee.module == "torch._utils"
    ):
        return False
    if value.is_call_of(_FROM_TYPE) and isinstance(value.args, tuple) and len(value.args) == 4:
        kind = value.args[1]
        return isinstance(kind, Global) and _is_class_of_spread(kind)
    return class_of(value).rpartition(".")[2] in _SPREAD


def _whole_local(value: Value) -> Object | None:
    """The tensor that a DTensor's record holds, if it is the whole of it; None for any other value."""
    if not _is_spread(value) or not value.is_call_of(_FROM_TYPE):
        return None
    arguments, state = value.args[2], slots_of(value.args[3])
    local, spec = state.get("_local_tensor"), state.get("_spec")
    record = read_tensor(local)
    sizes = arguments[2] if isinstance(arguments, tuple) and len(arguments) > 2 else None
    if record is None or not isinstance(sizes, tuple) or record.shape != tuple(sizes):
        return None
    placements = get(spec.state, "placements") if isinstance(spec, Object) else None
    if not isinstance(placements, tuple) or any(class_of(item).endswith("Partial") for item in placements):
        return None
    assert isinstance(local, Object)  # noqa: S101 - it is a tensor's record
    return local
