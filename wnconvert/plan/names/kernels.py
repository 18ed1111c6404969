"""How frameworks order the axes of kernels: each is a transposition of torch's, or no kernel of it at all.

Sources: ``flax.linen.Dense``, ``Conv`` and ``ConvTranspose`` (``lax.conv_transpose``, which turns the kernel
round only with ``transpose_kernel``), ``mlx.nn.Linear``, ``Conv1d`` and ``ConvTranspose1d``, and torch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

from wnconvert.frozen import dataclass
from wnconvert.tensors.tree import Dim, StoredTensor

__all__ = [
    "FRAMEWORKS",
    "KERNEL_KINDS",
    "Axes",
    "Framework",
    "KernelKind",
    "dim_taken_to",
    "fits_rank",
    "kernel_axes",
    "shape_in_torch",
    "taken_to",
]


#: A framework whose layout is known; ``nnx`` is flax's newer interface, which names weight norm otherwise.
Framework: TypeAlias = Literal["torch", "flax", "nnx", "mlx"]
FRAMEWORKS: tuple[Framework, ...] = get_args(Framework)

#: What a tensor of two axes or more is. ``transpose-kernel`` is flax's ConvTranspose with that argument;
#: ``as-is`` is a tensor whose axes are the same everywhere.
KernelKind: TypeAlias = Literal[
    "linear", "embedding", "convolution", "transposed", "transpose-kernel", "as-is"
]
KERNEL_KINDS: tuple[KernelKind, ...] = get_args(KernelKind)

_CONVOLUTIONS = ("convolution", "transposed", "transpose-kernel")


@dataclass(frozen=True, slots=True)
class Axes:
    """The axes of a framework's kernel in torch's order; those of torch that run ``backwards`` in it."""

    order: tuple[int, ...]
    backwards: tuple[int, ...] = ()

    @property
    def inverse(self) -> tuple[int, ...]:
        """The framework's axes as torch's."""
        return tuple(self.order.index(axis) for axis in range(len(self.order)))


def fits_rank(kind: KernelKind, rank: int) -> bool:
    """Whether a tensor of so many axes can be of a kind.

    >>> fits_rank("linear", 2), fits_rank("convolution", 2), fits_rank("as-is", 5)
    (True, False, True)
    """
    return rank > 2 if kind in _CONVOLUTIONS else rank == 2 or kind == "as-is"


def kernel_axes(framework: Framework, kind: KernelKind, rank: int) -> Axes:
    """The axes of a kernel in a framework.

    torch has (out, in, …) and, of a transposed convolution, (in, out, …).

    >>> kernel_axes("flax", "convolution", 3), kernel_axes("mlx", "transposed", 3)
    (Axes(order=(2, 1, 0), backwards=()), Axes(order=(2, 0, 1), backwards=()))
    >>> kernel_axes("flax", "transposed", 4)
    Axes(order=(2, 3, 0, 1), backwards=(2, 3))
    """
    every, last = tuple(range(rank)), rank - 1
    if kind in ("embedding", "as-is") or framework == "torch":
        return Axes(every)
    if framework == "mlx":
        if kind == "linear":
            return Axes(every)
        return Axes((0, last, *every[1:-1]) if kind == "convolution" else (last, 0, *every[1:-1]))
    if kind == "transposed":  # (…, in, out), and not turned round
        return Axes((last - 1, last, *every[:-2]), every[2:])
    return Axes((last, last - 1, *every[:-2]))


def taken_to(tensor: StoredTensor, source: Axes, target: Axes) -> StoredTensor:
    """A kernel of one framework as another has it: the same elements in another order."""
    in_torch = tensor.transposed(source.order, source.backwards)
    turned = in_torch.transposed(range(len(source.order)), target.backwards)
    return turned.transposed(target.inverse)


def dim_taken_to(dim: Dim, source: Axes, target: Axes) -> Dim:
    """The axis of another framework's kernel that axis ``dim`` of a kernel becomes."""
    return None if dim is None else target.order[source.order.index(dim)]


def shape_in_torch(shape: Sequence[int], axes: Axes) -> tuple[int, ...]:
    """The shape that torch has for a kernel of a framework."""
    return tuple(shape[axis] for axis in axes.order)
