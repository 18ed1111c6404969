"""One process of onnxruntime for many tests: to start one takes longer than most of what is asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from wnconvert.onnx.runtime import process

__all__ = ["shared_runtime"]


@contextmanager
def shared_runtime() -> Iterator[None]:
    """Inside, a process that was used well is used again, but for one that has little memory."""
    start, idle = process._Process, list[Any]()

    class Shared(start):  # type: ignore[misc, valid-type]
        def __new__(cls, clock: Any, memory: int | None) -> Any:
            while idle and _is_plenty(memory):
                found = idle.pop()
                if not found.is_over:
                    found.clock = clock
                    return found
            return super().__new__(cls)

        def __init__(self, clock: Any, memory: int | None) -> None:
            if not hasattr(self, "child"):
                self.memory = memory
                super().__init__(clock, memory)

        def let_go(self) -> None:
            if not self.is_over and _is_plenty(self.memory):
                idle.append(self)
            else:
                self.end()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "_Process", Shared)
        patch.setattr(process.Runtime, "__exit__", lambda self, *_: self._process and self._process.let_go())
        yield
    for each in idle:
        each.end()


def _is_plenty(memory: int | None) -> bool:
    """Whether no test has set a limit that counts."""
    return memory is None or memory >= 1 << 30
