"""How a weight is computed from what is stored for it: operations, by the roles of their tensors.

No names and no numbers: what a kind of layer *is*. ``numerics`` has the arithmetic of each operation, with
the proof of its rounding; which names show it is told in this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal, TypeAlias

from wnconvert.tensors.tree import Dim, Shape, rows_of

__all__ = [
    "BIAS",
    "DIVISOR",
    "ORIGINAL",
    "AffineBefore",
    "EpsAt",
    "Equalized",
    "G",
    "Guard",
    "GuardAt",
    "Mask",
    "Neighbour",
    "Norm",
    "NormBefore",
    "NormBehind",
    "Operation",
    "Over",
    "Rule",
    "Spectral",
    "SpectralStep",
    "Standardize",
    "Std",
    "Stored",
    "Unit",
    "UnitVector",
]


#: The role of the tensor that the operations start from; weight norm calls it v.
ORIGINAL = "original"
#: The role of the magnitudes of weight norm.
G = "g"
#: The role of the tensor whose rows have the norms that another is divided by.
DIVISOR = "divisor"
#: The role of the bias that a layer has; a norm that is folded into the layer is folded into it too.
BIAS = "bias"

#: Which deviation of a row divides it.
Std: TypeAlias = Literal["biased", "unbiased"]
#: Where eps stands: √(V + eps), √V + eps, or √max(V·fan, eps).
EpsAt: TypeAlias = Literal["var", "std", "max"]
#: Where the eps of a guarded norm stands: max(k·‖w‖, eps), √max(k·Σw², eps), k·‖w‖ + eps, or √(k·Σw² + eps).
GuardAt: TypeAlias = Literal["max", "max of squares", "norm", "squares"]


@dataclass(frozen=True, slots=True)
class Guard:
    """What keeps a row from being divided by 0: an eps, and where it stands beside the norm.

    ``share`` is the k that multiplies the norm, or the sum of squares, before: 1/n makes a mean of the sum.
    An eps of 0 keeps from nothing: it is that of a mean without an eps.
    """

    eps: float
    at: GuardAt = "max"
    share: Fraction = Fraction(1)

    @property
    def is_least(self) -> bool:
        """Whether a norm that is large enough is not changed by it."""
        return self.at in ("max", "max of squares")


@dataclass(frozen=True, slots=True)
class Mask:
    """w·mask, element by element: ``torch.nn.utils.prune``."""

    roles: ClassVar[tuple[str, ...]] = ("mask",)
    kind: ClassVar[str] = "prune"
    dim: ClassVar[None] = None

    def norms(self, shape: Shape) -> int:  # noqa: ARG002 - as the others have it
        """Number of norms of a weight of that shape."""
        return 0


@dataclass(frozen=True, slots=True)
class Norm:
    """g·w/‖w‖, the norm over all axes but ``dim`` (None: over all): ``torch.nn.utils.weight_norm``.

    With a ``guard`` it is g·``torch.nn.functional.normalize(w)``, and what is like it.
    """

    roles: ClassVar[tuple[str, ...]] = (G,)
    kind: ClassVar[str] = "weight"
    dim: Dim
    guard: Guard | None = None

    def norms(self, shape: Shape) -> int:
        """Number of norms of a weight of that shape."""
        return rows_of(shape, self.dim)


@dataclass(frozen=True, slots=True)
class Spectral:
    """w/σ with σ = uᵀ·mat(w)·v, of the stored u and v: ``torch.nn.utils.spectral_norm`` in eval.

    mat(w) has w's axis ``dim`` as its rows and all others, in their order, as its columns. dim None: both
    fit, and the numbers decide.
    """

    roles: ClassVar[tuple[str, ...]] = ("u", "v")
    kind: ClassVar[str] = "spectral"
    dim: int | None

    def norms(self, shape: Shape) -> int:  # noqa: ARG002 - as the others have it
        """Number of norms of a weight of that shape."""
        return 1


@dataclass(frozen=True, slots=True)
class SpectralStep:
    """w/σ with σ = ‖mat(w)·mat(w)ᵀ·u‖/‖mat(w)ᵀ·u‖: one step from the stored u, as ports take it in eval."""

    roles: ClassVar[tuple[str, ...]] = ("u",)
    kind: ClassVar[str] = "spectral-step"
    dim: int

    def norms(self, shape: Shape) -> int:  # noqa: ARG002 - as the others have it
        """Number of norms of a weight of that shape."""
        return 1


@dataclass(frozen=True, slots=True)
class UnitVector:
    """w/max(‖w‖, eps): what ``torch.nn.utils.parametrizations.spectral_norm`` makes of a vector."""

    roles: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[str] = "spectral"
    dim: ClassVar[None] = None
    eps: float

    def norms(self, shape: Shape) -> int:  # noqa: ARG002 - as the others have it
        """Number of norms of a weight of that shape."""
        return 1


@dataclass(frozen=True, slots=True)
class Stored:
    """w itself: torch 1.0 stored the weight beside the original and the u of its spectral norm."""

    roles: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[str] = "spectral"
    dim: ClassVar[None] = None

    def norms(self, shape: Shape) -> int:  # noqa: ARG002 - as the others have it
        """Number of norms of a weight of that shape."""
        return 0


@dataclass(frozen=True, slots=True)
class Standardize:
    """(w − mean)·γ·scale/d + β, by rows: weight standardization. V is the variance of a row.

    d is √(V + eps), √V + eps or √max(V·fan, eps), by ``eps_at``; γ (``gain``) and β (``shift``) are there or
    not, each with one element for each row.
    """

    kind: ClassVar[str] = "standardize"
    dim: int
    std: Std
    eps_at: EpsAt
    eps: float
    scale: float = 1.0
    fan: int = 1
    gain: bool = False
    shift: bool = False

    @property
    def roles(self) -> tuple[str, ...]:
        """γ and β, where they are."""
        return ("gain",) * self.gain + ("shift",) * self.shift

    def norms(self, shape: Shape) -> int:
        """Number of norms of a weight of that shape."""
        return rows_of(shape, self.dim)


@dataclass(frozen=True, slots=True)
class Unit:
    """scale·w/‖w‖ by rows (``dim`` None: of all), the norm with a ``guard``.

    It is the weight's half of a cosine head, and what nGPT and EDM2 make of weights.
    """

    roles: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[str] = "unit"
    dim: Dim
    guard: Guard | None = None
    scale: Fraction = Fraction(1)

    def norms(self, shape: Shape) -> int:
        """Number of norms of a weight of that shape."""
        return rows_of(shape, self.dim)


@dataclass(frozen=True, slots=True)
class Over:
    """w·scale/‖d‖ by rows (``dim`` None: of all), d another tensor of w's shape, the norm with a ``guard``.

    With ``squares`` d holds squares: the norm is √Σd. With ``gain`` each row is multiplied by its g, too.
    It is what exporters leave of weight norm that store g·v, or v², beside a norm that the graph computes.
    """

    kind: ClassVar[str] = "quotient"
    dim: Dim
    guard: Guard | None = None
    squares: bool = False
    gain: bool = False
    scale: Fraction = Fraction(1)

    @property
    def roles(self) -> tuple[str, ...]:
        """d, and g where it is."""
        return (DIVISOR,) + (G,) * self.gain

    def norms(self, shape: Shape) -> int:
        """Number of norms of a weight of that shape."""
        return rows_of(shape, self.dim)


@dataclass(frozen=True, slots=True)
class Equalized:
    """scale·w: an equalized learning rate."""

    roles: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[str] = "equalized"
    dim: ClassVar[None] = None
    scale: float

    def norms(self, shape: Shape) -> int:  # noqa: ARG002 - as the others have it
        """Number of norms of a weight of that shape."""
        return 0


@dataclass(frozen=True, slots=True)
class _WithStatistics:
    """What a norm with running statistics has on either side of a layer."""

    kind: ClassVar[str] = "norm"
    dim: int
    eps: float
    groups: int = 1
    gain: bool = True
    shift: bool = True

    @property
    def roles(self) -> tuple[str, ...]:
        """Of what the weight is computed: v, and γ where it is."""
        return ("variance", *("gamma",) * self.gain)

    @property
    def offsets(self) -> tuple[str, ...]:
        """Of what the bias is computed beside that: the mean, and β where it is."""
        return ("mean", *("beta",) * self.shift)

    def norms(self, shape: Shape) -> int:
        """Number of channels of a weight of that shape."""
        return shape[self.dim] * self.groups


@dataclass(frozen=True, slots=True)
class NormBehind(_WithStatistics):
    """w·γ/√(v + eps) of its output channel: a norm with running statistics behind the layer, in eval.

    The channel of an element is its place on axis ``dim``. Of a weight with ``groups`` (a transposed
    convolution's, whose ``dim`` is 1), the first axis is cut into as many parts, and each part has channels
    of its own: that of element (i, j) is i // (size₀ / groups) · size₁ + j. γ (``gain``) and β (``shift``)
    are there or not. The bias of the layer becomes (bias − mean)·γ/√(v + eps) + β.
    """


@dataclass(frozen=True, slots=True)
class NormBefore(_WithStatistics):
    """w·γ/√(v + eps) of its *input* channel: a norm with running statistics before the layer, in eval.

    Channels as in ``NormBehind``: ``dim`` is 1 of a convolution, with its groups, and of a linear layer. The
    bias of the layer becomes bias + Σ w·(β − mean·γ/√(v + eps)), the sum over all that it multiplies.
    """


@dataclass(frozen=True, slots=True)
class AffineBefore:
    """w·γ of its *input* channel: the affine of a norm before the layer that itself stays, as γ = 1, β = 0.

    Channels as in ``NormBefore``. Where there is a β (``shift``), the bias of the layer becomes bias + Σ w·β.
    """

    roles: ClassVar[tuple[str, ...]] = ("gamma",)
    kind: ClassVar[str] = "affine"
    dim: int
    groups: int = 1
    shift: bool = True

    @property
    def offsets(self) -> tuple[str, ...]:
        """Of what the bias is computed: β, where it is."""
        return ("beta",) * self.shift

    def norms(self, shape: Shape) -> int:
        """Number of channels of a weight of that shape."""
        return shape[self.dim] * self.groups


#: What stands beside the layer, and is folded into its weight and its bias.
Neighbour: TypeAlias = NormBehind | NormBefore | AffineBefore
Operation: TypeAlias = (
    Mask
    | Norm
    | Spectral
    | SpectralStep
    | UnitVector
    | Stored
    | Standardize
    | Unit
    | Over
    | Equalized
    | Neighbour
)


@dataclass(frozen=True, slots=True)
class Rule:
    """The operations that make a weight of its ``ORIGINAL``, the innermost first; rounded once, in the end.

    >>> Rule((Mask(), Norm(0))).roles
    ('original', 'mask', 'g')
    """

    operations: tuple[Operation, ...]

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the tensors that it needs."""
        return (ORIGINAL, *(role for operation in self.operations for role in operation.roles))

    @property
    def neighbour(self) -> Neighbour | None:
        """The norm that is folded into the layer, which is the last operation; None if there is none."""
        last = self.operations[-1] if self.operations else None
        return last if isinstance(last, (NormBehind, NormBefore, AffineBefore)) else None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of its operations, by the words of ``--kinds``, the innermost first.

        >>> Rule((Mask(), Norm(0))).kinds
        ('prune', 'weight')
        """
        return tuple(dict.fromkeys(operation.kind for operation in self.operations))

    @property
    def kind(self) -> str:
        """The kinds as one word, such as ``prune+spectral``."""
        return "+".join(self.kinds)

    @property
    def dim(self) -> Dim:
        """The axis that belongs to the norms of the innermost operation that has one."""
        return next((each.dim for each in self.operations if each.dim is not None), None)

    def norms(self, shape: Shape) -> int:
        """Number of norms of a weight of that shape."""
        return max((operation.norms(shape) for operation in self.operations), default=0)
