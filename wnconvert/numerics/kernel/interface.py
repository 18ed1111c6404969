"""What a kernel does with the elements of a block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wnconvert.numerics.sums import Sums
from wnconvert.tensors.blocks import Array, Floats

__all__ = ["Kernel", "OpenElements"]


class OpenElements(NamedTuple):
    """Elements whose interval holds a midpoint: their places, and the codes of the values below it."""

    places: NDArray[np.intp]
    codes: NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True)
class Kernel:
    """The work on a contiguous block (slabs, rows, inner) of float32, float16 or bfloat16.

    ``sums`` are Σv² of its rows; ``careful_sums`` the same to more than 60 bits.

    ``products(values, factor, width, dtype, out)`` rounds values·factor, by row, into ``out`` of that dtype,
    but for the elements that are open. Factors are finite and such that no result is too large. Exact
    values are less than ``width`` units in the last place of float64 below the products.

    ``cast`` takes an array of any shape to a dtype, rounded once, NaN and infinities too.
    """

    name: str
    sums: Callable[[Array], Sums]
    careful_sums: Callable[[Array], Sums]
    products: Callable[[Array, Floats, int, str, Array], OpenElements]
    cast: Callable[[Array, str], Array]
