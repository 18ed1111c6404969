"""Live models of spectral norm, of prune and of their stacks, made with torch's own functions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.helpers.live_models import Tanh, norm

#: Names of torch's functions without their types.
_PRUNE: Any = prune


def spectral(module: Any, form: str = "legacy", name: str = "weight", **options: Any) -> Any:
    """torch's own function for a form."""
    if form == "parametrize":
        return parametrizations.spectral_norm(module, name, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        return nn.utils.spectral_norm(module, name, **options)


def pruned(module: Any, name: str = "weight", amount: float = 0.4) -> Any:
    return _PRUNE.l1_unstructured(module, name, amount)


def pruned_original(module: Any, name: str) -> Any:
    """A module of which an original is pruned."""
    pruned(module.parametrizations.weight, name)
    return module


def pruned_often(module: Any) -> Any:
    """A module that all of torch's methods prune, in containers."""
    _PRUNE.l1_unstructured(module, "weight", 0.2)
    _PRUNE.ln_structured(module, "weight", 0.2, 2, 0)
    _PRUNE.random_unstructured(module, "weight", 0.1)
    _PRUNE.random_structured(module, "weight", 0.2, 1)
    _PRUNE.custom_from_mask(module, "bias", torch.arange(6) % 2)
    _PRUNE.identity(module, "bias")
    return module


def conv() -> nn.Module:
    return nn.Conv2d(4, 6, 3)


def lstm() -> Any:
    return nn.LSTM(5, 6)


@dataclass(frozen=True)
class KindOfModel:
    """A model, its plain one, the shape of its inputs, and its layers: names with their kinds."""

    made: Callable[[], nn.Module]
    plain: Callable[[], nn.Module]
    shape: tuple[int, ...]
    layers: dict[str, str]


def _conv(made: Callable[[], Any], kind: str, *more: str) -> KindOfModel:
    return KindOfModel(made, conv, (2, 4, 7, 7), dict.fromkeys(("weight", *more), kind))


KIND_MODELS: dict[str, KindOfModel] = {
    "spectral, legacy": _conv(lambda: spectral(conv()), "spectral"),
    "spectral, parametrize": _conv(lambda: spectral(conv(), "parametrize"), "spectral"),
    "spectral of a square transposed one, legacy": KindOfModel(
        lambda: spectral(nn.ConvTranspose2d(4, 4, 3)),
        lambda: nn.ConvTranspose2d(4, 4, 3),
        (2, 4, 7, 7),
        {"weight": "spectral"},
    ),
    "spectral of a square transposed one, parametrize": KindOfModel(
        lambda: spectral(nn.ConvTranspose2d(4, 4, 3), "parametrize"),
        lambda: nn.ConvTranspose2d(4, 4, 3),
        (2, 4, 7, 7),
        {"weight": "spectral"},
    ),
    "spectral of a vector, legacy": KindOfModel(
        lambda: spectral(nn.Linear(5, 6), "legacy", "bias"),
        lambda: nn.Linear(5, 6),
        (2, 5),
        {"bias": "spectral"},
    ),
    "spectral of a vector, parametrize": KindOfModel(
        lambda: spectral(nn.Linear(5, 6), "parametrize", "bias"),
        lambda: nn.Linear(5, 6),
        (2, 5),
        {"bias": "spectral"},
    ),
    "spectral of an LSTM, legacy": KindOfModel(
        lambda: Tanh(spectral(lstm(), "legacy", "weight_hh_l0")),
        lambda: Tanh(lstm()),
        (7, 2, 5),
        {"rnn.weight_hh_l0": "spectral"},
    ),
    "spectral of an LSTM, parametrize": KindOfModel(
        lambda: Tanh(spectral(lstm(), "parametrize", "weight_hh_l0")),
        lambda: Tanh(lstm()),
        (7, 2, 5),
        {"rnn.weight_hh_l0": "spectral"},
    ),
    "pruned": _conv(lambda: pruned(conv()), "prune"),
    "pruned often": _conv(lambda: pruned_often(conv()), "prune", "bias"),
    "pruned LSTM": KindOfModel(
        lambda: Tanh(pruned(lstm(), "weight_hh_l0")),
        lambda: Tanh(lstm()),
        (7, 2, 5),
        {"rnn.weight_hh_l0": "prune"},
    ),
    "spectral on prune, legacy": _conv(lambda: pruned(spectral(conv()), "weight_orig"), "prune+spectral"),
    "spectral on prune, parametrize": _conv(
        lambda: pruned_original(spectral(conv(), "parametrize"), "original"), "prune+spectral"
    ),
    "weight on prune, legacy": _conv(lambda: pruned(norm(conv(), "legacy"), "weight_v"), "prune+weight"),
    "weight on prune, parametrize": _conv(lambda: pruned_original(norm(conv()), "original1"), "prune+weight"),
    "spectral on weight": _conv(lambda: spectral(norm(conv()), "parametrize"), "weight+spectral"),
    "spectral on weight on prune": _conv(
        lambda: pruned_original(spectral(norm(conv()), "parametrize"), "original1"), "prune+weight+spectral"
    ),
}

every_kind = pytest.mark.parametrize("which", KIND_MODELS)


def kind_model(which: str) -> tuple[nn.Module, Tensor]:
    """A model after some training steps, in eval mode, with all cached weights renewed; and an input."""
    torch.manual_seed(5)
    of = KIND_MODELS[which]
    model, x = of.made(), torch.randn(of.shape)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(3):
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    renewed(model.eval(), x)
    return model, x


def renewed(model: nn.Module, x: Tensor) -> None:
    """Run a model as often as weights are stacked: where hooks are, an inner weight is seen one run late."""
    with torch.no_grad():
        for _ in range(3):
            model(x)


def is_computed(model: nn.Module) -> bool:
    """Whether hooks or parametrizations compute weights of a model, or stand ready for loading."""
    return any(
        parametrize.is_parametrized(module)
        or module._forward_pre_hooks
        or module._state_dict_hooks
        or module._load_state_dict_pre_hooks
        for module in model.modules()
    )
