"""An interrupt at a line of the code that edits live modules."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from typing import Any

from torch import nn


class Interrupt:
    """Raises KeyboardInterrupt at one line of the modules that edit, or counts the lines that run.

    A `with` counts for no line: Python leaves it without looking for signals, which a tracer cannot do.
    """

    FILES = tuple(f"/verbs/modules/{name}.py" for name in ("undo", "surgery", "forms", "split", "convert"))

    def __init__(self, at: int = -1) -> None:
        self.at = at
        self.lines: list[tuple[str, int]] = []

    def moments(self) -> list[int]:
        """Where each line runs for the last time, and one in thirteen of all."""
        last = {line: at for at, line in enumerate(self.lines)}
        return sorted({*last.values(), *range(0, len(self.lines), 13)})

    def __call__(self, frame: Any, event: str, _: object) -> Any:
        file, line = frame.f_code.co_filename, frame.f_lineno
        if not file.endswith(self.FILES):
            return None
        if event == "line" and not linecache.getline(file, line).strip().startswith("with "):
            self.lines.append((file, line))
            if len(self.lines) == self.at + 1:
                raise KeyboardInterrupt
        return self

    def runs(self, verb: Callable[[nn.Module], object], model: nn.Module) -> bool:
        """Whether a verb gets to its end."""
        outer = sys.gettrace()
        sys.settrace(self)
        try:
            verb(model)
        except KeyboardInterrupt:
            return False
        finally:
            sys.settrace(outer)
        return True
