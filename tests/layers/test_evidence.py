"""Pairs that have the names of a layer and are none, and layers that look as poor and are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from tests.helpers.infos import Shape, infos, new_pair, pair
from tests.helpers.live_models import infos_of, legacy, new
from tests.layers.test_schemes import NOTHING, seen
from wnconvert.layers.evidence import EMPTY, notes_on_passed
from wnconvert.layers.find import FoundPairs, find_pairs
from wnconvert.layers.schemes import Selection

Tensors = list[tuple[str, Shape]]
Names = tuple[str, str]
Halves = Callable[[str], list[tuple[str, Shape, str]]]


def vectors(*names: str) -> Tensors:
    return [(name, (4,)) for name in names]


#: State dicts in which two names end as those of g and v do, by what they are.
DECOYS: dict[str, Tensors] = {
    "one bias a gate": vectors("b_i", "b_f", "b_o", "b_g", "b_v"),
    "one matrix a gate": [(f"W_{gate}", (4, 4)) for gate in "ifgov"],
    "attention with a gate": [*((f"W_{name}", (8, 8)) for name in "qkv"), ("W_g", (8, 1))],
    "attention in a module": [*((f"a.0.W_{name}", (8, 8)) for name in "qkv"), ("a.0.W_g", (8, 1))],
    "two numbers": [("k_g", ()), ("k_v", ())],
    "two numbers in vectors": [("k_g", (1,)), ("k_v", (1,))],
    "graph nets": vectors("bias_e", "bias_v", "bias_g"),
    "fusion": vectors("alpha_l", "alpha_a", "alpha_v", "alpha_g"),
    "an update gate": vectors("b_u", "b_g", "b_v"),
    "a number and a vector": [("alpha_g", (1,)), ("alpha_v", (64,))],
    "columns": [("scale_g", (4, 1)), ("scale_v", (4, 1))],
    "two matrices of one size": [("W_g", (8, 8)), ("W_v", (8, 8))],
    "gates of a cell from scratch": [
        (f"cell.weight_{gate}", (4, 1 if gate == "g" else 4)) for gate in "ifgov"
    ],
    "a bias of one norm whose weight is plain": [
        ("fc.weight", (4, 3)),
        ("fc.bias_g", ()),
        ("fc.bias_v", (4,)),
    ],
    "a bias whose weight is plain": [("fc.weight", (4, 3)), *vectors("fc.bias_g", "fc.bias_v")],
    "a parametrized scale": new_pair("mix.alpha", (4,)),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("tensors", DECOYS.values(), ids=DECOYS)
def test_two_ends_of_a_name_are_not_a_layer(tensors: Tensors) -> None:
    found = find_pairs(infos(*tensors))
    assert seen(found) == NOTHING
    (passed,) = found.passed
    assert {passed.g, passed.v} <= {name for name, *_ in tensors}
    (note,) = notes_on_passed(found.passed)
    assert note.startswith(f"{passed.g} and {passed.v} are not taken for weight norm: ")
    assert note.endswith(f"; --layers '{passed.name}' takes them")


@pytest.mark.parametrize(
    "key", [key for key in DECOYS if "matrices" not in key and key != "one matrix a gate"]
)
def test_a_pair_that_is_named_in_full_is_a_layer(key: str) -> None:
    (passed,) = find_pairs(infos(*DECOYS[key])).passed
    found = find_pairs(infos(*DECOYS[key]), Selection(layers=(passed.name,)))
    assert seen(found)[:2] == ([passed.name], [])
    assert found.passed == ()


def test_a_wildcard_names_nothing_and_an_excluded_pair_is_not_spoken_of() -> None:
    gates = infos(*DECOYS["one bias a gate"])
    assert seen(find_pairs(gates, Selection(layers=("*",)))) == NOTHING
    assert find_pairs(gates, Selection(layers=("*",))).passed
    for selection in (Selection(exclude=("b",)), Selection(layers=("dec.*",))):
        found = find_pairs(gates, selection)
        assert (seen(found), found.passed) == (([], [], ["b"], []), ())


def test_a_name_with_the_signs_of_a_glob_is_named_as_it_is_and_escaped() -> None:
    tensors = infos(("k[0]_g", ()), ("k[0]_v", ()))
    for glob in ("k[0]", "k[[]0]"):
        assert find_pairs(tensors, Selection(named=(glob,))).layers[0].name == "k[0]"


def test_a_shape_that_does_not_fit_is_refused_where_the_user_names_the_pair() -> None:
    found = find_pairs(infos(*DECOYS["two matrices of one size"]), Selection(layers=("W",)))
    assert seen(found)[:2] == ([], ["W"])


#: What must go on being a layer.
LAYERS: dict[str, tuple[Tensors, str]] = {
    "conv": (pair("c.weight"), "c.weight"),  # type: ignore[dict-item]
    "linear with one input": ([("c.weight_g", (8, 1)), ("c.weight_v", (8, 1))], "c.weight"),
    "one row": ([("c.weight_g", (1, 1)), ("c.weight_v", (1, 8))], "c.weight"),
    "dim=None": ([("c.weight_g", ()), ("c.weight_v", (8, 3))], "c.weight"),
    "one number, whole": ([("c.weight_g", ()), ("c.weight_v", ())], "c.weight"),
    "a 1-D weight of one norm": ([("c.weight_g", ()), ("c.weight_v", (8,))], "c.weight"),
    "a 1-D weight": (vectors("c.weight_g", "c.weight_v"), "c.weight"),
    "in_proj_weight": ([("in_proj_weight_g", (24, 1)), ("in_proj_weight_v", (24, 8))], "in_proj_weight"),
    "another name": ([("a.kernel_g", (8, 1)), ("a.kernel_v", (8, 4))], "a.kernel"),
    "a family elsewhere": (
        [("a.W_g", (8, 1)), ("a.W_v", (8, 4)), ("b.W_q", (8, 4)), ("W_k", (8, 4))],
        "a.W",
    ),
    "longer ends beside it": (
        [("W_g", (8, 1)), ("W_v", (8, 4)), ("W_out", (8, 4)), ("W_2", (4,)), ("W", ())][:4],
        "W",
    ),
    "another stem with one letter": (
        [("weight_g", (8, 1)), ("weight_v", (8, 4)), ("bias_k", (1, 1, 8))],
        "weight",
    ),
    "a parametrized one of a family": (
        [*new_pair("W", (8, 4)), ("W_q", (8, 4)), ("W_k", (8, 4))],  # type: ignore[list-item]
        "W",
    ),
}


@pytest.mark.parametrize(("tensors", "name"), LAYERS.values(), ids=LAYERS)
def test_a_layer_that_looks_poor_goes_on_being_one(tensors: Tensors, name: str) -> None:
    found = find_pairs(infos(*tensors))
    assert seen(found) == ([name], [], [], [])
    assert found.passed == ()


@pytest.mark.parametrize("norm", [legacy, new])
def test_a_bias_beside_a_normalized_weight_is_a_layer(norm: type) -> None:
    module = norm(norm(nn.Linear(3, 4)), "bias")
    assert sorted(seen(find_pairs(infos_of(module)))[0]) == ["bias", "weight"]


def test_a_bias_beside_the_other_form_of_a_weight_or_an_unwanted_one_is_a_layer() -> None:
    bias = vectors("c.bias_g", "c.bias_v")
    for weight in (pair("c.weight"), new_pair("c.weight")):
        assert "c.bias" in seen(find_pairs(infos(*weight, *bias)))[0]
        assert seen(find_pairs(infos(*weight, *bias), Selection(exclude=("*.weight",))))[0] == ["c.bias"]


def test_all_of_a_bidirectional_lstm_with_projections_are_layers() -> None:
    module: nn.Module = nn.LSTM(1, 4, num_layers=2, bidirectional=True, proj_size=1)
    names = list(module._parameters)
    for name in names:
        module = legacy(module, name, 0)
    found = find_pairs(infos_of(module))
    assert sorted(seen(found)[0]) == sorted(names)
    assert any("_hr_" in name for name in names)
    assert found.passed == ()


def test_spectral_norm_on_a_weight_of_torchs_name_is_refused_as_before() -> None:
    found = find_pairs(infos(*pair("c.weight"), ("c.weight_u", (8,))))
    assert seen(found)[:2] == ([], ["c.weight"])
    assert "stacked on weight norm" in found.refused[0].reason


def test_a_magnitude_of_a_family_is_not_half_a_layer() -> None:
    assert seen(find_pairs(infos(("W_g", (8, 1)), ("W_q", (8, 8)), ("W_k", (8, 8))))) == NOTHING
    assert seen(find_pairs(infos(("W_g", (8, 1)))))[3] == ["W_g"]


def notes(found: FoundPairs) -> list[str]:
    return list(notes_on_passed(found.passed))


def test_of_very_many_pairs_alike_three_are_named() -> None:
    gates = [(f"cell.{at}.{name}", (4,)) for at in range(40) for name in ("b_i", "b_g", "b_v")]
    said = notes(find_pairs(infos(*gates, ("k_g", ()), ("k_v", ()))))
    assert len(said) == 5
    assert said[3] == "37 more pairs like cell.0.b_g and cell.0.b_v not taken either"
    assert said[4].startswith("k_g and k_v ")


# -- without elements


@pytest.mark.parametrize(
    ("g", "v"), [((0,), (0,)), ((0, 1, 1), (0, 4, 3)), ((8, 1), (0,)), ((0,), (8, 4)), ((8, 1), (8, 0))]
)
@pytest.mark.parametrize("form", [pair, new_pair])
def test_a_layer_without_elements_is_refused_by_name(form: Halves, g: Shape, v: Shape) -> None:
    of_g, of_v = (name for name, *_ in form("c.weight"))
    found = find_pairs(infos((of_g, g), (of_v, v), *pair("d.weight")))
    assert seen(found)[:2] == (["d.weight"], ["c.weight"])
    (refused,) = found.refused
    assert refused.reason == EMPTY
    assert refused.fix.startswith("gather it first (zero_to_fp32.py, FULL_STATE_DICT); --exclude 'c.weight'")


def test_an_empty_tensor_beside_a_layer_refuses_nothing() -> None:
    assert seen(find_pairs(infos(*pair("c.weight"), ("c.buffer", (0,))))) == (["c.weight"], [], [], [])


# -- PhysicsNeMo's linear layers


LINEAR: Tensors = [("fc.weight", (8, 3)), ("fc.weight_g", (8, 1)), ("fc.bias", (8,))]


@pytest.mark.parametrize(
    "tensors",
    [
        LINEAR,
        LINEAR[:2],
        [("fc.weight", (8, 1)), ("fc.weight_g", (8, 1)), ("fc.bias", (8,))],
        [("fc.weight", (1, 8)), ("fc.weight_g", (1, 1)), ("fc.bias", (1,))],
    ],
    ids=["bias", "no bias", "one input", "one output"],
)
def test_a_weight_beside_its_magnitude_is_v(tensors: Tensors) -> None:
    found = find_pairs(infos(*tensors, ("last.weight", (1, 8)), ("last.bias", (1,))))
    assert seen(found) == (["fc.weight"], [], [], [])
    (layer,) = found.layers
    assert (layer.form, layer.dim, layer.g.name, layer.v.name) == (
        "physicsnemo",
        0,
        "fc.weight_g",
        "fc.weight",
    )


NOT_LINEAR: dict[str, Tensors] = {
    "a vector": [("fc.weight", (8, 3)), ("fc.weight_g", (8,))],
    "a matrix": [("fc.weight", (8, 3)), ("fc.weight_g", (8, 3))],
    "of another length": [("fc.weight", (8, 3)), ("fc.weight_g", (3, 1))],
    "a norm": [("n.weight", (8,)), ("n.weight_g", (8, 1))],
    "a half of another module": [("fc.weight", (8, 3)), ("weight_g", (8, 1))],
    "another name": [("fc.kernel", (8, 3)), ("fc.kernel_g", (8, 1))],
    "WeightFactLinear, which has no norm": [("fc.g", (8, 1)), ("fc.v", (8, 3)), ("fc.bias", (8,))],
    "integers": [("fc.weight", (8, 3), "int8"), ("fc.weight_g", (8, 1), "int8")],  # type: ignore[list-item]
}


@pytest.mark.parametrize("tensors", NOT_LINEAR.values(), ids=NOT_LINEAR)
def test_what_only_looks_like_its_magnitude_makes_no_v_of_a_weight(tensors: Tensors) -> None:
    found = find_pairs(infos(*tensors))
    assert seen(found)[:3] == NOTHING[:3]
    assert found.passed == ()


UNSURE: dict[str, Tensors] = {
    "a convolution": [("c.weight", (8, 4, 3)), ("c.weight_g", (8, 1, 1))],
    "more in the module": [*LINEAR, ("fc.weight_scale", (8, 1))],
    "a bias of another length": [*LINEAR[:2], ("fc.bias", (3,))],
    "gates": [*LINEAR[:2], ("fc.weight_i", (8, 1)), ("fc.weight_f", (8, 1))],
}


@pytest.mark.parametrize("tensors", UNSURE.values(), ids=UNSURE)
def test_a_weight_beside_what_may_be_its_magnitude_is_v_only_where_the_user_says_so(tensors: Tensors) -> None:
    name = tensors[0][0]
    found = find_pairs(infos(*tensors))
    assert seen(found) == NOTHING
    (note,) = notes(found)
    assert note.endswith(f"{name} may be v, or the weight itself; --layers '{name}' takes them")
    assert seen(find_pairs(infos(*tensors), Selection(layers=(name,))))[0] == [name]


def test_a_weight_beside_both_halves_is_one_too_many_as_before() -> None:
    found = find_pairs(infos(*pair("fc.weight", (8, 3)), ("fc.weight", (8, 3))))
    assert seen(found)[:2] == ([], ["fc.weight"])
    assert "the plain weight of that name" in found.refused[0].reason


def typed(names: Names, g: str, v: str, shapes: tuple[Shape, Shape] = ((8, 1, 1), (8, 4, 3))) -> FoundPairs:
    return find_pairs(infos(*zip(names, shapes, (g, v), strict=True)))


TORCHS = (
    ("a.weight_g", "a.weight_v"),
    ("a.parametrizations.weight.original0", "a.parametrizations.weight.original1"),
)


@pytest.mark.parametrize("names", TORCHS, ids=["legacy", "parametrize"])
@pytest.mark.parametrize(("g", "v"), [("int8", "float32"), ("float32", "bool"), ("int64", "int64")])
def test_a_pair_of_integers_is_left_alone_with_a_note(names: Names, g: str, v: str) -> None:
    found = typed(names, g, v)
    assert (found.layers, found.refused, found.halves) == ((), (), ())
    (note,) = notes_on_passed(found.passed)
    which, dtype = (names[0], g) if g != "float32" else (names[1], v)
    assert note == f"{names[0]} and {names[1]} are not taken for weight norm: {which} is {dtype}, not a float"


@pytest.mark.parametrize(
    ("names", "shapes"),
    [
        (("emb_g", "emb_v"), ((3,), (5,))),
        (("a.weight_g", "a.weight_v"), ((7, 1, 1), (8, 4, 3))),
        (("b_g", "b_v"), ((8,), (8,))),
        (("fc.weight_g", "fc.weight"), ((8, 1), (8, 3))),
    ],
    ids=["two lengths", "no magnitude", "biases", "a plain weight"],
)
def test_integers_of_such_names_that_could_be_no_layer_are_nobodys(
    names: Names, shapes: tuple[Shape, Shape]
) -> None:
    assert typed(names, "int64", "int64", shapes).passed == ()


def test_a_pair_of_integers_that_is_not_asked_for_is_not_told() -> None:
    pair_of_integers = infos(*pair("a.weight", dtype="int8"))
    assert find_pairs(pair_of_integers).passed
    assert find_pairs(pair_of_integers, Selection(exclude=("a.*",))).passed == ()
