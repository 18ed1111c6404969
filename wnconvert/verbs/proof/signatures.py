"""What is fed to a model: inputs by name, dtype and shape, and ranges of dynamic sizes.

An input is told as text, ``mel=float32[1,80,T]``: a letter (any identifier) is a dynamic size with a range,
``T=16..400``. Integers are drawn below a bound, ``ids=int64[1,L]<100``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np

from wnconvert.errors import ArgumentError
from wnconvert.messages import listed, printable
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.dtypes import DTYPES, DType
from wnconvert.tensors.memory import array_of, stored_tensor
from wnconvert.verbs.options import texts_of

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
_INPUT_FIX = "such as 'mel=float32[1,80,T]', 'ids=int64[1,L]<100' or 'flag=bool[]'"
_RANGE_FIX = "such as 'T=16..400'"


@dataclass(frozen=True, slots=True)
class Range:
    """The sizes that a letter may have, both ends among them; ``str()`` gives ``16..400``.

    Raises ``ArgumentError`` where it holds no size.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high <= _MOST:
            bound = f"sizes are 1 to {_MOST}" if self.low <= self.high else "the first is the lower one"
            raise ArgumentError(f"no range: {self.low}..{self.high}: {bound}", fix=_RANGE_FIX)

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and self.low <= size <= self.high

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"


#: The range of a letter that has none.
DEFAULT_RANGE = Range(16, 128)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """An input: ``shape`` holds numbers and letters; integers are drawn from [0, ``below``).

    ``str()`` gives the text that :func:`parse_input` reads.
    """

    name: str
    dtype: DType
    shape: tuple[int | str, ...]
    below: int | None = None

    @property
    def letters(self) -> tuple[str, ...]:
        """The dynamic sizes, each once, in order."""
        return tuple(dict.fromkeys(size for size in self.shape if isinstance(size, str)))

    def sizes(self, by_letter: Mapping[str, int]) -> tuple[int, ...]:
        """The shape, with numbers in place of letters."""
        return tuple(by_letter[size] if isinstance(size, str) else size for size in self.shape)

    def __str__(self) -> str:
        bound = "" if self.below is None else f"<{self.below}"
        return f"{self.name}={self.dtype}[{','.join(map(str, self.shape))}]{bound}"


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs of a model in order, the range of each letter in them, and example values where given.

    ``examples`` are by name; the exported sizes are then theirs. ``notes`` are for people.
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
    """The input that a text tells. Raises ``ArgumentError``.

    >>> parse_input("ids=int64[1,L]<100").shape
    (1, 'L')
    """
    parts = _INPUT.fullmatch(text.strip())
    if parts is None:
        raise _no_input(text, "an input is told as NAME=DTYPE[SIZE,…], integers with <N after it")
    dtype = _dtype(text, parts["dtype"])
    sizes = [size.strip() for size in parts["shape"].split(",")] if parts["shape"].strip() else []
    shape = tuple(_size(text, size) for size in sizes)
    below = int(parts["below"]) if parts["below"] else None
    _check_bound(text, dtype, below)
    return InputSpec(parts["name"], dtype, shape, below)


def parse_range(text: str) -> tuple[str, Range]:
    """The letter and the range that a text tells. Raises ``ArgumentError``.

    >>> parse_range("T=16..400")
    ('T', Range(low=16, high=400))
    """
    parts = _RANGE.fullmatch(text.strip())
    if parts is None or not _LETTER.fullmatch(parts["letter"]):
        raise ArgumentError(f"range {_quoted(text)}: a range is told as LETTER=LOW..HIGH", fix=_RANGE_FIX)
    try:
        return parts["letter"], Range(int(parts["low"]), int(parts["high"]))
    except ArgumentError as error:
        raise ArgumentError(f"range {_quoted(text)}: {error.what}", fix=error.fix) from None


