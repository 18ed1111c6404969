"""Sequences of numbers and of names that go on alike, in few bytes; for JSON.

Numbers are single ones and runs ``[first, step, count]``. Names that differ in numbers alone are one pattern:
the texts between the numbers, and the numbers in each place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = [
    "count_names",
    "count_numbers",
    "packed_names",
    "packed_numbers",
    "skeleton",
    "unpacked_names",
    "unpacked_numbers",
]


_LEAST = 3  # numbers in a run
_DIGITS = re.compile(r"([0-9]+)")
_LONGEST = 15  # digits of a number


def packed_numbers(numbers: Sequence[int]) -> list[Any]:
    """Numbers in few bytes.

    >>> packed_numbers([0, 3, 6, 9, 7, 7, 7, 1])
    [[0, 3, 4], [7, 0, 3], 1]
    """
    made: list[Any] = []
    at, end = 0, len(numbers)
    while at < end:
        first = numbers[at]
        step = numbers[at + 1] - first if at + 1 < end else 0
        last = at + 1
        while last < end and numbers[last] - numbers[last - 1] == step:
            last += 1
        if last - at >= _LEAST:
            made.append([first, step, last - at])
            at = last
        else:
            made.append(first)
            at += 1
    return made


def unpacked_numbers(packed: Any) -> list[int]:
    """The numbers again. Raises ``ValueError`` for what makes no sense."""
    count_numbers(packed)
    made: list[int] = []
    for item in packed:
        if isinstance(item, int):
            made.append(item)
        else:
            first, step, count = item
            made += [first] * count if step == 0 else range(first, first + step * count, step)
    return made


def count_numbers(packed: Any) -> int:
    """How many numbers they are, told without making them. Raises ``ValueError`` for what makes no sense."""
    if not isinstance(packed, list):
        raise ValueError("not a list")
    total = 0
    for item in packed:
        if _is_count(item):
            total += 1
            continue
        if not (isinstance(item, list) and len(item) == 3 and _is_count(item[0]) and _is_count(item[2])):
            raise ValueError("not a number, and not a run of numbers")
        first, step, count = item
        if not (isinstance(step, int) and count and _is_count(first + step * (count - 1))):
            raise ValueError("a run that leaves the numbers")
        total += count
    return total


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def skeleton(name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The texts of a name, and the numbers between them.

    >>> skeleton("ups.12.conv.weight"), skeleton("block007.w")
    ((('ups.', '.conv.weight'), (12,)), (('block007.w',), ()))
    """
    parts = _DIGITS.split(name)
    texts, numbers = [parts[0]], []
    for digits, text in zip(parts[1::2], parts[2::2], strict=True):
        if len(digits) <= _LONGEST and (digits[0] != "0" or digits == "0"):
            numbers.append(int(digits))
            texts.append(text)
        else:
            texts[-1] += digits + text
    return tuple(texts), tuple(numbers)


def packed_names(texts: Sequence[str], numbers: Sequence[Sequence[int]]) -> Any:
    """Names with the same texts, and ``numbers`` between them: a pattern, or a text that is the one name.

    >>> packed_names(("ups.", ".weight"), [(0,), (1,), (2,)])
    ['ups.', [[0, 1, 3]], '.weight']
    """
    if len(texts) == 1:
        return texts[0]
    made: list[Any] = [texts[0]]
    for column, text in zip(zip(*numbers, strict=True), texts[1:], strict=True):
        made += [packed_numbers(column), text]
    return made


def unpacked_names(packed: Any) -> Iterator[str]:
    """The names again. Raises ``ValueError`` for what makes no sense."""
    count_names(packed)
    if isinstance(packed, str):
        yield packed
        return
    texts = packed[::2]
    for numbers in zip(*map(unpacked_numbers, packed[1::2]), strict=True):
        yield (
            "".join(part for pair in zip(texts, map(str, numbers), strict=False) for part in pair) + texts[-1]
        )


def count_names(packed: Any) -> int:
    """How many names they are, told without making them. Raises ``ValueError`` for what makes no sense."""
    if isinstance(packed, str):
        return 1
    if not isinstance(packed, list) or len(packed) % 2 == 0 or len(packed) == 1:
        raise ValueError("not a pattern of names")
    if not all(isinstance(text, str) for text in packed[::2]):
        raise ValueError("a pattern of names without texts")
    (count,) = {count_numbers(column) for column in packed[1::2]} or {0}  # else too many values: a ValueError
    return count
