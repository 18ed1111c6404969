"""Spectral norm, prune and their stacks in live modules: folded by one rounding, or left, or refused."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm

from tests.helpers.live_kinds import (
    KIND_MODELS,
    conv,
    every_kind,
    is_computed,
    kind_model,
    lstm,
    pruned,
    renewed,
    spectral,
)
from tests.helpers.live_models import FORMS, both_forms, norm, portrait
from tests.helpers.rule_oracle import exact_weight
from tests.helpers.states import same
from wnconvert import fold_module, fold_state_dict, folded, weights_folded
from wnconvert.errors import ArgumentError, LayerError, NumbersError
from wnconvert.tensors.memory import array_of
from wnconvert.verbs.modules.finding.live import find_live
from wnconvert.verbs.shared.options import Form

ALL = ("weight", "spectral", "prune")


def exact_weights(model: nn.Module) -> dict[str, Any]:
    """The correctly rounded weights of the layers of a model, from Python's fractions."""
    return {
        live.layer.name: exact_weight(
            live.layer.rule,
            {role: array_of(value) for role, value in live.tensors.items()},
            str(live.original.dtype).removeprefix("torch."),
        )
        for live in find_live(model, ALL).layers
    }


@every_kind
def test_a_folded_module_has_the_correctly_rounded_weights_and_fits_the_plain_class(which: str) -> None:
    model, x = kind_model(which)
    expected, exact = model(x), exact_weights(model)
    grads = {live.layer.name: live.original.requires_grad for live in find_live(model, ALL).layers}
    done = fold_module(model, kinds="all")
    assert {layer.name: layer.rule.kind for layer in done} == KIND_MODELS[which].layers
    assert not done.others
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
    assert not is_computed(model)
    parameters = dict(model.named_parameters())
    for name, w in exact.items():
        assert type(parameters[name]) is nn.Parameter
        assert parameters[name].requires_grad == grads[name]
        assert array_of(parameters[name]).tobytes() == w.tobytes()
    plain = KIND_MODELS[which].plain()
    assert type(model) is type(plain)
    plain.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(plain.eval()(x), model(x))
    model.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert fold_module(model, kinds="all") == ()


#: What keys do not tell, and only the live module knows.
UNTOLD = {"spectral of a vector, parametrize"}


@pytest.mark.parametrize("which", [name for name in KIND_MODELS if name not in UNTOLD])
def test_fold_gives_the_keys_and_bits_of_fold_state_dict(which: str) -> None:
    model, _ = kind_model(which)
    expected = fold_state_dict(model.state_dict(), kinds="all")
    fold_module(model, kinds="all")
    after = model.state_dict()
    assert list(after) == list(expected)
    assert all(same(after[name], expected[name]) for name in expected)


@every_kind
def test_kinds_that_are_not_asked_for_are_left_alone_or_refused(which: str) -> None:
    model, _ = kind_model(which)
    before = portrait(model)
    for kind in ALL:
        meant = {name for name, its in KIND_MODELS[which].layers.items() if kind in its.split("+")}
        alone = all(its == kind for its in KIND_MODELS[which].layers.values())
        if not meant:
            done = fold_module(model, kinds=kind)
            assert not done
            assert set(done.others) == set(KIND_MODELS[which].layers)
            assert portrait(model) == before
        elif not alone:
            with pytest.raises(LayerError, match="are stacked on it, and only kinds="):
                fold_module(model, kinds=kind)
            assert portrait(model) == before
            assert fold_module(model, kinds=kind, exclude="*weight*") == ()


@every_kind
def test_a_folded_copy_and_a_block_leave_the_module_as_it_was(which: str) -> None:
    model, x = kind_model(which)
    before, expected = portrait(model), model(x)
    before = portrait(model)
    made = folded(model, kinds="all")
    assert portrait(model) == before
    torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-6)
    memories = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert not memories & {tensor.data_ptr() for tensor in (*made.parameters(), *made.buffers())}
    twin = copy.deepcopy(made)
    with weights_folded(model, kinds="all") as layers:
        assert len(layers) == len(KIND_MODELS[which].layers)
        assert torch.equal(model(x), twin(x))
    assert portrait(model) == before
    assert torch.equal(model(x), expected)


