"""What is asked for in place of a recipe, made into one for a state dict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.infos import state_at
from wnconvert.layers.find import pairs_in
from wnconvert.layers.recipes import RecipeFold
from wnconvert.layers.schemes import Selection
from wnconvert.layers.telling.asked import Asked, ByNames, SaidNorms, SaidPair, SaidStandardize
from wnconvert.layers.telling.resolved import resolved
from wnconvert.tensors.tree import StateDict

Shape = tuple[int, ...]


def normed(shape: Shape, channels: int = 8) -> StateDict:
    """A layer and a norm behind it."""
    ends = ("weight", "bias", "running_mean", "running_var")
    norm: list[tuple[str, Shape]] = [(f"bn.{end}", (channels,)) for end in ends]
    return state_at("", ("conv.weight", shape), *norm)


def said(*pairs: SaidPair) -> SaidNorms:
    return SaidNorms(pairs, 1e-5)


def ops_of(state: StateDict, pair: SaidPair) -> list[str]:
    return [fold.op for fold in resolved(state, said(pair)).recipe.folds]


@pytest.mark.parametrize(
    ("shape", "op"),
    [
        ((8, 3, 3, 3), "conv"),
        ((8, 1, 3), "conv"),
        ((8, 5), "linear"),
        ((8, 8), "linear"),
        ((3, 8, 4, 4), "conv_transpose"),
    ],
)
def test_a_shape_tells_the_kind_of_a_layer_where_one_axis_fits(shape: Shape, op: str) -> None:
    assert ops_of(normed(shape), SaidPair("bn", "conv")) == [op]


@pytest.mark.parametrize("shape", [(8, 8, 3, 3), (8, 8, 4)])
def test_where_both_axes_fit_the_user_must_say_which(shape: Shape) -> None:
    found = resolved(normed(shape), said(SaidPair("bn", "conv")))
    assert not found.recipe.folds
    ((weight, reason, fix),) = found.doubtful
    assert weight == "conv.weight"
    assert "both axes fit bn" in reason
    assert fix == "--norm 'bn=conv:conv', or --norm 'bn=conv:conv_transpose'"
    assert ops_of(normed(shape), SaidPair("bn", "conv", "conv_transpose")) == ["conv_transpose"]


def test_groups_and_eps_go_into_the_fold() -> None:
    (fold,) = resolved(normed((8, 4, 3)), said(SaidPair("bn", "conv", "conv_transpose", 2))).recipe.folds
    assert fold == RecipeFold("norm behind", "conv.weight", "bn", "conv_transpose", 2, 1e-5)


def test_what_is_not_there_is_named_all_the_same() -> None:
    found = pairs_in(normed((8, 3, 3)), Selection(asked=said(SaidPair("bn", "other"))))
    assert found.misfit == "it does not have other.weight"
    assert not found.is_foreign
    assert pairs_in(state_at("", ("w", (2, 2))), Selection(asked=said(SaidPair("bn", "conv")))).is_foreign


def test_a_weight_in_doubt_is_refused_unless_it_is_left_out() -> None:
    selection = Selection(asked=said(SaidPair("bn", "conv")))
    state = normed((8, 8, 3))
    assert [item.name for item in pairs_in(state, selection).refused] == ["conv.weight"]
    assert not pairs_in(state, replace(selection, exclude=("conv.*",))).refused


def test_a_switchable_norm_is_refused_although_it_has_running_statistics() -> None:
    switchable = [("bn.weight", (1, 8, 1, 1)), ("bn.running_mean", (1, 8, 1)), ("bn.running_var", (1, 8, 1))]
    more = ("bn.mean_weight", (3,))
    for tensors, words in (([*switchable, more], "its mean_weight shows"), (switchable, "sizes that differ")):
        state = state_at("", ("conv.weight", (8, 3, 3)), *tensors)
        (item,) = pairs_in(state, Selection(asked=said(SaidPair("bn", "conv", "conv")))).refused
        assert words in item.reason


STANDARDIZED = state_at(
    "",
    ("a.weight", (4, 3, 2)),
    ("a.gain", (4, 1, 1)),
    ("b.parametrizations.weight.original0", (4, 1)),
    ("b.parametrizations.weight.original1", (4, 7)),
    ("c.weight", (4,)),
    ("d.bias", (4, 2)),
)


def test_globs_mean_the_weights_of_layers_however_these_are_spelled() -> None:
    asked = SaidStandardize(("*",), "biased", "var", 1e-6)
    folds = resolved(STANDARDIZED, asked).recipe.folds
    assert [(fold.kind, fold.weight, fold.eps) for fold in folds] == [
        ("standardize", "a.weight", 1e-6),
        ("standardize", "b.weight", 1e-6),
    ]


def test_a_scale_over_fan_is_that_of_each_weight_as_its_class_computes_it() -> None:
    asked = SaidStandardize(("*.weight",), "biased", "var", 1e-6, scale=1.7139588594436646, over_fan=True)
    scales = [fold.scale for fold in resolved(STANDARDIZED, asked).recipe.folds]
    assert scales == [1.7139588594436646 * 6**-0.5, 1.7139588594436646 * 7**-0.5]
    plain = replace(asked, over_fan=False)
    assert {fold.scale for fold in resolved(STANDARDIZED, plain).recipe.folds} == {1.7139588594436646}


def test_what_is_said_of_a_formula_goes_into_each_fold() -> None:
    asked = SaidStandardize(("a.*",), "unbiased", "std", 1e-5, gain="gain")
    (fold,) = resolved(STANDARDIZED, asked).recipe.folds
    assert (fold.std, fold.eps_at, fold.gain) == ("unbiased", "std", "gain")


def test_a_glob_that_means_nothing_is_no_recipe_of_the_state_dict() -> None:
    asked = SaidStandardize(("x.*",), "biased", "var", 1e-6)
    assert pairs_in(STANDARDIZED, Selection(asked=asked)).misfit == "it does not have x.*"


@pytest.mark.parametrize(
    ("asked", "grade"), [(ByNames(1e-5), "names"), (said(SaidPair("bn", "conv")), "said")]
)
def test_the_evidence_is_names_or_what_the_user_said(asked: Asked, grade: str) -> None:
    counted = state_at(
        "",
        *((name, tensor.info.shape) for name, tensor in normed((8, 3)).tensors.items()),
        ("bn.num_batches_tracked", ()),
    )
    state = replace(counted, modules=("", "conv", "bn"))
    (layer,) = pairs_in(state, Selection(asked=asked)).layers
    assert (layer.grade, layer.norm) == (grade, "bn")
