"""Jobs run side by side, and what came of them, in the order of completion."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from wnconvert.errors import ArgumentError, InputError, WnconvertError
from wnconvert.frozen import dataclass
from wnconvert.storage.files import Name, is_opened, kind_of, located, output_path
from wnconvert.storage.stores.store import Address
from wnconvert.tensors.blocks import processors
from wnconvert.verbs.conversion.targets import StrPath, address_of
from wnconvert.verbs.fleet.digests import is_there
from wnconvert.verbs.fleet.executors import Workplace, opened_workplace
from wnconvert.verbs.fleet.jobs import FileJob, jobs_of
from wnconvert.verbs.fleet.journal import Journal
from wnconvert.verbs.fleet.result import FileResult
from wnconvert.verbs.fleet.sources import absolute, sources_of
from wnconvert.verbs.fleet.work import failed_result, run_job
from wnconvert.verbs.shared.options import check_count

__all__ = ["Fleet", "FleetRequest", "fleet_of"]


#: How many sources and outputs are looked at at a time.
_LOOKS = 8


@dataclass(frozen=True, slots=True)
class FleetRequest:
    """How many checkpoints are found, and how their jobs run; the fields are options of ``fold_files``."""

    recursive: bool = False
    jobs: int | None = None
    skip_existing: bool = False
    keep_going: bool = False
    report: StrPath | None = None
    cluster: str | None = None
    executor: Executor | None = None

    def __post_init__(self) -> None:
        """Check the number of jobs, and that one place alone is named for them."""
        check_count(self.jobs, "jobs cannot work", "--jobs 1 or more")
        if self.cluster is not None and (self.executor is not None or self.jobs is not None):
            raise ArgumentError(
                "the scheduler knows how many jobs its workers take", fix="--cluster without --jobs"
            )


@dataclass(frozen=True, slots=True)
class Fleet:
    """The jobs of one verb, planned; ``notes`` say what is left out. ``run`` does them."""

    jobs: tuple[FileJob, ...]
    notes: tuple[str, ...]
    request: FleetRequest

    def run(self) -> Iterator[FileResult]:
        """Do the jobs; what is skipped comes first. Without ``keep_going`` none is begun after an error."""
        request = self.request
        report = None if request.report is None else Path(request.report)
        journal = None if report is None else Journal.opened(report)
        jobs = []
        for looked in _looked(self.jobs, journal, skip_existing=request.skip_existing):
            if isinstance(looked, FileJob):
                jobs.append(looked)
            else:
                yield looked
        width = request.jobs or processors()
        if len(jobs) < width and not any(job.has_shards for job in jobs):
            width = max(len(jobs), 1)
        missing = _missing_folders(jobs)
        try:
            with opened_workplace(width, request.cluster, request.executor) as place:
                yield from _results(iter(jobs), place, journal, keep_going=request.keep_going)
        finally:
            for folder in missing:
                with suppress(OSError):  # something is in it, or it was never made
                    folder.rmdir()
        if journal is not None:
            journal.close()


def fleet_of(
    verb: str, sources: Iterable[Name], out: StrPath | None, request: FleetRequest, options: Mapping[str, Any]
) -> Fleet:
    """Find the sources, and plan what is done with each; nothing is opened.

    ``options`` are those of the verb for one file. Raises as ``sources_of`` and ``jobs_of`` do.
    """
    elsewhere = request.cluster is not None or request.executor is not None
    names = [sources] if isinstance(sources, (str, os.PathLike)) else [*sources]
    if not names:
        raise ArgumentError("no file is named", fix="name files, patterns or folders")
    if request.skip_existing and (options.get("force") or options.get("in_place")):
        raise ArgumentError(
            "--skip-existing keeps what is there, and --force and --in-place replace it",
            fix="leave one of the two out",
        )
    request = replace(request, jobs=_workable(names, request, elsewhere=elsewhere))
    folder = None if out is None else address_of(out) or output_path(out)
    found = sources_of(names, recursive=request.recursive, out=folder)
    if elsewhere:  # a process there may be in another folder
        found = tuple(replace(source, path=absolute(source.path)) for source in found)
        out = None if folder is None else f"{absolute(folder)}{os.sep if kind_of(folder) else ''}"
    jobs, notes = jobs_of(verb, found, out, options)
    if options.get("dry_run"):
        request = replace(request, report=None)
    digests = request.report is not None
    return Fleet(tuple(replace(job, digests=digests) for job in jobs), notes, request)


def _workable(names: Iterable[Name], request: FleetRequest, *, elsewhere: bool) -> int | None:
    """The number of processes: a file system that was opened in this one is in no other.

    Raises ``ArgumentError`` where others are asked for.
    """
    opened = [name for name in names if isinstance(name, Address) and is_opened(name)]
    if not opened:
        return request.jobs
    if elsewhere or request.jobs not in (None, 1):
        raise ArgumentError(
            "its file system is opened in this process, and others cannot read it",
            where=str(opened[0]),
            fix="jobs=1; or name it by an address (s3://, https:// ...)",
        )
    return 1


def _looked(
    jobs: Sequence[FileJob], journal: Journal | None, *, skip_existing: bool
) -> Iterator[FileJob | FileResult]:
    """What is to be done, or skipped, in order: a look at a store takes a while, so several are at once."""

    def look(job: FileJob) -> FileJob | FileResult:
        if journal is not None and journal.settled(job):
            return _skipped(job, "done already")
        if skip_existing and job.output is not None and is_there(job.output):
            return _skipped(job, f"{job.output} exists")
        return job if journal is None else journal.resumed(job)

    if journal is None and not skip_existing:
        yield from jobs
        return
    lookers = ThreadPoolExecutor(_LOOKS)
    try:
        yield from lookers.map(look, jobs)
    finally:
        lookers.shutdown(cancel_futures=True)


def _missing_folders(jobs: Iterable[FileJob]) -> list[Path]:
    """The folders of outputs that are not there yet, inner ones first: those left empty go again."""
    outputs = (located(job.output) for job in jobs if job.output is not None)
    parents = {parent for path in outputs if isinstance(path, Path) for parent in path.parents}
    missing = (parent for parent in parents if not parent.exists())
    return sorted(missing, key=lambda parent: len(parent.parts), reverse=True)


def _fitted(job: FileJob, place: Workplace, *, is_led: bool) -> FileJob:
    """A job as its place takes it: processors are shared out, a lost worker's job can be repeated.

    One that is led from here is not repeated: its files are.
    """
    threads = max(1, processors() // place.width)
    options = {"threads": threads, **job.options} if job.verb != "inspect" else job.options
    is_new = place.repeats and not is_led and job.output is not None and not is_there(job.output)
    return replace(job, options=options, may_replace=job.may_replace or is_new)


def _results(
    jobs: Iterator[FileJob], place: Workplace, journal: Journal | None, *, keep_going: bool
) -> Iterator[FileResult]:
    running: dict[Future[FileResult], FileJob] = {}
    goes_on = True
    while True:
        while goes_on and len(running) < place.width and (job := next(jobs, None)) is not None:
            is_led = place.width > 1 and job.has_shards
            job = _fitted(job, place, is_led=is_led)
            if journal is not None:
                journal.begin(job)
            if is_led:
                running[place.leaders.submit(run_job, job, place.executor)] = job
            else:
                running[place.executor.submit(run_job, job)] = job
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            result = _result(future, job)
            if journal is not None:
                journal.add(job, result)
            broken = isinstance(future.exception(), BrokenExecutor)
            goes_on = goes_on and not broken and (keep_going or result.state != "failed")
            yield result


def _result(future: Future[FileResult], job: FileJob) -> FileResult:
    """What came of a job, also where the process that did it is gone. Raises what is a bug."""
    error = future.exception()
    if error is None:
        return future.result()
    if not _is_lost(error):
        raise error
    lost: WnconvertError = InputError(
        "the process that worked on it was ended from outside",
        where=job.source,
        fix="if memory was short, fewer --jobs; with --report, what is done is not done again",
    )
    return failed_result(FileResult(job.source, job.verb, "failed"), lost)


def _is_lost(error: BaseException) -> bool:
    """Whether a job ended with the process that did it. What ray raises of the job itself is a bug."""
    kind = type(error)
    of_ray = kind.__module__ == "ray.exceptions" and not kind.__name__.startswith("RayTaskError")
    return isinstance(error, BrokenExecutor) or kind.__module__.startswith("distributed.") or of_ray


def _skipped(job: FileJob, why: str) -> FileResult:
    return FileResult(job.source, job.verb, "skipped", job.output, notes=(why,))