@both_forms
def test_copies_that_share_a_class_are_not_touched(form: Form) -> None:
    original = spectral(conv(), form).eval()
    x = torch.randn(1, 4, 5, 5)
    twin = copy.deepcopy(original)
    expected = original(x)
    before = portrait(original)
    fold_module(twin, kinds="spectral")
    assert portrait(original) == before
    assert torch.equal(original(x), expected)
    torch.testing.assert_close(twin(x), expected)


@both_forms
def test_in_training_mode_the_weight_is_that_of_eval_from_the_stored_vectors(form: Form) -> None:
    model, other = spectral(conv(), form), spectral(conv(), form).eval()
    x = torch.randn(1, 4, 5, 5)
    model(x)
    other.load_state_dict(model.state_dict())
    expected = other(x)
    fold_module(model, kinds="spectral")
    assert model.training
    torch.testing.assert_close(model(x), expected)
    assert torch.equal(model.weight, folded(other, kinds="spectral").weight)


@both_forms
@pytest.mark.parametrize("frozen", [False, True])
def test_requires_grad_and_attributes_are_those_of_the_original(form: Form, frozen: bool) -> None:
    for module in (spectral(conv(), form), pruned(conv())):
        live = find_live(module, ALL).layers[0]
        live.original.requires_grad_(not frozen)
        live.original.no_decay = True  # type: ignore[attr-defined]
        fold_module(module, kinds="all")
        assert isinstance(module.weight, nn.Parameter)
        assert module.weight.requires_grad == (not frozen)
        assert module.weight.no_decay is True  # type: ignore[attr-defined]


def test_hooks_of_others_stay_in_order_with_their_handles() -> None:
    said: list[str] = []
    module = nn.Linear(3, 2)
    module.register_forward_pre_hook(lambda *_: said.append("first"))
    module.register_state_dict_pre_hook(lambda *_: said.append("saving"))  # type: ignore[no-untyped-call]
    spectral(module)
    handle = module.register_forward_pre_hook(lambda *_: said.append("second"))
    module._register_state_dict_hook(lambda *_: said.append("saved"))  # type: ignore[no-untyped-call]
    pruned(module, "bias")
    fold_module(module, kinds="all")
    module(torch.ones(1, 3))
    module.state_dict()
    assert said == ["first", "second", "saving", "saved"]
    handle.remove()
    module(torch.ones(1, 3))
    assert said[4:] == ["first"]


def test_the_layers_of_other_weights_of_a_module_stay_and_work() -> None:
    for form in FORMS:
        module = spectral(spectral(lstm(), form, "weight_hh_l0"), form, "weight_ih_l0").eval()
        x = torch.randn(3, 2, 5)
        expected, state = module(x)[0], dict(module.state_dict())
        fold_module(module, kinds="spectral", layers="weight_hh_l0")
        assert isinstance(module.weight_hh_l0, nn.Parameter)
        torch.testing.assert_close(module(x)[0], expected)
        assert [live.param for live in find_live(module, ALL).layers] == ["weight_ih_l0"]
        kept = [name for name in module.state_dict() if "ih" in name]
        assert kept == [name for name in state if "ih" in name]
        fold_module(module, kinds="spectral")
        assert type(module) is nn.LSTM
        assert all(isinstance(flat, nn.Parameter) for flat in module._flat_weights)
        torch.testing.assert_close(module(x)[0], expected)


def test_an_inner_weight_that_is_one_run_late_is_folded_as_it_will_be() -> None:
    module = pruned(norm(conv(), "legacy"), "weight_v").eval()
    other = pruned(norm(conv(), "legacy"), "weight_v")
    module.load_state_dict(other.state_dict())
    x = torch.randn(1, 4, 5, 5)
    first, second = module(x), module(x)
    assert not torch.allclose(first, second), "the first run sees the weight_v of before"
    fold_module(module, kinds="all")
    torch.testing.assert_close(module(x), second)


def test_weight_norm_of_the_original_of_a_spectral_hook_folds() -> None:
    module = norm(spectral(conv()), "legacy", "weight_orig").eval()
    x = torch.randn(1, 4, 5, 5)
    renewed(module, x)
    expected = module(x)
    (layer,) = fold_module(module, kinds="all")
    assert (layer.name, layer.form, layer.rule.kind) == ("weight", "legacy", "weight+spectral")
    torch.testing.assert_close(module(x), expected)
    assert not is_computed(module)


# -- what is shared


