"""What ``progress`` may be: a function that is called, True for a bar of tqdm, False for nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from wnconvert.errors import ArgumentError

__all__ = ["Progress", "StepsProgress", "bytes_progress", "steps_progress"]


#: Called with the bytes done and in all; or True for a bar.
Progress: TypeAlias = Callable[[int, int], None] | bool
#: Called with each step as it begins and as it ends (it has ``seconds`` then); or True for a bar.
StepsProgress: TypeAlias = Callable[[Any], None] | bool


def bytes_progress(given: Progress) -> Callable[[int, int], None]:
    """A function to call with the bytes done and in all."""
    return _BytesBar() if given is True else _called(given)


def steps_progress(given: StepsProgress) -> Callable[[Any], None]:
    """A function to call with each step as it begins and as it ends."""
    return _StepsBar() if given is True else _called(given)


def _called(given: object) -> Callable[..., None]:
    if given is False or given is None:
        return lambda *_: None
    if not callable(given):
        raise ArgumentError(
            f"progress cannot be {given!r:.80}", fix="a function, or True for a progress bar (tqdm)"
        )
    return given


class _BytesBar:
    """A bar of ``tqdm.auto``, which fits a terminal and a notebook; it ends when all bytes are done."""

    def __init__(self) -> None:
        self.bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self.bar is None:
            self.bar = _bar(unit="B", unit_scale=True)
        self.bar.total = total
        self.bar.update(done - self.bar.n)
        if done >= total:
            self.bar.close()


class _StepsBar:
    """A bar that counts steps and shows the last one."""

    def __init__(self) -> None:
        self.bar: Any = None

    def __call__(self, step: Any) -> None:
        if self.bar is None:
            self.bar = _bar(unit=" steps")
        self.bar.set_postfix_str(step.name)
        if step.seconds is not None:  # it has ended
            self.bar.update(1)


def _bar(**settings: Any) -> Any:
    from tqdm.auto import tqdm

    return tqdm(**settings)
