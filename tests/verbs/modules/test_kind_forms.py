"""Spectral norm from one of torch's forms to the other; edits of any kind that are interrupted."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.interrupts import Interrupt
from tests.helpers.live_kinds import KIND_MODELS, conv, kind_model, pruned, spectral
from tests.helpers.live_models import FORMS, OTHER, both_forms, norm, portrait
from tests.helpers.marks import some
from wnconvert import fold_module, migrate_module, weights_folded
from wnconvert.errors import LayerError
from wnconvert.verbs.shared.options import Form

SPECTRAL = ["spectral", "spectral of a square transposed one", "spectral of an LSTM"]


@pytest.mark.parametrize("which", SPECTRAL)
@both_forms
def test_a_migrated_module_computes_the_same_bits_in_eval_as_if_torch_had_made_it_so(
    which: str, form: Form
) -> None:
    model, x = kind_model(f"{which}, {form}")
    expected = model(x)
    grads = {name: id(value) for name, value in (*model.named_parameters(), *model.named_buffers())}
    torch.manual_seed(7)
    random = torch.get_rng_state()
    (layer,) = migrate_module(model, to=OTHER[form], kinds="spectral")
    assert torch.equal(torch.get_rng_state(), random)
    copy.deepcopy(model)
    assert (layer.form, layer.rule.kind) == (OTHER[form], "spectral")
    assert {part.name for part in layer.tensors} <= set(model.state_dict())
    assert torch.equal(model(x), expected)
    after = {name: id(value) for name, value in (*model.named_parameters(), *model.named_buffers())}
    assert sorted(grads.values()) == sorted(after.values()), "the very same objects"
    theirs = KIND_MODELS[f"{which}, {OTHER[form]}"].made().eval()
    state = model.state_dict()
    assert list(state) == list(theirs.state_dict())
    assert state._metadata == theirs.state_dict()._metadata  # type: ignore[attr-defined]
    assert [type(each).__name__ for each in model.modules()] == [
        type(each).__name__ for each in theirs.modules()
    ]
    assert [each.training for each in model.modules()] == [each.training for each in theirs.modules()]
    theirs.load_state_dict(state, strict=True)
    assert torch.equal(theirs(x), expected)
    model.load_state_dict(theirs.state_dict(), strict=True)


@both_forms
def test_there_and_back_restores_all(form: Form) -> None:
    for which in SPECTRAL:
        model, x = kind_model(f"{which}, {form}")
        expected = model(x)
        before = dict(model.state_dict(keep_vars=True))
        migrate_module(model, to=OTHER[form], kinds="spectral")
        migrate_module(model, to=form, kinds="spectral")
        after = dict(model.state_dict(keep_vars=True))
        assert list(before) == list(after)
        assert all(before[name] is after[name] for name in before)
        assert torch.equal(model(x), expected)


def test_eps_steps_and_dim_go_along() -> None:
    module = spectral(nn.ConvTranspose1d(3, 3, 2), n_power_iterations=3, eps=1e-4, dim=0)
    migrate_module(module, kinds="spectral")
    made = module.parametrizations.weight[0]
    assert (made.n_power_iterations, made.eps, made.dim) == (3, 1e-4, 0)
    migrate_module(module, to="legacy", kinds="spectral")
    (hook,) = module._forward_pre_hooks.values()
    assert (hook.name, hook.n_power_iterations, hook.eps, hook.dim) == ("weight", 3, 1e-4, 0)


@both_forms
def test_an_optimizer_made_before_goes_on_training(form: Form) -> None:
    module = spectral(conv(), form)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    x = torch.randn(2, 4, 5, 5)
    migrate_module(module, to=OTHER[form], kinds="spectral")
    names = {name: value.clone() for name, value in module.state_dict().items()}
    for _ in range(2):
        module(x).square().sum().backward()
        optimizer.step()
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, names[name])}
    assert changed == set(names), "the weights by the optimizer, u and v by their steps"


@both_forms
def test_a_frozen_original_stays_frozen_and_one_on_meta_is_migrated(form: Form) -> None:
    module = spectral(conv(), form)
    next(value for name, value in module.named_parameters() if "orig" in name).requires_grad_(False)
    migrate_module(module, to=OTHER[form], kinds="spectral")
    assert [value.requires_grad for name, value in module.named_parameters() if "orig" in name] == [False]
    with torch.device("meta"):
        module = spectral(conv(), form)
    migrate_module(module, to=OTHER[form], kinds="spectral")
    assert all(value.is_meta for value in module.state_dict().values())


def test_both_kinds_are_brought_to_one_form_and_others_stay() -> None:
    model = nn.ModuleDict(
        {
            "weight": norm(conv(), "legacy"),
            "spectral": spectral(conv()),
            "there": spectral(conv(), "parametrize"),
            "plain": conv(),
        }
    )
    assert [layer.name for layer in migrate_module(model)] == ["weight.weight"]
    assert [layer.name for layer in migrate_module(model, kinds=("weight", "spectral"))] == [
        "spectral.weight"
    ]
    assert {layer.form for layer in fold_module(model, kinds="all")} == {"parametrize"}


NO_OTHER_FORM: dict[str, tuple[Any, str]] = {
    "prune": (lambda: pruned(conv()), "prune has no other form"),
    "a stack": (
        lambda: pruned(spectral(conv()), "weight_orig"),
        "prune and spectral norm are stacked on it, and only one alone has two forms",
    ),
    "a vector": (lambda: spectral(conv(), "parametrize", "bias"), "spectral norm of a vector is another"),
    "a vector, legacy": (lambda: spectral(conv(), "legacy", "bias"), "spectral norm of a vector is another"),
}


@pytest.mark.parametrize("what", NO_OTHER_FORM)
def test_what_has_no_other_form_is_refused_and_nothing_is_changed(what: str) -> None:
    build, words = NO_OTHER_FORM[what]
    model = nn.ModuleDict({"fine": spectral(conv()), "new": spectral(conv(), "parametrize"), "odd": build()})
    before = portrait(model)
    for to in FORMS:
        if (what, to) in {
            ("prune", "legacy"),
            ("a stack", "legacy"),
            ("a vector, legacy", "legacy"),
            ("a vector", "parametrize"),
        }:
            continue  # it has that form already
        with pytest.raises(LayerError, match=words) as caught:
            migrate_module(model, to=to, kinds="all")
        assert "odd." in str(caught.value)
        assert portrait(model) == before
    assert migrate_module(model, kinds="all", exclude="odd.*")


@pytest.mark.parametrize("name", ["weight_orig", "weight_u", "weight_v"])
def test_names_that_the_legacy_form_needs_are_not_taken_from_others(name: str) -> None:
    module = spectral(conv(), "parametrize")
    module.register_buffer(name, torch.ones(1))
    before = portrait(module)
    with pytest.raises(LayerError, match=f"the name {name} is taken by a buffer of the module"):
        migrate_module(module, to="legacy", kinds="spectral")
    assert portrait(module) == before


def in_a_block(model: nn.Module) -> None:
    with weights_folded(model, kinds="all"):
        pass


INTERRUPTED: dict[str, tuple[Any, str]] = {
    f"{verb}, {which}": (run, which)
    for which in (
        "spectral, legacy",
        "spectral, parametrize",
        "spectral of an LSTM, legacy",
        "spectral on weight on prune",
        "spectral on prune, legacy",
    )
    for verb, run in {
        "fold": lambda it: fold_module(it, kinds="all"),
        "block": in_a_block,
        "migrate to parametrize": lambda it: migrate_module(it, kinds="spectral"),
        "migrate to legacy": lambda it: migrate_module(it, to="legacy", kinds="spectral"),
    }.items()
    if not (verb.startswith("migrate") and (" on " in which or which.endswith(verb.split()[-1])))
}


@some("case", INTERRUPTED, ["fold, spectral, legacy", "migrate to legacy, spectral, parametrize"])
def test_an_interrupt_at_any_line_leaves_all_as_it_was_or_done(case: tuple[Any, str]) -> None:
    run, which = case
    counted, (done, x) = Interrupt(), kind_model(which)
    assert counted.runs(run, done)
    for at in counted.moments():
        it, x = kind_model(which)
        before = portrait(it)
        assert not Interrupt(at).runs(run, it), counted.lines[at]
        if run is in_a_block or list(it.state_dict()) != list(done.state_dict()):
            assert portrait(it) == before, counted.lines[at]
        it(x)
