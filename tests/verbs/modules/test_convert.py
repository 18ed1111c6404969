"""The verbs on live modules: fold, and what stays as it is; copies; inspection."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from tests.helpers.deprecated import deprecated
from tests.helpers.infos import halves
from tests.helpers.live_models import (
    FLOATS,
    FORMS,
    MODELS,
    both_forms,
    cnn,
    every_model,
    g_and_v,
    input_of,
    model_of,
    norm,
    portrait,
    trained,
)
from tests.helpers.states import folded64, same, ulps
from wnconvert.errors import ArgumentError, LayerError, WnconvertError
from wnconvert.verbs.conversion.state_dict import fold_state_dict
from wnconvert.verbs.modules.convert import fold_module, folded, migrate_module
from wnconvert.verbs.modules.inspect import inspect_module
from wnconvert.verbs.modules.split import split_module
from wnconvert.verbs.shared.options import Form

# -- fold


@every_model
@both_forms
def test_a_folded_module_computes_the_same_with_plain_parameters(kind: str, form: Form) -> None:
    model, x = model_of(kind, form), input_of(kind)
    before, state = model(x), model.state_dict()
    pairs = halves(state)
    done = fold_module(model)
    assert {layer.name for layer in done} == set(pairs)
    assert {layer.form for layer in done} == {form}
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-6)
    after = dict(model.named_parameters())
    for name, (g, v) in pairs.items():
        assert type(after[name]) is nn.Parameter
        assert after[name].is_leaf
        assert ulps(after[name], folded64(state[g], state[v])) <= 1
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any(module._load_state_dict_pre_hooks for module in model.modules())


@every_model
@both_forms
def test_fold_gives_the_bits_of_fold_state_dict(kind: str, form: Form) -> None:
    model = model_of(kind, form)
    expected = fold_state_dict(model.state_dict())
    fold_module(model)
    after = model.state_dict()
    assert set(after) == set(expected)
    assert all(same(after[name], expected[name]) for name in expected)


@both_forms
def test_keys_stand_where_fold_state_dict_puts_them(form: Form) -> None:
    module = norm(nn.Conv1d(3, 4, 5), form)
    module.register_parameter("scale", nn.Parameter(torch.ones(1)))
    expected = list(fold_state_dict(module.state_dict()))
    fold_module(module)
    assert list(module.state_dict()) == expected
    assert expected == (["bias", "weight", "scale"] if form == "legacy" else ["bias", "scale", "weight"])


@both_forms
def test_fold_reports_names_forms_and_dims(form: Form) -> None:
    assert [(layer.name, layer.form, layer.dim) for layer in fold_module(cnn(form))] == [
        ("0.weight", form, 0),
        ("3.weight", form, 1),
        ("5.weight", form, 0),
    ]
    (whole,) = fold_module(MODELS["linear, dim None"][0](form))
    assert (whole.dim, whole.g.shape, whole.v.shape) == (None, (), (3, 5))
    (counted_from_behind,) = fold_module(MODELS["linear, dim -2"][0](form))
    assert counted_from_behind.dim == 0


def test_dim_is_what_the_module_says_where_shapes_do_not_tell() -> None:
    for dim, expected in ((0, 0), (None, None)):
        (layer,) = fold_module(norm(nn.Conv1d(3, 1, 5), "legacy", dim=dim))
        assert layer.dim == expected


def test_nothing_to_fold_is_an_empty_result_and_twice_is_once() -> None:
    plain = nn.Sequential(nn.Conv1d(3, 3, 3), nn.LSTM(3, 3))
    before = portrait(plain)
    assert fold_module(plain) == ()
    assert portrait(plain) == before
    model = model_of("cnn", "legacy")
    assert len(fold_module(model)) == 3
    before = portrait(model)
    assert fold_module(model) == ()
    assert portrait(model) == before


def test_both_forms_fold_in_one_model_and_in_one_module() -> None:
    model = nn.ModuleDict(
        {
            "old": norm(nn.Linear(3, 2), "legacy"),
            "new": norm(nn.Linear(3, 2)),
            "both": norm(norm(nn.LSTM(3, 2), "legacy", "weight_hh_l0"), "parametrize", "weight_ih_l0"),
            "plain": nn.Linear(3, 2),
        }
    )
    forms = {layer.name: layer.form for layer in fold_module(model)}
    assert forms == {
        "old.weight": "legacy",
        "new.weight": "parametrize",
        "both.weight_hh_l0": "legacy",
        "both.weight_ih_l0": "parametrize",
    }
    assert type(model["both"]) is nn.LSTM
    assert model["both"](torch.randn(4, 1, 3))[0].shape == (4, 1, 2)


@both_forms
@pytest.mark.parametrize("of_v", FLOATS)
@pytest.mark.parametrize("of_g", FLOATS)
def test_every_mixture_of_dtypes_folds_to_that_of_v(of_v: torch.dtype, of_g: torch.dtype, form: Form) -> None:
    module = norm(nn.Conv1d(3, 4, 2), form)
    g, v = g_and_v(module)
    g.data, v.data = (g.data * 1.5).to(of_g), v.data.to(of_v)
    expected = fold_state_dict(module.state_dict())["weight"]
    fold_module(module)
    assert module.weight.dtype == of_v
    assert same(module.weight, expected)


@both_forms
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_weight_is_a_parameter_that_can_be_trained_wherever_it_was_folded(
    form: Form, around: Callable[[], Any]
) -> None:
    module = trained(norm(nn.Linear(3, 2), form))
    with around():
        fold_module(module)
    assert isinstance(module.weight, nn.Parameter)
    assert not module.weight.is_inference()
    module(torch.ones(1, 3)).sum().backward()
    assert module.weight.grad is not None
    torch.optim.SGD(module.parameters(), 0.1).step()


@both_forms
@pytest.mark.parametrize("frozen", [(), ("g",), ("v",), ("g", "v")])
def test_requires_grad_is_that_of_v(form: Form, frozen: tuple[str, ...]) -> None:
    module = norm(nn.Linear(3, 2), form)
    g, v = g_and_v(module)
    g.requires_grad_("g" not in frozen)
    v.requires_grad_("v" not in frozen)
    fold_module(module)
    assert isinstance(module.weight, nn.Parameter)
    assert module.weight.requires_grad == ("v" not in frozen)


def test_a_module_made_under_inference_mode_folds() -> None:
    with torch.inference_mode():
        module = norm(nn.Linear(3, 2))
    fold_module(module)
    assert not module.weight.is_inference()


def test_a_buffer_stays_a_buffer() -> None:
    module = nn.Module()
    module.register_buffer("table", torch.randn(4, 3))
    norm(module, name="table")
    (layer,) = fold_module(module)
    assert layer.name == "table"
    assert list(dict(module.named_buffers())) == ["table"]
    assert not list(module.parameters())
    assert migrated_there_and_back_is_the_same(norm(module, name="table"))


def migrated_there_and_back_is_the_same(module: nn.Module) -> bool:
    before = module.state_dict()
    migrate_module(module, to="legacy")
    migrate_module(module, to="parametrize")
    after = module.state_dict()
    return list(before) == list(after) and all(same(before[name], after[name]) for name in before)


@both_forms
def test_the_memory_format_stays(form: Form) -> None:
    module = norm(nn.Conv2d(4, 8, 3), form)
    if form == "legacy":
        module.weight = module.weight.detach()
    module.to(memory_format=torch.channels_last)
    expected = fold_state_dict(module.state_dict())["weight"]
    fold_module(module)
    assert module.weight.is_contiguous(memory_format=torch.channels_last)
    assert not module.weight.is_contiguous()
    assert same(module.weight, expected)
    assert module.weight.is_leaf


def test_a_stale_cached_weight_is_never_read() -> None:
    module = norm(nn.Linear(3, 2), "legacy")
    with torch.no_grad():
        module.weight_g.mul_(2)
    expected = fold_state_dict(module.state_dict())["weight"]
    assert not same(module.weight, expected)
    fold_module(module)
    assert same(module.weight, expected)


def loading_hook(module: Any, hook: Callable[..., None]) -> None:
    module.register_load_state_dict_pre_hook(hook)


def test_other_hooks_stay_in_order_with_their_handles() -> None:
    said: list[str] = []

    def saying(word: str) -> Callable[..., None]:
        return lambda *_: said.append(word)

    for form in FORMS:
        module = nn.Linear(3, 2)
        module.register_forward_pre_hook(saying("first"))
        loading_hook(module, saying("before loading, first"))
        norm(module, form)
        handle = module.register_forward_pre_hook(saying("second"))
        loading_hook(module, saying("before loading, second"))
        module.register_forward_hook(saying("after"))
        fold_module(module)
        module(torch.ones(1, 3))
        module.load_state_dict(module.state_dict())
        loading = ["before loading, first", "before loading, second"]
        assert said == ["first", "second", "after", *loading]
        said.clear()
        handle.remove()
        module(torch.ones(1, 3))
        assert said == ["first", "after"]
        said.clear()


@both_forms
def test_a_folded_module_loads_and_saves_like_a_plain_one(form: Form) -> None:
    model = model_of("cnn", form)
    old = model.state_dict()
    fold_module(model)
    plain = cnn("parametrize")
    fold_module(plain)
    fresh = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3, bias=False),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    fresh.load_state_dict(model.state_dict(), strict=True)
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    again = torch.load(saved, weights_only=False)
    x = input_of("cnn")
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    missing, unexpected = model.load_state_dict(old, strict=False)
    assert set(missing) == {"0.weight", "3.weight", "5.weight"}
    assert set(unexpected) == {name for both in halves(old).values() for name in both}


def test_loading_a_legacy_state_dict_afterwards_names_the_keys_that_it_has() -> None:
    legacy = norm(nn.Linear(3, 2), "legacy").state_dict()
    module = norm(nn.Linear(3, 2))
    fold_module(module)
    _, unexpected = module.load_state_dict(legacy, strict=False)
    assert unexpected == ["weight_g", "weight_v"]


@both_forms
def test_a_folded_module_can_be_traced_scripted_and_compiled(form: Form) -> None:
    model, x = model_of("cnn", form).eval(), input_of("cnn")
    fold_module(model)
    expected = model(x)
    with deprecated():
        torch.testing.assert_close(torch.jit.script(model)(x), expected)
        torch.testing.assert_close(torch.jit.trace(model, x)(x), expected)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(torch.compile(model, backend="eager")(x), expected)


@both_forms
def test_wrappers_are_looked_through(form: Form) -> None:
    model, x = model_of("cnn", form).eval(), input_of("cnn")
    expected = model(x)
    compiled: Any = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(x), expected)
    assert fold_module(compiled)[0].name == "_orig_mod.0.weight"
    torch.testing.assert_close(compiled(x), expected)
    parallel = nn.DataParallel(model_of("cnn", form))
    assert fold_module(parallel)[0].name == "module.0.weight"


@both_forms
def test_training_flags_stay(form: Form) -> None:
    model = model_of("cnn", form)
    model[1].eval()  # type: ignore[index]
    fold_module(model)
    assert [module.training for module in model.modules()] == [True, True, False, True, True, True, True]


class Stubborn(nn.Conv1d):
    """A layer that watches its attributes."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight" and "ready" in self.__dict__:
            raise AttributeError("the weight must not be assigned")
        super().__setattr__(name, value)


