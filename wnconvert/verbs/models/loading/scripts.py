"""Loads TorchScript archives, whose code torch's interpreter runs when it loads and calls them.

The interpreter has operators that write files, and a class runs its ``__setstate__`` as it is loaded. So the
archive is read first, as data: every text of code, wherever it lies, the names in its pickles, and the
bytecode of mobile archives. What is not known to only compute needs trust.
"""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch
from torch import nn

from wnconvert.errors import FormatError, InputError
from wnconvert.formats.pickle.reader import load
from wnconvert.formats.pickle.values import walk
from wnconvert.formats.torch.names import foreign_names
from wnconvert.formats.zips import ZipEntry, read_directory
from wnconvert.messages import printable
from wnconvert.storage.files import open_file
from wnconvert.tensors.files import ReadableFile
from wnconvert.verbs.models.loading.operators import is_for_scripts
from wnconvert.verbs.models.loading.script_texts import fault_of, is_known_class

__all__ = ["load_script"]


_MOST = 256 << 20  # bytes of code and pickles


def load_script(path: Path, *, trust: bool) -> nn.Module:
    """The module in an archive. Without ``trust`` it must not be able to do anything but compute.

    Raises ``InputError`` if it cannot be loaded, or only with ``trust``.
    """
    if not trust:
        _check(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript itself is deprecated
            found: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]
        raise InputError(
            f"a TorchScript archive that torch cannot load: {printable(said)}",
            where=str(path),
            fix="save it again with this version of torch, or name the factory of the module",
        ) from error
    return found


def _check(path: Path) -> None:
    """Raise ``InputError`` for an archive with anything in it that is not known to only compute."""
    with closing(open_file(path)) as file:
        fault = next(_faults(file), "")
    if fault:
        raise InputError(
            f"a TorchScript archive with {printable(fault)}",
            where=str(path),
            fix="give --trust, if you know who made it",
        )


def _faults(file: ReadableFile) -> Iterator[str]:
    """What speaks against an archive, for people, each with the record where it is."""
    if file.read(4, 4) == b"PTMF":  # by which torch knows them, whatever stands around it
        yield "the mark of mobile flatbuffers, which are not read here"
    left = _MOST
    for record in read_directory(file).values():
        if not _is_read(record.name):
            continue
        content = _content(file, record, left)
        if content is None:
            yield f"a record that cannot be inflated, or past {_MOST >> 20} MiB of code, in {record.name}"
            return
        if fault := _fault(record.name, content):
            yield f"{fault}, in {record.name}"
        left -= len(content)


_READ = frozenset({"data.pkl", "constants.pkl", "bytecode.pkl", "model.json"})


def _is_read(name: str) -> bool:
    """Whether torch may read a record as more than numbers; it does not tell capitals from small letters."""
    folders, _, last = f"/{name.lower()}".rpartition("/")
    return last in _READ or (last.endswith((".py", ".ts")) and "/code/" in f"{folders}/")


def _content(file: ReadableFile, record: ZipEntry, most: int) -> bytes | None:
    """The bytes of a record, inflated; None where they are more than ``most``, or no such record."""
    if record.data.size > most:
        return None
    content = file.read(record.data.start, record.data.size)
    if not record.compressed:
        return content
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflate.decompress(content, most)
    except zlib.error:
        return None
    return content if inflate.eof else None


def _fault(name: str, content: bytes) -> str:
    """What speaks against a record, for people, or nothing."""
    lower = name.lower()
    if lower.endswith("model.json"):
        return "the format of torch before 1.4, whose code may lie anywhere"
    return next(_in_pickle(content), "") if lower.endswith(".pkl") else fault_of(content)


#: In the pickles of archives, beside what torch reads everywhere: lists, and kinds of quantized numbers.
_OF_ARCHIVES = re.compile(r"torch\.jit\._pickle\.\w+|torch\.per_(tensor|channel)_\w+", re.ASCII)
_OPERATOR = re.compile(r"(\w+)::(\w+)", re.ASCII)


def _in_pickle(content: bytes) -> Iterator[str]:
    """The faults of a pickle: classes that it makes, and operators that the bytecode for mobiles names."""
    try:
        root = load(content).root
    except FormatError as error:
        yield f"a pickle that cannot be read ({error.what})"
        return
    for name in foreign_names(root):
        parts = name.split(".")
        if not (is_known_class(parts) if parts[0] == "__torch__" else _OF_ARCHIVES.fullmatch(name)):
            yield f"an object of {name}"
    for value in walk(root):
        for text in value if isinstance(value, (tuple, list)) else ():
            if (
                isinstance(text, str)
                and (found := _OPERATOR.fullmatch(text))
                and not is_for_scripts(*found.groups())
            ):
                yield f"code that calls {text}"
            elif (
                isinstance(text, str) and text.startswith("__torch__") and not is_known_class(text.split("."))
            ):
                yield f"code that makes {text}"
