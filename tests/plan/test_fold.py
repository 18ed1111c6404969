"""Planning is pure: lists of names, dtypes and shapes in, steps out."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from tests.helpers.infos import Shape, new_pair, pair, state_at
from wnconvert.errors import ArgumentError, LayerError
from wnconvert.layers.schemes import Selection
from wnconvert.plan.fold import plan_fold
from wnconvert.plan.order import metadata_keys
from wnconvert.plan.plan import Change, Plan
from wnconvert.plan.steps import Fold, Keep
from wnconvert.tensors.containers import Container
from wnconvert.tensors.dtypes import dtype_named
from wnconvert.tensors.tree import Entry, Sibling, StateDict, Tree

Tensors = list[tuple[str, Shape, str]]
BIAS = ("bias", (8,), "float32")


def tree(*states: StateDict, **more: Any) -> Tree:
    return Tree(tuple(states), **more)


def gan() -> Tree:
    """A GAN: both nets with layers, an average without, an optimizer, an epoch."""
    return tree(
        state_at("generator", *pair("pre.weight"), BIAS),
        state_at("discriminator", *new_pair("post.weight")),
        state_at("ema", ("pre.weight", (8, 4, 3))),
        optimizers=("optim_g", "optim_d"),
        siblings=(Sibling("epoch", "int"), Sibling("config", "object")),
    )


def names(plan: Plan) -> dict[str, list[str]]:
    return {planned.path: [step.name for step in planned.steps] for planned in plan.state_dicts}


def dropped(plan: Plan) -> list[str]:
    return [item.path for item in plan.dropped]


# -- steps


def test_every_key_keeps_its_place_and_w_stands_where_the_first_half_stood() -> None:
    g, v = pair("b.weight")
    for first, second in ((g, v), (v, g)):
        state = state_at("", ("a", (2,)), first, ("c", (2,)), second, ("d", (2,)))
        plan = plan_fold(tree(state), Container.TORCH_ZIP)
        assert names(plan) == {"": ["a", "b.weight", "c", "d"]}


def test_a_step_is_a_fold_or_keeps_a_value() -> None:
    plan = plan_fold(tree(state_at("", *pair("b.weight"), BIAS)), Container.TORCH_ZIP)
    fold, keep = plan.state_dicts[0].steps
    assert isinstance(fold, Fold)
    assert (fold.layer.g.name, fold.layer.v.name, str(fold.dtype)) == ("b.weight_g", "b.weight_v", "float32")
    assert keep == Keep("bias", "bias")
    assert plan.changes == [("", Change(fold.layer, None, fold.dtype))]


def test_a_value_that_is_no_tensor_keeps_its_place() -> None:
    state = state_at("", *pair("b.weight"))
    plan = plan_fold(
        tree(replace(state, entries=(Entry("steps", None), *state.entries))), Container.TORCH_ZIP
    )
    assert names(plan) == {"": ["steps", "b.weight"]}
    assert dropped(plan) == []


def test_the_weight_takes_the_dtype_of_v() -> None:
    (g, v), other = pair("b.weight", dtype="bfloat16"), ("b.weight_g", (8, 1, 1), "float64")
    for tensors in ([g, v], [other, v]):
        ((_, fold),) = plan_fold(tree(state_at("", *tensors)), Container.TORCH_ZIP).changes
        assert str(fold.dtype) == "bfloat16"


def test_a_given_dtype_casts_layers_and_other_floats_but_nothing_else() -> None:
    state = state_at(
        "",
        *pair("b.weight"),
        ("f32", (2,), "float32"),
        ("f64", (2,), "float64"),
        ("f16", (2,), "float16"),
        ("i64", (2,), "int64"),
        ("f8", (2,), "float8_e5m2"),
        ("c64", (2,), "complex64"),
    )
    (planned,) = plan_fold(tree(state), Container.TORCH_ZIP, dtype=dtype_named("float16")).state_dicts
    steps = [step for step in planned.steps if isinstance(step, (Keep, Fold))]
    assert {step.name: str(step.dtype) for step in steps} == {
        "b.weight": "float16",
        "f32": "float16",
        "f64": "float16",
        "f16": "None",
        "i64": "None",
        "f8": "None",
        "c64": "None",
    }


def test_what_is_no_tensor_is_not_counted_as_one() -> None:
    plan = plan_fold(nested(), Container.TORCH_ZIP)
    assert [state["tensors"] for state in plan.to_dict()["state_dicts"]] == [2, 1, 1]
    values = [
        step.name for step in plan.state_dicts[0].steps if isinstance(step, Keep) and not step.is_tensor
    ]
    assert values == ["epoch", "model", "optimizer", "ema", "mode"]


def test_plans_are_frozen_data_and_equal_plans_are_equal() -> None:
    plan = plan_fold(gan(), Container.TORCH_ZIP)
    assert plan == plan_fold(gan(), Container.TORCH_ZIP)
    assert plan != plan_fold(gan(), Container.TORCH_ZIP, only="generator")
    with pytest.raises(FrozenInstanceError):
        plan.only = "generator"  # type: ignore[misc]


# -- which state dicts


def test_a_torch_file_keeps_every_state_dict_and_sibling() -> None:
    plan = plan_fold(gan(), Container.TORCH_ZIP, keep_optimizer=True)
    assert names(plan) == {
        "generator": ["pre.weight", "bias"],
        "discriminator": ["post.weight"],
        "ema": ["pre.weight"],
    }
    assert (plan.only, dropped(plan)) == (None, [])


@pytest.mark.parametrize("container", [Container.TORCH_ZIP, Container.SAFETENSORS])
def test_only_keeps_one_state_dict_and_lists_the_rest(container: Container) -> None:
    plan = plan_fold(gan(), container, only="generator")
    assert list(names(plan)) == ["generator"]
    assert plan.only == "generator"
    assert sorted(dropped(plan)) == ["config", "discriminator", "ema", "epoch", "optim_d", "optim_g"]
    assert {item.why for item in plan.dropped} == {"only generator is kept"}


def test_only_may_name_a_state_dict_without_layers() -> None:
    plan = plan_fold(gan(), Container.SAFETENSORS, only="ema")
    assert (plan.layers, names(plan)) == ([], {"ema": ["pre.weight"]})


def test_only_names_the_root_with_a_dot() -> None:
    plan = plan_fold(tree(state_at("", BIAS), state_at("ema", BIAS)), Container.TORCH_ZIP, only=".")
    assert (plan.only, dropped(plan)) == ("", ["ema"])


def test_only_of_what_is_not_there_lists_what_is() -> None:
    with pytest.raises(ArgumentError, match="no state dict at 'gen'") as caught:
        plan_fold(gan(), Container.TORCH_ZIP, only="gen")
    assert caught.value.fix == "--only one of: generator, discriminator, ema"


def test_only_saves_a_file_from_the_refusal_of_a_layer_elsewhere() -> None:
    bad = state_at("other", ("w_g", (12,)), ("w_v", (16, 8, 3)))
    good = state_at("generator", *pair("pre.weight"))
    with pytest.raises(LayerError):
        plan_fold(tree(good, bad), Container.TORCH_ZIP)
    assert len(plan_fold(tree(good, bad), Container.TORCH_ZIP, only="generator").layers) == 1


def test_safetensors_takes_the_one_state_dict_that_has_layers() -> None:
    plan = plan_fold(tree(state_at("ema", BIAS), state_at("model", *pair("weight"))), Container.SAFETENSORS)
    assert (plan.only, dropped(plan)) == ("model", ["ema"])


def test_safetensors_takes_the_only_state_dict_although_it_has_no_layer() -> None:
    assert plan_fold(tree(state_at("model", BIAS)), Container.SAFETENSORS).only == "model"


def test_several_candidates_for_safetensors_are_listed() -> None:
    with pytest.raises(ArgumentError, match=r"(?m)there are 2: generator, discriminator$") as caught:
        plan_fold(gan(), Container.SAFETENSORS)
    assert "--only generator" in caught.value.fix
    without = tree(state_at("a", BIAS), state_at("b", BIAS))
    with pytest.raises(ArgumentError, match=r"(?m)there are 2: a, b$"):
        plan_fold(without, Container.SAFETENSORS)


def test_a_refused_layer_makes_a_candidate_too() -> None:
    bad = state_at("other", ("w_g", (12,)), ("w_v", (16, 8, 3)))
    with pytest.raises(ArgumentError, match="there are 2: generator, other"):
        plan_fold(tree(state_at("generator", *pair("weight")), bad), Container.SAFETENSORS)


def test_a_file_without_a_state_dict_cannot_become_safetensors_but_stays_a_torch_file() -> None:
    nothing = tree(siblings=(Sibling("epoch", "int"),))
    with pytest.raises(ArgumentError, match="no state dict"):
        plan_fold(nothing, Container.SAFETENSORS)
    assert plan_fold(nothing, Container.TORCH_ZIP).state_dicts == ()


def test_what_is_no_tensor_in_a_state_dict_is_left_out_of_safetensors_and_listed() -> None:
    state = state_at("model", *pair("weight"))
    state = replace(state, entries=(*state.entries, Entry("steps", None)))
    plan = plan_fold(tree(state), Container.SAFETENSORS)
    assert [(item.path, "not a tensor" in item.why) for item in plan.dropped] == [("model.steps", True)]


def nested() -> Tree:
    """A dict with a tensor in it is a state dict itself, beside the one that it holds."""
    root = state_at("", ("step", ()), BIAS)
    inner = tuple(Entry(name, None) for name in ("epoch", "model", "optimizer", "ema", "mode"))
    return tree(
        replace(root, entries=(*root.entries, *inner)),
        state_at("model", *pair("weight")),
        state_at("ema.model", BIAS),
        optimizers=("optimizer",),
        siblings=(Sibling("ema.decay", "float"),),
    )


def test_a_state_dict_alone_has_no_other_state_dict_or_optimizer_in_it() -> None:
    plan = plan_fold(nested(), Container.TORCH_ZIP, only=".")
    assert names(plan) == {"": ["step", "bias", "epoch", "mode"]}
    assert dropped(plan) == ["model", "ema.model", "optimizer", "ema.decay"]
    plan = plan_fold(nested(), Container.SAFETENSORS, only=".")
    assert names(plan) == {"": ["step", "bias"]}
    assert dropped(plan) == ["model", "ema.model", "optimizer", "ema.decay", "epoch", "mode"]
    plan = plan_fold(nested(), Container.TORCH_ZIP, only="model")
    assert names(plan) == {"model": ["weight"]}
    assert dropped(plan) == ["ema.model", "optimizer", "ema.decay", "step", "bias", "epoch", "mode"]


def test_a_state_dict_with_others_in_it_keeps_them_where_all_is_kept() -> None:
    plan = plan_fold(nested(), Container.TORCH_ZIP)
    assert names(plan)[""] == ["step", "bias", "epoch", "model", "optimizer", "ema", "mode"]
    assert dropped(plan) == ["optimizer"]


# -- the optimizer


def test_an_optimizer_goes_where_layers_were_folded() -> None:
    plan = plan_fold(gan(), Container.TORCH_ZIP)
    assert dropped(plan) == ["optim_g", "optim_d"]
    assert all("by position" in item.why and "--keep-optimizer" in item.why for item in plan.dropped)


def test_an_optimizer_stays_on_request_and_where_nothing_was_folded() -> None:
    plain = tree(state_at("model", BIAS), optimizers=("optimizer",))
    assert dropped(plan_fold(plain, Container.TORCH_ZIP)) == []
    assert dropped(plan_fold(gan(), Container.TORCH_ZIP, keep_optimizer=True)) == []
    assert dropped(plan_fold(gan(), Container.TORCH_ZIP, selection=Selection(exclude=("*",)))) == []


# -- the selection


def test_a_glob_that_matches_no_layer_is_a_slip() -> None:
    with pytest.raises(ArgumentError, match="--layers 'prE") as caught:
        plan_fold(gan(), Container.TORCH_ZIP, selection=Selection(layers=("pre.*", "prE.*")))
    assert caught.value.fix == "the layers are: pre.weight, post.weight"


def test_a_glob_on_a_file_without_layers_is_no_slip() -> None:
    plain = tree(state_at("", BIAS))
    assert plan_fold(plain, Container.TORCH_ZIP, selection=Selection(layers=("dec.*",))).layers == []


def test_unwanted_layers_keep_both_halves() -> None:
    state = state_at("", *pair("a.weight"), *new_pair("b.weight"))
    plan = plan_fold(tree(state), Container.TORCH_ZIP, selection=Selection(exclude=("b.*",)))
    at = "b.parametrizations.weight.original"
    assert names(plan) == {"": ["a.weight", f"{at}0", f"{at}1"]}


# -- refusals


def test_one_refused_layer_is_named_with_its_state_dict_and_reason() -> None:
    for path, where in (("", "layer w"), ("model.ema", "model.ema: layer w")):
        with pytest.raises(LayerError) as caught:
            plan_fold(tree(state_at(path, ("w_g", (12,)), ("w_v", (16, 8, 3)))), Container.TORCH_ZIP)
        assert caught.value.lines == [f"{where}: g (12,) does not fit v (16, 8, 3)"]


def test_every_refused_layer_is_named() -> None:
    bad = [(f"{name}_{half}", shape) for name in "abc" for half, shape in (("g", (5,)), ("v", (4, 3)))]
    stacked = [*new_pair("d.weight"), ("d.parametrizations.weight.1._u", (8,), "float32")]
    with pytest.raises(LayerError, match=r"^5 layers cannot be folded:") as caught:
        plan_fold(tree(state_at("x", *bad), state_at("y", *bad[:2], *stacked)), Container.TORCH_ZIP)
    lines = caught.value.lines[1:]
    assert [line.strip().split(": ")[:2] for line in lines] == [
        ["x", "layer a"],
        ["x", "layer b"],
        ["x", "layer c"],
        ["y", "layer a"],
        ["y", "layer d.weight"],
    ]
    assert "--exclude" in caught.value.fix


def test_of_very_many_refused_layers_the_first_are_named_and_the_rest_counted() -> None:
    bad = [(f"{at}_{half}", shape) for at in range(25) for half, shape in (("g", (5,)), ("v", (4, 3)))]
    with pytest.raises(LayerError, match="25 layers") as caught:
        plan_fold(tree(state_at("", *bad)), Container.TORCH_ZIP)
    assert caught.value.lines[-1] == "and 15 more"


# -- what a pickled module says itself


@pytest.mark.parametrize(
    ("g", "v", "stated"),
    [
        ((8, 1, 1), (8, 4, 3), 0),
        ((1, 4, 1), (8, 4, 3), 1),
        ((1, 4, 1), (8, 4, 3), -2),  # an ordinary axis, as torch's hook records it
        ((), (8, 4, 3), None),
        ((1, 1, 1), (1, 4, 3), 0),
        ((1, 1, 1), (8, 1, 3), 1),
    ],
)
def test_a_stated_dim_that_agrees_is_taken(g: Shape, v: Shape, stated: int | None) -> None:
    state = replace(state_at("model", ("w_g", g), ("w_v", v)), dims={"w": stated})
    ((_, fold),) = plan_fold(tree(state), Container.TORCH_ZIP).changes
    assert fold.layer.dim == (
        plan_fold(tree(replace(state, dims={})), Container.TORCH_ZIP).changes[0][1].layer.dim
    )


@pytest.mark.parametrize(
    ("g", "v", "stated"),
    [
        ((8, 1, 1), (8, 4, 3), 1),
        ((8, 1, 1), (8, 4, 3), None),
        ((8, 1, 1), (8, 4, 3), 7),
        ((1, 1, 1), (8, 4, 3), 0),
        ((), (8, 4, 3), 2),
    ],
)
def test_a_stated_dim_that_disagrees_is_refused(g: Shape, v: Shape, stated: int | None) -> None:
    state = replace(state_at("model", ("w_g", g), ("w_v", v)), dims={"w": stated})
    with pytest.raises(LayerError, match=f"hook says dim {stated}"):
        plan_fold(tree(state), Container.TORCH_ZIP)


def test_a_stated_dim_of_another_weight_says_nothing() -> None:
    state = replace(state_at("model", *pair("w")), dims={"other": 2})
    assert len(plan_fold(tree(state), Container.TORCH_ZIP).layers) == 1


# -- notes


def test_notes_tell_what_the_reader_saw_guesses_and_halves() -> None:
    state = state_at("", ("a_g", (8,)), ("a_v", (8, 8)), ("b.weight_g", (8, 1)), ("b.direction", (8, 4)))
    plan = plan_fold(tree(state, notes=("an old file",)), Container.TORCH_ZIP)
    assert plan.notes[0] == "an old file"
    assert plan.notes[1].startswith("a: g (8,) fits several axes of v (8, 8); axis 0 is taken")
    assert plan.notes[2] == "b.weight_g stands without its other half and is left as it is"
    assert len(plan.notes) == 3


def test_there_is_no_note_where_there_is_nothing_to_tell() -> None:
    for container in (Container.TORCH_ZIP, Container.SAFETENSORS):
        assert plan_fold(tree(state_at("", *pair("a.weight"), BIAS)), container).notes == ()


def tied(path: str, *tensors: tuple[str, Shape, str]) -> StateDict:
    """A state dict in which everything is there twice: as ``a.…`` and as ``b.…`` on the same storages."""
    state = state_at(path, *((f"a.{name}", shape, dtype) for name, shape, dtype in tensors))
    again = []
    for entry in state.entries:
        assert entry.tensor is not None
        name = f"b.{entry.name[2:]}"
        again.append(Entry(name, replace(entry.tensor, info=replace(entry.tensor.info, name=name))))
    return replace(state, entries=(*state.entries, *again))


def test_ties_become_copies_in_safetensors_and_notes_name_what_is_written() -> None:
    state = tied("", *pair("weight"), BIAS)
    assert plan_fold(tree(state), Container.SAFETENSORS).notes == (
        "a.weight, b.weight share memory; a safetensors file holds a copy of each",
        "a.bias, b.bias share memory; a safetensors file holds a copy of each",
    )
    assert plan_fold(tree(state), Container.TORCH_ZIP).notes == ()


def test_a_shared_v_with_another_g_is_no_tie() -> None:
    state = tied("", *pair("weight"))
    *others, g_of_b, v_of_b = state.entries
    assert g_of_b.tensor is not None
    elsewhere = replace(g_of_b.tensor, storage=replace(g_of_b.tensor.storage, start=10**6))
    moved = replace(state, entries=(*others, replace(g_of_b, tensor=elsewhere), v_of_b))
    plan = plan_fold(tree(moved), Container.SAFETENSORS)
    assert [fold.name for _, fold in plan.changes] == ["a.weight", "b.weight"]
    assert plan.notes == ()


def test_slices_of_one_storage_are_no_tie_and_empty_tensors_share_nothing() -> None:
    state = state_at("", ("a", (4,)), ("b", (4,)), ("c", (0,)), ("d", (0,)))
    a, b, c, d = state.entries
    assert a.tensor is not None
    assert b.tensor is not None
    whole = replace(a.tensor.storage, size=32)
    parts = (
        replace(a, tensor=replace(a.tensor, storage=whole)),
        replace(b, tensor=replace(b.tensor, storage=whole, offset=4)),
    )
    assert plan_fold(tree(replace(state, entries=(*parts, c, d))), Container.SAFETENSORS).notes == ()


# -- records


def test_the_record_holds_what_split_needs() -> None:
    state = state_at("net", ("first", (2,)), *pair("b.weight", dtype="float16"))
    (step,) = plan_fold(tree(state), Container.TORCH_ZIP).record
    assert step["verb"] == "fold"
    assert step["state_dicts"] == {
        "net": [
            {
                "form": "legacy",
                "dim": 0,
                "names": ["b.weight"],
                "g": {"shape": [8, 1, 1], "dtype": "float16", "places": [1]},
                "v": {"shape": [8, 4, 3], "dtype": "float16", "places": [2]},
            }
        ]
    }


def test_in_safetensors_the_record_is_of_the_root() -> None:
    (step,) = plan_fold(gan(), Container.SAFETENSORS, only="generator").record
    assert list(step["state_dicts"]) == [""]


def test_earlier_steps_stay_in_the_record_and_those_of_dropped_state_dicts_go() -> None:
    earlier = {"verb": "migrate", "state_dicts": {"generator": [], "ema": []}}
    of_ema = {"verb": "fold", "state_dicts": {"ema": []}}
    before = replace(gan(), record=(earlier, of_ema))
    assert plan_fold(before, Container.TORCH_ZIP).record[:2] == (earlier, of_ema)
    record = plan_fold(before, Container.TORCH_ZIP, only="generator").record
    assert [(step["verb"], list(step["state_dicts"])) for step in record] == [
        ("migrate", ["generator"]),
        ("fold", ["generator"]),
    ]


def test_where_nothing_is_folded_nothing_is_recorded() -> None:
    assert plan_fold(tree(state_at("", BIAS)), Container.TORCH_ZIP).record == ()


def test_metadata_of_parametrizations_goes_with_the_keys() -> None:
    state = state_at("", *new_pair("dec.a.weight"), *new_pair("dec.a.bias", (8,)), *pair("b.weight"))
    at = "dec.a.parametrizations"
    keys = ["", "dec", "dec.a", at, f"{at}.weight", f"{at}.weight.0", f"{at}.bias", f"{at}.bias.0", "b"]
    every = plan_fold(tree(state), Container.TORCH_ZIP).state_dicts[0]
    assert metadata_keys(every, keys) == ["", "dec", "dec.a", "b"]
    some = plan_fold(tree(state), Container.TORCH_ZIP, selection=Selection(exclude=("*.bias",))).state_dicts[
        0
    ]
    assert metadata_keys(some, keys) == ["", "dec", "dec.a", at, f"{at}.bias", f"{at}.bias.0", "b"]
    root = plan_fold(tree(state_at("", *new_pair("weight"))), Container.TORCH_ZIP).state_dicts[0]
    at = "parametrizations"
    assert metadata_keys(root, ["", at, f"{at}.weight", f"{at}.weight.0"]) == [""]


# -- as data


def test_a_plan_is_jsonable_and_says_what_it_does() -> None:
    plan = plan_fold(gan(), Container.TORCH_ZIP, dtype=dtype_named("bfloat16"))
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["schema"] == 1
    keys = "schema verb container only layers already renamed writes state_dicts shards copied dropped notes"
    keys += " norms_left computed constants"
    assert set(data) == set(keys.split())
    assert data["layers"][1] == {
        "state_dict": "discriminator",
        "name": "post.weight",
        "kind": "weight",
        "form": "parametrize",
        "to": "plain",
        "dim": 0,
        "shape": [8, 4, 3],
        "dtype": "bfloat16",
        "rows": 8,
        "norm": "",
        "grade": "keys",
        "unproven": False,
    }
    assert data["state_dicts"][0] == {"path": "generator", "tensors": 2, "layers": 1}
    assert [item["path"] for item in data["dropped"]] == ["optim_g", "optim_d"]


def test_an_exclude_that_matches_nothing_is_noted_and_one_that_matches_is_not() -> None:
    plan = plan_fold(gan(), Container.TORCH_ZIP, selection=Selection(exclude=("pre.*", "nothing.*")))
    assert plan.notes == ("--exclude 'nothing.*' matches no layer",)


def test_a_value_that_is_no_tensor_under_the_name_of_the_weight_is_not_overwritten() -> None:
    state = state_at("", *pair("c.weight"))
    for entries in ((Entry("c.weight", None), *state.entries), (*state.entries, Entry("c.weight", None))):
        with pytest.raises(LayerError, match="has the name of its weight"):
            plan_fold(tree(replace(state, entries=entries)), Container.TORCH_ZIP)
        kept = plan_fold(
            tree(replace(state, entries=entries)), Container.TORCH_ZIP, selection=Selection(exclude=("c.*",))
        )
        assert len(kept.state_dicts[0].steps) == 3
