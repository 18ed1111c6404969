"""Loads exported programs (``.pt2``) without running code from the file: a list of what is allowed in one.

``torch.export.load`` is made for the user's own files. It unpickles (with ``weights_only=False`` if the safe
way fails, and always for tensor subclasses and custom objects), loads shared libraries (AOTInductor), passes
texts to ``exec`` (guards; every name, because graphs become Python code), to ``eval`` (sizes, through sympy)
and to ``importlib`` (contexts of trees), and calls whatever has the name of an operator.

So a file is checked first, with torch's own reader, and anything unknown in it is refused:

* records are known by name; none is larger than the file, so nothing is compressed
* the JSON follows torch's own schema, type for type. Each text in it has a rule, by its class and field; a
  text without a rule is refused, as is a field that a later torch may add
* pickles are zip archives that ``weights_only`` accepts, and hold tensors and plain values

The format before torch 2.8 is not read: it is made of pickles. What torch's own operators do with numbers is
not checked: a program may still ask for more memory than there is.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import re
import sys
import types
import typing
import zipfile
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from wnconvert.errors import InputError
from wnconvert.messages import printable
from wnconvert.verbs.models.loading.program_texts import KEYS, PLAIN, TEXTS, TextRule
from wnconvert.verbs.models.proof.running import quiet_torch

__all__ = ["is_exported_program", "load_exported_program"]


_MOST_JSON = 64 << 20  # bytes


class _UnsafeError(Exception):
    """Something in a file that is not on the list."""


def is_exported_program(path: Path) -> bool:
    """Whether ``torch.export.save`` of any version could have written a file."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {name.partition("/")[2] or name for name in archive.namelist()}
    except zipfile.BadZipFile:
        return False
    return bool(inside & {"archive_format", "serialized_exported_program.json"}) and "data.pkl" not in inside


def load_exported_program(path: Path, *, trust: bool) -> ExportedProgram:
    """The program in a file. Without ``trust`` it must not be able to run anything but torch's operators.

    Raises ``InputError`` if it cannot be loaded, or only with ``trust``.
    """
    try:
        with quiet_torch():
            program = torch.export.load(path) if trust else _checked(path)
            program.module()  # this fails for an inconsistent program
            return program
    except _UnsafeError as error:
        raise InputError(
            f"an exported program with {printable(str(error))}",
            where=str(path),
            fix="give --trust, if you know who made it",
        ) from error
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # a trusted file may raise anything
        said = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(
            f"an exported program (torch.export) that cannot be loaded: {printable(said)}",
            where=str(path),
            fix="export it again with this version of torch, or name the factory of the module",
        ) from error


def _checked(path: Path) -> ExportedProgram:
    with zipfile.ZipFile(path) as archive:
        if any(name.rpartition("/")[2] == "serialized_exported_program.json" for name in archive.namelist()):
            raise _UnsafeError(
                "the format of torch before 2.8, whose pickles may run code when they are loaded"
            )
    try:
        from torch.export.pt2_archive import PT2ArchiveReader
        from torch.export.pt2_archive._package import load_pt2
    except ImportError as error:
        raise _UnsafeError(
            f"a format that torch {torch.__version__} cannot load without running code"
        ) from error
    with PT2ArchiveReader(str(path)) as reader:
        _check_records(reader.archive_file, path)
    # Not torch.export.load, which falls back on the older format and reads its pickles another way.
    found: ExportedProgram = load_pt2(str(path)).exported_programs["model"]
    return found


# -- records


_RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|\.format_version"
    r"|\.storage_alignment|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_[0-9]+|model_weights_config\.json)"
    r"|data/constants/(tensor_[0-9]+|model_constants_config\.json)|extra/[\w./ -]+",
    re.ASCII,
)
_PROGRAM = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_PAYLOADS = {
    "data/weights/": "data/weights/model_weights_config.json",
    "data/constants/": "data/constants/model_constants_config.json",
}


def _check_records(archive: Any, path: Path) -> None:
    names: list[str] = archive.get_all_records()
    for name in names:
        if not _RECORDS.fullmatch(name):
            raise _UnsafeError(_unknown_record(name))
    for name in (_PROGRAM, _SAMPLES, *_PAYLOADS.values()):
        if name not in names:
            raise _UnsafeError(f"no record {name}, which torch.export.save writes")
    if len(set(names)) < len(names):
        raise _UnsafeError("two records of one name")
    sizes = _sizes(archive, path, path.stat().st_size)
    from torch._export.serde import schema

    for folder, name in _PAYLOADS.items():
        config = _json(archive, name, sizes)
        _hold(schema.PayloadConfig, config, "PayloadConfig")
        for payload in config["config"].values():
            _check_payload(sizes, folder, payload)
    _hold(schema.ExportedProgram, _json(archive, _PROGRAM, sizes), "ExportedProgram")
    _check_samples(archive.get_record(_SAMPLES))


def _unknown_record(name: str) -> str:
    if name.startswith("data/aotinductor/"):
        return "compiled code (AOTInductor), which runs when it is loaded"
    if name.startswith(("data/constants/custom_obj_", "data/constants/opaque_obj_")):
        return f"a custom object, a pickle that may run code when it is loaded ({name})"
    return f"a record that is not known to be safe ({_short(name)})"


def _sizes(archive: Any, file: Path | io.BytesIO, size: int) -> dict[str, int]:
    """The sizes of all records. They must fit into the file, which is of ``size`` bytes."""
    names = archive.get_all_records()
    if hasattr(archive, "get_record_size"):
        sizes = {name: archive.get_record_size(name) for name in names}
    else:  # torch 2.9 and 2.10
        with zipfile.ZipFile(file) as seen:
            sizes = {each.filename.partition("/")[2]: each.file_size for each in seen.infolist()}
        if sorted(sizes) != sorted(names):
            raise _UnsafeError("records that Python does not find as torch does")
    if sum(sizes.values()) > size:
        raise _UnsafeError(
            "records that are larger than the file (compressed), which torch.export.save does not write"
        )
    return sizes


