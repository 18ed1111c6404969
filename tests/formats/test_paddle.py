"""Files of Paddle, as it wrote them (fixtures/frameworks), and pickles as it would write others."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.formats.test_flax import FRAMEWORKS, arrays
from wnconvert import fold_file
from wnconvert.errors import FormatError, InputError
from wnconvert.formats.paddle import open_paddle
from wnconvert.formats.pickle.skimming import load_skimmed
from wnconvert.storage.checkpoint import Checkpoint, open_checkpoint
from wnconvert.tensors.containers import Container
from wnconvert.tensors.files import MemoryFile
from wnconvert.tensors.tree import ByteRange
from wnconvert.tensors.views.assembled import Decoded

FILES = ("paddle", "paddle_protocol2", "paddle_nested", "paddle_bf16")


def opened(tree: object, folder: Path, protocol: int = 4) -> Checkpoint:
    (folder / "in.pdparams").write_bytes(pickle.dumps(tree, protocol))
    return open_checkpoint(folder / "in.pdparams")


def unpickled(name: str) -> dict[str, Any]:
    """What Python's own pickle reads, as paddle.load would give it."""
    found = pickle.loads((FRAMEWORKS / f"{name}.pdparams").read_bytes())
    if "generator" in found:
        found = {key: value[1] for key, value in found["generator"].items()}
    found = {key: value for key, value in found.items() if "@@" not in key}
    return {
        key: value.view(ml_dtypes.bfloat16) if value.dtype == np.uint16 else value
        for key, value in found.items()
    }


