"""Recipes of many architectures, told without weights and held against other truths, run by hand.

    pip install timm==1.0.31 torchvision==0.28.0 torch==2.13.0     (in an environment of its own)
    python -m tests.bench.architectures [--part 0/2] [--most N] [NAMES …]

A model is built on the meta device and traced there, without weights, at the smallest size that it takes. Of
each module of timm up to five architectures are taken, spread over its list, and all of torchvision's that
classify. What the trace tells is held against hooks on modules, which see alone what modules are given and
return: a norm belongs to the layer whose output it is given, in the same memory, not written to since, both
called once. And what names tell, without code, is held against what the trace tells.

A line for each model:

norms    batch norms that it has            folds    of them behind a layer, by the trace
lacking  pairs that hooks have alone        wrong    pairs of which hooks say another layer
shared   those of layers whose output something else reads too, which hooks do not see, and the trace says
alone    pairs that hooks cannot see: functions on a module's parameters, or weights that are no module's
names    pairs told by names                off      those that the trace does not have, of norms that ran
idle     those of norms that no forward in eval runs, such as auxiliary heads

The proof of a recipe, and that it refuses mutants, is in ``tests.bench.mutants``.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wnconvert.layers.telling.neighbours import told_by_names
from wnconvert.tensors.memory import tree_of
from wnconvert.verbs.models.proof.functions import named_outputs
from wnconvert.verbs.recipes.finding.behind import pairs_behind
from wnconvert.verbs.recipes.finding.told import told_of
from wnconvert.verbs.recipes.tracing.trace import Trace, traced

__all__ = ["Factory", "factories", "vision"]


#: A module with random weights, or without any on the meta device.
Factory = Callable[[], nn.Module]
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
_NORM = nn.modules.batchnorm._BatchNorm
#: Inputs are tried from small to large: some models take one size alone.
_SIZES = (64, 96, 128, 160, 224, 256, 299, 384)
#: Architectures of one module of timm.
_OF_MODULE = 5


def vision() -> Any:
    """``torchvision``, also where its compiled operators are those of another build of torch's.

    It registers functions for them when it is imported, and fails where they are not there. No model here
    uses them, so that their names are enough.
    """
    lacking = [name for name in ("nms", "qnms") if not hasattr(torch.ops.torchvision, name)]
    if lacking and importlib.util.find_spec("torchvision"):
        try:
            return importlib.import_module("torchvision.models")
        except RuntimeError:
            library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
            for name in lacking:
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _OPERATORS.append(library)
    return importlib.import_module("torchvision.models")


_OPERATORS: list[Any] = []


def factories(names: list[str]) -> Iterator[tuple[str, Factory]]:
    """The architectures with their factories: those named, or a choice of all."""
    models, timm = vision(), importlib.import_module("timm")
    makers = {"tv": models.get_model, "timm": timm.create_model}
    for name in names or _chosen(models, timm):
        package, _, architecture = name.partition(":")
        yield name, partial(makers[package], architecture)


def _chosen(models: Any, timm: Any) -> Iterator[str]:
    """All of torchvision's that classify, and some of each module of timm."""
    yield from (f"tv:{name}" for name in models.list_models(models))
    modules: dict[str, list[str]] = {}
    for name in timm.list_models():
        modules.setdefault(timm.models.model_entrypoint(name).__module__, []).append(name)
    for of_module in modules.values():
        spread = of_module[:: max(1, len(of_module) // (_OF_MODULE - 1))][:_OF_MODULE]
        yield from (f"timm:{name}" for name in spread)


def hooked(module: nn.Module, x: Tensor) -> dict[str, str]:
    """The layer before each norm, by hooks."""
    names = {each: name for name, each in module.named_modules()}
    made: dict[tuple[int, int, int], str] = {}
    held: list[Tensor] = []
    found: dict[str, str] = {}
    calls: Counter[str] = Counter()

    def moment(tensor: Tensor) -> tuple[int, int, int]:
        held.append(tensor)  # so that no other tensor takes its memory
        return tensor.untyped_storage()._cdata, tensor._version, tensor.numel()

    def after(each: nn.Module, _given: Any, result: Any) -> None:
        calls[names[each]] += 1
        if isinstance(each, _LAYERS):
            made[moment(result)] = names[each]

    def before(each: nn.Module, given: Any) -> None:
        layer = made.get(moment(given[0]))
        if layer is not None:
            found[names[each]] = layer

    hooks = [each.register_forward_hook(after) for each in names if isinstance(each, (*_LAYERS, _NORM))]
    hooks += [each.register_forward_pre_hook(before) for each in names if isinstance(each, _NORM)]
    with torch.no_grad():
        module(x)
    for hook in hooks:
        hook.remove()
    return {norm: layer for norm, layer in found.items() if calls[norm] == calls[layer] == 1}


@dataclass(frozen=True)
class Row:
    """The counts of one architecture, as the page of this script says."""

    norms: int
    folds: int
    lacking: int
    shared: int
    wrong: int
    alone: int
    names: int
    off: int
    idle: int
    seconds: float


def row_of(factory: Factory) -> Row | None:
    """The counts of one architecture; None if it has no batch norms."""
    began = time.perf_counter()
    module = _without_weights(factory).eval()
    count = sum(isinstance(each, _NORM) for each in module.modules())
    if not count:
        return None
    trace, x = _traced(module)
    told = told_of(module, trace)
    pairs, left = pairs_behind(trace, told.linears, told.norms)
    found = {pair.fold.norm: pair.fold.weight.rpartition(".")[0] for pair in pairs}
    ran = {norm.name for norm in told.norms}
    shared = {norm.name for norm, reason in left if reason == "the output of its layer is used elsewhere too"}
    true = hooked(module, x)
    state = tree_of(module.state_dict())[0].state_dict("")
    named = {fold.norm: fold.weight.rpartition(".")[0] for fold in told_by_names(state, 1e-5).folds}
    return Row(
        norms=count,
        folds=len(found),
        lacking=len(true.keys() - found - shared),
        shared=len(true.keys() & shared),
        wrong=sum(true.get(norm, layer) != layer for norm, layer in found.items()),
        alone=len(found.keys() - true),
        names=len(named),
        off=sum(norm in ran and found.get(norm) != layer for norm, layer in named.items()),
        idle=len(named.keys() - ran),
        seconds=time.perf_counter() - began,
    )


def _without_weights(factory: Factory) -> nn.Module:
    """A module on the meta device; its constructor may need numbers, and then it is put there afterwards."""
    try:
        with torch.device("meta"):
            return factory()
    except NotImplementedError:
        return factory().to("meta")


def _traced(module: nn.Module) -> tuple[Trace, Tensor]:
    """A trace at the smallest size at which a model runs, and its input."""
    failed: Exception | None = None
    for size in _SIZES:
        x = torch.empty(1, 3, size, size, device="meta")
        try:
            return traced(module, partial(_outputs, module, x), [x]), x
        except Exception as error:  # noqa: BLE001 - another size is tried, and the last error is raised
            failed = error
    raise RuntimeError(f"it runs at none of {_SIZES}") from failed


def _outputs(module: nn.Module, x: Tensor) -> list[Tensor]:
    return [value for _, value in named_outputs(module(x))]


def _line(name: str, cells: list[str]) -> str:
    return f"{name:<44}" + "".join(f"{cell:>8}" for cell in cells)


def main() -> None:
    """Run by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--most", type=int, default=10_000)
    parser.add_argument("--part", default="0/1", help="which of how many parts, such as 0/2")
    asked = parser.parse_args()
    part, parts = map(int, asked.part.split("/"))
    print(_line("architecture", [field.name for field in fields(Row)]))
    rows: list[Row] = []
    for name, factory in list(factories(asked.names))[part : asked.most : parts]:
        try:
            row = row_of(factory)
        except Exception as error:  # noqa: BLE001 - one model must not end the run
            cause = error.__cause__ or error
            print(f"{name:<44} not run: {type(cause).__name__}: {str(cause)[:70]!r}", flush=True)
            continue
        if row is not None:
            rows.append(row)
            cells = [*map(str, astuple(row)[:-1]), f"{row.seconds:.1f}"]
            print(_line(name, cells), flush=True)
    sums = [sum(column) for column in zip(*map(astuple, rows), strict=True)] or [0] * len(fields(Row))
    print(_line(f"{len(rows)} architectures", [*map(str, sums[:-1]), f"{sums[-1]:.0f}"]))
    whole = sum(row.folds == row.names - row.idle for row in rows)
    print(f"of {whole} of them names tell every fold")


if __name__ == "__main__":
    main()
