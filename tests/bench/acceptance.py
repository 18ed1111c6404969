"""Twelve models, most of three libraries: how many weights are correctly rounded, how far outputs are off.

Run by hand, in an environment of its own with timm==1.0.31, torchvision==0.28.0, transformers==5.24.0:

    python -m tests.bench.acceptance [NAME …]

torchvision's wheel for CUDA cannot load its operators beside torch for the CPU, and then ends on import, as
it registers shapes for two that are not there: they are declared here, since no model of these calls them.

Weights are random, statistics and affines scrambled. *ours*: ``recipe_of`` and ``fold_module``. *peer*: the
float32 arithmetic that people run: that of torch's ``fuse_conv_bn_eval`` and ``fuse_linear_bn_eval``, and of
timm's classes for standardized weights. Correct is what the exact formula rounds to, of a sample of the
elements of every layer, with 300 bits. Distances are root mean squares from the model in float64, as a part
of its output's.
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mpmath import mp  # type: ignore[import-untyped]
from torch import Tensor, nn

from tests.bench.nets import Tcn
from wnconvert.layers.rules import AffineBefore, Neighbour, Norm, NormBefore, NormBehind, Rule, Standardize
from wnconvert.layers.schemes import Layer
from wnconvert.verbs.models.proof.functions import input_names
from wnconvert.verbs.modules.convert import fold_module
from wnconvert.verbs.modules.folding.layers import by_channel
from wnconvert.verbs.recipes.recipe import recipe_of

__all__ = ["MODELS", "Figures", "measured"]


@dataclass(frozen=True)
class Model:
    """A model by the call that makes it, and the shape of its input, or its ids."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    ids: int = 0

    def inputs(self) -> str:
        """The input in the words of ``recipe_of``, under its name."""
        dtype = f"int64[{','.join(map(str, self.shape))}]<{self.ids}" if self.ids else ""
        return dtype or f"float32[{','.join(map(str, self.shape))}]"


def _timm(name: str, **options: Any) -> nn.Module:
    import timm  # type: ignore[import-not-found, unused-ignore]

    made: nn.Module = timm.create_model(name, pretrained=False, **options)
    return made


