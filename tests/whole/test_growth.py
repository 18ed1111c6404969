"""Twice the layers take twice the work: what verbs do is counted in operations, not in seconds."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

from tests.helpers.counts import operations
from tests.helpers.infos import new_pair, pair, state_at
from wnconvert import (
    compare_state_dicts,
    fold_state_dict,
    inspect_state_dict,
    migrate_state_dict,
    split_module,
    split_state_dict,
)
from wnconvert.formats.safetensors import safetensors_layout
from wnconvert.formats.torch.reader import open_zip
from wnconvert.formats.torch.writer import torch_layout
from wnconvert.layers.schemes import Selection
from wnconvert.plan.fold import plan_fold
from wnconvert.plan.migrate import plan_migrate
from wnconvert.plan.plan import Plan
from wnconvert.plan.split.plan import plan_split
from wnconvert.storage.shards import Naming, index_metadata, parts_of, sharded
from wnconvert.tensors.containers import Container
from wnconvert.tensors.files import MemoryFile
from wnconvert.tensors.tree import Tree
from wnconvert.verbs.inspection.forecast import fold_in_words, migrate_in_words, split_in_words

#: The work of a verb, ready to be counted.
Work: TypeAlias = Callable[[], object]

FEW = 30


def layer(at: int) -> str:
    """The name of a layer; all are of one length, by which some things are looked up."""
    return f"l.{1000 + at}"


def check_growth(work_on: Callable[[int], Work]) -> None:
    """``work_on`` makes the work on so many layers; twice as many take twice the operations at most."""
    work_on(3)()  # what is imported and computed once
    once, twice = (operations(work_on(count)) for count in (FEW, 2 * FEW))
    assert once > 100 * FEW, "there was work to count"
    assert twice <= 2.05 * once, f"{once / FEW:.0f} operations a layer, then {twice / FEW / 2:.0f}"


def split_tree(count: int, make: Callable[[str], list[Any]] = pair) -> Tree:
    specs = (
        spec for at in range(count) for spec in (*make(f"{layer(at)}.weight"), (f"{layer(at)}.bias", (8,)))
    )
    return Tree((state_at("", *specs),))


def plain_tree(count: int) -> Tree:
    specs: list[Any] = []
    for at in range(count):
        specs += [(f"{layer(at)}.weight", (8, 4, 3)), (f"{layer(at)}.bias", (8,))]
    return Tree((state_at("", *specs),))


def folded_tree(count: int) -> Tree:
    plan = plan_fold(split_tree(count), Container.TORCH_ZIP)
    return replace(plain_tree(count), record=plan.record)


def forecasts(tree: Tree, folded: Tree) -> list[str]:
    return [fold_in_words(tree, ()), migrate_in_words(tree), split_in_words(folded)]


def split_like(count: int, like: Tree) -> Work:
    return partial(plan_split, plain_tree(count), Container.SAFETENSORS, like=like)


BY_GLOB = Selection(layers=("l.*.weight",), dim=0)
INTO = Container.SAFETENSORS
PLANS: dict[str, Callable[[int], Work]] = {
    "fold": lambda count: partial(plan_fold, split_tree(count), INTO),
    "split by record": lambda count: partial(plan_split, folded_tree(count), INTO),
    "split --like": lambda count: split_like(count, split_tree(count)),
    "split --like, folded": lambda count: split_like(count, folded_tree(count)),
    "split --layers": lambda count: partial(plan_split, plain_tree(count), INTO, selection=BY_GLOB),
    "migrate": lambda count: partial(plan_migrate, split_tree(count), INTO),
    "migrate back": lambda count: partial(plan_migrate, split_tree(count, new_pair), INTO, to="legacy"),
    "forecasts": lambda count: partial(forecasts, split_tree(count), folded_tree(count)),
}


@pytest.mark.parametrize("make", PLANS.values(), ids=PLANS.keys())
def test_a_plan_of_twice_the_layers_takes_twice_the_work(make: Callable[[int], Work]) -> None:
    check_growth(make)


def into_shards(tree: Tree) -> list[object]:
    plan = plan_fold(tree, Container.SAFETENSORS)
    made: Plan = sharded(plan, tree, Naming("model", "safetensors"), 500)
    assert len(made.shards) >= FEW or len(tree.state_dicts[0].entries) < FEW
    layouts: list[object] = [safetensors_layout(tree, part) for _, part in parts_of(made)]
    return [*layouts, index_metadata(made, tree, {"total_parameters": 7})]


def test_shards_of_twice_the_layers_take_twice_the_work() -> None:
    check_growth(lambda count: partial(into_shards, split_tree(count)))


def tensors(count: int, *names: str) -> Iterable[tuple[str, torch.Tensor]]:
    for at in range(count):
        for name in names:
            rows = torch.ones((2, 1) if name.endswith("_g") else (2, 3))
            yield f"{layer(at)}.{name}", rows


def torch_file(count: int) -> Work:
    buffer = io.BytesIO()
    torch.save(dict(tensors(count, "weight_g", "weight_v", "other")), buffer)
    content = buffer.getvalue()

    def work() -> object:
        opened = open_zip(MemoryFile(content))
        tree = opened.tree()
        return torch_layout(opened, tree, plan_fold(tree, Container.TORCH_ZIP))

    return work


def test_a_torch_file_of_twice_the_tensors_is_read_and_laid_out_in_twice_the_work() -> None:
    check_growth(torch_file)


def arrays(count: int, *names: str) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.numpy() for name, tensor in tensors(count, *names)}


PAIR = ("weight_g", "weight_v")


def compared(state: dict[str, np.ndarray[Any, Any]]) -> object:
    return compare_state_dicts(state, dict(state), threads=1)


STATE_DICTS: dict[str, Callable[[int], Work]] = {
    "fold": lambda count: partial(fold_state_dict, arrays(count, *PAIR)),
    "migrate": lambda count: partial(migrate_state_dict, arrays(count, *PAIR)),
    "split": lambda count: partial(split_state_dict, arrays(count, "weight"), layers="*", dim=0),
    "inspect": lambda count: partial(inspect_state_dict, arrays(count, *PAIR)),
    "compare": lambda count: partial(compared, arrays(count, *PAIR)),
}


@pytest.mark.parametrize("make", STATE_DICTS.values(), ids=STATE_DICTS.keys())
def test_a_state_dict_of_twice_the_layers_takes_twice_the_work(
    make: Callable[[int], Work],
) -> None:
    check_growth(make)


def test_a_module_of_twice_the_layers_is_split_in_twice_the_work() -> None:
    def work_on(count: int) -> Work:
        module = torch.nn.ModuleDict({f"l{1000 + at}": torch.nn.Linear(3, 2) for at in range(count)})
        return lambda: split_module(module, layers="*.weight", dim=0)

    check_growth(work_on)
