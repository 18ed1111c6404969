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

from tests.helpers.export_models import Speech, Vocoder, speech, vocoder
from tests.helpers.live_models import WeightNormLinear, g_and_v, legacy, norm, portrait, trained
from wnconvert.errors import ArgumentError, InputError, LayerError
from wnconvert.verbs.models.loading.weights import load_weights
from wnconvert.verbs.modules.convert import folded

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


class OwnWay(nn.Module):
    """A module that has g and v of its own, under torch's names, and no hook."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_g, self.weight_v = nn.Parameter(torch.randn(3, 1)), nn.Parameter(torch.randn(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight_g * nn.functional.normalize(self.weight_v, dim=1)).T


@pytest.mark.parametrize("make", [lambda: WeightNormLinear(2, 3), OwnWay], ids=["PhysicsNeMo", "its own"])
def test_a_module_that_computes_weight_norm_itself_gets_its_g_and_v(
    tmp_path: Path, make: Callable[[], nn.Module]
) -> None:
    source, model = make(), make()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    x = torch.randn(5, 2)
    assert torch.equal(model(x), source(x))


def test_weight_norm_of_torch_is_known_under_any_name_that_the_module_gives_it(tmp_path: Path) -> None:
    def make() -> nn.Module:
        module = nn.Module()
        module.register_parameter("alpha", nn.Parameter(torch.randn(4)))
        return legacy(module, "alpha")

    source, model = make(), make()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert torch.equal(g_and_v(model, "alpha")[1], g_and_v(source, "alpha")[1])


@pytest.mark.parametrize("container", SAVERS)
def test_weights_come_from_every_container(tmp_path: Path, container: str) -> None:
    SAVERS[container](vocoder("legacy").state_dict(), tmp_path / "weights")
    model = in_form("parametrize", seed=9)
    loaded = load_weights(model, tmp_path / "weights")
    assert close(model, vocoder())
    assert "9 tensors" in str(loaded)
    assert (" at generator" in str(loaded)) == (container == "nested")
    assert not loaded.notes


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


class Tied(nn.Module):
    """Two layers with the very same weight, under any form; of one the bias too."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.head, self.emb = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
        self.again = self.emb
        if form == PLAIN:
            self.head.weight = self.emb.weight
            return
        norm(self.head, form)
        norm(self.emb, form)
        g, v = g_and_v(self.emb)
        owner: Any = self.head.parametrizations.weight if form == "parametrize" else self.head  # type: ignore[union-attr]
        for name, half in zip(
            ("original0", "original1") if form == "parametrize" else ("weight_g", "weight_v"),
            (g, v),
            strict=True,
        ):
            setattr(owner, name, half)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.emb(x).tanh()) + self.again(x)
        return y


@pytest.mark.parametrize("here", EVERY_FORM)
@pytest.mark.parametrize("there", EVERY_FORM)
def test_tied_weights_come_from_the_one_name_that_the_file_has(tmp_path: Path, here: str, there: str) -> None:
    torch.manual_seed(2)
    source, model = trained(Tied(there)), Tied(here)
    safetensors.torch.save_model(source, str(tmp_path / "w.safetensors"))
    assert len(safetensors.torch.load_file(tmp_path / "w.safetensors")) == (2 if there == PLAIN else 3)
    loaded = load_weights(model, tmp_path / "w.safetensors")
    (note,) = loaded.notes
    assert str(loaded).endswith(": 2 tensors" if there == PLAIN else ": 3 tensors")
    x = torch.randn(5, 3)
    assert torch.allclose(model(x), source(x), rtol=1e-5, atol=1e-6)
    assert note.startswith("in the file under another name of the same tensor in the model: ")
    assert "head.weight (as " in note or "emb.weight (as " in note
    assert isinstance(model.head, nn.Linear)
    assert (
        g_and_v(model.head)[0] is g_and_v(model.emb)[0]
        if here != PLAIN
        else model.head.weight is model.emb.weight
    )


def test_weights_that_are_equal_but_not_tied_are_missing(tmp_path: Path) -> None:
    state = Tied(PLAIN).state_dict()
    del state["head.weight"]
    torch.save(state, tmp_path / "w.pt")
    model = Tied(PLAIN)
    model.head.weight = nn.Parameter(model.emb.weight.detach())
    assert "missing: head.weight" in str(refused(model, tmp_path / "w.pt"))


def test_a_pair_of_which_one_half_is_tied_is_missing(tmp_path: Path) -> None:
    torch.save({"emb.weight": torch.ones(3, 3), "emb.bias": torch.ones(3)}, tmp_path / "w.pt")
    model = Tied("legacy")
    model.head.weight_g = nn.Parameter(torch.ones(3, 1))
    error = refused(model, tmp_path / "w.pt")
    assert [line.strip() for line in error.lines[1:]] == ["missing: head.weight"]