def check_outputs(names: Sequence[str]) -> None:
    """Raise ``ArgumentError`` where a name of an output is none, or is there twice."""
    for name in names:
        if not name or name != name.strip():
            raise ArgumentError(f"output {_quoted(name)}: that is no name", fix="such as --output wave")
        if list(names).count(name) > 1:
            raise ArgumentError(f"two outputs are called {printable(name)}", fix="another name for each")


def _quoted(text: str) -> str:
    return f"'{printable(text)}'"


def _no_input(text: str, why: str, fix: str = _INPUT_FIX) -> ArgumentError:
    return ArgumentError(f"input {_quoted(text)}: {why}", fix=fix)


def _dtype(text: str, name: str) -> DType:
    if name in _KNOWN:
        return DTYPES[name]
    if name in DTYPES:
        raise _no_input(text, f"no values of {name} can be drawn", f"one of {', '.join(_KNOWN)}")
    near = get_close_matches(name, _KNOWN, n=3)
    raise _no_input(text, f"no dtype is called {name}", f"{' or '.join(near) or ', '.join(_KNOWN)}")


def _size(text: str, size: str) -> int | str:
    if _LETTER.fullmatch(size):
        return size
    if re.fullmatch(r"\d+", size, re.ASCII) and 1 <= int(size) <= _MOST:
        return int(size)
    raise _no_input(text, f"'{printable(size)}' is no size: a number from 1 on, or a letter")


def _check_bound(text: str, dtype: DType, below: int | None) -> None:
    if dtype.name not in _INTEGERS:
        if below is not None:
            raise _no_input(text, f"{dtype} takes no bound; <N is for integers")
        return
    most = int(np.iinfo(dtype.numpy()).max) + 1
    if below is None:
        fixed = f"'{printable(text.strip())}<100' draws from 0 to 99"
        raise _no_input(text, "integers need a bound: <N draws from 0 to N-1", fixed)
    if not 1 <= below <= most:
        raise _no_input(text, f"no bound of {dtype}: {below}", f"a number from 1 to {most}")


# -- signatures


def signature_of(
    inputs: str | Iterable[Any] | Mapping[str, Any],
    ranges: Iterable[str] | Mapping[str, Range | tuple[int, int]] = (),
    *,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    names: Sequence[str] = (),
) -> Signature:
    """A signature from texts, or from example tensors (torch's or numpy's) by name or by position.

    ``names`` are those of tensors without one, by position. A tensor's sizes are fixed but for the axes
    that ``dynamic`` gives a letter (``{"mel": {2: "T"}}``); integers are drawn up to its largest. Raises
    ``ArgumentError``.

    >>> str(signature_of(["mel=float32[1,80,T]"], ["T=16..400"]).ranges["T"])
    '16..400'
    """
    given = _by_name(inputs, names)
    axes = _dynamic(dynamic or {})
    specs, examples, notes = [], {}, []
    for name, value in given:
        if isinstance(value, str):
            specs.append(parse_input(value))
            continue
        spec = _spec_of(name, value, axes.pop(name, {}))
        examples[name] = array_of(value)
        notes += (
            [f"{name}: drawn from 0 to {spec.below - 1}, the largest of the example"] if spec.below else []
        )
        specs.append(spec)
    _check_names(specs, axes)
    exported = exported_sizes(specs, examples)
    letters = {letter: None for spec in specs for letter in spec.letters}
    told = _ranges(ranges)
    for letter in told:
        if letter not in letters:
            have = f"the letters are {', '.join(letters)}" if letters else "no input has a letter"
            raise ArgumentError(f"range {letter}={told[letter]}: no input has the size {letter}", fix=have)
    for letter in letters:
        if letter not in told:
            size = exported.get(letter, DEFAULT_RANGE.low)
            told[letter] = Range(min(size, DEFAULT_RANGE.low), max(size, DEFAULT_RANGE.high))
            notes.append(f"{letter}: no range was given: {told[letter]}")
        elif letter in exported and exported[letter] not in told[letter]:
            raise ArgumentError(
                f"range {letter}={told[letter]}: the example has {letter} = {exported[letter]}",
                fix="a range that holds it, or another example",
            )
    return Signature(tuple(specs), {letter: told[letter] for letter in letters}, examples, tuple(notes))


