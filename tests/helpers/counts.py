"""How much is done, counted in operations of the interpreter: the same on every machine, unlike time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["operations"]


def operations(work: Callable[[], object]) -> int:
    """The operations of bytecode that a call takes, comprehensions and all that it calls among them."""
    return _monitored(work) if hasattr(sys, "monitoring") else _traced(work)


def _traced(work: Callable[[], object]) -> int:
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


def _monitored(work: Callable[[], object]) -> int:
    """From Python 3.12 on. There ``settrace`` leaves out operations of what it has traced before (3.13.0)."""
    count = 0

    def one(*_: object) -> None:
        nonlocal count
        count += 1

    monitoring: Any = vars(sys)["monitoring"]
    tool, event = monitoring.PROFILER_ID, monitoring.events.INSTRUCTION
    monitoring.use_tool_id(tool, "operations")
    try:
        monitoring.register_callback(tool, event, one)
        monitoring.set_events(tool, event)
        work()
    finally:
        monitoring.set_events(tool, 0)
        monitoring.register_callback(tool, event, None)
        monitoring.free_tool_id(tool)
    return count
