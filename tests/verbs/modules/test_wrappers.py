"""Modules that DistributedDataParallel or FSDP holds: refused where a new Parameter would be lost on them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from tests.helpers.distributed import fully_shard, one_rank
from tests.helpers.live_models import FORMS, both_forms, new, norm, portrait
from tests.helpers.marks import some
from wnconvert import (
    LayerError,
    fold_module,
    folded,
    inspect_module,
    migrate_module,
    split_module,
    weights_folded,
)
from wnconvert.verbs.shared.options import Form


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with one_rank(tmp_path_factory.mktemp("group")):
        yield


def model_in(form: Form = "parametrize") -> Any:
    return nn.Sequential(nn.Linear(3, 4), norm(nn.Linear(4, 4), form), norm(nn.Linear(4, 2), form))


# -- DistributedDataParallel


@some("part", {part: part for part in ("all", "wrapped", "inner", "around")}, ["all", "inner"])
@some("form", {form: form for form in FORMS}, ["parametrize"])
def test_what_ddp_holds_is_neither_folded_nor_split(part: str, form: Form) -> None:
    ddp: Any = DistributedDataParallel(model_in(form))
    module = {
        "all": ddp,
        "wrapped": ddp.module,
        "inner": ddp.module[1],
        "around": nn.ModuleDict({"net": ddp}),
    }[part]
    before = portrait(module)
    with pytest.raises(LayerError, match="inside DistributedDataParallel") as caught:
        fold_module(module)
    assert "before DistributedDataParallel wraps it" in caught.value.fix
    assert "folded(model.module)" in caught.value.fix
    assert portrait(module) == before
    if part != "inner":
        with pytest.raises(LayerError, match=r"(?s)1 layer cannot be split inside .*0\.weight") as caught:
            split_module(module, layers="*0.weight", dim=0)
        assert "before DistributedDataParallel wraps it" in caught.value.fix
        assert portrait(module) == before


def test_a_copy_of_the_wrapper_is_refused_and_a_copy_of_what_it_wraps_is_folded() -> None:
    ddp: Any = DistributedDataParallel(model_in())
    with pytest.raises(LayerError, match="inside DistributedDataParallel") as caught:
        folded(ddp)
    assert caught.value.fix == "folded(model.module): copy what it wraps"
    x = torch.randn(5, 3)
    assert torch.allclose(folded(ddp.module)(x), ddp(x))
    assert folded(ddp.module[1]).weight.is_leaf


@both_forms
def test_migration_goes_on_under_ddp_since_the_parameters_stay(form: Form) -> None:
    ddp = DistributedDataParallel(model_in(form))
    before = {id(parameter) for parameter in ddp.parameters()}
    to: Form = "legacy" if form == "parametrize" else "parametrize"
    assert len(migrate_module(ddp, to=to)) == 2
    assert {id(parameter) for parameter in ddp.parameters()} == before
    ddp(torch.randn(5, 3)).sum().backward()
    assert all(parameter.grad is not None for parameter in ddp.parameters())


@both_forms
def test_a_block_with_folded_weights_works_under_ddp_and_training_goes_on(form: Form) -> None:
    ddp: Any = DistributedDataParallel(model_in(form))
    x = torch.randn(5, 3)
    expected = ddp(x).detach()
    with torch.no_grad(), weights_folded(ddp):
        assert torch.allclose(ddp(x), expected)
    ddp(x).sum().backward()
    assert all(parameter.grad is not None for parameter in ddp.parameters())
    assert inspect_module(ddp).fold == "would make 2 plain weights"


def test_frozen_layers_inside_ddp_are_none_of_its_business() -> None:
    ddp: Any = DistributedDataParallel(
        nn.Sequential(nn.Linear(3, 4), new(nn.Linear(4, 4)).requires_grad_(False))
    )
    assert [layer.name for layer in fold_module(ddp.module)] == ["1.weight"]


def test_a_module_beside_ddp_is_folded_and_wrapped_afterwards() -> None:
    wrapped = DistributedDataParallel(model_in())
    other = model_in()
    assert len(fold_module(other)) == 2
    assert len(split_module(other, layers="*.weight", dim=0)) == 3
    DistributedDataParallel(other)(torch.randn(5, 3)).sum().backward()
    assert wrapped.module is not other


# -- FSDP


def sharded(form: Form = "parametrize") -> Any:
    return fully_shard(model_in(form), mesh=init_device_mesh("cpu", (1,)), reshard_after_forward=False)


@some("used", {"as made": False, "after a forward": True}, ["after a forward"])
def test_an_fsdp_module_and_what_is_in_it_are_refused_in_whatever_state(used: bool) -> None:
    model = sharded()
    if used:
        model(torch.randn(5, 3))
        assert type(model[1].bias) is nn.Parameter, "the parameters are plain tensors just now"
    before = [id(parameter) for parameter in model.parameters()]
    verbs: list[tuple[Callable[[Any], object], nn.Module]] = [
        (fold_module, model),
        (fold_module, model[1]),
        (fold_module, nn.Sequential(model)),
        (folded, model[1]),
        (lambda it: weights_folded(it).__enter__(), model),
        (lambda it: migrate_module(it, to="legacy"), model),
        (lambda it: split_module(it, layers="0.weight", dim=0), model),
    ]
    for verb, module in verbs:
        with pytest.raises(LayerError, match="FSDP holds its parameters") as caught:
            verb(module)
        assert "full_state_dict=True" in caught.value.fix
    assert [id(parameter) for parameter in model.parameters()] == before
    (note,) = [note for note in inspect_module(model).notes if "are refused: FSDP holds" in note]
    assert note.startswith("1.weight, 2.weight are refused")
    assert set(model.state_dict()) == set(model_in().state_dict())


def test_an_fsdp_of_the_class_is_refused_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one rank shards nothing
        model = FullyShardedDataParallel(model_in(), device_id=torch.device("cpu"), use_orig_params=True)
    with pytest.raises(LayerError, match="FSDP holds its parameters"):
        fold_module(model)


def test_a_module_beside_fsdp_is_folded() -> None:
    model = sharded()
    assert len(fold_module(model_in())) == 2
    assert model is not None
