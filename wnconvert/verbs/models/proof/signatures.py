"""All inputs of a model: names, dtypes and shapes, ranges of sizes, examples, the user's data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import Any, TypeAlias

import numpy as np

from wnconvert.errors import ArgumentError
from wnconvert.frozen import dataclass
from wnconvert.messages import listed, printable
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.memory import array_of, stored_tensor
from wnconvert.verbs.models.proof.inputs.files import arrays_in
from wnconvert.verbs.models.proof.inputs.texts import (
    DEFAULT_RANGE,
    FEEDABLE,
    INPUT_FIX,
    InputSpec,
    Range,
    is_letter,
    named_file,
    parse_form,
    parse_input,
    parse_range,
    port_names,
)
from wnconvert.verbs.models.proof.inputs.values import Tied
from wnconvert.verbs.shared.selections import texts_of

__all__ = ["Data", "Given", "Signature", "exported_sizes", "ranges_of", "signature_from", "signature_of"]


#: The user's own inputs: a file of arrays, or arrays by name.
Data: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Given:
    """Values of the user's to prove on, by input: where they are from, and the size of each letter."""

    source: str
    values: Mapping[str, Array] = field(compare=False, repr=False)
    sizes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs of a model in order, the range of each letter in them, and example values if there are any.

    ``examples`` are by input, and set the exported sizes; ``data`` is what else the user has. ``notes`` are
    for the user.
    """

    inputs: tuple[InputSpec, ...]
    ranges: Mapping[str, Range]
    examples: Mapping[str, Array] = field(default_factory=dict, compare=False, repr=False)
    notes: tuple[str, ...] = ()
    data: tuple[Given, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return tuple(spec.name for spec in self.inputs)

    def in_order(self, names: Sequence[str]) -> Signature:
        """The same with its inputs in the order in which a model takes them; others come last."""
        order = {name: at for at, name in enumerate(names)}
        ordered = sorted(self.inputs, key=lambda spec: order.get(spec.name, len(order)))
        return replace(self, inputs=tuple(ordered))


# -- signatures


def signature_of(
    inputs: str | Iterable[Any] | Mapping[str, Any],
    ranges: Iterable[str] | Mapping[str, Range | tuple[int, int]] = (),
    *,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    names: Sequence[str] = (),
    data: Iterable[Any] = (),
) -> Signature:
    """Make a signature from texts, or from example tensors (of torch or numpy) by name or by position.

    ``names`` are for tensors that come by position. The sizes of a tensor are fixed, except for axes that
    ``dynamic`` gives a letter (``{"mel": {2: "T"}}``); integers are drawn up to its largest. ``data`` are
    files of arrays, or mappings from inputs to arrays, each a sample. Raises ``ArgumentError``, and
    ``InputError`` for a file that does not have what it should.

    >>> str(signature_of(["mel=float32[1,80,T]"], ["T=16..400"]).ranges["T"])
    '16..400'
    """
    given = _by_name(inputs, names)
    axes = _dynamic(dynamic or {})
    specs: list[InputSpec] = []
    examples: dict[str, Array] = {}
    notes: list[str] = []
    for key, value in given:
        spec, example = _from_text(value) if isinstance(value, str) else _from_example(key, value, axes)
        specs.append(spec)
        if example is not None:
            examples[spec.name] = example
            drawn = f"{spec.name}: drawn from 0 to {(spec.below or 1) - 1}, the largest of the example"
            notes += [drawn] if spec.below else []
    _check_names(specs, axes)
    return signature_from(specs, ranges, examples=examples, data=data, notes=notes)


def signature_from(
    specs: Sequence[InputSpec],
    ranges: Iterable[str] | Mapping[str, Range | tuple[int, int]] = (),
    *,
    examples: Mapping[str, Array] | None = None,
    data: Iterable[Any] = (),
    notes: Iterable[str] = (),
) -> Signature:
    """Make a signature of inputs that are known; all else is as for ``signature_of``.

    >>> from wnconvert.tensors.dtypes import DTYPES
    >>> found = signature_from([InputSpec("input:0", DTYPES["float32"], (1, "T"))], {"T": (8, 9)})
    >>> found.names, str(found.ranges["T"])
    (('input:0',), '8..9')
    """
    own, said = dict(examples or {}), list(notes)
    spans = _spans(specs, ranges_of(ranges), exported_sizes(specs, own), said)
    _check_tied(specs, spans)
    said += [
        f"{spec.name}: {spec.values} on all samples, and proven for that alone"
        for spec in specs
        if spec.is_given
    ]
    signature = Signature(tuple(specs), spans, own, tuple(said))
    return replace(
        signature, data=tuple(_given(signature, each, at) for at, each in enumerate(_listed(data), 1))
    )


def _from_text(text: str) -> tuple[InputSpec, Array | None]:
    """An input from its text, and the example in the file that it names."""
    head, path = named_file(text)
    if not path:
        return parse_input(text), None
    if "=" not in head:
        name, port = port_names(head)
        example = arrays_in(path, {each: name for each in (port, name) if each}, [name])[name]
        return replace(_spec_of(name, example, {}), port=port), example
    spec = parse_form(head)
    if spec.values is not None:
        raise ArgumentError(f"input {spec.name}: values and a file are given", fix="give one of them")
    example = arrays_in(path, {spec.called: spec.name, spec.name: spec.name}, [spec.name])[spec.name]
    _check_form(spec, example, path)
    return replace(spec, below=spec.below or _below(spec.name, example)), example


def _from_example(key: str, value: Any, axes: dict[str, dict[int, str]]) -> tuple[InputSpec, Array]:
    """An input from an example tensor; its letters are taken out of ``axes``."""
    name, port = port_names(key)
    spec = replace(_spec_of(name, value, axes.pop(name, {})), port=port)
    return spec, array_of(value)


def _spans(
    specs: Sequence[InputSpec], given: Mapping[str, Range], exported: Mapping[str, int], notes: list[str]
) -> dict[str, Range]:
    """The range of each letter, in the order of the letters; notes say which are not the user's."""
    letters = {letter: None for spec in specs for letter in spec.letters}
    spans = dict(given)
    for letter, span in spans.items():
        if letter not in letters:
            have = f"the letters are {', '.join(letters)}" if letters else "no input has a letter"
            raise ArgumentError(f"range {letter}={span}: no input has the size {letter}", fix=have)
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
    return {letter: spans[letter] for letter in letters}


