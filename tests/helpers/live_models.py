"""Live models with weight norm in either form, and a portrait of all that surgery could change in one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.helpers.infos import halves, info
from wnconvert.tensors.tree import TensorInfo
from wnconvert.verbs.shared.options import Form

FORMS: list[Form] = ["legacy", "parametrize"]
OTHER: dict[str, Form] = {"legacy": "parametrize", "parametrize": "legacy"}
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def norm(module: Any, form: str = "parametrize", name: str = "weight", dim: int | None = 0) -> Any:
    """torch's own function for a form."""
    if form == "parametrize":
        return parametrizations.weight_norm(module, name, dim)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        return nn.utils.weight_norm(module, name, dim)  # type: ignore[arg-type]


def legacy(module: nn.Module, name: str = "weight", dim: int | None = 0) -> nn.Module:
    normed: nn.Module = norm(module, "legacy", name, dim)
    return normed


def new(module: nn.Module, name: str = "weight", dim: int | None = 0) -> nn.Module:
    normed: nn.Module = norm(module, "parametrize", name, dim)
    return normed


class WeightNormLinear(nn.Module):
    """A linear layer that computes as PhysicsNeMo's of this name does, with its parameters in its order."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.weight_g = nn.Parameter(torch.randn(outputs, 1))
        self.bias = nn.Parameter(torch.randn(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight_g * self.weight / self.weight.norm(dim=1, keepdim=True)
        return nn.functional.linear(x, w, self.bias)


def infos_of(module: nn.Module) -> list[TensorInfo]:
    return [
        info(name, tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in module.state_dict().items()
    ]


def g_and_v(module: Any, name: str = "weight") -> tuple[Any, Any]:
    """The halves of a weight, in whichever form."""
    if parametrize.is_parametrized(module, name):
        made = module.parametrizations[name]
        return made.original0, made.original1
    return getattr(module, f"{name}_g"), getattr(module, f"{name}_v")


def trained(model: nn.Module) -> nn.Module:
    """Other magnitudes than ‖v‖, some negative, as after some training."""
    state = model.state_dict()
    with torch.no_grad():
        for g, _ in halves(state).values():
            state[g].mul_(torch.rand_like(state[g]) + 0.5).mul_(torch.rand_like(state[g]).sub(0.2).sign())
    return model


def pruned(module: nn.Module, name: str) -> nn.Module:
    made: nn.Module = prune.identity(module, name)  # type: ignore[no-untyped-call]
    return made


class Tanh(nn.Module):
    """An RNN's outputs without its state."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.rnn(x)[0]
        return y.tanh()


class Attention(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.attention = norm(nn.MultiheadAttention(8, 2, batch_first=True), form, "in_proj_weight")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, x, x)[0]
        return y


def cnn(form: str) -> nn.Module:
    return nn.Sequential(
        norm(nn.Conv2d(3, 8, 3), form),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        norm(nn.Conv2d(8, 4, 3, bias=False), form, dim=1),
        nn.Flatten(),
        norm(nn.Linear(16, 5), form),
    )


def rnn(form: str) -> nn.Module:
    return Tanh(norm(norm(nn.RNN(5, 6), form, "weight_ih_l0"), form, "weight_hh_l0"))


def lstm(form: str) -> nn.Module:
    return Tanh(norm(norm(nn.LSTM(5, 6), form, "weight_hh_l0"), form, "weight_ih_l0"))


def gru(form: str) -> nn.Module:
    made = nn.GRU(5, 6, num_layers=2, bidirectional=True)
    for name in [name for name, _ in made.named_parameters() if name.startswith("weight")]:
        norm(made, form, name)
    return Tanh(made)


MODELS: dict[str, tuple[Callable[[str], nn.Module], tuple[int, ...]]] = {
    "cnn": (cnn, (2, 3, 6, 6)),
    "rnn": (rnn, (7, 2, 5)),
    "lstm": (lstm, (7, 2, 5)),
    "gru": (gru, (7, 2, 5)),
    "conv1d, dim 2": (lambda form: norm(nn.Conv1d(4, 6, 5), form, dim=2), (2, 4, 9)),
    "linear, dim None": (lambda form: norm(nn.Linear(5, 3), form, dim=None), (2, 5)),
    "linear, dim -2": (lambda form: norm(nn.Linear(5, 3), form, dim=-2), (2, 5)),
    "transposed 1d": (lambda form: norm(nn.ConvTranspose1d(4, 6, 3), form), (2, 4, 9)),
    "transposed 2d": (lambda form: norm(nn.ConvTranspose2d(4, 6, 3), form), (2, 4, 5, 5)),
    "attention": (Attention, (2, 3, 8)),
}


def model_of(kind: str, form: str) -> nn.Module:
    torch.manual_seed(3)
    return trained(MODELS[kind][0](form))


def input_of(kind: str) -> Tensor:
    torch.manual_seed(4)
    return torch.randn(MODELS[kind][1])


every_model = pytest.mark.parametrize("kind", MODELS)
both_forms = pytest.mark.parametrize("form", FORMS)


def portrait(root: nn.Module) -> list[str]:
    """All that surgery could change: objects by identity and in order, tensors by their bits too."""
    found: list[object] = []
    for name, module in root.named_modules(remove_duplicate=False):
        own = module.__dict__
        found.append((name, id(module), type(module), module.training, sorted(map(str, own))))
        for key, value in own.items():
            if isinstance(value, dict):
                found.append((key, id(value), [(item, id(of_item)) for item, of_item in value.items()]))
            elif isinstance(value, list):
                found.append((key, id(value), [id(item) for item in value]))
            else:
                found.append((key, id(value)))
    for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
        bits = () if tensor.is_meta else tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()
        found.append((name, id(tensor), tensor.requires_grad, bits))
    return sorted(map(str, found))
