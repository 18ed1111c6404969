"""Whole pickled modules with spectral norm and prune: torch's hooks go with what they compute."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm

from tests.helpers.live_kinds import KIND_MODELS, conv, is_computed, kind_model, lstm, pruned, spectral
from tests.helpers.states import same
from wnconvert import fold_module
from wnconvert.errors import LayerError
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.verbs.conversion.files.fold import fold_file


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=FutureWarning)
        yield


def folded(module: nn.Module, folder: Path, **options: Any) -> Any:
    """The module as torch reads it after it was pickled and folded."""
    torch.save(module, folder / "in.pt", **options)
    fold_file(folder / "in.pt", folder / "out.pt", kinds="all", verify=True)
    return torch.load(folder / "out.pt", weights_only=False)


#: Modules of the parametrize form cannot be pickled.
PICKLED = [
    name for name in KIND_MODELS if "parametrize" not in name and not name.startswith("spectral on weight")
]


@pytest.mark.parametrize("which", PICKLED)
def test_a_pickled_module_is_folded_as_the_live_one_is(which: str, tmp_path: Path) -> None:
    model, x = kind_model(which)
    expected = model(x)
    got = folded(model, tmp_path)
    torch.testing.assert_close(got(x), expected, rtol=1e-5, atol=1e-6)
    assert not is_computed(got)
    fold_module(model, kinds="all")
    theirs, ours = model.state_dict(), got.state_dict()
    assert list(ours) == list(theirs)
    assert all(same(ours[name], theirs[name]) for name in theirs)
    for name, parameter in model.named_parameters():
        mine = got.get_parameter(name)
        assert type(mine) is nn.Parameter
        assert mine.requires_grad == parameter.requires_grad
    inner, plain = (getattr(each, "rnn", each) for each in (got, model))
    assert vars(inner).keys() == vars(plain).keys()
    got.load_state_dict(theirs, strict=True)


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_of_every_protocol_and_container(as_zip: bool, protocol: int, tmp_path: Path) -> None:
    model, x = kind_model("spectral on prune, legacy")
    expected = model(x)
    got = folded(model, tmp_path, pickle_protocol=protocol, _use_new_zipfile_serialization=as_zip)
    torch.testing.assert_close(got(x), expected, rtol=1e-5, atol=1e-6)


def test_the_hook_states_dim_where_the_shapes_do_not(tmp_path: Path) -> None:
    for dim in (0, 1):
        model = spectral(nn.Linear(5, 5), dim=dim)  # never trained: the numbers could not tell
        torch.save(model, tmp_path / "in.pt")
        (state,) = open_checkpoint(tmp_path / "in.pt").tree.state_dicts
        assert state.dims == {"weight": dim}
        got = folded(model, tmp_path)
        fold_module(model, kinds="spectral")
        assert torch.equal(got.weight, model.weight)
        (tmp_path / "out.pt").unlink()


def first_hook(module: Any, inputs: tuple[Any, ...]) -> None:
    module.seen = len(inputs)


def test_other_hooks_and_kinds_that_are_not_asked_for_stay(tmp_path: Path) -> None:
    model: Any = nn.Sequential(spectral(conv()), pruned(nn.Conv2d(6, 6, 1)))
    model[0].register_forward_pre_hook(first_hook)
    model(torch.ones(1, 4, 5, 5))
    torch.save(model, tmp_path / "in.pt")
    fold_file(tmp_path / "in.pt", tmp_path / "out.pt", kinds="spectral")
    got = torch.load(tmp_path / "out.pt", weights_only=False)
    assert [hook.__name__ for hook in got[0]._forward_pre_hooks.values()] == ["first_hook"]
    assert [type(hook).__name__ for hook in got[1]._forward_pre_hooks.values()] == ["L1Unstructured"]
    assert {"1.weight_orig", "1.weight_mask", "0.weight"} <= set(got.state_dict())
    assert got(torch.ones(1, 4, 5, 5)).shape == (1, 6, 3, 3)
    assert got[0].seen == 1


def test_one_of_two_weights_of_a_module(tmp_path: Path) -> None:
    model: Any = spectral(spectral(lstm(), "legacy", "weight_hh_l0"), "legacy", "weight_ih_l0").eval()
    x = torch.randn(3, 2, 5)
    expected = model(x)[0]
    torch.save(model, tmp_path / "in.pt")
    fold_file(tmp_path / "in.pt", tmp_path / "out.pt", kinds="spectral", layers="weight_hh_l0")
    got = torch.load(tmp_path / "out.pt", weights_only=False)
    torch.testing.assert_close(got(x)[0], expected)
    assert [hook.name for hook in got._forward_pre_hooks.values()] == ["weight_ih_l0"]
    assert [hook.fn.name for hook in got._state_dict_hooks.values()] == ["weight_ih_l0"]
    assert len(got._load_state_dict_pre_hooks) == 1
    got.load_state_dict(got.state_dict(), strict=True)


class Softly(SpectralNorm):
    """Computes in its own way, for all that a file shows."""


class Checkered(prune.BasePruningMethod):
    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Any, default_mask: Any) -> Any:  # noqa: ARG002
        return default_mask


class OwnNorm(nn.Linear):
    """A class with the names of spectral norm and no hook: its forward computes with them."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.weight_orig = self.weight
        del self.weight
        self.register_buffer("weight_u", torch.ones(4))
        self.register_buffer("weight_v", torch.ones(4))


def softly() -> Any:
    module = spectral(conv())
    (hook,) = module._forward_pre_hooks.values()
    hook.__class__ = Softly
    return module


def checkered() -> Any:
    module = conv()
    Checkered.apply(module, "weight")  # type: ignore[no-untyped-call]
    return module


@pytest.mark.parametrize("build", [softly, checkered, OwnNorm])
def test_what_a_class_computes_that_is_not_torchs_is_refused_and_nothing_is_written(
    build: Any, tmp_path: Path
) -> None:
    torch.save(nn.Sequential(build(), spectral(conv())), tmp_path / "in.pt")
    with pytest.raises(LayerError, match="whose form is in its code too") as caught:
        fold_file(tmp_path / "in.pt", tmp_path / "out.pt", kinds="all")
    assert caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


def test_the_tensors_of_such_a_module_come_out_as_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = checkered()
    torch.save(model, tmp_path / "in.pt")
    fold_file(tmp_path / "in.pt", tmp_path / "out.safetensors", kinds="prune")
    fold_module(model, kinds="prune")
    assert torch.equal(load_file(tmp_path / "out.safetensors")["weight"], model.weight)
