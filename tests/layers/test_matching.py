"""A recipe on the names and shapes of a state dict: the layers that it tells, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.infos import infos, new_pair, pair
from wnconvert.layers.find import FoundPairs, find_pairs
from wnconvert.layers.recipes import NORM_TENSORS, Recipe, RecipeFold, named_tensors, names_digest
from wnconvert.layers.rules import AffineBefore, Equalized, Norm, NormBefore, NormBehind, Standardize
from wnconvert.layers.schemes import Layer, Selection
from wnconvert.tensors.tree import Shape


def norm(name: str, channels: int, *parts: str) -> list[tuple[str, Shape]]:
    """The tensors of a batch norm, or some of them."""
    of_norm: list[tuple[str, Shape]] = [(f"{name}.{part}", (channels,)) for part in parts or NORM_TENSORS]
    return of_norm if parts else [*of_norm, (f"{name}.num_batches_tracked", ())]


def behind(weight: str = "conv.weight", norm: str = "bn", **said: object) -> RecipeFold:
    return RecipeFold("norm behind", weight, norm, **{"eps": 1e-5, **said})  # type: ignore[arg-type]


def affine(weight: str, norm: str = "ln") -> RecipeFold:
    return RecipeFold("affine before", weight, norm, "linear")


def found(
    tensors: list[tuple[str, Shape]],
    *folds: RecipeFold,
    made_by: str = "said",
    names: str = "",
    selection: Selection = Selection(),  # noqa: B008 - frozen
) -> FoundPairs:
    recipe = Recipe(folds, made_by, names=names)
    return find_pairs(infos(*tensors), replace(selection, recipe=recipe))


def only(tensors: list[tuple[str, Shape]], *folds: RecipeFold) -> Layer:
    result = found(tensors, *folds)
    assert (result.refused, result.misfit) == ((), "")
    (layer,) = result.layers
    return layer


def reason(
    tensors: list[tuple[str, Shape]],
    *folds: RecipeFold,
    selection: Selection = Selection(),  # noqa: B008 - frozen
) -> str:
    """Why the one layer of a recipe is refused."""
    result = found(tensors, *folds, selection=selection)
    assert (result.layers, result.misfit) == ((), "")
    (refused,) = result.refused
    return refused.reason


CONV: list[tuple[str, Shape]] = [("conv.weight", (8, 4, 3))]


# -- what is told


def test_a_norm_behind_a_plain_weight_makes_a_layer_with_a_bias() -> None:
    layer = only([*CONV, *norm("bn", 8)], behind())
    assert layer.rule.operations == (NormBehind(0, 1e-5),)
    assert (layer.norm, layer.bias, layer.grade, layer.form) == ("bn", "conv.bias", "said", "plain")
    assert {role: part.name for role, part in layer.parts.items()} == {
        "original": "conv.weight",
        "gamma": "bn.weight",
        "beta": "bn.bias",
        "mean": "bn.running_mean",
        "variance": "bn.running_var",
    }
    assert [part.name for part in layer.unread] == ["bn.num_batches_tracked"]
    assert [part.name for part in layer.of_weight] == ["conv.weight"]


def test_without_a_recipe_the_same_tensors_show_nothing() -> None:
    assert find_pairs(infos(*CONV, *norm("bn", 8))).layers == ()


def test_a_norm_without_affine_has_neither_gain_nor_shift() -> None:
    layer = only([*CONV, *norm("bn", 8, "running_mean", "running_var")], behind())
    assert layer.rule.operations == (NormBehind(0, 1e-5, gain=False, shift=False),)
    assert layer.unread == ()


def test_the_bias_that_is_there_is_a_part() -> None:
    layer = only([*CONV, ("conv.bias", (8,)), *norm("bn", 8)], behind())
    assert layer.parts["bias"].name == "conv.bias"
    assert layer.bias_shape == (8,)


@pytest.mark.parametrize(
    ("op", "groups", "shape", "dim", "channels"),
    [
        ("conv", 1, (8, 4, 3), 0, 8),
        ("conv", 2, (8, 2, 3), 0, 8),
        ("linear", 1, (8, 4), 0, 8),
        ("conv_transpose", 1, (4, 8, 3), 1, 8),
        ("conv_transpose", 4, (4, 2, 3), 1, 8),
        ("linear_transposed", 1, (4, 8), 1, 8),
        ("conv", 1, (8, 8, 3), 0, 8),  # both axes fit, and the op decides
        ("conv_transpose", 1, (8, 8, 3), 1, 8),
    ],
)
def test_the_op_says_which_axis_has_the_output_channels(
    op: str, groups: int, shape: Shape, dim: int, channels: int
) -> None:
    layer = only([("conv.weight", shape), *norm("bn", channels)], behind(op=op, groups=groups))
    assert layer.rule.operations == (NormBehind(dim, 1e-5, groups if dim else 1),)
    assert layer.bias_shape == (channels,)


@pytest.mark.parametrize(
    ("op", "groups", "shape", "dim"),
    [
        ("conv", 1, (8, 6, 1), 1),
        ("conv", 2, (8, 3, 1), 1),
        ("linear", 1, (8, 6), 1),
        ("linear_transposed", 1, (6, 8), 0),
    ],
)
def test_a_norm_before_has_input_channels(op: str, groups: int, shape: Shape, dim: int) -> None:
    fold = RecipeFold("norm before", "conv.weight", "bn", op, groups, eps=1e-5)  # type: ignore[arg-type]
    layer = only([("conv.weight", shape), *norm("bn", 6)], fold)
    assert layer.rule.operations == (NormBefore(dim, 1e-5, groups),)
    assert layer.bias_shape == (8,)


def test_an_affine_goes_into_every_layer_and_its_norm_is_shared() -> None:
    tensors = [("q.weight", (6, 4)), ("k.weight", (6, 4)), *norm("ln", 4, "weight", "bias")]
    result = found(tensors, affine("q.weight"), affine("k.weight"))
    assert [layer.rule.operations for layer in result.layers] == [(AffineBefore(1),)] * 2
    assert [layer.bias for layer in result.layers] == ["q.bias", "k.bias"]


def test_an_affine_without_shift_makes_no_bias() -> None:
    layer = only([("q.weight", (6, 4)), ("ln.weight", (4,))], affine("q.weight"))
    assert (layer.rule.operations, layer.bias) == ((AffineBefore(1, shift=False),), "")


@pytest.mark.parametrize("spelled", [pair, new_pair])
def test_a_norm_stands_on_top_of_weight_norm(spelled: object) -> None:
    tensors = [(name, shape) for name, shape, _ in spelled("conv.weight")]  # type: ignore[operator]
    layer = only([*tensors, *norm("bn", 8)], behind())
    assert layer.rule.operations == (Norm(0), NormBehind(0, 1e-5))
    assert layer.rule.kind == "weight+norm"
    assert {part.name for part in layer.of_weight} == {name for name, _ in tensors}


def test_a_class_and_the_norm_behind_it_are_one_layer() -> None:
    own = RecipeFold("standardize", "*.weight", std="unbiased", eps_at="std", eps=1e-5)
    layer = only([*CONV, *norm("bn", 8)], behind(), own)
    assert layer.rule.operations == (Standardize(0, "unbiased", "std", 1e-5), NormBehind(0, 1e-5))


def test_a_glob_means_weights_and_no_vectors() -> None:
    tensors: list[tuple[str, Shape]] = [
        *CONV,
        ("conv.bias", (8,)),
        ("out.weight", (4, 8)),
        ("bn.weight", (8,)),
    ]
    result = found(tensors, RecipeFold("equalized", "*", scale=0.5))
    assert {layer.name: layer.rule.operations for layer in result.layers} == {
        "conv.weight": (Equalized(0.5),),
        "out.weight": (Equalized(0.5),),
    }


def test_the_grade_says_who_told_it() -> None:
    tensors = [*CONV, *norm("bn", 8)]
    grades = [
        found(tensors, behind(), made_by=by).layers[0].grade for by in ("said", "names", "x.py:f, traced")
    ]
    assert grades == ["said", "names", "recipe"]


def test_layers_of_keys_stay_beside_those_of_a_recipe() -> None:
    of_keys = [(name, shape) for name, shape, _ in pair("other.weight")]
    result = found([*CONV, *of_keys, *norm("bn", 8)], behind())
    assert {layer.name: layer.grade for layer in result.layers} == {
        "other.weight": "keys",
        "conv.weight": "said",
    }


# -- whether it is the recipe of this state dict


def test_missing_names_are_named() -> None:
    result = found([*CONV, *norm("bn", 8)], behind(), behind("fc.weight", "bn9"))
    assert result.layers == ()
    assert result.misfit == "it does not have fc.weight, bn9.running_mean, bn9.running_var"
    assert not result.is_foreign


def test_a_state_dict_with_nothing_of_it_is_foreign() -> None:
    result = found([("a", (3,))], behind())
    assert result.is_foreign
    assert "conv.weight" in result.misfit


def test_a_prefix_before_all_names_is_said() -> None:
    tensors = [("net.conv.weight", (8, 4, 3)), *norm("net.bn", 8)]
    result = found(tensors, behind())
    assert (result.misfit, result.is_foreign) == ("its names have net. before those of the recipe", False)


def test_a_prefix_before_some_names_is_none() -> None:
    result = found([("net.conv.weight", (8, 4, 3)), *norm("other.bn", 8)], behind())
    assert result.is_foreign


def test_a_norm_without_running_statistics_uses_the_batch() -> None:
    result = found([*CONV, *norm("bn", 8, "weight", "bias")], behind())
    assert result.misfit.startswith("bn has no running statistics")


def test_a_digest_of_names_and_shapes_is_held() -> None:
    tensors = [*CONV, *norm("bn", 8)]
    names = names_digest(named_tensors([behind()], dict(tensors)))
    assert found(tensors, behind(), names=names).misfit == ""
    # Another head is no other model; a bias more is one.
    assert found([*tensors, ("fc.weight", (7, 8))], behind(), names=names).misfit == ""
    assert "not those of the model" in found([*tensors, ("conv.bias", (8,))], behind(), names=names).misfit


def test_a_digest_is_of_the_weight_whatever_computes_it() -> None:
    names = names_digest(named_tensors([behind()], dict([*CONV, *norm("bn", 8)])))
    of_keys = [(name, shape) for name, shape, _ in pair("conv.weight")]
    assert found([*of_keys, *norm("bn", 8)], behind(), names=names).misfit == ""


# -- what is refused


@pytest.mark.parametrize(
    ("tensors", "fold", "says"),
    [
        (
            [*CONV, *norm("bn", 4)],
            behind(),
            "bn.weight (4,) does not fit a weight (8, 4, 3) of a conv behind it",
        ),
        ([*CONV, *norm("bn", 5)], behind(op="conv_transpose"), "does not fit"),
        ([*CONV, *norm("bn", 8)], behind(op="conv_transpose", groups=3), "has no 3 groups"),
        ([*CONV, *norm("bn", 8)], behind(op="linear", groups=2), "has no 2 groups"),
        ([("conv.weight", (8,)), *norm("bn", 8)], behind(), "has no channels beside a norm"),
        ([*CONV, ("conv.bias", (4,)), *norm("bn", 8)], behind(), "conv.bias (4,) does not fit (8,)"),
        ([("conv.weight", (8, 0)), *norm("bn", 8)], behind(), "conv.weight is empty"),
        ([*CONV, ("conv.weight_g", (3,)), *norm("bn", 8)], behind(), "conv.weight_g beside it shows"),
        (
            [*CONV, ("conv.weight_mask", (8, 4, 3)), *norm("bn", 8)],
            behind(),
            "conv.weight_mask beside it shows",
        ),
        (
            [*CONV],
            RecipeFold("standardize", "conv.weight", eps=1e-5, dim=3),
            "a weight (8, 4, 3) has no axis 3",
        ),
        (
            [*CONV, ("conv.gain", (4,))],
            RecipeFold("standardize", "conv.weight", eps=1e-5, gain="gain"),
            "conv.gain (4,) does not fit a weight (8, 4, 3)",
        ),
        (
            [*CONV, ("conv.bias", (8,))],
            RecipeFold("standardize", "conv.weight", eps=1e-5, gain="bias"),
            "conv.bias is the bias of its layer, and no gain",
        ),
        (
            [*CONV, ("conv.gain", (8,))],
            RecipeFold("standardize", "conv.weight", eps=1e-5, gain="gain", shift="gain"),
            "conv.gain is named twice",
        ),
        ([*CONV, *norm("bn", 8)], behind(bias="bn.weight"), "bn.weight is no bias beside it"),
        (
            [*CONV, *norm("bn", 8), ("bn.mean_weight", (3,))],
            behind(),
            "bn.mean_weight shows a switchable norm",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tensors: list[tuple[str, Shape]], fold: RecipeFold, says: str) -> None:
    assert says in reason(tensors, fold)


@pytest.mark.parametrize("dtype", ["int8", "int64", "float8_e4m3fn"])
@pytest.mark.parametrize("name", ["conv.weight", "bn.running_var"])
def test_numbers_that_are_no_floats_are_refused(dtype: str, name: str) -> None:
    tensors = [(key, shape, dtype if key == name else "float32") for key, shape in [*CONV, *norm("bn", 8)]]
    result = find_pairs(infos(*tensors), Selection(recipe=Recipe((behind(),))))
    assert result.layers == ()
    assert f"{name} is {dtype}, which cannot be folded" in result.refused[0].reason


def test_weight_norm_beneath_that_is_not_asked_for_is_refused_with_the_fix() -> None:
    of_keys = [(name, shape) for name, shape, _ in pair("conv.weight")]
    result = found([*of_keys, *norm("bn", 8)], behind(), selection=Selection(kinds=("spectral",)))
    (refused,) = result.refused
    assert "its keys show weight beneath" in refused.reason
    assert "--kinds weight" in refused.remedy


def test_a_plain_weight_beside_its_parts_is_refused_once() -> None:
    of_keys = [(name, shape) for name, shape, _ in pair("conv.weight")]
    assert "the plain weight of that name is there too" in reason([*CONV, *of_keys, *norm("bn", 8)], behind())


def test_a_glob_that_means_a_weight_twice_is_refused() -> None:
    folds = RecipeFold("equalized", "conv.weight", scale=2.0), RecipeFold("equalized", "*.weight", scale=3.0)
    assert "two folds say what its class makes of it" in reason(CONV, *folds)


def test_a_tensor_of_two_layers_is_refused() -> None:
    tensors = [*CONV, *norm("bn", 8), ("fc.weight", (8, 8))]
    result = found(tensors, behind(), behind("fc.weight", "bn.x", bias="bn.bias"))
    assert result.misfit  # the second norm is not there
    tensors += norm("bn.x", 8)
    result = found(tensors, behind(), behind("fc.weight", "bn.x", bias="bn.bias"))
    assert [layer.name for layer in result.layers] == ["conv.weight"]
    assert "bn.bias is a tensor of conv.weight too" in result.refused[0].reason


def test_a_norm_that_is_the_layer_itself_is_refused() -> None:
    tensors: list[tuple[str, Shape]] = [("w.weight", (2, 1)), *norm("w", 2, "running_mean", "running_var")]
    assert "does not fit" in reason([("w.weight", (2, 2)), *tensors[1:]], behind("w.weight", "w"))
    assert "is the weight's own" in reason(tensors, behind("w.weight", "w"))


# -- the selection


def test_layers_and_exclude_choose_among_those_of_a_recipe() -> None:
    tensors = [*CONV, *norm("bn", 8), ("fc.weight", (8, 8)), *norm("bn2", 8)]
    folds = behind(), behind("fc.weight", "bn2")
    assert [layer.name for layer in found(tensors, *folds, selection=Selection(layers=("fc.*",))).layers] == [
        "fc.weight"
    ]
    result = found(tensors, *folds, selection=Selection(exclude=("fc.*",)))
    assert [layer.name for layer in result.layers] == ["conv.weight"]
    assert result.unwanted == ("fc.weight",)


def test_an_affine_folds_into_all_of_its_layers_or_none() -> None:
    tensors = [("q.weight", (6, 4)), ("k.weight", (6, 4)), *norm("ln", 4, "weight", "bias")]
    folds = affine("q.weight"), affine("k.weight")
    says = reason(tensors, *folds, selection=Selection(exclude=("q.weight",)))
    assert says == "the affine of ln goes into q.weight, k.weight: take all or exclude all of them"
    assert found(tensors, *folds, selection=Selection(exclude=("?.weight",))).unwanted == (
        "q.weight",
        "k.weight",
    )
