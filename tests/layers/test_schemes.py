"""Which tensors are the halves of a layer, and which only look like it."""

from __future__ import annotations

import pytest

from tests.helpers.infos import Shape, infos, new_pair, pair
from wnconvert.layers.dims import AUTO
from wnconvert.layers.find import FoundPairs, find_pairs
from wnconvert.layers.schemes import Selection

Tensors = list[tuple[str, Shape, str]]


def seen(found: FoundPairs) -> tuple[list[str], list[str], list[str], list[str]]:
    """Names of layers, refused, unwanted, halves."""
    return (
        [layer.name for layer in found.layers],
        [item.name for item in found.refused],
        list(found.unwanted),
        list(found.halves),
    )


NOTHING: tuple[list[str], list[str], list[str], list[str]] = ([], [], [], [])


# -- the pair rule


@pytest.mark.parametrize(
    ("tensors", "form"), [(pair("dec.0.weight"), "legacy"), (new_pair("dec.0.weight"), "parametrize")]
)
def test_both_halves_are_a_layer_named_by_its_weight(tensors: Tensors, form: str) -> None:
    found = find_pairs(infos(*tensors))
    (layer,) = found.layers
    assert (layer.name, layer.form, layer.dim, layer.rows) == ("dec.0.weight", form, 0, 8)
    assert (layer.g.name, layer.v.name) == (tensors[0][0], tensors[1][0])
    assert seen(found) == (["dec.0.weight"], [], [], [])


@pytest.mark.parametrize("tensors", [pair("weight"), new_pair("weight")])
def test_a_layer_may_stand_at_the_root(tensors: Tensors) -> None:
    assert [layer.name for layer in find_pairs(infos(*tensors)).layers] == ["weight"]


@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_ih_l0_reverse", "in_proj_weight", "bias", "gain"])
def test_any_parameter_name_counts(name: str) -> None:
    for tensors in (pair(f"a.{name}", (8, 4)), new_pair(f"a.{name}", (8, 4))):
        assert [layer.name for layer in find_pairs(infos(*tensors)).layers] == [f"a.{name}"]


def test_a_prefix_is_part_of_the_name() -> None:
    for prefix in ("module.", "_orig_mod.", "generator.", "model.module."):
        assert [layer.name for layer in find_pairs(infos(*pair(f"{prefix}weight"))).layers] == [
            f"{prefix}weight"
        ]


def test_layers_come_in_the_order_of_the_first_half_of_each_pair() -> None:
    a, b, c = pair("a.weight"), new_pair("b.weight"), pair("c.weight")
    tensors = [c[1], a[0], b[1], c[0], b[0], a[1]]
    assert seen(find_pairs(infos(*tensors)))[0] == ["c.weight", "a.weight", "b.weight"]


def test_forms_may_be_mixed_in_one_state_dict() -> None:
    found = find_pairs(infos(*pair("a.weight"), *new_pair("b.weight")))
    assert [(layer.name, layer.form) for layer in found.layers] == [
        ("a.weight", "legacy"),
        ("b.weight", "parametrize"),
    ]


# -- decoys


@pytest.mark.parametrize(
    "tensors",
    [
        [("weight_v", (8,))],
        [("weight_g", (8,))],
        [("emb_g.weight", (4, 16)), ("emb_v.weight", (4, 16))],
        [("gru.weight_ih_l0_g", (24,))],
        [("attn.bias_k", (1, 1, 8)), ("attn.bias_v", (1, 1, 8))],
        [("attn.q_g.weight", (8, 1)), ("attn.q_v.weight", (8, 8))],
        [("cond_g", (8,)), ("cond_k", (8, 8))],
        [("_g", (8, 1)), ("_v", (8, 8))],
        [("weightg", (8, 1)), ("weightv", (8, 8))],
        [("lin.lora_magnitude_vector", (8,)), ("lin.lora_A.weight", (4, 8)), ("lin.lora_B.weight", (8, 4))],
        [("lin.lora_magnitude_vector.weight", (8,)), ("lin.weight", (8, 8))],
        [("lin.dora_scale", (1, 8)), ("lin.lora_up.weight", (8, 4)), ("lin.lora_down.weight", (4, 8))],
        [("conv.weight", (8, 4, 3)), ("conv.bias", (8,)), ("conv.gain", (8, 1, 1))],
        [("bn.weight", (8,)), ("bn.running_mean", (8,)), ("bn.running_var", (8,))],
        [("a.parametrizations.weight.original", (8, 8))],
        [("counts_g", (8, 1), "int64"), ("counts_v", (8, 8), "int64")],
        [("mask_g", (8, 1), "bool"), ("mask_v", (8, 8), "float32")],
    ],
    ids=lambda tensors: tensors[0][0],
)
def test_what_only_looks_like_a_half_is_nothing(tensors: Tensors) -> None:
    assert seen(find_pairs(infos(*tensors))) == NOTHING


