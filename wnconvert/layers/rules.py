"""How a weight is computed from what is stored for it: operations, by the roles of their tensors.

No names and no numbers: what a kind of layer *is*. ``numerics`` has the arithmetic of each operation, with
the proof of its rounding; which names show it is told in this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from wnconvert.tensors.tree import Dim, Shape, rows_of

__all__ = [
    "ORIGINAL",
    "G",
    "Mask",
    "Norm",
    "Operation",
    "Rule",
    "Spectral",
    "SpectralStep",
    "Stored",
    "UnitVector",
]


#: The role of the tensor that the operations start from; weight norm calls it v.
ORIGINAL = "original"
#: The role of the magnitudes of weight norm.
G = "g"


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
    """g·w/‖w‖, the norm over all axes but ``dim`` (None: over all): ``torch.nn.utils.weight_norm``."""

    roles: ClassVar[tuple[str, ...]] = (G,)
    kind: ClassVar[str] = "weight"
    dim: Dim

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


Operation = Mask | Norm | Spectral | SpectralStep | UnitVector | Stored


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
