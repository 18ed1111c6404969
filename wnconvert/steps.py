"""What is done one after the other, and how long it takes: told as each step ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Step", "Steps"]


@dataclass(frozen=True, slots=True)
class Step:
    """A step that was done: its name, what came of it in a few words, and its wall time."""

    name: str
    detail: str
    seconds: float


@dataclass(slots=True)
class _Doing:
    """A step under way; what came of it is told when it is done."""

    detail: str = ""


class Steps:
    """The steps that are done, each told as it ends.

    >>> steps = Steps(lambda step: print(step.name, step.detail))
    >>> with steps("fold") as step:
    ...     step.detail = "3 layers"
    fold 3 layers
    """

    def __init__(self, progress: Callable[[Step], None]) -> None:
        self.progress = progress
        self.every: list[Step] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[_Doing]:
        """A step of that name, which is not told where the block fails."""
        began, doing = time.perf_counter(), _Doing()
        yield doing
        self.every.append(Step(name, doing.detail, time.perf_counter() - began))
        self.progress(self.every[-1])
