"""What wnconvert did to an ONNX model, as an entry of the model's own metadata.

One JSON object under the key ``wnconvert``: ``{"schema": 1, "version": …, "history": [step, …]}``. A step
has the ``verb`` and the ``version``, the ``sha256`` of what it was made of, the layers that were ``folded``
and how many they are, the ``constants`` that were evaluated, if any, and the ``proof`` that it passed, with
its ``tolerance``. The record of a file is input like any other: it is shown and carried over, and nothing
is believed of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any

from wnconvert import __version__
from wnconvert.frozen import dataclass
from wnconvert.messages import counted, printable
from wnconvert.onnx.file.wire import MOST_READ, Wire, WireField, bytes_record

__all__ = [
    "NO_PROVENANCE",
    "PROVENANCE_KEY",
    "Provenance",
    "is_provenance",
    "made_step",
    "metadata_entry",
    "provenance_in",
    "read_provenance",
]


PROVENANCE_KEY = "wnconvert"
_METADATA = 14  # of ModelProto
#: So many layers are named; of more there is only the number.
_MOST_NAMES = 1000


@dataclass(frozen=True, slots=True)
class Provenance:
    """The steps that earlier runs recorded, where their records start in the file, and notes."""

    steps: tuple[Mapping[str, Any], ...] = ()
    starts: frozenset[int] = frozenset()
    notes: tuple[str, ...] = field(default=(), compare=False)


NO_PROVENANCE = Provenance()


def read_provenance(text: str, starts: Iterable[int]) -> Provenance:
    """The steps of a record; notes say what they were, or that the record makes no sense.

    >>> step = made_step("fold", sha256=[], folded={"conv.weight": "weight"}, proof="", tolerance={})
    >>> read_provenance(json.dumps({"history": [step]}), [7]).notes
    ('made by wnconvert 0.1.0: fold of 1 layer',)
    """
    found = frozenset(starts)
    try:
        steps = json.loads(text)["history"]
        notes = tuple(_in_words(step) for step in steps)
        json.dumps(steps, ensure_ascii=False).encode()  # half a surrogate pair can be written nowhere
    except (ValueError, KeyError, TypeError, RecursionError):
        return Provenance((), found, ("its wnconvert record makes no sense and is left out",))
    return Provenance(tuple(steps), found, notes)


def is_provenance(wire: Wire, record: WireField) -> bool:
    """Whether a record of a model is an entry of its metadata under the key."""
    if record.number != _METADATA:
        return False
    key = {item.number: item for item in wire.records(record)}.get(1)
    return key is not None and wire.span(key.body, key.end - key.body) == PROVENANCE_KEY.encode()


def provenance_in(wire: Wire, entries: Iterable[WireField]) -> Provenance:
    """What stands under the key in the metadata of a model; the last of several counts."""
    texts: dict[int, WireField | None] = {}
    for entry in entries:
        if is_provenance(wire, entry):
            texts[entry.start] = {item.number: item for item in wire.records(entry)}.get(2)
    if not texts:
        return NO_PROVENANCE
    value = list(texts.values())[-1]
    is_short = value is not None and value.end - value.body <= MOST_READ
    return read_provenance(wire.text(value) if value is not None and is_short else "", texts)


def _in_words(step: Mapping[str, Any]) -> str:
    verb, version, layers = (step[key] for key in ("verb", "version", "layers"))
    if not (isinstance(verb, str) and isinstance(version, str) and isinstance(layers, int)):
        raise TypeError
    constants = step.get("constants", [])
    evaluated = f", {counted(len(constants), 'weight')} evaluated" if constants else ""
    return printable(f"made by wnconvert {version}: {verb} of {counted(layers, 'layer')}{evaluated}")


def made_step(
    verb: str,
    *,
    sha256: Sequence[str],
    folded: Mapping[str, str],
    proof: str,
    tolerance: Mapping[str, float | None],
    constants: Sequence[str] = (),
) -> dict[str, Any]:
    """A step: ``sha256`` of each file of the source, ``folded`` layers with their kinds, the proof.

    ``constants`` are weights that no rule knows, by their names.
    """
    return {
        "verb": verb,
        "version": __version__,
        "sha256": list(sha256),
        "layers": len(folded),
        "folded": dict(list(folded.items())[:_MOST_NAMES]),
        **({"constants": list(constants[:_MOST_NAMES])} if constants else {}),
        "proof": proof,
        "tolerance": dict(tolerance),
    }


def metadata_entry(steps: Sequence[Mapping[str, Any]]) -> bytes:
    """The record of these steps as an entry of a model's metadata, to stand anywhere among its records."""
    said = {"schema": 1, "version": __version__, "history": list(steps)}
    text = json.dumps(said, separators=(",", ":"), ensure_ascii=False)
    entry = bytes_record(1, PROVENANCE_KEY.encode()) + bytes_record(2, text.encode())
    return bytes_record(_METADATA, entry)
