"""The step of a training run that a checkpoint says it is of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["STEP_NAMES", "step_in"]


#: What training code calls the number of a step, from the finest to the coarsest.
STEP_NAMES = ("global_step", "iteration", "iterations", "iter", "steps", "step", "epoch")


def step_in(siblings: Iterable[tuple[str, object]], metadata: Mapping[str, str]) -> tuple[str, int] | None:
    """The name and the number of the step among the values at the top of a file, or in its metadata.

    >>> step_in([("epoch", 3), ("iteration", 4000)], {}), step_in([("epoch", True)], {"step": "12"})
    (('iteration', 4000), ('step', 12))
    """
    found = {name: value for name, value in siblings if type(value) is int and value >= 0}
    found |= {name: int(text) for name, text in metadata.items() if text.isascii() and text.isdecimal()}
    return next(((name, found[name]) for name in STEP_NAMES if name in found), None)
