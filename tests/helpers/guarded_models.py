"""Layers whose weights are divided by a norm with an eps, as code spells them, and exported by torch.

``python -m tests.helpers.guarded_models`` prints a table: each spelling, exporter and opset, and the fold.
"""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wnconvert import fold_file
from wnconvert.errors import WnconvertError
from wnconvert.layers.kinds.formulas import formula_in_words
from wnconvert.layers.rules import Guard, GuardAt, Norm, Unit

EXPORTERS = ("dynamo", "torchscript")
FOLDING = "torchscript, folding"
OPSETS = tuple(range(13, 21))
#: How long a row of v is that is below most eps.
_SHORT = 1e-9


@dataclass(frozen=True)
class Spelled:
    """How a weight is made of v and g, and what it is; the numbers of graphs are those of float32."""

    made: Callable[[Tensor, Tensor], Tensor]
    operation: Norm | Unit


def _f32(number: float) -> float:
    return float(np.float32(number))


def _norm(eps: float, at: GuardAt = "max", share: Fraction = Fraction(1)) -> Norm:
    return Norm(0, Guard(_f32(eps), at, share))


def _unit(eps: float, scale: float = 1.0) -> Unit:
    return Unit(0, Guard(_f32(eps)), Fraction(scale))


def _length(v: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(v, dim=(1, 2), keepdim=True)
    return norms


def _chosen(v: Tensor, g: Tensor) -> Tensor:
    n = _length(v)
    return g * v / torch.where(n > 1e-3, n, torch.full_like(n, 1e-3))


def _edm2(v: Tensor, _g: Tensor) -> Tensor:
    """EDM2's ``normalize``, and what its ``MPConv`` makes of it with a gain of 1."""
    n = torch.add(1e-4, _length(v), alpha=math.sqrt(len(v) / v.numel()))
    return v / n * (1 / math.sqrt(v[0].numel()))


def _flat(v: Tensor) -> Tensor:
    return torch.as_tensor(functional.normalize(v.flatten(1))).view_as(v)


#: Elements of a row, and rows.
_COUNT, _ROWS = 12, 6
_ROOT = Fraction(_f32(math.sqrt(1 / _COUNT)))

SPELLED: dict[str, Spelled] = {
    "g * F.normalize(v)": Spelled(lambda v, g: g * _flat(v), _norm(1e-12)),
    "F.normalize(v)": Spelled(lambda v, g: _flat(v), _unit(1e-12)),
    "16 * F.normalize(v)": Spelled(lambda v, g: 16 * _flat(v), _unit(1e-12, 16)),
    "g*v / norm.clamp(min=eps)": Spelled(lambda v, g: g * v / _length(v).clamp(min=1e-5), _norm(1e-5)),
    "g*v / maximum(norm, eps)": Spelled(
        lambda v, g: g * v / torch.maximum(_length(v), torch.tensor(1e-5)), _norm(1e-5)
    ),
    "g*v / where(norm > eps, norm, eps)": Spelled(_chosen, _norm(1e-3)),
    "g*v / (norm + eps)": Spelled(lambda v, g: g * v / (_length(v) + 1e-8), _norm(1e-8, "norm")),
    "g*v * rsqrt(squares + eps)": Spelled(
        lambda v, g: g * v * torch.rsqrt((v * v).sum((1, 2), keepdim=True) + 1e-6), _norm(1e-6, "squares")
    ),
    "g*v * rsqrt(mean + eps)": Spelled(
        lambda v, g: g * v * torch.rsqrt(v.square().mean((1, 2), keepdim=True) + 1e-6),
        _norm(1e-6, "squares", Fraction(1, _COUNT)),
    ),
    "g*v * rsqrt(max(squares, eps))": Spelled(
        lambda v, g: g * v * torch.rsqrt(v.square().sum((1, 2), keepdim=True).clamp_min(1e-12)),
        _norm(1e-12, "max of squares"),
    ),
    "EDM2": Spelled(_edm2, Unit(0, Guard(_f32(1e-4), "norm", _ROOT), _ROOT)),
}


class Guarded(nn.Module):
    """A convolution whose weight is spelled so; one of its rows is below every eps."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(16)
        v = torch.randn(_ROWS, 4, 3)
        v[1] *= _SHORT
        self.weight_v, self.weight_g = nn.Parameter(v), nn.Parameter(torch.rand(_ROWS, 1, 1) + 0.5)
        self.made = SPELLED[name].made

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv1d(x, self.made(self.weight_v, self.weight_g))


def exported(name: str, exporter: str, opset: int, path: Path) -> None:
    """Export a layer with its arithmetic, which optimizers would compute of so small a weight.

    The exporter ``torchscript, folding`` is the older one as it is by default: it computes some of it.
    """
    options: dict[str, Any] = {"dynamo": False, "do_constant_folding": exporter == FOLDING}
    if exporter == "dynamo":
        options = {"dynamo": True, "optimize": False, "external_data": False, "verbose": False}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        x = torch.randn(1, 4, 9)
        torch.onnx.export(Guarded(name).eval(), (x,), path, input_names=["x"], opset_version=opset, **options)


def table() -> Iterator[str]:
    """The rows of a table in Markdown: what each spelling is folded as, for each exporter and opset."""
    yield "| spelling | exporter | opset | folded as |"
    yield "|---|---|---|---|"
    for name in SPELLED:
        for exporter in (*EXPORTERS, FOLDING):
            found: dict[str, list[int]] = {}
            for opset in OPSETS:
                found.setdefault(_folded_as(name, exporter, opset), []).append(opset)
            for formula, opsets in found.items():
                yield f"| `{name}` | {exporter} | {', '.join(map(str, opsets))} | {formula} |"


def _folded_as(name: str, exporter: str, opset: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.onnx"
        try:
            exported(name, exporter, opset, path)
        except Exception as error:  # noqa: BLE001 -- whatever an exporter raises
            return f"not exported: {type(error).__name__}"
        try:
            result = fold_file(path, Path(folder) / "out.onnx", kinds="weight,unit")
        except WnconvertError as error:
            return f"refused: {error.what}"
        if result.plan.computed:
            return f"left: {result.plan.computed[0].reason}"
        rules = [change.layer.rule for _, change in result.plan.changes]
        words = [f"{rule.kind}: {formula_in_words(rule)}" for rule in rules]
        words += ["a quotient of stored tensors" for constant in result.plan.constants if constant.exact]
        return ", ".join(words) or "nothing: the exporter computed all of it"


if __name__ == "__main__":
    for row in table():
        print(row, flush=True)
