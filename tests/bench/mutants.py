"""Recipes that are a little wrong, of public models: the proof refuses each, run by hand.

    pip install timm==1.0.31 torchvision==0.28.0 torch==2.13.0     (in an environment of its own)
    python -m tests.bench.mutants [--each 8] [NAMES …]

The recipe of a model is told at 64 by 64, and then changed in one fold: an eps that is 0.1 % off, the rows
or channels along another axis, the other deviation, the norms of two layers swapped, or a weight that another
layer has too. A line for each model and change: the mutants, and how many the proof refused.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn

from tests.bench.architectures import factories
from wnconvert.errors import LayerError
from wnconvert.layers.recipes import RecipeFold
from wnconvert.verbs.models.proof.running import evaluating
from wnconvert.verbs.models.proof.samples import samples_of
from wnconvert.verbs.models.proof.signatures import signature_of
from wnconvert.verbs.recipes.proving.prove import prove_recipe
from wnconvert.verbs.recipes.recipe import recipe_of

_MODELS = ("tv:resnet18", "tv:mobilenet_v3_small", "timm:resnetv2_50x1_bit", "timm:nf_resnet26")
_INPUT = "x=float32[1,3,64,64]"

#: A mutant: the change, the module, and the folds that are no longer right for it.
Mutant = tuple[str, nn.Module, Sequence[RecipeFold]]


def mutants(module: nn.Module, folds: Sequence[RecipeFold], each: int) -> Iterator[Mutant]:
    """The mutants of a recipe, up to ``each`` of every change, spread over the folds."""

    def with_fold(at: int, fold: RecipeFold) -> Sequence[RecipeFold]:
        return [*folds[:at], fold, *folds[at + 1 :]]

    for at in _spread([at for at, fold in enumerate(folds) if fold.eps], each):
        for factor in (0.999, 1.001):
            fold = replace(folds[at], eps=(folds[at].eps or 0.0) * factor)
            yield "eps 0.1 % off", module, with_fold(at, fold)
    for at in _spread([at for at, fold in enumerate(folds) if fold.kind == "standardize"], each):
        yield "another axis", module, with_fold(at, replace(folds[at], dim=1))
        other = replace(folds[at], std="biased" if folds[at].std == "unbiased" else "unbiased")
        yield "the other deviation", module, with_fold(at, other)
    square = [at for at, fold in enumerate(folds) if fold.has_norm and _is_square(module, fold)]
    for at in _spread(square, each):
        yield "another axis", module, with_fold(at, replace(folds[at], op="conv_transpose"))
    yield from _swapped(module, folds, each)
    yield from _shared(module, folds, each)


def _is_square(module: nn.Module, fold: RecipeFold) -> bool:
    """Whether a convolution has as many channels in as out, so that a norm fits either axis."""
    outputs, inputs = module.get_parameter(fold.weight).shape[:2]
    return fold.op == "conv" and fold.kind == "norm behind" and outputs == inputs


def _spread(places: list[int], most: int) -> list[int]:
    return places[:: -(-len(places) // most)] if places else []


def _swapped(module: nn.Module, folds: Sequence[RecipeFold], each: int) -> Iterator[Mutant]:
    """Recipes in which two layers that follow each other have the norms of each other."""
    sizes = {name: tensor.shape for name, tensor in module.named_buffers()}
    behind = [at for at, fold in enumerate(folds) if fold.kind == "norm behind"]
    fits = [
        at
        for at, then in pairwise(behind)
        if sizes[f"{folds[at].norm}.running_var"] == sizes[f"{folds[then].norm}.running_var"]
    ]
    for at in _spread(fits, each):
        then = behind[behind.index(at) + 1]
        made = list(folds)
        made[at] = replace(folds[at], norm=folds[then].norm, eps=folds[then].eps)
        made[then] = replace(folds[then], norm=folds[at].norm, eps=folds[at].eps)
        yield "a swapped pair", module, made


def _shared(module: nn.Module, folds: Sequence[RecipeFold], each: int) -> Iterator[Mutant]:
    """Models of which two layers have one weight, into which the norm behind the first of them folds."""
    norms = [fold for fold in folds if fold.kind == "norm behind"]
    shapes = {fold: module.get_parameter(fold.weight).shape for fold in norms}
    pairs = [
        (one, other)
        for at, one in enumerate(norms)
        for other in [fold for fold in norms[at + 1 :] if shapes[fold] == shapes[one]][:1]
    ]
    for at in _spread([*range(len(pairs))], each):
        tied = copy.deepcopy(module)
        first, second = (tied.get_submodule(fold.weight.rpartition(".")[0]) for fold in pairs[at])
        second.weight = first.weight
        yield "a shared weight", tied, [fold for fold in folds if fold != pairs[at][1]]


def refused(module: nn.Module, folds: Sequence[RecipeFold]) -> bool:
    """Whether the proof refuses a recipe."""
    signature = signature_of([_INPUT])
    with evaluating(module), torch.no_grad():
        try:
            prove_recipe(module, folds, signature, samples_of(signature, 2))
        except LayerError:
            return True
    return False


def main() -> None:
    """Run by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--each", type=int, default=8)
    asked = parser.parse_args()
    for name, factory in factories(asked.names or list(_MODELS)):
        module = factory().eval()
        folds = recipe_of(module, inputs=_INPUT, samples=2).folds
        assert not refused(module, folds), "the recipe itself is refused"
        counts: dict[str, list[bool]] = {}
        for what, other, made in mutants(module, folds, asked.each):
            counts.setdefault(what, []).append(refused(other, made))
        for what, every in counts.items():
            print(f"{name:<28}{what:<24}{len(every):>4} mutants{sum(every):>4} refused", flush=True)


if __name__ == "__main__":
    main()
