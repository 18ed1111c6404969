"""What a command prints of its result: all of it, the last line, one JSON object, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wnconvert.cli.terminal import in_json, mention, put, say
from wnconvert.frozen import dataclass

__all__ = ["Output"]


@dataclass(frozen=True, slots=True)
class Output:
    """What a command prints of its result, by the options ``--json``, ``--quiet`` and ``--silent``.

    ``on_stderr`` where stdout is taken by the output itself.
    """

    json: bool = False
    quiet: bool = False
    silent: bool = False
    on_stderr: bool = False

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
        """Print a result: its data as JSON, its whole text, or the last line of that."""
        if not self.silent:
            report = mention if self.on_stderr else put
            report(in_json(data()) if self.json else line() if self.quiet else text())
