"""New names by rules, the prefixes by which names differ, wrappers seen through, modules in `_metadata`."""

from __future__ import annotations

import pytest

from tests.helpers.infos import new_pair, pair, state_at
from wnconvert.errors import ArgumentError
from wnconvert.plan.fold import plan_fold
from wnconvert.plan.names.prefixes import prefixes_apart
from wnconvert.plan.names.renaming import Renaming
from wnconvert.plan.names.trees import renamed_keys, renamed_modules, renamed_tree
from wnconvert.plan.names.wrappers import seen_through, without_wrappers
from wnconvert.plan.split.plan import plan_split
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import StateDict, Tree


def renamed(name: str, *renames: str, strip: str = "", add: str = "") -> str:
    return Renaming.of([strip], renames, add)(name)


@pytest.mark.parametrize(
    ("rename", "old", "new"),
    [
        ("enc.pos_conv.0=enc.pos_conv_embed.conv", "enc.pos_conv.0.bias", "enc.pos_conv_embed.conv.bias"),
        ("encoder.pos_conv.0=e", "w2v.encoder.pos_conv.0.bias", "w2v.e.bias"),
        ("conv=c", "conv.conv.weight", "c.c.weight"),
        ("conv=c", "conv_pre.weight", "conv_pre.weight"),
        ("conv=c", "dec.preconv.weight", "dec.preconv.weight"),
        ("a.*.c=a.x.*", "a.7.c.w", "a.x.7.w"),
        ("*.*.w=w.*.*", "a.b.w", "w.a.b"),
        ("_orig_mod=", "model._orig_mod.conv.w", "model.conv.w"),
        (".encoder=enc", "encoder.encoder.w", "enc.encoder.w"),
        (".encoder=enc", "text.encoder.w", "text.encoder.w"),
        ("a.b=x", "a.bb.w", "a.bb.w"),
        ("a.b.c=x", "a.b", "a.b"),
        ("w=v", "conv.w", "conv.v"),
    ],
)  # fmt: skip
def test_whole_parts_of_a_name_are_replaced_wherever_they_stand(rename: str, old: str, new: str) -> None:
    assert renamed(old, rename) == new


def test_renames_are_made_one_after_another_between_the_prefixes() -> None:
    assert renamed("m.a.w", "a=b", "b=c", strip="m", add="n.o") == "n.o.c.w"
    assert renamed("m.a.w", "m=b", strip="m") == "a.w"


@pytest.mark.parametrize(("prefix", "name", "short"), [
    ("module", "module.w", "w"), ("module.", "module.w", "w"), ("module", "module_list.w", "module_list.w"),
    ("_orig_mod.module", "_orig_mod.module.w", "w"), ("teacher_", "teacher_conv.w", "conv.w"),
])  # fmt: skip
def test_a_prefix_is_whole_parts_unless_it_ends_in_a_sign(prefix: str, name: str, short: str) -> None:
    assert renamed(name, strip=prefix) == short


@pytest.mark.parametrize("text", ["conv", "=c", "a..b=c", "a.=c", "conv_*=c", "a.*=b", "a=b.*", "a=.", ".=a"])
def test_what_is_no_rename_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        Renaming.of([], [text], "")
    assert "--rename" in raised.value.fix


def names_after(state: StateDict, renaming: Renaming) -> list[str]:
    tree = Tree((state,))
    (made,) = renamed_tree(tree, renamed_keys(tree, tree.state_dicts, renaming)).state_dicts
    assert [entry.tensor.info.name for entry in made.entries if entry.tensor] == list(made.tensors)
    return [entry.name for entry in made.entries]


def test_a_pair_goes_by_the_name_of_its_weight_and_stays_a_pair() -> None:
    rename = Renaming.of([], ["conv.weight=c.kernel"], "")
    assert names_after(state_at("", *pair("conv.weight"), ("conv.bias", (8,))), rename) == [
        "c.kernel_g",
        "c.kernel_v",
        "conv.bias",
    ]
    assert names_after(state_at("", *new_pair("conv.weight")), rename) == [
        "c.parametrizations.kernel.original0",
        "c.parametrizations.kernel.original1",
    ]
    assert names_after(state_at("", ("conv.weight", (8, 4))), rename) == ["c.kernel"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((["modul"], [], ""), "--strip-prefix modul. meets no name"),
        (([], ["conv=c", "dec=d"], ""), "--rename 'dec=d' meets no name"),
        (([], ["conv=c", "conv=d"], ""), "--rename 'conv=d' meets no name"),
        (([], ["conv.weight_g=c.g"], ""), "--rename 'conv.weight_g=c.g' meets no name"),
    ],
)
def test_a_rule_that_meets_nothing_is_an_error_that_shows_the_names(
    options: tuple[list[str], list[str], str], said: str
) -> None:
    state = state_at("", *pair("conv.weight"), ("conv.bias", (8,)))
    with pytest.raises(ArgumentError) as raised:
        names_after(state, Renaming.of(*options))
    assert (raised.value.what, raised.value.fix) == (said, "the names are: conv.weight, conv.bias")


def test_names_that_become_one_are_an_error_that_lists_them() -> None:
    state = state_at("", *pair("a.weight"), *pair("b.weight"), ("c.bias", (8,)))
    with pytest.raises(ArgumentError, match="2 names would be given twice") as raised:
        names_after(state, Renaming.of([], ["b=a"], ""))
    assert raised.value.items == (
        ("a.weight_g", "the new name of a.weight_g and of b.weight_g"),
        ("a.weight_v", "the new name of a.weight_v and of b.weight_v"),
    )
    swapped = Renaming.of([], ["a=x", "b=a", "x=b"], "")
    assert names_after(state, swapped)[:2] == ["b.weight_g", "b.weight_v"]
    with pytest.raises(ArgumentError, match="nothing would be left"):
        names_after(state_at("", ("a", (8,))), Renaming.of([], ["a="], ""))


