"""Arrays of the user's in .npz and .npy files: inputs to prove on."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wnconvert.errors import InputError
from wnconvert.messages import listed, printable
from wnconvert.storage.files import local_path, located
from wnconvert.tensors.blocks import Array

__all__ = ["arrays_in"]


_FIX = "write it with numpy.savez(FILE, NAME=array, …), or one array with numpy.save"


def arrays_in(
    path: str | os.PathLike[str], names: Mapping[str, str], needed: Collection[str]
) -> dict[str, Array]:
    """The arrays of a file by input: an ``.npz`` has them by name, an ``.npy`` is the only one.

    ``names`` are the names that an array may have, each with its input; ``needed`` are the inputs that must
    be there. Nothing is unpickled. Raises ``InputError`` for what is no such file, for an array that is no
    input, for an input that is lacking, and for arrays of Python objects.
    """
    at = local_path(located(path), "numpy reads it")
    try:
        found = _read(at, names, needed)
    except InputError as error:
        error.where = error.where or str(path)
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        what = (
            "arrays of Python objects are not unpickled"
            if "allow_pickle" in str(error)
            else "no file of arrays"
        )
        if isinstance(error, OSError) and error.strerror:
            what = error.strerror
        raise InputError(what, where=str(path), fix=_FIX) from error
    return found


def _read(at: Path, names: Mapping[str, str], needed: Collection[str]) -> dict[str, Array]:
    with at.open("rb") as file:
        return _arrays(np.load(file, allow_pickle=False), names, needed)


def _arrays(opened: Any, names: Mapping[str, str], needed: Collection[str]) -> dict[str, Array]:
    if isinstance(opened, np.ndarray):
        if len(needed) != 1:
            inputs = listed(map(printable, needed)) or "none"
            raise InputError(
                f"one array, and the inputs that need values are {inputs}",
                fix="give an .npz with each by its name",
            )
        return {next(iter(needed)): opened}
    with opened as archive:
        other = [name for name in archive.files if name not in names]
        if other:
            raise InputError(
                f"no input is called {listed(map(printable, other))}",
                fix=f"name the arrays as the inputs: {listed(map(printable, names))}",
            )
        found = {names[name]: np.asarray(archive[name]) for name in archive.files}
    lacking = [name for name in needed if name not in found]
    if lacking:
        raise InputError(
            f"the input {listed(map(printable, lacking))} is lacking",
            fix="add it, or give it fixed values, such as --input 'NAME=float32[3]=0,1,0'",
        )
    return found
