"""State dicts in memory: torch tensors and numpy arrays, with the bits that a file would get."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.helpers.golden import FIXTURES
from tests.helpers.live_models import legacy, new
from tests.helpers.states import hold, same, state_dicts
from wnconvert import fold_file, fold_state_dict, split_state_dict
from wnconvert.errors import ArgumentError, LayerError, NumbersError

FLOATS = ["float64", "float32", "float16", "bfloat16"]


def numpy_of(value: torch.Tensor) -> Any:
    if value.dtype == torch.bfloat16:
        return value.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()


def layer(dtype: str = "float32", of_g: str | None = None) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    g, v = torch.rand(4, 1, 1) + 0.5, torch.randn(4, 3, 5)
    return {
        "w_g": g.to(getattr(torch, of_g or dtype)),
        "w_v": v.to(getattr(torch, dtype)),
        "b": torch.ones(4),
    }


# -- the bits


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("of_g", FLOATS)
@pytest.mark.parametrize("to", [None, "float16", "bfloat16", "float32"])
def test_torch_numpy_and_files_give_the_same_bits(
    dtype: str, of_g: str, to: str | None, tmp_path: Path
) -> None:
    state = layer(dtype, of_g)
    safetensors.torch.save_file(state, tmp_path / "in.safetensors")
    fold_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors", dtype=to)
    of_file = safetensors.torch.load_file(tmp_path / "out.safetensors")
    of_torch = fold_state_dict(state, dtype=to)
    of_numpy = fold_state_dict({name: numpy_of(value) for name, value in state.items()}, dtype=to)
    assert set(of_file) == set(of_torch) == set(of_numpy) == {"w", "b"}
    for name, value in of_file.items():
        assert same(value, of_torch[name])
        assert numpy_of(value).dtype == of_numpy[name].dtype
        assert numpy_of(value).tobytes() == of_numpy[name].tobytes()


@pytest.mark.parametrize("name", ["g_02500000", "vits.pth", "codec_bf16.safetensors", "sovits.pth"])
def test_a_fixture_folds_in_memory_as_in_its_file(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    fold_file(FIXTURES / name, out)
    before, after = state_dicts(FIXTURES / name), state_dicts(out)
    for path, state in before.items():
        folded = fold_state_dict(state)
        assert hold(state, folded) > 0
        assert list(folded) == list(after[path])
        assert all(same(folded[key], after[path][key]) for key in folded)


def test_a_numpy_scalar_and_a_rank_0_g_are_magnitudes() -> None:
    v = np.array([[3, 4]], np.float32)
    for g in (np.float32(10), np.array(10, np.float32), np.array([10], np.float32)):
        assert fold_state_dict({"w_g": g, "w_v": v})["w"].tolist() == [[6, 8]]


def test_views_are_folded_as_their_elements() -> None:
    state = layer()
    straight = fold_state_dict(state)["w"]
    v = state["w_v"].transpose(0, 2).contiguous().transpose(0, 2)
    assert not v.is_contiguous()
    assert same(fold_state_dict({**state, "w_v": v})["w"], straight)
    turned = np.asfortranarray(state["w_v"].numpy())
    of_numpy = fold_state_dict({"w_g": state["w_g"].numpy(), "w_v": turned})["w"]
    assert of_numpy.tobytes() == straight.numpy().tobytes()
    swapped = fold_state_dict({"w_g": state["w_g"].numpy(), "w_v": state["w_v"].numpy().astype(">f4")})["w"]
    assert swapped.astype("<f4").tobytes() == straight.numpy().tobytes()
    half = torch.zeros(4, 3, 10, dtype=torch.bfloat16)
    half[..., ::2] = state["w_v"].bfloat16()
    expected = fold_state_dict({**state, "w_v": half[..., ::2].contiguous()})["w"]
    assert same(fold_state_dict({**state, "w_v": half[..., ::2]})["w"], expected)


# -- what kind of thing comes out


def test_the_input_and_its_tensors_are_left_alone() -> None:
    state = layer()
    names, copies = list(state), {name: value.clone() for name, value in state.items()}
    folded = fold_state_dict(state)
    folded["w"].zero_()
    assert list(state) == names
    assert all(same(state[name], copies[name]) for name in names)


def test_unchanged_values_are_the_very_same_objects() -> None:
    marker = object()
    sparse = torch.eye(3).to_sparse()
    state: dict[str, Any] = {
        **layer(),
        "alias": torch.ones(2),
        "n": 3,
        "x": marker,
        "sparse": sparse,
        "none": None,
    }
    state["again"] = state["alias"].view(2)
    folded = fold_state_dict(state)
    assert list(folded) == ["w", "b", "alias", "n", "x", "sparse", "none", "again"]
    assert all(folded[name] is state[name] for name in folded if name != "w")
    assert fold_state_dict(state, dtype="float16")["sparse"] is sparse


def test_keys_that_are_no_text_are_kept() -> None:
    folded = fold_state_dict({7: "seven", **layer(), "7": torch.ones(1)})  # type: ignore[dict-item]
    assert folded[7] == "seven"  # type: ignore[index]
    assert set(folded) == {7, "w", "b", "7"}


def test_an_ordered_dict_stays_one_and_its_metadata_goes_with_the_keys() -> None:
    module = nn.ModuleDict({"a": new(nn.Conv1d(2, 3, 3)), "b": legacy(nn.Linear(3, 2))})
    state = module.state_dict()
    folded = fold_state_dict(state)
    assert type(folded) is OrderedDict
    assert list(folded) == ["a.bias", "a.weight", "b.bias", "b.weight"]
    plain = nn.ModuleDict({"a": nn.Conv1d(2, 3, 3), "b": nn.Linear(3, 2)})
    assert folded._metadata == plain.state_dict()._metadata  # type: ignore[attr-defined]
    assert "a.parametrizations" in state._metadata  # type: ignore[attr-defined]
    plain.load_state_dict(folded, strict=True)
    assert type(fold_state_dict(dict(state))) is dict


@pytest.mark.parametrize("requires_grad", [True, False])
def test_parameters_stay_parameters(requires_grad: bool) -> None:
    state = {name: nn.Parameter(value, requires_grad) for name, value in layer().items()}
    for dtype in (None, "float16"):
        folded = fold_state_dict(state, dtype=dtype)
        for value in folded.values():
            assert isinstance(value, nn.Parameter)
            assert value.requires_grad == requires_grad
            assert value.is_leaf
    assert not isinstance(fold_state_dict(layer())["w"], nn.Parameter)


def test_what_is_tied_stays_tied() -> None:
    one = layer()
    state = {**{f"a.{name}": value for name, value in one.items()}, "b.w_g": one["w_g"], "b.w_v": one["w_v"]}
    state |= {"c.w_g": one["w_g"] * 2, "c.w_v": one["w_v"]}
    folded = fold_state_dict(state)
    assert folded["a.w"] is folded["b.w"]
    assert folded["c.w"] is not folded["a.w"]
    assert torch.allclose(folded["c.w"], folded["a.w"] * 2)
    cast = fold_state_dict({"x": one["b"], "y": one["b"], "z": one["b"].clone()}, dtype="float16")
    assert cast["x"] is cast["y"]
    assert cast["x"] is not cast["z"]


# -- refusals


def test_a_whole_checkpoint_is_refused_with_the_key_to_pass() -> None:
    with pytest.raises(ArgumentError, match="a state dict at 'generator'") as caught:
        fold_state_dict({"generator": layer(), "epoch": 1})
    assert caught.value.fix == "pass checkpoint['generator']"


def test_what_has_nothing_to_fold_comes_back() -> None:
    assert fold_state_dict({}) == {}
    assert list(fold_state_dict({"x": torch.ones(2)})) == ["x"]


def test_a_layer_on_the_meta_device_is_refused_by_name_and_other_meta_tensors_are_kept() -> None:
    meta = {name: value.to("meta") for name, value in layer().items()}
    with pytest.raises(LayerError, match="layer w: a tensor on the meta device"):
        fold_state_dict(meta)
    with pytest.raises(LayerError, match="x: a tensor on the meta device"):
        fold_state_dict({"x": torch.ones(2, device="meta")}, dtype="float16")
    folded = fold_state_dict({**layer(), "x": meta["b"]})
    assert folded["x"] is meta["b"]


def test_refusals_name_the_layer() -> None:
    state = layer()
    with pytest.raises(LayerError, match=r"layer w: g \(3,\) does not fit v \(4, 3, 5\)") as caught:
        fold_state_dict({"w_g": torch.ones(3, 1)[:, 0], "w_v": state["w_v"]}, dim=0)
    assert caught.value.fix
    zero = {**state, "w_v": state["w_v"] * torch.tensor([1, 0, 1, 1]).reshape(4, 1, 1)}
    with pytest.raises(NumbersError, match="layer w: v is zero in row 1"):
        fold_state_dict(zero)
    assert fold_state_dict(zero, zero_rows="zero")["w"][1].count_nonzero() == 0
    with pytest.raises(NumbersError, match="b: one element is too large for float16"):
        fold_state_dict({**state, "b": torch.tensor([1e5])}, dtype="float16")
    assert fold_state_dict({"b": torch.tensor([1e5])}, dtype="float16", allow_nonfinite=True)["b"].isinf()
    with pytest.raises(LayerError, match="float8"):
        fold_state_dict({**state, "w_v": state["w_v"].to(torch.float8_e5m2)})


def test_layers_and_exclude_choose() -> None:
    state = {**layer(), **{f"d.{name}": value for name, value in layer().items()}}
    assert list(fold_state_dict(state, layers=["d.*"])) == ["w_g", "w_v", "b", "d.w", "d.b"]
    assert list(fold_state_dict(state, exclude=["d.*"])) == ["w", "b", "d.w_g", "d.w_v", "d.b"]


# -- without torch

WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Blocked())
import numpy as np
from wnconvert import fold_state_dict

state = {"w_g": np.float32([[10]]), "w_v": np.float32([[3, 4]]), "n": 3}
print(fold_state_dict(state, dtype="bfloat16")["w"], "torch" in sys.modules)
try:
    import torch
except ModuleNotFoundError:
    print("blocked")
"""


