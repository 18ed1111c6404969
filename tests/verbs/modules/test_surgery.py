"""Surgery that is undone, and surgery from one form to the other: the same objects in the same places."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.weight_norm import WeightNorm

from tests.helpers.infos import halves
from tests.helpers.interrupts import Interrupt
from tests.helpers.live_models import (
    FORMS,
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
from tests.helpers.marks import some
from tests.helpers.states import same
from wnconvert.errors import LayerError
from wnconvert.verbs.conversion.state_dict import fold_state_dict
from wnconvert.verbs.modules.convert import fold_module, folded, migrate_module, weights_folded
from wnconvert.verbs.modules.split import split_module
from wnconvert.verbs.shared.options import Form

# -- folded for a block


@every_model
@both_forms
def test_after_the_block_all_is_as_before(kind: str, form: Form) -> None:
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
def test_after_an_exception_too(form: Form) -> None:
    model = model_of("lstm", form)
    model(input_of("lstm"))
    before = portrait(model)
    with pytest.raises(ZeroDivisionError), weights_folded(model):
        raise ZeroDivisionError
    assert portrait(model) == before


@both_forms
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_blocks_nest_and_may_stand_inside_no_grad(form: Form, around: Callable[[], Any]) -> None:
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
def test_an_optimizer_goes_on_after_the_block(form: Form) -> None:
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


@both_forms
def test_a_parametrization_of_another_tensor_made_in_the_block_stays_and_works(form: Form) -> None:
    for layers in ("*", "*ih*"):  # all of them folded, and one of two
        lstm: Any = norm(norm(nn.LSTM(3, 4), form, "weight_hh_l0"), form, "weight_ih_l0")
        pairs = [*g_and_v(lstm, "weight_hh_l0"), *g_and_v(lstm, "weight_ih_l0")]
        twin = copy.deepcopy(lstm) if form == "parametrize" else None
        with weights_folded(lstm, layers=layers):
            parametrize.register_parametrization(lstm, "bias_ih_l0", nn.Softplus())
            expected = lstm(torch.ones(2, 1, 3))[0]
        again = [*g_and_v(lstm, "weight_hh_l0"), *g_and_v(lstm, "weight_ih_l0")]
        assert [*map(id, again)] == [*map(id, pairs)]
        torch.testing.assert_close(lstm(torch.ones(2, 1, 3))[0], expected)
        assert parametrize.is_parametrized(lstm, "bias_ih_l0")
        assert lstm.bias_ih_l0.gt(0).all()
        assert len(fold_module(lstm)) == 2
        parametrize.remove_parametrizations(lstm, "bias_ih_l0")
        assert type(lstm) is nn.LSTM
        if twin is not None:
            assert isinstance(twin.bias_ih_l0, nn.Parameter), "the class of copies is not touched"


@both_forms
def test_what_the_block_made_of_the_folded_weight_goes_with_it(form: Form) -> None:
    module: Any = trained(norm(nn.Linear(3, 3), form))
    expected, before = module(torch.ones(1, 3)), portrait(module)
    with weights_folded(module):
        parametrizations.orthogonal(module)
    assert portrait(module) == before
    assert torch.equal(module(torch.ones(1, 3)), expected)


def test_what_the_block_takes_away_stays_away() -> None:
    module: Any = norm(parametrizations.orthogonal(nn.LSTM(3, 3), "weight_hh_l0"), name="weight_ih_l0")
    g, v = g_and_v(module, "weight_ih_l0")
    with weights_folded(module):
        parametrize.remove_parametrizations(module, "weight_hh_l0")
        assert not parametrize.is_parametrized(module)
    assert [*module.parametrizations] == ["weight_ih_l0"]
    assert g_and_v(module, "weight_ih_l0") == (g, v)
    assert isinstance(module.weight_hh_l0, nn.Parameter)
    module(torch.ones(2, 1, 3))


def test_a_class_given_in_the_block_is_kept_under_that_of_the_parametrization() -> None:
    class Mine(nn.Linear):
        pass

    module: Any = norm(nn.Linear(3, 2))
    with weights_folded(module):
        module.__class__ = Mine
    assert isinstance(module, Mine)
    assert parametrize.is_parametrized(module, "weight")
    fold_module(module)
    assert type(module) is Mine


@both_forms
def test_blocks_left_in_the_wrong_order_lose_nothing(form: Form) -> None:
    model = model_of("lstm", form)
    x, before = input_of("lstm"), {name: id(value) for name, value in model.named_parameters()}
    expected = model(x)
    outer, inner = weights_folded(model, layers="*hh*"), weights_folded(model)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    assert {name: id(value) for name, value in model.named_parameters()} == before
    assert torch.equal(model(x), expected)


def in_a_block(model: nn.Module) -> None:
    with weights_folded(model):
        pass


INTERRUPTED = {
    f"{verb}, {form}": (verb, form) for verb in ("fold", "migrate", "split", "block") for form in FORMS
}


@some("case", INTERRUPTED, ["fold, parametrize"])
def test_an_interrupt_at_any_line_leaves_all_as_it_was_or_done(case: tuple[str, Form]) -> None:
    verb, form = case

    def model() -> nn.Module:
        made = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 4))
        if verb != "split":
            norm(made[0], form)
            norm(norm(made[1], form, "weight_hh_l0"), form, "weight_ih_l0")
        return made

    run = {
        "fold": fold_module,
        "migrate": lambda it: migrate_module(it, to=OTHER[form]),
        "split": lambda it: split_module(it, layers="*", exclude="*bias*", dim=0, to=form),
        "block": in_a_block,
    }[verb]
    counted, done = Interrupt(), model()
    assert counted.runs(run, done)
    for at in counted.moments():
        it = model()
        before = portrait(it)
        assert not Interrupt(at).runs(run, it), counted.lines[at]
        if verb == "block" or list(it.state_dict()) != list(done.state_dict()):
            assert portrait(it) == before, counted.lines[at]
        it[1](torch.ones(2, 1, 4))  # type: ignore[index]


# -- migrate


@every_model
@both_forms
def test_a_migrated_module_is_as_if_torch_had_made_it_so(kind: str, form: Form) -> None:
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
def test_there_and_back_restores_all(kind: str, form: Form) -> None:
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
def test_an_optimizer_made_before_goes_on_working(form: Form, optimizer: str) -> None:
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
def test_a_module_migrated_without_gradients_can_be_trained(form: Form, around: Callable[[], Any]) -> None:
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

    directions: list[tuple[Form, list[str]]] = [
        ("legacy", ["b.weight", "c.weight_ih_l0"]),
        ("parametrize", ["a.weight", "c.weight_hh_l0"]),
    ]
    for to, moved in directions:
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


def taken(holder: str, name: str) -> Any:
    """A module in which something of a user's has a name."""

    class Owner(nn.Linear):
        pass

    module: Any = Owner(3, 4)
    if holder == "Parameter":
        module.register_parameter(name, nn.Parameter(torch.ones(7)))
    elif holder == "buffer":
        module.register_buffer(name, torch.ones(7))
    elif holder == "submodule":
        module.add_module(name, nn.ModuleDict({"mine": nn.Linear(1, 1)}))
    elif holder == "attribute of the module":
        setattr(module, name, "a note")
    else:
        setattr(Owner, name, property(lambda it: it.bias))
    return module


