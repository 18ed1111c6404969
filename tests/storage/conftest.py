"""What the tests of files and of folders share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """The usual umask for a test, which may set another; the old one is put back."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)