def _declare_operators() -> None:
    """Declare what torchvision and timm ask for on import, where torchvision's own library did not load."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(
                f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )


def _torchvision(name: str) -> nn.Module:
    import torchvision  # type: ignore[import-not-found, unused-ignore]

    made: nn.Module = getattr(torchvision.models, name)(weights=None)
    return made


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1000,
        use_cache=False,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    made: nn.Module = LlamaForCausalLM(config)
    return made


MODELS: Mapping[str, Model] = {
    "torchvision resnet50": Model(lambda: _torchvision("resnet50"), (1, 3, 64, 64)),
    "torchvision mobilenet_v3_small": Model(lambda: _torchvision("mobilenet_v3_small"), (1, 3, 64, 64)),
    "timm efficientnet_b0": Model(lambda: _timm("efficientnet_b0"), (1, 3, 64, 64)),
    "timm repvgg_a0": Model(lambda: _timm("repvgg_a0"), (1, 3, 64, 64)),
    "timm levit_128s": Model(lambda: _timm("levit_128s"), (1, 3, 224, 224)),
    "timm resnetv2_50x1_bit": Model(lambda: _timm("resnetv2_50x1_bit"), (1, 3, 64, 64)),
    "timm nf_resnet26": Model(lambda: _timm("nf_resnet26"), (1, 3, 64, 64)),
    "timm eca_nfnet_l0": Model(lambda: _timm("eca_nfnet_l0"), (1, 3, 64, 64)),
    "timm vit_small_r26_s32": Model(lambda: _timm("vit_small_r26_s32_224", img_size=64), (1, 3, 64, 64)),
    "timm vit_tiny": Model(lambda: _timm("vit_tiny_patch16_224", img_size=64), (1, 3, 64, 64)),
    "transformers Llama": Model(_llama, (1, 12), 1000),
    "TCN, weight norm and batch norm": Model(Tcn, (1, 16, 100)),
}


@dataclass(frozen=True)
class Figures:
    """What was measured of a model; shares are of the elements that were looked at."""

    name: str
    layers: int
    elements: int
    ours: float
    peer: float
    folded: float
    unfolded: float
    seconds: float

    def __str__(self) -> str:
        ratio = self.folded / self.unfolded if self.unfolded else 0.0
        return (
            f"| {self.name} | {self.layers} | {self.elements:,} | {self.ours:.3%} | {self.peer:.1%} | "
            f"{self.folded:.1e} / {self.unfolded:.1e} = {ratio:.2f} | {self.seconds:.0f} s |"
        )


def scramble(model: nn.Module) -> nn.Module:
    """Draw statistics and affines, and gains."""
    source = torch.Generator().manual_seed(3)
    for module in model.modules():
        held = {**module._parameters, **module._buffers}
        mean, variance = held.get("running_mean"), held.get("running_var")
        if mean is not None and variance is not None:
            mean.normal_(std=0.1, generator=source)
            variance.copy_(torch.empty_like(variance).uniform_(0.3, 2, generator=source))
        for name in ("weight", "bias", "gain"):
            value = held.get(name)
            if isinstance(value, nn.Parameter) and (value.dim() == 1 or name == "gain"):
                value.data.uniform_(0.5, 1.5, generator=source)
                if name == "bias":
                    value.data.sub_(1)
    return model.eval()


def measured(name: str) -> Figures:
    """Fold a model, and compare it and its peer with exact numbers and with the model in float64."""
    began, model = time.perf_counter(), MODELS[name]
    torch.manual_seed(1)
    module = scramble(model.make())
    called = "input_ids" if model.ids else input_names(module)[0][0]
    recipe = recipe_of(module, inputs=f"{called}={model.inputs()}")
    x = torch.randint(0, model.ids, model.shape) if model.ids else torch.randn(model.shape)
    exact, plain = _run(copy.deepcopy(module).double(), x.double() if not model.ids else x), _run(module, x)
    folded = copy.deepcopy(module)
    layers = fold_module(folded, recipe=recipe)
    ours, peer, count = [], [], 0
    for right, made, other in _judged(module, folded, layers):
        ours.append(int((made == right).sum()))
        peer.append(int((other == right).sum()))
        count += right.numel()
    found = _run(folded, x)
    return Figures(
        name,
        len(layers),
        count,
        sum(ours) / max(count, 1),
        sum(peer) / max(count, 1),
        _far(found, exact),
        _far(plain, exact),
        time.perf_counter() - began,
    )


def _run(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out = module(x)
    out = getattr(out, "logits", out)
    made: Tensor = out[0] if isinstance(out, tuple) else out
    return made.double()


def _far(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt())


# -- the judge


#: How many elements of a weight are looked at.
_SAMPLE = 200
#: 2 to this power makes an integer of any float32.
_POWER = 149


def _judged(
    module: nn.Module, folded: nn.Module, layers: Iterable[Layer]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each layer some elements: the correctly rounded ones, ours, and the peer's."""
    before: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    after = dict(folded.named_parameters())
    source = torch.Generator().manual_seed(5)
    for layer in layers:
        parts = {role: before[info.name].detach() for role, info in layer.parts.items()}
        made = after[layer.name].detach()
        peer = _peer(layer, parts)
        places = torch.randint(0, made.numel(), (min(_SAMPLE, made.numel()),), generator=source)
        right = exact_elements(layer.rule, parts, places)
        yield right, made.reshape(-1)[places], peer.reshape(-1)[places]


def exact_elements(rule: Rule, parts: Mapping[str, Tensor], places: Tensor) -> Tensor:
    """Elements of a float32 weight, correctly rounded: 300 bits, then one rounding."""
    mp.prec = 300
    w = parts["original"].double()
    rows: dict[int, tuple[Any, Any]] = {}
    found = []
    for place in places.tolist():
        index = tuple(int(each) for each in np.unravel_index(place, tuple(w.shape)))
        value = mp.mpf(w[index].item())
        for operation in rule.operations:
            if isinstance(operation, Standardize):
                at = index[operation.dim]
                if at not in rows:
                    rows[at] = _row(operation, w.select(operation.dim, at), parts, at)
                mean, factor = rows[at]
                value = (value - mean) * factor
            elif isinstance(operation, Norm) and operation.dim is not None:
                at = index[operation.dim]
                if at not in rows:
                    rows[at] = _norm(w.select(operation.dim, at), parts["g"].reshape(-1)[at])
                value = value * rows[at][1]
            elif isinstance(operation, (NormBehind, NormBefore, AffineBefore)):
                value = value * _factor(operation, index, tuple(w.shape), parts)
            else:
                raise NotImplementedError(type(operation).__name__)
        found.append(_nearest(value))
    return torch.tensor(found, dtype=torch.float32)


