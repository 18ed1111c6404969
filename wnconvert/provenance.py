"""What wnconvert did to a file, as it is recorded in the file itself, so that ``split`` can undo it.

One JSON object: ``{"schema": 1, "version": …, "history": [step, …], "metadata": {…}}``; a step is
``{"verb": "fold", "state_dicts": {path: [layer, …]}}``, a layer its name, form, dim and both halves with
name, shape, dtype and place. ``metadata`` keeps safetensors' metadata in a torch file. The record of a
file is input like any other: what uses it checks it against names and shapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wnconvert import __version__

__all__ = ["METADATA_KEY", "NO_HISTORY", "RECORD_NAME", "History", "read_history", "write_history"]

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
    """Read a record; one that makes no sense is left out, with a note.

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
    metadata = record.get("metadata", {})
    return History(tuple(record["history"]), {str(key): str(value) for key, value in metadata.items()})


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
