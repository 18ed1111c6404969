"""Tensors that a process group holds: whole on every rank, or one rank's shard.

Nothing here imports torch: a value that is torch's shows that it is loaded.
"""

from __future__ import annotations

import sys
from typing import Any

from wnconvert.errors import LayerError

__all__ = ["GATHER", "distributed_like", "local_of", "obstacle", "whole_of"]


#: What to do about one rank's shard.
GATHER = "save a full state dict: get_model_state_dict(…, full_state_dict=True)"
_SHARD = ("one rank's shard", GATHER)


def local_of(value: Any) -> Any:
    """What this rank has in memory of a DTensor; any other value is itself."""
    return value.to_local() if _is_dtensor(value) else value


def obstacle(value: Any) -> tuple[str, str] | None:
    """Why a torch tensor's elements cannot be had, and what to do; None if they can."""
    if _is_dtensor(value):
        sizes = value.device_mesh.shape
        is_whole = all(
            size == 1 or one.is_replicate() for size, one in zip(sizes, value.placements, strict=True)
        )
        return None if is_whole else _SHARD
    if hasattr(value, "local_shards"):  # a ShardedTensor
        return _SHARD
    torch = sys.modules["torch"]
    is_wrapper = type(value).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    kind = type(value).__name__
    return (f"a {kind}, which is not a plain tensor", "pass plain tensors") if is_wrapper else None


def whole_of(value: Any) -> Any:
    """A torch tensor with all elements of ``value``. Raises ``LayerError`` if they cannot be had."""
    if found := obstacle(value):
        raise LayerError(found[0], fix=found[1])
    return local_of(value)


def distributed_like(value: Any, tensor: Any) -> Any:
    """A new tensor placed as ``value`` is, if that is a whole DTensor."""
    if not _is_dtensor(value):
        return tensor
    replicate = _home().Replicate()  # where the tensor lacks an axis
    placements = [
        replicate if one.is_shard() and one.dim >= tensor.dim() else one for one in value.placements
    ]
    return type(value).from_local(tensor, value.device_mesh, placements, run_check=False)


def _is_dtensor(value: Any) -> bool:
    home = _home()
    return home is not None and isinstance(value, home.DTensor)


def _home() -> Any:
    """The module of DTensor, if anybody has imported it; torch has moved it once."""
    return sys.modules.get("torch.distributed.tensor") or sys.modules.get("torch.distributed._tensor")