@pytest.mark.parametrize("name", FILES)
def test_the_arrays_are_those_that_pickle_reads(name: str) -> None:
    checkpoint = open_checkpoint(FRAMEWORKS / f"{name}.pdparams")
    found, expected = arrays(checkpoint), unpickled(name)
    assert checkpoint.container is Container.PADDLE
    assert [*found] == [*expected]
    assert all(found[key].dtype == expected[key].dtype for key in found)
    assert all(np.array_equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize("name", FILES[:3])
@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pt"])
def test_the_folded_weights_are_those_of_paddle(name: str, suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"out.{suffix}"
    fold_file(FRAMEWORKS / f"{name}.pdparams", out)
    found = arrays(open_checkpoint(out))
    with np.load(FRAMEWORKS / "paddle.expected.npz") as expected:
        weights = {
            key.removeprefix("weight:"): expected[key] for key in expected if key.startswith("weight:")
        }
    assert len(weights) == 5
    for key, weight in weights.items():
        np.testing.assert_allclose(found[key.removesuffix("_v")], weight, rtol=4e-7)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_every_protocol_and_order_are_read(protocol: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-128, 128, (3, 5)).astype(np.float32)
    tree: dict[str, Any] = {
        "w": values,
        "turned": np.asfortranarray(values),
        "cut": values[:, ::2],
        "none": values[:0],
        "one": np.asarray(3, np.float32),
        "bits": np.arange(256, dtype=np.uint8),
        "wide": values.astype(np.float64),
    }
    found = arrays(opened({**tree, "StructuredToParameterName@@": {"w": "w_0"}}, tmp_path, protocol))
    kept = {key: value for key, value in tree.items() if key != "bits"}
    assert [*found] == [*tree]
    assert all(np.array_equal(found[key], kept[key]) for key in kept)
    assert found["bits"].tobytes() == tree["bits"].tobytes()


def test_slices_are_put_together(tmp_path: Path) -> None:
    whole = np.arange(35, dtype=np.float32)
    parts = {f"w@@.{at}": whole[10 * at : 10 * at + 10] for at in range(4)}
    how = {"w": {"OriginShape": (5, 7), "slices": [*parts]}}
    for protocol in (2, 4):
        tree = {"b": np.ones(2), **parts, "UnpackBigParamInfor@@": how}
        found = arrays(opened(tree, tmp_path, protocol))
        assert [*found] == ["b", "w"]
        assert np.array_equal(found["w"], whole.reshape(5, 7))


class Called:
    """Pickled as a call."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def test_tensors_of_paddle_are_arrays_and_nothing_is_called(tmp_path: Path) -> None:
    array, wrong = np.ones(2, np.float32), tmp_path / "made"
    tree = {
        "a": Called(tuple, ("linear_0.w_0", array)),
        "b": Called(eval, "data", {"data": array}),
        "c": Called(eval, f"open({os.fspath(wrong)!r}, 'w')"),
        "d": Called(os.mkdir, os.fspath(wrong)),
    }
    checkpoint = opened(tree, tmp_path)
    assert [*checkpoint.tree.state_dict("").tensors] == ["a", "b"]
    assert "builtins.eval" in checkpoint.tree.notes[0]
    assert not wrong.exists()


def test_state_dicts_are_found_where_they_lie(tmp_path: Path) -> None:
    state = OrderedDict(w=np.ones((2, 2), np.float32))
    tree = {"net": state, "more": {"ema": dict(state)}, "epoch": 3, "names": ["a"]}
    checkpoint = opened(tree, tmp_path)
    assert [state.path for state in checkpoint.tree.state_dicts] == ["net", "more.ema"]
    assert checkpoint.tree.notes == ("what is no array of a state dict is left out: epoch, names",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_other_pickles_are_called_so(protocol: int, tmp_path: Path) -> None:
    of_objects = {"net": {"w": np.array([None, {}])}}
    for tree in ({"a": 1}, [1, 2], {"a": b"x" * 100}, np.ones(3), "a text", of_objects):
        with pytest.raises(InputError, match="a plain pickle"):
            opened(tree, tmp_path, protocol)


def test_nothing_of_an_array_is_read_before_it_is_asked_for() -> None:
    asked = 0

    class Counting(MemoryFile):
        def read(self, at: int, size: int, /) -> bytes:
            nonlocal asked
            asked += size
            return super().read(at, size)

    big = {str(at): np.zeros(1 << 18, np.float32) + at for at in range(8)}
    for protocol in (2, 4):
        found = open_paddle(Counting(pickle.dumps(big, protocol)))
        assert len(found.tree.state_dict("").entries) == 8
    assert asked < 300_000


@pytest.mark.full
@pytest.mark.parametrize("protocol", range(2, 6))
def test_many_arrays_are_no_attack(protocol: int) -> None:
    tree = {f"layer.{at}": np.zeros(1, np.float32) + at for at in range(60_000)}
    found = open_paddle(MemoryFile(pickle.dumps(tree, protocol)))
    assert len(found.tree.state_dict("").entries) == 60_000


def test_a_pickle_of_arrays_that_is_not_paddles_keeps_its_dtypes_and_says_what_is_no_array(
    tmp_path: Path,
) -> None:
    there = {"w": np.arange(6, dtype=np.uint16), "x": np.ones(3, np.float32), "n": np.float32(3)}
    (path := tmp_path / "p.pkl").write_bytes(pickle.dumps(there, protocol=4))
    tree = open_checkpoint(path).tree
    assert {name: str(each.info.dtype) for name, each in tree.state_dict("").tensors.items()} == {
        "w": "uint16",
        "x": "float32",
    }
    assert tree.notes == ("what is no array of a state dict is left out: n",)


@given(st.binary(max_size=60))
@example(data=b"\x96" + bytes(7) + b"\x80")  # BYTEARRAY8 of 2**63 bytes
def test_any_bytes_are_a_pickle_or_refused(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        load_skimmed(MemoryFile(b"\x80\x02" + data))


@given(st.binary(max_size=300), st.data())
def test_a_text_is_the_bytes_that_it_spells(data: bytes, chance: st.DataObject) -> None:
    text = data.decode("latin-1").encode()
    view = Decoded(ByteRange(3, len(text)), len(data)).over([MemoryFile(b"abc" + text + b"d")])
    for _ in range(4):
        at = chance.draw(st.integers(0, len(data)))
        size = chance.draw(st.integers(0, len(data) - at))
        assert view.read(at, size) == data[at : at + size]


def test_a_long_text_is_read_from_any_place() -> None:
    data = np.random.default_rng(1).integers(0, 256, 700_001).astype(np.uint8).tobytes()
    text = data.decode("latin-1").encode()
    view = Decoded(ByteRange(0, len(text)), len(data)).over([MemoryFile(text)])
    for at, size in ((600_000, 5), (0, 9), (65_535, 3), (131_071, 200_000), (699_999, 2), (0, len(data))):
        assert view.read(at, size) == data[at : at + size]


@pytest.mark.parametrize("text", ["abc", "abcde", "abcÄ", "ab\u0416d", b"abc\xc3", b"ab\xff\xff"])
def test_a_text_of_other_bytes_is_refused(text: str | bytes) -> None:
    content = text if isinstance(text, bytes) else text.encode()
    view = Decoded(ByteRange(0, len(content)), 4).over([MemoryFile(content)])
    if text == "abcÄ":
        assert view.read(0, 4) == b"abc\xc4"
        return
    with pytest.raises(FormatError, match="the text of an array"):
        view.read(0, 4)
