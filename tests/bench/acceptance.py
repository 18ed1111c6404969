"""Twelve models, most of three libraries: how many weights are correctly rounded, how far outputs are off.

Run by hand, in an environment of its own with timm==1.0.31, torchvision==0.28.0, transformers==5.24.0:

    python -m tests.bench.acceptance [NAME …]

torchvision's wheel for CUDA cannot load its operators beside torch for the CPU, and then ends on import, as
it registers shapes for two that are not there: they are declared here, since no model of these calls them.

Weights are random, statistics and affines scrambled. *ours*: ``recipe_of`` and ``fold_module``. *peer*: what
people run in float32 (``judge.usual``). Correct is what the exact formula rounds to, of a sample of the
elements of every layer (``judge.exact_weights``, ``exact_biases``). Distances are root mean squares from the
model in float64, as a part of its output's. The exit code is 1 if an element of ours is not correct, or ours
is further off than 1.5 × the model unfolded.
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.bench import judge
from tests.bench.nets import Tcn
from wnconvert.layers.schemes import Layer
from wnconvert.verbs.models.proof.inputs.forwards import forward_of
from wnconvert.verbs.modules.convert import fold_module
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
    "torchvision resnet50": Model(lambda: _torchvision("resnet50"), (2, 3, 64, 64)),
    "torchvision mobilenet_v3_small": Model(lambda: _torchvision("mobilenet_v3_small"), (2, 3, 64, 64)),
    "timm efficientnet_b0": Model(lambda: _timm("efficientnet_b0"), (2, 3, 64, 64)),
    "timm repvgg_a0": Model(lambda: _timm("repvgg_a0"), (2, 3, 64, 64)),
    "timm levit_128s": Model(lambda: _timm("levit_128s"), (2, 3, 224, 224)),
    "timm resnetv2_50x1_bit": Model(lambda: _timm("resnetv2_50x1_bit"), (2, 3, 64, 64)),
    "timm nf_resnet26": Model(lambda: _timm("nf_resnet26"), (2, 3, 64, 64)),
    "timm eca_nfnet_l0": Model(lambda: _timm("eca_nfnet_l0"), (2, 3, 64, 64)),
    "timm vit_small_r26_s32": Model(lambda: _timm("vit_small_r26_s32_224", img_size=64), (2, 3, 64, 64)),
    "timm vit_tiny": Model(lambda: _timm("vit_tiny_patch16_224", img_size=64), (2, 3, 64, 64)),
    "transformers Llama": Model(_llama, (2, 12), 1000),
    "TCN, weight norm and batch norm": Model(Tcn, (2, 16, 100)),
}


#: How many elements of a weight, and of a bias, are looked at.
_SAMPLE = 200
#: How much further off than the model itself ours may be.
_MOST = 1.5


@dataclass(frozen=True)
class Share:
    """How many elements of ours and of the peer's are the correct ones."""

    elements: int = 0
    ours: int = 0
    peers: int = 0

    def __add__(self, other: Share) -> Share:
        return Share(self.elements + other.elements, self.ours + other.ours, self.peers + other.peers)

    def __str__(self) -> str:
        if not self.elements:
            return "- | -"
        return f"{self.ours / self.elements:.3%} of {self.elements:,} | {self.peers / self.elements:.1%}"


@dataclass(frozen=True)
class Figures:
    """What was measured of a model; distances are from the model in float64."""

    name: str
    layers: int
    weights: Share
    biases: Share
    unfolded: float
    folded: float
    peer: float
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether all of ours is correct, and not further off than it may be."""
        exact = all(share.ours == share.elements for share in (self.weights, self.biases))
        return exact and self.layers > 0 and self.folded <= _MOST * self.unfolded

    def __str__(self) -> str:
        far = [f"{each:.1e}" for each in (self.unfolded, self.folded, self.peer)]
        ratio = f"{self.folded / self.unfolded:.2f}" + ("" if self.holds else " MISSED")
        cells = (self.name, self.layers, self.weights, self.biases, *far, ratio, f"{self.seconds:.0f} s")
        return f"| {' | '.join(map(str, cells))} |"


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
    called = "input_ids" if model.ids else forward_of(module).names[0]
    recipe = recipe_of(module, inputs=f"{called}={model.inputs()}")
    x = torch.randint(0, model.ids, model.shape) if model.ids else torch.randn(model.shape)
    exact, plain = _run(copy.deepcopy(module).double(), x.double() if not model.ids else x), _run(module, x)
    folded = copy.deepcopy(module)
    layers = fold_module(folded, recipe=recipe)
    peer = copy.deepcopy(folded)
    weights, biases = _judged(module, folded, peer, layers)
    far, of_ours, of_peer = (_far(each, exact) for each in (plain, _run(folded, x), _run(peer, x)))
    seconds = time.perf_counter() - began
    return Figures(name, len(layers), weights, biases, far, of_ours, of_peer, seconds)


def _run(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out = module(x)
    out = getattr(out, "logits", out)
    made: Tensor = out[0] if isinstance(out, tuple) else out
    return made.double()


def _far(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def _judged(
    module: nn.Module, ours: nn.Module, peer: nn.Module, layers: Iterable[Layer]
) -> tuple[Share, Share]:
    """Hold elements of each layer's weight and bias against the exact ones; the peer gets its numbers."""
    before: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    made, others = dict(ours.named_parameters()), dict(peer.named_parameters())
    source, weights, biases = torch.Generator().manual_seed(5), Share(), Share()
    for layer in layers:
        parts = {role: before[info.name].detach() for role, info in layer.parts.items()}
        weight, bias = judge.usual(layer.rule, parts)
        others[layer.name].data.copy_(weight)
        places = _sample(weight.numel(), source)
        exact = judge.exact_weights(layer.rule, parts, places)
        weights += _share(exact, made[layer.name], weight, places)
        if bias is not None:
            others[layer.bias].data.copy_(bias)
            places = _sample(bias.numel(), source)
            exact = judge.exact_biases(layer.rule, parts, places)
            biases += _share(exact, made[layer.bias], bias, places)
    return weights, biases


def _sample(count: int, source: torch.Generator) -> Tensor:
    return torch.randint(0, count, (min(_SAMPLE, count),), generator=source)


def _share(exact: Tensor, ours: Tensor, peers: Tensor, places: Tensor) -> Share:
    counts = [int((each.detach().reshape(-1)[places] == exact).sum()) for each in (ours, peers)]
    return Share(exact.numel(), *counts)


def main(names: list[str]) -> int:
    """Print a row for each model; the exit code."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    _declare_operators()
    print(
        "| model | layers | weights, ours | peer | biases, ours | peer | unfolded | ours | peer | ratio | |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    holds = True
    for name in names or MODELS:
        found = measured(name)
        holds = holds and found.holds
        print(found, flush=True)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
