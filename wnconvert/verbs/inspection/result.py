"""The result of an inspection as frozen data: containers, state dicts, layers and their magnitudes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from typing import Any

from wnconvert.frozen import dataclass
from wnconvert.messages import counted, short_repr
from wnconvert.plan.plan import ComputedWeight
from wnconvert.shown import Drawn, Paged
from wnconvert.verbs.inspection.health import Health
from wnconvert.verbs.inspection.magnitudes import LayerStats

__all__ = [
    "Inspection",
    "KindSummary",
    "Move",
    "NormSummary",
    "SiblingSummary",
    "StateDictSummary",
    "TensorSummary",
    "moves",
]


@dataclass(frozen=True, slots=True)
class StateDictSummary:
    """A state dict: number of tensors, of elements that are stored, bytes, and layers by form."""

    path: str
    tensors: int
    parameters: int
    buffers: int
    bytes: int
    layers: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class SiblingSummary:
    """Anything else in the file, with the bytes of its tensors and of its pickle."""

    path: str
    kind: str
    bytes: int


@dataclass(frozen=True, slots=True)
class KindSummary:
    """Another reparameterization or normalization: how often, an example, and whether it folds exactly.

    ``kinds`` are the words of ``--kinds`` that fold it, with commas between them, or nothing. ``told`` says
    of how many of these norms ``--norm by-names`` tells the layer; it is None of what is no such norm.
    """

    state_dict: str
    kind: str
    count: int
    example: str
    folds: str
    how: str
    kinds: str = ""
    told: int | None = None


@dataclass(frozen=True, slots=True)
class NormSummary:
    """A norm with running statistics: channels, those that are dead, gains that are 0 and negative, batches.

    ``dead`` are channels with a variance below 1e-12. Gains are None where it has none, ``batches`` where it
    does not count them; with 0 it was never trained.
    """

    state_dict: str
    name: str
    channels: int
    dead: int | None
    zero_gains: int | None
    negative_gains: int | None
    batches: int | None


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """A tensor: the path of its state dict, its name, dtype, sizes and bytes."""

    state_dict: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True, slots=True, repr=False)
class Inspection(Paged, Drawn):
    """The contents of a checkpoint or state dict; sizes in bytes.

    ``parameters`` counts elements that are stored, each once, ``dtypes`` the same by dtype,
    ``parameters_by_name`` once for every name; ``buffers`` are the elements of known buffers, by dtype.
    ``version`` is the version of the format that the file states. ``health`` is None unless all was read; it
    is false where something is wrong, and has ``faults``, ``read`` and ``not_read``.
    ``foreign`` are names in the pickle that are not torch's own, ``dangerous`` those that would run
    something. ``files`` are the names of a folder's files of weights. ``fold``, ``split`` (empty without a
    record of a fold) and ``migrate`` (empty for an ONNX model) are forecasts of these verbs. ``tensors`` and
    ``metadata`` (of a safetensors file or an ONNX model) are None unless they are asked for, ``norms`` unless
    all was read; ``sha256`` (of a folder: that of the list which ``sha256sum`` prints of its files) is empty
    unless it is asked for. ``computed`` are weights that an ONNX model computes at every run and that do not
    fold; ``unfolded`` names these, and all layers that are not plain.
    ``recorded_by`` are the versions of wnconvert that wrote its record, if it has one.
    ``step`` is the name and the number of the step of training that the file says it is of.
    """

    source: str
    container: str
    version: str
    bytes: int
    parameters: int
    dtypes: Mapping[str, int]
    devices: tuple[str, ...]
    state_dicts: tuple[StateDictSummary, ...]
    siblings: tuple[SiblingSummary, ...]
    layers: tuple[LayerStats, ...]
    kinds: tuple[KindSummary, ...]
    fold: str
    split: str
    migrate: str
    foreign: tuple[str, ...] = ()
    dangerous: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    files: tuple[str, ...] = ()
    parameters_by_name: int = 0
    buffers: Mapping[str, int] = field(default_factory=dict)
    health: Health | None = None
    tensors: tuple[TensorSummary, ...] | None = None
    metadata: Mapping[str, str] | None = None
    norms: tuple[NormSummary, ...] | None = None
    computed: tuple[ComputedWeight, ...] = ()
    sha256: str = ""
    recorded_by: tuple[str, ...] = ()
    step: tuple[str, int] | None = None

    @property
    def unfolded(self) -> tuple[str, ...]:
        """The names of the weights that are not stored as such: of layers in any form, and computed ones."""
        stored = ("plain", "folded")
        names = (layer.name for layer in self.layers if layer.form not in stored)
        return tuple(dict.fromkeys((*names, *(weight.name for weight in self.computed))))

    def __repr__(self) -> str:
        what = f" of {self.source}" if self.source else ""
        return short_repr(
            f"Inspection{what}: {counted(len(self.layers), 'layer')}, {self.parameters:,} parameters, "
            f"{self.container}",
            [layer.name for layer in self.layers],
            f"fold: {self.fold}",
            counted(len(self.notes), "note") if self.notes else "",
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able data; docs/json.md documents it."""
        plain = {
            "schema": 1,
            "source": self.source,
            "container": self.container,
            "version": self.version,
            "files": list(self.files),
            "bytes": self.bytes,
            "sha256": self.sha256 or None,
            "parameters": self.parameters,
            "parameters_by_name": self.parameters_by_name,
            "dtypes": dict(self.dtypes),
            "buffers": dict(self.buffers),
            "devices": list(self.devices),
            "state_dicts": [asdict(item) for item in self.state_dicts],
            "siblings": [asdict(item) for item in self.siblings],
            "foreign": list(self.foreign),
            "dangerous": list(self.dangerous),
            "fold": self.fold,
            "split": self.split,
            "migrate": self.migrate,
            "notes": list(self.notes),
            "health": None if self.health is None else asdict(self.health),
        }
        return plain | {
            "layers": [item.to_dict() for item in self.layers],
            "kinds": [asdict(item) for item in self.kinds],
            "computed": [asdict(item) for item in self.computed],
            "norms": None if self.norms is None else [asdict(item) for item in self.norms],
            "tensors": None
            if self.tensors is None
            else [asdict(item) | {"shape": list(item.shape)} for item in self.tensors],
            "metadata": None if self.metadata is None else dict(self.metadata),
            "recorded_by": list(self.recorded_by),
            "step": None if self.step is None else self.step[1],
        }


@dataclass(frozen=True, slots=True)
class Move:
    """Mean |g| of one layer in each of several files (None in a file without the layer).

    ``moved`` is the difference of its greatest and least value, as a part of the first; None for a layer
    that is in one file only.
    """

    name: str
    means: tuple[float | None, ...]
    moved: float | None


def moves(found: Sequence[Inspection]) -> list[Move]:
    """The layers of several files (of a training run), starting with those that moved most.

    Layers are matched by name, and by the path of their state dict if a file has several with layers.
    """
    several = any(len({layer.state_dict for layer in item.layers}) > 1 for item in found)
    means: dict[str, list[float | None]] = {}
    for at, inspection in enumerate(found):
        for layer in inspection.layers:
            name = f"{layer.state_dict}: {layer.name}" if several and layer.state_dict else layer.name
            means.setdefault(name, [None] * len(found))[at] = layer.g.mean if layer.g else None
    made = [Move(name, tuple(values), _moved(values)) for name, values in means.items()]
    return sorted(made, key=lambda move: math.inf if move.moved is None else -move.moved)


def _moved(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    way = max(known) - min(known)
    if known[0]:
        return way / known[0]
    return math.inf if way else 0.0