@both_forms
def test_a_class_with_a_setattr_of_its_own_is_no_obstacle(form: Form) -> None:
    module = norm(Stubborn(3, 4, 2), form)
    module.ready = True
    fold_module(module)
    assert type(module) is Stubborn
    assert module(torch.ones(1, 3, 5)).shape == (1, 4, 4)
    split_module(module, layers="weight", dim=0)
    migrate_module(module, to="legacy")
    assert fold_module(module)[0].form == "legacy"


def test_any_name_of_a_weight_will_do() -> None:
    module = nn.Bilinear(2, 3, 4)
    module.register_parameter("bias", None)
    module.register_parameter("kernel", nn.Parameter(torch.randn(4, 3)))
    for form in FORMS:
        norm(module, form, "kernel")
        assert [layer.name for layer in fold_module(module)] == ["kernel"]
    vector = nn.Linear(3, 4)
    norm(vector, name="bias")
    assert fold_module(vector)[0].g.shape == (4,)


# -- what is shared


@both_forms
def test_a_shared_module_is_folded_once_and_stays_shared(form: Form) -> None:
    shared = trained(norm(nn.Linear(3, 3), form))
    model = nn.ModuleDict({"a": shared, "b": shared})
    (layer,) = fold_module(model)
    assert layer.name == "a.weight"
    assert model["a"] is model["b"]
    assert set(model.state_dict()) == {"a.bias", "a.weight", "b.bias", "b.weight"}


