"""Values of inputs: random samples of a signature at several sizes, the user's, those for the export."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import field

import numpy as np

from wnconvert.errors import ArgumentError
from wnconvert.frozen import dataclass
from wnconvert.messages import printable
from wnconvert.tensors.blocks import Array
from wnconvert.verbs.models.proof.inputs.texts import InputSpec, Range
from wnconvert.verbs.models.proof.inputs.values import filled
from wnconvert.verbs.models.proof.signatures import Given, Signature, exported_sizes

__all__ = ["EXPORT_SEED", "Sample", "arrays", "export_arrays", "export_sample", "samples_of"]


#: An input with at most this many values takes them in turn: a random flag might never change.
_FEW = 16
#: The seed of the exported values. No sample has it, so values that a trace bakes in are noticed.
EXPORT_SEED = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Sample:
    """A value for each input: the seed of the values, the size of each letter, and the sample's number.

    ``values`` are the user's, by input, and ``source`` says where they are from; the others are drawn.

    >>> str(Sample(3, {"T": 57})), str(Sample(3, {})), str(Sample(3, {"T": 57}, source="real.npz"))
    ('T = 57', 'seed 3', 'real.npz, T = 57')
    """

    seed: int
    sizes: Mapping[str, int]
    turn: int = 0
    values: Mapping[str, Array] = field(default_factory=dict, compare=False, repr=False)
    source: str = ""

    def __str__(self) -> str:
        sizes = ", ".join(f"{letter} = {size}" for letter, size in self.sizes.items())
        return ", ".join(filter(None, (self.source, sizes))) or f"seed {self.seed}"


def export_sample(signature: Signature) -> Sample:
    """The sizes for the export: those of the examples, or the middle of each range."""
    sizes = {letter: (span.low + span.high + 1) // 2 for letter, span in signature.ranges.items()}
    return Sample(EXPORT_SEED, sizes | exported_sizes(signature.inputs, signature.examples), -1)


def export_arrays(signature: Signature) -> dict[str, Array]:
    """The values for the export, by input: the examples, or random values."""
    return arrays(signature, export_sample(signature)) | dict(signature.examples)


def samples_of(signature: Signature, count: int = 4, seed: int = 0) -> tuple[Sample, ...]:
    """Samples at sizes other than the exported ones: the lowest, the highest, then odd ones between.

    If both ends are odd, one size is even: wrong padding may show at every second size only. If a range has
    one size only, all samples have it. The seeds are ``seed``, ``seed + 1``, … Behind these ``count`` samples
    come the examples, and the user's data. Raises ``ArgumentError`` for a count or a seed that is not valid.

    >>> from wnconvert.verbs.models.proof.signatures import signature_of
    >>> [str(sample) for sample in samples_of(signature_of("x=float32[T]", ["T=16..400"]))]
    ['T = 16', 'T = 400', 'T = 253', 'T = 107']
    """
    if type(count) is not int or type(seed) is not int:
        raise ArgumentError(
            f"{count} samples from seed {seed}: these are not whole numbers",
            fix="give whole numbers, such as samples=4",
        )
    if count < 1:
        raise ArgumentError(f"{count} samples would compare nothing", fix="give a number of 1 or more")
    most = EXPORT_SEED - count - len(signature.data) - 1
    if not 0 <= seed <= most:
        raise ArgumentError(f"{seed} is not a seed", fix=f"give a number from 0 to {most}")
    exported = export_sample(signature).sizes
    columns = {
        letter: _spread(span, exported[letter], count, turn)
        for turn, (letter, span) in enumerate(signature.ranges.items())
    }
    drawn = [
        Sample(seed + at, {letter: sizes[at] for letter, sizes in columns.items()}, at) for at in range(count)
    ]
    example = Given("the example", signature.examples, exported)
    own = (example, *signature.data) if signature.examples else signature.data
    return (
        *drawn,
        *(Sample(seed + at, each.sizes, at, each.values, each.source) for at, each in enumerate(own, count)),
    )


def _spread(span: Range, exported: int, count: int, turn: int) -> list[int]:
    """Sizes of one letter: its lowest, its highest, then odd ones, in another order for each ``turn``."""
    low = span.low + (span.low == exported)
    high = span.high - (span.high == exported)
    if low > high:
        return [exported] * count
    odd, even = (range(low + 1 + (low + parity) % 2, high, 2) for parity in (0, 1))
    if not set(odd[:2]) - {exported}:
        odd = range(low, high + 1)
    found = [low, high]
    for at in range(2, count):
        is_even = at == min(3, count - 1) and low % 2 and high % 2 and set(even[:2]) - {exported}
        inside = even if is_even else odd
        # Multiples of the golden ratio, less whole ones, spread evenly however many there are.
        place = int(((at - 1) * 0.6180339887 + turn * 0.31) % 1 * len(inside))
        turns = (inside[(place + step) % len(inside)] for step in range(min(len(inside), count + 2)))
        free = [size for size in turns if size != exported]
        found.append(next((size for size in free if size not in found), free[0]))
    return found[:count]


def arrays(signature: Signature, sample: Sample) -> dict[str, Array]:
    """The values of a sample by input: standard normal floats, uniform integers, random bools.

    They depend on the seed and on the input's name, dtype and shape; those that
    the user gave are the same. If an input has few possible values,
    its first element takes them in turn. Raises ``ArgumentError`` if they do not fit in memory.
    """
    found = {}
    few = 0
    for spec in signature.inputs:
        if spec.name in sample.values:
            found[spec.name] = sample.values[spec.name]
            continue
        shape = spec.sizes(sample.sizes)
        stream = np.random.Generator(np.random.PCG64([sample.seed, zlib.crc32(spec.name.encode())]))
        try:
            if spec.values is not None:
                found[spec.name] = filled(spec.values, spec.dtype.numpy(), shape, sample.sizes, stream)
                continue
            found[spec.name] = _drawn(stream, spec, shape)
        except (MemoryError, ValueError) as error:  # numpy: ValueError past what an address can hold
            size = "×".join(map(str, shape))
            what = f"input {printable(spec.name)}: {size} elements do not fit in memory"
            raise ArgumentError(what, fix="give smaller sizes") from error
        below = 2 if spec.dtype.name == "bool" else spec.below
        if below is not None and 1 < below <= _FEW:
            found[spec.name].reshape(-1)[0] = _in_turn(sample, spec, below, few)
            few += 1
    return found


def _in_turn(sample: Sample, spec: InputSpec, below: int, place: int) -> int:
    """The value of an input with few values: n values take turns in n samples; a flag has each twice in four.

    In four samples, any two of three flags take all four pairs of values. With more flags it is up to chance.
    """
    length = 4 if below == 2 else below
    block, at = divmod(sample.turn, length)
    first = sample.seed - sample.turn
    stream = np.random.Generator(np.random.PCG64([first, zlib.crc32(spec.name.encode()), block + 1]))
    if below > 2:
        return int(stream.permutation(below)[at])
    mask = (1, 2, 3)[place] if place < 3 else int(stream.integers(1, 4))
    return ((at & mask).bit_count() + int(stream.integers(2))) % 2


def _drawn(stream: np.random.Generator, spec: InputSpec, shape: tuple[int, ...]) -> Array:
    dtype = spec.dtype.numpy()
    if spec.below is not None:
        return np.asarray(stream.integers(0, spec.below, shape, dtype))
    if spec.dtype.name == "bool":
        return np.asarray(stream.integers(0, 2, shape, np.uint8)).astype(np.bool_)
    real = np.asarray(stream.standard_normal(shape))
    if dtype.kind == "c":
        return np.asarray(real + 1j * stream.standard_normal(shape)).astype(dtype)
    return real.astype(dtype)
