"""Legacy weights whose hook never runs: folding changes outputs, and a warning says by how much."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tests.helpers.live_models import g_and_v, legacy, new, trained
from wnconvert import fold_module, folded, migrate_module, weights_folded


class Outside(nn.Module):
    """Reads the weight of a layer that it never calls."""

    def __init__(self, make: Callable[[nn.Module], nn.Module] = legacy) -> None:
        super().__init__()
        self.inner: Any = nn.ModuleDict({"layer": make(nn.Linear(3, 3))})

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.inner.layer.weight)


class Unhooked(Outside):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner.layer.forward(x)
        return y


class InAFunction(Outside):
    def forward(self, x: Tensor) -> Tensor:
        def run() -> Tensor:
            return linear(x, self.inner.layer.weight)

        return run()


class CallsToo(Outside):
    """Reads the weight, for a penalty, of a layer that it calls."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner.layer(x) + self.inner.layer.weight.norm()
        return y


class CallsElsewhere(Outside):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.run(x) + self.inner.layer.weight.norm()
        return y

    def run(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner.layer(x)
        return y


class Initialized(Outside):
    """Reads a weight outside ``forward``; another module calls the layer."""

    def reset(self) -> None:
        self.inner.layer.weight.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner["layer"](x)
        return y


def attention(make: Callable[[nn.Module], nn.Module] = legacy) -> nn.Module:
    model = nn.MultiheadAttention(4, 2)
    make(model.out_proj)
    return model


def encoder(make: Callable[[nn.Module], nn.Module] = legacy) -> nn.Module:
    model = nn.TransformerEncoderLayer(4, 2, dim_feedforward=6)
    for layer in (model.linear1, model.linear2, model.self_attn.out_proj):
        make(layer)
    return model


STALE: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "attention": (attention, "out_proj.weight", "MultiheadAttention"),
    "encoder": (encoder, "self_attn.out_proj.weight", "MultiheadAttention"),
    "outside": (Outside, "inner.layer.weight", "Outside"),
    "without hooks": (Unhooked, "inner.layer.weight", "Unhooked"),
    "in a function": (InAFunction, "inner.layer.weight", "InAFunction"),
}


@pytest.mark.parametrize("kind", STALE)
def test_outputs_that_will_change_are_named_with_the_change_of_the_weight(kind: str) -> None:
    make, name, reader = STALE[kind]
    model = trained(make())
    *path, param = name.split(".")
    layer = model.get_submodule(".".join(path))
    old = vars(layer)[param].detach()
    g, v = g_and_v(layer)
    new_weight = torch._weight_norm(v, g, 0).detach()
    change, largest = (old - new_weight).abs().max(), new_weight.abs().max()
    expected = f"{name} of {reader}: by up to {change:.2g} (its largest element is {largest:.2g})"
    verbs: list[Callable[[nn.Module], object]] = [
        fold_module,
        folded,
        lambda it: weights_folded(it).__enter__(),
        migrate_module,
    ]
    for verb in verbs:
        with pytest.warns(UserWarning, match="outputs will change") as caught:
            verb(copied(model))
        (said,) = caught
        assert str(said.message).splitlines()[1:] == [f"  {expected}"]
        assert said.filename == __file__


def copied(model: nn.Module) -> nn.Module:
    """A copy with its stale weights, which are part of a graph."""
    for module in model.modules():
        if isinstance(cached := vars(module).get("weight"), Tensor):
            vars(module)["weight"] = cached.detach()
    return copy.deepcopy(model)


def test_the_change_is_the_one_that_outputs_show() -> None:
    model, x = trained(attention()), torch.randn(3, 1, 4)
    before = model(x, x, x)[0]
    with pytest.warns(UserWarning, match="outputs will change"):
        fold_module(model)
    assert not torch.allclose(model(x, x, x)[0], before, atol=1e-3)


FINE: dict[str, Callable[[], nn.Module]] = {
    "as made": attention,
    "parametrized": lambda: trained(attention(new)),
    "parametrized, read": lambda: trained(Outside(new)),
    "called too": lambda: trained(CallsToo()),
    "called elsewhere": lambda: trained(CallsElsewhere()),
    "read by another method": lambda: trained(Initialized()),
    "just loaded": lambda: trained(nn.Sequential(legacy(nn.Linear(3, 3)), legacy(nn.Conv1d(3, 3, 1)))),
    "feed forward": lambda: trained(nn.TransformerEncoder(encoder_of_two(), 1, enable_nested_tensor=False)),
}


def encoder_of_two() -> Any:
    """A layer of a transformer whose weights are read by a fast path that hooks turn off."""
    model = nn.TransformerEncoderLayer(4, 2, dim_feedforward=6)
    for layer in (model.linear1, model.linear2):
        legacy(layer)
        vars(layer)["weight"] = vars(layer)["weight"].detach()  # so that it can be copied
    return model


@pytest.mark.parametrize("kind", FINE)
def test_outputs_that_stay_are_no_reason_to_warn(kind: str) -> None:
    model = FINE[kind]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fold_module(model)


def test_rounding_is_no_change() -> None:
    model: Any = attention()
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        model.to(dtype)
        vars(model.out_proj)["weight"] = torch._weight_norm(
            model.out_proj.weight_v, model.out_proj.weight_g, 0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            folded(model)