def test_numpy_arrays_need_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[[6 8]] False\nblocked\n"


def test_negated_views_are_resolved() -> None:
    v = torch.view_as_complex(torch.randn(4, 3, 2)).conj().imag
    state = {"w_g": torch.rand(4, 1) + 0.5, "w_v": v}
    assert v.is_neg()
    expected = fold_state_dict({"w_g": state["w_g"], "w_v": v.resolve_neg()})["w"]
    assert torch.equal(fold_state_dict(state)["w"], expected)


@pytest.mark.parametrize("wrong", [5, None, [1]])
def test_what_is_no_mapping_is_refused(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="is not a state dict"):
        fold_state_dict(wrong)


def test_errors_name_arguments_as_python_spells_them() -> None:
    state = {"w_g": np.ones((2, 1), np.float32), "w_v": np.zeros((2, 3), np.float32)}
    with pytest.raises(NumbersError) as raised:
        fold_state_dict(state)
    assert raised.value.fix == 'zero_rows="zero"; exclude=… leaves a layer as it is'
    with pytest.raises(ArgumentError) as unsaid:
        split_state_dict({"w": state["w_v"]})
    assert "like=… takes layers" in unsaid.value.fix
    assert "layers=… dim=… (0 is" in unsaid.value.fix
    assert "--" not in unsaid.value.fix