@both_forms
def test_a_shared_module_is_chosen_and_excluded_by_any_of_its_names(form: Form) -> None:
    def model() -> nn.Module:
        shared = norm(nn.Linear(3, 3), form)
        return nn.ModuleDict({"a": shared, "b": shared})

    assert [layer.name for layer in fold_module(model(), layers="b.*")] == ["b.weight"]
    assert fold_module(model(), exclude=["b.weight"]) == ()


def share(a: Any, b: Any, half: int) -> None:
    """Give b g (0) or v (1) of a, the very Parameter."""
    if parametrize.is_parametrized(a):
        setattr(b.parametrizations.weight, f"original{half}", g_and_v(a)[half])
    else:
        setattr(b, ("weight_g", "weight_v")[half], g_and_v(a)[half])


@both_forms
def test_modules_that_share_both_halves_share_the_weight(form: Form) -> None:
    a, b = norm(nn.Linear(3, 2), form), norm(nn.Linear(3, 2), form)
    for half in (0, 1):
        share(a, b, half)
    model = nn.Sequential(a, b)
    assert len(fold_module(model)) == 2
    assert a.weight is b.weight


@both_forms
@pytest.mark.parametrize("half", [0, 1])
def test_modules_that_share_one_half_get_weights_of_their_own(form: Form, half: int) -> None:
    a, b = trained(norm(nn.Linear(3, 2), form)), trained(norm(nn.Linear(3, 2), form))
    share(a, b, half)
    expected = [fold_state_dict(each.state_dict())["weight"] for each in (a, b)]
    fold_module(nn.Sequential(a, b))
    assert a.weight is not b.weight
    assert same(a.weight, expected[0])  # type: ignore[arg-type]
    assert same(b.weight, expected[1])  # type: ignore[arg-type]


