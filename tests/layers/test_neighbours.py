"""Norms told by names: real models of torch's, and what must not be paired."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from wnconvert.layers.telling.neighbours import NamedNorms, told_by_names
from wnconvert.tensors.memory import tree_of
from wnconvert.tensors.tree import StateDict


def state_of(module: nn.Module) -> StateDict:
    return tree_of(module.state_dict())[0].state_dict("")


def told_of(module: nn.Module) -> NamedNorms:
    return told_by_names(state_of(module), 1e-5)


def pairs_of(told: NamedNorms) -> dict[str, str]:
    return {fold.norm: fold.weight for fold in told.folds}


def only_reason(told: NamedNorms) -> str:
    assert not told.folds
    (left,) = told.left
    return left.reason


def made(**modules: nn.Module) -> nn.Module:
    """A module that has these, in this order."""
    whole = nn.Module()
    for name, module in modules.items():
        whole.add_module(name, module)
    return whole


def conv(into: int = 3, out: int = 8, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(into, out, size, **options)


def norm(channels: int = 8, **options: Any) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, **options)


#: What is told: a module, and the layers by their norms.
TOLD: Mapping[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "numbers alike": (
        lambda: made(conv1=conv(), bn1=norm(), relu=nn.ReLU(), conv2=conv(8, 4), bn2=norm(4)),
        {"bn1": "conv1.weight", "bn2": "conv2.weight"},
    ),
    "words alone": (lambda: made(a=made(conv=conv(), bn=norm(), act=nn.ReLU())), {"a.bn": "a.conv.weight"}),
    "a sequence": (
        lambda: nn.Sequential(conv(), norm(), nn.ReLU(), conv(8, 6), norm(6)),
        {"1": "0.weight", "4": "3.weight"},
    ),
    "a linear layer": (
        lambda: made(fc1=nn.Linear(4, 8), bn1=nn.BatchNorm1d(8)),
        {"bn1": "fc1.weight"},
    ),
    "a name within the other": (lambda: made(stem=conv(), stem_bn=norm()), {"stem_bn": "stem.weight"}),
    "numbers that count": (
        lambda: made(conv_dw=conv(), bn1=norm(), act=nn.ReLU(), conv_pw=conv(8, 4), bn2=norm(4)),
        {"bn1": "conv_dw.weight", "bn2": "conv_pw.weight"},
    ),
    "an instance norm with statistics": (
        lambda: made(conv=conv(), norm=nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
        {"norm": "conv.weight"},
    ),
    "weight norm": (
        lambda: made(conv=nn.utils.parametrizations.weight_norm(conv()), bn=norm()),
        {"bn": "conv.weight"},
    ),
    "spectral norm": (
        lambda: made(conv=parametrizations.spectral_norm(conv()), bn=norm()),
        {"bn": "conv.weight"},
    ),
    "groups of a channel": (
        lambda: made(up=made(conv=conv(8, 8, groups=8), bn=norm())),
        {"up.bn": "up.conv.weight"},
    ),
    "a layer of such a name behind it": (
        lambda: made(conv=conv(), bn=norm(), fc=nn.Linear(8, 8)),
        {"bn": "conv.weight"},
    ),
    "a square one": (lambda: made(conv=conv(8, 8), bn=norm()), {"bn": "conv.weight"}),
    "one that grows, where names say up": (
        lambda: made(up=made(conv=conv(6, 8), bn=norm())),
        {"up.bn": "up.conv.weight"},
    ),
    "a sequence beside one whose sizes do not fit": (
        lambda: made(a=nn.Sequential(conv(), norm()), b=nn.Sequential(conv(8, 4), norm())),
        {"a.1": "a.0.weight"},
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_norms_behind_layers_of_their_names_are_told(name: str) -> None:
    build, pairs = TOLD[name]
    assert pairs_of(told_of(build())) == pairs


def test_a_fold_has_the_eps_that_was_said_and_the_kind_of_its_layer() -> None:
    module = made(conv=conv(), bn=norm(), fc=nn.Linear(2, 5), fc_bn=nn.BatchNorm1d(5))
    first, second = told_by_names(state_of(module), 1e-3).folds
    assert (first.kind, first.op, first.eps, first.bias_name) == ("norm behind", "conv", 1e-3, "conv.bias")
    assert (second.kind, second.op, second.eps) == ("norm behind", "linear", 1e-3)


class Gained(nn.BatchNorm2d):
    """A norm whose gain is computed of an input."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False)
        self.gain = nn.Linear(4, channels)


