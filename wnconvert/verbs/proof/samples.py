"""Values that are fed to a model: drawn from a signature at several sizes, and those that are exported."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from wnconvert.errors import ArgumentError
from wnconvert.messages import printable
from wnconvert.tensors.blocks import Array
from wnconvert.verbs.proof.signatures import InputSpec, Range, Signature, exported_sizes

__all__ = ["EXPORT_SEED", "Sample", "arrays", "export_arrays", "export_sample", "samples_of"]


#: Up to so many values an input takes them in turn: at random a flag might be the same on all samples.
_FEW = 16
#: The seed of the values that are exported: none of a sample's, so that what a trace bakes in is seen.
EXPORT_SEED = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Sample:
    """One input of every kind: the seed of its values, the size of each letter, and which sample it is.

    >>> str(Sample(3, {"T": 57})), str(Sample(3, {}))
    ('T = 57', 'seed 3')
    """

    seed: int
    sizes: Mapping[str, int]
    turn: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{letter} = {size}" for letter, size in self.sizes.items()) or f"seed {self.seed}"


def export_sample(signature: Signature) -> Sample:
    """The sizes that are exported: those of the examples, else the middle of each range."""
    sizes = {letter: (span.low + span.high + 1) // 2 for letter, span in signature.ranges.items()}
    return Sample(EXPORT_SEED, sizes | exported_sizes(signature.inputs, signature.examples), -1)


def export_arrays(signature: Signature) -> dict[str, Array]:
    """The values that are exported, by input: the examples where given."""
    return arrays(signature, export_sample(signature)) | dict(signature.examples)


def samples_of(signature: Signature, count: int = 4, seed: int = 0) -> tuple[Sample, ...]:
    """Samples at sizes other than the exported ones: the lowest, the highest, then odd ones between.

    Where both ends are odd one is even, for what is wrong with padding may be wrong at every second size.
    Where a range has one size only, all are of that size. Seeds are ``seed``, ``seed + 1``, … Raises
    ``ArgumentError`` for a count or a seed that is none.

    >>> from wnconvert.verbs.proof.signatures import signature_of
    >>> [str(sample) for sample in samples_of(signature_of("x=float32[T]", ["T=16..400"]))]
    ['T = 16', 'T = 400', 'T = 253', 'T = 107']
    """
    if type(count) is not int or type(seed) is not int:
        raise ArgumentError(f"{count} samples from seed {seed}: these are no whole numbers", fix="samples=4")
    if count < 1:
        raise ArgumentError(f"{count} samples would compare nothing", fix="a number from 1 on")
    if not 0 <= seed <= EXPORT_SEED - count:
        raise ArgumentError(f"no seed: {seed}", fix=f"a number from 0 to {EXPORT_SEED - count}")
    exported = export_sample(signature).sizes
    columns = {
        letter: _spread(span, exported[letter], count, turn)
        for turn, (letter, span) in enumerate(signature.ranges.items())
    }
    return tuple(
        Sample(seed + at, {letter: sizes[at] for letter, sizes in columns.items()}, at) for at in range(count)
    )


def _spread(span: Range, exported: int, count: int, turn: int) -> list[int]:
    """Sizes of one letter: its lowest, its highest, then odd ones; other letters take other turns."""
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

    They depend on the seed and on the input's name, dtype and shape. Where an input has few values its first
    element takes them in turn. Raises ``ArgumentError`` where they do not fit in
    memory.
    """
    found = {}
    few = 0
    for spec in signature.inputs:
        shape = spec.sizes(sample.sizes)
        stream = np.random.Generator(np.random.PCG64([sample.seed, zlib.crc32(spec.name.encode())]))
        try:
            found[spec.name] = _drawn(stream, spec, shape)
        except (MemoryError, ValueError) as error:  # numpy: ValueError past what an address can hold
            size = "×".join(map(str, shape))
            what = f"input {printable(spec.name)}: {size} elements do not fit in memory"
            raise ArgumentError(what, fix="smaller sizes") from error
        below = 2 if spec.dtype.name == "bool" else spec.below
        if below is not None and 1 < below <= _FEW:
            found[spec.name].reshape(-1)[0] = _in_turn(sample, spec, below, few)
            few += 1
    return found


def _in_turn(sample: Sample, spec: InputSpec, below: int, place: int) -> int:
    """The value of an input with few values: each once in so many samples, flags in four of them.

    Three flags take all pairs of values in four samples; beyond that, who is in step with whom is random.
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
