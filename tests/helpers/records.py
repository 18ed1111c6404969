"""Records as earlier versions wrote them: a row for each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wnconvert.plan.record.origins import Origin, origins_in

__all__ = ["step_of_before"]


def step_of_before(step: Mapping[str, Any]) -> dict[str, Any]:
    """A step of a record in the format of schema 1."""
    states = step["state_dicts"].items()
    return {**step, "state_dicts": {path: [_row(each) for each in origins_in(rows)] for path, rows in states}}


def _row(origin: Origin) -> dict[str, Any]:
    layer = origin.layer
    halves = {
        half: {"name": info.name, "shape": list(info.shape), "dtype": str(info.dtype), "place": place}
        for half, info, place in zip("gv", layer.halves, origin.places, strict=True)
    }
    return {"name": layer.name, "form": layer.form, "dim": layer.dim, **halves}