@both_forms
def test_modules_that_share_all_parts_share_the_weight_and_are_folded_together(form: Form) -> None:
    a, b = spectral(nn.Linear(3, 3), form), spectral(nn.Linear(3, 3), form)
    if form == "legacy":
        b.weight_orig, b.weight_u, b.weight_v = a.weight_orig, a.weight_u, a.weight_v
    else:
        its, of = b.parametrizations.weight, a.parametrizations.weight
        its.original, its[0]._u, its[0]._v = of.original, of[0]._u, of[0]._v
    model = nn.Sequential(a, b)
    before = portrait(model)
    with pytest.raises(LayerError, match=r"0.weight: it is tied to 1.weight, which is not"):
        fold_module(model, layers="0.*", kinds="spectral")
    assert portrait(model) == before
    assert len(fold_module(model, kinds="spectral")) == 2
    assert a.weight is b.weight


@both_forms
def test_modules_that_share_the_original_alone_get_weights_of_their_own(form: Form) -> None:
    a, b = spectral(nn.Linear(3, 3), form), spectral(nn.Linear(3, 3), form)
    if form == "legacy":
        b.weight_orig = a.weight_orig
    else:
        b.parametrizations.weight.original = a.parametrizations.weight.original
    fold_module(nn.Sequential(a, b), kinds="spectral")
    assert a.weight is not b.weight
    assert not torch.equal(a.weight, b.weight)


# -- what is refused


class Softly(SpectralNorm):
    def compute_weight(self, module: nn.Module, do_power_iteration: bool) -> Any:
        return super().compute_weight(module, do_power_iteration) / 2


class Halved(prune.BasePruningMethod):
    """Prunes in a way of its own: its mask is applied otherwise."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:  # noqa: ARG002
        return default_mask

    def apply_mask(self, module: nn.Module) -> Any:
        return super().apply_mask(module) / 2  # type: ignore[no-untyped-call]


class Checkered(prune.BasePruningMethod):
    """A pruning method as users write them: a mask of its own, applied as torch does."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:  # noqa: ARG002
        mask = default_mask.clone()
        mask.view(-1)[::2] = 0
        return mask


def softly() -> Any:
    module = spectral(conv())
    (hook,) = module._forward_pre_hooks.values()
    hook.__class__ = Softly
    return module


def halved() -> Any:
    module = conv()
    Halved.apply(module, "weight")  # type: ignore[no-untyped-call]
    return module


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def doubled(module: Any, name: str = "weight") -> Any:
    return parametrize.register_parametrization(module, name, Double())


def hooked_part() -> Any:
    module = spectral(conv(), "parametrize")
    module.parametrizations.weight[0].register_forward_hook(lambda _, __, y: y / 2)
    return module


def with_u_of(size: int) -> Any:
    module = spectral(conv())
    module.weight_u = torch.ones(size)
    return module


def with_mask_of(shape: tuple[int, ...]) -> Any:
    module = pruned(conv())
    module.weight_mask = torch.ones(shape)
    return module


def without_v() -> Any:
    module = spectral(conv())
    del module.weight_v
    return module


