"""Children that are killed at each call they make, or after a while: what both kill scripts share."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

#: What a child does, and the calls before which it may be killed: their owner and name.
Act = Callable[[], object]
Calls = Sequence[tuple[object, str]]


def in_child(act: Act, calls: Calls, hook: Callable[[], None]) -> int:
    """Fork a child that acts and runs ``hook`` before each of the calls; the id of its process."""
    pid = os.fork()
    if pid:
        return pid
    for owner, name in calls:
        call = getattr(owner, name)

        def hooked(*given: Any, call: Callable[..., Any] = call, **options: Any) -> Any:
            hook()
            return call(*given, **options)

        setattr(owner, name, hooked)
    try:
        act()
    finally:
        os._exit(0)  # a fork must not go on as its parent; what it left tells how it went


def killed_at_each_call(act: Act, calls: Calls, _: float) -> Iterator[int]:
    """Kill the child before its first call, its second, …, until it comes to its end."""
    for stage in range(10_000):
        left = iter(range(stage))

        def hook(left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        status = os.waitpid(in_child(act, calls, hook), 0)[1]
        yield status
        if not os.WIFSIGNALED(status):
            return


def killed_after_a_while(act: Act, calls: Calls, longest: float) -> Iterator[int]:
    """Kill a child whose calls are slow after a random time of at most ``longest`` seconds."""
    rng = random.Random(0)
    for _ in range(24):
        pid = in_child(act, calls, lambda: time.sleep(0.001))
        time.sleep(rng.uniform(0, longest))
        os.kill(pid, signal.SIGKILL)
        yield os.waitpid(pid, 0)[1]
