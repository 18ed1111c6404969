"""Tensors that lie in chunks, read as if they lay in one piece."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from wnconvert.errors import FormatError
from wnconvert.tensors.files import MemoryFile
from wnconvert.tensors.tree import ByteRange
from wnconvert.tensors.views.assembled import Assembled, Chunk, Held


class Counted(MemoryFile):
    """A file that remembers how much was asked for at once."""

    most = 0

    def read(self, at: int, size: int, /) -> bytes:
        self.most = max(self.most, size)
        return super().read(at, size)


def cut(size: int, chance: random.Random) -> list[tuple[int, int]]:
    """An axis in up to four pieces: where each begins, and its size."""
    ends = sorted({*chance.sample(range(1, size), min(chance.randrange(4), size - 1)), size})
    return [(start, end - start) for start, end in zip([0, *ends], ends, strict=False)]


def in_chunks(
    whole: np.ndarray[tuple[int, ...], np.dtype[np.uint16]], seed: int
) -> tuple[Assembled, list[Counted]]:
    """A tensor cut along every axis, its chunks in no order, in two files."""
    chance = random.Random(seed)
    files = [bytearray(b"head"), bytearray(b"other head")]
    chunks = []
    boxes = list(itertools.product(*(cut(size, chance) for size in whole.shape)))
    for box in chance.sample(boxes, len(boxes)):
        part = whole[tuple(slice(start, start + size) for start, size in box)]
        which = chance.randrange(2)
        data = ByteRange(len(files[which]), part.nbytes, which)
        files[which] += part.tobytes()
        chunks.append(Chunk(tuple(start for start, _ in box), tuple(size for _, size in box), data))
    made = Assembled(whole.shape, whole.itemsize, tuple(chunks))
    return made, [Counted(bytes(file)) for file in files]


@pytest.mark.parametrize("shape", [(), (1,), (17,), (9, 5), (4, 6, 3), (2, 3, 4, 5), (3, 40, 50)])
def test_chunks_of_every_cut_are_read_as_the_whole(shape: tuple[int, ...]) -> None:
    for seed in range(12):
        whole = np.random.default_rng(seed).integers(0, 1 << 16, shape, np.uint16)
        made, files = in_chunks(whole, seed)
        opened, content = made.over(files), whole.tobytes()
        assert opened.size == len(content)
        assert opened.read(0, len(content)) == content
        chance = random.Random(seed)
        for _ in range(10):
            start, end = sorted(chance.choices(range(len(content) + 1), k=2))
            assert opened.read(start, end - start) == content[start:end]


def test_a_block_is_put_together_of_no_more_than_it_needs() -> None:
    whole = np.arange(1 << 20, dtype=np.uint16).reshape(64, -1)
    made, files = in_chunks(whole, 3)
    assert len(made.chunks) > 1
    assert made.over(files).read(4096, 1 << 18) == whole.tobytes()[4096:][: 1 << 18]
    assert 0 < max(file.most for file in files) <= 1 << 16


def test_nothing_is_read_behind_the_end() -> None:
    made, files = in_chunks(np.zeros((3, 3), np.uint16), 0)
    with pytest.raises(FormatError):
        made.over(files).read(10, 9)


def test_an_element_that_no_chunk_has_is_an_error_and_no_memory_of_others() -> None:
    made = Assembled((2, 2), 1, (Chunk((0, 0), (1, 2), ByteRange(0, 2)),))
    with pytest.raises(FormatError):
        made.over([MemoryFile(b"ab")]).read(0, 4)


def test_bytes_in_memory_are_a_file() -> None:
    assert Held(b"abc").over([]).read(1, 2) == b"bc"
