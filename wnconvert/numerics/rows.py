"""Rows without an answer (zero directions, NaN, infinities, overflow): reports, and errors by policy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

from wnconvert.errors import NumbersError
from wnconvert.messages import option, raise_listed

__all__ = [
    "WHOLE",
    "Divisor",
    "Problem",
    "RowPolicy",
    "RowReport",
    "RowTally",
    "Rows",
    "Wider",
    "raise_problems",
    "rows_where",
    "runs",
    "say_rows",
    "split_note",
    "split_problems",
]


#: Rows that a message names.
_NAMED = 10
#: The least share of what singular vectors give that a trained u and v have.
_TRAINED = 0.5


class Wider(Enum):
    """How a layer gets a wider dtype if its numbers are too large for its own."""

    BY_OPTION = auto()
    BY_MODULE = auto()  # the user casts the live module first
    NEVER = auto()  # there is none, or it is an ONNX model, whose other nodes would not accept it


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem with the numbers of a tensor, and the remedy, if there is one."""

    what: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class RowPolicy:
    """The policy of the user for rows without an answer.

    ``zero_rows`` is ``"error"`` or ``"zero"`` (they become zero whatever g is). ``allow_nonfinite`` writes
    NaN and infinities as they come. ``wider`` decides what to recommend where numbers are too large.
    """

    zero_rows: str = "error"
    allow_nonfinite: bool = False
    wider: Wider = Wider.BY_OPTION

    def making(self, dtype: str) -> RowPolicy:
        """The policy where numbers of this dtype are made, of which float16 alone has a wider one to ask for.

        >>> RowPolicy().making("float32").wider, RowPolicy().making("float16").wider
        (<Wider.NEVER: 3>, <Wider.BY_OPTION: 1>)
        """
        return self if dtype == "float16" or self.wider is Wider.NEVER else replace(self, wider=Wider.NEVER)

    def problems(self, report: RowReport) -> tuple[Problem, ...]:
        """The problems of a folded layer under this policy."""
        found = []
        if report.zero.count and self.zero_rows != "zero":
            what = f"v is zero in {say_rows(report.zero)}, and 0/0 is not a number"
            found.append(Problem(what, option("zero_rows", "zero")))
        if report.constant.count and self.zero_rows != "zero":
            what = f"all elements are equal in {say_rows(report.constant)}, and 0/0 is not a number"
            found.append(Problem(what, option("zero_rows", "zero")))
        if report.nonfinite.count and not self.allow_nonfinite:
            whole = report.nonfinite == WHOLE
            what = f"NaN or infinity in {'it' if whole else f'g or v, in {say_rows(report.nonfinite)}'}"
            found.append(Problem(what, option("allow_nonfinite", True)))
        if report.overflow.count and not self.allow_nonfinite:
            where = "" if report.overflow == WHOLE else f", in {say_rows(report.overflow)}"
            found.append(Problem(f"too large for the dtype{where}", self._widen()))
        if report.variance.count and not self.allow_nonfinite:
            channels = say_rows(report.variance, "channel")
            what = f"the variance is negative, or not positive with its eps, in {channels}"
            found.append(Problem(what, option("allow_nonfinite", True)))
        if report.channels.count and not self.allow_nonfinite:
            what = f"NaN or infinity in the norm, in {say_rows(report.channels, 'channel')}"
            found.append(Problem(what, option("allow_nonfinite", True)))
        if report.divisor:
            found += report.divisor.problems(allow_nonfinite=self.allow_nonfinite)
        return tuple(found)

    def _widen(self) -> str:
        if self.wider is Wider.BY_MODULE:
            return "module.float() before"
        if self.wider is Wider.BY_OPTION:
            return option("dtype", "float32")
        return option("allow_nonfinite", True)

    def cast_problems(self, overflow: int, dtype: object) -> tuple[Problem, ...]:
        """The problem of a cast that made ``overflow`` finite elements infinite."""
        if not overflow or self.allow_nonfinite:
            return ()
        what = "one element is" if overflow == 1 else f"{overflow} elements are"
        return (Problem(f"{what} too large for {dtype}", option("dtype", "bfloat16")),)

    def nonfinite_problems(self, count: int) -> tuple[Problem, ...]:
        """The problem of ``count`` elements that are computed as NaN or infinity."""
        if not count or self.allow_nonfinite:
            return ()
        return (Problem(f"{count} of its elements are NaN or infinite", option("allow_nonfinite", True)),)

    def note(self, report: RowReport) -> str:
        """A note on a layer that was folded under this policy, or ``""``."""
        if report.divisor and (said := report.divisor.note()):
            return said
        if report.constant.count:
            return f"all elements are equal in {say_rows(report.constant)}, which became zero"
        if not report.zero.count:
            return ""
        note = f"v is zero in {say_rows(report.zero)}, which became zero"
        if report.zero_with_g.count:
            note += f" ({report.zero_with_g.count} of them with a g that is not 0)"
        return note


def split_problems(report: RowReport, dtype: object) -> tuple[Problem, ...]:
    """The problems of a weight to split: rows without a norm that ``dtype`` can hold.

    No option allows them: a fold would not give such rows back.
    """
    found = []
    if report.nonfinite.count:
        found.append(Problem(f"NaN or infinity in {say_rows(report.nonfinite)}, which has no norm"))
    if report.overflow.count:
        found.append(Problem(f"a norm that {dtype} cannot hold, in {say_rows(report.overflow)}"))
    return tuple(found)


