"""The signals that end a run: Ctrl-C, kill, and a terminal that is closed."""

from __future__ import annotations

import signal
from collections.abc import Callable

__all__ = ["on_endings"]


def on_endings(handler: Callable[[int, object], object] | signal.Handlers) -> None:
    """Have each of them handled so, but for those that are ignored: nohup ignores the last."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        ending = getattr(signal, name, None)  # Windows has no SIGHUP
        if ending and signal.getsignal(ending) != signal.SIG_IGN:
            signal.signal(ending, handler)
