"""One process that counts as a rank of several, for what torch makes of tensors that are spread over them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def as_rank(rank: int, world: int) -> Iterator[DeviceMesh]:
    """Inside, this process is a rank; nothing is ever sent to the others, which are not there."""
    store = FakeStore()
    distributed.init_process_group("fake", store=store, rank=rank, world_size=world)
    try:
        yield init_device_mesh("cpu", (world,))
    finally:
        distributed.destroy_process_group()
