"""Layers of spectral norm, prune and their stacks: what shows them, and what only looks so."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.helpers.infos import Shape, infos, pair
from tests.helpers.live_models import infos_of
from wnconvert.layers.find import FoundPairs, find_pairs, pairs_in
from wnconvert.layers.kinds.table import ALL
from wnconvert.layers.rules import Mask, Norm, Rule, Spectral, SpectralStep, Stored
from wnconvert.layers.schemes import Selection
from wnconvert.tensors.memory import tree_of

EVERY = Selection(kinds=(*ALL, "spectral-step"))
Tensors = list[tuple[str, Shape] | tuple[str, Shape, str]]


def found_in(*tensors: Any, selection: Selection = Selection(kinds=ALL)) -> FoundPairs:  # noqa: B008 - frozen
    return find_pairs(infos(*tensors), selection)


def nothing(found: FoundPairs) -> bool:
    return not (found.layers or found.refused or found.others or found.unwanted)


def pruned(module: Any, name: str = "weight") -> Any:
    return prune.l1_unstructured(module, name, 0.5)  # type: ignore[no-untyped-call]


def legacy(norm: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return norm(*arguments, **options)


def spectral(module: Any, **options: Any) -> Any:
    return legacy(nn.utils.spectral_norm, module, **options)


def weight_norm(module: Any) -> Any:
    return legacy(nn.utils.weight_norm, module)


def on_original(module: Any, name: str) -> Any:
    pruned(module.parametrizations.weight, name)
    return module


new_spectral, new_norm = parametrizations.spectral_norm, parametrizations.weight_norm

#: A module of torch's, and the rule of its weight.
MODULES: dict[str, tuple[Callable[[], Any], str, Rule]] = {
    "spectral": (lambda: spectral(nn.Conv1d(4, 8, 3)), "legacy", Rule((Spectral(0),))),
    "spectral transposed": (
        lambda: spectral(nn.ConvTranspose2d(4, 8, 3)),
        "legacy",
        Rule((Spectral(1),)),
    ),
    "spectral square": (lambda: spectral(nn.ConvTranspose2d(8, 8, 3)), "legacy", Rule((Spectral(None),))),
    "spectral of one row": (lambda: spectral(nn.Conv1d(1, 1, 3)), "legacy", Rule((Spectral(0),))),
    "spectral of dim 2": (lambda: spectral(nn.Conv1d(4, 8, 3), dim=2), "legacy", Rule((Spectral(2),))),
    "prune": (lambda: pruned(nn.Conv1d(4, 8, 3)), "legacy", Rule((Mask(),))),
    "prune in weight norm": (
        lambda: pruned(weight_norm(nn.Conv1d(4, 8, 3)), "weight_v"),
        "legacy",
        Rule((Mask(), Norm(0))),
    ),
    "prune in spectral": (
        lambda: pruned(spectral(nn.Conv1d(4, 8, 3)), "weight_orig"),
        "legacy",
        Rule((Mask(), Spectral(0))),
    ),
    "parametrize": (lambda: new_spectral(nn.Conv1d(4, 8, 3)), "parametrize", Rule((Spectral(0),))),
    "weight norm in spectral": (
        lambda: new_spectral(new_norm(nn.Conv1d(4, 8, 3))),
        "parametrize",
        Rule((Norm(0), Spectral(0))),
    ),
    "prune in parametrized spectral": (
        lambda: on_original(new_spectral(nn.Conv1d(4, 8, 3)), "original"),
        "parametrize",
        Rule((Mask(), Spectral(0))),
    ),
    "prune in parametrized weight norm": (
        lambda: on_original(new_norm(nn.Conv1d(4, 8, 3)), "original1"),
        "parametrize",
        Rule((Mask(), Norm(0))),
    ),
    "all three": (
        lambda: on_original(new_spectral(new_norm(nn.Conv1d(4, 8, 3))), "original1"),
        "parametrize",
        Rule((Mask(), Norm(0), Spectral(0))),
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_what_torch_makes_is_found_with_its_rule(name: str) -> None:
    make, form, rule = MODULES[name]
    module = make()
    found = pairs_in(tree_of(module.state_dict())[0].state_dict(""), Selection(kinds=ALL))
    assert [(layer.name, layer.form, layer.rule, layer.note) for layer in found.layers] == [
        ("weight", form, rule, "")
    ]
    (layer,) = found.layers
    assert set(layer.parts) == set(rule.roles)
    stored = module.state_dict()
    assert {part.name for part in layer.tensors} == set(stored) - {"bias"}
    assert layer.original.shape == module.weight.shape
    assert not any((found.refused, found.halves, found.passed, found.others))


@pytest.mark.parametrize("name", MODULES)
def test_nothing_of_it_is_found_unless_all_its_kinds_are_asked_for(name: str) -> None:
    make, _, rule = MODULES[name]
    tensors = infos_of(make())
    for kind in rule.kinds if len(rule.kinds) > 1 else ["weight"]:
        found = find_pairs(tensors, Selection(kinds=(kind,)))
        assert found.layers == ()
        assert [layer.rule for layer in found.others] == [rule]
        assert not any((found.halves, found.passed))
    is_pair = "weight norm in spectral" in name
    refused = find_pairs(tensors).refused
    assert [item.name for item in refused] == (["weight"] if is_pair else [])
    if is_pair:
        assert "--kinds weight,spectral takes the whole stack" in refused[0].fix


def test_in_a_container_without_metadata_a_parametrization_is_told_not_to_be_sure() -> None:
    tensors = infos_of(new_spectral(nn.Conv1d(4, 8, 3)))
    (layer,) = find_pairs(tensors, Selection(kinds=ALL)).layers
    assert "no _metadata shows" in layer.note
    (layer,) = find_pairs(infos_of(spectral(nn.Conv1d(4, 8, 3))), Selection(kinds=ALL)).layers
    assert layer.note == ""


def test_a_parametrization_without_tensors_on_spectral_norm_is_refused() -> None:
    class Positive(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.abs()

    for make in (new_spectral, lambda module: new_spectral(new_norm(module))):
        module = make(nn.Conv1d(4, 8, 3))
        parametrize.register_parametrization(module, "weight", Positive())
        state = tree_of(module.state_dict())[0].state_dict("")
        found = pairs_in(state, Selection(kinds=ALL))
        assert found.layers == ()
        (refused,) = found.refused
        assert "shows another parametrization stacked" in refused.reason
        bias = new_spectral(nn.Linear(4, 4))
        parametrize.register_parametrization(bias, "bias", Positive())
        parametrize.register_parametrization(bias, "bias", copy.deepcopy(Positive()))
        assert pairs_in(tree_of(bias.state_dict())[0].state_dict(""), Selection(kinds=ALL)).layers


# -- torch 1.0, and ports


def test_torch_1_0_stored_the_weight_itself() -> None:
    names: Tensors = [("c.weight", (8, 4)), ("c.weight_orig", (8, 4)), ("c.weight_u", (8,))]
    (layer,) = found_in(*names).layers
    assert (layer.name, layer.rule, layer.rule.kinds) == ("c.weight", Rule((Stored(),)), ("spectral",))
    assert [part.name for part in layer.tensors] == ["c.weight", "c.weight_orig", "c.weight_u"]
    assert "kept" in layer.note
    assert nothing(found_in(*names[1:]))  # without the weight, nobody knows v
    assert nothing(found_in(("c.weight", (8, 3)), *names[1:]))
    both = found_in(*names, ("c.weight_v", (4,)))
    assert "the plain weight" in both.refused[0].reason


BIGGAN: Tensors = [("c.weight", (8, 4, 3, 3)), ("c.bias", (8,)), ("c.u0", (1, 8)), ("c.sv0", (1,))]
MIMICRY: Tensors = [("c.weight", (8, 4)), ("c.sn_u", (1, 8)), ("c.sn_sigma", (1,))]


@pytest.mark.parametrize("tensors", [BIGGAN, MIMICRY], ids=["BigGAN", "mimicry"])
def test_ports_that_step_in_eval_are_found_by_their_own_kind(tensors: Tensors) -> None:
    (layer,) = found_in(*tensors, selection=EVERY).layers
    assert (layer.name, layer.rule) == ("c.weight", Rule((SpectralStep(0),)))
    assert len(layer.unread) == 1
    assert "one step" in layer.note
    found = found_in(*tensors)
    assert (found.layers, [item.rule.kinds for item in found.others]) == ((), [("spectral-step",)])


@pytest.mark.parametrize(
    "tensors",
    [
        [*BIGGAN, ("c.u1", (1, 8))],
        [*BIGGAN, ("c.running_mean", (8,))],
        [("c.weight", (8,)), ("c.u0", (1, 8)), ("c.sv0", (1,))],
        [("c.weight", (8, 4)), ("c.u0", (8,)), ("c.sv0", (1,))],
        [("c.weight", (8, 4)), ("c.u0", (1, 8))],
    ],
    ids=["two values", "statistics", "vector", "flat u", "no value"],
)
def test_what_only_looks_like_such_a_port_is_nothing(tensors: Tensors) -> None:
    assert nothing(found_in(*tensors, selection=EVERY))


@pytest.mark.parametrize(
    "tensors",
    [
        [("c.weight_bar", (8, 4)), ("c.weight_u", (8,)), ("c.weight_v", (4,))],
        [("c.weight", (8, 4)), ("c.u", (1, 8)), ("c.bias", (8,))],
    ],
    ids=["weight_bar", "u"],
)
def test_ports_that_store_what_they_iterate_are_refused_with_the_reason(tensors: Tensors) -> None:
    (refused,) = found_in(*tensors).refused
    assert "every forward has another σ" in refused.reason
    assert "--kinds spectral-step takes the σ of the first forward" in refused.fix
    (layer,) = found_in(*tensors, selection=EVERY).layers
    assert (layer.name, layer.rule) == ("c.weight", Rule((SpectralStep(0),)))
    assert "changes with every forward" in layer.note
    assert nothing(find_pairs(infos(*tensors)))
    assert nothing(found_in(*tensors, selection=Selection(kinds=("weight", "prune"))))


# -- decoys


@pytest.mark.parametrize(
    "tensors",
    [
        [("weight_u", (8,))],
        [("weight_u", (8,)), ("weight_v", (4,))],
        [("x_orig", (8, 4)), ("x_mask", (8,))],
        [("x_orig", (8, 4)), ("x_mask", (4, 8))],
        [("x_orig", (8, 4)), ("x_mask", (8, 4), "bool")],
        [("x_orig", (8, 4)), ("x_mask", (8, 4), "uint8")],
        [("x_orig", (8, 4), "int64"), ("x_mask", (8, 4), "int64")],
        [("x_mask", (8, 4))],
        [("x_orig", (8, 4))],
        [("attn.bias_u", (2, 4)), ("attn.bias_v", (2, 4))],
        [("bn.weight", (8,)), ("bn.bias", (8,)), ("bn.running_mean", (8,)), ("bn.running_var", (8,))],
        [("a.weight", (8, 4)), ("b.u", (1, 8))],
        [("a.weight", (8, 4)), ("a.u", (8,))],
        [("a.weight", (8, 8)), ("a.u", (1, 6)), ("a.bias", (8,))],
        [("c.parametrizations.weight.original", (8, 8))],
        [("c.parametrizations.weight.original", (8, 8)), ("c.parametrizations.weight.0.base", (8, 8))],
        [
            ("c.parametrizations.weight.original0_orig", (8, 1)),
            ("c.parametrizations.weight.original0_mask", (8, 1)),
        ],
    ],
    ids=lambda tensors: "+".join(item[0] for item in tensors)[:40],
)
def test_what_only_looks_like_a_kind_is_nothing(tensors: Tensors) -> None:
    assert nothing(found_in(*tensors, selection=EVERY))


@pytest.mark.parametrize(
    "module", [nn.BatchNorm1d(8), nn.GRU(8, 8), nn.MultiheadAttention(8, 2, add_bias_kv=True)]
)
def test_other_modules_of_torch_have_none(module: nn.Module) -> None:
    assert nothing(find_pairs(infos_of(module), EVERY))


def test_any_parameter_may_be_pruned() -> None:
    lstm, attention = nn.LSTM(4, 4), nn.MultiheadAttention(8, 2, add_bias_kv=True)
    for module, names in (
        (lstm, ["weight_hh_l0", "bias_ih_l0"]),
        (attention, ["in_proj_weight", "bias_k", "bias_v"]),
        (nn.Conv1d(4, 8, 3), ["bias"]),
    ):
        for name in names:
            pruned(module, name)
        found = find_pairs(infos_of(module), Selection(kinds=("prune",)))
        assert sorted(layer.name for layer in found.layers) == sorted(names)
        assert {layer.rule for layer in found.layers} == {Rule((Mask(),))}


def test_a_bias_pair_of_spectral_norm_of_an_lstm_is_found_by_its_name() -> None:
    module = spectral(nn.LSTM(4, 4), name="weight_hh_l0")
    (layer,) = find_pairs(infos_of(module), Selection(kinds=("spectral",))).layers
    assert (layer.name, layer.dim) == ("weight_hh_l0", 0)


# -- refused


SPECTRAL: Tensors = [("c.weight_orig", (8, 4, 3)), ("c.weight_u", (8,)), ("c.weight_v", (12,))]
SPECTRAL_D: Tensors = [(name.replace("c.", "d."), shape) for name, shape, *_ in SPECTRAL]


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ([*SPECTRAL, ("c.weight_mask", (8, 4, 3))], "c.weight_mask beside it"),
        ([*SPECTRAL, ("c.weight_g", (8, 1, 1))], "beside it shows another"),
        ([*SPECTRAL, ("c.weight", (8, 4, 3))], "the plain weight of that name"),
        ([*SPECTRAL[:2], ("c.weight_v", (11,))], "u (8,) and v (11,) do not fit (8, 4, 3)"),
        (
            [("c.weight_orig", (8, 4, 3), "float8_e4m3fn"), *SPECTRAL[1:]],
            "cannot be folded without its scale",
        ),
        (
            [("c.weight_orig", (8, 4, 3), "int8"), *SPECTRAL[1:]],
            "c.weight_orig is int8, which cannot be folded",
        ),
        ([*SPECTRAL[:2], ("c.weight_v", (12,), "complex64")], "c.weight_v is complex64, which cannot"),
        ([("c.weight_orig", (0,)), ("c.weight_mask", (0,))], "empty"),
        (
            [
                *SPECTRAL,
                *(
                    (f"c.parametrizations.weight.{key}", shape)
                    for key, shape in (("original", (8, 4)), ("0._u", (8,)), ("0._v", (4,)))
                ),
            ],
            "twice",
        ),
        (
            [
                ("c.parametrizations.weight.original", (8, 4)),
                ("c.parametrizations.weight.0._u", (8,)),
                ("c.parametrizations.weight.0._v", (4,)),
                ("c.parametrizations.weight.1.base", (4, 4)),
            ],
            "1.base beside it",
        ),
        (
            [
                ("c.weight_orig_orig", (8, 4)),
                ("c.weight_orig_mask", (8, 3)),
                ("c.weight_u", (8,)),
                ("c.weight_v", (4,)),
            ],
            "mask (8, 3) does not fit (8, 4)",
        ),
    ],
)
def test_what_cannot_be_told_is_refused(tensors: Tensors, says: str) -> None:
    found = found_in(*tensors)
    assert found.layers == ()
    assert [item.name for item in found.refused] == ["c.weight"]
    assert says in found.refused[0].reason
    assert found_in(*tensors, selection=Selection(kinds=ALL, exclude=("c.*",))).refused == ()


@pytest.mark.parametrize("index", ["1", "2"])
def test_spectral_norm_on_a_parametrization_without_tensors_is_refused(index: str) -> None:
    inner = "c.parametrizations.weight."
    tensors: Tensors = [
        (f"{inner}original", (8, 4)),
        (f"{inner}{index}._u", (8,)),
        (f"{inner}{index}._v", (4,)),
    ]
    found = found_in(*tensors, *SPECTRAL_D)
    assert [(item.name, item.reason) for item in found.refused] == [
        ("c.weight", f"{inner}{index}._u shows spectral norm stacked on another parametrization")
    ]
    assert [layer.name for layer in found.layers] == ["d.weight"]
    assert found_in(*tensors, selection=Selection(kinds=ALL, exclude=("c.*",))).refused == ()
    assert found_in(*tensors, selection=Selection(kinds=("weight", "prune"))).refused == ()
    decoy: Tensors = [(f"{inner}original", (8, 4)), (f"{inner}{index}.base_u", (8,)), ("c._u", (8,))]
    assert nothing(found_in(*decoy))


def test_u_and_v_that_are_too_large_to_be_read_whole_are_refused_by_their_shapes() -> None:
    def found(v: int) -> FoundPairs:
        return found_in(("e.weight_orig", (2, v)), ("e.weight_u", (2,)), ("e.weight_v", (v,)))

    (refused,) = found(4_500_000).refused
    assert "u of 2 and v of 4,500,000 elements are read whole" in refused.reason
    assert refused.fix == "--exclude 'e.weight' leaves it as it is"
    assert [layer.name for layer in found(4_000_000).layers] == ["e.weight"]
    masked = found_in(("e.weight_orig", (2, 4_500_000)), ("e.weight_mask", (2, 4_500_000)))
    assert [layer.name for layer in masked.layers] == ["e.weight"]


def test_a_pruned_g_is_refused_beside_its_v() -> None:
    module = pruned(weight_norm(nn.Conv1d(4, 8, 3)), "weight_g")
    both = pruned(pruned(weight_norm(nn.Conv1d(4, 8, 3)), "weight_g"), "weight_v")
    for stack in (module, both):
        (refused,) = find_pairs(infos_of(stack), Selection(kinds=ALL)).refused
        assert (refused.name, refused.reason) == ("weight_g", "weight norm and prune of its g are stacked")
        assert "--kinds prune first" in refused.fix
        first = find_pairs(infos_of(stack), Selection(kinds=("prune",)))
        assert "weight_g" in [layer.name for layer in first.layers]
    g: Tensors = [("c.w_g_orig", (8, 8)), ("c.w_g_mask", (8, 8))]
    for v in ([], [("c.w_v", (8, 8))], [("c.w_v", (8,))], [("d.w_v", (8, 8))]):
        assert [layer.name for layer in found_in(*g, *v).layers] == ["c.w_g"]


def test_a_given_dim_decides_and_must_fit() -> None:
    square: Tensors = [("c.weight_orig", (8, 8, 3)), ("c.weight_u", (8,)), ("c.weight_v", (24,))]
    for dim in (0, 1):
        (layer,) = found_in(*square, selection=Selection(kinds=ALL, dim=dim)).layers
        assert layer.rule == Rule((Spectral(dim),))
    (refused,) = found_in(*SPECTRAL, selection=Selection(kinds=ALL, dim=1)).refused
    assert "along --dim 1" in refused.reason


def test_layers_of_weight_norm_are_others_where_they_are_not_asked_for() -> None:
    found = found_in(*pair("d.weight"), *SPECTRAL, selection=Selection(kinds=("spectral",)))
    assert [layer.name for layer in found.layers] == ["c.weight"]
    assert [layer.name for layer in found.others] == ["d.weight"]
    found = found_in(*pair("d.weight"), *SPECTRAL)
    assert sorted(layer.name for layer in found.layers) == ["c.weight", "d.weight"]
    found = find_pairs(infos(*pair("d.weight"), *SPECTRAL))
    assert ([layer.name for layer in found.layers], [layer.name for layer in found.others]) == (
        ["d.weight"],
        ["c.weight"],
    )