def split_note(report: RowReport) -> str:
    """A note on a weight that was split, or ``""``."""
    if not report.zero.count:
        return ""
    return f"w is zero in {say_rows(report.zero)}: g is 0 there, and v a uniform unit direction"


def raise_problems(problems: Iterable[tuple[str, Sequence[Problem]]]) -> None:
    """Raise one ``NumbersError`` for all problems, by the names of their tensors, if there are any."""
    found = [(where, of_tensor) for where, of_tensor in problems if of_tensor]
    if not found:
        return
    remedies = dict.fromkeys(problem.remedy for _, of_tensor in found for problem in of_tensor)
    leave = f"{option('exclude')} leaves a layer as it is"
    fix = "; ".join(filter(None, (", or ".join(filter(None, remedies)), leave)))
    items = [(where, "; ".join(problem.what for problem in of_tensor)) for where, of_tensor in found]
    raise_listed(NumbersError, f"{len(items)} tensors have numbers without an answer", items, fix=fix)


@dataclass(frozen=True, slots=True)
class Rows:
    """A number of rows, and the first ten of them."""

    count: int = 0
    first: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Divisor:
    """σ, by which all elements of a tensor were divided; NaN if what it is made of is not finite."""

    value: float
    share: float = 1.0  # of the most that it can be for these lengths of u and mat·v: of singular vectors 1
    doubt: str = ""

    def problems(self, *, allow_nonfinite: bool) -> Iterator[Problem]:
        """What makes all quotients none, or wrong."""
        if self.doubt:
            yield Problem(self.doubt, f"{option('dim', 0)} or {option('dim', 1)} with {option('layers')}")
        elif allow_nonfinite:
            return
        elif math.isnan(self.value):
            yield Problem("NaN or infinity in u, v or the weight", option("allow_nonfinite", True))
        elif not self.value:
            yield Problem("σ = u·w·v is 0: nothing can be divided by it", option("allow_nonfinite", True))

    def note(self) -> str:
        """A note on a σ that is not that of a trained layer, or ``""``."""
        if self.share < _TRAINED:
            share = f"{self.share:.0%} of what singular vectors give"
            return f"σ is {self.value:.3g}, {share}: u and v are not trained"
        return f"σ is {self.value:.3g}, and training makes none that is negative" if self.value < 0 else ""


@dataclass(frozen=True, slots=True)
class RowReport:
    """The odd rows of a tensor by kind; the caller decides which of them are errors.

    ``zero``: rows of v without a nonzero element; ``zero_with_g``: those whose g is not 0;
    ``constant``: rows of equal elements, which have no deviation, where no eps is added to it;
    ``nonfinite``: rows with a NaN or an infinity in v or g; ``overflow``: finite rows whose result has an
    infinity; ``kept``: rows whose g is the rounded norm, so that w is v. Of a norm beside the layer:
    ``variance``: channels whose variance is negative, or not positive with its eps; ``channels``: those with
    a NaN or an infinity.
    """

    zero: Rows = Rows()
    zero_with_g: Rows = Rows()
    constant: Rows = Rows()
    nonfinite: Rows = Rows()
    overflow: Rows = Rows()
    kept: Rows = Rows()
    variance: Rows = Rows()
    channels: Rows = Rows()
    divisor: Divisor | None = None


#: A tensor that has no rows, as one.
WHOLE = Rows(1)


class RowTally:
    """Odd rows, counted as they come: numbers and the first of each kind, never a flag for every row.

    >>> tally = RowTally()
    >>> tally.add("zero", np.array([False, True]), first=4)
    >>> tally.add("zero", np.array([True]), first=6)
    >>> tally.report().zero
    Rows(count=2, first=(5, 6))
    """

    def __init__(self) -> None:
        self._found: dict[str, Rows] = {}

    def add(self, kind: str, flags: NDArray[np.bool_], first: int) -> None:
        """Count the rows with a true flag, of which there is one for each row from ``first`` on."""
        found = rows_where(flags)
        if found.count:
            have = self._found.get(kind, Rows())
            named = (*have.first, *(first + row for row in found.first))
            self._found[kind] = Rows(have.count + found.count, named[:_NAMED])

    def put(self, kind: str, rows: Rows) -> None:
        """Say at once which rows are of a kind."""
        self._found[kind] = rows

    def report(self, divisor: Divisor | None = None) -> RowReport:
        """The odd rows so far, and what all of them were divided by."""
        return RowReport(divisor=divisor, **self._found)


def runs(count: int, most: int = 1 << 16) -> Iterator[slice]:
    """That many rows in runs, so that what is computed of them needs little memory."""
    return (slice(first, min(first + most, count)) for first in range(0, count, most))


def rows_where(flags: NDArray[np.bool_]) -> Rows:
    """The rows with a true flag."""
    if not flags.any():
        return Rows()
    found = np.flatnonzero(flags)
    return Rows(len(found), tuple(found[:_NAMED].tolist()))


def say_rows(rows: Rows, each: str = "row") -> str:
    """Rows in the words of a message; ``each`` is what one is called.

    >>> say_rows(Rows(1, (4,))), say_rows(Rows(12, tuple(range(10))))
    ('row 4', '12 rows (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …)')
    """
    if rows.count == 1:
        return f"{each} {rows.first[0]}"
    more = ", …" if rows.count > len(rows.first) else ""
    return f"{rows.count} {each}s ({', '.join(map(str, rows.first))}{more})"
