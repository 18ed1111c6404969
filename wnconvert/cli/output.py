"""What a command prints of its result: all of it, the last line, one JSON object, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from wnconvert.cli.terminal import put, put_json, say

__all__ = ["Output"]


@dataclass(frozen=True, slots=True)
class Output:
    """What a command prints of its result, by the options ``--json``, ``--quiet`` and ``--silent``."""

    json: bool = False
    quiet: bool = False
    silent: bool = False

    @property
    def steps(self) -> bool:
        """Whether steps, notes and progress are shown."""
        return not (self.quiet or self.silent)

    def notes(self, notes: tuple[str, ...]) -> None:
        """Print notes to stderr."""
        if self.steps:
            say(notes)

    def result(
        self, data: Callable[[], Mapping[str, Any]], text: Callable[[], str], line: Callable[[], str]
    ) -> None:
        """Print a result to stdout: its data as JSON, its whole text, or the last line of that."""
        if self.silent:
            return
        if self.json:
            put_json(data())
        else:
            put(line() if self.quiet else text())