def beside_a_plain_one() -> Any:
    module = pruned(conv())
    del module.weight
    module.register_parameter("weight", nn.Parameter(torch.ones(6, 4, 3, 3)))
    return module


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a subclass of spectral norm": (softly, "Softly computes it in a way of its own"),
    "a subclass of prune": (halved, "Halved computes it in a way of its own"),
    "another upon spectral norm": (
        lambda: doubled(spectral(conv(), "parametrize")),
        "spectral norm and Double are stacked on it",
    ),
    "another upon weight norm": (lambda: doubled(norm(conv())), "weight norm and Double are stacked on it"),
    "another under spectral norm": (
        lambda: parametrizations.spectral_norm(doubled(conv())),
        "Double and spectral norm are stacked on it",
    ),
    "spectral norm twice": (
        lambda: parametrizations.spectral_norm(spectral(conv(), "parametrize")),
        "spectral norm and spectral norm are stacked on it",
    ),
    "spectral norm under weight norm": (
        lambda: spectral(norm(conv(), "legacy"), "legacy", "weight_v"),
        "spectral norm of weight_v and weight norm are stacked on it",
    ),
    "prune of g": (lambda: pruned(norm(conv(), "legacy"), "weight_g"), "prune of weight_g"),
    "prune on a mask": (
        lambda: pruned(pruned(conv()), "weight_orig"),
        "prune of weight_orig and prune are stacked on it",
    ),
    "prune upon weight norm": (
        lambda: norm(pruned(conv()), "legacy", "weight_orig"),
        "weight norm of weight_orig and prune are stacked on it",
    ),
    "hooks on a parametrization": (hooked_part, "hooks on its parametrization"),
    "a u of another size": (lambda: with_u_of(5), r"u \(5,\) and v \(36,\) do not fit the weight"),
    "a mask of another shape": (lambda: with_mask_of((6, 4, 3)), "its mask .* does not fit the weight"),
    "no v": (without_v, "its weight_v is neither a Parameter nor a buffer"),
    "a plain weight too": (beside_a_plain_one, "there is a plain weight of that name too"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_told_is_refused_by_name_and_nothing_is_changed(what: str) -> None:
    build, words = REFUSED[what]
    model = nn.ModuleDict({"fine": spectral(conv()), "odd": build(), "plain": conv()})
    before = portrait(model)
    for verb in (fold_module, folded, lambda it, kinds: weights_folded(it, kinds=kinds).__enter__()):
        with pytest.raises(LayerError, match=words) as caught:
            verb(model, kinds="all")
        assert "odd.weight" in str(caught.value)
        assert "exclude=" in caught.value.fix
        assert portrait(model) == before
    assert [layer.name for layer in fold_module(model, kinds="all", exclude="odd.*")] == ["fine.weight"]


def test_a_pruning_method_of_ones_own_folds() -> None:
    module: Any = conv()
    Checkered.apply(module, "weight")  # type: ignore[no-untyped-call]
    expected = module.weight.detach().clone()
    (layer,) = fold_module(module, kinds="prune")
    assert layer.rule.kind == "prune"
    assert torch.equal(module.weight, expected)


def test_another_parametrization_alone_is_left_alone() -> None:
    module = doubled(conv())
    before = portrait(module)
    assert fold_module(module, kinds="all").others == {"weight": "Double"}
    assert portrait(module) == before


@pytest.mark.parametrize("what", ["zero", "nan"])
@both_forms
def test_a_sigma_that_nothing_can_be_divided_by_is_refused(form: Form, what: str) -> None:
    model: Any = nn.Sequential(spectral(nn.Linear(3, 4), form), spectral(nn.Linear(4, 4), form))
    u = dict(model[1].named_buffers())
    with torch.no_grad():
        next(value for name, value in u.items() if name.endswith("_u")).fill_(
            0 if what == "zero" else torch.nan
        )
    before = portrait(model)
    with pytest.raises(NumbersError, match=r"layer 1\.weight: ") as caught:
        fold_module(model, kinds="spectral")
    assert "allow_nonfinite=True" in caught.value.fix
    assert portrait(model) == before
    with np.errstate(all="raise"):
        fold_module(model, kinds="spectral", allow_nonfinite=True)
    assert not torch.isfinite(model[1].weight).any()


def test_zeros_that_a_mask_makes_keep_the_sign_that_torch_gives_them() -> None:
    module: Any = conv()
    prune.custom_from_mask(module, "weight", torch.zeros(6, 4, 3, 3))  # type: ignore[no-untyped-call]
    module(torch.ones(1, 4, 5, 5))
    expected = module.weight.detach().clone()
    fold_module(module, kinds="prune")
    assert torch.equal(torch.signbit(module.weight), torch.signbit(expected))
    assert torch.signbit(expected).any()


@pytest.mark.parametrize("kinds", ["batch norm", "", [], "weight,other"])
def test_a_kind_that_there_is_not_is_an_argument_error(kinds: Any) -> None:
    module = spectral(conv())
    before = portrait(module)
    with pytest.raises(ArgumentError, match="no kind") as caught:
        fold_module(module, kinds=kinds)
    assert "spectral" in caught.value.fix
    assert portrait(module) == before


def test_a_legacy_weight_that_is_read_without_its_hook_is_warned_of() -> None:
    attention = nn.MultiheadAttention(4, 2)
    spectral(attention.out_proj)
    with pytest.warns(UserWarning, match="outputs will change: a cached weight is not what is stored"):
        fold_module(attention, kinds="spectral")
    module = spectral(conv())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fold_module(module, kinds="spectral")
