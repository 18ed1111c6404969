"""How frameworks store weight norm: its keys, the axis of its norms, what it computes. One row each.

No file says which axis is normed, nor with which eps: where shapes do not show the one, and where the other
is not given, they are what the framework takes unless it is told otherwise.

Sources: ``torch.nn.utils.weight_norm``, ``physicsnemo.nn.WeightNormLinear``,
``paddle.nn.utils.weight_norm`` (``functional.normalize``), ``equinox.nn.WeightNorm``,
``tensorflow_addons.layers.WeightNormalization`` and
``tensorflow_probability.layers.weight_norm.WeightNorm`` (``tf.nn.l2_normalize``), ``flax.linen.WeightNorm``
and ``flax.nnx.WeightNorm`` (``_l2_normalize``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from wnconvert.frozen import dataclass
from wnconvert.layers.dims import dim_of, g_shape, torchs_g_shape
from wnconvert.layers.rules import Guard, Norm
from wnconvert.tensors.tree import Dim, Shape

__all__ = [
    "CONVENTIONS",
    "EQUINOX",
    "FLAX",
    "KERAS",
    "LEGACY",
    "NNX",
    "PADDLE",
    "PARAMETRIZE",
    "PHYSICSNEMO",
    "Convention",
    "has_eps",
    "norm_of",
]


#: How a framework shapes g: as torch does, as one vector, with as many axes as v, or as (out, 1).
GShape: TypeAlias = Literal["torch", "vector", "axes", "column"]
#: The keys of g and v, of the prefix of a module and the name of a weight in it; None where it has none.
Keys: TypeAlias = Callable[[str, str], tuple[str, str] | None]


@dataclass(frozen=True, slots=True)
class Convention:
    """How a framework stores weight norm, and what it computes.

    ``form`` is its word, ``library`` who has it. ``keys`` spells a layer; None where a name does not show
    how. ``axes`` are those that norms belong to unless a shape shows another, the most usual first;
    ``guard`` is the eps that is taken; where others write such a pair too, so that nothing ``is_sure``, only
    if one is given. ``is_torchs`` says whether torch has the form.
    """

    form: str
    library: str
    keys: Keys | None
    axes: tuple[int, ...] = (0,)
    guard: Guard | None = None
    g: GShape = "torch"
    is_torchs: bool = False
    is_sure: bool = True

    def shape_of_g(self, g: Shape, v: Shape, dim: Dim) -> Shape | None:
        """The shape of a ``g`` that belongs to axis ``dim`` of ``v``, as it has it; None where it has none.

        >>> PADDLE.shape_of_g((8, 1, 1), (8, 4, 3), 0), PADDLE.shape_of_g((8, 1), (8, 8), 1) is None
        ((8,), True)
        """
        if self.g == "torch":
            return torchs_g_shape(g, v, dim)
        if self.g == "axes":
            return g_shape(v, dim) or (1,) * len(v)
        if self.g == "column":
            return (v[0], 1) if dim == 0 and len(v) == 2 else None
        if dim is None or len(v) < 2 or v[dim] == 1 or dim_of((v[dim],), v, axes=self.axes).dim != dim:
            return None
        return (v[dim],)


def _legacy(owner: str, param: str) -> tuple[str, str]:
    return f"{owner}{param}_g", f"{owner}{param}_v"


def _parametrize(owner: str, param: str) -> tuple[str, str]:
    at = f"{owner}parametrizations.{param}."
    return f"{at}original0", f"{at}original1"


def _physicsnemo(owner: str, param: str) -> tuple[str, str]:
    return f"{owner}{param}_g", f"{owner}{param}"


def _equinox(owner: str, param: str) -> tuple[str, str] | None:
    """``layer`` is what is wrapped, and g stands beside it."""
    above, layer, rest = owner.rpartition("layer.")
    is_whole = layer and not rest and (not above or above.endswith("."))
    return (f"{above}g", owner + param) if is_whole else None


_UNDER_ROOT = Guard(1e-12, "squares")

LEGACY = Convention("legacy", "torch", _legacy, is_torchs=True)
PARAMETRIZE = Convention("parametrize", "torch", _parametrize, is_torchs=True)
PHYSICSNEMO = Convention("physicsnemo", "PhysicsNeMo", _physicsnemo, g="column")  # its weight is v
PADDLE = Convention("paddle", "Paddle", _legacy, guard=Guard(1e-12, "max"), g="vector", is_sure=False)
EQUINOX = Convention("equinox", "Equinox", _equinox, g="axes")
# TensorFlow Addons takes the last axis of all kernels, TensorFlow Probability of a transposed one the other.
KERAS = Convention("keras", "Keras", None, (-1, -2), Guard(1e-12, "max of squares"), "vector")
FLAX = Convention("flax", "flax.linen", None, (-1,), _UNDER_ROOT, "vector")
NNX = Convention("nnx", "flax.nnx", None, (-1,), _UNDER_ROOT, "vector")

#: The known conventions by their words. A new one is a row, and its keys in ``schemes`` or ``kinds.foreign``.
CONVENTIONS = {row.form: row for row in (LEGACY, PARAMETRIZE, PHYSICSNEMO, PADDLE, EQUINOX, KERAS, FLAX, NNX)}


def has_eps(form: str) -> bool:
    """Whether a form takes an eps without being told, so that a zero row makes zeros.

    >>> has_eps("flax"), has_eps("paddle"), has_eps("legacy"), has_eps("plain")
    (True, False, False, False)
    """
    return form in CONVENTIONS and norm_of(form, 0).guard is not None


def norm_of(form: str, dim: Dim, eps: float | None = None) -> Norm:
    """What a form computes along ``dim``, with the eps that its framework takes, or another; of 0, with none.

    >>> norm_of("flax", 1).guard, norm_of("legacy", 0).guard, norm_of("flax", 1, 0.0).guard
    (Guard(eps=1e-12, at='squares', share=Fraction(1, 1)), None, None)
    >>> norm_of("paddle", 0).guard, norm_of("paddle", 0, 1e-12).guard.at
    (None, 'max')
    """
    row = CONVENTIONS.get(form)
    if row is None or row.guard is None:
        return Norm(dim)
    if eps is None:
        return Norm(dim, row.guard if row.is_sure else None)
    return Norm(dim, Guard(eps, row.guard.at) if eps else None)
