"""The inputs of a model: their names, dtypes and shapes, and the ranges of dynamic sizes.

An input is written as ``mel=float32[1,80,T]``: a letter (any identifier) is a dynamic size with a range,
``T=16..400``. Integers are drawn below a bound, ``ids=int64[1,L]<100``. ``mel:x=…`` is the module's ``mel``,
which the ONNX model calls ``x``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

import numpy as np

from wnconvert.errors import ArgumentError
from wnconvert.messages import listed, printable
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.dtypes import DTYPES, DType
from wnconvert.tensors.memory import array_of, stored_tensor
from wnconvert.verbs.shared.options import texts_of

__all__ = [
    "InputSpec",
    "Range",
    "Signature",
    "check_outputs",
    "exported_sizes",
    "parse_input",
    "parse_range",
    "signature_of",
]


_INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64")
_FLOATS = ("float32", "float16", "bfloat16", "float64", "complex64", "complex128")
_KNOWN = (*_FLOATS, *_INTEGERS, "bool")
_MOST = 2**31 - 1

_INPUT = re.compile(r"(?P<name>[^\s=\[\]<]+)=(?P<dtype>\w+)\[(?P<shape>[^\[\]]*)\](?:<(?P<below>\d+))?")
_LETTER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RANGE = re.compile(r"(?P<letter>[^=\s]+)=(?P<low>\d+)\.\.(?P<high>\d+)")
_INPUT_FIX = "give inputs such as 'mel=float32[1,80,T]', 'ids=int64[1,L]<100' or 'flag=bool[]'"
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

    ``name`` is the module's; ``port`` is the ONNX model's, if the user gave one. ``str()`` gives
    the text that :func:`parse_input` reads.
    """

    name: str
    dtype: DType
    shape: tuple[int | str, ...]
    below: int | None = None
    port: str = ""

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
        return f"{name}={self.dtype}[{','.join(map(str, self.shape))}]{bound}"


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs of a model in order, the range of each letter in them, and example values if there are any.

    ``examples`` are by input, and set the exported sizes. ``notes`` are for the user.
    """

    inputs: tuple[InputSpec, ...]
    ranges: Mapping[str, Range]
    examples: Mapping[str, Array] = field(default_factory=dict, compare=False, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return tuple(spec.name for spec in self.inputs)


# -- texts


def parse_input(text: str) -> InputSpec:
    """Parse the text of an input. Raises ``ArgumentError``.

    >>> parse_input("ids=int64[1,L]<100").shape
    (1, 'L')
    >>> parse_input("mel:x=float32[1,80,T]").called
    'x'
    """
    parts = _INPUT.fullmatch(text.strip())
    if parts is None:
        raise _no_input(text, "an input is written NAME=DTYPE[SIZE,…], with <N behind it for integers")
    dtype = _dtype(text, parts["dtype"])
    sizes = [size.strip() for size in parts["shape"].split(",")] if parts["shape"].strip() else []
    shape = tuple(_size(text, size) for size in sizes)
    below = int(parts["below"]) if parts["below"] else None
    _check_bound(text, dtype, below)
    name, port = _names(parts["name"])
    return InputSpec(name, dtype, shape, below, port)


def _names(text: str) -> tuple[str, str]:
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


def _no_input(text: str, why: str, fix: str = _INPUT_FIX) -> ArgumentError:
    return ArgumentError(f"input {_quoted(text)}: {why}", fix=fix)


def _dtype(text: str, name: str) -> DType:
    if name in _KNOWN:
        return DTYPES[name]
    if name in DTYPES:
        raise _no_input(text, f"no values of {name} can be drawn", f"choose one of {', '.join(_KNOWN)}")
    near = get_close_matches(name, _KNOWN, n=3)
    raise _no_input(
        text, f"no dtype is called {name}", f"choose {' or '.join(near) or 'one of ' + ', '.join(_KNOWN)}"
    )


def _size(text: str, size: str) -> int | str:
    if _LETTER.fullmatch(size):
        return size
    if re.fullmatch(r"\d+", size, re.ASCII) and 1 <= int(size) <= _MOST:
        return int(size)
    raise _no_input(text, f"'{printable(size)}' is not a size: give a number of 1 or more, or a letter")


def _check_bound(text: str, dtype: DType, below: int | None) -> None:
    if dtype.name not in _INTEGERS:
        if below is not None:
            raise _no_input(text, f"{dtype} does not take a bound; <N is for integers")
        return
    most = int(np.iinfo(dtype.numpy()).max) + 1
    if below is None:
        fixed = f"'{printable(text.strip())}<100' draws from 0 to 99"
        raise _no_input(text, "integers need a bound: <N draws from 0 to N-1", fixed)
    if not 1 <= below <= most:
        raise _no_input(text, f"{below} is not a bound for {dtype}", f"give a number from 1 to {most}")


# -- signatures


def signature_of(
    inputs: str | Iterable[Any] | Mapping[str, Any],
    ranges: Iterable[str] | Mapping[str, Range | tuple[int, int]] = (),
    *,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    names: Sequence[str] = (),
) -> Signature:
    """Make a signature from texts, or from example tensors (of torch or numpy) by name or by position.

    ``names`` are for tensors that come by position. The sizes of a tensor are fixed, except for axes that
    ``dynamic`` gives a letter (``{"mel": {2: "T"}}``); integers are drawn up to its largest. Raises
    ``ArgumentError``.

    >>> str(signature_of(["mel=float32[1,80,T]"], ["T=16..400"]).ranges["T"])
    '16..400'
    """
    given = _by_name(inputs, names)
    axes = _dynamic(dynamic or {})
    specs, examples, notes = [], {}, []
    for key, value in given:
        if isinstance(value, str):
            specs.append(parse_input(value))
            continue
        name, port = _names(key)
        spec = replace(_spec_of(name, value, axes.pop(name, {})), port=port)
        examples[name] = array_of(value)
        notes += (
            [f"{name}: drawn from 0 to {spec.below - 1}, the largest of the example"] if spec.below else []
        )
        specs.append(spec)
    _check_names(specs, axes)
    exported = exported_sizes(specs, examples)
    letters = {letter: None for spec in specs for letter in spec.letters}
    spans = _ranges(ranges)
    for letter in spans:
        if letter not in letters:
            have = f"the letters are {', '.join(letters)}" if letters else "no input has a letter"
            raise ArgumentError(f"range {letter}={spans[letter]}: no input has the size {letter}", fix=have)
    for letter in letters:
        if letter not in spans:
            size = exported.get(letter, DEFAULT_RANGE.low)
            spans[letter] = Range(min(size, DEFAULT_RANGE.low), max(size, DEFAULT_RANGE.high))
            notes.append(f"{letter}: no range was given; it is {spans[letter]}")
        elif letter in exported and exported[letter] not in spans[letter]:
            raise ArgumentError(
                f"range {letter}={spans[letter]}: the example has {letter} = {exported[letter]}",
                fix="give a range that holds it, or another example",
            )
    return Signature(tuple(specs), {letter: spans[letter] for letter in letters}, examples, tuple(notes))


def _dynamic(dynamic: Any) -> dict[str, dict[int, str]]:
    """The letters of examples, by name and axis. Raises ``ArgumentError`` for another form."""
    by_name = dynamic if isinstance(dynamic, Mapping) else {"": dynamic}
    for by_axis in by_name.values():
        if not isinstance(by_axis, Mapping) or not all(type(axis) is int for axis in by_axis):
            raise ArgumentError(
                f"dynamic: {by_axis!r:.80} does not name axes by letters",
                fix='give {"mel": {2: "T"}}, for example',
            )
    return {name: dict(by_axis) for name, by_axis in by_name.items()}


def _by_name(inputs: Any, names: Sequence[str]) -> list[tuple[str, Any]]:
    """Inputs with their names; a text has its own."""
    if isinstance(inputs, str):
        inputs = [inputs]
    if isinstance(inputs, Mapping):
        return _some([(name, f"{name}={v}" if isinstance(v, str) else v) for name, v in inputs.items()])
    if not isinstance(inputs, Iterable) or hasattr(inputs, "shape"):
        inputs = [inputs]
    every = list(inputs)
    return _some([(names[at] if at < len(names) else f"input_{at}", value) for at, value in enumerate(every)])


def _some(given: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    if not given:
        raise ArgumentError("no inputs are given", fix=_INPUT_FIX)
    return given


def _spec_of(name: str, value: Any, letters: Mapping[int, str]) -> InputSpec:
    """The input that an example tensor stands for."""
    stored = stored_tensor(name, value)
    if stored is None or stored.info.dtype.name not in _KNOWN:
        what = f"{type(value).__name__} of {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
        raise ArgumentError(f"input {name}: {what} is not a tensor that can be fed", fix=_INPUT_FIX)
    dtype, shape = stored.info.dtype, stored.info.shape
    if 0 in shape:
        raise ArgumentError(
            f"input {name}: the example has no elements: {shape}", fix="give a larger example"
        )
    sizes: list[int | str] = list(shape)
    for axis, letter in letters.items():
        if not -len(shape) <= axis < len(shape):
            raise ArgumentError(
                f"input {name}: no axis {axis} in shape {shape}", fix="give an axis that it has"
            )
        if not _LETTER.fullmatch(str(letter)):
            raise ArgumentError(
                f"input {name}: axis {axis}: {letter!r} is not a letter", fix='give a letter, such as "T"'
            )
        sizes[axis] = letter
    below = None
    if dtype.name in _INTEGERS:
        below = int(array_of(value).max()) + 1
        if below < 1:
            raise ArgumentError(f"input {name}: all integers of the example are negative", fix=_INPUT_FIX)
    return InputSpec(name, dtype, tuple(sizes), below)


def _check_names(specs: Sequence[InputSpec], unused: Mapping[str, object]) -> None:
    names = [spec.name for spec in specs]
    for every in (names, [spec.called for spec in specs]):
        for name in every:
            if every.count(name) > 1:
                raise ArgumentError(
                    f"two inputs are called {printable(name)}", fix="give one text for each input"
                )
    for name in unused:
        where = "write the letters into its text" if name in names else f"the inputs are {listed(names)}"
        raise ArgumentError(f"dynamic: no example tensor is called {printable(str(name))}", fix=where)


def exported_sizes(specs: Sequence[InputSpec], examples: Mapping[str, Array]) -> dict[str, int]:
    """The size of each letter in the examples. Raises ``ArgumentError`` if a letter has two sizes."""
    found: dict[str, int] = {}
    for spec in specs:
        if spec.name in examples:
            for letter, size in zip(spec.shape, examples[spec.name].shape, strict=True):
                if isinstance(letter, str) and found.setdefault(letter, size) != size:
                    raise ArgumentError(
                        f"input {spec.name}: {letter} is {size} here and {found[letter]} elsewhere",
                        fix="give each size its own letter",
                    )
    return found


def _ranges(ranges: Any) -> dict[str, Range]:
    if isinstance(ranges, Mapping):
        return {
            letter: value if isinstance(value, Range) else Range(*_two(letter, value))
            for letter, value in ranges.items()
        }
    spans: dict[str, Range] = {}
    for text in texts_of(ranges):
        letter, found = parse_range(text)
        if letter in spans:
            raise ArgumentError(
                f"two ranges for {letter}: {spans[letter]} and {found}", fix="give one of them"
            )
        spans[letter] = found
    return spans


def _two(letter: str, value: Any) -> tuple[int, int]:
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(end, int) for end in value):
        return value[0], value[1]
    raise ArgumentError(
        f"range of {letter}: {value!r} is not a pair of numbers", fix='give a pair, such as {"T": (16, 400)}'
    )
