"""Every test of numerics runs with each kernel that is there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from wnconvert.numerics.kernel import choice
from wnconvert.numerics.kernel.interface import Kernel
from wnconvert.numerics.kernel.library import VARIABLE, chosen_kernel

NAMES = sorted({"numpy", chosen_kernel()})


@pytest.fixture(params=NAMES, autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    monkeypatch.setenv(VARIABLE, request.param)
    choice.kernel.cache_clear()
    yield choice.kernel()
    choice.kernel.cache_clear()