def test_spectral_norm_v_beside_a_layer_elsewhere_is_left_alone() -> None:
    critic = [("critic.weight_orig", (8, 4)), ("critic.weight_u", (8,)), ("critic.weight_v", (4,))]
    found = find_pairs(infos(*critic, *pair("dec.weight")))
    assert seen(found) == (["dec.weight"], [], [], [])


# -- refused


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([("c.weight_orig", (8, 4, 3), "float32")], "c.weight_orig beside it"),
        ([("c.weight_u", (8,), "float32")], "c.weight_u beside it"),
        ([("c.weight_mask", (8, 4, 3), "float32")], "c.weight_mask beside it"),
        ([("c.weight_v_mask", (8, 4, 3), "float32")], "c.weight_v_mask beside it"),
        ([("c.weight", (8, 4, 3), "float32")], "the plain weight of that name"),
    ],
)
def test_a_pair_with_something_stacked_on_it_is_refused(more: Tensors, says: str) -> None:
    found = find_pairs(infos(*pair("c.weight"), *more))
    assert seen(found)[:2] == ([], ["c.weight"])
    assert says in found.refused[0].reason
    assert "--exclude 'c.weight'" in found.refused[0].fix


@pytest.mark.parametrize(
    "name", ["d.weight_orig", "c.bias_u", "c.weight2_mask", "c.0.weight_u", "cc.weight_orig", "d.weight"]
)
def test_what_stands_beside_another_weight_refuses_nothing(name: str) -> None:
    found = find_pairs(infos(*pair("c.weight"), (name, (8, 4, 3))))
    assert seen(found) == (["c.weight"], [], [], [])


@pytest.mark.parametrize(
    "beside", ["0._u", "1._u", "1._v", "1.base", "original", "original2", "original00", "1.weight.deep"]
)
def test_a_stack_of_parametrizations_is_refused(beside: str) -> None:
    stacked = (f"c.parametrizations.weight.{beside}", (8,), "float32")
    found = find_pairs(infos(*new_pair("c.weight"), stacked))
    assert seen(found)[:2] == ([], ["c.weight"])
    assert f"{stacked[0]} beside it" in found.refused[0].reason


def test_a_parametrization_of_another_parameter_is_no_stack() -> None:
    found = find_pairs(infos(*new_pair("c.weight"), ("c.parametrizations.bias.original", (8,))))
    assert seen(found) == (["c.weight"], [], [], [])


def test_both_forms_of_one_weight_are_refused_once() -> None:
    found = find_pairs(infos(*pair("c.weight"), *new_pair("c.weight"), *pair("d.weight")))
    assert seen(found)[:2] == (["d.weight"], ["c.weight"])
    assert "twice" in found.refused[0].reason
    assert "legacy" in found.refused[0].reason
    assert "parametrize" in found.refused[0].reason


