"""What torch means to drop, used on purpose."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deprecated() -> Iterator[None]:
    """TorchScript and the old weight norm may be used in here: torch warns of them, by some class."""
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        yield
