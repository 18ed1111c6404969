"""Weight norm as other frameworks store it: held against what the frameworks themselves compute.

The files in `fixtures/frameworks` were written by them, with the weights that they computed.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from tests.helpers.golden import FIXTURES
from tests.helpers.oracle import nearest_root
from tests.helpers.rule_oracle import exact_weight
from tests.helpers.runner import Runner, listing
from tests.helpers.states import load
from wnconvert import (
    compare_files,
    fold_file,
    fold_state_dict,
    inspect_file,
    migrate_file,
    migrate_state_dict,
    split_file,
    split_state_dict,
)
from wnconvert.errors import ArgumentError, LayerError
from wnconvert.layers.find import find_pairs
from wnconvert.layers.schemes import Layer, Selection
from wnconvert.tensors.dtypes import dtype_named
from wnconvert.tensors.tree import TensorInfo

FRAMEWORKS = FIXTURES / "frameworks"
Arrays = dict[str, Any]

#: Each framework: the file, the forms of its layers, and the layers whose eps or axis is not the usual one.
FILES = {
    "flax": ("flax_linen", "flax", {"Dense_1/kernel": 1e-3}),
    "keras": ("keras3", "keras", {}),
    "tfa": ("tfa", "keras", {}),
    "tfp": ("tfp", "keras", {}),
    "equinox": ("equinox", "equinox", {}),
    "mlx": ("mlx", "legacy", {}),
}
EVERY = pytest.mark.parametrize(("file", "form", "eps"), FILES.values(), ids=FILES)


def arrays(path: Path) -> Arrays:
    if path.suffix == ".safetensors":
        return dict(safetensors.numpy.load_file(path))
    with np.load(path) as archive:
        return dict(archive)


def expected(file: str) -> Arrays:
    """The weights that the framework computed, by the name of a weight."""
    found = arrays(FRAMEWORKS / f"{file}.expected.npz")
    keys = {key.removeprefix("weight:"): value for key, value in found.items() if key.startswith("weight:")}
    return {key.removesuffix("_v"): value for key, value in keys.items()}


def shapes(there: Arrays) -> dict[str, tuple[int, ...]]:
    return {key: each.shape for key, each in there.items()}


def layers_of(there: Arrays, selection: Selection) -> list[Layer]:
    infos = [TensorInfo(name, dtype_named(str(each.dtype)), each.shape) for name, each in there.items()]
    return list(find_pairs(infos, selection).layers)


@EVERY
def test_the_weights_are_those_of_the_framework_within_its_rounding_and_rounded_once(
    file: str, form: str, eps: dict[str, float]
) -> None:
    there, theirs = arrays(FRAMEWORKS / f"{file}.npz"), expected(file)
    of_others = fold_state_dict(there, exclude=list(eps))
    assert {layer.form for layer in layers_of(there, Selection())} == {form}
    for name, its in eps.items():
        of_others |= {name: fold_state_dict(there, layers=[name], eps=its)[name]}
    for layer in layers_of(there, Selection()):
        (found,) = layers_of(there, Selection(layers=(layer.name,), eps=eps.get(layer.name)))
        weight = of_others[layer.name]
        exact = exact_weight(
            found.rule, {role: there[part.name] for role, part in found.parts.items()}, "float32"
        )
        assert np.array_equal(weight, exact), layer.name
        # Theirs is a product of three float32 numbers that are rounded, and of a sum.
        np.testing.assert_array_max_ulp(weight, theirs[layer.name], 4)
    assert len(theirs) == len(layers_of(there, Selection()))


@pytest.mark.parametrize("name", ["flax_linen.safetensors", "flax_linen_dots.safetensors", "flax_linen.npz"])
def test_names_may_be_joined_by_dots_or_slashes(name: str, tmp_path: Path) -> None:
    result = fold_file(FRAMEWORKS / name, tmp_path / "out.npz", verify=True)
    assert [layer.form for layer in result.layers] == ["flax"] * 5
    folded = arrays(tmp_path / "out.npz")
    assert not [key for key in folded if "WeightNorm" in key]
    assert {key.replace("/", ".") for key in expected("flax_linen")} <= {
        key.replace("/", ".") for key in folded
    }
    theirs = expected("flax_linen")["Dense_0/kernel"]
    (mine,) = (value for key, value in folded.items() if key in ("Dense_0/kernel", "Dense_0.kernel"))
    np.testing.assert_array_max_ulp(mine, theirs, 4)


@pytest.mark.parametrize("name", ["flax_nnx.safetensors", "flax_nnx_dots.safetensors"])
def test_nnx_keys_that_are_tuples_are_known(name: str, tmp_path: Path) -> None:
    result = fold_file(FRAMEWORKS / name, tmp_path / "out.safetensors", verify=True)
    assert {(layer.form, layer.dim) for layer in result.layers} == {("nnx", 2), ("nnx", 1)}
    folded = {key.replace(".", "/"): value for key, value in arrays(tmp_path / "out.safetensors").items()}
    for key, theirs in expected("flax_nnx").items():
        np.testing.assert_array_max_ulp(folded[key], theirs, 4)


SPLIT = ("flax_linen", "flax_nnx", "tfa", "tfp")


@pytest.mark.parametrize("file", SPLIT)
def test_a_split_by_the_record_has_the_keys_again_and_its_fold_the_bits(file: str, tmp_path: Path) -> None:
    source, folded, split, again = (
        tmp_path / f"{each}.safetensors" for each in ("in", "folded", "split", "again")
    )
    source.write_bytes((FRAMEWORKS / f"{file}.safetensors").read_bytes())
    fold_file(source, folded)
    split_file(folded, split, verify=True)
    before, after = arrays(source), arrays(split)
    assert {key: each.shape for key, each in after.items()} == {
        key: each.shape for key, each in before.items()
    }
    assert compare_files(source, split)
    fold_file(split, again, verify=True)
    assert again.read_bytes() == folded.read_bytes()


@pytest.mark.parametrize("file", SPLIT)
def test_g_of_a_split_is_what_the_framework_divides_by(file: str) -> None:
    there = arrays(FRAMEWORKS / f"{file}.safetensors")
    split = split_state_dict(fold_state_dict(there), like=there)
    for layer in layers_of(split, Selection()):
        w, g = (split[half.name].astype(np.float64) for half in (layer.v, layer.g))
        axes = tuple(at for at in range(w.ndim) if at != layer.dim)
        squares = np.square(w).sum(axis=axes).reshape(-1)  # of integers over a power of 2: exact in float64
        assert layer.guard is not None
        inside = np.maximum(squares, 1e-12) if layer.guard.is_least else squares + 1e-12
        assert g.reshape(-1) == pytest.approx(np.sqrt(inside), rel=2.0**-23)


def test_an_eps_that_is_given_is_recorded_and_a_split_undoes_that_fold(tmp_path: Path) -> None:
    source = FRAMEWORKS / "flax_linen.safetensors"
    folded, split = tmp_path / "folded.safetensors", tmp_path / "split.safetensors"
    fold_file(source, folded, eps=1e-3)
    result = split_file(folded, split, verify=True)
    assert any("belongs to an eps of 0.001" in note for note in result.notes)
    fold_file(split, tmp_path / "again.safetensors", eps=1e-3)
    assert (tmp_path / "again.safetensors").read_bytes() == folded.read_bytes()


def test_an_eps_needs_a_layer_that_has_one() -> None:
    there = arrays(FRAMEWORKS / "equinox.npz")
    with pytest.raises(ArgumentError, match="belongs to norm=…, or to layers of paddle, keras, flax, nnx"):
        fold_state_dict(there, eps=1e-3)


def test_a_zero_row_makes_zeros_where_an_eps_keeps_it_from_dividing_by_0(tmp_path: Path) -> None:
    there = arrays(FRAMEWORKS / "tfa.safetensors")
    there["weight_normalization_2/kernel:0"][:, 1] = 0
    folded = fold_state_dict(there)
    assert not folded["weight_normalization_2/kernel:0"][:, 1].any()
    safetensors.numpy.save_file(there, tmp_path / "in.safetensors")
    found = inspect_file(tmp_path / "in.safetensors", full=True)
    assert found.fold == "would make 3 plain weights"
    again = fold_state_dict(split_state_dict(folded, like=there))
    assert all(np.array_equal(again[key], folded[key]) for key in folded)


# -- names that change alone


@pytest.mark.parametrize("to", ["legacy", "parametrize", "paddle"])
def test_equinox_migrates_by_names_and_shapes_of_g_and_back(to: Any) -> None:
    there = arrays(FRAMEWORKS / "equinox.npz")
    pairs = [layer.name for layer in layers_of(there, Selection()) if layer.dim is not None]
    moved = migrate_state_dict(there, to=to, layers=pairs)
    forms = {layer.form for layer in layers_of(moved, Selection(layers=tuple(pairs)))}
    assert forms == {to}
    weights, same = fold_state_dict(moved, layers=pairs), fold_state_dict(there, layers=pairs)
    assert all(np.array_equal(weights[name], same[name]) for name in pairs)
    back = migrate_state_dict(moved, to="equinox", layers=pairs)
    assert shapes(back) == shapes(there)
    assert all(np.array_equal(back[key], there[key]) for key in there)


def test_physicsnemos_form_is_given_to_linear_layers_alone(tmp_path: Path) -> None:
    there: Arrays = {
        "fc.weight_g": np.ones((4, 1), np.float32),
        "fc.weight_v": np.ones((4, 3), np.float32),
        "conv.weight_g": np.ones((4, 1, 1), np.float32),
        "conv.weight_v": np.ones((4, 3, 2), np.float32),
    }
    moved = migrate_state_dict(there, to="physicsnemo")
    assert set(moved) == {"fc.weight_g", "fc.weight", "conv.weight_g", "conv.weight_v"}
    np.savez(tmp_path / "in.npz", **there)
    result = migrate_file(tmp_path / "in.npz", tmp_path / "out.npz", to="physicsnemo")
    assert any("PhysicsNeMo has no weight norm of such a name and shape" in note for note in result.notes)
    only = {name: array for name, array in there.items() if name.startswith("conv")}
    np.savez(tmp_path / "conv.npz", **only)
    result = migrate_file(tmp_path / "conv.npz", tmp_path / "out2.npz", to="physicsnemo")
    assert "nothing to migrate: none of its layers can have that form" in result.notes[-1]
    with pytest.raises(LayerError, match="physicsnemo spells no layer of its name and shapes"):
        split_state_dict({"conv.weight": there["conv.weight_v"]}, layers="*", dim=0, to="physicsnemo")


def test_kernels_whose_axes_have_another_order_do_not_migrate_by_names_and_it_is_said(tmp_path: Path) -> None:
    result = migrate_file(FRAMEWORKS / "tfa.npz", tmp_path / "out.npz", copy=True)
    assert result.layers == []
    assert any("names alone do not do" in note for note in result.notes)


def test_a_vector_may_be_torchs_so_the_eps_of_paddle_is_asked_for(tmp_path: Path) -> None:
    there: Arrays = {"fc.weight_g": np.ones(4, np.float32), "fc.weight_v": np.ones((4, 3), np.float32)}
    there["fc.weight_v"][1] = 0
    there["fc.weight_v"][2] = 1e-14
    np.savez(path := tmp_path / "in.npz", **there)
    with pytest.raises(LayerError, match="zero"):
        fold_file(path)
    fold_file(path, out := tmp_path / "out.npz", zero_rows="zero")
    weight = arrays(out)["fc.weight"]
    assert not weight[1].any()
    assert np.allclose(weight[2], 3**-0.5)
    fold_file(path, out, eps=1e-12, force=True)
    weight = arrays(out)["fc.weight"]
    assert not weight[1].any()
    assert np.allclose(weight[2], 0.01)


def test_a_vector_is_written_as_torch_has_it(tmp_path: Path) -> None:
    there: Arrays = {"fc.weight_g": np.ones(4, np.float32), "fc.weight_v": np.ones((4, 3), np.float32)}
    np.savez(tmp_path / "in.npz", **there)
    migrate_file(tmp_path / "in.npz", tmp_path / "out.npz", to="legacy")
    assert shapes(arrays(tmp_path / "out.npz"))["fc.weight_g"] == (4, 1)


# -- the commands


def test_inspect_names_the_conventions_and_what_is_taken(run: Runner) -> None:
    ended = run("inspect", FRAMEWORKS / "flax_linen.safetensors", "--full")
    assert ended.returncode == 0
    assert "layers: 5 flax" in ended.stdout
    assert "eps 1e-12 is taken, as flax.linen has it by default (else: fold --eps E)" in ended.stdout
    assert "axis 2 is taken (else: fold --dim" in ended.stdout


def test_a_scale_that_does_not_fit_ends_with_2_and_nothing_is_written(tmp_path: Path, run: Runner) -> None:
    there = arrays(FRAMEWORKS / "flax_linen.npz")
    there["WeightNorm_1/Dense_1/kernel/scale"] = np.ones(7, np.float32)
    np.savez(tmp_path / "in.npz", **there)
    before = listing(tmp_path)
    ended = run("fold", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
    assert ended.returncode == 2
    assert "g (7,) does not fit v (5, 2)" in ended.stderr
    assert listing(tmp_path) == before


def test_names_with_a_prefix_more_are_stripped_of_it(tmp_path: Path) -> None:
    there = {f"params/{key}": value for key, value in arrays(FRAMEWORKS / "flax_linen.npz").items()}
    np.savez(tmp_path / "in.npz", **there)
    fold_file(tmp_path / "in.npz", tmp_path / "out.npz", strip_prefix=["params/"])
    fold_file(FRAMEWORKS / "flax_linen.npz", tmp_path / "plain.npz")
    folded, plain = arrays(tmp_path / "out.npz"), arrays(tmp_path / "plain.npz")
    assert folded.keys() == plain.keys()
    assert all(np.array_equal(folded[key], plain[key]) for key in plain)


def test_the_root_of_an_eps_and_a_square_is_rounded_correctly() -> None:
    w = np.array([[3, 1e-6], [4, 0]], np.float32)
    split = split_state_dict(
        {"a/kernel": w},
        like={
            "WeightNorm_0/a/kernel/scale": np.ones(2, np.float32),
            "a/kernel": np.ones((2, 2), np.float32),
        },
    )
    eps = Fraction(1e-12)
    exact = [sum(Fraction(float(x)) ** 2 for x in column) + eps for column in w.T]
    assert split["WeightNorm_0/a/kernel/scale"].tolist() == [nearest_root(each, "float32") for each in exact]


@pytest.mark.parametrize(
    ("name", "file", "forms"),
    [
        ("paddle.pdparams", "paddle", ["paddle", "paddle", "legacy", "paddle", "paddle"]),
        ("flax_nnx.msgpack", "flax_nnx", ["nnx", "nnx"]),
    ],
)
def test_the_frameworks_own_files_fold_to_what_they_compute(
    name: str, file: str, forms: list[str], tmp_path: Path
) -> None:
    result = fold_file(FRAMEWORKS / name, tmp_path / "out.safetensors", verify=True)
    assert [layer.form for layer in result.layers] == forms
    folded = arrays(tmp_path / "out.safetensors")
    for key, theirs in expected(file).items():
        np.testing.assert_array_max_ulp(folded[key], theirs, 4)
    assert compare_files(FRAMEWORKS / name, tmp_path / "out.safetensors")
    split_file(tmp_path / "out.safetensors", tmp_path / "split.safetensors", like=FRAMEWORKS / name)
    assert compare_files(FRAMEWORKS / name, tmp_path / "split.safetensors")


def test_a_torch_file_may_hold_such_names_and_gives_them_back_by_its_record(tmp_path: Path) -> None:
    there = {key: torch.from_numpy(value) for key, value in arrays(FRAMEWORKS / "flax_linen.npz").items()}
    torch.save({"params": there, "step": 3}, tmp_path / "in.pt")
    fold_file(tmp_path / "in.pt", tmp_path / "folded.pt", verify=True)
    folded = load(tmp_path / "folded.pt")
    assert folded["step"] == 3
    assert "WeightNorm_0/Dense_0/kernel/scale" not in folded["params"]
    split_file(tmp_path / "folded.pt", tmp_path / "split.pt", verify=True)
    assert list(load(tmp_path / "split.pt")["params"]) == list(there)
