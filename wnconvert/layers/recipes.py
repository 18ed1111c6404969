"""What keys do not show, as data: which norm folds into which layer, with which eps; what a weight becomes.

A recipe is told by a forward of the model (``wnconvert recipe``), by names, or by the user; however it was
told, it is a list of folds. It is written as TOML and read as data: nothing in it is run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal, TypeAlias, get_args

from wnconvert.errors import ArgumentError
from wnconvert.frozen import dataclass
from wnconvert.layers.rules import EpsAt, Std
from wnconvert.messages import listed, printable
from wnconvert.tensors.tree import Shape, repeated

__all__ = [
    "NORM_KINDS",
    "NORM_TENSORS",
    "OPS",
    "RECIPE_KINDS",
    "RECIPE_SCHEMA",
    "Op",
    "Recipe",
    "RecipeFold",
    "RecipeKind",
    "named_tensors",
    "names_digest",
    "norms_untold",
]


#: The version of the layout of a recipe's file.
RECIPE_SCHEMA = 1

#: What a fold is: a norm with running statistics behind or before a layer, the affine of a norm before it, or
#: what a class makes of its own weight.
RecipeKind: TypeAlias = Literal[
    "norm behind", "norm before", "affine before", "standardize", "unit", "equalized"
]
#: How a layer reads its weight: (out, in, …), or (in, out, …) in the last two.
Op: TypeAlias = Literal["conv", "linear", "conv_transpose", "linear_transposed"]

RECIPE_KINDS: tuple[str, ...] = get_args(RecipeKind)
OPS: tuple[str, ...] = get_args(Op)
#: The kinds that fold a norm beside the layer; the others are what a class makes of its own weight.
NORM_KINDS = ("norm behind", "norm before", "affine before")
#: The tensors of a norm that its arithmetic is of.
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
_STDS: tuple[str, ...] = get_args(Std)
_EPS_AT: tuple[str, ...] = get_args(EpsAt)


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

    Raises ``ArgumentError`` for what makes no sense, such as an eps that is missing or negative.
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

    def __post_init__(self) -> None:
        """Check everything that can be checked without a checkpoint."""
        wrong = next(_wrong_with(self), "")
        if wrong:
            raise ArgumentError(wrong, where=f"fold of {printable(self.weight)}" if self.weight else "")

    @property
    def has_norm(self) -> bool:
        """Whether it folds a norm beside the layer."""
        return self.kind in NORM_KINDS

    @property
    def bias_name(self) -> str:
        """The name of the bias of the layer.

        >>> RecipeFold("norm behind", "stem.conv.weight", "stem.bn", eps=1e-5).bias_name
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

    def __post_init__(self) -> None:
        """Check that no weight is folded twice, and no norm."""
        weights = ((fold.weight, fold.has_norm) for fold in self.folds)
        if twice := repeated(f"{weight}, {_BESIDE[beside]}" for weight, beside in weights):
            raise ArgumentError(f"a weight is folded twice: {printable(twice)}", fix="leave one of them out")
        norms = (fold.norm for fold in self.folds if fold.has_norm and fold.kind != "affine before")
        if twice := repeated(norms):
            raise ArgumentError(
                f"the norm {printable(twice)} is folded into two layers, and it stands beside one",
                fix="leave one of them out",
            )
        if twice := repeated(fold.bias_name for fold in self.folds if fold.has_norm):
            raise ArgumentError(f"two folds make the bias {printable(twice)}", fix="name it with bias")
        affines = {fold.norm for fold in self.folds if fold.kind == "affine before"}
        others = (fold.norm for fold in self.folds if fold.has_norm and fold.kind != "affine before")
        if both := next((norm for norm in others if norm in affines), None):
            raise ArgumentError(
                f"the norm {printable(both)} is folded whole, and its affine once more",
                fix="leave one of them out",
            )

    @property
    def grade(self) -> str:
        """The evidence: ``"recipe"``, ``"names"`` or ``"said"``.

        >>> Recipe((), "net.py:make, traced").grade, Recipe(()).grade
        ('recipe', 'said')
        """
        return self.made_by if self.made_by in ("names", "said") else "recipe"


