"""Recipes of many architectures, told and held against an independent truth, run by hand.

    pip install timm==1.0.31 torchvision==0.28.0 torch==2.13.0     (in an environment of its own)
    python -m tests.bench.architectures [--most N] [NAMES …]

A model is built on the meta device and traced there, without weights. The truth is told by hooks on modules
alone: a batch norm whose input is the very tensor that a convolution or a linear layer returned, both called
once, and read by nobody else. A line for each model: batch norms, folds behind, pairs that the truth has and
the recipe has not, pairs that are wrong, seconds.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wnconvert.verbs.models.proof.functions import named_outputs
from wnconvert.verbs.recipes.finding.behind import pairs_behind
from wnconvert.verbs.recipes.finding.told import told_of
from wnconvert.verbs.recipes.tracing.trace import traced

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
_NORM = nn.modules.batchnorm._BatchNorm
#: Inputs are tried from small to large: some models take one size alone.
_SIZES = (64, 96, 128, 224, 256, 299)


def truth(module: nn.Module, x: Tensor) -> dict[str, str]:
    """The norms that follow a layer directly, by hooks: what a norm is given is what a layer returned."""
    names = {each: name for name, each in module.named_modules()}
    made: dict[int, str] = {}
    held: list[Tensor] = []
    found: dict[str, str] = {}
    calls: Counter[str] = Counter()

    def after(each: nn.Module, given: Any, result: Any) -> None:
        calls[names[each]] += 1
        if isinstance(each, _LAYERS):
            made[id(result)] = names[each]
            held.append(result)
        elif id(given[0]) in made:
            found[names[each]] = made[id(given[0])]

    hooks = [each.register_forward_hook(after) for each in names if isinstance(each, (*_LAYERS, _NORM))]
    with torch.no_grad():
        module(x)
    for hook in hooks:
        hook.remove()
    return {norm: layer for norm, layer in found.items() if calls[norm] == calls[layer] == 1}


def models(names: list[str]) -> Iterator[tuple[str, Any]]:
    """The architectures with their factories: those named, or one of each module of timm and torchvision."""
    timm, vision = (importlib.import_module(name) for name in ("timm", "torchvision.models"))
    every = [(f"tv:{name}", lambda name=name: vision.get_model(name)) for name in vision.list_models(vision)]
    modules: dict[str, list[str]] = {
        timm.models.model_entrypoint(name).__module__: [] for name in timm.list_models()
    }
    for name in timm.list_models():
        modules[timm.models.model_entrypoint(name).__module__].append(name)
    for of_module in modules.values():
        every += [(f"timm:{name}", lambda name=name: timm.create_model(name)) for name in of_module[:8]]
    yield from (item for item in every if not names or item[0] in names)


def _outputs(module: nn.Module, x: Tensor) -> list[Tensor]:
    return [value for _, value in named_outputs(module(x))]


def run(name: str, factory: Any) -> str:
    """One line for one architecture."""
    began = time.perf_counter()
    with torch.device("meta"):
        module = factory().eval()
    count = sum(isinstance(each, _NORM) for each in module.modules())
    if not count:
        return ""
    failed = ""
    trace = x = None
    for size in _SIZES:
        x = torch.empty(1, 3, size, size, device="meta")
        try:
            trace = traced(module, partial(_outputs, module, x), [x])
            break
        except Exception as error:  # noqa: BLE001 - another size is tried, and the last error is shown
            failed = f"{type(error).__name__}: {str(error)[:60]}"
    if trace is None or x is None:
        return f"{name:<44} not run: {failed}"
    told = told_of(module, trace)
    pairs, _ = pairs_behind(trace, told.linears, told.norms)
    found = {pair.fold.norm: pair.fold.weight.rpartition(".")[0] for pair in pairs}
    true = truth(module, x)
    lacking = sum(norm not in found for norm in true)
    wrong = sum(norm in true and found[norm] != true[norm] for norm in found)
    extra = sum(norm not in true for norm in found)
    seconds = time.perf_counter() - began
    return f"{name:<44}{count:>6}{len(found):>6}{lacking:>9}{wrong:>7}{extra:>7}{seconds:>8.1f}"


def main() -> None:
    """Run by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--most", type=int, default=10_000)
    asked = parser.parse_args()
    print(f"{'architecture':<44}{'norms':>6}{'folds':>6}{'lacking':>9}{'wrong':>7}{'views':>7}{'seconds':>8}")
    for place, (name, factory) in enumerate(models(asked.names)):
        if place >= asked.most:
            break
        try:
            line = run(name, factory)
        except Exception as error:  # noqa: BLE001 - one model must not end the run
            line = f"{name:<44} not built: {type(error).__name__}: {str(error)[:60]}"
        if line:
            print(line, flush=True)


if __name__ == "__main__":
    main()
