"""A g that is a vector, as Paddle and ports by hand have it: migrate writes it as torch loads it."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tests.helpers.deprecated import deprecated
from tests.helpers.live_models import legacy, new
from tests.helpers.runner import Runner
from tests.helpers.states import State, load, same
from wnconvert import fold_file, migrate_file, migrate_state_dict, split_file

#: g, v, and g as torch has it: one row for each shape that is met.
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "linear": ((4,), (4, 3), (4, 1)),
    "convolution": ((4,), (4, 3, 2), (4, 1, 1)),
    "transposed by Paddle": ((3,), (4, 3), (1, 3)),
    "last axis": ((2,), (4, 3, 2), (1, 1, 2)),
    "one output": ((1,), (1, 3), (1, 1)),
    "the whole tensor": ((1,), (4, 3), ()),
    "one element of another rank": ((1, 1), (4, 3, 2), ()),
}
EVERY = pytest.mark.parametrize(("g", "v", "torchs"), SHAPES.values(), ids=SHAPES)
G, V = "fc.parametrizations.weight.original0", "fc.parametrizations.weight.original1"


def state(g: tuple[int, ...], v: tuple[int, ...]) -> State:
    torch.manual_seed(0)
    return OrderedDict(
        {"fc.bias": torch.zeros(v[0]), "fc.weight_g": torch.randn(g), "fc.weight_v": torch.randn(v)}
    )


def saved(tensors: State, path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def read(path: Path) -> State:
    return safetensors.torch.load_file(path) if path.suffix == ".safetensors" else load(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@EVERY
def test_it_is_written_in_torchs_shape_and_comes_back_as_it_was(
    g: tuple[int, ...], v: tuple[int, ...], torchs: tuple[int, ...], suffix: str, tmp_path: Path
) -> None:
    tensors = state(g, v)
    source = saved(tensors, tmp_path / f"in{suffix}")
    there, back, again = (tmp_path / f"{name}{suffix}" for name in ("there", "back", "again"))
    result = migrate_file(source, there, verify=True)
    assert f"fc.weight_g {g} is written in the shape {torchs}" in result.notes
    moved = read(there)
    assert moved[G].shape == torchs
    assert same(moved[G].reshape(-1), tensors["fc.weight_g"].reshape(-1))
    assert same(moved[V], tensors["fc.weight_v"])
    migrate_file(there, back, to="legacy", verify=True)
    restored = read(back)
    assert set(restored) == set(tensors)
    assert all(same(restored[name], tensors[name]) for name in tensors)
    migrate_file(back, again)
    assert again.read_bytes() == there.read_bytes()


@pytest.mark.parametrize(("g", "v", "dim"), [((4,), (4, 3), 0), ((3,), (4, 3), 1), ((1,), (4, 3), None)])
def test_torch_loads_what_is_written(
    g: tuple[int, ...], v: tuple[int, ...], dim: int | None, tmp_path: Path
) -> None:
    tensors = state(g, v)
    migrate_file(saved(tensors, tmp_path / "in.pt"), tmp_path / "out.pt")
    model = nn.Sequential(OrderedDict(fc=new(nn.Linear(3, 4), dim=dim)))
    with pytest.raises(RuntimeError, match="size mismatch") if dim is not None else _nothing():
        model.load_state_dict(migrate_names(tensors))
    model.load_state_dict(load(tmp_path / "out.pt"))
    fold_file(tmp_path / "in.pt", tmp_path / "folded.pt")
    weight: Any = model.get_submodule("fc").weight
    assert torch.allclose(weight, load(tmp_path / "folded.pt")["fc.weight"])


def migrate_names(tensors: State) -> State:
    """The names alone, as a script would change them."""
    return {name.replace("fc.weight_g", G).replace("fc.weight_v", V): tensors[name] for name in tensors}


class _nothing:  # noqa: N801 - in the place of pytest.raises
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_it_comes_from_torchs_old_format_and_from_torchscript_too(tmp_path: Path) -> None:
    tensors = state((4,), (4, 3))
    torch.save(tensors, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    module = nn.Module()
    module.add_module("fc", nn.Module())
    for name, value in tensors.items():
        module.get_submodule("fc").register_parameter(name.removeprefix("fc."), nn.Parameter(value))
    with deprecated():
        torch.jit.script(module).save(tmp_path / "script.pt")  # type: ignore[no-untyped-call]
    for name in ("old.pt", "script.pt"):
        migrate_file(tmp_path / name, tmp_path / "out.pt", verify=True, force=True)
        moved = load(tmp_path / "out.pt")
        assert moved[G].shape == (4, 1)
        assert torch.equal(moved[G].reshape(-1), tensors["fc.weight_g"])


def test_some_layers_alone_go_back_to_vectors_too(tmp_path: Path) -> None:
    tensors = {**state((4,), (4, 3)), **{f"b.{key}": each for key, each in state((4,), (4, 2)).items()}}
    migrate_file(saved(tensors, tmp_path / "in.pt"), tmp_path / "there.pt")
    migrate_file(tmp_path / "there.pt", tmp_path / "one.pt", to="legacy", layers="b.*")
    migrate_file(tmp_path / "one.pt", tmp_path / "both.pt", to="legacy")
    one, both = load(tmp_path / "one.pt"), load(tmp_path / "both.pt")
    assert one["b.fc.weight_g"].shape == both["b.fc.weight_g"].shape == both["fc.weight_g"].shape == (4,)
    assert one[G].shape == (4, 1)


def test_a_g_in_torchs_shape_is_the_same_record_as_before(tmp_path: Path) -> None:
    tensors = state((4, 1), (4, 3))
    result = migrate_file(saved(tensors, tmp_path / "in.pt"), tmp_path / "out.pt")
    assert not [note for note in result.notes if "shape" in note]
    assert result.plan.record == ()


def test_names_that_share_a_g_go_on_sharing_it(tmp_path: Path) -> None:
    tensors = state((4,), (4, 3))
    tensors["b.weight_g"], tensors["b.weight_v"] = tensors["fc.weight_g"], tensors["fc.weight_v"]
    migrate_file(saved(tensors, tmp_path / "in.pt"), tmp_path / "out.pt", verify=True)
    moved = load(tmp_path / "out.pt")
    assert moved[G].data_ptr() == moved[G.replace("fc", "b")].data_ptr()


def test_every_other_element_of_a_storage_is_a_vector_too(tmp_path: Path) -> None:
    tensors = state((4,), (4, 3))
    wide = torch.randn(8)
    tensors["fc.weight_g"], tensors["wide"] = wide[1::2], wide
    migrate_file(saved(tensors, tmp_path / "in.pt"), tmp_path / "out.pt", verify=True)
    moved = load(tmp_path / "out.pt")
    assert same(moved[G], wide[1::2].reshape(4, 1))
    assert moved[G].untyped_storage().data_ptr() == moved["wide"].untyped_storage().data_ptr()
    migrate_file(tmp_path / "out.pt", tmp_path / "back.pt", to="legacy", verify=True)
    assert same(load(tmp_path / "back.pt")["fc.weight_g"], wide[1::2])


def test_a_fold_records_the_vector_and_a_split_gives_it_back(tmp_path: Path) -> None:
    saved(state((4,), (4, 3)), tmp_path / "in.pt")
    fold_file(tmp_path / "in.pt", tmp_path / "folded.pt")
    split_file(tmp_path / "folded.pt", tmp_path / "split.pt", verify=True)
    assert load(tmp_path / "split.pt")["fc.weight_g"].shape == (4,)
    split_file(tmp_path / "folded.pt", tmp_path / "new.pt", to="parametrize", verify=True)
    assert load(tmp_path / "new.pt")[G].shape == (4, 1)


def test_in_memory_g_is_a_view_of_the_same_kind() -> None:
    tensors = {key: nn.Parameter(each, requires_grad=False) for key, each in state((4,), (4, 3)).items()}
    made = migrate_state_dict(tensors)
    assert made[V] is tensors["fc.weight_v"]
    assert (made[G].shape, type(made[G]), made[G].requires_grad) == ((4, 1), nn.Parameter, False)
    assert made[G].data_ptr() == tensors["fc.weight_g"].data_ptr()
    arrays = {key: each.numpy() for key, each in state((4,), (4, 3)).items()}
    moved = migrate_state_dict(arrays)[G]
    assert (moved.shape, np.shares_memory(moved, arrays["fc.weight_g"])) == ((4, 1), True)


def test_in_memory_a_g_in_torchs_shape_is_the_very_object() -> None:
    tensors: dict[str, Tensor] = dict(legacy(nn.Linear(3, 4)).state_dict())
    assert migrate_state_dict(tensors)[G.removeprefix("fc.")] is tensors["weight_g"]


def test_the_command_says_what_it_wrote(tmp_path: Path, run: Runner) -> None:
    both = {**state((4,), (4, 3)), **{f"b.{key}": each for key, each in state((4,), (4, 2)).items()}}
    ended = run("migrate", saved(both, tmp_path / "in.pt"), "-o", tmp_path / "out.pt")
    assert ended.returncode == 0
    assert "note: fc.weight_g (4,) is written in the shape (4, 1), and 1 more so" in ended.stderr