def test_what_lies_beside_a_model_keeps_its_names() -> None:
    models = (state_at(path, *pair("conv.weight")) for path in ("model", "ema"))
    tree = Tree((*models, state_at("scaler", ("scale", ()))))
    new = renamed_keys(tree, tree.state_dicts, Renaming.of([], [], "module"))
    assert set(new) == {"model", "ema"}
    alone = Tree((state_at("", ("weight", (8, 4))),))
    assert renamed_keys(alone, alone.state_dicts, Renaming.of([], [], "m"))[""].keys == {"weight": "m.weight"}


def test_the_record_follows_so_that_a_fold_is_undone_under_the_new_names() -> None:
    state = state_at("", *pair("m.a.weight"), ("m.a.bias", (8,)), *new_pair("m.b.weight"))
    folded = Tree(
        (state_at("", ("m.a.weight", (8, 4, 3)), ("m.a.bias", (8,)), ("m.b.weight", (8, 4, 3))),),
        record=plan_fold(Tree((state,)), Container.TORCH_ZIP).record,
    )
    new = renamed_keys(folded, folded.state_dicts, Renaming.of(["m"], ["b=c"], ""))
    (planned,) = plan_split(renamed_tree(folded, new), Container.TORCH_ZIP).state_dicts
    assert [step.name for step in planned.steps] == [
        "a.weight_g",
        "a.weight_v",
        "a.bias",
        "c.parametrizations.weight.original0",
        "c.parametrizations.weight.original1",
    ]


@pytest.mark.parametrize(
    ("modules", "options", "keys", "expected"),
    [
        (["", "module", "module.conv"], (["module"], [], ""), ["conv.weight"], ["", "conv"]),
        (["", "conv"], ([], [], "module"), ["module.conv.weight"], ["", "module", "module.conv"]),
        (["", "a", "a.b", "a.b.c"], (["a.b"], [], ""), ["c.weight"], ["", "c"]),
        (["", "a", "a.b"], ([], ["a.b=x.y"], ""), ["x.y.weight"], ["", "x", "x.y"]),
        (["", "a", "a.b"], ([], ["a.b=x.y"], ""), ["x.y.weight", "a.bias"], ["", "a", "x", "x.y"]),
        (["", "a", "a.b", "a.relu"], ([], ["a.b=a.c"], ""), ["a.c.weight"], ["", "a", "a.c", "a.relu"]),
    ],
)
def test_modules_of_the_metadata_follow_their_keys(
    modules: list[str], options: tuple[list[str], list[str], str], keys: list[str], expected: list[str]
) -> None:
    assert list(renamed_modules(modules, Renaming.of(*options), keys)) == expected


# -- the prefixes by which names differ


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "model._orig_mod.module."])
def test_a_prefix_on_one_side_is_found_whole(prefix: str) -> None:
    names = ["conv.weight", "conv.bias", "post.weight"]
    longer = [prefix + name for name in names]
    there, here = prefixes_apart(names, longer, least=3), prefixes_apart(longer, names, least=3)
    assert there is not None
    assert here is not None
    assert (there.there, here.here) == (prefix, prefix)
    assert there.fix == here.fix == f"the names differ by a prefix: --strip-prefix {prefix} takes it off"
    assert prefixes_apart([*names, "lost.weight"], longer, least=4) is None


def test_a_prefix_is_found_beside_other_prefixes_and_around_a_wrapper() -> None:
    mixed = ["generator.conv.weight", "generator.conv.bias", "discriminator.conv.weight", "loss.w"]
    found = prefixes_apart(["conv.weight", "conv.bias"], mixed, least=2)
    assert found is not None
    assert found.there == "generator."
    inside = prefixes_apart(
        ["dec.conv.weight", "dec.post.weight"],
        ["module.dec._orig_mod.conv.weight", "module.dec._fsdp_wrapped_module.post.weight"],
    )
    assert inside is not None
    assert inside.there == "module."


def test_a_name_of_very_many_or_very_long_prefixes_is_no_advice() -> None:
    many = [f"p{at}.w" for at in range(20)]
    assert prefixes_apart(["w"], many) is not None
    assert prefixes_apart(["w"], ["p" * 500 + ".w"]) is None
    assert prefixes_apart([], ["a"]) is prefixes_apart(["a"], []) is None


# -- wrappers


def test_wrappers_are_whole_parts() -> None:
    assert without_wrappers("a._fsdp_wrapped_module._checkpoint_wrapped_module.b.w") == "a.b.w"
    assert without_wrappers("a.my_orig_mod.w") == "a.my_orig_mod.w"


def test_a_module_is_seen_through_where_it_is_one_module_on_both_sides() -> None:
    seen = seen_through(["a._orig_mod.w", "b.w"], ["a.w", "b._fsdp_wrapped_module.w", "c.w"])
    assert (seen("a._orig_mod.w"), seen("b.w"), seen("c.w")) == ("a.w", "b._fsdp_wrapped_module.w", "c.w")
    assert not seen_through(["a._orig_mod.w", "a.w"], ["a.w"])
    assert not seen_through(["a.w"], ["a.w"])
