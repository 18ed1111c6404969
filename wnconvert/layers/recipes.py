"""What keys do not show, as data: which norm folds into which layer, with which eps; what a weight becomes.

A recipe is told by a forward of the model (``wnconvert recipe``), by names, or by the user; however it was
told, it is a list of folds. It is written as TOML and read as data: nothing in it is run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from wnconvert.layers.rules import EpsAt, Std
from wnconvert.tensors.tree import Shape

__all__ = ["RECIPE_SCHEMA", "Op", "Recipe", "RecipeFold", "RecipeKind", "names_digest"]


#: The version of the layout of a recipe's file.
RECIPE_SCHEMA = 1

#: What a fold is: a norm with running statistics behind or before a layer, the affine of a norm before it, or
#: what a class makes of its own weight.
RecipeKind: TypeAlias = Literal[
    "norm behind", "norm before", "affine before", "standardize", "unit", "equalized"
]
#: How a layer reads its weight: (out, in, …), or (in, out, …) in the last two.
Op: TypeAlias = Literal["conv", "linear", "conv_transpose", "linear_transposed"]


@dataclass(frozen=True, slots=True)
class RecipeFold:
    """One fold of a recipe.

    ``weight`` is the plain name of a weight, ``conv.weight``, also where weight norm stands on it in a file;
    of a kind without a ``norm`` it may be a glob. ``bias`` is the name of the bias of its layer, which is
    made where there is none. ``norm`` is the name of the norm's module, whose tensors are its ``weight``,
    ``bias``, ``running_mean``, ``running_var`` and ``num_batches_tracked``, as far as they are there.

    ``op`` and ``groups`` say which axis is which. ``eps`` is the float64 number that the module holds.
    ``std``, ``eps_at``, ``scale``, ``fan``, ``dim`` as in ``rules.Standardize``; ``gain`` and ``shift`` are
    the names of its γ and β beside the weight, the last part alone: ``gain``, ``weight_gamma``.
    """

    kind: RecipeKind
    weight: str
    norm: str = ""
    op: Op = "conv"
    groups: int = 1
    eps: float | None = None
    bias: str = ""
    std: Std = "biased"
    eps_at: EpsAt = "var"
    scale: float = 1.0
    fan: int = 1
    gain: str = ""
    shift: str = ""
    dim: int = 0

    @property
    def bias_name(self) -> str:
        """The name of the bias of the layer.

        >>> RecipeFold("norm behind", "stem.conv.weight", "stem.bn").bias_name
        'stem.conv.bias'
        """
        return self.bias or f"{self.weight[: self.weight.rfind('.') + 1]}bias"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a model's norms and computed weights become at inference.

    ``made_by`` says what told it, ``"said"`` if the user did; ``proven`` how it was proven, or nothing.
    ``names`` is the digest of names and shapes of the tensors that the folds name, or nothing: a checkpoint
    of another model is refused, one with another head is not.
    """

    folds: tuple[RecipeFold, ...]
    made_by: str = "said"
    proven: str = ""
    names: str = ""


def names_digest(tensors: Iterable[tuple[str, Shape]]) -> str:
    """The digest of the names and shapes of tensors, in any order.

    >>> names_digest([("b", (2,)), ("a", ())]) == names_digest([("a", ()), ("b", (2,))])
    True
    """
    lines = sorted({f"{name}\0{','.join(map(str, shape))}\n" for name, shape in tensors})
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"
