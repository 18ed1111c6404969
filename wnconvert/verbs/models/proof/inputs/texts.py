"""Inputs and ranges of sizes, and the texts that give them.

An input is written as ``mel=float32[1,80,T]``: a letter (any identifier) is a dynamic size with a range,
``T=16..400``. Integers are drawn below a bound, ``ids=int64[1,L]<100``. Behind the shape may stand what the
input is fed with: ``scales=float32[3]=0,1,0``, ``lengths=int64[1]=L``, ``x=float32[T]=0..1``; or the file of
an example, ``mel=float32[1,80,T]=@real.npz``, ``mel=@real.npz``. ``mel:x=…`` is the module's ``mel``, which
the ONNX model calls ``x``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import numpy as np

from wnconvert.errors import ArgumentError
from wnconvert.frozen import dataclass
from wnconvert.messages import printable
from wnconvert.tensors.dtypes import DTYPES, DType
from wnconvert.verbs.models.proof.inputs.values import Between, GivenValues, parse_values

__all__ = [
    "DEFAULT_RANGE",
    "FEEDABLE",
    "INPUT_FIX",
    "InputSpec",
    "Range",
    "check_outputs",
    "is_integer",
    "is_letter",
    "named_file",
    "parse_form",
    "parse_input",
    "parse_range",
    "port_names",
]


_INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64")
_FLOATS = ("float32", "float16", "bfloat16", "float64", "complex64", "complex128")
#: The dtypes of which values can be drawn.
FEEDABLE = (*_FLOATS, *_INTEGERS, "bool")
_MOST = 2**31 - 1

_INPUT = re.compile(
    r"(?P<name>[^\s=\[\]<]+)=(?P<dtype>\w+)\[(?P<shape>[^\[\]]*)\](?:<(?P<below>\d+))?"
    r"(?:=(?P<values>.+))?"
)
_LETTER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RANGE = re.compile(r"(?P<letter>[^=\s]+)=(?P<low>\d+)\.\.(?P<high>\d+)")
INPUT_FIX = "give inputs such as 'mel=float32[1,80,T]', 'ids=int64[1,L]<100' or 'flag=bool[]'"
_RANGE_FIX = "give a range such as 'T=16..400'"


@dataclass(frozen=True, slots=True)
class Range:
    """The sizes that a letter may have, with both ends; ``str()`` gives ``16..400``.

    Raises ``ArgumentError`` if it is empty.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high <= _MOST:
            bound = f"sizes are 1 to {_MOST}" if self.low <= self.high else "the lower end comes first"
            raise ArgumentError(f"{self.low}..{self.high} is not a range: {bound}", fix=_RANGE_FIX)

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and self.low <= size <= self.high

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"


#: The range of a letter for which none is given.
DEFAULT_RANGE = Range(16, 128)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """An input: ``shape`` holds numbers and letters; integers are drawn from [0, ``below``).

    ``name`` is the module's; ``port`` is the ONNX model's, if the user gave one. ``values`` are what it is
    fed with where the user said so. ``str()`` gives the text that :func:`parse_input` reads.
    """

    name: str
    dtype: DType
    shape: tuple[int | str, ...]
    below: int | None = None
    port: str = ""
    values: GivenValues | None = None

    @property
    def is_given(self) -> bool:
        """Whether its values are fixed or tied, so that none are drawn."""
        return self.values is not None and not isinstance(self.values, Between)

    @property
    def called(self) -> str:
        """Its name in an ONNX model, as far as the user says."""
        return self.port or self.name

    @property
    def letters(self) -> tuple[str, ...]:
        """The dynamic sizes, each once, in order."""
        return tuple(dict.fromkeys(size for size in self.shape if isinstance(size, str)))

    def sizes(self, by_letter: Mapping[str, int]) -> tuple[int, ...]:
        """The shape, with numbers in place of letters."""
        return tuple(by_letter[size] if isinstance(size, str) else size for size in self.shape)

    def __str__(self) -> str:
        bound = "" if self.below is None else f"<{self.below}"
        name = f"{self.name}:{self.port}" if self.port else self.name
        values = "" if self.values is None else f"={self.values}"
        return f"{name}={self.dtype}[{','.join(map(str, self.shape))}]{bound}{values}"


# -- texts


def parse_input(text: str) -> InputSpec:
    """Parse the text of an input. Raises ``ArgumentError``.

    >>> parse_input("ids=int64[1,L]<100").shape
    (1, 'L')
    >>> parse_input("mel:x=float32[1,80,T]").called
    'x'
    >>> str(parse_input("scales=float32[3]=0,1,0").values)
    '0.0,1.0,0.0'
    """
    spec = parse_form(text)
    if is_integer(spec.dtype) and spec.below is None and spec.values is None:
        fixed = f"'{printable(text.strip())}<100' draws from 0 to 99"
        raise _no_input(text, "integers need a bound: <N draws from 0 to N-1", fixed)
    return spec


