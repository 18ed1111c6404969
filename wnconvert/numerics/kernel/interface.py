"""What a kernel does with the elements of a block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wnconvert.frozen import dataclass
from wnconvert.numerics.kernel.dots import Dots, Pairs
from wnconvert.numerics.sums import Sums
from wnconvert.tensors.blocks import Array, Floats

__all__ = ["Centres", "Kernel", "OpenElements"]


class OpenElements(NamedTuple):
    """Elements whose interval holds a midpoint: their places, and the codes of the values below it."""

    places: NDArray[np.intp]
    codes: NDArray[np.unsignedinteger[Any]]


class Centres(NamedTuple):
    """Of each row a centre + rest, and the least magnitude that is left of a value that counts."""

    centre: Floats
    rest: Floats
    least: Floats


@dataclass(frozen=True, slots=True)
class Kernel:
    """The work on a contiguous block (slabs, rows, inner) of float32, float16 or bfloat16.

    ``sums`` are Σv² of its rows; ``careful_sums`` the same to more than 60 bits.

    ``moments`` are ``careful_sums`` beside Σv of the rows, each within its error.

    ``products(values, factor, width, dtype, out)`` rounds values·factor, by row, into ``out`` of that dtype,
    but for the elements that are open. Factors are finite and such that no result is too large. Exact
    values are less than ``width`` units in the last place of float64 below the products.

    ``centred(values, centres, factor, width, dtype, out)`` are the same of (values − centre) − rest, by row.
    Where less than the least is left, 0 is taken for it, and the element is open with the code 0.

    ``cast`` takes an array of any shape to a dtype, rounded once, NaN and infinities too.

    ``dots(values, factors, top, found)`` adds Σ value·factor to ``found``: of each row for factors (slabs, 1,
    inner), of each column for factors (1, rows, 1); all have at most 24 bits, and no magnitude is more than
    ``top``, which is finite. ``careful_dots`` are the same to more than 60 bits of Σ|value·factor|.

    ``kept(mask)`` says where a mask is 1, and is None if it holds anything but +0 and 1; ``select(values,
    kept)`` are values times such a mask, as IEEE 754 has it, in a scratch array. Both take any shape.

    ``largest`` is the code of the largest magnitude of some values: at least that of infinity where one of
    them is not finite.
    """

    name: str
    sums: Callable[[Array], Sums]
    careful_sums: Callable[[Array], Sums]
    moments: Callable[[Array], tuple[Sums, Pairs]]
    products: Callable[[Array, Floats, int, str, Array], OpenElements]
    centred: Callable[[Array, Centres, Floats, int, str, Array], OpenElements]
    cast: Callable[[Array, str], Array]
    dots: Dots
    careful_dots: Dots
    kept: Callable[[Array], NDArray[np.bool_] | None]
    select: Callable[[Array, NDArray[np.bool_]], Array]
    largest: Callable[[Array], int]
