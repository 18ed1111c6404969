"""compare sees through spectral norm, prune and their stacks, as far as keys prove them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.layers.kinds.test_others import pruned, spectral, weight_norm
from wnconvert import (
    compare_files,
    compare_state_dicts,
    fold_file,
    fold_state_dict,
    migrate_state_dict,
)

State = dict[str, Tensor]


def state() -> State:
    """Spectral norm of a matrix of several blocks, of a square one, a mask, and stacks."""
    torch.manual_seed(5)
    parts: list[Any] = [
        spectral(nn.Linear(700, 900)),
        spectral(nn.Conv1d(6, 6, 3)),
        pruned(nn.Conv1d(4, 8, 3)),
        pruned(spectral(nn.Linear(9, 7)), "weight_orig"),
        pruned(weight_norm(nn.Linear(9, 7)), "weight_v"),
    ]
    for _ in range(30):
        parts[1](torch.randn(1, 6, 9))
    return dict(nn.ModuleList(parts).state_dict())


def test_the_folded_and_the_migrated_one_are_equal_to_the_bit() -> None:
    before = state()
    folded, moved = fold_state_dict(before, kinds="all"), migrate_state_dict(before, kinds="all")
    for a, b in ((before, folded), (folded, before), (before, moved), (moved, folded)):
        found = compare_state_dicts(a, b)
        assert found
        assert (found.compared, found.identical, found.layers) == (10, 10, 5)


def test_files_are_compared_so_too(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "a.pt")
    fold_file(tmp_path / "a.pt", tmp_path / "b.safetensors", kinds="all")
    assert compare_files(tmp_path / "a.pt", tmp_path / "b.safetensors").identical == 10


def test_one_element_and_one_of_u_make_a_difference() -> None:
    before, other = state(), state()
    other["0.weight_orig"][3, 4] *= 1 + 1e-4
    found = compare_state_dicts(before, other)
    assert [item.name for item in found.differing] == ["0.weight"]
    other = state()
    other["3.weight_u"][0] += 1
    found = compare_state_dicts(fold_state_dict(before, kinds="all"), other)
    assert [item.name for item in found.differing] == ["3.weight"]


def test_other_u_and_v_that_make_the_same_weight_are_equal() -> None:
    before, other = state(), state()
    other["0.weight_u"] *= 2
    other["0.weight_v"] /= 2
    found = compare_state_dicts(before, other)
    assert (bool(found), found.identical) == (True, 10)


def test_a_weight_under_a_mask_does_not_count() -> None:
    before, other = state(), state()
    hidden = (before["2.weight_mask"] == 0).nonzero()[0].tolist()
    other["2.weight_orig"][tuple(hidden)] += 5
    assert compare_state_dicts(before, other)
    shown = (before["2.weight_mask"] != 0).nonzero()[0].tolist()
    other["2.weight_orig"][tuple(shown)] += 5
    assert not compare_state_dicts(before, other)


def test_what_has_no_fixed_weight_is_compared_as_it_is_stored() -> None:
    ports = {"l.weight_bar": torch.ones(3, 4), "l.weight_u": torch.ones(3), "l.weight_v": torch.ones(4)}
    other = {name: value.clone() for name, value in ports.items()}
    found = compare_state_dicts(ports, other)
    assert (found.identical, found.layers) == (3, 0)
    assert any("l.weight is compared as it is stored" in note for note in found.notes)
    other["l.weight_u"][0] = 2
    assert [item.name for item in compare_state_dicts(ports, other).differing] == ["l.weight_u"]


def test_names_alone_make_no_layer() -> None:
    decoy = {"x_orig": torch.ones(3, 4), "x_mask": torch.ones(2), "y_u": torch.ones(3)}
    found = compare_state_dicts(decoy, dict(decoy))
    assert (found.compared, found.layers) == (3, 0)
