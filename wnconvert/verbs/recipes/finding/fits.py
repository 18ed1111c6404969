"""Lines and constants through numbers of very different sizes, and numbers as somebody wrote them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from wnconvert.frozen import dataclass

__all__ = ["Line", "constant", "line", "near_to", "rounded"]


@dataclass(frozen=True, slots=True)
class Line:
    """y = start + slope·x."""

    start: float
    slope: float


def line(x: Tensor, y: Tensor) -> Line | None:
    """The line through points whose errors are relative to y; None if x is all the same.

    >>> import torch
    >>> found = line(torch.tensor([1e-9, 1.0, 2.0]).double(), torch.tensor([1e-8 + 2e-9, 2.0, 4.0]).double())
    >>> f"{found.start:.1e}", f"{found.slope:.3f}"
    ('1.0e-08', '2.000')
    """
    weight = 1 / y.square()
    s, sx, sxx = float(weight.sum()), float((weight * x).sum()), float((weight * x * x).sum())
    sy, sxy = float((weight * y).sum()), float((weight * x * y).sum())
    determinant = s * sxx - sx * sx
    if not determinant > 1e-12 * s * sxx:
        return None
    return Line((sy * sxx - sxy * sx) / determinant, (s * sxy - sx * sy) / determinant)


def constant(values: Tensor, error: float) -> float | None:
    """The number that all values are, relatively to ``error``; None if they differ."""
    middle = float(values.median())
    return middle if bool(((values - middle).abs() <= error * abs(middle)).all()) else None


def near_to(one: float, other: float, error: float) -> bool:
    """Whether two numbers differ by no more than a part of them.

    >>> near_to(1.0, 1.0 + 1e-10, 1e-9), near_to(1.0, 1.1, 1e-9)
    (True, False)
    """
    return abs(one - other) <= error * max(abs(one), abs(other))


def rounded(value: float, written: Iterable[float], error: float = 1e-9) -> float:
    """A number that was measured, as it was written: one of those ``written``, or one of few digits.

    >>> rounded(1.00000000001e-5, ()), rounded(0.3333333333, (1 / 3,)), rounded(0.123456789, ())
    (1e-05, 0.3333333333333333, 0.123456789)
    """
    if near_to(abs(value), 1.0, error):
        return 1.0 if value > 0 else -1.0
    for each in written:
        if each and near_to(abs(each), abs(value), error):
            return abs(each) if value > 0 else -abs(each)
    for digits in range(1, 7):
        short = float(f"{value:.{digits}g}")
        if near_to(short, value, error):
            return short
    return value
