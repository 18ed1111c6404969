"""Recipes as TOML: what is written is read again, and what is no recipe is refused by its place."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wnconvert.errors import ArgumentError, InputError, WnconvertError
from wnconvert.formats.recipes import MOST_BYTES, parse_recipe, recipe_text
from wnconvert.layers.recipes import NORM_KINDS, Recipe, RecipeFold

HEAD = 'schema = 1\nmade_by = "said"\n'
FOLD = '[[fold]]\nkind = "norm behind"\nweight = "conv.weight"\nnorm = "bn"\nop = "conv"\neps = 1e-05\n'
EVERY_KIND = (
    RecipeFold("norm behind", "up.weight", "bn", "conv_transpose", 4, eps=1e-3, bias="up.extra"),
    RecipeFold("norm before", "fc.weight", "pre", "linear", eps=0.0),
    RecipeFold("affine before", "q.weight", "ln", "linear_transposed"),
    RecipeFold(
        "standardize", "*.conv.weight", std="unbiased", eps_at="std", eps=1e-5, gain="gain", shift="b", dim=1
    ),
    RecipeFold("standardize", "nf.weight", eps_at="max", eps=1e-4, scale=1.7139588594436646, fan=27),
    RecipeFold("unit", "head.weight", eps=1e-12, scale=30.0),
    RecipeFold("equalized", "eq.weight", scale=0.125),
)


def test_a_recipe_of_every_kind_is_read_as_it_was_written() -> None:
    recipe = Recipe(EVERY_KIND, "net.py:make, traced", "float64, 4 samples, 1.2e-15", "sha256:00")
    assert parse_recipe(recipe_text(recipe)) == recipe
    assert {fold.kind for fold in EVERY_KIND} > set(NORM_KINDS)


NAMES = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: not set(text) & set("*?["))


@given(NAMES, NAMES, st.floats(0, allow_nan=False, allow_infinity=False))
def test_any_name_and_any_eps_come_back(weight: str, norm: str, eps: float) -> None:
    fold = RecipeFold("norm behind", weight, norm, eps=eps)
    (read,) = parse_recipe(recipe_text(Recipe((fold,)))).folds
    assert read == fold
    assert math.copysign(1, read.eps or 0.0) == math.copysign(1, eps)


def test_what_is_as_usual_is_not_written() -> None:
    text = recipe_text(Recipe((RecipeFold("norm behind", "conv.weight", "bn", eps=1e-5),)))
    assert text == f"{HEAD}\n{FOLD}"


def test_a_name_that_is_not_unicode_cannot_be_written() -> None:
    with pytest.raises(ArgumentError, match="not Unicode"):
        recipe_text(Recipe((RecipeFold("norm behind", "\ud800", "bn", eps=1e-5),)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kind = ", "Invalid value"),
        (b"\xff\xfe", "utf-8"),
        ("a = " + "[" * 100_000, "not a recipe"),
        ("", "it states no schema"),
        ("schema = 2", "its schema is 2"),
        ("schema = true", "its schema is True"),
        ("schema = 1\nfolds = 3", "there is no key 'folds'"),
        ("schema = 1\nmade_by = 3", "made_by is 3, not a text"),
        ("schema = 1\nfold = 3", "fold is not a list of tables"),
        ("schema = 1\nfold = [3]", "fold is not a list of tables"),
        (
            HEAD + FOLD.replace("norm behind", "norm after"),
            "fold 1 (conv.weight): there is no kind 'norm after'",
        ),
        (HEAD + FOLD.replace('kind = "norm behind"\n', ""), "fold 1 (conv.weight): it states no kind"),
        (HEAD + FOLD.replace('"norm behind"', "3"), "there is no kind 3"),
        (HEAD + FOLD.replace('"conv"', '"pool"'), "there is no op 'pool': one of conv, linear"),
        (HEAD + FOLD.replace("eps = 1e-05\n", ""), "norm behind needs its eps"),
        (HEAD + FOLD.replace("1e-05", "-1e-05"), "an eps of -1e-05 is none"),
        (HEAD + FOLD.replace("1e-05", "nan"), "an eps of nan is none"),
        (HEAD + FOLD.replace("1e-05", "inf"), "an eps of inf is none"),
        (HEAD + FOLD.replace("1e-05", '"1e-05"'), "eps is '1e-05', not a number"),
        (HEAD + FOLD.replace("1e-05", "true"), "eps is True, not a number"),
        (HEAD + FOLD.replace("1e-05", "9" * 400), "eps is larger than any number"),
        (HEAD + FOLD + "groups = 0\n", "groups 0 and fan 1 must be 1 or more"),
        (HEAD + FOLD + "groups = 1.5\n", "groups is 1.5, not a whole number"),
        (HEAD + FOLD + "groups = true\n", "groups is True, not a whole number"),
        (HEAD + FOLD + 'std = "biased"\n', "fold 1 (conv.weight): there is no key 'std'"),
        (HEAD + FOLD + "dims = 1\n", "there is no key 'dims'"),
        (HEAD + FOLD.replace('norm = "bn"\n', ""), "norm behind needs norm"),
        (HEAD + FOLD.replace('"bn"', '""'), "norm behind needs the name of the norm"),
        (HEAD + FOLD.replace('"bn"', "[1]"), "norm is [1], not a text"),
        (HEAD + FOLD.replace("conv.weight", "*.weight"), "needs the whole name of a weight, not a glob"),
        (HEAD + FOLD.replace("conv.weight", ""), "a fold names no weight"),
        (HEAD + FOLD + FOLD.replace("bn", "bn2"), "a weight is folded twice: conv.weight"),
        (HEAD + FOLD + FOLD.replace("conv.", "fc."), "the norm bn is folded into two layers"),
        (
            HEAD + '[[fold]]\nkind = "standardize"\nweight = "w"\neps = 1e-5\nstd = "biased"',
            "standardize needs eps_at",
        ),
        (
            HEAD + '[[fold]]\nkind = "standardize"\nweight = "w"\neps = 1e-5\nstd = "least"\neps_at = "std"',
            "there is no std 'least'",
        ),
        (HEAD + '[[fold]]\nkind = "equalized"\nweight = "w"\nscale = 0', "a scale of 0.0 is none"),
        (HEAD + '[[fold]]\nkind = "unit"\nweight = "w"\neps = 0\ndim = -1', "dim -1 is not an axis"),
        (
            HEAD + FOLD.replace("behind", "before").replace('"conv"', '"conv_transpose"'),
            "norm before a transposed convolution does not fold",
        ),
    ],
)
def test_what_is_no_recipe_is_refused_and_the_place_is_named(text: str | bytes, says: str) -> None:
    with pytest.raises((InputError, ArgumentError)) as caught:
        parse_recipe(text, "net.toml")
    assert says in str(caught.value)
    assert str(caught.value).startswith("net.toml")


def test_an_error_names_the_entry_by_its_number() -> None:
    with pytest.raises(ArgumentError, match=r"^net\.toml: fold 2 \(fc\.weight\): an eps"):
        parse_recipe(HEAD + FOLD + FOLD.replace("conv.", "fc.").replace("1e-05", "-1.0"), "net.toml")


def test_control_characters_in_names_are_spelled_out() -> None:
    hostile = FOLD.replace("conv.weight", "\\u001b[2Jconv.weight").replace("1e-05", "-1.0")
    with pytest.raises(WnconvertError) as caught:
        parse_recipe(HEAD + hostile, "net.toml")
    assert "\\x1b[2Jconv.weight" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_an_affine_may_go_into_several_layers() -> None:
    folds = tuple(RecipeFold("affine before", f"{name}.weight", "ln", "linear") for name in "qkv")
    assert parse_recipe(recipe_text(Recipe(folds))).folds == folds


def test_a_norm_is_not_folded_whole_and_its_affine_once_more() -> None:
    whole = RecipeFold("norm before", "q.weight", "bn", "linear", eps=1e-5)
    with pytest.raises(ArgumentError, match="its affine once more"):
        Recipe((whole, RecipeFold("affine before", "k.weight", "bn", "linear")))


def test_a_class_and_a_norm_beside_it_may_make_one_weight() -> None:
    own = RecipeFold("standardize", "conv.weight", eps=1e-8)
    assert len(Recipe((own, RecipeFold("norm behind", "conv.weight", "bn", eps=1e-5))).folds) == 2
    with pytest.raises(ArgumentError, match="as its class computes it"):
        Recipe((own, RecipeFold("equalized", "conv.weight", scale=2.0)))


def test_two_folds_do_not_make_one_bias() -> None:
    first = RecipeFold("norm behind", "a.weight", "bn1", eps=1e-5, bias="bias")
    with pytest.raises(ArgumentError, match="two folds make the bias bias"):
        Recipe((first, RecipeFold("norm behind", "b.weight", "bn2", eps=1e-5, bias="bias")))


def test_a_longer_file_is_not_parsed() -> None:
    with pytest.raises(InputError, match="at most 16,777,216"):
        parse_recipe(b"#" * (MOST_BYTES + 1), "net.toml")