def _check_tied(specs: Sequence[InputSpec], spans: Mapping[str, Range]) -> None:
    """Raise ``ArgumentError`` for an input tied to a letter that has no size, or too large a one."""
    for spec in specs:
        if not isinstance(spec.values, Tied):
            continue
        letter = spec.values.letter
        if letter not in spans:
            have = f"the letters are {', '.join(spans)}" if spans else "no input has a letter"
            raise ArgumentError(f"input '{printable(str(spec))}': no input has the size {letter}", fix=have)
        dtype = spec.dtype.numpy()
        most = np.iinfo(dtype).max if dtype.kind in "iu" else None
        if most is not None and spans[letter].high > most:
            said = f"{letter} may be {spans[letter].high}, and {dtype} ends at {most}"
            raise ArgumentError(
                f"input '{printable(str(spec))}': {said}",
                fix="give a wider dtype, or a smaller range",
            )


# -- data


def _listed(data: Any) -> list[Any]:
    return [data] if isinstance(data, (str, os.PathLike, Mapping)) else list(data)


def _given(signature: Signature, data: Any, at: int) -> Given:
    """One sample of the user's. Raises ``ArgumentError`` where an array does not fit its input."""
    names = {name: spec.name for spec in signature.inputs for name in (spec.called, spec.name)}
    needed = [spec.name for spec in signature.inputs if not spec.is_given]
    if isinstance(data, Mapping):
        source = f"data {at}"
        other = [str(name) for name in data if name not in names]
        lacking = [name for name in needed if name not in {names.get(each) for each in data}]
        if other or lacking:
            what = (
                f"no input is called {listed(other)}" if other else f"the input {listed(lacking)} is lacking"
            )
            raise ArgumentError(f"{source}: {what}", fix=f"the inputs are {listed(signature.names)}")
        values = {names[name]: array_of(value) for name, value in data.items()}
    else:
        source = os.fspath(data)
        values = arrays_in(data, names, needed)
    sizes: dict[str, int] = {}
    for spec in signature.inputs:
        if spec.name in values:
            _check_form(spec, values[spec.name], source)
            sizes = _sizes_in(spec, values[spec.name], sizes, source)
    for letter, span in signature.ranges.items():
        if letter not in sizes:
            raise ArgumentError(f"{source}: no array in it has the size {letter}", fix="give one that has it")
        if sizes[letter] not in span:
            raise ArgumentError(
                f"{source}: {letter} is {sizes[letter]}, and the range is {span}",
                fix=f"give --range {letter}={min(span.low, sizes[letter])}..{max(span.high, sizes[letter])}",
            )
    return Given(source, values, sizes)


