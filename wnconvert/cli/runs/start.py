"""The beginning of a command on files."""

from __future__ import annotations

import os

from wnconvert.heap import keep_large_apart

__all__ = ["load_lightly"]


def load_lightly() -> None:
    """Have numpy load without the threads of its BLAS, which took 15 ms, and free memory go back at once."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    keep_large_apart()
