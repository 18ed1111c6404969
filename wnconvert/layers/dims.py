"""Which axis a magnitude belongs to, read from the shapes of g and v.

A state dict does not store weight norm's ``dim``; the shape of g tells it. Pure shapes: no numpy here,
so the naming rules can be used without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from wnconvert.errors import LayerError
from wnconvert.frozen import dataclass
from wnconvert.messages import option
from wnconvert.tensors.tree import Dim, Shape

__all__ = ["AUTO", "DimFit", "dim_of", "g_shape", "refuse_large", "spectral_dim", "torchs_g_shape"]


#: Ask for dim to be read from g's shape.
AUTO: Final = "auto"
#: Bytes of float64 that the tensors of a rule may take which are read whole.
_VECTOR_BYTES = 32 << 20
#: Their roles; a mask is streamed as the original is, and g is read as rows come.
_WHOLE = ("u", "v")


@dataclass(frozen=True, slots=True)
class DimFit:
    """The axis that is *not* summed over (None: the whole tensor is), and a note if it is a guess."""

    dim: Dim
    note: str = ""


def dim_of(
    g_shape: Shape, v_shape: Shape, dim: int | str | None = AUTO, *, axes: Sequence[int] = (0,)
) -> DimFit:
    """Read ``dim`` of ``torch.nn.utils.weight_norm`` from the shapes of g and v.

    Given a ``dim`` (an axis, negative ones counted from the end; None or -1: the whole tensor, as torch
    has it), checks that g fits it instead. Where g is a vector and fits several, the first of
    ``axes`` that it fits is taken, with a note.

    Raises ``LayerError`` with both shapes where g fits no axis, or not the given one.

    >>> dim_of((512, 1, 1), (512, 80, 7)).dim, dim_of((1, 1, 128), (1024, 64, 128)).dim
    (0, 2)
    >>> dim_of((), (30, 20)).dim is None
    True
    >>> dim_of((8,), (8, 8)).dim, dim_of((8,), (8, 8), axes=(-1,)).dim
    (0, 1)
    """
    if dim == AUTO:
        return _read(g_shape, v_shape, axes)
    return DimFit(_check(g_shape, v_shape, dim))


def _read(g: Shape, v: Shape, usual: Sequence[int]) -> DimFit:
    if math.prod(g) == 1:
        # One norm for everything. Where v has a size-1 axis 0 that is the same numbers as dim 0.
        return DimFit(0 if len(g) == len(v) > 0 and v[0] == 1 else None)
    if len(g) == len(v):
        axes = [axis for axis, size in enumerate(g) if size != 1]
        if len(axes) == 1 and g[axes[0]] == v[axes[0]]:
            return DimFit(axes[0])
    elif len(g) == 1:
        axes = [axis for axis, size in enumerate(v) if size == g[0]]
        if len(axes) == 1:
            return DimFit(axes[0])
        taken = next((axis % len(v) for axis in usual if v and axis % len(v) in axes), None)
        if taken is not None:
            note = f"g {g} fits several axes of v {v}; axis {taken} is taken (else: fold {option('dim')})"
            return DimFit(taken, note)
        if axes:
            raise LayerError(
                f"g {g} fits several axes of v {v}", fix=f"{option('dim', metavar='N')} says which"
            )
    raise LayerError(_misfit(g, v), fix="repair the checkpoint")


def _check(g: Shape, v: Shape, dim: object) -> Dim:
    if dim is None or dim == -1:
        if math.prod(g) == 1:
            return None
        raise LayerError(
            f"{_misfit(g, v)} over the whole tensor ({option('dim', None)})",
            fix=_leave_dim_out(),
        )
    if not isinstance(dim, int) or not -len(v) <= dim < len(v):
        raise LayerError(f"v {v} has no axis {dim}", fix=_leave_dim_out())
    axis = dim % len(v)
    kept = tuple(size if at == axis else 1 for at, size in enumerate(v))
    if g != kept and g != (v[axis],) and not (v[axis] == 1 and math.prod(g) == 1):
        raise LayerError(f"{_misfit(g, v)} along {option('dim', dim)}", fix=_leave_dim_out())
    return axis


def spectral_dim(shape: Shape, u: Shape, v: Shape, dim: int | str | None = AUTO) -> Dim:
    """The axis that spectral norm's u belongs to, read from shapes; None where the first two fit alike.

    Given a ``dim``, checks that u and v fit it instead. Raises ``LayerError`` with the shapes where they
    do not.

    >>> spectral_dim((8, 4, 3), (8,), (12,)), spectral_dim((8, 4, 3), (4,), (24,))
    (0, 1)
    >>> spectral_dim((8, 8), (8,), (8,)) is None, spectral_dim((8, 8), (8,), (8,), 1)
    (True, 1)
    """
    numel = math.prod(shape)
    axes = [axis for axis, size in enumerate(shape) if u == (size,) and v == (numel // size,)]
    misfit = f"u {u} and v {v} do not fit {shape}"
    if dim != AUTO:
        axis = dim % len(shape) if isinstance(dim, int) and -len(shape) <= dim < len(shape) else None
        if axis not in axes:
            raise LayerError(f"{misfit} along {option('dim', dim)}", fix=_leave_dim_out())
        return axis
    if not axes:
        raise LayerError(misfit, fix="repair the checkpoint")
    return None if axes[:2] == [0, 1] and u != (1,) else axes[0]


def refuse_large(counts: Mapping[str, int]) -> None:
    """Raise ``LayerError`` if the tensors that are read whole are too large, given elements by role.

    >>> refuse_large({"original": 1 << 40, "u": 1 << 20, "v": 1 << 20})
    """
    whole = {role: count for role, count in counts.items() if role in _WHOLE}
    size = 8 * sum(whole.values())
    if size > _VECTOR_BYTES:
        sizes = " and ".join(f"{role} of {count:,}" for role, count in whole.items())
        raise LayerError(
            f"{sizes} elements are read whole, and take {size >> 20} MiB of at most {_VECTOR_BYTES >> 20}"
        )


def g_shape(v: Shape, dim: Dim) -> Shape:
    """The shape that torch gives to g; ``()`` for an axis that does not exist.

    >>> g_shape((8, 4, 3), 0), g_shape((8, 4, 3), None)
    ((8, 1, 1), ())
    """
    if dim is None or dim >= len(v):
        return ()
    return tuple(size if axis == dim else 1 for axis, size in enumerate(v))


def torchs_g_shape(g: Shape, v: Shape, dim: Dim) -> Shape:
    """The shape that torch loads for a g that fits along ``dim``: its own, unless torch makes none like it.

    A single number is torch's in as many axes as v, or in none.

    >>> torchs_g_shape((8,), (8, 4), 0), torchs_g_shape((1, 1, 1), (8, 1, 3), None)
    ((8, 1), (1, 1, 1))
    """
    if len(g) == len(v) or not g:
        return g
    if math.prod(g) == 1 and v and v[0] == 1:
        return g_shape(v, 0)  # the same numbers as those of the whole tensor, and torch's default
    return g_shape(v, dim)


def _leave_dim_out() -> str:
    return f"leave {option('dim')} out"


def _misfit(g: Shape, v: Shape) -> str:
    return f"g {g} does not fit v {v}"
