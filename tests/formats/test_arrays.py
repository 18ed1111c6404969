"""NumPy arrays that torch.save pickled: a state dict of them is folded, and they stay arrays."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.helpers.bad_files import rezipped, saved
from tests.helpers.runner import Runner, refused
from tests.helpers.states import output_of
from wnconvert import compare_files, fold_file, inspect_file, migrate_file, split_file
from wnconvert.errors import FormatError, NumbersError
from wnconvert.formats.pickle.reader import load
from wnconvert.formats.torch.arrays import read_array
from wnconvert.storage.checkpoint import open_checkpoint

Arrays = dict[str, Any]


def pair(rows: int = 5, *more: int, name: str = "a.weight", kind: str = "f4") -> Arrays:
    rng = np.random.default_rng(rows)
    shape = (rows, *(more or (4, 3)))
    g = rng.uniform(0.5, 1.5, (rows, *[1] * (len(shape) - 1))).astype(kind)
    return {f"{name}_g": g, f"{name}_v": rng.standard_normal(shape).astype(kind)}


def exact(state: Mapping[str, Any], name: str = "a.weight") -> Any:
    g, v = (np.asarray(state[f"{name}_{half}"], np.float64) for half in "gv")
    return g * v / np.sqrt((v**2).sum(tuple(range(1, v.ndim)), keepdims=True))


def read(path: Path) -> Any:
    return torch.load(path, weights_only=False)


def folded(state: object, folder: Path, *, save: Mapping[str, Any] = {}, **options: Any) -> Any:
    source = saved(state, folder, **save)
    return read(output_of(fold_file(source, folder / "out.pt", force=True, **options)))


def is_same(one: Any, two: Any) -> bool:
    """Arrays that are equal in class, dtype, order of axes, and bytes."""
    return (
        (type(one), one.dtype, one.shape) == (type(two), two.dtype, two.shape)
        and one.strides == two.strides
        and one.tobytes() == two.tobytes()
    )


OTHERS: Arrays = {
    "bias": np.arange(5, dtype="f4"),
    "whole": np.arange(6).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "turned": np.arange(24, dtype="f2").reshape(2, 3, 4).transpose(1, 0, 2),
    "stepped": np.arange(12, dtype="u1")[::3],
    "scalar": np.array(2.5, dtype="f4"),
    "empty": np.empty((0, 3), "f4"),
    "truth": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "brain": np.ones(3, ml_dtypes.bfloat16),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("as_zip", [True, False])
def test_arrays_of_every_protocol_are_folded_and_stay_arrays(
    protocol: int, as_zip: bool, tmp_path: Path
) -> None:
    state = {**pair(), **OTHERS, "epoch": 3}
    save = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": as_zip}
    made = folded(state, tmp_path, save=save, verify=True)
    assert list(made) == ["a.weight", *OTHERS, "epoch"]
    assert type(made["a.weight"]) is np.ndarray
    assert made["a.weight"].dtype == np.float32
    assert np.allclose(made["a.weight"], exact(state), rtol=2e-7, atol=0)
    wanted = read(tmp_path / "in.pt")
    for name, value in OTHERS.items():
        assert is_same(made[name], wanted[name]), name
        assert np.array_equal(made[name], value), name


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_halves_in_any_order_of_axes_are_folded(protocol: int, tmp_path: Path) -> None:
    v = pair(5, 4, 3)["a.weight_v"]
    g = pair()["a.weight_g"]
    for turned in (np.asfortranarray(v), v.transpose(2, 0, 1).copy().transpose(1, 2, 0), v[:, ::-1]):
        state = {"a.weight_g": g, "a.weight_v": turned}
        made = folded(state, tmp_path, save={"pickle_protocol": protocol})
        assert np.allclose(made["a.weight"], exact(state), rtol=2e-7, atol=0)


def test_the_names_of_numpy_1_are_read_and_kept(tmp_path: Path) -> None:
    for protocol in (2, 4):
        source = saved({**pair(), "b": np.arange(3)}, tmp_path, pickle_protocol=protocol)

        def rename(records: dict[str, bytes]) -> None:
            pickled = records["data.pkl"]
            assert b"numpy._core" in pickled
            # In protocol 4 the length of a name stands before it.
            pickled = pickled.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
            records["data.pkl"] = pickled.replace(b"numpy._core", b"numpy.core")

        out = output_of(fold_file(rezipped(source, rename), tmp_path / "out.pt", force=True))
        with zipfile.ZipFile(out) as archive:
            pickled = archive.read("archive/data.pkl")
        assert b"numpy.core" in pickled
        assert b"numpy._core" not in pickled
        assert np.allclose(read(out)["a.weight"], exact(pair()), rtol=2e-7, atol=0)


def test_torch_reads_the_folded_arrays_as_safely_as_those_before(tmp_path: Path) -> None:
    others = {name: value for name, value in OTHERS.items() if value.size}  # no bytes are made by a call
    out = output_of(fold_file(saved({**pair(), **others}, tmp_path), tmp_path / "out.pt"))
    names = [np._core.multiarray._reconstruct, np.ndarray, np.dtype, ml_dtypes.bfloat16]  # type: ignore[attr-defined]
    kinds = {type(value.dtype) for value in OTHERS.values()} | {type(np.dtype("f4"))}
    with torch.serialization.safe_globals([*names, *kinds]):
        before, loaded = (torch.load(path, weights_only=True) for path in (tmp_path / "in.pt", out))
        assert is_same(before["fortran"], loaded["fortran"])
        assert fold_file(tmp_path / "in.pt", out, force=True, verify=True).verified.startswith("torch.load")
    assert np.allclose(loaded["a.weight"], exact(pair()), rtol=2e-7, atol=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_arrays_are_cast(dtype: str, tmp_path: Path) -> None:
    state = {**pair(), "bias": np.arange(5, dtype="f4"), "count": np.arange(3)}
    made = folded(state, tmp_path, dtype=dtype, verify=True)
    assert [made[name].dtype.name for name in ("a.weight", "bias", "count")] == [dtype, dtype, "int64"]
    assert np.allclose(made["a.weight"].astype("f8"), exact(state), rtol=2**-8)
    assert made["bias"].astype("f8").tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", ml_dtypes.bfloat16])
def test_layers_of_every_kind_are_folded(kind: Any, tmp_path: Path) -> None:
    state = {name: value.astype(kind) for name, value in pair().items()}
    made = folded(state, tmp_path)
    assert made["a.weight"].dtype == np.dtype(kind)
    assert np.allclose(made["a.weight"].astype("f8"), exact(state), rtol=2**-8)


def test_arrays_that_are_one_stay_one(tmp_path: Path) -> None:
    state = pair()
    twice = {**state, "b.weight_g": state["a.weight_g"], "b.weight_v": state["a.weight_v"]}
    made = folded({**twice, "x": state["a.weight_g"], "y": state["a.weight_g"]}, tmp_path)
    assert made["a.weight"] is made["b.weight"]
    assert made["x"] is made["y"]


def test_arrays_beside_tensors_in_a_state_dict_are_folded_too(tmp_path: Path) -> None:
    tensors = {name: torch.from_numpy(value) for name, value in pair(name="b.weight").items()}
    mixed = {"c.weight_g": torch.ones(3, 1), "c.weight_v": np.ones((3, 4), "f4")}
    made = folded({**pair(), **tensors, **mixed}, tmp_path, verify=True)
    kinds = {name: type(value) for name, value in made.items()}
    assert kinds == {"a.weight": np.ndarray, "b.weight": torch.Tensor, "c.weight": np.ndarray}
    assert np.allclose(made["b.weight"].numpy(), made["a.weight"])


def test_statistics_beside_a_model_are_no_state_dict(tmp_path: Path) -> None:
    random = np.random.default_rng(0).bit_generator.state
    state = {name: torch.from_numpy(value) for name, value in pair().items()}
    tree: dict[str, Any] = {
        "model": state,
        "stats": {"mean": np.zeros(3), "std": np.ones(3)},
        "rng": np.random.get_state(),
    }
    found = inspect_file(saved({**tree, "random": random}, tmp_path))
    assert [item.path for item in found.state_dicts] == ["model"]
    assert {"stats", "rng"} <= {item.path for item in found.siblings}
    made = folded(tree, tmp_path)
    assert is_same(made["stats"]["std"], tree["stats"]["std"])
    assert fold_file(tmp_path / "in.pt", tmp_path / "out.safetensors").plan.only == "model"


def test_a_state_dict_of_arrays_is_found_at_any_depth(tmp_path: Path) -> None:
    made = folded({"epoch": 3, "ema": {"model": pair()}}, tmp_path)
    assert np.allclose(made["ema"]["model"]["a.weight"], exact(pair()), rtol=2e-7)


def test_arrays_go_into_safetensors(tmp_path: Path) -> None:
    kept = {name: value for name, value in OTHERS.items() if name != "complex"}
    source = saved({**pair(), **kept}, tmp_path)
    result = fold_file(source, tmp_path / "out.safetensors", verify=True)
    assert compare_files(source, output_of(result))


def test_every_verb_takes_arrays(run: Runner, tmp_path: Path) -> None:
    source = saved({**pair(), "bias": np.ones(5, "f4")}, tmp_path)
    there = migrate_file(source, tmp_path / "there.pt", verify=True)
    assert "a.parametrizations.weight.original1" in read(output_of(there))
    back = read(output_of(migrate_file(output_of(there), tmp_path / "back.pt", to="legacy")))
    assert all(is_same(back[name], value) for name, value in pair().items())
    plain = fold_file(source, tmp_path / "plain.pt")
    split = read(output_of(split_file(output_of(plain), tmp_path / "split.pt", verify=True)))
    assert {type(value) for value in split.values()} == {np.ndarray}
    assert np.allclose(exact(split), exact(pair()), rtol=1e-6)
    assert compare_files(source, output_of(plain))
    found = inspect_file(source, full=True)
    assert (found.parameters, [layer.name for layer in found.layers]) == (70, ["a.weight"])
    assert run("inspect", source).returncode == 0


def test_the_layers_whose_numbers_are_refused_are_named(tmp_path: Path) -> None:
    state = {**pair(), **pair(name="b.weight"), **pair(name="c.weight")}
    state["a.weight_v"][1] = np.nan
    state["c.weight_v"][2] = 0
    with pytest.raises(NumbersError) as caught:
        fold_file(saved(state, tmp_path))
    assert [where for where, _ in caught.value.items] == ["layer a.weight", "layer c.weight"]
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


def test_objects_and_kinds_that_are_not_known_are_kept_as_they_are(tmp_path: Path) -> None:
    odd = {
        "names": np.array(["a", "b"]),
        "things": np.array([1, "x"], object),
        "when": np.array(["2020"], "M8[D]"),
    }
    made = folded({**pair(), **odd}, tmp_path)
    assert all(made[name].tolist() == value.tolist() for name, value in odd.items())


def test_big_endian_numbers_are_refused(run: Runner, tmp_path: Path) -> None:
    source = saved({name: value.astype(">f4") for name, value in pair().items()}, tmp_path)
    refused(run, source, says=r"a\.weight_g is an array of big-endian numbers", fix="newbyteorder")


def test_a_single_array_is_called_so(run: Runner, tmp_path: Path) -> None:
    refused(run, saved(np.ones(3, "f4"), tmp_path), says=r"a single array float32 \[3\], without a name")


# -- as data


def test_an_array_is_read_as_numpy_reads_it_without_calling_it() -> None:
    for protocol in range(6):
        for name, value in {**pair(), **OTHERS}.items():
            record = read_array(load(pickle.dumps(value, protocol)).root)
            assert record is not None, (protocol, name)
            assert record.dtype is not None
            assert isinstance(record.content, bytes)
            assert (record.shape, record.dtype.name) == (value.shape, value.dtype.name)
            flat = np.frombuffer(record.content, value.dtype)
            steps = tuple(step * value.itemsize for step in record.strides)
            made = np.lib.stride_tricks.as_strided(flat, record.shape, steps) if value.size else value
            assert made.tobytes() == value.tobytes(), (protocol, name)


def test_what_is_not_an_array_is_none() -> None:
    for value in ({"a": 1}, np.float32(1.5), np.dtype("f4"), slice(1), [np.ones(2)], io.BytesIO):
        assert read_array(load(pickle.dumps(value, 2)).root) is None

    class Odd(np.ndarray[Any, Any]):
        pass

    globals()["Odd"] = Odd
    Odd.__qualname__ = "Odd"
    assert read_array(load(pickle.dumps(np.ones(2).view(Odd), 2)).root) is None


class Forged:
    """Pickled as an array with any state."""

    def __init__(self, *state: object) -> None:
        self.state = state

    def __reduce__(self) -> tuple[object, ...]:
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), self.state  # type: ignore[attr-defined]


FORGED: dict[str, tuple[tuple[object, ...], str]] = {
    "too few bytes": ((1, (3,), np.dtype("f4"), False, bytes(11)), "has 11 bytes"),
    "an absurd size": ((1, (1 << 62, 4), np.dtype("f4"), False, bytes(16)), "has 16 bytes"),
    "a negative size": ((1, (-3,), np.dtype("f4"), False, bytes(12)), "absurd shape"),
    "no shape": ((1, 3, np.dtype("f4"), False, bytes(12)), "absurd shape"),
    "a truth value": ((1, (True,), np.dtype("f4"), False, bytes(4)), "absurd shape"),
    "a text of wide letters": ((1, (3,), np.dtype("f4"), False, "äöü" * 4 + "€"), "make no sense"),
    "no bytes": ((1, (3,), np.dtype("f4"), False, 12), "make no sense"),
}


@pytest.mark.parametrize("name", FORGED)
def test_an_array_that_contradicts_itself_is_refused(name: str, tmp_path: Path) -> None:
    state, says = FORGED[name]
    source = saved({"a": Forged(*state), "b": np.ones(3)}, tmp_path)
    with pytest.raises(FormatError, match=says) as caught:
        open_checkpoint(source)
    assert caught.value.fix
