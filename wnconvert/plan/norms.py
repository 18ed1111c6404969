"""The steps beside the weights of layers that take a norm: what goes away, what is neutral, new biases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from wnconvert.layers.recipes import NORM_TENSORS
from wnconvert.layers.rules import BIAS, AffineBefore, Equalized, NormBefore, NormBehind, Standardize, Unit
from wnconvert.layers.schemes import Layer, Refused
from wnconvert.messages import option, printable
from wnconvert.plan.steps import Bias, Neutral, Step
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import TensorInfo

__all__ = ["NormSteps", "refused_to_keep", "steps_beside"]


@dataclass(slots=True)
class NormSteps:
    """The steps in the place of keys, keys without one, and biases that are new, by their weights."""

    steps: dict[str, Step] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    new: dict[str, Bias] = field(default_factory=dict)


def steps_beside(layers: Iterable[Layer], dtype: DType | None, *, keep_norms: bool = False) -> NormSteps:
    """The steps beside the weights of these layers; ``dtype`` is that of a cast.

    A norm that is folded whole goes away; with ``keep_norms`` it stays and does nothing but add the new
    bias. Of one whose affine alone is folded, γ becomes 1 and β 0. Layers that ``refused_to_keep`` refuses
    must not be among them.
    """
    made = NormSteps()
    for layer in layers:
        neighbour = layer.rule.neighbour
        if neighbour is None:
            continue
        if isinstance(neighbour, AffineBefore):
            made.steps |= {step.name: step for step in _neutral_affine(layer, dtype)}
            _put_bias(made, layer, dtype)
        elif keep_norms:
            made.steps |= {step.name: step for step in _neutral_norm(layer, neighbour, dtype)}
        else:
            made.gone |= {f"{layer.norm}.{name}" for name in (*NORM_TENSORS, "num_batches_tracked")}
            _put_bias(made, layer, dtype)
    return made


def _put_bias(made: NormSteps, layer: Layer, dtype: DType | None) -> None:
    """The bias in its place, or as a new one behind its weight."""
    if not layer.bias:
        return
    old = layer.parts.get(BIAS)
    bias = Bias(layer, dtype or (old or layer.original).dtype)
    if old is None:
        made.new[layer.name] = bias
    else:
        made.steps[old.name] = bias


def _neutral_affine(layer: Layer, dtype: DType | None) -> Iterator[Neutral]:
    for role, value in (("gamma", 1.0), ("beta", 0.0)):
        if role in layer.parts:
            yield Neutral(_cast(layer.parts[role], dtype), value)


def _neutral_norm(layer: Layer, norm: NormBehind | NormBefore, dtype: DType | None) -> Iterator[Step]:
    """A norm that multiplies by 1, and adds the new bias if it has a β and stands behind."""
    values = {"gamma": 1.0, "mean": 0.0, "variance": _neutral_variance(layer, norm, dtype), "beta": 0.0}
    holder = _holder(layer)
    for role, value in values.items():
        if role in layer.parts and layer.parts[role] is not holder:
            assert value is not None  # noqa: S101 - such layers are refused
            yield Neutral(_cast(layer.parts[role], dtype), value)
    if holder is not None:
        yield Bias(replace(layer, bias=holder.name), _cast(holder, dtype).dtype)
    bias = layer.parts.get(BIAS)
    if bias is not None and bias is not holder:
        yield Neutral(_cast(bias, dtype), 0.0)


def _holder(layer: Layer) -> TensorInfo | None:
    """The tensor that the new bias goes into where no key may come: the norm's β, or the layer's own."""
    is_behind = isinstance(layer.rule.neighbour, NormBehind)
    return (layer.parts.get("beta") if is_behind else None) or layer.parts.get(BIAS)


def _neutral_variance(layer: Layer, norm: NormBehind | NormBefore, dtype: DType | None) -> float | None:
    """The variance with which the norm multiplies by 1, in the dtype that it will have."""
    from wnconvert.numerics.rules.neutral import neutral_variance  # numpy

    return neutral_variance(norm.eps, _cast(layer.parts["variance"], dtype).dtype.name)


def _cast(info: TensorInfo, dtype: DType | None) -> TensorInfo:
    return info if dtype is None else replace(info, dtype=dtype)


#: What a class makes of its own weight, each time that it is run.
_OF_CLASSES = (Standardize, Unit, Equalized)


def refused_to_keep(layers: Iterable[Layer], dtype: DType | None) -> Iterator[Refused]:
    """The refusals of layers whose norm, or class, cannot stay and compute the same."""
    keep = option("keep_norms", True)
    for layer in layers:
        neighbour = layer.rule.neighbour
        own = next((each for each in layer.rule.operations if isinstance(each, _OF_CLASSES)), None)
        if own is not None:
            reason = (
                f"its class would compute its weight ({own.kind}) once more, so {keep} has no form for it"
            )
        elif not isinstance(neighbour, (NormBehind, NormBefore)):
            continue
        elif _holder(layer) is None:
            reason = f"neither it nor {printable(layer.norm)} has a bias, so {keep} has no place for one"
        elif _neutral_variance(layer, neighbour, dtype) is None:
            kind = _cast(layer.parts["variance"], dtype).dtype
            what = f"no {kind} plus the eps {neighbour.eps:g} of {printable(layer.norm)} is 1"
            reason = f"{what}, so {keep} cannot keep it neutral"
        else:
            continue
        yield Refused(layer.name, reason, f"without {keep}")