@pytest.mark.parametrize("verb", ["fold", "migrate"])
def test_copies_that_share_a_class_are_not_touched(verb: str) -> None:
    original = model_of("lstm", "parametrize")
    twin = copy.deepcopy(original)
    x, before = input_of("lstm"), portrait(original)
    assert type(twin.rnn) is type(original.rnn)
    expected = original(x)
    before = portrait(original)
    if verb == "fold":
        fold_module(twin, layers="*hh*")
        assert [name for name, _ in twin.named_parameters() if "ih" in name and "weight" in name] == [
            "rnn.parametrizations.weight_ih_l0.original0",
            "rnn.parametrizations.weight_ih_l0.original1",
        ]
        torch.testing.assert_close(twin(x), expected)
    else:
        migrate_module(twin, to="legacy", layers="*hh*")
        torch.testing.assert_close(twin(x), expected)
        migrate_module(twin, to="parametrize")
        torch.testing.assert_close(twin(x), expected)
    assert portrait(original) == before
    torch.testing.assert_close(original(x), expected)
    fold_module(twin)
    assert type(twin.rnn) is nn.LSTM
    assert torch.equal(original(x), expected)


def test_a_split_on_a_copy_does_not_reach_the_class_that_it_shares() -> None:
    original = norm(nn.LSTM(3, 4), name="weight_hh_l0")
    twin = copy.deepcopy(original)
    split_module(twin, layers="weight_ih_l0", dim=0)
    assert isinstance(original.weight_ih_l0, nn.Parameter)
    assert not parametrize.is_parametrized(original, "weight_ih_l0")
    assert len(fold_module(twin)) == 2


# -- recurrent layers


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
@both_forms
@pytest.mark.parametrize("used", [False, True])
def test_flat_weights_are_the_parameters(kind: str, form: Form, used: bool) -> None:
    model, x = model_of(kind, form), input_of(kind)
    if used:
        model(x)
    fold_module(model)
    layer: Any = model.rnn
    assert all(
        flat is getattr(layer, name)
        for name, flat in zip(layer._flat_weights_names, layer._flat_weights, strict=True)
    )
    assert all(isinstance(flat, nn.Parameter) for flat in layer._flat_weights)
    assert not layer._weights_have_changed()
    before = [id(flat) for flat in layer._flat_weights]
    expected = model(x)
    assert [id(flat) for flat in layer._flat_weights] == before
    assert torch.equal(copy.deepcopy(model)(x), expected)
    layer.weight_hh_l0.data.zero_()
    assert not torch.equal(model(x), expected)


