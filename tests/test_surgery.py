"""Surgery that is undone, and surgery from one form to the other: the same objects in the same places."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from tests.live_models import (
    OTHER,
    both_forms,
    every_model,
    g_and_v,
    input_of,
    model_of,
    norm,
    portrait,
    trained,
)
from tests.states import halves, same
from wnconvert.modules import (
    fold_module,
    folded,
    migrate_module,
    split_module,
    weights_folded,
)
from wnconvert.state_dict import fold_state_dict


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# -- folded for a block


@every_model
@both_forms
def test_after_the_block_all_is_as_before(kind: str, form: str) -> None:
    model, x = model_of(kind, form).eval(), input_of(kind)
    expected = model(x)
    before = portrait(model)
    with weights_folded(model) as layers:
        assert layers
        assert not halves(model.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
        copy.deepcopy(model)
    assert portrait(model) == before
    assert torch.equal(model(x), expected)


@both_forms
def test_after_an_exception_too(form: str) -> None:
    model = model_of("lstm", form)
    model(input_of("lstm"))
    before = portrait(model)
    with pytest.raises(ZeroDivisionError), weights_folded(model):
        raise ZeroDivisionError
    assert portrait(model) == before


@both_forms
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_blocks_nest_and_may_stand_inside_no_grad(form: str, around: Callable[[], Any]) -> None:
    model, x = model_of("lstm", form).eval(), input_of("lstm")
    expected = model(x)
    before = portrait(model)
    with around(), weights_folded(model, layers="*ih*") as outer:
        half = portrait(model)
        assert set(halves(model.state_dict())) == {"rnn.weight_hh_l0"}
        with weights_folded(model) as inner, weights_folded(model) as none:
            assert [len(layers) for layers in (outer, inner, none)] == [1, 1, 0]
            torch.testing.assert_close(model(x), expected)
        assert portrait(model) == half
    assert portrait(model) == before
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_what_others_change_in_the_block_stays() -> None:
    model: Any = model_of("cnn", "parametrize")
    order = [*model[0]._parameters]
    said: list[str] = []
    with weights_folded(model):
        model.eval()
        handle = model[0].register_forward_pre_hook(lambda *_: said.append("here"))
        model[0].bias = nn.Parameter(torch.ones(8))
        model[0].register_parameter("scale", nn.Parameter(torch.ones(1)))
        fold_module(model)
    assert not model[0].training
    assert [*model[0]._parameters] == [*order, "scale"]
    assert model[0].bias.detach().eq(1).all()
    model(input_of("cnn"))
    assert said == ["here"]
    handle.remove()
    model(input_of("cnn"))
    assert said == ["here"]
    assert set(halves(model.state_dict())) == {"0.weight", "3.weight", "5.weight"}


@both_forms
def test_an_optimizer_goes_on_after_the_block(form: str) -> None:
    model, x = model_of("cnn", form), input_of("cnn")
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()

    step()
    between = fold_state_dict(model.state_dict())
    with torch.no_grad(), weights_folded(model):
        model.eval()(x)
    model.train()
    step()
    after = fold_state_dict(model.state_dict())
    assert not any(torch.equal(between[name], after[name]) for name in ("0.weight", "3.weight", "5.weight"))


def test_a_block_inside_cached_keeps_the_cache() -> None:
    module: Any = trained(norm(nn.Linear(3, 2)))
    with parametrize.cached():
        before = module.weight
        with weights_folded(module):
            torch.testing.assert_close(module.weight.detach(), before.detach())
        torch.testing.assert_close(module.weight, before)


# -- migrate


@every_model
@both_forms
def test_a_migrated_module_is_as_if_torch_had_made_it_so(kind: str, form: str) -> None:
    to = OTHER[form]
    model, other, x = model_of(kind, form).eval(), model_of(kind, to), input_of(kind)
    expected = model(x)
    mine = {
        name: [*map(id, g_and_v(model.get_submodule(owner), param))] for name, owner, param in weights(model)
    }
    done = migrate_module(model, to=to)
    assert {layer.form for layer in done} == {to}
    state, theirs = model.state_dict(), other.state_dict()
    assert list(state) == list(theirs)
    assert list(state._metadata.items()) == list(theirs._metadata.items())  # type: ignore[attr-defined]
    assert {half.name for layer in done for half in (layer.g, layer.v)} <= set(state)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in other.named_parameters()]
    assert mine == {
        name: [*map(id, g_and_v(model.get_submodule(owner), param))] for name, owner, param in weights(model)
    }
    copy.deepcopy(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
    model.load_state_dict(other.state_dict(), strict=True)
    hooks = [type(hook) for module in model.modules() for hook in module._forward_pre_hooks.values()]
    assert hooks == ([WeightNorm] * len(done) if to == "legacy" else [])
    loading = [module for module in model.modules() if module._load_state_dict_pre_hooks]
    assert bool(loading) == (to == "parametrize")
    assert [type(module).__mro__[1:] for module in model.modules()] == [
        type(module).__mro__[1:] for module in other.modules()
    ]
    if to == "parametrize":
        model.load_state_dict(model_of(kind, "legacy").state_dict(), strict=True)


def weights(model: nn.Module) -> list[tuple[str, str, str]]:
    """Names, owners and attributes of the layers, by the keys alone."""
    return [(name, *_parted(name)) for name in sorted(halves(model.state_dict()))]


def _parted(name: str) -> tuple[str, str]:
    owner, _, param = name.rpartition(".")
    return owner, param


@every_model
@both_forms
def test_there_and_back_restores_all(kind: str, form: str) -> None:
    model = model_of(kind, form).eval()
    before = model.state_dict()
    parameters = [(name, id(parameter)) for name, parameter in model.named_parameters()]
    assert migrate_module(model, to=form) == ()
    migrate_module(model, to=OTHER[form])
    migrate_module(model, to=form)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(same(before[name], after[name]) for name in before)
    assert before._metadata == after._metadata  # type: ignore[attr-defined]
    assert parameters == [(name, id(parameter)) for name, parameter in model.named_parameters()]
    assert not any(module.training for module in model.modules())


@both_forms
@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_an_optimizer_made_before_goes_on_working(form: str, optimizer: str) -> None:
    def training(migrates: bool) -> dict[str, Tensor]:
        model, x = model_of("cnn", form), input_of("cnn")
        made: torch.optim.Optimizer = (
            torch.optim.Adam(model.parameters(), 0.01)
            if optimizer == "Adam"
            else torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        )
        for at in range(6):
            if at == 3 and migrates:
                migrate_module(model, to=OTHER[form])
            made.zero_grad()
            model(x).square().mean().backward()
            made.step()
        return fold_state_dict(model.state_dict())

    there, here = training(migrates=True), training(migrates=False)
    assert set(there) == set(here)
    for name, value in there.items():
        torch.testing.assert_close(value, here[name], rtol=1e-4, atol=1e-6)


@both_forms
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_a_module_migrated_without_gradients_can_be_trained(form: str, around: Callable[[], Any]) -> None:
    model: Any = model_of("lstm", form)
    with around():
        migrate_module(model, to=OTHER[form])
    values = [*model.rnn._flat_weights, *(v for v in vars(model.rnn).values() if isinstance(v, Tensor))]
    assert not any(value.is_inference() for value in values)
    model(input_of("lstm")).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_hooks_on_parameters_and_gradients_stay() -> None:
    module = norm(nn.Linear(3, 2), "legacy")
    module(torch.ones(1, 3)).sum().backward()
    _, v = g_and_v(module)
    seen: list[Tensor] = []
    v.register_hook(seen.append)
    grad = v.grad
    assert [layer.form for layer in migrate_module(module)] == ["parametrize"]
    assert g_and_v(module)[1] is v
    assert v.grad is grad
    module(torch.ones(1, 3)).sum().backward()
    assert len(seen) == 1


def test_a_hook_of_ones_own_sees_the_weight_of_the_moment_in_both_forms() -> None:
    seen: list[float] = []
    module: Any = norm(nn.Linear(1, 1))
    handle = module.register_forward_pre_hook(lambda it, _: seen.append(float(it.weight)))
    migrate_module(module, to="legacy")
    with torch.no_grad():
        module.weight_g.fill_(7).mul_(module.weight_v.sign())
        module(torch.ones(1, 1))
    assert seen == [7]
    handle.remove()
    module(torch.ones(1, 1))
    assert seen == [7]


def test_mixtures_are_brought_to_one_form() -> None:
    def model() -> nn.Module:
        lstm = norm(norm(nn.LSTM(3, 2), "legacy", "weight_hh_l0"), "parametrize", "weight_ih_l0")
        return nn.ModuleDict({"a": norm(nn.Linear(3, 2), "legacy"), "b": norm(nn.Linear(3, 2)), "c": lstm})

    for to, moved in (
        ("legacy", ["b.weight", "c.weight_ih_l0"]),
        ("parametrize", ["a.weight", "c.weight_hh_l0"]),
    ):
        mixed: Any = model()
        x = torch.randn(4, 1, 3)
        expected = mixed["c"](x)[0]
        assert [layer.name for layer in migrate_module(mixed, to=to)] == moved
        assert {layer.form for layer in fold_module(folded(mixed, layers="a.*"))} == {to}
        torch.testing.assert_close(mixed["c"](x)[0], expected)
        assert {layer.form for layer in fold_module(mixed)} == {to}


def test_a_layer_whose_dtypes_torch_cannot_mix_can_be_migrated() -> None:
    module = norm(nn.Linear(3, 2), "legacy")
    module.weight_g.data = module.weight_g.data.half()
    migrate_module(module, to="parametrize")
    migrate_module(module, to="legacy")
    assert module.weight_g.dtype == torch.float16
    assert module.weight.dtype == torch.float32


def test_no_deprecated_function_is_used() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = norm(nn.Linear(3, 2))
        migrate_module(module, to="legacy")
        migrate_module(module, to="parametrize")
        fold_module(module)
        split_module(module, layers="weight", dim=0, to="legacy")
