"""Where jobs run: in this process, in others of this machine, or on a cluster. Each is an ``Executor``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from wnconvert.errors import ArgumentError, InputError
from wnconvert.messages import to_install

__all__ = ["Workplace", "opened_workplace"]


_Made = TypeVar("_Made")
#: What the process that forks others loads once for all.
_NEEDED = [
    "wnconvert.verbs.fleet.work",
    "wnconvert.verbs.conversion.files.fold",
    "wnconvert.verbs.conversion.convert",
    "wnconvert.verbs.conversion.folders.shards",
    "wnconvert.verbs.inspection.inspect",
]


@dataclass(frozen=True, slots=True)
class Workplace:
    """An executor, which is given ``width`` jobs at once: who submits more, in any thread, waits.

    ``leaders`` are threads of this process, for jobs that only hand out others to the executor; ``repeats``
    says that the jobs of a lost worker are begun again.
    """

    executor: Executor
    leaders: Executor
    width: int
    repeats: bool


@dataclass(frozen=True, slots=True)
class _Found:
    """An executor as it is, how many jobs it takes at once, and whether it begins jobs again."""

    executor: Executor
    width: int
    repeats: bool = False


@contextlib.contextmanager
def opened_workplace(
    jobs: int, cluster: str | None = None, executor: Executor | None = None
) -> Iterator[Workplace]:
    """Where jobs run: on the cluster of a scheduler, in the given executor, or in ``jobs`` processes.

    What runs is finished at the end. Raises ``InputError`` where no cluster can be reached.

    >>> with opened_workplace(1) as place:
    ...     place.executor.submit(max, 2, 3).result()
    3
    """
    with _opened(jobs, cluster, executor) as found, ThreadPoolExecutor(found.width) as leaders:
        shared = _Shared(found.executor, found.width)
        try:
            yield Workplace(shared, leaders, found.width, found.repeats)
        finally:
            shared.end()  # who leads waits for nothing more


@contextlib.contextmanager
def _opened(jobs: int, cluster: str | None, executor: Executor | None) -> Iterator[_Found]:
    if cluster is not None:
        with (_ray if cluster.startswith("ray") else _dask)(cluster) as found:
            yield found
    elif executor is not None:
        yield _Found(executor, jobs)
    elif jobs == 1:
        yield _Found(_Here(), 1)
    else:
        with _processes(jobs) as pool:
            yield _Found(pool, jobs)


class _Shared(Executor):
    """An executor that is given so many jobs at a time, by several threads: who has one more waits.

    A job that was handed out is not taken back. After the end none is handed out: ``CancelledError``.
    """

    def __init__(self, executor: Executor, width: int) -> None:
        self._executor = executor
        self._free = threading.Semaphore(width)
        self._one = threading.Lock()  # not every executor is asked by several threads
        self._ended = False

    def submit(self, fn: Callable[..., _Made], /, *args: Any, **kwargs: Any) -> Future[_Made]:
        self._free.acquire()
        try:
            if self._ended:
                raise CancelledError
            with self._one:
                begun = self._executor.submit(fn, *args, **kwargs)
        except BaseException:
            self._free.release()
            raise
        promised: Future[_Made] = Future()
        promised.set_running_or_notify_cancel()
        begun.add_done_callback(lambda done: self._give(done, promised))
        return promised

    def end(self) -> None:
        """Hand out nothing more."""
        self._ended = True

    def _give(self, done: Future[_Made], promised: Future[_Made]) -> None:
        self._free.release()
        error = CancelledError() if done.cancelled() else done.exception()
        if error is None:
            promised.set_result(done.result())
        else:
            promised.set_exception(error)


class _Here(Executor):
    """Runs what it is given at once, in this thread: an error that is no result is raised as it is."""

    def submit(self, fn: Callable[..., _Made], /, *args: Any, **kwargs: Any) -> Future[_Made]:
        done: Future[_Made] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def _processes(jobs: int) -> ProcessPoolExecutor:
    """Processes that a clean one forks: threads of this one, and what it holds, do not come along."""
    import multiprocessing

    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(_NEEDED)
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(dict(os.environ),))


def _begin(variables: Mapping[str, str]) -> None:
    """Begin a worker: Ctrl-C is for the process that waits for it, without which it ends.

    The process that forks it may have begun when the environment, where credentials are, was another one.
    """
    import multiprocessing

    from wnconvert.heap import keep_large_apart

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(variables)
    keep_large_apart()
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


class _Ray(Executor):
    """The workers of a cluster of ray, which begins a job again whose worker is gone."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def submit(self, fn: Callable[..., _Made], /, *args: Any, **kwargs: Any) -> Future[_Made]:
        done: Future[_Made] = self._ray.remote(fn).remote(*args, **kwargs).future()
        return done


@contextlib.contextmanager
def _ray(address: str) -> Iterator[_Found]:
    """The workers of a cluster of ray: ``ray`` is the one that runs on this machine."""
    try:
        import ray
    except ImportError:
        raise ArgumentError(
            "--cluster ray needs ray, which is not installed", fix=to_install("ray")
        ) from None
    try:
        ray.init("auto" if address == "ray" else address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:  # its own errors are among these
        raise InputError(
            f"no cluster of ray answers there ({error})".splitlines()[0],
            where=address,
            fix="ray start --head starts one",
        ) from None
    try:
        yield _Found(_Ray(ray), max(1, int(ray.cluster_resources().get("CPU", 1))), repeats=True)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _dask(address: str) -> Iterator[_Found]:
    """The workers of a scheduler of dask.distributed."""
    try:
        from distributed import Client
    except ImportError:
        raise ArgumentError(
            "--cluster needs dask.distributed, which is not installed", fix=to_install("'wnconvert[dask]'")
        ) from None

    async def reach() -> None:
        client = Client(address, timeout=10, set_as_default=False, asynchronous=True)
        try:
            await client
        finally:
            await client.close()

    try:
        asyncio.run(reach())  # a client that runs in a thread would leave it behind where none answers
        client = Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(
            f"no scheduler of dask answers there ({error})".splitlines()[0],
            where=address,
            fix="dask scheduler starts one, and prints its address",
        ) from None
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise InputError(
                "the scheduler has no workers", where=address, fix=f"dask worker {address} starts one"
            )
        with client.get_executor(pure=False) as executor:
            yield _Found(executor, threads, repeats=True)