@both_forms
def test_an_rnn_that_is_folded_in_part_can_be_copied(form: Form) -> None:
    model, x = model_of("lstm", "parametrize"), input_of("lstm")
    expected = model(x)
    if form == "legacy":
        migrate_module(model, to=form)
    fold_module(model, exclude=["*hh*"])
    torch.testing.assert_close(copy.deepcopy(model)(x), expected)
    torch.testing.assert_close(model(x), expected)


# -- a folded copy


@every_model
@both_forms
@pytest.mark.parametrize("used", [False, True])
def test_a_folded_copy_leaves_the_module_alone(kind: str, form: Form, used: bool) -> None:
    model, x = model_of(kind, form).eval(), input_of(kind)
    if used:
        model(x)
    before = portrait(model)
    made = folded(model)
    assert portrait(model) == before
    torch.testing.assert_close(made(x), model(x), rtol=1e-5, atol=1e-6)
    theirs = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    memories = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert not theirs & {id(tensor) for tensor in made.parameters()}
    assert not memories & {tensor.data_ptr() for tensor in (*made.parameters(), *made.buffers())}
    expected = fold_state_dict(model.state_dict())
    assert all(same(value, expected[name]) for name, value in made.state_dict().items())
    copy.deepcopy(made)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_a_copy_made_without_gradients_can_be_trained(around: Callable[[], Any]) -> None:
    model = model_of("cnn", "legacy")
    model(input_of("cnn"))
    with around():
        made = folded(model)
    assert not any(parameter.is_inference() for parameter in made.parameters())
    made(input_of("cnn")).sum().backward()


def test_a_copy_may_keep_layers_and_these_can_be_used_and_copied() -> None:
    model, x = model_of("lstm", "legacy"), input_of("lstm")
    expected = model(x)
    made = folded(model, layers="*ih*")
    assert set(halves(made.state_dict())) == {"rnn.weight_hh_l0"}
    torch.testing.assert_close(copy.deepcopy(made)(x), expected)
    torch.testing.assert_close(made(x), expected)


def test_a_copy_keeps_what_is_tied_and_what_is_on_a_graph() -> None:
    shared = norm(nn.Linear(3, 3), "legacy")
    model: Any = nn.ModuleDict({"a": shared, "b": shared})
    model.last = shared(torch.ones(1, 3))  # a module that remembers an activation
    made = folded(model)
    assert made["a"] is made["b"]
    assert torch.equal(made.last, model.last)
    assert not made.last.requires_grad


def test_a_module_that_cannot_be_copied_is_left_alone_and_says_so() -> None:
    model: Any = model_of("lstm", "legacy")
    model(input_of("lstm"))
    model.open = (line for line in portrait(model))  # generators cannot be copied
    before = portrait(model)
    with pytest.raises(ArgumentError, match="cannot be copied") as caught:
        folded(model)
    assert "weights_folded" in caught.value.fix
    assert portrait(model) == before


def test_a_compiled_module_can_be_copied() -> None:
    model, x = model_of("cnn", "legacy").eval(), input_of("cnn")
    compiled: Any = torch.compile(model, backend="eager")
    expected = compiled(x)
    torch.testing.assert_close(folded(compiled)(x), expected)


# -- inspect


@every_model
@both_forms
def test_inspection_shows_the_layers_that_fold_would_fold(kind: str, form: Form) -> None:
    model = model_of(kind, form)
    before = portrait(model)
    found = inspect_module(model, full=True)
    assert portrait(model) == before
    shown = {(layer.name, layer.form, layer.dim, layer.shape) for layer in found.layers}
    done = fold_module(model)
    assert shown == {(layer.name, layer.form, layer.dim, layer.v.shape) for layer in done}
    assert found.fold == f"would make {len(done)} plain weight{'s' * (len(done) > 1)}"
    assert all(layer.norm for layer in found.layers)