def test_a_misfit_is_refused_with_both_shapes_and_others_are_still_found() -> None:
    found = find_pairs(infos(("dec.0.weight_g", (12,)), ("dec.0.weight_v", (16, 8, 3)), *pair("post.weight")))
    assert seen(found)[:2] == (["post.weight"], ["dec.0.weight"])
    assert found.refused[0].reason == "g (12,) does not fit v (16, 8, 3)"


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "complex64"])
@pytest.mark.parametrize("half", ["g", "v"])
def test_a_float8_or_complex_layer_is_refused_by_name(dtype: str, half: str) -> None:
    g, v = pair("c.weight")
    tensors = [(name, shape, dtype if name.endswith(half) else old) for name, shape, old in (g, v)]
    found = find_pairs(infos(*tensors))
    assert seen(found)[:2] == ([], ["c.weight"])
    assert f"c.weight_{half} is {dtype}" in found.refused[0].reason


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("of_g", ["float64", "float32", "float16", "bfloat16"])
def test_halves_of_any_two_float_dtypes_are_a_layer(dtype: str, of_g: str) -> None:
    (layer,) = find_pairs(infos(("c.weight_g", (8, 1), of_g), ("c.weight_v", (8, 4), dtype))).layers
    assert (str(layer.g.dtype), str(layer.v.dtype)) == (of_g, dtype)


# -- halves


@pytest.mark.parametrize(
    "tensor",
    [
        ("c.weight_g", (8, 1, 1)),
        ("c.weight_v", (8, 4, 3)),
        ("c.parametrizations.weight.original0", (8, 1, 1)),
        ("c.parametrizations.weight.original1", (8, 4, 3)),
    ],
)
def test_a_half_whose_other_half_was_renamed_is_told(tensor: tuple[str, Shape]) -> None:
    found = find_pairs(infos(tensor, ("c.direction", (8, 4, 3)), ("c.bias", (8,))))
    assert seen(found) == ([], [], [], [tensor[0]])


def test_a_half_beside_its_plain_weight_is_nobodys_loss() -> None:
    assert seen(find_pairs(infos(("c.weight_g", (8, 1, 1)), ("c.weight", (8, 4, 3))))) == NOTHING


def test_a_half_beside_the_other_form_of_its_weight_is_told() -> None:
    found = find_pairs(infos(*new_pair("c.weight"), ("c.weight_g", (8, 1, 1))))
    assert seen(found) == (["c.weight"], [], [], ["c.weight_g"])


# -- selection


def test_a_layer_that_is_not_wanted_is_left_alone() -> None:
    every = infos(*pair("dec.pre.weight"), *pair("dec.post.weight"), *pair("enc.weight"))
    cases = [
        (Selection(layers=("dec.*",)), ["dec.pre.weight", "dec.post.weight"]),
        (Selection(layers=("dec.*", "enc.*"), exclude=("*post*",)), ["dec.pre.weight", "enc.weight"]),
        (Selection(exclude=("*",)), []),
        (Selection(layers=("dec",)), []),
        (Selection(layers=("DEC.*",)), []),
        (Selection(layers=("dec.p??.weight",)), ["dec.pre.weight"]),
    ]
    for selection, names in cases:
        found = find_pairs(every, selection)
        assert [layer.name for layer in found.layers] == names
        assert sorted([*names, *found.unwanted]) == ["dec.post.weight", "dec.pre.weight", "enc.weight"]


def test_a_refused_layer_that_is_excluded_is_only_unwanted() -> None:
    misfit = infos(("c.weight_g", (12,)), ("c.weight_v", (16, 8, 3)))
    assert seen(find_pairs(misfit, Selection(exclude=("c.*",)))) == ([], [], ["c.weight"], [])


def test_a_given_dim_holds_for_every_wanted_layer() -> None:
    flat = [("a.weight_g", (8,)), ("a.weight_v", (8, 8))]
    assert [layer.dim for layer in find_pairs(infos(*flat), Selection(dim=1)).layers] == [1]
    guessed = find_pairs(infos(*flat), Selection(dim=AUTO)).layers[0]
    assert guessed.dim == 0
    assert "--dim" in guessed.note
    found = find_pairs(infos(*pair("b.weight", (8, 4)), *flat), Selection(dim=1))
    assert seen(found)[:2] == (["a.weight"], ["b.weight"])
