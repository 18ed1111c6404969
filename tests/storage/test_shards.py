"""Which tensors go into which shard: lists of numbers, no files."""

from __future__ import annotations

from itertools import pairwise

import pytest
from huggingface_hub import split_state_dict_into_shards_factory
from hypothesis import given
from hypothesis import strategies as st

from wnconvert.errors import ArgumentError
from wnconvert.storage.shards import Naming, bytes_of, into_shards

SIZES = st.lists(st.integers(0, 40), max_size=30)


def cut(sizes: list[int], most: int) -> list[list[int]]:
    """The sizes of each shard, of tensors that share nothing."""
    items = [(str(at), size, at) for at, size in enumerate(sizes)]
    return [[sizes[int(name)] for name in shard.names] for shard in into_shards(items, most)]


@pytest.mark.parametrize(
    ("sizes", "shards"),
    [
        ([], [[]]),
        ([0], [[0]]),
        ([10], [[10]]),
        ([5, 5], [[5, 5]]),
        ([5, 6], [[5], [6]]),
        ([6, 6, 2, 6, 2, 2], [[6], [6, 2], [6, 2, 2]]),
        ([11], [[11]]),
        ([1, 11, 1], [[1], [11], [1]]),
        ([11, 0], [[11], [0]]),
        ([10, 0, 0], [[10, 0, 0]]),
    ],
)
def test_tensors_fill_a_shard_until_the_next_has_no_room(sizes: list[int], shards: list[list[int]]) -> None:
    assert cut(sizes, 10) == shards


@given(SIZES, st.integers(1, 50))
def test_no_tensor_is_lost_or_moved_and_no_shard_is_larger_than_it_must_be(
    sizes: list[int], most: int
) -> None:
    shards = cut(sizes, most)
    assert [size for shard in shards for size in shard] == sizes
    assert all(sum(shard) <= most or len([size for size in shard if size]) == 1 for shard in shards)
    assert all(sum(shard) + after[0] > most for shard, after in pairwise(shards))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(20, 50))
def test_where_every_tensor_fits_a_shard_they_are_those_of_huggingface_hub(
    sizes: list[int], most: int
) -> None:
    theirs = split_state_dict_into_shards_factory(
        {str(at): size for at, size in enumerate(sizes)},
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=most,
    )
    ours = into_shards([(str(at), size, at) for at, size in enumerate(sizes)], most)
    names = Naming("model", "safetensors").shards(len(ours))
    assert {name: list(shard.names) for name, shard in zip(names, ours, strict=True)} == (
        theirs.filename_to_tensors
    )
    assert sum(shard.size for shard in ours) == theirs.metadata["total_size"]


def test_what_lies_in_one_storage_stays_together_and_counts_once() -> None:
    items = [("a", 6, "x"), ("b", 3, "y"), ("c", 6, "x"), ("d", 1, "z")]
    (first, second) = into_shards(items, 9)
    assert (first.names, first.size) == (("a", "c", "b"), 9)
    assert (second.names, second.size) == (("d",), 1)
    apart = into_shards([(name, size, name) for name, size, _ in items], 9)
    assert [shard.names for shard in apart] == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("5gb", 5 * 10**9),
        (" 5 GB ", 5 * 10**9),
        ("1TB", 10**12),
        ("0.5KB", 500),
        ("2GiB", 2 << 30),
        ("2Gi", 2 << 30),
        ("3M", 3 * 10**6),
        ("7", 7),
        ("7B", 7),
        ("9007199254740993", 9007199254740993),
        (1, 1),
    ],
)
def test_sizes_are_read_as_they_are_said(text: str | int, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "GB", "5XB", "-5GB", "5 5GB", "0", "0GB", "0.1B", "1e9", "nan", "5GBs", "\uff15GB", "5iB", -1],
)
def test_what_is_no_size_is_an_argument_error(text: str | int) -> None:
    with pytest.raises(ArgumentError, match="is not a size for a shard") as caught:
        bytes_of(text)
    assert "--max-shard-size 5GB" in caught.value.fix


@pytest.mark.parametrize(
    ("naming", "index", "one", "two"),
    [
        (
            Naming("model", "safetensors"),
            "model.safetensors.index.json",
            "model.safetensors",
            "model-00002-of-00002.safetensors",
        ),
        (
            Naming("pytorch_model", "bin"),
            "pytorch_model.bin.index.json",
            "pytorch_model.bin",
            "pytorch_model-00002-of-00002.bin",
        ),
        (
            Naming("diffusion_pytorch_model", "safetensors", "fp16"),
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            "diffusion_pytorch_model.fp16.safetensors",
            "diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
        ),
    ],
)
def test_files_are_called_as_the_hub_calls_them(naming: Naming, index: str, one: str, two: str) -> None:
    assert (naming.index, naming.shards(1), naming.shards(2)[1]) == (index, (one,), two)
    assert Naming.of_index(index) == naming
    assert naming.is_shard(two)
    assert not naming.is_shard(one)
    assert not naming.is_shard(two + "x")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "index.json", "model.gguf.index.json", ".bin.index.json", "config.json"]
)
def test_other_files_are_no_index(name: str) -> None:
    assert Naming.of_index(name) is None


def test_more_shards_than_five_digits_count_still_have_names_of_their_own() -> None:
    names = Naming("model", "bin").shards(100_001)
    assert names[0] == "model-00001-of-100001.bin"
    assert len(set(names)) == 100_001
    assert all(map(Naming("model", "bin").is_shard, (names[0], names[-1])))
