"""State dicts in memory, split: the bits that a file would get, the very tensors where nothing changes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.helpers.infos import halves
from tests.helpers.live_models import FORMS, norm
from tests.helpers.states import same
from wnconvert import fold_state_dict, split_file, split_state_dict
from wnconvert.errors import ArgumentError, LayerError, NumbersError

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def numpy_of(value: torch.Tensor) -> Any:
    if value.dtype == torch.bfloat16:
        return value.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()


def plain(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {"a.weight": torch.randn(4, 3, 5).to(dtype), "a.bias": torch.ones(4), "n": torch.tensor(3)}


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("dim", [0, 1, 2, None, -1])
@pytest.mark.parametrize("dtype", FLOATS)
def test_torch_numpy_and_files_give_the_same_bits(
    tmp_path: Path, dtype: torch.dtype, dim: int | None, *, zero: bool
) -> None:
    state = plain(dtype)
    if zero:
        state["a.weight"][1], state["a.weight"][:, 2], state["a.weight"][:, :, 3] = 0.0, -0.0, 0.0
    safetensors.torch.save_file(state, tmp_path / "in.safetensors")
    split_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors", layers="a.weight", dim=dim)
    of_file = safetensors.torch.load_file(tmp_path / "out.safetensors")
    of_torch = split_state_dict(state, layers="a.weight", dim=dim)
    of_numpy = split_state_dict(
        {name: numpy_of(value) for name, value in state.items()}, layers="a.weight", dim=dim
    )
    assert len(of_file) == len(of_torch) == len(of_numpy) == 4
    for name, value in of_file.items():
        assert same(value, of_torch[name])
        assert numpy_of(value).tobytes() == of_numpy[name].tobytes()
        assert (value.shape, numpy_of(value).dtype) == (of_numpy[name].shape, of_numpy[name].dtype)
    assert same(fold_state_dict(of_torch)["a.weight"], state["a.weight"])


def test_v_and_all_that_stays_are_the_very_same_objects() -> None:
    for state in (plain(), {name: value.numpy() for name, value in plain().items()}):
        was = dict(state)
        made = split_state_dict(state, layers="a.weight", dim=0, to="legacy")
        assert made["a.weight_v"] is was["a.weight"]
        assert made["a.bias"] is was["a.bias"]
        assert made["n"] is was["n"]
        assert list(state) == list(was)
        assert all(state[name] is was[name] for name in was)


def test_a_zero_row_makes_a_direction_of_its_own_and_leaves_the_weight_alone() -> None:
    state = plain()
    state["a.weight"][2] = 0
    before = state["a.weight"].clone()
    made = split_state_dict(state, layers="a.weight", dim=0, to="legacy")
    assert made["a.weight_v"] is not state["a.weight"]
    assert same(state["a.weight"], before)
    assert torch.equal(made["a.weight_v"][2], torch.full((3, 5), 1 / math.sqrt(15)))
    assert same(torch._weight_norm(made["a.weight_v"], made["a.weight_g"], 0)[2], before[2])
    assert (
        split_state_dict(state, layers="a.weight", dim=2)[  # along dim 2 no row is zero
            "a.parametrizations.weight.original1"
        ]
        is state["a.weight"]
    )


@pytest.mark.parametrize("requires_grad", [True, False])
def test_parameters_stay_parameters(*, requires_grad: bool) -> None:
    state: dict[str, Any] = plain()
    state["a.weight"] = nn.Parameter(state["a.weight"], requires_grad=requires_grad)
    state["z"] = nn.Parameter(torch.zeros(2, 2), requires_grad=requires_grad)
    made = split_state_dict(state, layers=["a.weight", "z"], dim=0, to="legacy")
    assert made["a.weight_v"] is state["a.weight"]
    for name in ("a.weight_g", "z_g", "z_v"):
        assert isinstance(made[name], nn.Parameter)
        assert made[name].requires_grad == requires_grad
        assert made[name].is_leaf
    tensor = {"w": torch.randn(3, 2, requires_grad=True) * 2}  # no leaf
    assert split_state_dict(tensor, layers="w", dim=0, to="legacy")["w_v"] is tensor["w"]


class Net(nn.Module):
    def __init__(self, form: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(3, 8, 5)
        self.block = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ConvTranspose1d(4, 2, 3))
        self.scale = nn.Parameter(torch.ones(3))
        for module in (self.conv, self.block[0], self.block[2]) if form else ():
            norm(module, form)


@pytest.mark.parametrize("form", FORMS)
def test_like_gives_torchs_own_state_dict_order_and_metadata_included(form: str) -> None:
    state: Any = Net().state_dict()
    plain_net: Any = Net().state_dict()
    reference: Any = Net(form).state_dict()
    made: Any = split_state_dict(state, like=reference)
    assert type(made).__name__ == "OrderedDict"
    assert list(made) == list(reference)
    assert list(made._metadata.items()) == list(reference._metadata.items())
    assert list(state._metadata) == list(plain_net._metadata)
    Net(form).load_state_dict(made, strict=True)
    pairs = halves(made)
    assert len(pairs) == 3
    assert all(made[v] is state[weight] for weight, (_, v) in pairs.items())
    other: Any = split_state_dict(state, like=reference, to="legacy")
    assert list(other) == list(Net("legacy").state_dict())
    back: Any = fold_state_dict(made)
    assert all(same(back[name], state[name]) for name in state)
    assert list(back._metadata) == list(state._metadata)


def test_a_reference_may_be_of_numpy_or_on_the_meta_device() -> None:
    state = Net().state_dict()
    with torch.device("meta"):
        meta = Net("legacy").state_dict()
    numpy = {name: value.numpy() for name, value in Net("legacy").state_dict().items()}
    for like in (meta, numpy):
        assert set(split_state_dict(state, like=like)) == set(like)


def test_a_g_of_the_references_dtype_where_it_is_finer() -> None:
    w = torch.full((2, 3), 40000.0, dtype=torch.float16)
    like = {"w_g": torch.ones(2, 1), "w_v": torch.ones(2, 3, dtype=torch.float16)}
    made = split_state_dict({"w": w}, like=like)
    assert made["w_g"].dtype == torch.float32
    assert same(fold_state_dict(made)["w"], w)
    with pytest.raises(NumbersError, match=r"layer w: a norm that float16 cannot hold, in 2 rows \(0, 1\)"):
        split_state_dict({"w": w}, layers="w", dim=0)


def test_what_is_tied_stays_tied() -> None:
    w = torch.randn(4, 3)
    state = {"a.weight": w, "b.weight": w, "c.weight": w[:, :], "d.weight": w.clone()}
    made = split_state_dict(state, layers="*", dim=0, to="legacy")
    assert made["a.weight_g"] is made["b.weight_g"]
    assert made["a.weight_v"] is made["b.weight_v"] is w
    assert made["c.weight_g"] is made["a.weight_g"]
    assert made["d.weight_g"] is not made["a.weight_g"]
    w[1] = 0
    made = split_state_dict(state, layers="*", dim=0, to="legacy")
    assert made["a.weight_v"] is made["b.weight_v"] is not w
    like = {"a.weight_g": torch.ones(4, 1), "a.weight_v": w, "b.weight_g": torch.ones(1, 3), "b.weight_v": w}
    made = split_state_dict(state, like=like)
    assert made["b.weight_v"] is w  # of b no row is zero
    assert made["a.weight_v"] is not w


def test_views_are_split_as_their_elements() -> None:
    base = torch.randn(6, 8)
    complexes = torch.view_as_complex(torch.randn(4, 3, 2)).conj().imag
    for w in (base.t(), base[::2, 1::3], complexes, torch.randn(4, 1).expand(4, 3)):
        made = split_state_dict({"w": w}, layers="w", dim=0, to="legacy")
        expected = w.detach().clone().double().norm(dim=1, keepdim=True).to(w.dtype)
        assert torch.equal(made["w_g"], expected)
        assert made["w_v"] is w
        assert torch.equal(fold_state_dict(made)["w"], w)
    array = np.arange(24.0).reshape(4, 6).T[::2] + 1
    made = split_state_dict({"w": array}, layers="w", dim=1, to="legacy")
    assert made["w_v"] is array
    assert np.array_equal(made["w_g"], np.sqrt((array**2).sum(0, keepdims=True)))


def test_keys_that_are_no_text_and_values_that_are_no_tensors_stay() -> None:
    state = {"w": torch.ones(2, 2), 7: "seven", "note": "text", "sparse": torch.eye(3).to_sparse()}
    made = split_state_dict(state, layers="w", dim=0, to="legacy")  # type: ignore[arg-type]
    assert set(made) == {"w_g", "w_v", 7, "note", "sparse"}
    assert made["sparse"] is state["sparse"]


def test_what_has_no_numbers_or_norm_is_refused_by_name() -> None:
    for state, says in (
        ({"w": torch.ones(2, 2, device="meta")}, "layer w: a tensor on the meta device has no numbers"),
        ({"w": torch.tensor([[1.0, math.nan]])}, "layer w: NaN or infinity in row 0"),
        ({"w": torch.tensor([[1, 2]])}, "layer w: it is int64, which has no norm"),
        ({"w": torch.tensor(1.0)}, "layer w: it is a single number"),
    ):
        with pytest.raises((LayerError, NumbersError), match=says):
            split_state_dict(state, layers="w", dim=0)


def test_layers_that_are_split_are_left_alone() -> None:
    state = Net("legacy").state_dict()
    made = split_state_dict(state, like=Net("parametrize").state_dict())
    assert list(made) == list(state)
    assert all(made[name] is value for name, value in state.items())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "nothing says which weights to split"),
        ({"layers": "a.weight"}, "the axis of their norms"),
        ({"dim": 0}, "alone names no layers"),
        ({"layers": "x", "dim": 0}, "matches no weight"),
        ({"layers": "a.weight", "dim": "0"}, "is not an axis"),
        ({"layers": "a.weight", "dim": 0, "to": "X"}, "no form 'X'"),
        ({"like": {"a.weight": torch.ones(1)}}, "no weight-normalized layers"),
        ({"like": 5}, "is not a state dict"),
    ],
)
def test_a_wrong_argument_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ArgumentError, match=says) as caught:
        split_state_dict(plain(), **options)
    assert caught.value.fix
