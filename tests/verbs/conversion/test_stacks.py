"""Parametrizations stacked on weight norm that have no tensors: only the names of modules show them."""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from tests.helpers.states import folded64, ulps
from wnconvert.errors import LayerError
from wnconvert.verbs.comparison.compare import compare_state_dicts
from wnconvert.verbs.conversion.files.fold import fold_file
from wnconvert.verbs.conversion.files.migrate import migrate_file
from wnconvert.verbs.conversion.state_dict import fold_state_dict, migrate_state_dict
from wnconvert.verbs.inspection.inspect import inspect_file, inspect_state_dict
from wnconvert.verbs.modules.convert import fold_module


class Positive(nn.Module):
    """A parametrization without tensors."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


def plain() -> nn.Sequential:
    """Two convolutions with weight norm."""
    return nn.Sequential(*(parametrizations.weight_norm(nn.Conv1d(a, b, 3)) for a, b in ((2, 4), (4, 8))))


def stacked() -> nn.Sequential:
    """The same, the second with another parametrization behind weight norm."""
    module = plain()
    parametrize.register_parametrization(module[1], "weight", Positive())
    return module


def legacy_save(state: Any, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def nested_save(state: Any, path: Path) -> None:
    torch.save({"epoch": 3, "model": state}, path)


SAVES: dict[str, Callable[[Any, Path], None]] = {
    "zip": torch.save,
    "legacy": legacy_save,
    "nested": nested_save,
}


@pytest.mark.parametrize("how", SAVES)
def test_a_stack_without_tensors_is_refused_in_files(tmp_path: Path, how: str) -> None:
    source = tmp_path / "net.pt"
    SAVES[how](stacked().state_dict(), source)
    for verb in (fold_file, migrate_file):
        with pytest.raises(LayerError, match=r"1\.parametrizations\.weight\.1 shows another"):
            verb(source, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()
    found = fold_file(source, tmp_path / "out.pt", exclude="1.weight")
    assert [layer.name for layer in found.plan.layers] == ["0.weight"]
    assert [(row.name, row.form) for row in inspect_file(source).layers] == [
        ("0.weight", "parametrize"),
        ("1.weight", "refused"),
    ]


def test_weight_norm_alone_is_folded_with_the_same_metadata(tmp_path: Path) -> None:
    state = plain().state_dict()
    assert "1.parametrizations.weight.0" in state._metadata  # type: ignore[attr-defined]
    torch.save(state, tmp_path / "net.pt")
    assert len(fold_file(tmp_path / "net.pt", tmp_path / "out.pt").plan.layers) == 2
    after = torch.load(tmp_path / "out.pt", weights_only=True)
    g, v = (state[f"1.parametrizations.weight.original{n}"] for n in (0, 1))
    assert ulps(after["1.weight"], folded64(g, v)) <= 1


def test_a_parametrization_of_another_parameter_refuses_nothing(tmp_path: Path) -> None:
    module = plain()
    for _ in range(2):
        parametrize.register_parametrization(module[1], "bias", Positive())
    state = module.state_dict()
    assert "1.parametrizations.bias.1" in state._metadata  # type: ignore[attr-defined]
    assert "1.weight" in fold_state_dict(state)
    torch.save(state, tmp_path / "net.pt")
    assert len(fold_file(tmp_path / "net.pt", tmp_path / "out.pt").plan.layers) == 2


def test_a_stack_is_refused_in_state_dicts_too() -> None:
    state = stacked().state_dict()
    for verb in (fold_state_dict, migrate_state_dict):
        with pytest.raises(LayerError, match="shows another"):
            verb(state)
    with pytest.raises(LayerError, match="shows another"):
        compare_state_dicts(state, state)
    assert compare_state_dicts(state, state, exclude="1.weight")
    assert [row.name for row in inspect_state_dict(state).layers if row.form != "refused"] == ["0.weight"]
    assert set(fold_state_dict(state, exclude="1.weight")) >= {"0.weight"}


def test_a_stack_keeps_its_number_under_a_new_name(tmp_path: Path) -> None:
    module = nn.Module()
    module.net = stacked()
    torch.save(module.state_dict(), tmp_path / "net.pt")
    with pytest.raises(LayerError, match=r"layer m\.1\.weight: m\.1\.parametrizations\.weight\.1 shows"):
        fold_file(tmp_path / "net.pt", tmp_path / "out.pt", rename="net=m")
    with pytest.raises(LayerError, match=r"layer 1\.weight: 1\.parametrizations\.weight\.1 shows"):
        fold_state_dict(module.state_dict(), strip_prefix="net.")


def test_a_stack_is_refused_in_folders_of_torchs_files(tmp_path: Path) -> None:
    state, folder = stacked().state_dict(), tmp_path / "folder"
    folder.mkdir()
    names = list(state)
    parts = {f"pytorch_model-0000{n + 1}-of-00002.bin": names[n::2] for n in range(2)}
    for file, keys in parts.items():
        part = OrderedDict((key, state[key]) for key in keys)
        if file.startswith("pytorch_model-00002"):
            part._metadata = state._metadata  # type: ignore[attr-defined]
        torch.save(part, folder / file)
    weight_map = {key: file for file, keys in parts.items() for key in keys}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(LayerError, match="shows another"):
        fold_file(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_traced_stack_is_refused_by_its_modules(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, module in (("stack", stacked()), ("alone", plain())):
            traced: Any = torch.jit.trace(module.eval(), torch.randn(1, 2, 9))  # type: ignore[no-untyped-call]
            traced.save(str(tmp_path / f"{name}.pt"))
    with pytest.raises(LayerError, match="shows another parametrization"):
        fold_file(tmp_path / "stack.pt", tmp_path / "out.pt")
    assert len(fold_file(tmp_path / "alone.pt", tmp_path / "out.pt").plan.layers) == 2


def test_without_the_names_of_modules_a_stack_is_not_seen(tmp_path: Path) -> None:
    """What README says cannot be seen: this is not wished for."""
    state = {name: value.detach() for name, value in stacked().state_dict().items()}
    assert "1.weight" in fold_state_dict(state)
    safetensors.torch.save_file(state, tmp_path / "net.safetensors")
    assert len(fold_file(tmp_path / "net.safetensors", tmp_path / "out.safetensors").plan.layers) == 2


def test_a_live_module_shows_its_stack() -> None:
    with pytest.raises(LayerError, match="Positive are stacked on it"):
        fold_module(stacked())
    assert len(fold_module(plain())) == 2
