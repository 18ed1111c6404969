"""What speaks against a pair that has the names of one: two ends of a name are not yet a layer.

``b_g`` and ``b_v`` may be the biases of two gates, ``W_g`` and ``W_v`` two matrices of an attention. Whoever
names such a pair in full (``Selection.names``) has it taken all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wnconvert.layers.schemes import Scheme
from wnconvert.messages import counted, listed, option
from wnconvert.tensors.tree import TensorInfo

__all__ = [
    "EMPTY",
    "EMPTY_FIX",
    "MISFIT",
    "NOT_FLOAT",
    "Module",
    "PassedOver",
    "is_bias",
    "notes_on_passed",
    "weakness_of",
]


#: The weakness of a pair of integers, which no option makes a layer.
NOT_FLOAT = "dtype"
#: That of a pair of which g does not fit v, where the names alone do not show a layer.
MISFIT = "misfit"

#: Why a layer without elements is refused, and what to do.
EMPTY = "empty: saved from one rank of a sharded training"
EMPTY_FIX = "gather it first (zero_to_fp32.py, FULL_STATE_DICT)"


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A pair that is not taken for a layer, though it has the names of one: its halves, and why.

    ``weakness`` is the kind of reason, the same for all pairs of a kind; ``why`` names what stands there.
    """

    name: str
    g: str
    v: str
    weakness: str
    why: str


# Parameters of torch's own modules: linear, convolution, bilinear, PReLU, embedding; RNNs, their cells and
# projections; MultiheadAttention.
_TORCHS = re.compile(
    r"weight|bias|(?:weight|bias)_(?:ih|hh|hr)(?:_l\d+(?:_reverse)?)?|in_proj_(?:weight|bias)|[qkv]_proj_weight|bias_[kv]"
)


def is_bias(param: str) -> bool:
    """Whether a parameter of torch's modules is a bias.

    >>> is_bias("bias_ih_l0"), is_bias("in_proj_bias"), is_bias("weight")
    (True, True, False)
    """
    return _TORCHS.fullmatch(param) is not None and "bias" in param


class Module:
    """The tensors of one module itself, by the names that they have in it."""

    def __init__(self, infos: Iterable[TensorInfo] = (), owner: str = "") -> None:
        self.tensors = {info.name[len(owner) :]: info for info in infos}
        self._of_stem: dict[str, list[str]] = {}
        for name in self.tensors:
            if len(name) > 2 and name[-2] == "_" and name[-1].isascii() and name[-1].isalpha():
                self._of_stem.setdefault(name[:-2], []).append(name)

    def family_of(self, stem: str) -> list[str]:
        """Other tensors that end in one letter behind a stem: then its g and v are two of a family.

        ``weight_u`` is none: it is a part of spectral norm.

        >>> from wnconvert.tensors.dtypes import dtype_named
        >>> names = ("b_g", "b_v", "b_i", "weight_g", "weight_v", "weight_u")
        >>> gates = Module(TensorInfo(name, dtype_named("float32"), (8,)) for name in names)
        >>> gates.family_of("b"), gates.family_of("weight")
        (['b_i'], [])
        """
        ends = "gvu" if _TORCHS.fullmatch(stem) else "gv"
        return [name for name in self._of_stem.get(stem, ()) if name[-1] not in ends]


def weakness_of(
    scheme: Scheme, param: str, g: TensorInfo, v: TensorInfo, module: Module, *, has_layer: bool
) -> tuple[str, str] | None:
    """What speaks against a whole pair, as a kind of reason and in words; None if nothing does.

    ``module`` holds the tensors of its module, ``has_layer`` says whether a weight of it is normalized.
    """
    family = [] if scheme.form == "parametrize" else module.family_of(param)
    if not scheme.is_torchs and not _is_linear(param, g, v, module):
        return "plain", f"{v.name} may be v, or the weight itself"
    if family:
        return "family", f"they look like two of a family, with {listed(family, 3)}"
    poor = _poorness(g, v)
    if poor and _TORCHS.fullmatch(param) is None:
        return "poor", f"{poor}, and torch has no parameter called {param}"
    if poor and is_bias(param) and not has_layer:
        return "poor", f"{poor}, and no weight beside it is normalized"
    return None


def _poorness(g: TensorInfo, v: TensorInfo) -> str:
    """What two tensors lack to be weight norm by their shapes alone; empty if nothing."""
    if not v.numel or not g.numel:
        return ""
    if g.numel == v.numel:
        return "each row has one element"
    return f"{v.name} is a vector" if len(v.shape) < 2 else ""


def _is_linear(param: str, g: TensorInfo, v: TensorInfo, module: Module) -> bool:
    """Whether a weight and a g are those of PhysicsNeMo's ``WeightNormLinear``, by all keys of its module."""
    rows = v.shape[:1]
    bias = module.tensors.get("bias")
    return (
        len(v.shape) == 2
        and g.shape == (*rows, 1)
        and (bias is None or bias.shape == rows)
        and module.tensors.keys() <= {param, f"{param}_g", "bias"}
    )


_MOST_NOTES = 3


def notes_on_passed(passed: Sequence[PassedOver]) -> Iterable[str]:
    """A note on each pair that was passed over; of very many of a kind only on the first."""
    kinds: dict[str, list[PassedOver]] = {}
    for item in passed:
        kinds.setdefault(item.weakness, []).append(item)
    for items in kinds.values():
        for item in items[:_MOST_NOTES]:
            takes = f"; {option('layers', glob=item.name)} takes them"
            yield (
                f"{item.g} and {item.v} are not taken for weight norm: {item.why}"
                f"{takes if item.weakness not in (NOT_FLOAT, MISFIT) else ''}"
            )
        if len(items) > _MOST_NOTES:
            more = counted(len(items) - _MOST_NOTES, "more pair")
            yield f"{more} like {items[0].g} and {items[0].v} not taken either"
