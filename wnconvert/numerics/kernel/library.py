"""The library made of the sources in C, and whether it is used; ``wnconvert env`` may ask without numpy."""

from __future__ import annotations

import ctypes
from os import environ

from wnconvert.errors import ArgumentError

__all__ = ["VARIABLE", "chosen_kernel", "library", "source_digest", "take_level"]


#: The variable of the environment that asks for a kernel.
VARIABLE = "WNCONVERT_KERNEL"
_NAMES = ("compiled", "numpy")
#: The version of the functions in it: ``wnconvert_version`` of ``rows.c``.
_VERSION = 3
#: The library beside this file, made when wnconvert is installed. It is no module: not ``.so``.
_PLACE = __file__.removesuffix("library.py") + "rows.library"


def chosen_kernel() -> str:
    """The kernel in use, ``"compiled"`` or ``"numpy"``: where the one is not there, or the other is wanted.

    Raises ``ArgumentError`` if what the variable asks for is not there.
    """
    asked = environ.get(VARIABLE, "")
    if asked not in ("", *_NAMES):
        raise ArgumentError(f"{VARIABLE} is {asked!r}", fix="set it to numpy, or not at all")
    if asked == "numpy":
        return asked
    try:
        library()
    except OSError as error:
        if asked:
            raise ArgumentError(
                f"{VARIABLE} asks for the compiled kernel, which is not there: {error}",
                fix="install wnconvert again where there is a C compiler, or unset it",
            ) from error
        return "numpy"
    return "compiled"


def library() -> ctypes.CDLL:
    """The library with the types of its functions. Raises ``OSError`` where it is not there, or old."""
    found = ctypes.CDLL(_PLACE)
    if not hasattr(found, "wnconvert_version") or found.wnconvert_version() != _VERSION:
        raise OSError(f"{_PLACE} was made of another version")
    place, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_ssize_t
    values, results = (number, place, size, size, size), (number, place)
    found.wnconvert_sums.argtypes, found.wnconvert_sums.restype = (*values, place, place), None
    found.wnconvert_totals.argtypes, found.wnconvert_totals.restype = (*values, place, place, place), None
    of_rows = (place, place, place, place)
    found.wnconvert_products.argtypes = (*values, *of_rows, ctypes.c_int64, *results, place, place, size)
    found.wnconvert_products.restype = size
    found.wnconvert_cast.argtypes, found.wnconvert_cast.restype = (number, place, size, *results), number
    for dots in (found.wnconvert_row_dots, found.wnconvert_column_dots):
        dots.argtypes, dots.restype = (*values, place, place, place), None
    found.wnconvert_kept.argtypes, found.wnconvert_kept.restype = (number, place, size, place), number
    found.wnconvert_select.argtypes = (number, place, size, place, place)
    found.wnconvert_select.restype = None
    found.wnconvert_largest.argtypes, found.wnconvert_largest.restype = (number, place, size), ctypes.c_uint32
    found.wnconvert_take.argtypes, found.wnconvert_take.restype = (number,), None
    found.wnconvert_source.argtypes, found.wnconvert_source.restype = (), ctypes.c_char_p
    return found


def take_level(level: int) -> None:
    """Use no more of the processor than 0: what every one has, 1: AVX2, 2: AVX-512. For tests."""
    library().wnconvert_take(level)


def source_digest() -> str:
    """The SHA-256 of the source that the library was made of."""
    digest: bytes = library().wnconvert_source()
    return digest.decode()
