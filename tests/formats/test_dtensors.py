"""What torch.save made of DTensors: whole ones are folded, parts are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from tests.helpers.bad_files import pair, saved
from tests.helpers.ranks import as_rank
from tests.helpers.runner import Runner, refused
from tests.helpers.states import hold, load, output_of, same
from wnconvert import fold_file, inspect_file, migrate_state_dict


def spread(folder: Path, placement: Placement, *, world: int = 2, rank: int = 0, **more: Any) -> Path:
    """A pair as one rank saves it: all it has of each half is what ``pair`` gives."""
    with as_rank(rank, world) as mesh:
        state = {
            name: DTensor.from_local(value, mesh, [placement], run_check=False)
            for name, value in pair().items()
        }
        return saved({**state, "bias": torch.ones(4), **more}, folder)


@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Partial()], ids=str)
def test_one_ranks_part_is_refused_by_name(placement: Placement, run: Runner, tmp_path: Path) -> None:
    source = spread(tmp_path, placement)
    says = r"one rank's shard: it holds only a part of [12] tensors? \(DTensor\)"
    refused(run, source, says=says, fix="full_state_dict=True")
    assert run("inspect", source).returncode == 2


@pytest.mark.parametrize(("placement", "world"), [(Replicate(), 2), (Shard(0), 1), (Shard(1), 1)], ids=str)
def test_where_every_part_is_whole_it_is_folded(placement: Placement, world: int, tmp_path: Path) -> None:
    source = spread(tmp_path, placement, world=world)
    result = fold_file(source, tmp_path / "out.pt", verify=True)
    assert "its DTensors are whole, and become plain tensors" in result.notes
    made = load(output_of(result))
    assert hold({**pair(), "bias": torch.ones(4)}, made) == 1


def test_a_whole_one_that_is_kept_becomes_a_plain_tensor(tmp_path: Path) -> None:
    source = spread(tmp_path, Replicate())
    made = load(output_of(fold_file(source, tmp_path / "out.pt", exclude=["*"], copy=True)))
    assert all(type(made[name]) is torch.Tensor and same(made[name], value) for name, value in pair().items())
    assert inspect_file(source).foreign == ()


def test_parts_in_an_optimizer_alone_do_not_keep_a_file_from_being_folded(tmp_path: Path) -> None:
    with as_rank(0, 2) as mesh:
        average = DTensor.from_local(torch.ones(2), mesh, [Shard(0)], run_check=False)
        optimizer = {"state": {0: {"exp_avg": average}}, "param_groups": [{"lr": 0.1}]}
        source = saved({"model": pair(), "optimizer": optimizer}, tmp_path)
    assert len(fold_file(source, tmp_path / "out.pt").plan.layers) == 1


def test_a_parameter_that_is_a_part_is_refused_too(run: Runner, tmp_path: Path) -> None:
    with as_rank(1, 2) as mesh:
        part = DTensor.from_local(torch.ones(2, 3), mesh, [Shard(0)], run_check=False)
        source = saved({"a.weight": torch.nn.Parameter(part), **pair()}, tmp_path)
    refused(run, source, says="only a part of 1 tensor", fix="full_state_dict=True")


def test_migrating_parts_in_memory_goes_on() -> None:
    with as_rank(0, 2) as mesh:
        state = {
            name: DTensor.from_local(value, mesh, [Shard(0)], run_check=False)
            for name, value in pair().items()
        }
        made = migrate_state_dict(state)
    assert list(made) == [f"a.parametrizations.weight.original{at}" for at in (0, 1)]
    assert [id(value) for value in made.values()] == [id(value) for value in state.values()]
