"""How much of a folded model is correctly rounded, by torch and here: ``python -m tests.bench.rounding``.

A row for each model of ``tests/helpers/kind_models.py``, and for pytorch-pretrained-biggan's generator where
that package is installed: its layers, the shares, and how far the outputs of the folded and of the unfolded
model are from those in float64. The reference is numpy's long double, whose 64 bits decide all elements but
those that are counted as open.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm

from tests.helpers.kind_models import KIND_ROWS, KindRow, in_float64
from wnconvert import folded
from wnconvert.layers.rules import Mask, Norm, Spectral
from wnconvert.verbs.modules.finding.live import Live, find_live

_ALL = ("weight", "spectral", "prune")
#: Elements nearer to a midpoint than that, relatively, are open.
_OPEN = 2.0**-50


def reference(live: Live) -> Any:
    """The weight of a layer in long double."""
    arrays = {
        role: value.detach().double().numpy().astype(np.longdouble) for role, value in live.tensors.items()
    }
    w = arrays["original"]
    for operation in live.layer.rule.operations:
        if isinstance(operation, Mask):
            w = w * arrays["mask"]
        elif isinstance(operation, Norm):
            axes = None if operation.dim is None else tuple(set(range(w.ndim)) - {operation.dim})
            w = w * (arrays["g"] / np.sqrt((w * w).sum(axis=axes, keepdims=True)))
        elif isinstance(operation, Spectral) and operation.dim is not None:
            matrix = np.moveaxis(w, operation.dim, 0).reshape(w.shape[operation.dim], -1)
            w = w / (arrays["u"] * (matrix * arrays["v"]).sum(axis=1)).sum()
    return w


def shares(model: nn.Module, made: nn.Module) -> tuple[int, int, int]:
    """How many weights there are, how many of ``made`` are correctly rounded, how many are open."""
    count = right = open_ones = 0
    for live in find_live(model, _ALL).layers:
        exact, given = reference(live), made.get_parameter(live.layer.name).detach().numpy()
        nearest = exact.astype(np.float32)
        step = np.spacing(np.abs(nearest)).astype(np.longdouble) / 2
        apart = np.abs(np.abs(exact - nearest) - step)
        count += given.size
        right += int((given == nearest).sum())
        open_ones += int((apart < _OPEN * np.abs(exact)).sum())
    return count, right, open_ones


def remove_all(model: nn.Module) -> nn.Module:
    """A model folded by torch's own functions, the outermost first where hooks are stacked."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, parametrize.ParametrizationList):
                continue
            for name in list(getattr(module, "parametrizations", {})):
                inner: Any = module.parametrizations[name]  # type: ignore[index]
                for original in ("original", "original1"):
                    if hasattr(inner, f"{original}_orig"):
                        prune.remove(inner, original)  # type: ignore[no-untyped-call]
                parametrize.remove_parametrizations(module, name)
            for hook in reversed(list(module._forward_pre_hooks.values())):
                _remove(module, hook)
    return model


def _remove(module: nn.Module, hook: Any) -> None:
    """Remove a hook by torch's function for it; inner ones, which came last, go first."""
    if isinstance(hook, prune.BasePruningMethod):
        prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
    elif type(hook).__name__ == "SpectralNorm":
        remove_spectral_norm(module, hook.name)
    elif type(hook).__name__ == "WeightNorm":
        remove_weight_norm(module, hook.name)


def distance(model: nn.Module, x: Any, y: Tensor) -> float:
    """How far a model's output is from one in float64, as a part of its largest element."""
    with torch.no_grad():
        return float((model(*x).double() - y).abs().max() / y.abs().max())


def row(name: str, made: Callable[[], tuple[nn.Module, Any]]) -> str:
    """A line of the table."""
    model, x = made()
    with torch.no_grad():
        y = in_float64(made()[0])(*(each.double() if isinstance(each, Tensor) else each for each in x))
    ours, theirs = folded(model, kinds="all"), remove_all(made()[0])
    count, right, left = shares(model, ours)
    _, torchs, _ = shares(model, theirs)
    layers = len(find_live(model, _ALL).layers)
    apart = (distance(each, x, y) for each in (ours, model))
    parts = (
        name,
        f"{layers}",
        f"{count:,}",
        f"{100 * torchs / count:.1f} %",
        f"{100 * right / count:.3f} %" + (f" ({left} open)" if left else ""),
        " / ".join(f"{each:.1e}" for each in apart),
    )
    return f"| {' | '.join(parts)} |"


def of_row(its: KindRow, width: int) -> Callable[[], tuple[nn.Module, Any]]:
    """A model of a row, with its inputs as a tuple."""

    def made() -> tuple[nn.Module, Any]:
        model, x = its.model(width)
        return model, (x,)

    return made


def biggan() -> tuple[nn.Module, Any]:
    """The generator of the package, a quarter as wide as the smallest that was published."""
    from pytorch_pretrained_biggan.config import BigGANConfig  # type: ignore[import-not-found]
    from pytorch_pretrained_biggan.model import BigGAN  # type: ignore[import-not-found]

    torch.manual_seed(11)
    model: Any = BigGAN(BigGANConfig(channel_width=32)).generator
    nn.init.ones_(model.bn.weight)
    nn.init.zeros_(model.bn.bias)
    x = torch.randn(1, 256)
    with torch.no_grad():
        for _ in range(5):
            model(x, 0.4)
        model.eval()(x, 0.4)
    return model, (x, 0.4)


def rows() -> Iterator[str]:
    """All lines of the table."""
    wide = {"spectral norm of weight norm": 32, "BigGAN-deep's generator": 8}
    for name, its in KIND_ROWS.items():
        width = 128 if name.startswith("HiFi-GAN") else wide.get(name, 64)
        shape = tuple(8192 if size == 512 else size for size in its.shape)
        yield row(name, of_row(replace(its, shape=shape), width))
    for missing in ("boto3", "requests", "botocore", "botocore.exceptions"):
        stand_in: Any = ModuleType(missing)  # the package downloads by them, which is not asked for
        stand_in.ClientError = OSError
        sys.modules.setdefault(missing, stand_in)
    try:
        import pytorch_pretrained_biggan  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        yield "pytorch-pretrained-biggan is not installed"
    else:
        yield row("pytorch-pretrained-biggan", biggan)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for line in rows():
        print(line, flush=True)
