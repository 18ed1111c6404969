"""What killed runs left in a store, aborted."""

from __future__ import annotations

import os

from wnconvert.errors import ArgumentError, InputError, OutputError
from wnconvert.messages import refuse_other_than_path
from wnconvert.storage.files import stored, stored_output

__all__ = ["clean_store"]


def clean_store(address: str | os.PathLike[str], *, dry_run: bool = False) -> tuple[str, ...]:
    """Abort the unfinished uploads of an object, and of all that lie below its address; their addresses.

    With ``dry_run`` they are only found. An upload that a run is still sending is unfinished too, and that
    run will fail. Raises ``ArgumentError`` for what is no address of a store that is written to.

    >>> clean_store("model.pt")
    Traceback (most recent call last):
    wnconvert.errors.ArgumentError: model.pt: it lies in no store that is written to
    fix: fold, split and migrate clean beside OUT with --clean
    """
    refuse_other_than_path(address, "an address")
    path = stored_output(address)
    if path is None:
        raise ArgumentError(
            "it lies in no store that is written to",
            where=os.fspath(address),
            fix="fold, split and migrate clean beside OUT with --clean",
        )
    try:
        found = stored(path).unfinished(path)
        for each, upload in () if dry_run else found:
            stored(path).sweep(each, upload)
    except InputError as error:
        raise OutputError(error.heading, where=error.where, fix=error.fix) from error
    return tuple(str(each) for each, _ in found)