#: In which of two ways a weight can be folded once.
_BESIDE = {True: "with a norm beside it", False: "as its class computes it"}


def _wrong_with(fold: RecipeFold) -> Iterator[str]:
    """What makes no sense in a fold."""
    for name, word, words in (
        ("kind", fold.kind, RECIPE_KINDS),
        ("op", fold.op, OPS),
        ("std", fold.std, _STDS),
        ("eps_at", fold.eps_at, _EPS_AT),
    ):
        if word not in words:
            yield f"there is no {name} {printable(repr(word)):.80}: one of {listed(words)}"
    if not fold.weight:
        yield "a fold names no weight"
    if fold.has_norm and not fold.norm:
        yield f"{fold.kind} needs the name of the norm"
    if not fold.has_norm and fold.norm:
        yield f"{fold.kind} has no norm, and {printable(fold.norm)} is named"
    if fold.has_norm and any(char in fold.weight for char in "*?["):
        yield f"{fold.kind} needs the whole name of a weight, not a glob"
    if fold.eps is None and fold.kind not in ("affine before", "equalized"):
        yield f"{fold.kind} needs its eps"
    if fold.eps is not None and not (math.isfinite(fold.eps) and fold.eps >= 0):
        yield f"an eps of {fold.eps} is none: it is a number of 0 or more"
    if fold.groups < 1 or fold.fan < 1:
        yield f"groups {fold.groups} and fan {fold.fan} must be 1 or more"
    if not math.isfinite(fold.scale) or not fold.scale:
        yield f"a scale of {fold.scale} is none"
    if fold.dim < 0:
        yield f"dim {fold.dim} is not an axis: count from 0"
    if fold.op == "conv_transpose" and fold.kind in ("norm before", "affine before"):
        yield f"{fold.kind} a transposed convolution does not fold: the edges of its output would differ"


def named_tensors(folds: Iterable[RecipeFold], shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Shape]]:
    """The tensors that folds name, each with its shape, as far as ``shapes`` has them: what a digest is of.

    Those are weights (by their plain names), their biases, gains and shifts, and of norms the affine and
    the statistics; globs name none.

    >>> fold = RecipeFold("norm behind", "conv.weight", "bn", eps=1e-5)
    >>> shapes = {"conv.weight": (8, 4, 3), "bn.running_var": (8,), "bn.num_batches_tracked": (), "fc": (9,)}
    >>> list(named_tensors([fold], shapes))
    [('conv.weight', (8, 4, 3)), ('bn.running_var', (8,))]
    """
    for fold in folds:
        owner = fold.weight[: fold.weight.rfind(".") + 1]
        own = (f"{owner}{name}" for name in (fold.gain, fold.shift) if name)
        of_norm = (f"{fold.norm}.{name}" for name in NORM_TENSORS) if fold.norm else ()
        for name in (fold.weight, fold.bias_name, *own, *of_norm):
            if name in shapes:
                yield name, shapes[name]


def names_digest(tensors: Iterable[tuple[str, Shape]]) -> str:
    """The digest of the names and shapes of tensors, in any order.

    >>> names_digest([("b", (2,)), ("a", ())]) == names_digest([("a", ()), ("b", (2,))])
    True
    """
    import hashlib  # which only a digest needs

    lines = sorted({f"{name}\0{','.join(map(str, shape))}\n" for name, shape in tensors})
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def norms_untold(recipe: Recipe, told: Recipe) -> tuple[RecipeFold, ...]:
    """The folds of norms in a recipe that another one, which a model told, does not have just so.

    >>> fold = RecipeFold("norm behind", "conv.weight", "bn", eps=1e-5)
    >>> norms_untold(Recipe((fold,)), Recipe((fold,)))
    ()
    >>> [each.eps for each in norms_untold(Recipe((replace(fold, eps=1e-3),)), Recipe((fold,)))]
    [0.001]
    """
    known = {replace(fold, bias=fold.bias_name) for fold in told.folds}
    return tuple(
        fold for fold in recipe.folds if fold.has_norm and replace(fold, bias=fold.bias_name) not in known
    )
