"""Many files converted, or inspected, and what is printed of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wnconvert.cli.errors import say_error
from wnconvert.cli.terminal import put, put_json

if TYPE_CHECKING:
    from wnconvert.cli.output import Output
    from wnconvert.verbs.fleet.fleet import FleetRequest
    from wnconvert.verbs.fleet.result import FileResult

__all__ = ["convert_many", "inspect_many", "put_files"]


def convert_many(
    verb: str,
    src: Sequence[str],
    out: str | None,
    request: FleetRequest,
    *,
    output: Output,
    options: Mapping[str, Any],
) -> int:
    """Run a verb on many files, and print a row for each as it is done; the exit code."""
    from wnconvert.reports.text.fleets import fleet_data, fleet_line, fleet_notes, fleet_row
    from wnconvert.verbs.fleet.files import planned_fleet
    from wnconvert.verbs.fleet.result import exit_code_of

    began = time.perf_counter()
    fleet = planned_fleet(verb, src, out, request, options)
    output.notes(fleet.notes)
    results = []
    for result in fleet.run():
        results.append(result)
        if output.steps and not output.json:
            put(fleet_row(result))
        if result.error is not None:
            say_error(result.error)
    output.notes(fleet_notes(results))
    ended = (verb, results, len(fleet.jobs) - len(results), time.perf_counter() - began)
    output.result(lambda: fleet_data(*ended), lambda: fleet_line(*ended), lambda: fleet_line(*ended))
    return exit_code_of(results)


def inspect_many(src: Sequence[str], request: FleetRequest, options: Mapping[str, Any]) -> list[FileResult]:
    """Inspect many files, in natural order. Raises the first error, unless others go on after one."""
    from wnconvert.verbs.fleet.files import planned_fleet
    from wnconvert.verbs.fleet.sources import natural

    results = sorted(
        planned_fleet("inspect", src, None, request, options).run(),
        key=lambda result: natural(result.source),
    )
    for result in results:
        if result.error is not None:
            if not request.keep_going:
                raise result.error
            say_error(result.error)
    return results


def put_files(results: Sequence[FileResult], *, style: str, top: int | None, width: int | None) -> None:
    """Print a row for each of many files that were inspected, or all of them as JSON."""
    from wnconvert.reports.text.fleets import files_table

    if style == "json":
        every = [it.inspection.to_dict() if it.inspection else it.to_dict() for it in results]
        put_json({"schema": 1, "files": every})
        return
    table = files_table(results[:top])
    put({"csv": table.csv, "markdown": table.markdown}[style]() if style != "table" else table.text(width))
