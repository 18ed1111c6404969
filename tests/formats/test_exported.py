"""Exported programs: what torch.export.save writes, read as a state dict, folded, and read back by torch."""

from __future__ import annotations

import shutil
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from tests.helpers.golden import FIXTURES
from tests.helpers.runner import Runner
from tests.helpers.states import hold, load, output_of, same
from wnconvert import compare_files, fold_file, inspect_file, migrate_file
from wnconvert.errors import InputError
from wnconvert.storage.checkpoint import open_checkpoint

PROGRAM = FIXTURES / "program.pt2"


@pytest.fixture(scope="module")
def exported() -> dict[str, torch.Tensor]:
    """The weights as torch itself reads them."""
    with warnings.catch_warnings():  # torch before 2.13 warns of the constants in the file
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        return dict(torch.export.load(PROGRAM).state_dict)


def test_the_weights_of_a_program_are_folded_into_a_plain_state_dict(
    exported: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    result = fold_file(PROGRAM, tmp_path / "out.pt", verify=True)
    assert hold(exported, load(output_of(result))) == 2
    assert any(
        "its graph is left out, its weights become a plain state dict" in note for note in result.notes
    )


def test_the_folded_program_is_called_as_what_it_is(run: Runner, tmp_path: Path) -> None:
    shutil.copy(PROGRAM, tmp_path)
    done = run("fold", tmp_path / "program.pt2")
    assert done.returncode == 0
    assert "an exported program" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["program.folded.pt", "program.pt2"]


def test_every_weight_of_a_program_is_read_bit_for_bit(
    exported: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    result = migrate_file(PROGRAM, tmp_path / "out.pt", to="legacy")
    made = load(output_of(result))
    names = [name.replace("parametrizations.weight.original", "weight_") for name in exported]
    names = [name.replace("weight_0", "weight_g").replace("weight_1", "weight_v") for name in names]
    assert {*made} == {*names}
    assert all(same(made[name], value) for name, value in zip(names, exported.values(), strict=True))
    assert compare_files(PROGRAM, output_of(result))


def test_a_program_is_inspected(run: Runner) -> None:
    found = inspect_file(PROGRAM)
    assert found.container == "exported program"
    assert [(layer.name, layer.form) for layer in found.layers] == [
        ("0.weight", "parametrize"),
        ("3.weight", "parametrize"),
    ]
    assert run("inspect", PROGRAM).returncode == 0


@pytest.mark.filterwarnings("ignore:No complete tensor found:UserWarning")
def test_views_ties_and_other_dtypes_come_back(tmp_path: Path) -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = torch.nn.Parameter(torch.arange(12.0).view(3, 4).t())
            self.tied = self.base
            self.register_buffer("halves", torch.arange(6.0).half()[::2])
            self.register_buffer("count", torch.tensor(3))
            self.register_buffer("nothing", torch.empty(0, 4))
            self.register_buffer("brain", torch.ones(3, dtype=torch.bfloat16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.base.sum() + self.tied.sum()

    program = torch.export.export(Module(), (torch.ones(1),))
    torch.export.save(program, tmp_path / "in.pt2")
    fold_file(tmp_path / "in.pt2", tmp_path / "out.pt")
    made, wanted = load(tmp_path / "out.pt"), torch.export.load(tmp_path / "in.pt2").state_dict
    assert {*made} == {*wanted} >= {"base", "tied", "halves", "count", "nothing", "brain"}
    assert all(same(made[name].contiguous(), value.contiguous()) for name, value in wanted.items())


def test_a_program_from_before_torch_2_8_is_read_from_the_state_dict_in_it(tmp_path: Path) -> None:
    torch.save({"a.weight_g": torch.ones(2, 1), "a.weight_v": torch.rand(2, 3)}, tmp_path / "state.pt")
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as archive:
        archive.writestr("serialized_exported_program.json", b"{}")
        archive.write(tmp_path / "state.pt", "serialized_state_dict.pt")
        archive.writestr("version", b"7.0")
    result = fold_file(tmp_path / "old.pt2", tmp_path / "out.pt", verify=True)
    assert hold(load(tmp_path / "state.pt"), load(output_of(result))) == 1


def test_a_program_without_weights_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as archive:
        archive.writestr("serialized_exported_program.json", b"{}")
    with pytest.raises(InputError, match="without weights") as caught:
        open_checkpoint(tmp_path / "old.pt2")
    assert caught.value.fix
