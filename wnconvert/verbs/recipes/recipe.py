"""``recipe_of``: which norms of a module fold into which layers, told by forwards of it and proven."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from wnconvert.errors import ArgumentError
from wnconvert.layers.recipes import Recipe
from wnconvert.messages import counted
from wnconvert.verbs.models.proof.functions import unwrapped
from wnconvert.verbs.models.proof.inputs.forwards import forward_of
from wnconvert.verbs.models.proof.inputs.texts import Range
from wnconvert.verbs.models.proof.report import TimedSteps
from wnconvert.verbs.models.proof.running import evaluating
from wnconvert.verbs.models.proof.samples import Sample, samples_of
from wnconvert.verbs.models.proof.signatures import Data, Signature, signature_of
from wnconvert.verbs.recipes.finding.told import Told
from wnconvert.verbs.recipes.proving.prove import prove_recipe
from wnconvert.verbs.recipes.result import RecipeReport
from wnconvert.verbs.recipes.smaller import smaller_signature
from wnconvert.verbs.recipes.tell import digest_of, folds_of, tell
from wnconvert.verbs.shared.progress import StepsProgress, steps_progress

__all__ = ["recipe_of", "trace_recipe"]


def recipe_of(
    module: nn.Module | ExportedProgram,
    *,
    inputs: Any,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    ranges: Iterable[str] | Mapping[str, Range | tuple[int, int]] = (),
    data: Iterable[Data] = (),
    made_by: str = "",
    samples: int = 4,
    seed: int = 0,
    progress: StepsProgress = False,
) -> Recipe:
    """Find which norms of a module fold into which layers, from forwards of it, and prove that they do.

    The arguments and errors are those of ``trace_recipe``, which tells the norms that stay too.

    >>> module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    >>> (fold,) = recipe_of(module, inputs="input=float32[1,3,8,8]").folds
    >>> fold.kind, fold.norm, fold.weight, fold.eps
    ('norm behind', '1', '0.weight', 1e-05)
    """
    return trace_recipe(
        module,
        inputs=inputs,
        dynamic=dynamic,
        ranges=ranges,
        data=data,
        made_by=made_by,
        samples=samples,
        seed=seed,
        progress=progress,
    ).recipe


def trace_recipe(
    module: nn.Module | ExportedProgram,
    *,
    inputs: Any,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    ranges: Iterable[str] | Mapping[str, Range | tuple[int, int]] = (),
    data: Iterable[Data] = (),
    made_by: str = "",
    samples: int = 4,
    seed: int = 0,
    progress: StepsProgress = False,
) -> RecipeReport:
    """Find which norms of a module fold into which layers, and why the others stay, and prove the recipe.

    ``inputs``, ``dynamic``, ``ranges`` and ``data`` are those of ``export_onnx``. The module is run once at
    each size of ``samples``, in eval mode, every operator is followed, and a norm folds only if it computes
    with its own statistics, alone behind one layer that is used once. Then a copy of the module with drawn
    numbers is run in float64, unfolded and folded by the recipe, on all samples: they are equal to 1e-11
    (each fold by itself, where the model magnifies rounding by more), or an error is raised. Images and
    volumes are smaller there if the same layers and norms run in the same order. The module is left as it
    was, and its own numbers do not matter. ``made_by`` is what the recipe says of its origin, by default the
    class's name.

    Returns a report with the ``recipe``, and with each norm that stays and the reason. Raises
    ``ArgumentError`` for inputs that the module does not take, for one on the meta device and for one that
    is no plain ``nn.Module``; ``LayerError`` for a recipe that its proof refuses.

    >>> module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    >>> trace_recipe(module, inputs="input=float32[1,3,8,8]").left
    (Left(name='3', reason='behind an activation'),)
    """
    module = _checked(module)
    signature = _signature(module, inputs, ranges, dynamic, data)
    drawn = samples_of(signature, samples, seed)
    steps = TimedSteps(steps_progress(progress))
    with evaluating(module) as forget, torch.no_grad():
        with steps("trace", "a forward") as step:
            told = _told(module, signature, drawn, forget)
            folds, left = folds_of(told)
            step.detail = f"{counted(len(folds), 'fold')}, {counted(len(left), 'norm')} left"
        with steps("prove", "in float64") as step:
            compact = smaller_signature(module, signature, told, forget)
            proven = prove_recipe(module, folds, compact, drawn, seed=seed)
            step.detail = str(proven)
    recipe = Recipe(
        folds, f"{made_by or type(module).__name__}, traced", str(proven), digest_of(module, folds)
    )
    return RecipeReport(recipe, left, proven.samples, proven.apart, tuple(steps.every), signature.notes)


def _checked(given: object) -> nn.Module:
    """The module inside wrappers, or that of a program. Raises ``ArgumentError`` where there is none."""
    inside: object = unwrapped(given)  # type: ignore[arg-type]
    module = inside.module() if isinstance(inside, ExportedProgram) else inside
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise ArgumentError(
            f"{type(module).__name__} is not an nn.Module whose code can be followed",
            fix="give the module itself, before it is scripted",
        )
    if any(each.is_meta for each in (*module.parameters(), *module.buffers())):
        raise ArgumentError(
            "the module is on the meta device: a proof needs the numbers of its buffers",
            fix="build it on the CPU; its weights need not be loaded",
        )
    return module


def _signature(
    module: nn.Module,
    inputs: Any,
    ranges: Any,
    dynamic: Mapping[str, Mapping[int, str]] | None,
    data: Iterable[Data],
) -> Signature:
    """The signature, with its inputs in the order in which the module takes them."""
    forward = forward_of(module)
    signature = signature_of(inputs, ranges, dynamic=dynamic, names=forward.names, data=data)
    forward.check(signature.names)
    return signature.in_order(forward.names)


def _told(
    module: nn.Module, signature: Signature, samples: Iterable[Sample], forget: Callable[[], None]
) -> list[Told]:
    """What a forward at each size tells."""
    found: dict[tuple[tuple[str, int], ...], Told] = {}
    for sample in samples:
        sizes = tuple(sample.sizes.items())
        if sizes not in found:
            found[sizes] = tell(module, signature, sample)
            forget()
    return list(found.values())
