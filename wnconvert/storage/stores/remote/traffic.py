"""How many requests were made of stores, and how many bytes of files came."""

from __future__ import annotations

import threading

from wnconvert.frozen import dataclass
from wnconvert.messages import counted

__all__ = ["TRAFFIC", "Spent", "Traffic"]


@dataclass(frozen=True, slots=True)
class Spent:
    """Requests, and bytes of files that were fetched and sent."""

    requests: int = 0
    fetched: int = 0
    sent: int = 0

    def __sub__(self, before: Spent) -> Spent:
        """What came since."""
        return Spent(self.requests - before.requests, self.fetched - before.fetched, self.sent - before.sent)

    @property
    def in_words(self) -> str:
        """The counts in a line.

        >>> Spent(12, 262144).in_words
        '12 requests, 262,144 bytes fetched, 0 sent'
        """
        return f"{counted(self.requests, 'request')}, {self.fetched:,} bytes fetched, {self.sent:,} sent"


class Traffic:
    """The counts of this process, from any thread.

    >>> traffic = Traffic()
    >>> traffic.add(fetched=512)
    >>> traffic.counts
    Spent(requests=1, fetched=512, sent=0)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = Spent()

    def add(self, *, fetched: int = 0, sent: int = 0) -> None:
        """Count a request."""
        with self._lock:
            was = self._counts
            self._counts = Spent(was.requests + 1, was.fetched + fetched, was.sent + sent)

    @property
    def counts(self) -> Spent:
        """All so far."""
        return self._counts


#: The traffic of this process.
TRAFFIC = Traffic()
