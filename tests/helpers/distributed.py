"""torch.distributed within one process: a group of one rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import distributed
from torch._C._distributed_c10d import FileStore

__all__ = ["one_rank"]


@contextmanager
def one_rank(folder: Path) -> Iterator[None]:
    """A process group whose only rank is this process; its store is a file in ``folder``."""
    store = FileStore(str(folder / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()
