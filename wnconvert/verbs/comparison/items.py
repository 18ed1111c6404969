"""What is compared: a tensor as it is stored, or what a layer makes, and a pair of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace

import numpy as np

from wnconvert.frozen import dataclass
from wnconvert.layers.rules import ORIGINAL, Rule
from wnconvert.layers.schemes import Layer
from wnconvert.numerics.distance import Measure
from wnconvert.numerics.rounding import FLOAT_FORMATS
from wnconvert.plan.steps import Bias, Step
from wnconvert.tensors.dtypes import DType
from wnconvert.tensors.tree import StoredTensor, TensorInfo
from wnconvert.verbs.comparison.result import Difference, Operand

__all__ = ["Item", "Pair", "computed_item", "difference_of"]


@dataclass(frozen=True, slots=True)
class Item:
    """A tensor to compare: the weight that a rule computes, or a plain tensor.

    ``name`` is that of the weight without a prefix, ``key`` the same with its prefix. ``parts`` are the
    tensors of the ``rule`` by their roles, of which ``values`` is the original. ``bias`` is what is made
    where that is not the weight but the bias of the layer; ``constant`` the number that stands in the place
    of all values.
    """

    name: str
    key: str
    form: str
    values: StoredTensor
    rule: Rule | None = None
    parts: Mapping[str, StoredTensor] = field(default_factory=dict)
    bias: TensorInfo | None = None
    constant: float | None = None

    @property
    def is_layer(self) -> bool:
        """Whether it is the weight of a layer."""
        return self.rule is not None and self.bias is None

    @property
    def is_stored(self) -> bool:
        """Whether the values are compared as they are."""
        return self.rule is None and self.constant is None

    @property
    def info(self) -> TensorInfo:
        """The tensor that is compared."""
        return self.bias or self.values.info

    @property
    def read(self) -> tuple[StoredTensor, ...]:
        """All tensors that are read for it."""
        return tuple(self.parts.values()) or (self.values,)

    @property
    def dtype(self) -> DType:
        """The dtype of the elements that are compared."""
        return self.info.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the elements that are compared."""
        return self.info.shape

    @property
    def operand(self) -> Operand:
        """The item as one side of a difference."""
        return Operand(self.form, str(self.dtype), self.shape)


def _digits(dtype: DType) -> int:
    return FLOAT_FORMATS[dtype.name].digits if dtype.name in FLOAT_FORMATS else 0


@dataclass(frozen=True, slots=True)
class Pair:
    """A name on both sides."""

    state_dict: str
    a: Item
    b: Item

    @property
    def why(self) -> str:
        """``"shape"`` or ``"dtype"`` if that makes the pair differ before an element is read, else ``""``."""
        if self.a.shape != self.b.shape:
            return "shape"
        floats = self.a.dtype.foldable and self.b.dtype.foldable
        return "" if floats or self.a.dtype == self.b.dtype else "dtype"

    @property
    def coarser(self) -> DType:
        """The dtype with fewer digits."""
        return min(self.a.dtype, self.b.dtype, key=_digits)

    @property
    def same_layout(self) -> bool:
        """Whether equal bits of all parts would make both weights equal."""
        a, b = self.a, self.b
        if a.rule is None or a.rule != b.rule or a.is_layer != b.is_layer:
            return False
        kinds = [
            {role: (part.info.dtype, part.info.numel) for role, part in item.parts.items()} for item in (a, b)
        ]
        return kinds[0] == kinds[1]


def computed_item(name: str, step: Step, layer: Layer, tensors: Mapping[str, StoredTensor]) -> Item:
    """The weight that a layer computes, or its bias."""
    parts = {role: tensors[part.name] for role, part in layer.parts.items()}
    bias = TensorInfo(step.name, step.dtype, layer.bias_shape) if isinstance(step, Bias) else None
    return Item(name, step.name, layer.form, parts[ORIGINAL], layer.rule, parts, bias)


def difference_of(pair: Pair, measure: Measure | None) -> Difference:
    """The report on a pair; without a measure, its elements were not read."""
    plain = Difference(pair.a.name, pair.state_dict, pair.a.operand, pair.b.operand, pair.why)
    if measure is None:
        return plain
    packed = pair.a.dtype.bits % 8 != 0  # then places count bytes, not elements
    worst = None if measure.worst is None or packed else np.unravel_index(measure.worst, pair.a.shape)
    counted = replace(
        plain,
        why="values" if measure.judge else "bits",
        different=measure.different,
        worst=None if worst is None else tuple(map(int, worst)),
    )
    if not measure.judge:
        return counted
    found = replace(
        counted,
        unmatched=measure.unmatched,
        worst_a=measure.worst_pair and measure.worst_pair[0],
        worst_b=measure.worst_pair and measure.worst_pair[1],
        spread=measure.steps_apart,
    )
    if measure.unmatched:  # NaN has no distance, and that of the others would mislead
        return found
    return replace(
        found,
        max_abs=measure.max_abs,
        max_rel=measure.max_rel,
        ulps=measure.ulps,
        cosine=measure.cosine,
        snr_db=measure.snr_db,
    )
