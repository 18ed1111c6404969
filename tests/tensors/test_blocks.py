"""How tensors are cut into blocks."""

from __future__ import annotations

import math

import pytest

from tests.helpers.arrays import DIMS
from wnconvert.tensors.blocks import blocks


@pytest.mark.parametrize("limit", [1, 8, 40, 64, 100, 1 << 20])
@pytest.mark.parametrize(("dim", "shape"), [*DIMS, (0, (1, 1)), (None, ()), (0, (7,)), (1, (5, 7))])
def test_blocks_cover_the_memory_in_order_and_keep_to_the_limit(
    dim: int | None, shape: tuple[int, ...], limit: int
) -> None:
    cut = list(blocks(shape, dim, 4, limit))
    assert [block.start for block in cut] == [0, *(block.stop for block in cut[:-1])]
    assert cut[-1].stop == math.prod(shape)
    assert all(math.prod(block.shape) * 4 <= max(limit, 4) for block in cut)


def test_blocks_are_whole_slabs_then_rows_then_pieces_of_a_row() -> None:
    assert [block.shape for block in blocks((4, 3, 2), 1, 4, 48)] == [(2, 3, 2), (2, 3, 2)]
    assert [(b.shape, b.row) for b in blocks((1, 3, 2), 1, 4, 16)] == [((1, 2, 2), 0), ((1, 1, 2), 2)]
    assert [(b.shape, b.row) for b in blocks((2, 3), 0, 4, 8)] == [
        ((1, 1, 2), 0),
        ((1, 1, 1), 0),
        ((1, 1, 2), 1),
        ((1, 1, 1), 1),
    ]


def test_an_empty_tensor_has_no_blocks() -> None:
    assert list(blocks((0, 3), 0, 4)) == list(blocks((3, 0), 0, 4)) == list(blocks((2, 0, 3), 1, 4)) == []
