"""How much is done, counted in operations of the interpreter: the same on every machine, unlike time."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["cpu_seconds", "operations"]


def operations(work: Callable[[], object]) -> int:
    """The operations of bytecode that a call takes, comprehensions and all that it calls among them."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def cpu_seconds(work: Callable[[], object]) -> float:
    """The CPU time of a call in this thread, without the collector's."""
    gc.collect()
    gc.disable()
    try:
        before = time.thread_time()
        work()
        return time.thread_time() - before
    finally:
        gc.enable()
