"""The modules, keys and sizes of a state dict, asked for what stands before what. No numbers, no guesses."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from wnconvert.layers.telling.families import Family
from wnconvert.tensors.tree import Shape, StateDict, StoredTensor, TensorInfo

__all__ = ["STATISTICS", "Arrangement"]


#: What a norm with running statistics has.
STATISTICS = ("running_mean", "running_var")

#: The ends of the tensor that has the shape of a layer's weight: plain, or as weight norm and others have it.
_WEIGHTS = (
    "weight",
    "weight_v",
    "weight_orig",
    "weight_v_orig",
    "weight_orig_orig",
    "parametrizations.weight.original1",
    "parametrizations.weight.original",
    "parametrizations.weight.original1_orig",
    "parametrizations.weight.original_orig",
)


@dataclass(frozen=True)  # without slots, for what is computed once
class Arrangement:
    """A state dict as modules in their order, each with its own tensors."""

    state: StateDict

    @cached_property
    def tensors(self) -> Mapping[str, Mapping[str, TensorInfo]]:
        """By module, what stands behind its name: keys to tensors, in their order."""
        found: dict[str, dict[str, TensorInfo]] = {}
        for name, tensor in self.state.tensors.items():
            module, _, key = name.rpartition(".")
            found.setdefault(module, {})[key] = tensor.info
        return found

    @cached_property
    def norms(self) -> tuple[str, ...]:
        """The modules with running statistics, in their order."""
        return tuple(
            module for module, keys in self.tensors.items() if all(key in keys for key in STATISTICS)
        )

    @cached_property
    def families(self) -> Mapping[str, Family]:
        """By module, the layers and the norms that stand in it."""
        found: dict[str, Family] = {}
        norms = set(self.norms)
        for module in self._modules:
            owner, _, last = module.rpartition(".")
            family = found.setdefault(owner, Family())
            if module in norms:
                family.take_norm(last, self.before(module) or "")
            elif module and self.weight_shape(module) is not None:
                family.take_layer(last)
        return found

    def before(self, module: str) -> str | None:
        """The module next before one in the order of all, that of the whole being ""; None for the first.

        The parametrizations of a module are a part of it.
        """
        at = self._places.get(module, 0)
        return self._modules[at - 1] if at else None

    def is_named(self, module: str) -> bool:
        """Whether a module stands among those that are named in their order."""
        return module in self._places

    def key_before(self, module: str) -> str | None:
        """The tensor next before those of a module in the order of keys; None where they are the first."""
        first = f"{module}.{next(iter(self.tensors[module]))}"
        at = self._keys[first]
        return self._names[at - 1] if at else None

    def below(self, module: str) -> str | None:
        """A tensor of a module within one; None where it has none."""
        prefix = f"{module}."
        at = bisect_left(self._owners, prefix)
        owner = self._owners[at] if at < len(self._owners) else ""
        return f"{owner}.{next(iter(self.tensors[owner]))}" if owner.startswith(prefix) else None

    def weight_shape(self, module: str) -> Shape | None:
        """The shape of the weight of a layer, however that is spelled; None of what is none."""
        tensors = self.state.tensors
        found = (tensors.get(f"{module}.{end}" if module else end) for end in _WEIGHTS)
        shape = next((tensor.info.shape for tensor in found if tensor is not None), ())
        return shape if len(shape) > 1 else None

    @cached_property
    def weights(self) -> Mapping[str, Shape]:
        """The shapes of all weights of layers, by their plain names, however they are spelled."""
        found: dict[str, Shape] = {}
        for name, tensor in self.state.tensors.items():
            module = next((name[: -len(end)] for end in _WEIGHTS if _ends(name, end)), None)
            if module is not None and len(tensor.info.shape) > 1:
                found.setdefault(f"{module}weight", tensor.info.shape)
        return found

    def shared_with(self, module: str) -> str | None:
        """The name of another tensor that has memory in common with one of a module and what is below it."""
        names = self._shared_names
        at = bisect_left(names, f"{module}.")
        is_one = at < len(names) and names[at].startswith(f"{module}.")
        return self._shared[names[at]] if is_one else None

    @cached_property
    def _owners(self) -> list[str]:
        return sorted(self.tensors)

    @cached_property
    def _shared_names(self) -> list[str]:
        return sorted(self._shared)

    @cached_property
    def _modules(self) -> tuple[str, ...]:
        return tuple(name for name in self.state.modules if "parametrizations" not in name.split("."))

    @cached_property
    def _places(self) -> Mapping[str, int]:
        return {name: at for at, name in enumerate(self._modules)}

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(self.state.tensors)

    @cached_property
    def _keys(self) -> Mapping[str, int]:
        return {name: at for at, name in enumerate(self._names)}

    @cached_property
    def _shared(self) -> Mapping[str, str]:
        """The names that have memory in common, each with the name of another."""
        return dict(_overlapping(self.state.tensors.values()))


def _ends(name: str, end: str) -> bool:
    return name.endswith(end) and (len(name) == len(end) or name[-len(end) - 1] == ".")


def _overlapping(tensors: Iterable[StoredTensor]) -> Iterator[tuple[str, str]]:
    reach, name = (-1, 0), ""
    for first, end, tensor in sorted(map(_extent, tensors), key=lambda extent: extent[:2]):
        on_meta = first == (0, 0)  # where all tensors lie at 0
        if on_meta or first == end:
            continue
        if first < reach:
            yield tensor.info.name, name
            yield name, tensor.info.name
        if end > reach:
            reach, name = end, tensor.info.name


def _extent(tensor: StoredTensor) -> tuple[tuple[int, int], tuple[int, int], StoredTensor]:
    """The file and the first byte of the elements, and the byte after the last."""
    info, shard = tensor.info, tensor.storage.shard
    start = tensor.storage.start + tensor.offset * info.dtype.bits // 8
    steps = zip(info.shape, tensor.strides, strict=True)
    span = 1 + sum((size - 1) * step for size, step in steps) if math.prod(info.shape) else 0
    return (shard, start), (shard, start + (span * info.dtype.bits + 7) // 8), tensor
