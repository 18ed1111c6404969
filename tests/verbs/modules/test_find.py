"""Which layers of live modules are found, left alone and refused; a refusal changes nothing."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.weight_norm import WeightNorm

from tests.helpers.deprecated import deprecated
from tests.helpers.infos import halves
from tests.helpers.live_models import (
    OTHER,
    both_forms,
    cnn,
    g_and_v,
    input_of,
    model_of,
    norm,
    portrait,
    pruned,
    trained,
)
from wnconvert.errors import ArgumentError, LayerError, NumbersError
from wnconvert.verbs.modules.convert import fold_module, folded, migrate_module, weights_folded
from wnconvert.verbs.modules.inspect import inspect_module
from wnconvert.verbs.modules.split import split_module
from wnconvert.verbs.shared.options import Form


def test_spectral_norm_and_others_are_left_alone_and_named() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        old = nn.utils.spectral_norm(nn.Linear(3, 3))
    model = nn.ModuleDict(
        {
            "norm": norm(nn.Linear(3, 3)),
            "old": old,
            "new": parametrizations.spectral_norm(nn.Linear(3, 3)),
            "orthogonal": parametrizations.orthogonal(nn.Linear(3, 3)),
            "prune": prune.l1_unstructured(nn.Linear(3, 3), "weight", 0.5),  # type: ignore[no-untyped-call]
        }
    )
    others = {name: portrait(model[name]) for name in ("old", "new", "orthogonal", "prune")}
    done = fold_module(model)
    assert [layer.name for layer in done] == ["norm.weight"]
    assert done.others == {
        "old.weight": "spectral norm",
        "new.weight": "spectral norm",
        "orthogonal.weight": "Orthogonal",
        "prune.weight": "prune",
    }
    assert {name: portrait(model[name]) for name in others} == others
    assert fold_module(model, layers="old.*").others == {"old.weight": "spectral norm"}


@pytest.mark.parametrize("other", [parametrizations.spectral_norm, parametrizations.orthogonal])
def test_a_parametrization_of_another_tensor_of_the_module_stays_and_works(other: Any) -> None:
    module = norm(other(nn.LSTM(4, 4), "weight_hh_l0"), name="weight_ih_l0").eval()
    x, twin = torch.randn(3, 2, 4), copy.deepcopy(module)
    expected = module(x)[0]
    done = fold_module(module)
    assert [layer.name for layer in done] == ["weight_ih_l0"]
    assert list(done.others) == ["weight_hh_l0"]
    assert parametrize.is_parametrized(module, "weight_hh_l0")
    assert not parametrize.is_parametrized(module, "weight_ih_l0")
    torch.testing.assert_close(module(x)[0], expected)
    torch.testing.assert_close(twin(x)[0], expected)
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert type(module) is nn.LSTM
    torch.testing.assert_close(twin(x)[0], expected)


def spectral(module: nn.Module, name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        return nn.utils.spectral_norm(module, name)


def double(module: nn.Module, name: str) -> nn.Module:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    return parametrize.register_parametrization(module, name, Double())


def linear(form: Form = "parametrize") -> Any:
    return norm(nn.Linear(3, 3), form)


#: What is stacked on weight norm, and a word that the refusal must say.
STACKS: dict[str, tuple[Callable[[], Any], str]] = {
    "spectral norm upon it": (lambda: parametrizations.spectral_norm(linear()), "spectral norm"),
    "weight norm of v, legacy": (lambda: norm(linear("legacy"), "legacy", "weight_v"), "weight_v"),
    "weight norm of g, legacy": (lambda: norm(linear("legacy"), "legacy", "weight_g"), "weight_g"),
    "weight norm of v, both": (lambda: norm(linear("legacy"), name="weight_v"), "weight_v"),
    "spectral norm of v": (lambda: spectral(linear("legacy"), "weight_v"), "weight_v"),
    "spectral norm under it": (
        lambda: norm(spectral(nn.Linear(3, 3), "weight"), "legacy", "weight_orig"),
        "weight norm of weight_orig and spectral norm",
    ),
    "prune of g": (lambda: pruned(linear("legacy"), "weight_g"), "prune of weight_g"),
    "prune of v": (lambda: pruned(linear("legacy"), "weight_v"), "prune of weight_v"),
    "prune under it": (
        lambda: norm(pruned(nn.Linear(3, 3), "weight"), name="weight_orig"),
        "weight norm of weight_orig and prune",
    ),
    "another of v": (lambda: double(linear("legacy"), "weight_v"), "Double of weight_v"),
    "legacy on an original": (
        lambda: on_originals(lambda it: norm(it, "legacy", "original1")),
        "weight norm of original1",
    ),
    "prune on an original": (
        lambda: on_originals(lambda it: pruned(it, "original1")),
        "prune of original1",
    ),
    "parametrized original": (lambda: on_originals(lambda it: double(it, "original1")), "original1"),
}


def on_originals(change: Callable[[Any], object]) -> nn.Module:
    module: Any = norm(nn.Linear(3, 3))
    change(module.parametrizations.weight)
    return module  # type: ignore[no-any-return]


def test_the_same_hook_twice_is_a_stack() -> None:
    module = linear("legacy")
    module.register_forward_pre_hook(WeightNorm("weight", 0))
    with pytest.raises(LayerError, match="weight norm and weight norm are stacked"):
        fold_module(module)


@pytest.mark.parametrize("stack", STACKS)
def test_a_stack_is_refused_by_name_and_nothing_is_changed(stack: str) -> None:
    build, word = STACKS[stack]
    model = nn.ModuleDict({"fine": norm(nn.Linear(3, 3)), "stack": build(), "plain": nn.Linear(3, 3)})
    before = portrait(model)
    plain = nn.ModuleDict({"stack": nn.Linear(3, 3)})
    verbs: list[Callable[[], object]] = [
        lambda: fold_module(model),
        lambda: folded(model),
        lambda: weights_folded(model).__enter__(),
        lambda: migrate_module(model, to="legacy"),
        lambda: migrate_module(model, to="parametrize"),
        lambda: split_module(plain, like=model),
    ]
    for verb in verbs:
        with pytest.raises(LayerError) as caught:
            verb()
        assert "stack.weight" in str(caught.value)
        assert word in str(caught.value)
        assert "exclude=" in caught.value.fix
        assert portrait(model) == before
    refused = [note for note in inspect_module(model).notes if " is refused: " in note]
    assert any(note.startswith("stack.weight") and word in note for note in refused)
    done = fold_module(model, exclude=["stack.*"])
    assert [layer.name for layer in done] == ["fine.weight"]


@both_forms
def test_a_g_that_does_not_fit_is_refused_before_torch_meets_it(form: Form) -> None:
    model = nn.Sequential(norm(nn.Linear(3, 4), form), norm(nn.Linear(4, 4), form))
    g, _ = g_and_v(model[0])
    g.data = torch.ones(2, 1)
    before = portrait(model)
    verbs: list[Callable[[], object]] = [
        lambda: fold_module(model),
        lambda: folded(model),
        lambda: migrate_module(model, to=OTHER[form]),
    ]
    for verb in verbs:
        with pytest.raises(
            LayerError, match=r"layer 0.weight: g \(2, 1\) does not fit v \(4, 3\) along its dim 0"
        ):
            verb()
        assert portrait(model) == before
    g.data = torch.ones(1, 3)  # fits, but not the dim that the module states
    with pytest.raises(LayerError, match="along its dim 0"):
        fold_module(model)


@both_forms
def test_one_ranks_empty_share_of_a_layer_is_refused_and_nothing_is_changed(form: Form) -> None:
    model = nn.Sequential(norm(nn.Linear(3, 4), form), norm(nn.Linear(4, 4), form), nn.Linear(4, 4))
    for half in (*g_and_v(model[0]), cast(nn.Linear, model[2]).weight):
        half.data = torch.empty(0)
    before = portrait(model)
    verbs: list[Callable[[], object]] = [
        lambda: fold_module(model),
        lambda: folded(model),
        lambda: migrate_module(model, to=OTHER[form]),
        lambda: split_module(model, layers="2.weight", dim=0),
    ]
    for verb in verbs:
        with pytest.raises(LayerError, match="is empty: one rank's share of a sharded module") as caught:
            verb()
        assert "gather it first" in caught.value.fix
        assert portrait(model) == before
    assert [layer.name for layer in fold_module(model, exclude="0.weight")] == ["1.weight"]


@both_forms
def test_the_meta_device_has_nothing_to_fold_but_can_be_migrated(form: Form) -> None:
    with torch.device("meta"):
        model = nn.Sequential(norm(nn.Linear(3, 4), form), norm(nn.Linear(4, 4), form))
    before = portrait(model)
    with pytest.raises(LayerError, match="2 layers cannot be folded") as caught:
        fold_module(model)
    assert "meta device" in str(caught.value)
    assert "data" in caught.value.fix
    with pytest.raises(LayerError, match="2 layers cannot be inspected"):
        inspect_module(model)
    assert portrait(model) == before
    migrate_module(model, to=OTHER[form])
    assert (
        list(halves(model.state_dict())) == ["0.weight", "1.weight"] or len(halves(model.state_dict())) == 2
    )
    assert all(parameter.is_meta for parameter in model.parameters())


def test_torchscript_is_refused_where_weight_norm_is_in_it() -> None:
    with deprecated():
        traced = torch.jit.trace(norm(nn.Linear(3, 2)), torch.ones(1, 3))  # type: ignore[no-untyped-call]
        plain = torch.jit.script(nn.Linear(3, 2))
    model = nn.ModuleDict({"fine": norm(nn.Linear(3, 2)), "traced": traced, "plain": plain})
    verbs: list[Callable[[], object]] = [
        lambda: fold_module(model),
        lambda: migrate_module(model, to="legacy"),
        lambda: fold_module(traced),
    ]
    for verb in verbs:
        with pytest.raises(LayerError, match="TorchScript") as caught:
            verb()
        assert "before it is scripted" in caught.value.fix
    assert [layer.name for layer in fold_module(model, exclude="traced.*")] == ["fine.weight"]
    with pytest.raises(LayerError, match="TorchScript"):
        split_module(model, layers="plain.weight", dim=0)


def test_a_computation_of_ones_own_is_refused() -> None:
    class Softly(WeightNorm):
        def compute_weight(self, module: nn.Module) -> Any:
            return super().compute_weight(module) / 2

    module = norm(nn.Linear(3, 2), "legacy")
    (hook,) = module._forward_pre_hooks.values()
    hook.__class__ = Softly
    with pytest.raises(LayerError, match="Softly computes it in a way of its own"):
        fold_module(module)


@pytest.mark.parametrize(
    "dtype", [torch.complex64, torch.float8_e4m3fn, torch.int32], ids=["complex", "float8", "int"]
)
def test_a_dtype_that_cannot_be_folded_is_refused(dtype: torch.dtype) -> None:
    module = norm(nn.Linear(3, 2))
    _, v = g_and_v(module)
    v.requires_grad_(False)
    v.data = v.data.to(dtype)
    with pytest.raises(LayerError, match="cannot be weight-normalized"):
        fold_module(module)


def test_a_half_that_is_gone_is_refused() -> None:
    module = norm(nn.Linear(3, 2), "legacy")
    del module.weight_g
    with pytest.raises(LayerError, match="its weight_g is neither a Parameter nor a buffer"):
        fold_module(module)
    module = norm(nn.Linear(3, 2), "legacy")
    del module.weight
    module.weight = nn.Parameter(torch.ones(2, 3))
    with pytest.raises(LayerError, match="there is a plain weight of that name too"):
        fold_module(module)


@both_forms
def test_numbers_without_an_answer_are_refused_in_the_words_of_python(form: Form) -> None:
    model: Any = nn.Sequential(norm(nn.Linear(3, 4), form), norm(nn.Linear(4, 4), form))
    with torch.no_grad():
        g_and_v(model[0])[1][1] = 0
        g_and_v(model[1])[0][2] = torch.nan
    before = portrait(model)
    for verb in (fold_module, folded, lambda it: weights_folded(it).__enter__()):
        with pytest.raises(NumbersError) as caught:
            verb(model)
        assert "layer 0.weight: v is zero in row 1" in str(caught.value)
        assert "layer 1.weight: NaN or infinity" in str(caught.value)
        assert (
            caught.value.fix == 'zero_rows="zero", or allow_nonfinite=True; exclude=… leaves a layer as it is'
        )
        assert portrait(model) == before
    fold_module(model, zero_rows="zero", allow_nonfinite=True)
    assert model[0].weight[1].tolist() == [0, 0, 0]
    assert model[1].weight[2].isnan().all()


@both_forms
def test_a_weight_too_large_for_its_dtype_is_refused(form: Form) -> None:
    module = norm(nn.Linear(3, 4), form)
    g, v = g_and_v(module)
    g.data.fill_(70000)
    v.data = v.data.half()
    v.data[:] = torch.tensor([1, 0, 0])
    before = portrait(module)
    with pytest.raises(NumbersError, match="too large for the dtype") as caught:
        fold_module(module)
    assert caught.value.fix == "module.float() before; exclude=… leaves a layer as it is"
    assert portrait(module) == before
    fold_module(module, allow_nonfinite=True)
    assert module.weight[0].tolist() == [torch.inf, 0, 0]


@pytest.mark.parametrize("what", [{}, [], "model.pt", None, nn.Parameter(torch.ones(2)), nn.Linear])
def test_what_is_no_module_is_an_argument_error(what: Any) -> None:
    for verb in (
        fold_module,
        folded,
        inspect_module,
        lambda it: migrate_module(it, to="legacy"),
        lambda it: split_module(it, layers="*", dim=0),
        lambda it: split_module(nn.Linear(1, 1), like=cast(Any, [] if it is None else it)),
        lambda it: weights_folded(it).__enter__(),
    ):
        with pytest.raises(ArgumentError, match="is not a module") as caught:
            verb(what)
        assert "nn.Module" in caught.value.fix


def test_a_glob_that_matches_nothing_and_options_that_are_not_offered_are_argument_errors() -> None:
    model = cnn("legacy")
    before = portrait(model)
    with pytest.raises(ArgumentError, match="matches no layer") as caught:
        fold_module(model, layers="dec.*")
    assert "0.weight, 3.weight, 5.weight" in caught.value.fix
    with pytest.raises(ArgumentError, match="zero_rows"):
        fold_module(model, zero_rows=cast(Any, "drop"))
    for to in ("new", "", None):
        with pytest.raises(ArgumentError, match="there is no form"):
            migrate_module(model, to=cast(Any, to))
    assert portrait(model) == before
    assert fold_module(nn.Linear(3, 2), layers="dec.*") == (), "nothing to choose from"


@both_forms
def test_only_chosen_layers_are_folded(form: Form) -> None:
    model, x = model_of("cnn", form).eval(), input_of("cnn")
    expected = model(x)
    assert [layer.name for layer in fold_module(model, layers=["0.*", "5.*"], exclude="5.*")] == ["0.weight"]
    assert set(halves(model.state_dict())) == {"3.weight", "5.weight"}
    torch.testing.assert_close(model(x), expected)


def test_an_edit_that_fails_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(model_of("lstm", "legacy"), model_of("cnn", "parametrize"))
    before = portrait(model)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wnconvert.verbs.modules.convert.refresh_flat_weights", fail)
    verbs: list[Callable[[], object]] = [
        lambda: fold_module(model),
        lambda: migrate_module(model, to="legacy"),
        lambda: migrate_module(model, to="parametrize"),
    ]
    for verb in verbs:
        with pytest.raises(KeyboardInterrupt):
            verb()
        assert portrait(model) == before


def test_lazy_modules_beside_layers_are_left_alone() -> None:
    model = nn.Sequential(norm(nn.Linear(3, 4)), nn.LazyLinear(2))
    assert [layer.name for layer in inspect_module(model).layers] == ["0.weight"]
    assert len(fold_module(model)) == 1
    assert model(torch.ones(1, 3)).shape == (1, 2)


def test_a_module_that_holds_its_owner_is_walked_once() -> None:
    child: Any = norm(nn.Linear(3, 2))
    owner = nn.Sequential(child)
    child._modules["owner"] = owner
    assert [layer.name for layer in fold_module(owner)] == ["0.weight"]


def test_cached_parametrizations_do_not_outlive_the_layer() -> None:
    module: Any = trained(norm(nn.Linear(3, 2)))
    x = torch.ones(1, 3)
    with parametrize.cached():
        before = module(x)
        fold_module(module)
        torch.testing.assert_close(module(x), before)
        module.weight.data.zero_()
        split_module(module, layers="weight", dim=0)
        assert torch.equal(module(x)[0], module.bias)


@both_forms
def test_a_transform_of_torch_func_has_no_numbers_to_fold(form: Form) -> None:
    module = norm(nn.Linear(3, 4), form)
    before = portrait(module)

    def loss(x: Tensor) -> Tensor:
        with weights_folded(module):
            y: Tensor = module(x).sum()
        return y

    with pytest.raises(LayerError, match="numbers cannot be read"):
        torch.func.grad(loss)(torch.ones(3))
    assert portrait(module) == before


@both_forms
def test_a_tensor_whose_numbers_cannot_be_had_is_refused(form: Form) -> None:
    class Secret(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is Tensor.numpy:
                raise TypeError("it is a secret")
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]

    module = norm(nn.Linear(3, 4), form)
    home, name = (module, "weight_v") if form == "legacy" else (module.parametrizations.weight, "original1")
    home._parameters[name] = nn.Parameter(torch.ones(4, 3).as_subclass(Secret))
    with pytest.raises(LayerError, match="is a Secret whose numbers cannot be read: it is a secret"):
        fold_module(module)


@both_forms
def test_fake_tensors_are_refused_and_inspection_says_so(form: Form) -> None:
    with FakeTensorMode():
        module = norm(nn.Linear(3, 4), form)
    with pytest.raises(LayerError, match="is a FakeTensor, which is not a plain tensor"):
        fold_module(module)
    (note,) = inspect_module(module).notes
    assert note.startswith("weight is refused: ")
    assert "FakeTensor" in note


def test_a_traced_graph_that_goes_on_computing_a_weight_is_refused() -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = norm(nn.Linear(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.layer.weight)

    graph = torch.fx.symbolic_trace(Direct())
    with pytest.raises(LayerError, match=r"layer layer\.weight: Module is not the class that torch made"):
        fold_module(graph)
    assert any(note.startswith("layer.weight is refused") for note in inspect_module(graph).notes)
    assert fold_module(graph, exclude="layer.*") == ()


@pytest.mark.parametrize("wrong", [None, 5, [1], b"weight", ["weight", None]])
def test_globs_that_are_no_texts_are_argument_errors(wrong: Any) -> None:
    module = norm(nn.Linear(3, 2))
    for arguments in ({"layers": wrong}, {"exclude": wrong}):
        with pytest.raises(ArgumentError, match="is not a list of strings"):
            fold_module(module, **arguments)


def test_a_module_that_was_never_initialized_is_an_argument_error() -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            pass

    for module in (Forgetful(), nn.Sequential(Forgetful())):
        with pytest.raises(ArgumentError, match="never initialized") as caught:
            fold_module(module)
        assert "super().__init__() in Forgetful" in caught.value.fix
