"""Plain weights of live modules into g and v."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.helpers.live_models import (
    FLOATS,
    FORMS,
    MODELS,
    OTHER,
    both_forms,
    every_model,
    g_and_v,
    input_of,
    model_of,
    norm,
    portrait,
    pruned,
)
from tests.helpers.states import same
from wnconvert.errors import ArgumentError, LayerError, NumbersError
from wnconvert.verbs.modules.convert import fold_module, folded, migrate_module
from wnconvert.verbs.modules.split import split_module
from wnconvert.verbs.shared.options import Form

PLAIN: dict[str, tuple[Callable[[], nn.Module], str, int | None]] = {
    "conv": (lambda: nn.Conv1d(3, 4, 5), "weight", 0),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 5), "weight", 0),
    "one tap": (lambda: nn.Conv1d(3, 4, 5), "weight", 2),
    "from behind": (lambda: nn.Conv1d(3, 4, 5), "weight", -2),
    "whole": (lambda: nn.Linear(3, 4), "weight", None),
    "torch's whole": (lambda: nn.Linear(3, 4), "weight", -1),
    "vector": (lambda: nn.Linear(3, 4), "bias", 0),
    "lstm": (lambda: nn.LSTM(3, 4), "weight_ih_l0", 0),
    "attention": (lambda: nn.MultiheadAttention(8, 2), "in_proj_weight", 0),
}


@pytest.mark.parametrize("plain", PLAIN)
@pytest.mark.parametrize("to", FORMS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_split_weight_folds_back_bit_for_bit(plain: str, to: Form, dtype: torch.dtype) -> None:
    build, name, dim = PLAIN[plain]
    module = build().to(dtype)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    w = module._parameters[name]
    (layer,) = split_module(module, layers=name, dim=dim, to=to)
    assert (layer.name, layer.form) == (name, to)
    g, v = g_and_v(module, name)
    assert v is w, "the same Parameter, so an optimizer goes on with it"
    assert isinstance(g, nn.Parameter)
    torch_made = norm(build(), to, name, dim)
    assert list(module.state_dict()) == list(torch_made.state_dict())
    assert g.shape == g_and_v(torch_made, name)[0].shape
    assert layer.g.shape == tuple(g.shape)
    module.load_state_dict(torch_made.state_dict(), strict=True)
    module = build().to(dtype)
    module.load_state_dict(before)
    split_module(module, layers=name, dim=dim, to=to)
    fold_module(module)
    assert all(same(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("to", FORMS)
def test_a_split_module_computes_the_same(to: Form) -> None:
    plain = model_of("cnn", "legacy").eval()
    fold_module(plain)
    x = input_of("cnn")
    expected = plain(x)
    done = split_module(plain, layers="*.weight", exclude="5.*", dim=0, to=to)
    assert [(layer.name, layer.form, layer.dim) for layer in done] == [
        ("0.weight", to, 0),
        ("3.weight", to, 0),
    ]
    copy.deepcopy(plain)
    torch.testing.assert_close(plain(x), expected, rtol=1e-5, atol=1e-6)
    assert split_module(plain, layers="*.weight", exclude="5.*", dim=0) == (), "twice is once"
    assert split_module(plain, layers="0.weight", dim=1) == ()


@every_model
@both_forms
def test_split_like_another_module_makes_its_twin(kind: str, form: Form) -> None:
    like, x = model_of(kind, form).eval(), input_of(kind)
    model = folded(like)
    expected = model(x)
    done, like_copy = split_module(model, like=like), MODELS[kind][0](form)
    assert {(layer.name, layer.form, layer.dim) for layer in done} == {
        (layer.name, layer.form, layer.dim) for layer in fold_module(like_copy)
    }
    assert list(model.state_dict()) == list(like.state_dict())
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
    model.load_state_dict(like.state_dict(), strict=True)
    model = folded(like)
    assert {layer.form for layer in split_module(model, like=like, to=OTHER[form])} == {OTHER[form]}


def test_like_says_which_dim_and_which_layers() -> None:
    like = nn.Sequential(
        norm(nn.Linear(3, 4), dim=None), nn.Linear(4, 4), norm(nn.Linear(4, 5), "legacy", dim=1)
    )
    plain = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 5))
    done = split_module(plain, like=like)
    assert [(layer.name, layer.form, layer.dim) for layer in done] == [
        ("0.weight", "parametrize", None),
        ("2.weight", "legacy", 1),
    ]
    plain = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 5))
    assert [layer.name for layer in split_module(plain, like=like, exclude="0.*")] == ["2.weight"]
    assert [layer.name for layer in split_module(plain, like=like)] == ["0.weight"], (
        "the other is split already"
    )


def test_what_does_not_fit_like_is_refused_whole() -> None:
    like = nn.Sequential(norm(nn.Linear(3, 4)), norm(nn.Linear(4, 5)), norm(nn.Linear(5, 5)))
    short = nn.Sequential(nn.Linear(3, 4))
    wide = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 5))
    for model, error, words in (
        (short, ArgumentError, r"lacks: 1.weight, 2.weight"),
        (wide, LayerError, r"1.weight: its shape is \(6, 4\), that of like=… is \(5, 4\)"),
        (nn.Sequential(nn.Linear(3, 4)), ArgumentError, "lacks"),
    ):
        before = portrait(model)
        with pytest.raises(error, match=words):
            split_module(model, like=like)
        assert portrait(model) == before
    assert len(split_module(short, like=like, layers="0.*")) == 1
    with pytest.raises(ArgumentError, match="has no weight-normalized layer"):
        split_module(wide, like=nn.Linear(3, 3))
    with pytest.raises(ArgumentError, match="cannot be given together"):
        split_module(wide, like=like, dim=0)


@pytest.mark.parametrize("arguments", [{}, {"layers": "*"}, {"dim": 0}, {"layers": "*", "dim": "auto"}])
def test_layers_and_dims_are_never_guessed(arguments: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="neither the weights to split nor their dim are given") as caught:
        split_module(nn.Linear(3, 4), **arguments)
    assert "layers=" in caught.value.fix
    assert "dim=" in caught.value.fix
    assert "like=" in caught.value.fix


def test_a_wildcard_takes_what_one_would_split_and_a_name_what_it_names() -> None:
    def model() -> nn.ModuleDict:
        made = nn.ModuleDict(
            {
                "conv": nn.Conv1d(3, 4, 5),
                "embedding": nn.Embedding(5, 3),
                "bn": nn.BatchNorm1d(4),
                "sn": parametrizations.spectral_norm(nn.Linear(3, 3)),
                "wn": norm(nn.Linear(3, 3), "legacy"),
                "pruned": pruned(nn.Linear(3, 3), "weight"),
            }
        )
        made["conv"].register_parameter("codes", nn.Parameter(torch.ones(2, 2, dtype=torch.int64), False))
        return made

    assert [layer.name for layer in split_module(model(), layers="*", dim=0)] == ["conv.weight"]
    assert [layer.name for layer in split_module(model(), layers=["embedding.weight"], dim=0)] == [
        "embedding.weight"
    ]
    assert [layer.name for layer in split_module(model(), layers=["bn.weight"], dim=0)] == ["bn.weight"]
    for name, reason in (
        ("conv.codes", "int64"),
        ("pruned.weight_orig", "prune computes weight from it"),
    ):
        with pytest.raises(LayerError, match=reason):
            split_module(model(), layers=name, dim=0)
    for glob in ("decoder.*", "embedding.*", "conv.bia?", "sn.weight", "wn.weight_v", "conv.wieght"):
        with pytest.raises(ArgumentError, match="matches no weight that can be split") as caught:
            split_module(model(), layers=["conv.weight", glob], dim=0)
        assert "conv.weight" in caught.value.fix


def test_a_weight_that_a_hook_would_overwrite_is_refused() -> None:
    module = norm(nn.Linear(3, 3), "legacy")
    del module.weight
    module.weight = nn.Parameter(torch.ones(3, 3))
    with pytest.raises(LayerError, match="weight norm has a hook that computes it"):
        split_module(module, layers="weight", dim=0)
    assert split_module(module, layers="*", dim=0) == (), "that it takes to be split"


def test_an_axis_that_is_not_there_is_refused() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 5), nn.Linear(4, 4))
    before = portrait(model)
    with pytest.raises(LayerError, match=r"layer 1.weight: its shape \(4, 4\) has no axis 2"):
        split_module(model, layers="*", dim=2)
    for dim in ("rows", 1.5, True):
        with pytest.raises(ArgumentError, match="is not an axis"):
            split_module(model, layers="*", dim=dim)  # type: ignore[arg-type]
    assert portrait(model) == before


def test_a_lazy_weight_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(3))
    for glob in ("*", "1.weight"):
        with pytest.raises(LayerError, match=r"1\.weight: it is not initialized yet"):
            split_module(model, layers=glob, exclude="1.bias", dim=0)


@pytest.mark.parametrize("to", FORMS)
def test_zero_rows_get_a_direction_and_a_new_parameter(to: Form) -> None:
    module = nn.Linear(4, 3)
    with torch.no_grad():
        module.weight[1] = 0
    w = module.weight
    w.requires_grad_(False)
    before = w.clone()
    split_module(module, layers="weight", dim=0, to=to)
    g, v = g_and_v(module)
    assert v is not w
    assert torch.equal(w, before), "the old Parameter keeps its numbers"
    assert (g[1].item(), v[1].tolist()) == (0, [0.5] * 4)
    assert not g.requires_grad
    assert not v.requires_grad
    assert module(torch.ones(1, 4)).isfinite().all()
    fold_module(module)
    assert torch.equal(module.weight, before)


def test_numbers_that_have_no_norm_are_refused_whole() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3).half(), nn.Linear(3, 3))
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
        model[2].weight.fill_(65504)
    before = portrait(model)
    with pytest.raises(NumbersError, match="2 weights cannot be split") as caught:
        split_module(model, layers="*", dim=0)
    assert "layer 1.weight: NaN" in str(caught.value)
    assert "layer 2.weight: a norm that float16 cannot hold" in str(caught.value)
    with pytest.raises(NumbersError, match=r"layer 1\.weight: NaN") as caught:
        split_module(model, layers="*", exclude="2.*", dim=0)
    assert "exclude=" in caught.value.fix
    assert portrait(model) == before


@pytest.mark.parametrize("to", FORMS)
def test_what_is_tied_stays_tied(to: Form) -> None:
    def model() -> Any:
        made: Any = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
        made["b"].weight = made["a"].weight
        return made

    tied = model()
    assert len(split_module(tied, layers="*", dim=0, to=to)) == 2
    for one, other in zip(g_and_v(tied["a"]), g_and_v(tied["b"]), strict=True):
        assert one is other
    fold_module(tied)
    assert tied["a"].weight is tied["b"].weight
    half = model()
    before = portrait(half)
    with pytest.raises(LayerError, match=r"tied to b\.weight, which is not split in the same way"):
        split_module(half, layers="a.*", dim=0, to=to)
    assert portrait(half) == before
    shared = nn.Linear(3, 3)
    assert len(split_module(nn.Sequential(shared, shared), layers="*", dim=0, to=to)) == 1


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("to", FORMS)
def test_a_module_split_without_gradients_can_be_trained(around: Callable[[], Any], to: Form) -> None:
    module = nn.LSTM(3, 4)
    with around():
        split_module(module, layers="weight*", dim=0, to=to)
    assert not any(parameter.is_inference() for parameter in module.parameters())
    module(torch.ones(2, 1, 3))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_the_cached_weight_of_the_legacy_form_has_memory_of_its_own() -> None:
    module = nn.Linear(3, 2)
    before = module.weight.detach().clone()
    split_module(module, layers="weight", dim=0, to="legacy")
    g_and_v(module)[1].data.zero_()
    assert torch.equal(module.weight, before)


def test_an_optimizer_goes_on_with_v() -> None:
    module = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    split_module(module, layers="weight", dim=0)
    g, v = g_and_v(module)
    optimizer.add_param_group({"params": [g]})
    before = v.detach().clone(), g.detach().clone()
    module(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(v, before[0])
    assert not torch.equal(g, before[1])


def test_a_split_that_fails_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 3))
    before = portrait(model)

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("wnconvert.verbs.modules.split.refresh_flat_weights", fail)
    for to in FORMS:
        with pytest.raises(MemoryError):
            split_module(model, layers="*", dim=0, to=to)
        assert portrait(model) == before


@pytest.mark.parametrize("to", FORMS)
def test_what_was_set_on_the_weight_is_set_on_both_halves(to: Form) -> None:
    class Marked(nn.Parameter):
        pass

    module: Any = nn.Conv2d(3, 4, 3)
    module.to(memory_format=torch.channels_last)
    w: Any = Marked(module.weight.detach())
    w.data[1] = 0
    w.no_decay = True
    module.weight = w
    split_module(module, layers="weight", dim=0, to=to)
    g, v = g_and_v(module)
    assert (g.no_decay, v.no_decay) == (True, True)
    assert type(v) is Marked
    assert v is not w
    assert v.stride() == w.stride(), "channels last stays so in a new v too"
    fold_module(module)
    assert type(module.weight) is Marked
    assert module.weight.stride() == w.stride()
    assert torch.equal(module.weight, w)


def test_layers_of_like_that_disagree_on_one_weight_are_refused() -> None:
    for other in (norm(nn.Linear(4, 4), dim=1), norm(nn.Linear(4, 4), "legacy")):
        like = nn.Sequential(norm(nn.Linear(4, 4)), other)
        shared = nn.Linear(4, 4)
        model = nn.Sequential(shared, shared)
        before = portrait(model)
        with pytest.raises(
            LayerError, match=r"like=… has layers of other dims or forms for 0.weight, 1.weight"
        ):
            split_module(model, like=like)
        assert portrait(model) == before
        assert len(split_module(model, like=like, layers="0.*")) == 1


class Locked(nn.Linear):
    """A layer that lets nobody change its attributes."""

    locked = False

    def __setattr__(self, name: str, value: Any) -> None:
        if self.locked:
            raise AttributeError("locked")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError("locked")


@pytest.mark.parametrize("to", FORMS)
def test_a_class_that_minds_its_attributes_is_not_asked(to: Form) -> None:
    module = Locked(3, 4)
    before = module.weight.detach().clone()
    module.__dict__["locked"] = True
    split_module(module, layers=["weight", "bias"], dim=0, to="parametrize")
    migrate_module(module, to="legacy")
    migrate_module(module, to=to)
    assert type(module).__mro__[to == "parametrize"] is Locked
    fold_module(module)
    assert type(module) is Locked
    assert torch.equal(module.weight, before)


def test_a_split_on_the_meta_device_says_what_fold_says() -> None:
    module = nn.Linear(3, 4, device="meta")
    with pytest.raises(
        LayerError, match="layer weight: it is on the meta device and has no numbers"
    ) as caught:
        split_module(module, layers="weight", dim=0)
    assert caught.value.fix == "give the module its data first"


def test_torch_cannot_parametrize_inside_a_transform() -> None:
    module = nn.Linear(3, 4)
    before = portrait(module)
    with pytest.raises(LayerError, match=r"inside a transform of torch\.func"):
        torch.func.vmap(lambda _: split_module(module, layers="weight", dim=0))(torch.ones(2))
    assert portrait(module) == before
