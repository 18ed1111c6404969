"""The steps beside the weights of layers that take a norm: what goes away, what is neutral, new biases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from wnconvert.layers.recipes import NORM_TENSORS
from wnconvert.layers.rules import BIAS, AffineBefore
from wnconvert.layers.schemes import Layer
from wnconvert.plan.steps import Bias, Neutral, Step
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import TensorInfo

__all__ = ["Beside", "steps_beside"]


@dataclass(slots=True)
class Beside:
    """The steps in the place of keys, keys without one, and biases that are new, by their weights."""

    steps: dict[str, Step] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    new: dict[str, Bias] = field(default_factory=dict)


def steps_beside(layers: Iterable[Layer], dtype: DType | None) -> Beside:
    """The steps beside the weights of these layers; ``dtype`` is that of a cast.

    A norm that is folded whole goes away. Of one whose affine alone is, γ becomes 1 and β 0.
    """
    beside = Beside()
    for layer in layers:
        neighbour = layer.rule.neighbour
        if neighbour is None:
            continue
        if isinstance(neighbour, AffineBefore):
            beside.steps |= {step.name: step for step in _neutral_affine(layer, dtype)}
        else:
            beside.gone |= {f"{layer.norm}.{name}" for name in (*NORM_TENSORS, "num_batches_tracked")}
        if layer.bias:
            _put_bias(beside, layer, dtype)
    return beside


def _put_bias(beside: Beside, layer: Layer, dtype: DType | None) -> None:
    """The bias in its place, or as a new one behind its weight."""
    old = layer.parts.get(BIAS)
    bias = Bias(layer, dtype or (old or layer.original).dtype)
    if old is None:
        beside.new[layer.name] = bias
    else:
        beside.steps[old.name] = bias


def _neutral_affine(layer: Layer, dtype: DType | None) -> Iterator[Neutral]:
    for role, value in (("gamma", 1.0), ("beta", 0.0)):
        if role in layer.parts:
            yield Neutral(_cast(layer.parts[role], dtype), value)


def _cast(info: TensorInfo, dtype: DType | None) -> TensorInfo:
    return info if dtype is None else replace(info, dtype=dtype)
