"""The result of a comparison: frozen data, and the words for it."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from wnconvert.frozen import dataclass
from wnconvert.messages import option, short_repr
from wnconvert.numerics.distance import Needed, rounded_up
from wnconvert.shown import Drawn, Paged

__all__ = ["COLUMNS", "Comparison", "Difference", "Operand", "qualified"]


#: The columns of ``Comparison.rows``.
COLUMNS = ("name", "A", "B", "why", "different", "max abs", "max rel", "ulps", "cosine", "SNR dB", "worst")


@dataclass(frozen=True, slots=True)
class Operand:
    """One side of a difference; ``form`` is ``legacy``, ``parametrize`` or ``plain``."""

    form: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.form} {self.dtype} {'×'.join(map(str, self.shape)) or '()'}"


@dataclass(frozen=True, slots=True)
class Difference:
    """A name on both sides whose tensors are not equal, and why: shape, dtype, bits or values.

    ``different`` counts the elements out of tolerance; ``unmatched`` those among them with a NaN or an
    infinity that the other side does not have. With any of these the other numbers have no value; else they
    are over all elements that are finite on both sides: ``max_abs`` = max |a-b|, ``max_rel`` = max |a-b|/|b|
    (infinite if only b is 0), ``ulps`` in units of the coarser dtype, ``cosine``, ``snr_db`` = 10·log₁₀
    Σb²/Σ(a-b)²; None if they have no value. ``worst`` is the index of the first unmatched element, else of
    the largest |a-b|; ``worst_a`` and ``worst_b`` are the elements there. ``spread`` counts the elements that
    are 0, 1, 2 to 3, 4 to 7, … ulps apart, up to the largest.
    """

    name: str
    state_dict: str
    a: Operand
    b: Operand
    why: str
    different: int = 0
    unmatched: int = 0
    max_abs: float | None = None
    max_rel: float | None = None
    ulps: int | None = None
    cosine: float | None = None
    snr_db: float | None = None
    worst: tuple[int, ...] | None = None
    worst_a: float | None = None
    worst_b: float | None = None
    spread: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The difference as JSON-able data; an infinite ``max_rel`` is null."""
        plain = asdict(self)
        return plain | {key: value if _is_plain(value) else None for key, value in plain.items()}


def _is_plain(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


@dataclass(frozen=True, slots=True, repr=False)
class Comparison(Paged, Drawn):
    """The result of a comparison; true if both sides are equal within the tolerance.

    ``a`` and ``b`` name the sides, ``pairs`` the paths of the state dicts that were compared. Counts are of
    names on both sides: ``compared`` = ``identical`` (bit for bit) + ``within`` the tolerance + the length
    of ``differing``; ``layers`` of them are computed on either side: weight norm, spectral norm, prune.
    ``tolerance_needed`` is None if both sides are equal, if no values differ, or if no tolerance is enough
    (NaN on one side only).
    """

    a: str
    b: str
    pairs: tuple[tuple[str, str], ...]
    differing: tuple[Difference, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    compared: int
    identical: int
    within: int
    layers: int
    rtol: float | None
    atol: float | None
    tolerance_needed: Needed | None
    notes: tuple[str, ...]

    def __bool__(self) -> bool:
        return not (self.differing or self.only_in_a or self.only_in_b)

    def __repr__(self) -> str:
        return short_repr(
            f"Comparison: {self.a} and {self.b} {'are equal' if self else 'differ'}",
            [*(item.name for item in self.differing), *self.only_in_a, *self.only_in_b],
            f"{self.compared} compared: {self.identical} identical, {self.within} within the tolerance, "
            f"{len(self.differing)} different",
            f"{len(self.only_in_a)} only in A, {len(self.only_in_b)} only in B",
        )

    @property
    def tolerance(self) -> str:
        """The tolerance that was applied, in words."""
        if self.rtol is None and self.atol is None:
            return "1 ulp of the coarser dtype"
        return f"|a-b| <= {self.atol or 0:g} + {self.rtol or 0:g}·|b|"

    @property
    def advice(self) -> str:
        """The options with which the comparison would have passed, in words; empty if both sides are equal.

        The numbers are rounded up, so they do pass.
        """
        if self:
            return ""
        others = [
            *(["names"] if self.only_in_a or self.only_in_b else []),
            *dict.fromkeys(f"{item.why}s" for item in self.differing if item.why in ("shape", "dtype")),
            *(["integers"] if any(item.why == "bits" for item in self.differing) else []),
            *(["NaN or infinities"] if any(item.unmatched for item in self.differing) else []),
        ]
        ways = self._ways()
        if not others:
            return f"{' or '.join(ways)} would have passed" if ways else "no tolerance would have passed"
        passed = f"; the other values would pass with {' or '.join(ways)}" if ways else ""
        return f"no tolerance would have passed: {', '.join(others)} differ{passed}"

    def _ways(self) -> list[str]:
        need = self.tolerance_needed
        if need is None:
            return []
        ways = []
        if need.atol is not None:
            ways.append(_way("atol", need.atol) + (f" {option('rtol', self.rtol)}" if self.rtol else ""))
        if need.rtol is not None:
            ways.append(_way("rtol", need.rtol) + (f" {option('atol', self.atol)}" if self.atol else ""))
        return ways

    def rows(self) -> list[tuple[Any, ...]]:
        """A row for each difference, with the columns of :data:`COLUMNS`; None for a missing value."""
        several = len(self.pairs) > 1
        return [
            (
                qualified(item.state_dict, item.name) if several else item.name,
                str(item.a),
                str(item.b),
                item.why,
                item.different if item.why in ("values", "bits") else None,
                item.max_abs,
                item.max_rel,
                item.ulps,
                item.cosine,
                item.snr_db,
                item.worst,
            )
            for item in self.differing
        ]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON-able data; docs/json.md documents it."""
        return {
            "schema": 1,
            "a": self.a,
            "b": self.b,
            "equal": bool(self),
            "state_dicts": [{"a": a, "b": b} for a, b in self.pairs],
            "compared": self.compared,
            "identical": self.identical,
            "within": self.within,
            "different": len(self.differing),
            "layers": self.layers,
            "rtol": self.rtol,
            "atol": self.atol,
            "tolerance": self.tolerance,
            "tolerance_needed": asdict(self.tolerance_needed) if self.tolerance_needed else None,
            "advice": self.advice,
            "differing": [item.to_dict() for item in self.differing],
            "only_in_a": list(self.only_in_a),
            "only_in_b": list(self.only_in_b),
            "notes": list(self.notes),
        }


def _way(name: str, need: float) -> str:
    """A tolerance that would have passed, as an option."""
    return option(name, rounded_up(need))


def qualified(path: str, name: str) -> str:
    """A name with the path of its state dict before it."""
    return f"{path}.{name}" if path else name
