"""Checkpoints that others trained, held against float64 computed on torch's own reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.golden import ROOT
from tests.helpers.infos import halves
from tests.helpers.states import hold, load, state_dicts
from wnconvert import fold_file, migrate_file, split_file
from wnconvert.verbs.shared.options import Form

REAL = ROOT.parent / "shared" / "real"
pytestmark = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"the real checkpoints are not there ({REAL.name} beside the project)"
)

#: Layers by file: nine files have some, four have none.
LAYERS = {
    "AQing-527__circle-deepSDF/Circle_5000.pth": 3,
    "lava-nc__lava-dl/bootstrap_mnist_network.pt": 3,
    "lava-nc__lava-dl/micro_yolo_L1_pruning_by1.5_network.pt": 9,
    "lava-nc__lava-dl/oxford_network.pt": 0,
    "lava-nc__lava-dl/pilotnet_network.pt": 8,
    "maurock__DeepSDF/weights.pt": 6,
    "mkofler96__DeepSDF/corner_spheres_only_small_network__cpp_model.pt": 5,
    "mkofler96__DeepSDFStruct/chi_and_cross__ModelParameters_latest.pth": 7,
    "mkofler96__DeepSDFStruct/chi_and_cross__OptimizerParameters_latest.pth": 0,
    "mkofler96__DeepSDFStruct/primitives_2d__ModelParameters_latest.pth": 4,
    "mkofler96__DeepSDFStruct/primitives_2d__OptimizerParameters_latest.pth": 0,
    "mkofler96__DeepSDFStruct/test_experiment_homogenization__ModelParameters_latest.pth": 7,
    "mkofler96__DeepSDFStruct/test_experiment_homogenization__OptimizerParameters_latest.pth": 0,
}
WITH = [name for name, count in LAYERS.items() if count]
WITHOUT = [name for name, count in LAYERS.items() if not count]


def test_the_files_are_these_thirteen() -> None:
    found = {path.relative_to(REAL).as_posix() for path in REAL.rglob("*.pt*")}
    assert found == set(LAYERS)
    assert (len(WITH), len(WITHOUT)) == (9, 4)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", WITH)
def test_a_file_with_layers_folds_to_what_float64_gives(name: str, suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"out{suffix}"
    result = fold_file(REAL / name, out, verify=True)
    assert result.verified
    assert len(result.plan.layers) == LAYERS[name]
    before, after = state_dicts(REAL / name), state_dicts(out)
    if suffix == ".safetensors":
        before, after = {"": _the_one(before)}, {"": _the_one(after)}
    assert list(before) == list(after)
    assert sum(hold(before[path], after[path]) for path in before) == LAYERS[name]


def _the_one(states: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (state,) = states.values()
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("name", WITHOUT)
def test_a_file_without_layers_keeps_every_tensor_and_sibling(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    assert fold_file(REAL / name, out).output is None, "nothing to fold is not a fold"
    result = fold_file(REAL / name, out, copy=True)
    assert result.plan.layers == []
    assert result.plan.dropped == ()
    before, after = load(REAL / name), load(out)
    assert alike(before, after) > 0


@pytest.mark.parametrize("name", [name for name in WITH if "cpp_model" not in name])
def test_siblings_of_a_file_with_layers_are_kept(name: str, tmp_path: Path) -> None:
    fold_file(REAL / name, tmp_path / "out.pt")
    before, after = load(REAL / name), load(tmp_path / "out.pt")
    if "model_state_dict" not in before:
        assert {key for key in before if key.endswith(("bias", "running_mean"))} <= set(after)
        return
    assert list(after) == list(before)
    for key in set(before) - {"model_state_dict"}:
        alike(before[key], after[key])


def alike(left: Any, right: Any) -> int:
    """Hold two trees against each other; how many tensors were compared."""
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
        return 1
    if isinstance(left, dict):
        assert list(left) == list(right)
        return sum(alike(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        return sum(alike(*both) for both in zip(left, right, strict=True))
    assert left == right
    return 0


@pytest.mark.parametrize("name", WITH)
def test_a_folded_file_is_split_by_its_record_in_its_old_form_order_and_bits(
    name: str, tmp_path: Path
) -> None:
    once, split, twice = (tmp_path / f"{at}.pt" for at in ("once", "split", "twice"))
    fold_file(REAL / name, once)
    result = split_file(once, split, verify=True)
    assert len(result.plan.layers) == LAYERS[name]
    before, after = state_dicts(REAL / name), state_dicts(split)
    assert {path: list(state) for path, state in before.items()} == {
        path: list(state) for path, state in after.items()
    }
    assert all(
        value.shape == after[path][key].shape
        for path, state in before.items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    )
    fold_file(split, twice)
    assert twice.read_bytes() == once.read_bytes()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", WITH)
def test_a_file_with_layers_migrates_there_and_back_to_the_same_bits(
    name: str, suffix: str, tmp_path: Path
) -> None:
    there, back, again = (tmp_path / f"{at}{suffix}" for at in ("there", "back", "again"))
    before = state_dicts(REAL / name)
    if suffix == ".safetensors":
        before = {"": _the_one(before)}
    is_new = any(".original0" in key for state in before.values() for key in state)
    this: Form = "parametrize" if is_new else "legacy"
    other: Form = "legacy" if is_new else "parametrize"
    assert len(migrate_file(REAL / name, there, to=other, verify=True).plan.layers) == LAYERS[name]
    assert len(migrate_file(there, back, to=this).plan.layers) == LAYERS[name]
    middle, after = state_dicts(there), state_dicts(back)
    assert sum(alike(dict(before[path]), dict(after[path])) for path in before) > LAYERS[name]
    for path, state in middle.items():
        assert set(halves(state)) == set(halves(before[path]))
        assert not set(state) & {half for both in halves(before[path]).values() for half in both}
    migrate_file(back, again, to=other)
    assert again.read_bytes() == there.read_bytes()


def test_trees_that_differ_are_seen_to_differ() -> None:
    tree = {"a": [torch.ones(2), 1]}
    assert alike(tree, {"a": [torch.ones(2), 1]}) == 1
    for other in ({"a": [torch.ones(2), 2]}, {"a": [torch.zeros(2), 1]}, {"b": [torch.ones(2), 1]}):
        with pytest.raises(AssertionError):
            alike(tree, other)