def parse_form(text: str) -> InputSpec:
    """Parse the text of an input whose integers may be without a bound. Raises ``ArgumentError``."""
    parts = _INPUT.fullmatch(text.strip())
    if parts is None:
        raise _no_input(text, "an input is written NAME=DTYPE[SIZE,…], with <N behind it for integers")
    dtype = _dtype(text, parts["dtype"])
    sizes = [size.strip() for size in parts["shape"].split(",")] if parts["shape"].strip() else []
    shape = tuple(_size(text, size) for size in sizes)
    below = int(parts["below"]) if parts["below"] else None
    if below is not None:
        _check_bound(text, dtype, below)
    name, port = port_names(parts["name"])
    values = _values(text, parts["values"], dtype, shape)
    if values is not None and below is not None:
        raise _no_input(text, "a bound and values are given", "leave <N out, or the values")
    return InputSpec(name, dtype, shape, below, port, values)


def named_file(text: str) -> tuple[str, str]:
    """The text of an input in front of ``=@FILE``, and the file; without one, the text and nothing.

    >>> named_file("mel=@real.npz"), named_file("mel=float32[1,80,T]")
    (('mel', 'real.npz'), ('mel=float32[1,80,T]', ''))
    """
    head, _, path = text.partition("=@")
    if "=@" in text and not (head.strip() and path.strip()):
        raise _no_input(text, "the file of an example is written NAME=@FILE, or behind the shape")
    return head.strip(), path.strip()


def _values(text: str, values: str | None, dtype: DType, shape: tuple[int | str, ...]) -> GivenValues | None:
    if values is None:
        return None
    try:
        return parse_values(values, dtype.numpy(), shape)
    except ArgumentError as error:
        raise _no_input(text, error.what, error.fix) from None


def port_names(text: str) -> tuple[str, str]:
    """The module's name of an input, and the ONNX model's or nothing; those may have colons in them."""
    name, colon, port = text.partition(":")
    if colon and not (name and port):
        raise _no_input(text, "two names are written NAME:OTHER, the module's and the ONNX model's")
    return name, port


def parse_range(text: str) -> tuple[str, Range]:
    """Parse the text of a range into its letter and range. Raises ``ArgumentError``.

    >>> parse_range("T=16..400")
    ('T', Range(low=16, high=400))
    """
    parts = _RANGE.fullmatch(text.strip())
    if parts is None or not _LETTER.fullmatch(parts["letter"]):
        raise ArgumentError(f"range {_quoted(text)}: a range is written LETTER=LOW..HIGH", fix=_RANGE_FIX)
    try:
        return parts["letter"], Range(int(parts["low"]), int(parts["high"]))
    except ArgumentError as error:
        raise ArgumentError(f"range {_quoted(text)}: {error.what}", fix=error.fix) from None


def check_outputs(names: Sequence[str]) -> None:
    """Raise ``ArgumentError`` if the name of an output is not valid, or comes twice."""
    for name in names:
        if not name or name != name.strip():
            raise ArgumentError(
                f"output {_quoted(name)}: this is not a name", fix="give a name, such as --output-name wave"
            )
        if list(names).count(name) > 1:
            raise ArgumentError(f"two outputs are called {printable(name)}", fix="give each its own name")


def _quoted(text: str) -> str:
    return f"'{printable(text)}'"


def _no_input(text: str, why: str, fix: str = INPUT_FIX) -> ArgumentError:
    return ArgumentError(f"input {_quoted(text)}: {why}", fix=fix)


def _dtype(text: str, name: str) -> DType:
    if name in FEEDABLE:
        return DTYPES[name]
    if name in DTYPES:
        raise _no_input(text, f"no values of {name} can be drawn", f"choose one of {', '.join(FEEDABLE)}")
    near = get_close_matches(name, FEEDABLE, n=3)
    raise _no_input(
        text, f"no dtype is called {name}", f"choose {' or '.join(near) or 'one of ' + ', '.join(FEEDABLE)}"
    )


def _size(text: str, size: str) -> int | str:
    if _LETTER.fullmatch(size):
        return size
    if re.fullmatch(r"\d+", size, re.ASCII) and 1 <= int(size) <= _MOST:
        return int(size)
    raise _no_input(text, f"'{printable(size)}' is not a size: give a number of 1 or more, or a letter")


def is_integer(dtype: DType) -> bool:
    """Whether values of a dtype are whole numbers."""
    return dtype.name in _INTEGERS


def is_letter(text: str) -> bool:
    """Whether a text can be the name of a size."""
    return _LETTER.fullmatch(text) is not None


def _check_bound(text: str, dtype: DType, below: int) -> None:
    if not is_integer(dtype):
        raise _no_input(text, f"{dtype} does not take a bound; <N is for integers")
    most = int(np.iinfo(dtype.numpy()).max) + 1
    if not 1 <= below <= most:
        raise _no_input(text, f"{below} is not a bound for {dtype}", f"give a number from 1 to {most}")
