"""The files of a folder as jobs of their own: small values that travel, done by any executor.

A job makes a new file in a private folder, under a name that no other has. The process that handed it out
gives the file its place, so what a lost worker did, or does still, counts once: as the job that came back.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, as_completed, wait
from functools import partial
from pathlib import Path, PurePath

from wnconvert.frozen import dataclass
from wnconvert.numerics.rows import RowPolicy
from wnconvert.plan.layout import Layout
from wnconvert.storage.files import Seen, reopened
from wnconvert.storage.sources import Source
from wnconvert.storage.staging import file_in, translated
from wnconvert.storage.stores.system import sync_file
from wnconvert.storage.workers import Workers
from wnconvert.tensors.views.assembled import FileView
from wnconvert.verbs.conversion.executor import Outcome, outcomes

__all__ = ["ShardJob", "hand_out", "write_shard"]


@dataclass(frozen=True, slots=True)
class ShardJob:
    """One file of a folder: the ``layout`` of what is written, and the ``sources`` of its bytes.

    ``path`` is its place in the folder, ``target`` the folder as the user named it, and ``seen`` what the
    sources were when the layout was made. The other fields are as for ``RunOptions``.
    """

    path: str
    layout: Layout
    sources: tuple[PurePath | FileView, ...]
    seen: Seen
    target: Path
    mode: int | None
    numbers: RowPolicy
    threads: int | None

    @property
    def effort(self) -> int:
        """About the bytes that must be read or written."""
        return sum(blob.effort for blob in self.layout.blobs)


def write_shard(job: ShardJob, folder: Path) -> tuple[str, list[Outcome]]:
    """Write one file into ``folder``, wherever this runs: its name there, and what came of its tensors.

    Raises ``FormatError`` where a source is not what it was, ``OutputError`` where nothing can be written.
    """
    name = uuid.uuid4().hex
    with (
        Source(job.sources, opener=partial(reopened, seen=job.seen)) as source,
        file_in(folder, name, job.target, job.mode) as target,
    ):
        made = outcomes(source, target, job.layout, job.numbers, Workers(job.threads))
    with _errors_of(job.target):
        sync_file(folder / name)  # over a network another machine sees what is there
    return name, made


def hand_out(
    jobs: Sequence[ShardJob], folder: Path, executor: Executor, on_done: Callable[[ShardJob], None]
) -> dict[str, list[Outcome]]:
    """Have an executor write files, and give each its place in ``folder``: what came of them, by path.

    ``on_done`` is called in this thread for each that has its place. After an error nothing is handed out,
    and what runs is waited for: then nothing writes any more. Raises that error, or that of a worker which
    is gone.
    """
    made: dict[str, list[Outcome]] = {}
    with _private_folder(folder, jobs) as private, _running(jobs, private, executor) as running:
        for future in as_completed(running):
            job = running[future]
            name, made[job.path] = future.result()
            with _errors_of(job.target):
                (private / name).replace(folder / job.path)
            on_done(job)
    return made


@contextlib.contextmanager
def _running(
    jobs: Sequence[ShardJob], folder: Path, executor: Executor
) -> Iterator[dict[Future[tuple[str, list[Outcome]]], ShardJob]]:
    """The jobs, begun; none of them runs when the block ends."""
    running: dict[Future[tuple[str, list[Outcome]]], ShardJob] = {}
    try:
        for job in jobs:
            if any(map(_has_failed, running)):
                break  # which is raised when it is asked for
            running[executor.submit(write_shard, job, folder)] = job
        yield running
    finally:
        wait([future for future in running if not future.cancel()])


def _has_failed(future: Future[tuple[str, list[Outcome]]]) -> bool:
    return future.done() and future.exception() is not None


@contextlib.contextmanager
def _private_folder(folder: Path, jobs: Sequence[ShardJob]) -> Iterator[Path]:
    """A folder in another for files without a name; it is gone at the end, with what is left in it."""
    with _errors_of(jobs[0].target if jobs else folder):
        made = Path(tempfile.mkdtemp(prefix=".wnconvert-", dir=folder))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def _errors_of(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise translated(error, target) from error
