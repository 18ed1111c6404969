"""Layers in torch's own modules: those that weight norm made are found, all others are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from tests.helpers.live_models import infos_of, legacy, new
from tests.layers.test_schemes import NOTHING, seen
from wnconvert.layers.find import find_pairs


@pytest.mark.parametrize(
    "module",
    [
        torch.nn.utils.spectral_norm(nn.Conv1d(4, 8, 3)),
        parametrizations.spectral_norm(nn.Conv1d(4, 8, 3)),
        parametrizations.orthogonal(nn.Linear(8, 8)),
        prune.random_unstructured(nn.Linear(8, 8), "weight", 0.5),  # type: ignore[no-untyped-call]
        nn.GRU(8, 8, bidirectional=True),
        nn.MultiheadAttention(8, 2, add_bias_kv=True),
        nn.BatchNorm1d(8),
    ],
    ids=["spectral legacy", "spectral parametrize", "orthogonal", "prune", "GRU", "attention", "batch norm"],
)
def test_other_modules_of_torch_have_no_layer(module: nn.Module) -> None:
    assert module.state_dict()
    assert seen(find_pairs(infos_of(module))) == NOTHING


def test_attention_in_proj_weight_is_a_layer_although_it_has_no_module_of_its_own() -> None:
    for norm in (legacy, new):
        attention = norm(nn.MultiheadAttention(8, 2), "in_proj_weight")
        assert seen(find_pairs(infos_of(attention))) == (["in_proj_weight"], [], [], [])


def test_spectral_norm_on_top_of_weight_norm_is_refused() -> None:
    found = find_pairs(infos_of(parametrizations.spectral_norm(new(nn.Conv1d(4, 8, 3)))))
    assert seen(found)[:2] == ([], ["weight"])


KINDS: dict[str, tuple[Any, list[str]]] = {
    "conv1d": (lambda a, b: nn.Conv1d(a, b, 3), ["weight", "bias"]),
    "conv2d": (lambda a, b: nn.Conv2d(a, b, (3, 2)), ["weight"]),
    "transposed": (lambda a, b: nn.ConvTranspose1d(a, b, 4), ["weight"]),
    "linear": (nn.Linear, ["weight", "bias"]),
    "lstm": (nn.LSTM, ["weight_ih_l0", "weight_hh_l0"]),
}


@st.composite
def normed(draw: st.DrawFn) -> tuple[nn.Module, set[str]]:
    """A stack of modules, and the names of the weights that are normed in it."""
    stack, names = nn.ModuleDict(), set()
    for index in range(draw(st.integers(1, 4))):
        make, parameters = KINDS[draw(st.sampled_from(sorted(KINDS)))]
        module = make(draw(st.integers(1, 4)), draw(st.integers(1, 4)))
        for name in parameters:
            if draw(st.booleans()):
                rank = getattr(module, name).dim()
                dim = draw(st.none() | st.integers(-1, rank - 1))
                if dim is not None and name.startswith("weight_"):
                    dim = max(dim, 0)
                norm = new if draw(st.booleans()) else legacy
                if isinstance(module, nn.LSTM):
                    norm = legacy  # torch's own LSTM cannot be parametrized with two names at once
                module = norm(module, name, dim)
                # A bias is a layer only beside a normalized weight.
                if name != "bias" or f"{index}.weight" in names:
                    names.add(f"{index}.{name}")
        stack[str(index)] = module
    return stack, names


@settings(max_examples=60, deadline=None)
@given(normed())
def test_in_any_modules_of_torch_the_normed_weights_are_found(made: tuple[nn.Module, set[str]]) -> None:
    module, names = made
    found = find_pairs(infos_of(module))
    assert {layer.name for layer in found.layers} == names
    assert not found.refused
    assert not found.halves
    state = module.state_dict()
    for layer in found.layers:
        g, v = state[layer.g.name].double(), state[layer.v.name].double()
        axes = [axis for axis in range(v.dim()) if axis != layer.dim]
        norm = v.square().sum(dim=axes, keepdim=True).sqrt() if axes else v.abs()
        at, _, name = layer.name.partition(".")
        torchs = getattr(module.get_submodule(at), name).detach().double()
        shaped = g.reshape(norm.shape) if layer.dim is not None else g.reshape([1] * v.dim())
        assert torch.allclose(shaped * v / norm, torchs, rtol=1e-5, atol=1e-6)
