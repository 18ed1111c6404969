"""What a command prints of its result: a report, the last line of it, one JSON object, or nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from wnconvert.cli.terminal import put, say

__all__ = ["JSON", "Asked", "Output", "errors_as_json", "in_json", "with_output"]


@dataclass(slots=True)
class Asked:
    """Whether errors are to be printed as JSON: the object of click's context, which an option sets."""

    json: bool = False


def _asks(context: click.Context, _: click.Parameter, value: bool) -> bool:  # noqa: FBT001 - click's own
    if value:
        errors_as_json(context)
    return value


def errors_as_json(context: click.Context) -> None:
    """Have errors of this command printed as JSON."""
    if asked := context.find_object(Asked):
        asked.json = True


#: Eager, so that an error in another option is printed as JSON too.
JSON = click.option(
    "--json", is_flag=True, is_eager=True, callback=_asks, help="Print one JSON object, of an error too."
)
_QUIET = click.option("-q", "--quiet", is_flag=True, help="Print only the last line, and errors.")
_SILENT = click.option("--silent", is_flag=True, help="Print only errors; the exit code is the result.")


def in_json(data: Mapping[str, Any]) -> str:
    """Data as the commands print it."""
    from json import dumps

    return dumps(data, indent=1)


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
        if not self.silent:
            put(in_json(data()) if self.json else line() if self.quiet else text())


def with_output(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options ``--json``, ``--quiet`` and ``--silent``, as one ``output``."""

    @JSON
    @_QUIET
    @_SILENT
    @functools.wraps(command)
    def call(*arguments: Any, json: bool, quiet: bool, silent: bool, **options: Any) -> Any:
        return command(*arguments, output=Output(json, quiet, silent), **options)

    return call
