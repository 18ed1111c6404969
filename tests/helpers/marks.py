"""Which of many combinations the default run tries; mark ``full`` has the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import product
from typing import Any

import pytest

__all__ = ["crossed", "some"]


def crossed(ids: Callable[[Any], str] = str, **axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parameters in every combination; by default those in which at most one is not the first of its axis.

    So each value is tried once at least, and what depends on two at once is left to the full run.
    """
    values = {name: list(axis) for name, axis in axes.items()}
    firsts = [axis[0] for axis in values.values()]
    params = []
    for combination in product(*values.values()):
        others = sum(value is not first for value, first in zip(combination, firsts, strict=True))
        marks = () if others <= 1 else (pytest.mark.full,)
        params.append(pytest.param(*combination, id="-".join(map(ids, combination)), marks=marks))
    return pytest.mark.parametrize(tuple(values), params)


def some(name: str, values: Mapping[str, Any], default: Collection[str]) -> pytest.MarkDecorator:
    """A parameter's values by their ids; by default those that are named."""
    assert set(default) & set(values), "a comparison of nothing is a failure"
    params = [
        pytest.param(value, id=key, marks=() if key in default else pytest.mark.full)
        for key, value in values.items()
    ]
    return pytest.mark.parametrize(name, params)
