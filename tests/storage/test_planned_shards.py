"""A plan whose output is a folder: what goes into which file."""

from __future__ import annotations

import pytest

from tests.helpers.infos import Shape, infos, pair, state_at
from wnconvert.plan.fold import plan_fold
from wnconvert.plan.plan import Plan
from wnconvert.storage.shards import Naming, index_metadata, parts_of, sharded, total_size
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import ByteRange, Entry, StateDict, StoredTensor, Tree, contiguous_strides

MODEL = Naming("model", "safetensors")
#: Three layers of 384 bytes in v and 32 in g, each with a bias of 32.
LAYERS: list[tuple[str, Shape, str]] = [
    item for n in "abc" for item in (*pair(f"{n}.weight"), (f"{n}.bias", (8,), "float32"))
]
TREE = Tree(
    (state_at("", *LAYERS),),
    record=({"verb": "fold", "state_dicts": {"": []}},),
)


def planned(most: int, container: Container = Container.SAFETENSORS, tree: Tree = TREE) -> Plan:
    return sharded(plan_fold(tree, container), tree, MODEL, most)


def test_shards_have_the_tensors_of_the_output_in_order() -> None:
    plan = planned(1000)
    assert [(shard.name, shard.tensors, shard.size) for shard in plan.shards] == [
        ("model-00001-of-00002.safetensors", ("a.weight", "a.bias", "b.weight", "b.bias"), 832),
        ("model-00002-of-00002.safetensors", ("c.weight", "c.bias"), 416),
    ]
    assert total_size(plan) == 1248


def test_what_fits_one_file_is_one_file() -> None:
    (shard,) = planned(1248).shards
    assert shard.name == "model.safetensors"


def test_a_part_has_its_steps_and_the_first_the_record() -> None:
    plan = planned(1000)
    (_, first), (_, second) = parts_of(plan)
    assert [step.name for step in first.state_dicts[0].steps] == list(plan.shards[0].tensors)
    assert [step.name for step in second.state_dicts[0].steps] == list(plan.shards[1].tensors)
    assert (first.record, second.record) == (plan.record, ())
    assert len(plan.record) > 1


@pytest.mark.parametrize(("container", "count"), [(Container.TORCH_ZIP, 1), (Container.SAFETENSORS, 2)])
def test_names_of_the_same_elements_stay_together_where_the_container_can_share(
    container: Container, count: int
) -> None:
    stored = [
        StoredTensor(info, ByteRange(0, 400), 0, contiguous_strides(info.shape))
        for info in infos(("a", (100,)), ("b", (100,)))
    ]
    tree = Tree((StateDict("", tuple(Entry(tensor.info.name, tensor) for tensor in stored)),))
    plan = planned(600, container, tree)
    assert len(plan.shards) == count
    assert total_size(plan) == 400 * count


def test_the_metadata_of_the_index_is_kept_where_it_is_still_true() -> None:
    before = {"total_size": 1, "total_parameters": 1000, "format": "pt", "more": [1]}
    assert index_metadata(planned(1000), TREE, before) == {
        "total_parameters": 1000 - 3 * 8,
        "format": "pt",
        "more": [1],
    }
    assert index_metadata(planned(1000), TREE, {}) == {}
    assert index_metadata(planned(1000), TREE, {"total_parameters": "many"}) == {"total_parameters": "many"}


def test_as_data_a_plan_says_its_files() -> None:
    data = planned(1000).to_dict()
    assert data["shards"][1] == {"name": "model-00002-of-00002.safetensors", "tensors": 2, "bytes": 416}
    assert data["copied"] == []
    assert plan_fold(TREE, Container.SAFETENSORS).to_dict()["shards"] == []
