"""Checkpoints put into modules: every container, every form on both sides; and what does not fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tests.export_models import Speech, Vocoder, speech, vocoder
from tests.live_models import norm, portrait, trained
from wnconvert.errors import ArgumentError, InputError, LayerError
from wnconvert.module_weights import load_weights
from wnconvert.modules import folded

PLAIN = "plain"
EVERY_FORM = ("legacy", "parametrize", PLAIN)
MEL = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(1))


def in_form(form: str, seed: int = 5) -> Any:
    """The same numbers in every form."""
    return folded(vocoder(seed=seed)) if form == PLAIN else vocoder(form, seed=seed)


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(MEL)
    return found


def close(model: nn.Module, other: nn.Module) -> bool:
    return bool(torch.allclose(output(model), output(other), rtol=1e-5, atol=1e-6))


def save_legacy(state: Any, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_nested(state: Any, path: Path) -> None:
    torch.save({"generator": state, "discriminator": {"w": torch.ones(3)}, "epoch": 3}, path)


SAVERS: dict[str, Callable[[Any, Path], None]] = {
    "safetensors": lambda state, path: safetensors.torch.save_file(dict(state), path),
    "torch zip": torch.save,
    "torch legacy": save_legacy,
    "nested": save_nested,
}


@pytest.mark.parametrize("here", EVERY_FORM)
@pytest.mark.parametrize("there", EVERY_FORM)
def test_every_form_comes_to_the_form_that_the_module_has(tmp_path: Path, here: str, there: str) -> None:
    torch.save(in_form(there).state_dict(), tmp_path / "w.pt")
    model = in_form(here, seed=9)
    assert not close(model, in_form(there))
    names = list(model.state_dict())
    load_weights(model, tmp_path / "w.pt")
    assert close(model, in_form(there))
    assert list(model.state_dict()) == names
    if here == there:
        same = zip(model.state_dict().values(), in_form(there).state_dict().values(), strict=True)
        assert all(torch.equal(left, right) for left, right in same)


@pytest.mark.parametrize("container", SAVERS)
def test_weights_come_from_every_container(tmp_path: Path, container: str) -> None:
    SAVERS[container](vocoder("legacy").state_dict(), tmp_path / "weights")
    model = in_form("parametrize", seed=9)
    (note,) = load_weights(model, tmp_path / "weights")
    assert close(model, vocoder())
    assert "9 tensors" in note
    assert (" at generator" in note) == (container == "nested")


def test_weights_come_from_a_whole_module_and_from_torchscript(tmp_path: Path) -> None:
    source = vocoder("legacy").eval()
    source(MEL)
    for layer in (source.conv_pre, source.up, source.proj):
        layer.weight = layer.weight.detach()
    torch.save(source, tmp_path / "whole.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(source, (MEL,)).save(tmp_path / "script.pt")  # type: ignore[no-untyped-call]
    for name in ("whole.pt", "script.pt"):
        model = in_form("parametrize", seed=9)
        load_weights(model, tmp_path / name)
        assert close(model, vocoder())


@pytest.mark.parametrize("form", ["legacy", "parametrize"])
def test_recurrent_layers_load_too(tmp_path: Path, form: str) -> None:
    torch.save(folded(speech()).state_dict(), tmp_path / "w.pt")
    model = trained(Speech(form)).eval()
    load_weights(model, tmp_path / "w.pt")
    ids = torch.arange(9).reshape(1, 9)
    with torch.no_grad():
        found, expected = model(MEL, ids=ids), speech().eval()(MEL, ids=ids)
    assert torch.allclose(found["wave"], expected["wave"], rtol=1e-5, atol=1e-6)


def test_another_dim_of_the_same_function_is_brought_over(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source: Any = trained(norm(nn.Linear(6, 6), dim=1))
    torch.save(source.state_dict(), tmp_path / "w.pt")
    model = norm(nn.Linear(6, 6), dim=0)
    load_weights(model, tmp_path / "w.pt")
    assert torch.allclose(model.weight, source.weight, rtol=1e-6, atol=1e-7)
    assert not torch.equal(model.state_dict()["parametrizations.weight.original1"], source.weight)


def test_half_precision_is_split_in_the_modules_own(tmp_path: Path) -> None:
    source: Any = folded(vocoder()).half()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    model = in_form("parametrize", seed=9)
    load_weights(model, tmp_path / "w.pt")
    assert torch.allclose(model.conv_pre.weight, source.conv_pre.weight.float(), rtol=1e-6, atol=0)


def test_integers_and_scalars_load_as_they_are(tmp_path: Path) -> None:
    source = nn.BatchNorm1d(3)
    source(torch.randn(5, 3))
    source.register_buffer("mask", torch.tensor([True, False]))
    torch.save(source.state_dict(), tmp_path / "w.pt")
    model = nn.BatchNorm1d(3)
    model.register_buffer("mask", torch.zeros(2, dtype=torch.bool))
    load_weights(model, tmp_path / "w.pt")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in source.state_dict().items())


# -- what does not fit


def refused(model: nn.Module, path: Path, **options: Any) -> InputError | ArgumentError | LayerError:
    before = portrait(model)
    with pytest.raises((InputError, ArgumentError, LayerError)) as caught:
        load_weights(model, path, **options)
    assert portrait(model) == before
    assert str(caught.value).startswith(str(path))
    assert caught.value.exit_code == 2
    assert isinstance(caught.value, (InputError, ArgumentError, LayerError))
    return caught.value


def test_all_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    state = vocoder("legacy").state_dict()
    del state["up.bias"]
    state["extra.weight"] = torch.ones(3)
    state["proj.bias"] = torch.ones(7)
    torch.save(state, tmp_path / "w.pt")
    error = refused(vocoder(), tmp_path / "w.pt")
    lines = [line.strip() for line in str(error).splitlines()[1:]]
    assert lines == [
        "missing: up.bias",
        "unexpected: extra.weight",
        "shape: proj.bias: [7] in the file, [3] in the model",
    ]


def test_a_model_of_another_size_does_not_fit(tmp_path: Path) -> None:
    torch.save(vocoder(channels=3).state_dict(), tmp_path / "w.pt")
    error = refused(vocoder("legacy"), tmp_path / "w.pt")
    assert "shape: conv_pre.weight: [3,4,3] in the file, [6,4,3] in the model" in str(error)
    assert "--kwargs" in error.fix


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "generator.dec."])
def test_names_that_differ_by_a_prefix_are_told_and_it_can_be_taken_off(tmp_path: Path, prefix: str) -> None:
    torch.save({prefix + name: value for name, value in vocoder().state_dict().items()}, tmp_path / "w.pt")
    model = in_form("legacy", seed=9)
    assert refused(model, tmp_path / "w.pt").fix == f"--strip-prefix {prefix}"
    load_weights(model, tmp_path / "w.pt", strip_prefix=[prefix])
    assert close(model, vocoder())


def test_of_several_state_dicts_that_fit_one_must_be_named(tmp_path: Path) -> None:
    torch.save({"model": vocoder().state_dict(), "ema": vocoder(seed=8).state_dict()}, tmp_path / "w.pt")
    error = refused(vocoder(), tmp_path / "w.pt")
    assert "2 of its state dicts fit the model: model, ema" in str(error)
    model = vocoder(seed=9)
    load_weights(model, tmp_path / "w.pt", only="ema")
    assert close(model, vocoder(seed=8))
    assert "there is no state dict at 'emma'" in str(refused(model, tmp_path / "w.pt", only="emma"))


def test_where_none_of_several_fits_each_is_counted(tmp_path: Path) -> None:
    save_nested(vocoder(channels=3).state_dict(), tmp_path / "w.pt")
    error = refused(Vocoder(), tmp_path / "w.pt")
    assert "none of its 2 state dicts fits" in str(error)
    assert "\n  generator: 0 tensors missing, 0 unexpected, 3 of another shape" in str(error)
    listed = refused(Vocoder(), tmp_path / "w.pt", only="generator")
    assert "shape: conv_pre.weight" in str(listed)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "Git-LFS" in str(refused(vocoder(), tmp_path / "w.pt"))
    assert "no such file" in str(refused(vocoder(), tmp_path / "none.pt"))