class Marked(nn.BatchNorm2d):
    """A norm that has a tensor more."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("mask", torch.ones(channels))


class Uncounted(nn.Module):
    """A norm of another's class, as that of in-place activated norms: it does not count batches."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))


def tied() -> nn.Module:
    module = made(conv1=conv(), bn1=norm(), conv2=conv(), bn2=norm(8))
    module.conv2.weight = module.conv1.weight  # type: ignore[union-attr]
    return module


#: What is left: a module, and a part of the reason for each norm that is.
LEFT: Mapping[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "norms before their layers": (
        lambda: made(bn1=norm(3), conv1=conv(3, 8), bn2=norm(8), conv2=conv(8, 8)),
        {"bn1": "no layer", "bn2": "its name does not show that it belongs to conv1"},
    ),
    "norms before their layers, named behind them": (
        lambda: made(
            a=made(conv1=conv(8, 8), bn1=norm(8), conv2=conv(8, 16), bn2=norm(8)),
            b=made(conv1=conv(16, 16), bn1=norm(16), conv2=conv(16, 16), bn2=norm(16)),
        ),
        {"a.bn2": "only the second axis", "b.bn2": "a.conv2 and a.bn2 of the same names do not fit"},
    ),
    "an activation between": (
        lambda: made(conv1=conv(), relu1=nn.ReLU(), bn1=norm()),
        {"bn1": "relu1 stands before it"},
    ),
    "a concatenation": (
        lambda: made(a=made(conv=conv()), b=made(conv=conv()), bn=norm(16)),
        {"bn": "b.conv before it stands in another module"},
    ),
    "a head that levels share": (
        lambda: made(conv=conv(8, 8), bns=nn.ModuleList([norm(), norm()])),
        {"bns.0": "no layer", "bns.1": "bns.0 stands before it, which is no convolution"},
    ),
    "two norms": (
        lambda: made(conv=conv(), bn=norm(), norm=norm()),
        {"bn": "so could norm", "norm": "bn stands before it"},
    ),
    "two layers": (lambda: made(fc1=nn.Linear(8, 8), conv1=conv(), bn1=norm()), {"bn1": "so could fc1"}),
    "numbers that do not count": (
        lambda: made(conv_dw=conv(), conv_pw=conv(8, 8), bn1=norm()),
        {"bn1": "its name does not show"},
    ),
    "tied weights": (
        tied,
        {"bn1": "conv1 shares memory with conv2.weight", "bn2": "conv2 shares memory with conv1.weight"},
    ),
    "a gain of an input": (lambda: made(conv=conv(), bn=Gained(8)), {"bn": "bn.gain.weight in it"}),
    "no gain": (lambda: made(conv=conv(), bn=norm(affine=False)), {"bn": "it has no weight"}),
    "a tensor more": (lambda: made(conv=conv(), bn=Marked(8)), {"bn": "its mask shows"}),
    "a class that does not count": (
        lambda: made(conv=conv(), bn=Uncounted(8)),
        {"bn": "no num_batches_tracked"},
    ),
    "an embedding": (
        lambda: made(emb=nn.Embedding(8, 8), bn=nn.BatchNorm1d(8)),
        {"bn": "its name does not show"},
    ),
    "sizes that fit neither axis": (
        lambda: made(conv=conv(4, 6), bn=norm()),
        {"bn": "do not fit conv (6, 4"},
    ),
    "a transposed convolution": (
        lambda: made(conv=nn.ConvTranspose2d(4, 8, 3), bn=norm()),
        {"bn": "only the second axis"},
    ),
    "a square one below a name that says up": (
        lambda: made(up1=made(conv=conv(8, 8), bn=norm())),
        {"up1.bn": "its name says that it makes something larger"},
    ),
    "a square one with an even kernel": (
        lambda: made(conv=nn.ConvTranspose2d(8, 8, 4, 2, 1), bn=norm()),
        {"bn": "its kernel 4×4 is even"},
    ),
    "a square one beside a transposed one": (
        lambda: nn.Sequential(nn.ConvTranspose2d(16, 8, 3), norm(), nn.ConvTranspose2d(8, 8, 3), norm()),
        {"1": "only the second axis", "3": "another beside it seems to be one"},
    ),
    "a transposed one in groups": (
        lambda: made(deconv=nn.ConvTranspose2d(8, 8, 3, groups=2), bn=norm()),
        {"bn": "its name says that it makes something larger"},
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_norms_that_anything_speaks_against_are_left_with_the_reason(name: str) -> None:
    build, reasons = LEFT[name]
    told = told_of(build())
    left = {item.norm: item.reason for item in told.left}
    assert not set(reasons) & set(pairs_of(told))
    for norm_, reason in reasons.items():
        assert reason in left[norm_]


def test_without_metadata_none_is_told() -> None:
    state = replace(state_of(made(conv=conv(), bn=norm())), modules=())
    assert only_reason(told_by_names(state, 1e-5)) == "no _metadata in it names the modules in their order"


def test_a_norm_whose_module_metadata_does_not_name_is_left() -> None:
    state = replace(state_of(made(conv=conv(), bn=norm())), modules=("", "conv"))
    assert only_reason(told_by_names(state, 1e-5)) == "its module is not in _metadata"


def test_keys_in_another_order_than_modules_speak_against_a_pair() -> None:
    values = made(conv=conv(), bn=norm(), fc=nn.Linear(2, 3)).state_dict()
    moved = OrderedDict[str, Tensor]((key, values[key]) for key in values if key.startswith("fc"))
    moved |= values
    for key in [key for key in moved if key.startswith("conv")]:
        moved.move_to_end(key, last=False)
    moved._metadata = values._metadata  # type: ignore[attr-defined]
    state = tree_of(moved)[0].state_dict("")
    assert "fc.bias stands before it in the order of keys" in only_reason(told_by_names(state, 1e-5))


def test_a_name_that_is_only_a_prefix_of_another_is_another_module() -> None:
    module = made(conv=conv(), bn=norm(), bn_more=made(scale=nn.Linear(2, 2)), convs=nn.Linear(2, 2))
    module.convs.weight = module.bn_more.scale.weight  # type: ignore[union-attr]
    assert pairs_of(told_of(module)) == {"bn": "conv.weight"}


def test_a_copied_module_is_tied_to_none() -> None:
    block = made(conv=conv(8, 8), bn=norm())
    assert len(told_of(nn.Sequential(block, copy.deepcopy(block))).folds) == 2
    assert len(told_of(nn.Sequential(block, block)).folds) == 0


def test_thousands_of_norms_in_one_module_are_told() -> None:
    values: OrderedDict[str, Tensor] = OrderedDict()
    for at in range(3000):
        values[f"conv{at}.weight"] = torch.zeros(2, 3, 1)
        values |= {
            f"bn{at}.{end}": torch.zeros(2) for end in ("weight", "bias", "running_mean", "running_var")
        }
        values[f"bn{at}.num_batches_tracked"] = torch.tensor(1)
    modules = dict.fromkeys(name.rpartition(".")[0] for name in values)
    values._metadata = OrderedDict.fromkeys(["", *modules], {})  # type: ignore[attr-defined]
    assert len(told_by_names(tree_of(values)[0].state_dict(""), 1e-5).folds) == 3000
