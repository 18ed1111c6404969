"""The beginning of a command on files."""

from __future__ import annotations

import os

from wnconvert.errors import ArgumentError
from wnconvert.heap import keep_large_apart
from wnconvert.messages import to_install

__all__ = ["check_torch", "load_lightly"]


def load_lightly() -> None:
    """Have numpy load without the threads of its BLAS, which took 15 ms, and free memory go back at once."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    keep_large_apart()


def check_torch() -> None:
    """Raise ``ArgumentError`` if torch is not there, which a model is run with."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise ArgumentError("running the module needs torch, which is not installed", fix=to_install("torch"))