HOLDERS = ["Parameter", "buffer", "submodule", "attribute of the module", "attribute of its class"]


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("name", ["weight_g", "weight_v"])
def test_names_that_the_legacy_form_needs_are_not_taken_from_others(holder: str, name: str) -> None:
    cases: list[tuple[Any, Callable[[Any], object]]] = [
        (norm(taken(holder, name)), lambda it: migrate_module(it, to="legacy")),
        (taken(holder, name), lambda it: split_module(it, layers="weight", dim=0, to="legacy")),
    ]
    for module, verb in cases:
        before = portrait(module)
        with pytest.raises(LayerError, match=f"layer weight: the name {name} is taken by an? {holder}"):
            verb(module)
        assert portrait(module) == before
    assert len(fold_module(norm(taken(holder, name)))) == 1


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_name_of_parametrizations_that_is_not_torchs_is_not_taken(holder: str) -> None:
    classes = {name: dict(vars(kind)) for name, kind in (("Linear", nn.Linear), ("Module", nn.Module))}
    cases: list[tuple[Any, Callable[[Any], object]]] = [
        (norm(taken(holder, "parametrizations"), "legacy"), migrate_module),
        (taken(holder, "parametrizations"), lambda it: split_module(it, layers="weight", dim=0)),
    ]
    for module, verb in cases:
        before = portrait(module)
        with pytest.raises(LayerError, match=f"the name parametrizations is taken by an? {holder}"):
            verb(module)
        assert portrait(module) == before
    assert classes == {"Linear": dict(vars(nn.Linear)), "Module": dict(vars(nn.Module))}


def test_an_attribute_of_the_class_that_would_hide_the_weight_is_refused() -> None:
    class Shadowed(nn.Module):
        weight = None

    module = Shadowed()
    module._parameters["weight_g"] = nn.Parameter(torch.ones(4, 1))
    module._parameters["weight_v"] = nn.Parameter(torch.ones(4, 3))
    module.register_forward_pre_hook(WeightNorm("weight", 0))
    for verb in (fold_module, migrate_module):
        with pytest.raises(LayerError, match="the name weight is taken by an attribute of its class"):
            verb(module)


@pytest.mark.parametrize("fleeting", ["g", "v", "gv", ""])
def test_buffers_that_a_state_dict_leaves_out_stay_left_out(fleeting: str) -> None:
    def module() -> nn.Module:
        made = nn.Module()
        made.register_buffer("weight_g", torch.rand(4, 1), persistent="g" not in fleeting)
        made.register_buffer("weight_v", torch.randn(4, 3), persistent="v" not in fleeting)
        made.register_forward_pre_hook(WeightNorm("weight", 0))
        return made

    it = module()
    before = portrait(it), list(it.state_dict())
    with weights_folded(it):
        assert list(it.state_dict()) == ([] if "v" in fleeting else ["weight"])
        assert it._non_persistent_buffers_set == ({"weight"} if "v" in fleeting else set())
    assert (portrait(it), list(it.state_dict())) == before
    migrate_module(it)
    assert it._non_persistent_buffers_set == set()
    halves = {"g": "parametrizations.weight.original0", "v": "parametrizations.weight.original1"}
    assert list(it.state_dict()) == [key for half, key in halves.items() if half not in fleeting]
    migrate_module(it, to="legacy")
    assert list(it.state_dict()) == before[1]