@pytest.mark.parametrize("root", [True, False])
def test_what_batch_norm_counts_may_be_absent(tmp_path: Path, *, root: bool) -> None:
    def made() -> nn.Module:
        return nn.BatchNorm1d(3) if root else nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

    source, model = made(), made()
    source(torch.randn(5, 3))
    model(torch.randn(5, 3))
    model(torch.randn(5, 3))
    name = "num_batches_tracked" if root else "1.num_batches_tracked"
    state = source.state_dict()
    del state[name]
    torch.save(state, tmp_path / "w.pt")
    (note,) = load_weights(model, tmp_path / "w.pt").notes
    assert note == f"not in the file (old torch did not write it), so left as in the model: {name}"
    found = model.state_dict()
    assert found.pop(name) == 2
    assert all(torch.equal(found[each], value) for each, value in state.items())


def test_a_buffer_that_is_only_called_as_that_count_is_missing(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    model.register_buffer("num_batches_tracked", torch.tensor(0))
    assert "missing: num_batches_tracked" in str(refused(model, tmp_path / "w.pt"))


# -- what does not fit


class Extra(nn.Linear):
    """A layer with state of its own beside its tensors."""

    def __init__(self, extra: Any) -> None:
        super().__init__(2, 2)
        self.extra = extra

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


def test_state_that_is_no_tensor_is_refused_in_words(tmp_path: Path) -> None:
    torch.save(nn.Sequential(Extra({"steps": 3})).state_dict(), tmp_path / "w.pt")
    model = nn.Sequential(Extra({"steps": 0}))
    error = refused(model, tmp_path / "w.pt")
    assert "state that is not a tensor, as from get_extra_state: 0._extra_state" in str(error)
    assert "factory" in error.fix


def test_extra_state_that_is_a_tensor_is_loaded(tmp_path: Path) -> None:
    torch.save(Extra(torch.ones(3)).state_dict(), tmp_path / "w.pt")
    model = Extra(torch.zeros(3))
    load_weights(model, tmp_path / "w.pt")
    assert model.extra.tolist() == [1, 1, 1]


def test_a_lazy_model_is_refused_in_words(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ArgumentError, match="without a shape yet: weight, bias"):
        load_weights(nn.LazyLinear(2), tmp_path / "w.pt")


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
    lines = [line.strip() for line in error.lines[1:]]
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


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "generator.dec."])
def test_names_that_differ_by_a_prefix_are_told_and_it_can_be_taken_off(tmp_path: Path, prefix: str) -> None:
    torch.save({prefix + name: value for name, value in vocoder().state_dict().items()}, tmp_path / "w.pt")
    model = in_form("legacy", seed=9)
    assert refused(model, tmp_path / "w.pt").fix.endswith(f": --strip-prefix {prefix} takes it off")
    load_weights(model, tmp_path / "w.pt", strip_prefix=[prefix])
    assert close(model, vocoder())


@pytest.mark.parametrize("form", EVERY_FORM)
@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_in_names_are_seen_through_and_it_is_said(tmp_path: Path, form: str, wrapper: str) -> None:
    state = in_form(form).state_dict()
    wrapped = {name.replace("conv_pre.", f"conv_pre.{wrapper}."): value for name, value in state.items()}
    torch.save(wrapped, tmp_path / "w.pt")
    model = in_form("legacy", seed=9)
    loaded = load_weights(model, tmp_path / "w.pt")
    assert close(model, vocoder())
    assert loaded.notes == (f"{wrapper} in names is seen through (conv_pre.{wrapper} is conv_pre)",)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_takes_a_plain_checkpoint_and_a_plain_model_a_compiled_one(tmp_path: Path) -> None:
    torch.save(vocoder().state_dict(), tmp_path / "plain.pt")
    model: Any = vocoder(seed=9)
    model.conv_pre = torch.compile(model.conv_pre)
    load_weights(model, tmp_path / "plain.pt")
    torch.save(model.state_dict(), tmp_path / "compiled.pt")
    other = vocoder(seed=7)
    load_weights(other, tmp_path / "compiled.pt")
    assert close(other, vocoder())


def test_a_name_that_only_looks_like_a_wrapper_is_a_name(tmp_path: Path) -> None:
    state = {name.replace("conv_pre", "conv_pre.orig_mod"): v for name, v in vocoder().state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    assert "missing: conv_pre.weight" in str(refused(vocoder(), tmp_path / "w.pt"))


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