def _dynamic(dynamic: Any) -> dict[str, dict[int, str]]:
    """The letters of examples, by name and axis, held to that form."""
    by_name = dynamic if isinstance(dynamic, Mapping) else {"": dynamic}
    for by_axis in by_name.values():
        if not isinstance(by_axis, Mapping) or not all(type(axis) is int for axis in by_axis):
            raise ArgumentError(f"dynamic: {by_axis!r:.80} gives no axis a letter", fix='{"mel": {2: "T"}}')
    return {name: dict(by_axis) for name, by_axis in by_name.items()}


def _by_name(inputs: Any, names: Sequence[str]) -> list[tuple[str, Any]]:
    """Inputs with their names; texts carry their own."""
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
        raise ArgumentError("no inputs: there is no telling what to feed the model", fix=_INPUT_FIX)
    return given


def _spec_of(name: str, value: Any, letters: Mapping[int, str]) -> InputSpec:
    """The spec of an example tensor."""
    stored = stored_tensor(name, value)
    if stored is None or stored.info.dtype.name not in _KNOWN:
        what = f"{type(value).__name__} of {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
        raise ArgumentError(f"input {name}: {what} is no tensor that can be fed", fix=_INPUT_FIX)
    dtype, shape = stored.info.dtype, stored.info.shape
    if 0 in shape:
        raise ArgumentError(f"input {name}: the example has no elements: {shape}", fix="a larger example")
    sizes: list[int | str] = list(shape)
    for axis, letter in letters.items():
        if not -len(shape) <= axis < len(shape):
            raise ArgumentError(f"input {name}: no axis {axis} in shape {shape}", fix="an axis that it has")
        if not _LETTER.fullmatch(str(letter)):
            raise ArgumentError(f"input {name}: axis {axis}: {letter!r} is no letter", fix='such as "T"')
        sizes[axis] = letter
    below = None
    if dtype.name in _INTEGERS:
        below = int(array_of(value).max()) + 1
        if below < 1:
            raise ArgumentError(f"input {name}: all integers of the example are negative", fix=_INPUT_FIX)
    return InputSpec(name, dtype, tuple(sizes), below)


def _check_names(specs: Sequence[InputSpec], unused: Mapping[str, object]) -> None:
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise ArgumentError(f"two inputs are called {printable(name)}", fix="one text for each input")
    for name in unused:
        where = "its text tells the letters" if name in names else f"the inputs are {listed(names)}"
        raise ArgumentError(f"dynamic: no example tensor is called {printable(str(name))}", fix=where)


def exported_sizes(specs: Sequence[InputSpec], examples: Mapping[str, Array]) -> dict[str, int]:
    """The size of each letter in the examples. Raises ``ArgumentError`` where it has two."""
    found: dict[str, int] = {}
    for spec in specs:
        if spec.name in examples:
            for letter, size in zip(spec.shape, examples[spec.name].shape, strict=True):
                if isinstance(letter, str) and found.setdefault(letter, size) != size:
                    raise ArgumentError(
                        f"input {spec.name}: {letter} is {size} here and {found[letter]} elsewhere",
                        fix="one letter for each size",
                    )
    return found


def _ranges(ranges: Any) -> dict[str, Range]:
    if isinstance(ranges, Mapping):
        return {
            letter: value if isinstance(value, Range) else Range(*_two(letter, value))
            for letter, value in ranges.items()
        }
    told: dict[str, Range] = {}
    for text in texts_of(ranges):
        letter, found = parse_range(text)
        if letter in told:
            raise ArgumentError(f"two ranges for {letter}: {told[letter]} and {found}", fix="one of them")
        told[letter] = found
    return told


def _two(letter: str, value: Any) -> tuple[int, int]:
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(end, int) for end in value):
        return value[0], value[1]
    raise ArgumentError(f"range of {letter}: {value!r} is no pair of numbers", fix='such as {"T": (16, 400)}')
