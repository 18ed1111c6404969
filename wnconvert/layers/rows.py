"""A layer as a row of a result: what plans, conversions and inspections tell of each in the same words."""

from __future__ import annotations

from wnconvert.frozen import dataclass

__all__ = ["LayerRow"]


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A layer: the path of its state dict, the name of its weight, its form, dim, shape and dtype.

    ``dim`` is None for the norm of the whole tensor, ``shape`` is the weight's, ``rows`` the number of norms.
    """

    state_dict: str
    name: str
    form: str
    dim: int | None
    shape: tuple[int, ...]
    dtype: str
    rows: int
