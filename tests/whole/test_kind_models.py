"""Models with spectral norm and prune, live and from files: plain classes load them and compute the same."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.helpers.kind_models import KIND_ROWS, KindRow, in_float64
from tests.helpers.live_kinds import is_computed
from tests.helpers.marks import some
from tests.helpers.states import same
from wnconvert import export_onnx, fold_file, fold_module, fold_state_dict


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def from_state_dict(model: nn.Module, folder: Path) -> Any:
    torch.save({"generator": model.state_dict()}, folder / "in.pt")
    fold_file(folder / "in.pt", folder / "out.pt", kinds="all", verify=True)
    return torch.load(folder / "out.pt")["generator"]


def from_safetensors(model: nn.Module, folder: Path) -> Any:
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "in.safetensors"
    )
    fold_file(folder / "in.safetensors", folder / "out.safetensors", kinds="all", verify=True)
    return load_file(folder / "out.safetensors")


def from_torchscript(model: nn.Module, x: torch.Tensor, folder: Path) -> Any:
    torch.jit.save(torch.jit.trace(model, x), folder / "script.pt")  # type: ignore[no-untyped-call]
    fold_file(folder / "script.pt", folder / "out.pt", kinds="all", verify=True, force=True)
    return torch.load(folder / "out.pt")


every_row = some(
    "row", KIND_ROWS, ["HiFi-GAN's scale discriminator, legacy", "pruned spectral discriminator"]
)


@every_row
def test_live_and_in_files_it_fits_the_plain_class(row: KindRow, tmp_path: Path) -> None:
    model, x = row.model()
    with torch.no_grad():
        expected = model(x)
    states = [
        fold_state_dict(model.state_dict(), kinds="all"),
        from_state_dict(model, tmp_path),
        from_safetensors(model, tmp_path),
    ]
    if row.kind == "spectral":  # tracing takes no stacks of hooks
        states.append(from_torchscript(model, x, tmp_path))
    done = fold_module(model, kinds="all")
    assert Counter(layer.rule.kind for layer in done) == {row.kind: row.layers}
    assert not is_computed(model)
    for state in states:
        plain = row.plain()
        plain.load_state_dict(state, strict=True)
        mine = plain.state_dict()
        assert all(same(mine[name], value) for name, value in model.state_dict().items())
        with torch.no_grad():
            torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-5)


@some("row", KIND_ROWS, ["pruned spectral discriminator"])
def test_it_is_exported_and_proven(row: KindRow, tmp_path: Path) -> None:
    model, x = row.model()
    report = export_onnx(model, tmp_path / "m.onnx", inputs=[x])
    assert report
    assert report.folded_in_module == row.layers


@some("row", KIND_ROWS, ["HiFi-GAN's scale discriminator, parametrize"])
def test_folded_it_is_no_further_from_float64_than_it_was(row: KindRow) -> None:
    model, x = row.model()
    with torch.no_grad():
        before = model(x).double()
        fold_module(model, kinds="all")
        after = model(x).double()
        y = in_float64(row.model()[0])(x.double())
    apart = [float((each - y).abs().max() / y.abs().max()) for each in (before, after)]
    assert apart[1] <= max(1.5 * apart[0], 1e-6)