def test_inspection_names_what_fold_leaves_alone() -> None:
    impostor = nn.Module()
    impostor.weight_g, impostor.weight_v = nn.Parameter(torch.ones(3, 1)), nn.Parameter(torch.ones(3, 2))
    model = nn.ModuleDict(
        {
            "sn": parametrizations.spectral_norm(nn.Linear(3, 3)),
            "twice": parametrizations.spectral_norm(norm(nn.Linear(3, 3))),
            "impostor": impostor,
            "lazy": nn.LazyLinear(3),
        }
    )
    found = inspect_module(model)
    assert [note.partition(" is ")[0] for note in found.notes] == [
        "twice.weight",
        "sn.weight",
        "impostor.weight",
    ]
    assert "under spectral norm" in found.notes[1]
    assert "by its keys only" in found.notes[2]
    assert {kind.kind for kind in found.kinds} == {
        "spectral norm (parametrize)",
        "spectral norm on weight norm (parametrize)",
    }
    assert fold_module(model, exclude="twice.*") == ()


def test_inspection_takes_globs_and_all_weights() -> None:
    model = nn.Sequential(norm(nn.Linear(3, 4)), nn.Linear(4, 5))
    assert [layer.name for layer in inspect_module(model, layers="0.*").layers] == ["0.weight"]
    every = inspect_module(model, all_weights=True).layers
    assert {(layer.name, layer.form) for layer in every} == {
        ("0.weight", "parametrize"),
        ("1.weight", "plain"),
    }


def test_errors_are_the_projects() -> None:
    assert issubclass(LayerError, WnconvertError)
    with pytest.raises(WnconvertError) as caught:
        fold_module(parametrizations.spectral_norm(norm(nn.Linear(3, 3))))
    assert caught.value.where == "layer weight"
    assert caught.value.what.startswith("weight norm and spectral norm are stacked")
    assert caught.value.fix == "exclude='weight' leaves it as it is"


@both_forms
def test_a_name_that_holds_none_becomes_the_weight(form: Form) -> None:
    for home in ("_parameters", "_buffers"):
        module = norm(nn.Linear(3, 2), form)
        expected = fold_state_dict(module.state_dict())["weight"]
        getattr(module, home)["weight"] = None
        fold_module(module)
        assert same(module.weight, expected)
        assert "weight" not in module._buffers
        assert list(module.state_dict()) == ["bias", "weight"]


@both_forms
def test_layers_tied_to_some_that_are_not_folded_are_refused(form: Form) -> None:
    a, b = norm(nn.Linear(3, 2), form), norm(nn.Linear(3, 2), form)
    for half in (0, 1):
        share(a, b, half)
    model = nn.Sequential(a, b)
    before = portrait(model)
    for verb in (fold_module, folded):
        with pytest.raises(
            LayerError, match=r"layer 0.weight: it is tied to 1.weight, which is not"
        ) as caught:
            verb(model, layers="0.*")
        assert caught.value.fix == "choose both, or exclude both"
    assert portrait(model) == before
    assert len(migrate_module(model, layers="0.*", to="parametrize")) == (form == "legacy"), "stays tied"


class Marked(nn.Parameter):
    """A Parameter of a user's own class."""


class Kind(torch.Tensor):
    """A tensor of a user's own class."""


@both_forms
@pytest.mark.parametrize("make", [nn.Parameter, Marked, lambda it: nn.Parameter(it.as_subclass(Kind))])
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_weight_is_of_the_class_of_v_with_what_was_set_on_it(
    form: Form, make: Callable[..., Any], around: Callable[[], Any]
) -> None:
    module = norm(nn.Conv2d(3, 4, 3), form)
    home, name = (module, "weight_v") if form == "legacy" else (module.parametrizations.weight, "original1")
    v = make(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))
    v.no_decay, v.buffer = True, torch.ones(1)
    home._parameters[name] = v
    expected = fold_state_dict(module.state_dict())["weight"]
    with around():
        fold_module(module)
    w: Any = module.weight
    assert type(w) is type(v)
    assert w.stride() == v.stride()
    assert w.no_decay is True
    assert not hasattr(w, "buffer"), "a tensor that was v's alone"
    assert same(w.detach().as_subclass(torch.Tensor), torch.as_tensor(expected).as_subclass(torch.Tensor))
    module(torch.ones(1, 3, 4, 4)).sum().backward()
    assert w.is_leaf
    assert w.grad is not None
    assert isinstance(w, nn.Parameter)
