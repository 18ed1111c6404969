"""The model that a command line names: built, and its weights loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from wnconvert.callables import Exportable
from wnconvert.checkpoint import open_checkpoint
from wnconvert.factory import build, kwargs_of
from wnconvert.module_weights import load_weights
from wnconvert.steps import Step, Steps

__all__ = ["Prepared", "prepared"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model ready to be exported, and what was done for it."""

    module: Exportable
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()


def prepared(
    model: str,
    *,
    weights: str | None = None,
    kwargs: str | None = None,
    only: str | None = None,
    strip_prefix: Iterable[str] = (),
    trust: bool = False,
    progress: Callable[[Step], None] = lambda step: None,
) -> Prepared:
    """Build what ``model`` names, with ``kwargs`` as JSON, and load ``weights`` into it.

    ``progress`` is told each step when it is done. Raises as ``build`` and ``load_weights`` do.
    """
    arguments = None if kwargs is None else kwargs_of(kwargs)
    if weights is not None:
        open_checkpoint(Path(weights))  # what is wrong with it is told before the model's own code runs
    steps = Steps(progress)
    with steps("build") as step:
        made = build(model, kwargs=arguments, trust=trust, only=only if weights is None else None)
        step.detail = type(made).__name__
    notes: list[str] = []
    if weights is None and not Path(model).is_file():
        notes.append("no --weights: the model has those that its factory gave it")
    if weights is not None:
        with steps("load") as step:
            found = load_weights(made, Path(weights), only=only, strip_prefix=strip_prefix)
            step.detail, *notes = found
    return Prepared(made, tuple(steps.every), tuple(notes))
