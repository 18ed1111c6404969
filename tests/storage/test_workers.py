"""Jobs on several threads: which thread does which, in what order, and what becomes of errors."""

from __future__ import annotations

import threading
import time

import pytest

from wnconvert.storage.workers import Workers


def by_threads(workers: Workers, quick: range, order: list[int] | None = None) -> tuple[set[int], list[int]]:
    """The threads that do the quick ones of 40 jobs, and the jobs in the order in which they are begun."""
    threads: set[int] = set()
    begun: list[int] = []

    def work(job: int) -> int:
        begun.append(job)
        if job in quick:
            threads.add(threading.get_ident())
        time.sleep(0.002)  # so that every thread comes to its turn
        return job

    assert workers.each(work, {job: 100 - job for job in range(40)}, order, quick) == {
        job: job for job in range(40)
    }
    return threads, begun


def test_quick_jobs_are_done_by_the_thread_that_asks_behind_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wnconvert.storage.workers.processors", lambda: 3)
    threads, begun = by_threads(Workers(None), range(10, 40))
    assert threads == {threading.get_ident()}
    assert set(begun[:10]) == set(range(10))
    assert begun[10:] == list(range(10, 40))


def test_jobs_that_are_not_quick_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wnconvert.storage.workers.processors", lambda: 3)
    used: set[int] = set()
    meet = threading.Barrier(3, timeout=60)

    def work(job: int) -> None:
        used.add(threading.get_ident())
        if job < 3:
            meet.wait()  # which only three threads at a time get past

    Workers(None).each(work, {job: 100 - job for job in range(40)}, quick=range(3, 40))
    assert len(used) == 3


@pytest.mark.parametrize("order", [None, list(range(40))[::-1]])
def test_threads_that_are_asked_for_and_an_order_share_all_jobs(order: list[int] | None) -> None:
    # With an order, each journey to a far file may take long, whatever is read.
    workers = Workers(3 if order is None else None)
    workers.threads = 3
    threads, begun = by_threads(workers, range(40), order)
    assert len(threads) == 3
    assert begun[0] == (order or range(40))[0]


@pytest.mark.parametrize("failing", [2, 30])
def test_the_first_error_ends_all(failing: int) -> None:
    done: list[int] = []

    def work(job: int) -> None:
        if job == failing:
            raise ValueError(f"job {job}")
        done.append(job)

    with pytest.raises(ValueError, match=f"job {failing}"):
        Workers(None).each(work, {job: 100 - job for job in range(40)}, quick=range(10, 40))
    assert 39 not in done
