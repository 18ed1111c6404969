"""The record in a file of what wnconvert did to it, so that it can be undone.

One JSON object: ``{"schema": 2, "version": …, "history": [step, …], "metadata": {…}}``; a step is
``{"verb": "fold", "state_dicts": {path: [row, …]}}``, whose rows hold layers as they were before
(``plan.record.origins``). ``fold`` always leaves one, ``migrate`` only if the rules on order would not undo
it. The verb that undoes a step removes it. ``metadata`` keeps safetensors' metadata in a torch file. The
record of a file is input like any other: here it is checked for sense, and its users check it against names
and shapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from types import MappingProxyType
from typing import Any, TypeAlias

from wnconvert import __version__
from wnconvert.frozen import dataclass
from wnconvert.layers.schemes import Layer, renamed_halves
from wnconvert.plan.record.origins import (
    Origin,
    Row,
    count_layers,
    gone_in,
    origins_in,
    record_rows,
    rows_of_gone,
    rows_of_names,
)

__all__ = [
    "METADATA_KEY",
    "NO_HISTORY",
    "RECORD_NAME",
    "History",
    "Record",
    "believable",
    "gone",
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
#: What a record may call a version.
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+!-]{0,39}")


@dataclass(frozen=True, slots=True)
class History:
    """The steps that earlier runs recorded, and safetensors' metadata that was kept with them.

    ``versions`` holds that of the wnconvert which wrote the record, where it says a sensible one.
    """

    steps: tuple[Mapping[str, Any], ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()


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
    version = record.get("version")
    said = (version,) if isinstance(version, str) and _VERSION.fullmatch(version) else ()
    return History(tuple(record["history"]), metadata, versions=said)


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
    record: dict[str, Any] = {"schema": 2, "version": __version__, "history": list(steps)}
    if metadata:
        record["metadata"] = dict(metadata)
    return json.dumps(record, separators=(",", ":"))


# -- the layers of a step

#: The steps that a file records, the last one last.
Record: TypeAlias = Sequence[Mapping[str, Any]]


def origins(record: Record, path: str, verb: str) -> list[tuple[Origin, ...]]:
    """The layers that the steps of a verb changed in the state dict at ``path``, without invalid ones."""
    steps = (step["state_dicts"].get(path, ()) for step in record if step["verb"] == verb)
    return [found for rows in steps if (found := origins_in(rows))]


def gone(record: Record, path: str) -> dict[str, tuple[str, ...]]:
    """The weights that folds made of layers that cannot be given back, with their kinds."""
    found: dict[str, tuple[str, ...]] = {}
    for step in record:
        if step["verb"] == "fold":
            found |= gone_in(step["state_dicts"].get(path, ()))
    return found


def recorded(
    record: Record,
    kept: Mapping[str, str],
    verb: str,
    layers: Mapping[str, Sequence[Origin]],
    gone: Mapping[str, Iterable[Layer]] = MappingProxyType({}),
) -> tuple[Mapping[str, Any], ...]:
    """The record of an output: the steps of the source on the state dicts that it keeps, and a new one.

    ``kept`` maps paths in the source to paths in the output; ``layers`` holds the layers that the new step
    changed, by path in the source, ``gone`` layers of which those that are no pairs have a row too.
    """
    steps = [
        {**step, "state_dicts": {kept[path]: of for path, of in step["state_dicts"].items() if path in kept}}
        for step in record
    ]
    rows = {kept[path]: [*record_rows(of), *rows_of_gone(gone.get(path, ()))] for path, of in layers.items()}
    steps.append({"verb": verb, "state_dicts": {path: of for path, of in rows.items() if of}})
    return tuple(step for step in steps if step["state_dicts"])


def without_layers(record: Record, verb: str, undone: Mapping[str, Iterable[str]]) -> Record:
    """The record without these layers, named by path and weight, in the steps of a verb."""
    names = {path: set(of_path) for path, of_path in undone.items()}

    def left(path: str, rows: Sequence[Row]) -> Iterator[Row]:
        gone = names.get(path, set())
        for row in rows:
            found = origins_in([row]) if gone else ()
            stay = [origin for origin in found if origin.layer.name not in gone]
            if len(stay) == len(found):
                yield row
            else:
                yield from record_rows(stay)

    steps = []
    for step in record:
        if step["verb"] != verb:
            steps.append(step)
            continue
        of_states = {path: list(left(path, rows)) for path, rows in step["state_dicts"].items()}
        steps.append({**step, "state_dicts": {path: rows for path, rows in of_states.items() if rows}})
    return steps


def renamed_record(
    record: Record, namers: Mapping[str, Callable[[str], str]]
) -> tuple[Mapping[str, Any], ...]:
    """The record of state dicts whose weights have new names, by their paths: the layers have them too."""

    def renamed(path: str, rows: Sequence[Row]) -> Iterator[Row]:
        for row in rows:
            found = origins_in([row]) if path in namers else ()
            if lost := gone_in([row]) if path in namers else {}:
                yield from rows_of_names({namers[path](name): kinds for name, kinds in lost.items()})
            elif found:
                yield from record_rows(_renamed(origin, namers[path]) for origin in found)
            else:
                yield row

    return tuple(
        {
            **step,
            "state_dicts": {path: list(renamed(path, rows)) for path, rows in step["state_dicts"].items()},
        }
        for step in record
    )


def _renamed(origin: Origin, namer: Callable[[str], str]) -> Origin:
    layer, name = origin.layer, namer(origin.layer.name)
    g, v = renamed_halves(layer, namer)
    new = layer.with_halves(replace(layer.g, name=g), replace(layer.v, name=v))
    return replace(origin, layer=replace(new, name=name))


#: How many layers a step may have for each key of a state dict, and at least: keys may have gone since.
_PER_KEY, _AT_LEAST = 4, 1000


def believable(record: Record, keys: Mapping[str, int]) -> bool:
    """Whether no step has far more layers than its state dict has ``keys``, which are counted by path.

    Few bytes can claim very many layers, and all of them are made where the record is gone by.
    """
    return all(
        count_layers(rows) <= _PER_KEY * keys.get(path, 0) + _AT_LEAST
        for step in record
        for path, rows in step["state_dicts"].items()
    )
