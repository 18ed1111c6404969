"""On every surface: pairs that are none stay as they are, and layers without elements are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.helpers.infos import pair
from tests.helpers.live_models import legacy
from tests.helpers.runner import Runner, listing
from tests.helpers.states import State, folded64, load, same, ulps
from wnconvert import (
    compare_files,
    fold_file,
    fold_state_dict,
    inspect_file,
    inspect_module,
    inspect_state_dict,
    migrate_file,
    migrate_state_dict,
    split_file,
    split_state_dict,
)
from wnconvert.errors import LayerError

#: State dicts of the kinds that were taken for weight norm: shapes by name, and the pair in it.
DECOYS: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "biases of gates": ({f"b_{gate}": (4,) for gate in "ifogv"}, "b"),
    "attention with a gate": ({"W_q": (8, 8), "W_k": (8, 8), "W_v": (8, 8), "W_g": (8, 1)}, "W"),
    "two numbers": ({"k_g": (), "k_v": ()}, "k"),
    "graph nets": ({"bias_e": (4,), "bias_v": (4,), "bias_g": (4,)}, "bias"),
    "fusion": ({f"alpha_{part}": (4,) for part in "lavg"}, "alpha"),
}
EVERY = pytest.mark.parametrize(("shapes", "name"), DECOYS.values(), ids=DECOYS)


def filled(shapes: dict[str, tuple[int, ...]]) -> State:
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def conv() -> State:
    """A layer with a bias that is normalized too."""
    module = legacy(legacy(torch.nn.Conv1d(3, 4, 2)), "bias")
    return {f"conv.{name}": value.detach() for name, value in module.state_dict().items()}


def equal(left: State, right: State) -> bool:
    return list(left) == list(right) and all(same(left[name], right[name]) for name in left)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@EVERY
def test_a_pair_that_is_none_is_kept_and_the_layer_beside_it_folded(
    shapes: dict[str, tuple[int, ...]], name: str, suffix: str, tmp_path: Path, run: Runner
) -> None:
    decoy = filled(shapes)
    source, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    _save({**decoy, **conv()}, source)
    ended = run("fold", source, "-o", out, "--verify")
    assert ended.returncode == 0
    notes = [line for line in ended.stderr.splitlines() if "not taken for weight norm" in line]
    assert len(notes) == 1
    assert f"{name}_g and {name}_v are not taken" in notes[0]
    assert notes[0].endswith(f"; --layers '{name}' takes them")
    after = _load(out)
    assert equal({key: after[key] for key in decoy}, decoy)
    assert {"conv.weight", "conv.bias"} <= set(after)


@EVERY
def test_the_layers_option_of_the_note_takes_the_pair(
    shapes: dict[str, tuple[int, ...]], name: str, tmp_path: Path, run: Runner
) -> None:
    decoy = filled(shapes)
    torch.save(decoy, tmp_path / "in.pt")
    ended = run("fold", tmp_path / "in.pt", "-o", tmp_path / "out.pt", "--layers", name)
    assert ended.returncode == 0
    assert "not taken" not in ended.stderr
    after = load(tmp_path / "out.pt")
    assert ulps(after[name], folded64(decoy[f"{name}_g"], decoy[f"{name}_v"])) <= 1
    if after[name].dim():  # a single number has no norm to split off
        split_file(tmp_path / "out.pt", tmp_path / "again.pt")
        assert set(load(tmp_path / "again.pt")) == set(decoy)
    assert compare_files(tmp_path / "in.pt", tmp_path / "out.pt", layers=name)
    (row,) = inspect_file(tmp_path / "in.pt", layers=name).layers
    assert (row.name, row.form) == (name, "legacy")


@EVERY
def test_no_verb_takes_it(shapes: dict[str, tuple[int, ...]], name: str, tmp_path: Path) -> None:
    decoy = filled(shapes)
    assert equal(fold_state_dict(decoy), decoy)
    assert equal(migrate_state_dict(decoy), decoy)
    for found in (inspect_state_dict(decoy), inspect_module(_Module(decoy))):
        assert (found.layers, found.fold) == ((), "nothing to fold")
        assert [note for note in found.notes if f"{name}_g and {name}_v are not taken" in note]
    torch.save(decoy, tmp_path / "in.pt")
    result = migrate_file(tmp_path / "in.pt", tmp_path / "out.pt", copy=True)
    assert not result.plan.layers
    assert equal(load(tmp_path / "out.pt"), decoy)
    assert compare_files(tmp_path / "in.pt", tmp_path / "out.pt")


class _Module(torch.nn.Module):
    def __init__(self, state: State) -> None:
        super().__init__()
        for name, value in state.items():
            self.register_parameter(name, torch.nn.Parameter(value))


def test_what_a_live_modules_hook_says_is_a_layer_under_any_name() -> None:
    module = _Module({"alpha": torch.randn(4), "alpha_k": torch.randn(4)})
    (row,) = inspect_module(legacy(module, "alpha")).layers
    assert row.name == "alpha"


def test_a_pickled_hook_says_that_its_pair_is_a_layer(tmp_path: Path) -> None:
    torch.save(legacy(torch.nn.Linear(3, 4), "bias"), tmp_path / "in.pt")
    plan = fold_file(tmp_path / "in.pt", tmp_path / "out.pt").plan
    assert [row.name for row in plan.layers] == ["bias"]
    assert [row.name for row in inspect_file(tmp_path / "in.pt").layers] == ["bias"]


def test_a_migration_says_which_layers_must_be_named_to_go_back(tmp_path: Path) -> None:
    stem = "parametrizations.W.original"
    state = {f"{stem}0": torch.ones(4, 1), f"{stem}1": torch.ones(4, 2), "W_q": torch.ones(4, 2)}
    torch.save(state, tmp_path / "in.pt")
    there = migrate_file(tmp_path / "in.pt", tmp_path / "there.pt", to="legacy")
    assert [
        note for note in there.notes if note.startswith("W: the next command finds it as a layer only by")
    ]
    assert not migrate_file(tmp_path / "there.pt", tmp_path / "a.pt").plan.layers
    assert migrate_file(tmp_path / "there.pt", tmp_path / "b.pt", layers="W").plan.layers


# -- without elements


def empty(form: str = "legacy") -> State:
    """As one rank of a ZeRO-3 training saves it."""
    names = ("fc.weight_g", "fc.weight_v")
    if form == "parametrize":
        names = ("fc.parametrizations.weight.original0", "fc.parametrizations.weight.original1")
    return {**{name: torch.empty(0) for name in names}, "fc.bias": torch.empty(0)}


@pytest.mark.parametrize("verb", ["fold", "migrate"])
@pytest.mark.parametrize("form", ["legacy", "parametrize"])
def test_a_layer_without_elements_is_refused_and_nothing_is_written(
    form: str, verb: str, tmp_path: Path, run: Runner
) -> None:
    torch.save(empty(form), tmp_path / "in.pt")
    before = listing(tmp_path)
    to = ("--to", "legacy" if form == "parametrize" else "parametrize") if verb == "migrate" else ()
    ended = run(verb, tmp_path / "in.pt", "-o", tmp_path / "out.pt", *to)
    assert ended.returncode == 2
    error, fix = ended.stderr.splitlines()
    assert error.endswith("layer fc.weight: empty: saved from one rank of a sharded training")
    assert fix.startswith("fix: gather it first (zero_to_fp32.py, FULL_STATE_DICT); ")
    assert listing(tmp_path) == before


def test_a_plain_weight_without_elements_is_not_split(tmp_path: Path, run: Runner) -> None:
    torch.save({"fc.weight": torch.empty(0), "fc.bias": torch.empty(0)}, tmp_path / "in.pt")
    ended = run("split", tmp_path / "in.pt", "--layers", "fc.weight", "--dim", "0")
    assert ended.returncode == 2
    assert "layer fc.weight: it is empty: saved from one rank" in ended.stderr
    assert "zero_to_fp32.py" in ended.stderr


@pytest.mark.parametrize("of", [torch.empty, np.empty])
def test_state_dicts_in_memory_refuse_it_too(of: Any) -> None:
    state = {"fc.weight_g": of(0), "fc.weight_v": of(0)}
    for verb in (fold_state_dict, migrate_state_dict):
        with pytest.raises(LayerError, match=r"layer fc.weight: empty: saved from one rank"):
            verb(state)
    with pytest.raises(LayerError, match="it is empty"):
        split_state_dict({"fc.weight": of((0, 4))}, layers="*", dim=0)
    found = inspect_state_dict(state)
    assert "fc.weight is refused: empty: saved from one rank of a sharded training" in found.notes


def test_an_empty_buffer_refuses_nothing() -> None:
    shapes = {name: shape for name, shape, _ in pair("c.weight")}
    state = {**filled(shapes), "c.cache": torch.empty(0)}
    assert set(fold_state_dict(state)) == {"c.weight", "c.cache"}


def _save(state: State, path: Path) -> None:
    if path.suffix == ".pt":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)


def _load(path: Path) -> State:
    found: State = load(path) if path.suffix == ".pt" else safetensors.torch.load_file(path)
    order = sorted(found)
    return {name: found[name] for name in (found if path.suffix == ".pt" else order)}
