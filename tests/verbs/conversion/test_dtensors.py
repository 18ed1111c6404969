"""State dicts of DTensors, as FSDP2 gives them: folded where this rank has all, else refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from tests.helpers.distributed import fully_shard, one_of_ranks
from tests.helpers.live_models import FORMS, both_forms, norm, trained
from tests.helpers.states import same
from wnconvert import (
    LayerError,
    compare_state_dicts,
    fold_state_dict,
    inspect_state_dict,
    migrate_state_dict,
    split_state_dict,
)
from wnconvert.verbs.shared.options import Form

#: Where DTensors lie: the number of ranks, and how each tensor is placed on them.
SHARDED = {"shards": (2, Shard(0)), "columns": (2, Shard(1)), "sums": (2, Partial())}
WHOLE = {"replicated": (2, Replicate()), "one rank": (1, Shard(0)), "one rank, columns": (1, Shard(1))}


def plain_state(form: Form) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(norm(nn.Linear(3, 4), form), norm(nn.Linear(4, 2), form, dim=None))
    return {name: value.detach() for name, value in trained(model).state_dict().items()}


def placed(state: dict[str, Tensor], mesh: DeviceMesh, placement: Any) -> dict[str, Any]:
    """The state dict with every tensor as a DTensor, of which this rank holds what is given."""

    def fitting(value: Tensor) -> Any:
        has_axis = not placement.is_shard() or (
            value.dim() > placement.dim and value.shape[placement.dim] > 1
        )
        return placement if has_axis else Replicate()

    return {
        name: DTensor.from_local(value, mesh, [fitting(value)], run_check=False)
        for name, value in state.items()
    }


@pytest.fixture(params=SHARDED)
def sharded(request: pytest.FixtureRequest) -> Iterator[Callable[[Form], dict[str, Any]]]:
    count, placement = SHARDED[request.param]
    with one_of_ranks(count) as mesh:
        yield lambda form: placed(plain_state(form), mesh, placement)


@pytest.fixture(params=WHOLE)
def whole(request: pytest.FixtureRequest) -> Iterator[Callable[[Form], dict[str, Any]]]:
    count, placement = WHOLE[request.param]
    with one_of_ranks(count) as mesh:
        yield lambda form: placed(plain_state(form), mesh, placement)


@both_forms
def test_one_ranks_shard_is_refused_by_name_with_the_way_to_the_whole(sharded: Any, form: Form) -> None:
    state = sharded(form)
    verbs: list[Callable[[], object]] = [
        lambda: fold_state_dict(state),
        lambda: fold_state_dict(state, dtype="float16", layers="0.weight"),
        lambda: split_state_dict({"0.weight": max(state.values(), key=Tensor.numel)}, layers="*", dim=0),
    ]
    for verb in verbs:
        with pytest.raises(LayerError, match="one rank's shard") as caught:
            verb()
        assert "0." in str(caught.value)
        assert caught.value.fix == "save a full state dict: get_model_state_dict(…, full_state_dict=True)"


@both_forms
def test_names_can_be_migrated_whatever_lies_under_them(sharded: Any, form: Form) -> None:
    state = sharded(form)
    (to,) = {*FORMS} - {form}
    moved = migrate_state_dict(state, to=to)
    assert set(moved) == set(plain_state(to))
    assert {id(value) for value in moved.values()} == {id(value) for value in state.values()}
    assert list(migrate_state_dict(moved, to=form)) == list(state)


def test_what_is_not_read_may_be_a_shard(sharded: Any) -> None:
    state = {**sharded("legacy"), **{f"whole.{name}": value for name, value in plain_state("legacy").items()}}
    folded = fold_state_dict(state, layers="whole.*")
    expected = fold_state_dict(plain_state("legacy"))
    assert all(same(folded[f"whole.{name}"], value) for name, value in expected.items())
    assert all(folded[name] is value for name, value in state.items() if name in folded)


def test_inspection_names_the_shards_and_shows_the_others(sharded: Any) -> None:
    state = {**sharded("legacy"), **{f"whole.{name}": value for name, value in plain_state("legacy").items()}}
    found = inspect_state_dict(state, full=True)
    assert [layer.name for layer in found.layers] == ["whole.0.weight", "whole.1.weight"]
    (note,) = found.notes
    assert re.search(r"0\.weight_v, .*: one rank's shard; save a full state dict", note)


def test_a_comparison_of_shards_is_refused_by_name(sharded: Any) -> None:
    state = sharded("legacy")
    with pytest.raises(LayerError, match=r"\d\.\S+: one rank's shard"):
        compare_state_dicts(state, state)


@both_forms
def test_what_this_rank_has_whole_is_folded_and_stays_where_it_is(whole: Any, form: Form) -> None:
    state, plain = whole(form), plain_state(form)
    folded, expected = fold_state_dict(state), fold_state_dict(plain)
    assert list(folded) == list(expected)
    for name, value in folded.items():
        assert isinstance(value, DTensor)
        assert value.device_mesh == state["0.bias"].device_mesh
        assert value.shape == expected[name].shape
        assert same(value.to_local(), expected[name])
    v = next(value for name, value in state.items() if name.startswith("0.") and value.shape == (4, 3))
    assert folded["0.weight"].placements == v.placements
    assert compare_state_dicts(folded, expected)
    assert [layer.name for layer in inspect_state_dict(state, full=True).layers] == ["0.weight", "1.weight"]


def test_what_is_whole_is_split_too_and_folds_back(whole: Any) -> None:
    folded = fold_state_dict(whole("parametrize"))
    for dim in (0, None):
        split = split_state_dict(folded, layers="*.weight", dim=dim)
        again = fold_state_dict(split)
        assert all(same(again[name].to_local(), value.to_local()) for name, value in folded.items())


def test_equal_dtensors_are_not_taken_for_one() -> None:
    with one_of_ranks(2) as mesh:
        state = placed(plain_state("legacy"), mesh, Replicate())
        other = {
            name: DTensor.from_local(value.to_local() * 2, mesh, [Replicate()])
            for name, value in state.items()
        }
        folded = fold_state_dict(
            {**{f"a.{k}": v for k, v in state.items()}, **{f"b.{k}": v for k, v in other.items()}}
        )
    assert not same(folded["a.0.weight"].to_local(), folded["b.0.weight"].to_local())


@both_forms
def test_the_state_dict_of_an_fsdp_module_on_one_rank_is_folded(form: Form) -> None:
    with one_of_ranks(1) as mesh:
        model: Any = fully_shard(nn.Sequential(norm(nn.Linear(3, 4), form)), mesh=mesh)
        folded = fold_state_dict(model.state_dict())
        assert set(folded) == {"0.bias", "0.weight"}
        fully_shard(plain := nn.Sequential(nn.Linear(3, 4)), mesh=mesh)
        plain.load_state_dict(folded)


def test_a_fake_tensor_is_named() -> None:
    with torch._subclasses.FakeTensorMode():
        state = {"w_g": torch.ones(4, 1), "w_v": torch.ones(4, 3)}
    with pytest.raises(LayerError, match=r"w_g: a FakeTensor, which is not a plain tensor"):
        fold_state_dict(state)
