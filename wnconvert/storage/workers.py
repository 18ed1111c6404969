"""Jobs on several threads, the largest first, until all are done or one has failed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TypeVar

from wnconvert.tensors.blocks import processors

__all__ = ["Cancelled", "Workers"]


T = TypeVar("T")


class Cancelled(Exception):  # noqa: N818 - not an error: another thread has one
    """Another thread failed, or the user interrupted."""


class Workers:
    """Threads that share jobs, the first error of any of them, and a count of the bytes done.

    ``threads`` defaults to the processors at hand, at most 4. ``progress`` is called with the bytes done
    and the bytes in all, never from two threads at once.
    """

    def __init__(
        self, threads: int | None, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        self.threads = threads or min(processors(), 4)
        self.is_told = threads is not None
        self.progress = progress
        self.done = self.total = 0
        self.expected = False
        self.lock = threading.Lock()
        self.errors: list[BaseException] = []

    def expect(self, count: int) -> None:
        """Say how many bytes there are in all, where that is known before the jobs are."""
        self.total += count
        self.expected = True

    def each(
        self,
        work: Callable[[int], T],
        sizes: Mapping[int, int],
        order: Iterable[int] | None = None,
        quick: Collection[int] = (),
    ) -> dict[int, T]:
        """The results of ``work`` by job, given the bytes of each. Raises the first error of any thread.

        The jobs are begun in some ``order``; without one, the largest first, and the ``quick`` ones, which
        take less time than threads that wait for each other, by this thread alone, behind the others. Where
        the user says how many threads there are, all of them share all jobs.
        """
        if not self.expected:
            self.total += sum(sizes.values())
        # The largest first, so that no thread is left with a large one at the end.
        ranked = sorted(sizes, key=lambda job: -sizes[job]) if order is None else list(order)
        mine = frozenset(quick if order is None and not self.is_told else ())
        shared = [job for job in ranked if job not in mine]
        alone = (job for job in ranked if job in mine)
        waiting = iter(shared)
        results: dict[int, T] = {}

        def taken() -> Iterator[int]:
            while True:
                with self.lock:
                    job = next(waiting, None)
                if job is None:
                    return
                yield job

        def work_off(jobs: Iterable[int]) -> None:
            try:
                for job in jobs:
                    if self.errors:
                        break
                    results[job] = work(job)
            except BaseException as error:  # noqa: BLE001 - raised below, if it is the first one
                self.errors.append(error)

        count = min(self.threads, len(shared)) - 1
        others = [threading.Thread(target=work_off, args=(taken(),)) for _ in range(count)]
        try:
            del others[_started(others) :]  # with fewer, where the system starts no more
            work_off(chain(taken(), alone))
            for thread in others:
                thread.join()
        except BaseException as error:  # noqa: BLE001 - Ctrl-C while waiting; raised below
            self.errors.append(error)
        if self.errors:
            for thread in others:
                if thread.ident is not None:
                    thread.join()
            raise self.errors[0]
        return results

    def check(self) -> None:
        """Stop here where another thread has failed."""
        if self.errors:
            raise Cancelled

    def advance(self, count: int) -> None:
        """Count bytes as done, or stop here where another thread has failed."""
        self.check()
        with self.lock:
            self.done += count
            self.progress(self.done, self.total)


def _started(threads: Sequence[threading.Thread]) -> int:
    """Start threads; how many the system has started."""
    for count, thread in enumerate(threads):
        try:
            thread.start()
        except RuntimeError:  # noqa: PERF203 - a few threads
            return count
    return len(threads)
