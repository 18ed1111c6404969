"""Tiny modules to export, in both forms of weight norm; and factories of them by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from packaging.version import Version
from torch import Tensor, nn

from tests.helpers.infos import halves
from tests.helpers.live_models import norm
from tests.helpers.marks import some
from tests.helpers.onnx_graphs import Build
from wnconvert.verbs.export.exporters import EXPORTERS, Exporter

#: Both exporters; by default the older one, which takes a tenth of the time.
by_exporter = some("exporter", {exporter: exporter for exporter in EXPORTERS}, ["torchscript"])

#: The exporters that leave the length of a recurrent layer open: the newer one does from torch 2.13 on.
LENGTH_KEPT_BY: tuple[Exporter, ...] = tuple(
    each for each in EXPORTERS if each != "dynamo" or Version(torch.__version__) >= Version("2.13")
)


class Vocoder(nn.Module):
    """Convolutions there and back, a linear layer over the whole tensor, a dynamic length."""

    def __init__(self, form: str = "parametrize", channels: int = 6) -> None:
        super().__init__()
        self.conv_pre = norm(nn.Conv1d(4, channels, 3, padding=1), form)
        self.up = norm(nn.ConvTranspose1d(channels, 5, 4, 2, padding=1), form)
        self.proj = norm(nn.Linear(5, 3), form, dim=None)

    def forward(self, mel: Tensor) -> Tensor:
        x: Tensor = self.up(self.conv_pre(mel).relu())
        y: Tensor = self.proj(x.transpose(1, 2))
        return y.tanh()


class Speech(nn.Module):
    """Two inputs, a recurrent layer, a dict of outputs, keyword-only and optional inputs."""

    def __init__(self, form: str = "parametrize") -> None:
        super().__init__()
        self.emb = nn.Embedding(100, 4)
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        norm(self.lstm, form, "weight_hh_l0")
        norm(self.lstm, form, "weight_ih_l0")
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, mel: Tensor, *, ids: Tensor, gain: float = 1.0) -> Any:
        y, (h, c) = self.lstm(mel.transpose(1, 2) + self.emb(ids))
        return {"wave": y * self.scale * gain, "state": (h, c), "note": None}


class Dropped(nn.Module):
    """Dropout that ``eval()`` does not turn off."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = norm(nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = nn.functional.dropout(self.lin(x), training=True)
        return y


class Noisy(Dropped):
    """Noise in forward."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lin(x)
        return y + torch.randn_like(y)


class Eigen(nn.Module):
    """An operation that neither exporter knows, two modules down."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(norm(nn.Linear(4, 4)), _Eigenvalues())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y


class _Eigenvalues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.linalg.eigvals(x).real
        return y


class Branching(nn.Module):
    """Control flow that depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


def scramble(model: nn.Module, seed: int) -> None:
    """Give every layer a v, and a g that is not its norm, sometimes negative: the same in both forms."""
    values = model.state_dict()
    generator = torch.Generator().manual_seed(seed)
    for _, (g, v) in sorted(halves(values).items()):
        values[v].normal_(generator=generator)
        values[g].uniform_(0.5, 1.5, generator=generator)
        values[g].view(-1)[1::5].neg_()


def vocoder(form: str = "parametrize", seed: int = 5, **options: Any) -> Any:
    """The same numbers in both forms, with magnitudes that are not ‖v‖."""
    torch.manual_seed(seed)
    made = Vocoder(form, **options)
    scramble(made, seed)
    return made


def speech(form: str = "parametrize") -> Any:
    torch.manual_seed(6)
    made = Speech(form)
    scramble(made, 6)
    return made


class Shaped(nn.Module):
    """A linear layer whose weight is a function of what is stored, which exporters leave to be computed."""

    def __init__(self, shape: Callable[[Tensor], Tensor] = torch.tanh, rows: int = 3) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.stored = nn.Parameter(torch.randn(rows, 4))
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.shape(self.stored))


class Squared(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


def reshaping(path: Path, *shape: int) -> Path:
    """A model that squares its input (B, T, 2), with sizes of its own in a Reshape, as exporters leave."""
    b = Build(17)
    x = b.op("Reshape", "x", b.ints(*shape))
    b.op("Mul", x, x, name="output")
    sizes: Any = {"x": ("B", "T", 2)}
    onnx.save(b.model(["output"], sizes), str(path))
    return path


def waving(path: Path) -> Path:
    """A model that computes two weights of stored tensors at every run, of which one can be evaluated."""
    b = Build(17)
    first, second = (b.tensor(f"{name}.weight", np.eye(4, dtype=np.float32)) for name in ("a", "b"))
    b.op("MatMul", b.op("MatMul", "x", b.op("Sin", first)), b.op("Round", second), name="output")
    sizes: Any = {"x": ("B", 4)}
    onnx.save(b.model(["output"], sizes), str(path))
    return path


def scripted(model: nn.Module) -> Any:
    """A module as TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        return torch.jit.script(model)


MADE = vocoder()


def broken(**_: Any) -> nn.Module:
    raise RuntimeError("no config.json beside it")


def no_module() -> Any:
    return MADE.state_dict()


NUMBER = 3
