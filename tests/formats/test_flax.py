"""Files of flax, as flax wrote them (fixtures/frameworks), and as it would write others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest

from tests.helpers.golden import FIXTURES
from wnconvert.errors import FormatError
from wnconvert.formats import flax
from wnconvert.formats.flax import open_flax
from wnconvert.storage.checkpoint import Checkpoint, open_checkpoint
from wnconvert.storage.sources import Source
from wnconvert.tensors.containers import Container
from wnconvert.tensors.files import MemoryFile

FRAMEWORKS = FIXTURES / "frameworks"


def packed(array: Any, kind: str = "") -> msgpack.ExtType:
    """An array as ``flax.serialization`` packs it."""
    return msgpack.ExtType(1, msgpack.packb((array.shape, kind or array.dtype.name, array.tobytes())))


def arrays(checkpoint: Checkpoint) -> dict[str, Any]:
    """The tensors of a checkpoint as arrays."""
    with Source(checkpoint.sources) as source:
        (state,) = checkpoint.tree.state_dicts
        return {name: source.whole(tensor) for name, tensor in state.tensors.items()}


def opened(tree: object, folder: Path) -> Checkpoint:
    (folder / "in.msgpack").write_bytes(msgpack.packb(tree))
    return open_checkpoint(folder / "in.msgpack")


@pytest.mark.parametrize("name", ["flax_linen", "flax_chunked", "flax_nnx"])
def test_the_arrays_are_those_that_flax_flattens(name: str) -> None:
    checkpoint = open_checkpoint(FRAMEWORKS / f"{name}.msgpack")
    found = {key.removeprefix("params/"): value for key, value in arrays(checkpoint).items()}
    others = open_checkpoint(FRAMEWORKS / f"{name.replace('chunked', 'linen')}.safetensors")
    expected = arrays(others)
    assert checkpoint.container is Container.FLAX
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_a_train_state_is_its_parameters() -> None:
    checkpoint = open_checkpoint(FRAMEWORKS / "flax_train_state.msgpack")
    found, whole = arrays(checkpoint), arrays(open_checkpoint(FRAMEWORKS / "flax_linen.msgpack"))
    assert {f"params/{key}" for key in whole} == found.keys()
    for key, value in whole.items():
        assert np.array_equal(found[f"params/{key}"], value.astype(ml_dtypes.bfloat16))
    assert checkpoint.tree.notes == (
        "states of optimizers are left out: opt_state",
        "values that are not arrays are left out: step (int)",
    )


@pytest.mark.parametrize(
    "kind", ["float64", "float32", "float16", "bfloat16", "int8", "uint16", "int64", "bool", "float8_e4m3fn"]
)
def test_every_dtype_is_read(kind: str, tmp_path: Path) -> None:
    array = np.arange(6).reshape(2, 3).astype(getattr(ml_dtypes, kind, kind))
    (state,) = opened({"w": packed(array), "x": packed(array[0])}, tmp_path).tree.state_dicts
    assert [(str(entry.info.dtype), entry.info.shape) for entry in state.tensors.values()] == [
        (kind, (2, 3)),
        (kind, (3,)),
    ]


def test_what_is_nested_is_joined_and_what_is_no_array_is_said(tmp_path: Path) -> None:
    one = packed(np.ones(1, np.float32))
    tree = {
        "layers": [{"w": one}, {"w": one, 7: one}],
        "scalar": msgpack.ExtType(3, msgpack.packb(((), "float32", bytes(4)))),
        "opt_state": {"0": {"mu": {"w": one}}, "optimizer": [one, None]},
        **dict(zip("abcdefg", [1, 2.0, True, None, "text", b"12", msgpack.ExtType(2, b"x")], strict=True)),
    }
    checkpoint = opened(tree, tmp_path)
    assert [*checkpoint.tree.state_dict("").tensors] == ["layers/0/w", "layers/1/w", "layers/1/7", "scalar"]
    assert checkpoint.tree.notes[1].endswith(
        "a (int), b (float), c (bool), d (nothing), e (str), f (bytes) and 1 more"
    )


def test_a_file_of_small_values_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    one = packed(np.ones(1, np.float32))
    monkeypatch.setattr(flax, "_MOST_VALUES", 1000)
    many = MemoryFile(msgpack.packb({"a": one, "b": [0] * 2000}))
    with pytest.raises(FormatError, match="far more values than arrays"):
        open_flax(many)
    assert open_flax(MemoryFile(msgpack.packb({str(at): one for at in range(2000)}))).tree.state_dicts
    monkeypatch.setattr(flax, "_MOST_NAMED", 1000)
    long = {"x" * 2000: {f"{at:03}": one for at in range(900)}}  # names of a few bytes become long ones
    with pytest.raises(FormatError, match="names take more"):
        open_flax(MemoryFile(msgpack.packb(long)))


def test_nothing_of_an_array_is_read_before_it_is_asked_for() -> None:
    asked = 0

    class Counting(MemoryFile):
        def read(self, at: int, size: int, /) -> bytes:
            nonlocal asked
            asked += size
            return super().read(at, size)

    big = packed(np.zeros(1 << 18, np.float32))
    tree = open_flax(Counting(msgpack.packb({str(at): big for at in range(8)}))).tree
    assert len(tree.state_dict("").entries) == 8
    assert asked < 100_000
