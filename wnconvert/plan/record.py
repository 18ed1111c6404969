"""The record in a file of what wnconvert did to it, so that it can be undone.

One JSON object: ``{"schema": 1, "version": …, "history": [step, …], "metadata": {…}}``; a step is
``{"verb": "fold", "state_dicts": {path: [layer, …]}}``, a layer its name, form, dim and both halves with
name, shape, dtype and place (among all keys), as they were before. ``fold`` always leaves one, ``migrate``
only if the rules on order would not undo it. The verb that undoes a step removes it. ``metadata`` keeps
safetensors' metadata in a torch file. The record of a file is input like any other: here it
is checked for sense, and its users check it against names and shapes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from wnconvert import __version__
from wnconvert.layers.schemes import Layer, spelled
from wnconvert.tensors.dtypes import DTYPES
from wnconvert.tensors.tree import TensorInfo

__all__ = [
    "METADATA_KEY",
    "NO_HISTORY",
    "RECORD_NAME",
    "History",
    "Origin",
    "Record",
    "origin_data",
    "origins",
    "read_history",
    "recorded",
    "renamed_record",
    "without_layers",
    "write_history",
]


#: The record of a zip archive, and the key of safetensors' metadata, that hold the record.
RECORD_NAME = "wnconvert.json"
METADATA_KEY = "wnconvert"


@dataclass(frozen=True, slots=True)
class History:
    """The steps that earlier runs recorded, and safetensors' metadata that was kept with them."""

    steps: tuple[Mapping[str, Any], ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


NO_HISTORY = History()


def read_history(text: bytes | str) -> History:
    """Read a record; an invalid one is left out, with a note.

    >>> read_history(write_history([{"verb": "fold", "state_dicts": {}}], {"format": "pt"})).metadata
    {'format': 'pt'}
    """
    if not text:
        return NO_HISTORY
    try:
        record = json.loads(text)
        json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair can be written nowhere
    except (ValueError, RecursionError):
        record = None
    if not _is_record(record):
        return History(notes=("its wnconvert record makes no sense and is left out",))
    metadata = {str(key): str(value) for key, value in record.get("metadata", {}).items()}
    metadata.pop(METADATA_KEY, None)  # which would go out as safetensors' own: a record in the record
    return History(tuple(record["history"]), metadata)


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and isinstance(record.get("history"), list)
        and all(_is_step(step) for step in record["history"])
        and isinstance(record.get("metadata", {}), dict)
    )


def _is_step(step: object) -> bool:
    if not isinstance(step, dict) or not isinstance(step.get("verb"), str):
        return False
    states = step.get("state_dicts")
    return isinstance(states, dict) and all(isinstance(layers, list) for layers in states.values())


def write_history(steps: Sequence[Mapping[str, Any]], metadata: Mapping[str, str] | None = None) -> str:
    """The record of these steps as compact JSON, keys in a fixed order."""
    record: dict[str, Any] = {"schema": 1, "version": __version__, "history": list(steps)}
    if metadata:
        record["metadata"] = dict(metadata)
    return json.dumps(record, separators=(",", ":"))


# -- the layers of a step

#: The steps that a file records, the last one last.
Record: TypeAlias = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Origin:
    """A layer as it was before a step: the pair, and the places of g and v among all keys."""

    layer: Layer
    places: tuple[int, int]


def origin_data(layer: Layer, place: Mapping[str, int]) -> dict[str, Any]:
    """A layer as the record has it; ``place`` holds the index of every key."""
    halves = {
        half: {
            "name": info.name,
            "shape": list(info.shape),
            "dtype": str(info.dtype),
            "place": place[info.name],
        }
        for half, info in (("g", layer.g), ("v", layer.v))
    }
    return {"name": layer.name, "form": layer.form, "dim": layer.dim, **halves}


def origins(record: Record, path: str, verb: str) -> list[tuple[Origin, ...]]:
    """The layers that the steps of a verb changed in the state dict at ``path``, without invalid ones."""
    steps = [step["state_dicts"].get(path, ()) if step["verb"] == verb else () for step in record]
    read = (tuple(origin for data in step if (origin := _origin(data))) for step in steps)
    return [step for step in read if step]


def recorded(
    record: Record, kept: Mapping[str, str], verb: str, layers: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[Mapping[str, Any], ...]:
    """The record of an output: the steps of the source on the state dicts that it keeps, and a new one.

    ``kept`` maps paths in the source to paths in the output; ``layers`` holds the layers that the new step
    changed, by path in the source.
    """
    steps = [
        {**step, "state_dicts": {kept[path]: of for path, of in step["state_dicts"].items() if path in kept}}
        for step in record
    ]
    steps.append({"verb": verb, "state_dicts": {kept[path]: of for path, of in layers.items() if of}})
    return tuple(step for step in steps if step["state_dicts"])


def without_layers(record: Record, verb: str, undone: Mapping[str, Iterable[str]]) -> Record:
    """The record without these layers, named by path and weight, in the steps of a verb."""
    names = {path: set(of_path) for path, of_path in undone.items()}

    def left(path: str, layers: Sequence[Any]) -> list[Any]:
        gone = names.get(path, set())
        return [data for data in layers if not ((origin := _origin(data)) and origin.layer.name in gone)]

    steps = []
    for step in record:
        if step["verb"] != verb:
            steps.append(step)
            continue
        of_states = {path: left(path, layers) for path, layers in step["state_dicts"].items()}
        steps.append({**step, "state_dicts": {path: layers for path, layers in of_states.items() if layers}})
    return steps


def renamed_record(
    record: Record, namers: Mapping[str, Callable[[str], str]]
) -> tuple[Mapping[str, Any], ...]:
    """The record of state dicts whose weights have new names, by their paths: the layers have them too."""

    def renamed(path: str, data: Any) -> Any:
        origin = _origin(data)
        if origin is None or path not in namers:
            return data
        name = namers[path](origin.layer.name)
        halves = zip("gv", spelled(origin.layer.form, name) or (), strict=True)
        return {**data, "name": name, **{half: {**data[half], "name": key} for half, key in halves}}

    return tuple(
        {
            **step,
            "state_dicts": {
                path: [renamed(path, data) for data in layers] for path, layers in step["state_dicts"].items()
            },
        }
        for step in record
    )


def _origin(data: Any) -> Origin | None:
    """A layer of the record, or None if it is invalid."""
    if not isinstance(data, dict):
        return None
    name, form, dim = data.get("name"), data.get("form"), data.get("dim")
    g, v = _half(data.get("g")), _half(data.get("v"))
    if not isinstance(name, str) or not isinstance(form, str) or g is None or v is None:
        return None
    if not (dim is None or (_is_count(dim) and dim < len(v[0].shape))):
        return None
    if spelled(form, name) != (g[0].name, v[0].name):
        return None
    return Origin(Layer(name, form, dim, g[0], v[0]), (g[1], v[1]))


_MOST_AXES = 64  # more than torch or numpy allow


def _half(data: Any) -> tuple[TensorInfo, int] | None:
    if not isinstance(data, dict):
        return None
    name, shape, dtype, place = (data.get(key) for key in ("name", "shape", "dtype", "place"))
    if not isinstance(name, str) or not isinstance(dtype, str) or dtype not in DTYPES:
        return None
    if not isinstance(place, int) or not _is_count(place):
        return None
    if not isinstance(shape, list) or len(shape) > _MOST_AXES or not all(map(_is_count, shape)):
        return None
    return TensorInfo(name, DTYPES[dtype], tuple(shape)), place


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