def _json(archive: Any, name: str, sizes: Mapping[str, int]) -> Any:
    if sizes[name] > _MOST_JSON:
        raise _UnsafeError(f"a JSON of more than {_MOST_JSON >> 20} MiB ({name})")
    try:
        return json.loads(archive.get_record(name).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _UnsafeError(f"a record that is not JSON ({name}: {_short(str(error))})") from error


def _check_payload(records: Mapping[str, int], folder: str, payload: Mapping[str, Any]) -> None:
    """Check of a stored tensor what the schema leaves open."""
    name = folder + payload["path_name"]
    if payload["use_pickle"]:
        raise _UnsafeError(f"a pickle that may run code when it is loaded ({name}: use_pickle)")
    if payload["tensor_meta"] is None or name not in records:
        raise _UnsafeError(f"a tensor whose record is missing ({name})")
    sizes = [each.get("as_int") for each in payload["tensor_meta"]["sizes"]]
    if None in sizes or (not records[name] and math.prod(sizes)):
        raise _UnsafeError(f"a tensor without its numbers ({name})")


def _check_samples(content: bytes) -> None:
    """Raise for sample inputs that ``torch.load`` does not read as a zip archive with ``weights_only``.

    For anything else, torch falls back on ``weights_only=False``.
    """
    what = f"a pickle that may run code when it is loaded ({_SAMPLES})"
    if not content:
        return
    if not content.startswith(b"PK\x03\x04"):
        raise _UnsafeError(what)
    try:
        _sizes(torch._C.PyTorchFileReader(io.BytesIO(content)), io.BytesIO(content), len(content))
        found = torch.load(io.BytesIO(content), weights_only=True)
    except _UnsafeError:
        raise
    except Exception as error:
        raise _UnsafeError(what) from error
    _check_sample(found)


def _check_sample(value: Any) -> None:
    """Raise for values other than tensors and plain ones, and for keys that must not be in guards."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            if type(key) is not int:
                _hold_text(PLAIN, key, "sample inputs")
            _check_sample(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            _check_sample(each)
    elif not isinstance(
        value, (torch.Tensor, str, int, float, complex, torch.dtype, torch.device, types.NoneType)
    ):
        raise _UnsafeError(f"sample inputs other than tensors and plain values ({type(value).__name__})")


# -- JSON, by torch's schema


@functools.cache
def _fields(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, globalns=vars(sys.modules[kind.__module__]))
    return {each.name: hints[each.name] for each in dataclasses.fields(kind)}


def _hold(kind: Any, data: Any, place: str) -> None:
    """Refuse data of another type than torch writes, and texts that break the rule of their place.

    ``place`` is the class and field of a value. Fields of an ``Argument`` count as fields of the class that
    holds it: other texts are allowed in arguments of an operator than in inputs of a program.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if data is not None:
            _hold(inner[0], data, place)  # all unions of torch's schema are of one type and None
    elif origin is list:
        for each in _typed(list, data, place):
            _hold(inner[0], each, place)
    elif origin is dict:
        for key, each in _typed(dict, data, place).items():
            _hold_text(KEYS.get(place), key, place)
            narrow = f"{place}.{key}"
            _hold(inner[1], each, narrow if narrow in TEXTS else place)
    elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
        _hold_object(kind, data, place)
    elif kind is str:
        _hold_text(TEXTS.get(place), data, place)
    else:
        _hold_number(kind, data, place)


def _hold_object(kind: type, data: Any, place: str) -> None:
    fields = _fields(kind)
    _typed(dict, data, place)
    argument = kind.__name__ == "Argument"
    if _is_union(kind) and not (len(data) == 1 and data.keys() <= fields.keys()):
        raise _UnsafeError(f"data that is not of torch's format ({place})")
    for name in fields.keys() & data.keys():  # others are not read
        owner = place.partition(".")[0] if argument else kind.__name__
        _hold(fields[name], data[name], f"{owner}.{name}")


def _is_union(kind: type) -> bool:
    return any(base.__name__ == "_Union" for base in kind.__mro__)


def _typed(kind: type, data: Any, place: str) -> Any:
    if type(data) is not kind:
        raise _UnsafeError(f"data that is not of torch's format ({place}: a {type(data).__name__})")
    return data


def _hold_number(kind: Any, data: Any, place: str) -> None:
    if kind is float and data in ("Infinity", "-Infinity", "NaN"):
        return
    if kind is float and type(data) is float:
        return
    if isinstance(kind, type) and issubclass(kind, IntEnum):
        if _typed(int, data, place) not in list(kind):
            raise _UnsafeError(f"data that is not of torch's format ({place}: {_short(str(data))})")
    elif kind in (int, float):
        if abs(_typed(int, data, place)) >= 1 << 64:
            raise _UnsafeError(f"an absurdly large number ({place})")
    elif kind is bool:
        _typed(bool, data, place)
    else:
        raise _UnsafeError(f"data that is not known to be safe ({place})")


def _hold_text(rule: TextRule | None, text: Any, place: str) -> None:
    if rule is None or type(text) is not str:
        raise _UnsafeError(f"data that is not known to be safe ({place}: {_short(str(text))})")
    if not rule.holds(text):
        raise _UnsafeError(f"{rule.otherwise} ({_short(text)})")


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"
