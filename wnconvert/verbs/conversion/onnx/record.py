"""The record of what was done to an ONNX model: put behind a model that is proven, and nowhere before."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wnconvert.onnx.file.provenance import metadata_entry
from wnconvert.onnx.file.reader import OnnxFile
from wnconvert.onnx.graph.plan import OnnxFold

__all__ = ["append_record", "without_record"]


def without_record(opened: OnnxFile, fold: OnnxFold) -> OnnxFold:
    """A fold that leaves out the source's own record: another one takes its place, or none."""
    dropped = fold.edits.dropped | opened.provenance.starts
    return replace(fold, edits=replace(fold.edits, dropped=dropped))


def append_record(path: Path, before: Sequence[Mapping[str, Any]], step: Mapping[str, Any]) -> int:
    """Write the record behind a model that is proven; the number of its bytes.

    ``before`` are the steps that its source recorded. A record of protobuf may stand anywhere in its message,
    so nothing else in the file changes.
    """
    entry = metadata_entry([*before, step])
    with path.open("ab") as file:
        file.write(entry)
        file.flush()
        os.fsync(file.fileno())
    return len(entry)