def _sums(row: Tensor) -> tuple[int, Any, Any]:
    """The number of elements of a row, their sum and the sum of their squares, exactly: in integers."""
    values = [int(value * 2.0**_POWER) for value in row.reshape(-1).tolist()]
    total, squares = sum(values), sum(value * value for value in values)
    return len(values), mp.ldexp(mp.mpf(total), -_POWER), mp.ldexp(mp.mpf(squares), -2 * _POWER)


def _norm(row: Tensor, g: Tensor) -> tuple[Any, Any]:
    """The mean that is subtracted from a row, which is none, and the factor of it."""
    return 0, mp.mpf(g.item()) / mp.sqrt(_sums(row)[2])


def _row(operation: Standardize, row: Tensor, parts: Mapping[str, Tensor], at: int) -> tuple[Any, Any]:
    """The mean and the factor of a row."""
    count, total, squares = _sums(row)
    mean = total / count
    variance = (squares - total * mean) / (count if operation.std == "biased" else count - 1)
    if operation.eps_at == "var":
        divisor = mp.sqrt(variance + mp.mpf(operation.eps))
    elif operation.eps_at == "std":
        divisor = mp.sqrt(variance) + mp.mpf(operation.eps)
    else:
        divisor = mp.sqrt(max(variance * operation.fan, mp.mpf(operation.eps)))
    gain = mp.mpf(parts["gain"].reshape(-1)[at].item()) if operation.gain else mp.mpf(1)
    return mean, gain * mp.mpf(operation.scale) / divisor


def _factor(
    operation: Neighbour, index: tuple[int, ...], shape: tuple[int, ...], parts: Mapping[str, Tensor]
) -> Any:
    """What an element is multiplied by for the norm."""
    channel = index[operation.dim]
    if operation.dim == 1:
        channel += index[0] // (shape[0] // operation.groups) * shape[1]
    gamma = mp.mpf(parts["gamma"].reshape(-1)[channel].item()) if "gamma" in operation.roles else mp.mpf(1)
    if isinstance(operation, AffineBefore):
        return gamma
    return gamma / mp.sqrt(mp.mpf(parts["variance"][channel].item()) + mp.mpf(operation.eps))


def _nearest(value: Any) -> float:
    """The float32 next to a number of many digits, decided among neighbours and not by two roundings."""
    guess = torch.tensor(float(value), dtype=torch.float32)
    ends = [guess, *(torch.nextafter(guess, torch.tensor(end)) for end in (float("inf"), -float("inf")))]
    return min((each.item() for each in ends), key=lambda each: abs(mp.mpf(each) - value))


def _peer(layer: Layer, parts: Mapping[str, Tensor]) -> Tensor:
    """The weight that people's own ways give, in float32."""
    w = parts["original"]
    for operation in layer.rule.operations:
        if isinstance(operation, Standardize):
            w = _as_timm(operation, w, parts)
        elif isinstance(operation, Norm) and operation.dim is not None:
            w = torch._weight_norm(w, parts["g"], operation.dim)
        elif isinstance(operation, AffineBefore):
            w = w * by_channel(parts["gamma"], operation, tuple(w.shape))
        elif isinstance(operation, (NormBehind, NormBefore)):  # torch.nn.utils.fusion
            factor = torch.rsqrt(parts["variance"] + operation.eps)
            factor = parts["gamma"] * factor if "gamma" in operation.roles else factor
            w = w * by_channel(factor, operation, tuple(w.shape))
    return w


def _as_timm(operation: Standardize, w: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    """As timm's classes do: batch norm of the rows."""
    gain = parts["gain"].reshape(-1) * operation.scale if operation.gain else None
    flat, options = w.reshape(1, w.shape[0], -1), {"training": True, "momentum": 0.0, "eps": operation.eps}
    return nn.functional.batch_norm(flat, None, None, weight=gain, **options).reshape(w.shape)  # type: ignore[arg-type]


def main(names: list[str]) -> None:
    """Print a row for each model."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    _declare_operators()
    print("| model | layers | elements | ours | peer | folded / unfolded from float64 | |")
    print("|---|---|---|---|---|---|---|")
    for name in names or MODELS:
        print(measured(name), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
