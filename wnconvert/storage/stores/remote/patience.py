"""What fails in passing is asked again, a few times, each time after a longer pause."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from wnconvert.errors import InputError

__all__ = ["ATTEMPTS", "SILENCE", "Passing", "patiently"]


_Answer = TypeVar("_Answer")

#: How often something is asked in all.
ATTEMPTS = 5
#: The seconds that a server may be silent.
SILENCE = 60.0

# The first pause in seconds; each is twice as long as the one before.
_PAUSE = 0.1


class Passing(Exception):  # noqa: N818 - it may pass
    """A request failed, and may not fail again: a busy server, a line that broke. The text says how."""


def patiently(ask: Callable[[], _Answer], where: str) -> _Answer:
    """The answer to a request that may fail in passing. Raises ``InputError`` where it goes on failing.

    The pauses are of random length, so that many that failed together do not ask together.

    >>> answers = iter([Passing("503"), 7])
    >>> def ask():
    ...     answer = next(answers)
    ...     if isinstance(answer, Passing):
    ...         raise answer
    ...     return answer
    >>> patiently(ask, "s3://bucket/model.pt")
    7
    """
    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except InputError as error:
            error.where = error.where or where
            raise
        except Passing as error:
            if attempt == ATTEMPTS - 1:
                raise InputError(
                    f"it cannot be reached ({error}; asked {ATTEMPTS} times)",
                    where=where,
                    fix="try again later, or look at the network",
                ) from error
        import random  # which few need

        time.sleep(_PAUSE * 2**attempt * random.uniform(0.5, 1))  # noqa: S311 - no secret
    raise AssertionError("the last attempt returns or raises")