def _check_form(spec: InputSpec, array: Array, source: str) -> None:
    """Raise ``ArgumentError`` if an array has another dtype or shape than its input."""
    fits = (
        len(array.shape) == len(spec.shape)
        and array.size
        and all(
            isinstance(size, str) or size == its for size, its in zip(spec.shape, array.shape, strict=True)
        )
    )
    if array.dtype != spec.dtype.numpy() or not fits:
        its = f"{array.dtype}[{','.join(map(str, array.shape))}]"
        wanted = f"{spec.dtype}[{','.join(map(str, spec.shape))}]"
        raise ArgumentError(
            f"{source}: {printable(spec.name)} is {its}, and the input is {wanted}",
            fix="give an array of that dtype and shape, or another --input",
        )


def _sizes_in(spec: InputSpec, array: Array, known: Mapping[str, int], source: str) -> dict[str, int]:
    found = dict(known)
    for letter, size in zip(spec.shape, array.shape, strict=True):
        if isinstance(letter, str) and found.setdefault(letter, size) != size:
            raise ArgumentError(
                f"{source}: {letter} is {size} of {printable(spec.name)} and {found[letter]} elsewhere",
                fix="give each size its own letter",
            )
    return found


# -- parts


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
        raise ArgumentError("no inputs are given", fix=INPUT_FIX)
    return given


def _spec_of(name: str, value: Any, letters: Mapping[int, str]) -> InputSpec:
    """The input that an example tensor stands for."""
    stored = stored_tensor(name, value)
    if stored is None or stored.info.dtype.name not in FEEDABLE:
        what = f"{type(value).__name__} of {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
        raise ArgumentError(f"input {name}: {what} is not a tensor that can be fed", fix=INPUT_FIX)
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
        if not is_letter(str(letter)):
            raise ArgumentError(
                f"input {name}: axis {axis}: {letter!r} is not a letter", fix='give a letter, such as "T"'
            )
        sizes[axis] = letter
    return InputSpec(name, dtype, tuple(sizes), _below(name, array_of(value)))


def _below(name: str, example: Array) -> int | None:
    """The bound of integers like those of an example; None of other numbers."""
    if example.dtype.kind not in "iu":
        return None
    below = int(example.max()) + 1
    if below < 1:
        raise ArgumentError(f"input {name}: all integers of the example are negative", fix=INPUT_FIX)
    return below


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


def ranges_of(ranges: Any) -> dict[str, Range]:
    """Ranges by their letters, from texts or pairs of numbers. Raises ``ArgumentError``."""
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
