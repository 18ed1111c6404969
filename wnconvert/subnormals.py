"""Arithmetic with subnormal numbers, in threads too that take them for 0."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["subnormals"]


#: The least normal number: its half is 0 where subnormal numbers are.
_NORMAL = 2.0**-1022
#: Of C's <fenv.h>: where FE_DFL_ENV is this address. No fenv_t has more bytes than that.
_DEFAULT, _MACHINES, _ENVIRONMENT = -1, ("x86_64", "aarch64"), 256


@contextmanager
def subnormals() -> Iterator[None]:
    """Compute with subnormal numbers. No ``yield`` in it.

    A program may have its threads take them for 0, as ``torch.set_flush_denormal`` does, and libraries that
    were compiled for fast arithmetic. When this ends, the thread does so again.

    >>> with subnormals():
    ...     print(2.0**-1022 / 2 > 0)
    True
    """
    if _NORMAL * 0.5 != 0 or sys.platform != "linux" or os.uname().machine not in _MACHINES:
        yield
        return
    import ctypes  # which programs that compute as usual need not wait for

    library, before = ctypes.CDLL(None), ctypes.create_string_buffer(_ENVIRONMENT)
    library.fegetenv(before)
    library.fesetenv(ctypes.c_void_p(_DEFAULT))
    try:
        yield
    finally:
        library.fesetenv(before)
