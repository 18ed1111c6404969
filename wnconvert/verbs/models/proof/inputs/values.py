"""What an input is fed with where the user says it: fixed numbers, the size of a letter, or a range."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from wnconvert.errors import ArgumentError
from wnconvert.frozen import dataclass
from wnconvert.tensors.blocks import Array

__all__ = ["Between", "Fixed", "GivenValues", "Tied", "filled", "parse_values"]


_LETTER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORDS = {"true": 1, "false": 0}


@dataclass(frozen=True, slots=True)
class Fixed:
    """Numbers that are the same in each sample: one for all elements, or one for each in C order."""

    numbers: tuple[float, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.numbers))


@dataclass(frozen=True, slots=True)
class Tied:
    """The size of a letter, in all elements."""

    letter: str

    def __str__(self) -> str:
        return self.letter


@dataclass(frozen=True, slots=True)
class Between:
    """Numbers drawn from ``low`` to ``high``: floats uniformly, integers with both ends."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"


GivenValues: TypeAlias = Fixed | Tied | Between


def parse_values(text: str, dtype: np.dtype[Any], shape: tuple[int | str, ...]) -> GivenValues:
    """Parse what stands behind the shape of an input, for a dtype and a shape with letters.

    Raises ``ArgumentError`` for what is none of the three, and for what the dtype or shape cannot hold.

    >>> parse_values("0,1,0", np.dtype("float32"), (3,))
    Fixed(numbers=(0.0, 1.0, 0.0))
    >>> parse_values("L", np.dtype("int64"), (1,)), parse_values("0..1", np.dtype("float32"), (1, "T"))
    (Tied(letter='L'), Between(low=0.0, high=1.0))
    """
    text = text.strip()
    if dtype.kind != "b" and _LETTER.fullmatch(text):
        return Tied(text)
    ends = text.split("..")
    if len(ends) == 2 and dtype.kind not in "bc":
        low, high = (_number(end, dtype) for end in ends)
        if low > high:
            raise ArgumentError(f"{text} is not a range", fix="the lower end comes first, such as 0..1")
        return Between(low, high)
    numbers = tuple(_number(each, dtype) for each in text.split(","))
    letters = [size for size in shape if isinstance(size, str)]
    if len(numbers) > 1 and (
        letters or math.prod(size for size in shape if isinstance(size, int)) != len(numbers)
    ):
        sizes = ",".join(map(str, shape))
        raise ArgumentError(
            f"{len(numbers)} values do not fit the shape [{sizes}]",
            fix="give one value for each element, or one for all of them",
        )
    return Fixed(numbers)


def _number(text: str, dtype: np.dtype[Any]) -> float:
    """A number that the dtype can hold."""
    text, number = text.strip(), math.nan
    try:
        if dtype.kind == "b":
            number = _WORDS[text.lower()] if text.lower() in _WORDS else int(text)
            fits = number in (0, 1)
        elif dtype.kind in "iu":
            number = int(text)
            fits = np.iinfo(dtype).min <= number <= np.iinfo(dtype).max
        else:
            number = float(text)
            with np.errstate(over="ignore"):
                fits = math.isfinite(number) and bool(np.isfinite(np.asarray(number).astype(dtype)))
    except ValueError:
        fits = False
    if not fits:
        raise ArgumentError(
            f"'{text}' is not a number of {dtype.name}",
            fix="give numbers such as =0,1,0, a range =0..1, or =@FILE.npz",
        )
    return number


def filled(
    values: GivenValues,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    sizes: Mapping[str, int],
    stream: np.random.Generator,
) -> Array:
    """The elements of an input of ``shape`` where letters have ``sizes``; ranges are drawn from ``stream``.

    >>> filled(Tied("L"), np.dtype("int64"), (1,), {"L": 7}, np.random.default_rng(0))
    array([7])
    """
    if isinstance(values, Tied):
        return np.full(shape, sizes[values.letter], dtype)
    if isinstance(values, Fixed):
        numbers = np.array(values.numbers).astype(dtype)
        return np.full(shape, numbers[0]) if len(numbers) == 1 else numbers.reshape(shape)
    if dtype.kind in "iu":
        return np.asarray(stream.integers(int(values.low), int(values.high), shape, dtype, endpoint=True))
    return np.asarray(stream.uniform(values.low, values.high, shape)).astype(dtype)
