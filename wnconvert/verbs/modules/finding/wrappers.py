"""Modules whose parameters others hold to: the reducer of DistributedDataParallel, FSDP.

A wrapper stands above the modules that it holds, and these do not know it. So the wrappers that live in the
process are looked up, which costs one pass over its objects where a process group exists, and else nothing.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from wnconvert.tensors.distributed import GATHER

__all__ = ["IN_FSDP", "held_by_ddp", "held_by_fsdp", "under_ddp"]


#: Why a layer inside an FSDP module is refused, and what to do.
IN_FSDP = (
    "FSDP holds its parameters, and would go on with the old ones",
    f"convert the module before FSDP wraps it, or {GATHER}",
)


def held_by_ddp(modules: Iterable[nn.Module]) -> set[int]:
    """The ids of modules under any ``DistributedDataParallel``, at hand or anywhere in this process."""
    return _under([*modules, *_alive()], (DistributedDataParallel,))


def under_ddp(modules: Iterable[nn.Module]) -> set[int]:
    """The ids of modules under those of ``modules`` that are a ``DistributedDataParallel``."""
    return _under(modules, (DistributedDataParallel,))


def held_by_fsdp(modules: Iterable[nn.Module]) -> set[int]:
    """The ids of modules under FSDP, the class or ``fully_shard``, at hand or anywhere in this process."""
    classes = _fsdp_classes()
    return _under([*modules, *_alive()], classes) if classes else set()


def _under(objects: Iterable[object], wrappers: tuple[type, ...]) -> set[int]:
    every = list(objects)
    # The class decides, not isinstance: a proxy among the objects may answer that by running code.
    classes = {cls for cls in set(map(type, every)) if not set(wrappers).isdisjoint(cls.__mro__)}
    found = (one for one in every if type(one) in classes) if classes else ()
    return {id(module) for one in found if isinstance(one, nn.Module) for module in one.modules()}


def _alive() -> list[object]:
    """All objects of the process, where wrappers may be among them: they need a process group."""
    is_distributed = distributed.is_available() and distributed.is_initialized()
    return gc.get_objects() if is_distributed else []


def _fsdp_classes() -> tuple[type, ...]:
    """The classes of modules that FSDP holds, if anybody has imported them; torch has moved one of them."""
    homes = [sys.modules.get(f"torch.distributed.{home}") for home in ("fsdp", "_composable.fsdp")]
    names = ("FSDPModule", "FullyShardedDataParallel")
    found = (getattr(home, name, None) for home in homes if home for name in names)
    return tuple(cls for cls in found if isinstance(cls, type))
