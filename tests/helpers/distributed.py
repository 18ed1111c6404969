"""torch.distributed within one process: a group of one rank, and of others that only seem to be there."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import distributed
from torch._C._distributed_c10d import FileStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

__all__ = ["fully_shard", "one_of_ranks", "one_rank"]


_COMPOSABLE = "torch.distributed._composable.fsdp"
_FSDP: Any = importlib.import_module("torch.distributed.fsdp")
#: FSDP2's function, which torch 2.5 has in a module of its own.
fully_shard: Any = (
    _FSDP if hasattr(_FSDP, "fully_shard") else importlib.import_module(_COMPOSABLE)
).fully_shard


@contextmanager
def one_rank(folder: Path) -> Iterator[None]:
    """A process group whose only rank is this process; its store is a file in ``folder``."""
    store = FileStore(str(folder / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def one_of_ranks(count: int) -> Iterator[DeviceMesh]:
    """The mesh of a process group of several ranks, of which only this process, the first, is there."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield init_device_mesh("cpu", (count,))
    finally:
        distributed.destroy_process_group()
