"""What runs that were killed left beside a target: named in notes, and deleted where that is asked for."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

from wnconvert.messages import option, printable
from wnconvert.storage.stores.temporary import Leftover, leftovers_of, remove_leftover

__all__ = ["cleaned_leftovers", "named_leftovers"]


def named_leftovers(target: Path) -> tuple[str, ...]:
    """A note on each temporary file or folder beside a target, with what removes it."""
    return tuple(_named(left) for left in _beside(target))


def cleaned_leftovers(
    target: Path, remove_unneeded: Callable[[list[Path]], object] = lambda files: None
) -> tuple[str, ...]:
    """Delete what killed runs left beside a target; a note on each thing, deleted or not.

    What a run still writes stays, and what stood at the target before comes back to it, if nothing is there.
    ``remove_unneeded`` deletes those files that a replaced target needed, and nothing else needs.
    """
    return tuple(_cleaned(left, remove_unneeded) for left in _beside(target))


def _beside(target: Path) -> list[Leftover]:
    return leftovers_of(Path(os.path.realpath(target)))


def _named(left: Leftover) -> str:
    name, clean = printable(left.path.name), option("clean", True)
    if left.lives:
        return f"another run is writing to {printable(left.real.name)} now: {name}"
    if left.lives is None:
        by_hand = f"rm -r {shlex.quote(str(left.path))}, if no other run is at work"
        return f"{name} is left of a run that was killed, as it seems: {by_hand}"
    if left.is_old and not os.path.lexists(left.real):
        was = f"{name} is what {printable(left.real.name)} was, left of a run that was killed"
        return f"{was}: {clean} puts it back"
    return f"{name} is left of a run that was killed: {clean} deletes it"


def _cleaned(left: Leftover, remove_unneeded: Callable[[list[Path]], object]) -> str:
    comes_back = left.is_old and not os.path.lexists(left.real)
    name = printable(left.path.name)
    try:
        if not remove_leftover(left, remove_unneeded):
            return _named(left)
    except OSError as error:
        return f"{name} is left of a run that was killed, and cannot be deleted ({error.strerror})"
    done = f"put back as {printable(left.real.name)}" if comes_back else "deleted"
    return f"{name}, left of a run that was killed, is {done}"
