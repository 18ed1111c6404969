"""One job run, wherever that is: its errors are results too."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

from wnconvert.errors import WnconvertError
from wnconvert.plan.plan import Plan
from wnconvert.storage.files import located
from wnconvert.verbs.fleet.digests import stamp_of
from wnconvert.verbs.fleet.jobs import FileJob
from wnconvert.verbs.fleet.result import FileResult, state_of_error
from wnconvert.verbs.shared.digests import sha256_of
from wnconvert.verbs.shared.refusals import refused_by_system

__all__ = ["FUNCTIONS", "failed_result", "run_job"]


def _fold(*given: Any, **options: Any) -> Any:
    from wnconvert.verbs.conversion.files.fold import fold_file

    return fold_file(*given, **options)


def _split(*given: Any, **options: Any) -> Any:
    from wnconvert.verbs.conversion.files.split import split_file

    return split_file(*given, **options)


def _migrate(*given: Any, **options: Any) -> Any:
    from wnconvert.verbs.conversion.files.migrate import migrate_file

    return migrate_file(*given, **options)


#: The verbs that write, each with its function, which is imported where it runs.
FUNCTIONS: Mapping[str, Callable[..., Any]] = {"fold": _fold, "split": _split, "migrate": _migrate}


def run_job(job: FileJob, executor: Executor | None = None) -> FileResult:
    """Do one job. An error of the user's, or of the system, is its result; any other is raised.

    With an ``executor`` each file of a folder is a job of that.

    >>> run_job(FileJob("fixtures/gan.pt", "fold", "gan.pt", {"dry_run": True}))
    FileResult: fold fixtures/gan.pt: planned, 6 layers
      gan.pt
    """
    began = time.perf_counter()
    result = FileResult(job.source, job.verb, "failed")
    try:
        was = stamp_of(located(job.source))
        result = replace(result, size=was.size, mtime_ns=was.mtime_ns, tag=was.tag)
        result = _inspected(job, result) if job.verb == "inspect" else _converted(job, result, executor)
    except WnconvertError as error:
        result = failed_result(result, error)
    except Exception as error:
        if (said := refused_by_system(error)) is None:
            raise
        result = failed_result(result, said)
    return replace(result, seconds=time.perf_counter() - began)


def failed_result(result: FileResult, error: WnconvertError) -> FileResult:
    """A result that is an error."""
    return replace(result, state=state_of_error(error), error=error)


def _inspected(job: FileJob, begun: FileResult) -> FileResult:
    from wnconvert.verbs.inspection.inspect import inspect_file

    found = inspect_file(job.source, **job.options)
    return replace(begun, state="done", layers=len(found.layers), notes=found.notes, inspection=found)


def _converted(job: FileJob, begun: FileResult, executor: Executor | None) -> FileResult:
    options = {**job.options}
    if executor is not None:
        options["executor"] = executor
    if job.may_replace:
        options["force"] = True
    if job.output is not None and not options.get("dry_run"):
        _make_room(job.output)
    made = FUNCTIONS[job.verb](job.source, job.output, **options)
    begun = replace(begun, layers=len(made.layers), notes=made.notes)
    if isinstance(made, Plan):
        return replace(begun, state="planned", output=job.output) if made.writes else _nothing(begun)
    if made.output is None:
        return _nothing(begun)
    written = stamp_of(made.output)
    if job.output is None:  # the source is now what was written
        begun = replace(begun, size=written.size, mtime_ns=written.mtime_ns, tag=written.tag)
    return replace(
        begun,
        state="done",
        output=job.output or job.source,
        bytes_in=made.bytes_in,
        bytes_out=written.size,
        sha256=sha256_of(made.output) if job.digests else "",
    )


def _nothing(begun: FileResult) -> FileResult:
    return replace(begun, state="nothing")


def _make_room(output: str) -> None:
    """Make the folders that an output goes into."""
    path = located(output)
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
