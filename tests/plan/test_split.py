"""What split will do: from the record, from another checkpoint, from globs and a dim; names and shapes."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.infos import Shape, new_pair, pair, state_at
from tests.helpers.records import step_of_before
from wnconvert.errors import ArgumentError, LayerError, WnconvertError
from wnconvert.layers.dims import AUTO
from wnconvert.layers.schemes import Selection
from wnconvert.plan.fold import plan_fold
from wnconvert.plan.plan import Plan
from wnconvert.plan.split.plan import plan_split
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import Entry, Sibling, StateDict, Tree

BIAS = ("bias", (8,), "float32")
Spec = tuple[str, Shape, str]


def tree(*states: StateDict, **more: Any) -> Tree:
    return Tree(tuple(states), **more)


def names(plan: Plan, path: str = "") -> list[str]:
    return [step.name for planned in plan.state_dicts if planned.path == path for step in planned.steps]


def keys(source: Tree, path: str = "") -> list[str]:
    return [entry.name for state in source.state_dicts if state.path == path for entry in state.entries]


def choose(*layers: str, exclude: Sequence[str] = (), dim: int | str | None = AUTO) -> Selection:
    return Selection(layers, tuple(exclude), dim)


def split(source: Tree, *layers: str, exclude: Sequence[str] = (), dim: Any = AUTO, **more: Any) -> Plan:
    return plan_split(
        source, Container.TORCH_ZIP, selection=choose(*layers, exclude=exclude, dim=dim), **more
    )


def after(plan: Plan, source: Tree) -> Tree:
    """The tree of the file that a plan makes of a tree."""
    states = []
    for planned in plan.state_dicts:
        tensors = next(state.tensors for state in source.state_dicts if state.path == planned.path)
        specs: list[Spec] = []
        for step in planned.steps:
            made = step.made_of(tensors).info
            specs.append((made.name, made.shape, str(made.dtype)))
        states.append(state_at(planned.path, *specs))
    record = json.loads(json.dumps(plan.record))
    return tree(*states, record=tuple(record))


def fold(source: Tree, *layers: str, exclude: Sequence[str] = (), **more: Any) -> Tree:
    plan = plan_fold(source, Container.TORCH_ZIP, selection=choose(*layers, exclude=exclude), **more)
    return after(plan, source)


def specs(source: Tree, path: str = "") -> list[tuple[str, Shape, str]]:
    return [
        (entry.name, entry.tensor.info.shape, str(entry.tensor.info.dtype))
        for state in source.state_dicts
        if state.path == path
        for entry in state.entries
        if entry.tensor
    ]


# -- by the record of a fold


ROWS = {
    "rank of v": ((8, 1, 1), (8, 4, 3)),
    "an inner axis": ((1, 1, 3), (8, 4, 3)),
    "one dimension": ((8,), (8, 4, 3)),
    "one element": ((1,), (8, 4, 3)),
    "no dimension": ((), (8, 4, 3)),
    "all ones": ((1, 1, 1), (8, 4, 3)),
    "one row": ((1, 1, 1), (1, 4, 3)),
    "of a vector": ((8,), (8,)),
}


@pytest.mark.parametrize(("g", "v"), ROWS.values(), ids=ROWS)
@pytest.mark.parametrize(
    ("g_dtype", "v_dtype"),
    [("float32", "float32"), ("float32", "bfloat16"), ("float64", "float16"), ("float16", "float16")],
)
def test_the_record_of_a_fold_gives_names_shapes_dtypes_and_places_back(
    g: Shape, v: Shape, g_dtype: str, v_dtype: str
) -> None:
    at = "q.parametrizations.weight.original"
    source = tree(
        state_at(
            "generator",
            ("p.weight_v", v, v_dtype),
            BIAS,
            ("p.weight_g", g, g_dtype),
            (f"{at}0", g, g_dtype),
            ("other", (3,), "int64"),
            (f"{at}1", v, v_dtype),
        )
    )
    folded = fold(source)
    assert keys(folded, "generator") == ["p.weight", "bias", "q.weight", "other"]
    plan = split(folded)
    assert specs(after(plan, folded), "generator") == specs(source, "generator")
    assert (plan.record, plan.notes, plan.already) == ((), (), 0)


@pytest.mark.parametrize(
    ("g_dtype", "v_dtype"), [("float16", "float32"), ("bfloat16", "float16"), ("float16", "bfloat16")]
)
def test_a_g_that_cannot_hold_the_weights_norms_takes_the_weights_dtype(g_dtype: str, v_dtype: str) -> None:
    source = tree(state_at("", ("w_g", (8, 1), g_dtype), ("w_v", (8, 4), v_dtype)))
    folded = fold(source)
    assert specs(after(split(folded), folded)) == [("w_g", (8, 1), v_dtype), ("w_v", (8, 4), v_dtype)]


def test_after_a_cast_both_halves_have_the_dtype_that_the_weight_has() -> None:
    from wnconvert.tensors.dtypes import dtype_named

    source = tree(state_at("", *pair("w"), BIAS))
    folded = fold(source, dtype=dtype_named("float16"))
    assert [dtype for *_, dtype in specs(after(split(folded), folded))] == ["float16"] * 3


def shuffled(seed: int, count: int = 6) -> Tree:
    """Pairs of both forms, their halves anywhere among other keys."""
    rng = random.Random(seed)
    tensors = [
        *(spec for at in range(count) for spec in (pair if at % 2 else new_pair)(f"m{at}.weight")),
        *((f"m{at}.bias", (8,), "float32") for at in range(5)),
    ]
    rng.shuffle(tensors)
    return tree(state_at("", *tensors))


@pytest.mark.parametrize("seed", range(30))
def test_any_folds_in_a_row_are_undone_in_one_split_with_every_key_in_its_place(seed: int) -> None:
    rng = random.Random(seed)
    source = folded = shuffled(seed)
    layers = [f"m{at}.weight" for at in range(6)]
    rng.shuffle(layers)
    for cut in (layers[:2], layers[2:3], layers[3:]):
        folded = fold(folded, *cut)
    assert len(keys(folded)) == len(keys(source)) - 6
    plan = split(folded)
    assert names(plan) == keys(source)
    assert plan.record == ()


@pytest.mark.parametrize("seed", range(30))
def test_splits_of_parts_in_any_order_end_in_the_original(seed: int) -> None:
    rng = random.Random(seed)
    source = state = shuffled(seed)
    layers = [f"m{at}.weight" for at in range(6)]
    rng.shuffle(layers)
    state = fold(fold(state, *layers[:3]), *layers[3:])
    rng.shuffle(layers)
    for number, name in enumerate(layers, 1):
        plan = split(state, name)
        assert [change.name for _, change in plan.changes] == [name]
        state = after(plan, state)
        # What stays folded stands where a fold of the original would have put it.
        rest = layers[number:]
        assert keys(state) == keys(fold(source, *rest) if rest else source)
    assert state == replace(source, record=())


def test_what_is_excluded_stays_in_the_record_and_can_be_split_later() -> None:
    source = tree(state_at("", *pair("a.weight"), BIAS, *pair("b.weight")))
    folded = fold(source)
    once = after(split(folded, exclude=["a.*"]), folded)
    assert keys(once) == ["a.weight", "bias", "b.weight_g", "b.weight_v"]
    assert keys(after(split(once), once)) == keys(source)
    assert split(once).already == 0
    with pytest.raises(ArgumentError, match="nothing says"):
        split(after(split(once), once))


def test_globs_choose_among_the_recorded_layers_of_all_state_dicts() -> None:
    source = tree(state_at("generator", *pair("pre.weight"), BIAS), state_at("d", *new_pair("post.weight")))
    folded = fold(source)
    assert [path for path, _ in split(folded, "po*").changes] == ["d"]
    assert len(split(folded, "p*").layers) == 2
    with pytest.raises(ArgumentError, match="--layers 'x' matches no layer") as caught:
        split(folded, "x", "p*")
    assert caught.value.fix == "the layers are: pre.weight, post.weight"
    assert split(folded, exclude=["bias"]).notes == ("--exclude 'bias' matches no layer",)
    assert split(folded, exclude=["p*"]).notes == ()


def test_what_was_split_by_hand_is_counted_and_the_rest_restored() -> None:
    source = tree(state_at("", *pair("a.weight"), BIAS, *pair("b.weight")))
    folded = fold(source)
    by_hand = tree(state_at("", *pair("a.weight"), BIAS, ("b.weight", (8, 4, 3))), record=folded.record)
    plan = split(by_hand)
    assert (names(plan), plan.already) == (keys(source), 1)


def test_a_split_by_globs_takes_its_layers_out_of_the_record_too() -> None:
    source = tree(state_at("", *pair("a.weight"), *pair("b.weight")))
    folded = fold(source)
    other = after(split(folded, "a.weight", dim=1), folded)
    assert len(split(other).layers) == 1
    assert "a.weight" not in json.dumps(other.record)


def test_another_verb_in_the_record_says_nothing_to_split() -> None:
    folded = fold(tree(state_at("", *pair("a.weight"))))
    other = tuple({**step, "verb": "dance"} for step in folded.record)
    with pytest.raises(ArgumentError, match="nothing says which weights to split"):
        split(replace(folded, record=other))
    assert len(split(replace(folded, record=(*other, *folded.record))).record) == 1


def test_a_record_of_another_path_says_nothing() -> None:
    folded = fold(tree(state_at("generator", *pair("a.weight"))))
    elsewhere = tree(state_at("model", ("a.weight", (8, 4, 3))), record=folded.record)
    with pytest.raises(ArgumentError, match="nothing says"):
        split(elsewhere)


# -- a record that lies


def recorded(**changes: Any) -> Tree:
    """One folded layer, recorded as earlier versions did; some values are others, ``g_shape`` that of g."""
    folded = fold(tree(state_at("", *pair("a.weight"), BIAS)))
    step = step_of_before(folded.record[0])
    layer = step["state_dicts"][""][0]
    for name, value in changes.items():
        half, _, key = name.partition("_")
        if key:
            layer[half][key] = value
        else:
            layer[name] = value
    return replace(folded, record=(step,))


NONSENSE: list[dict[str, Any]] = [
    {"name": 7},
    {"name": None},
    {"form": "lolcat"},
    {"form": ["legacy"]},
    {"form": "parametrize"},  # the halves' names are those of the other form
    {"dim": 3},
    {"dim": -1},
    {"dim": True},
    {"dim": "0"},
    {"dim": 1 << 70},
    {"g": None},
    {"g": []},
    {"v": "a.weight_v"},
    {"g_name": "bias"},
    {"v_name": "a.weight_g"},
    {"v_name": "../a.weight_v"},
    {"g_dtype": "float31"},
    {"g_dtype": {}},
    {"g_dtype": None},
    {"g_shape": 8},
    {"g_shape": [8, 1, "1"]},
    {"g_shape": [8, 1, -1]},
    {"g_shape": [8.0, 1, 1]},
    {"g_shape": [1 << 80, 1, 1]},
    {"g_shape": [1] * 1000},
    {"g_place": -1},
    {"v_place": 1 << 64},
    {"v_place": None},
    {"v_place": 0.5},
    {"v_place": True},
]


@pytest.mark.parametrize("changes", NONSENSE, ids=lambda changes: str(changes)[:40])
def test_a_layer_of_the_record_that_makes_no_sense_is_none(changes: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="nothing says which weights to split"):
        split(recorded(**changes))
    assert len(split(recorded()).layers) == 1


MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"name": "b.weight", "g_name": "b.weight_g", "v_name": "b.weight_v"}, "it is not there"),
    ({"v_shape": [8, 4, 4]}, r"it is \(8, 4, 3\), not \(8, 4, 4\)"),
    ({"v_shape": [1 << 62, 4, 3]}, r"it is \(8, 4, 3\), not"),
    ({"v_shape": [96]}, r"it is \(8, 4, 3\), not \(96,\)"),
    ({"g_shape": [4, 1, 1]}, r"g \(4, 1, 1\) does not fit v \(8, 4, 3\)"),
    ({"g_shape": [1 << 62, 1, 1]}, "does not fit"),
    ({"g_shape": []}, "does not fit"),
    ({"dim": 1}, r"g \(8, 1, 1\) does not fit v \(8, 4, 3\)"),
    ({"dim": None}, "does not fit"),
    ({"name": "bias", "g_name": "bias_g", "v_name": "bias_v"}, r"it is \(8,\), not"),
]


@pytest.mark.parametrize(("changes", "says"), MISFITS, ids=lambda value: str(value)[:24])
def test_a_layer_of_the_record_that_does_not_fit_the_file_is_refused(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(LayerError, match=says) as caught:
        split(recorded(**changes))
    assert "--exclude" in caught.value.fix
    name = str(changes.get("name", "a.weight"))
    assert split(recorded(**changes), exclude=[name]).layers == []


@pytest.mark.parametrize("place", [0, 1, 2, 99, (1 << 63) - 1])
@pytest.mark.parametrize("half", ["g", "v"])
def test_a_place_that_is_wrong_moves_its_key_and_loses_none(half: str, place: int) -> None:
    plan = split(recorded(**{f"{half}_place": place}))
    assert sorted(names(plan)) == ["a.weight_g", "a.weight_v", "bias"]


def test_a_weight_that_two_steps_name_is_split_once_as_the_last_says() -> None:
    once, again = recorded().record[0], recorded(g_shape=[8]).record[0]
    plan = split(replace(recorded(), record=(once, again)))
    assert [change.layer.g.shape for _, change in plan.changes] == [(8,)]
    assert sorted(names(plan)) == ["a.weight_g", "a.weight_v", "bias"]
    assert plan.record == ()


def test_a_key_of_the_names_that_the_record_gives_is_never_lost() -> None:
    for wanted in ("a.weight", "other"):
        folded = recorded()
        state = state_at("", ("a.weight", (8, 4, 3)), BIAS, ("a.weight_g", (8,)))
        there = replace(folded, state_dicts=(state,))
        if wanted == "a.weight":
            with pytest.raises(LayerError, match=r"the name a.weight_g is taken"):
                split(there)
        assert names(split(there, exclude=["a.*"])) == keys(there)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["name", "form", "dim", *(f"{h}_{key}" for h in "gv" for key in ("name", "shape", "dtype", "place"))]


@settings(max_examples=300, deadline=None)
@given(
    changes=st.dictionaries(
        st.sampled_from(FIELDS),
        JSON | st.lists(st.integers(0, 9), max_size=4) | st.sampled_from(["bias", "a.weight", "float16"]),
        min_size=1,
        max_size=3,
    )
)
def test_no_record_makes_split_crash_or_lose_a_key(changes: Mapping[str, Any]) -> None:
    source = recorded(**changes)
    try:
        plan = split(source)
    except WnconvertError as error:
        assert str(error)  # noqa: PT017 - the case where it is refused
        return
    assert names(plan).count("bias") == 1
    assert sorted(names(plan)) == ["a.weight_g", "a.weight_v", "bias"]
    ((_, change),) = plan.changes
    assert change.layer.v.shape == (8, 4, 3)
    assert change.layer.g.numel in {8, 1, 4, 3}


# -- like another checkpoint


def test_like_takes_layers_dims_form_and_order() -> None:
    at = "q.parametrizations.weight.original"
    like = tree(
        state_at(
            "",
            ("p.bias", (8,)),
            ("p.weight_v", (8, 4, 3)),
            ("p.weight_g", (1, 4, 1)),
            ("q.bias", (8,)),
            (f"{at}0", ()),
            (f"{at}1", (8, 4)),
            ("only.there", (3,)),
        )
    )
    source = tree(
        state_at(
            "",
            ("p.weight", (8, 4, 3)),
            ("p.bias", (8,)),
            ("mine", (2,)),
            ("q.weight", (8, 4)),
            ("q.bias", (8,)),
        )
    )
    plan = split(source, like=like)
    assert names(plan) == ["p.bias", "p.weight_v", "p.weight_g", "mine", "q.bias", f"{at}0", f"{at}1"]
    assert [(change.name, change.layer.dim) for _, change in plan.changes] == [
        ("p.weight", 1),
        ("q.weight", None),
    ]


def test_like_goes_before_the_record() -> None:
    folded = fold(tree(state_at("", *pair("a.weight"), *pair("b.weight"))))
    like = tree(state_at("", *new_pair("a.weight"), ("b.weight", (8, 4, 3))))
    plan = split(folded, like=like)
    assert names(plan) == [*(name for name, *_ in new_pair("a.weight")), "b.weight"]
    assert "b.weight" in json.dumps(plan.record)
    assert "a.weight" not in json.dumps(plan.record)


@pytest.mark.parametrize(("mine", "other"), [("", "generator"), ("generator", ""), ("model", "generator")])
def test_a_reference_may_be_nested_otherwise(mine: str, other: str) -> None:
    source = tree(state_at(mine, ("a.weight", (8, 4, 3)), BIAS))
    plan = split(source, like=tree(state_at(other, *pair("a.weight"), BIAS)))
    assert names(plan, mine) == ["a.weight_g", "a.weight_v", "bias"]


def test_of_several_state_dicts_each_finds_its_own() -> None:
    plain = [("a.weight", (8, 4, 3)), ("b.weight", (8, 4, 3))]
    like = tree(
        state_at("d", *pair("b.weight")), state_at("g", *new_pair("a.weight")), state_at("ema", *plain[:1])
    )
    source = tree(*(state_at(path, plain[at]) for path, at in {"g": 0, "d": 1, "ema": 0, "x": 1}.items()))
    plan = split(source, like=like)
    # What is plain in the reference stays plain; what has no place there is like what has its layers.
    found = {item.path: [change.layer.form for change in item.changes] for item in plan.state_dicts}
    assert found == {"g": ["parametrize"], "d": ["legacy"], "ema": [], "x": ["legacy"]}
    assert len(split(source, like=like, only="ema").layers) == 1  # which says that it is meant


@pytest.mark.parametrize("mine", ["", "module.", "_orig_mod.module."])
@pytest.mark.parametrize("theirs", ["", "module.", "model._orig_mod.module."])
def test_the_whole_prefix_by_which_names_differ_is_in_the_fix(mine: str, theirs: str) -> None:
    source = tree(state_at("", (f"{mine}a.weight", (8, 4, 3)), (f"{mine}bias", (8,))))
    like = tree(state_at("", *pair(f"{theirs}a.weight")))
    if mine.removeprefix("_orig_mod.") == theirs:  # a wrapper is seen through
        assert len(split(source, like=like).layers) == 1
        return
    with pytest.raises(LayerError) as raised:
        split(source, like=like)
    assert "--strip-prefix" in raised.value.fix
    if not mine or not theirs:
        assert raised.value.fix.endswith(f"by a prefix: --strip-prefix {mine or theirs} takes it off")


def test_names_that_have_nothing_in_common_get_no_prefix_in_the_fix() -> None:
    source = tree(state_at("", ("a.weight", (8, 4, 3))))
    with pytest.raises(LayerError) as raised:
        split(source, like=tree(state_at("", *pair("module.b.weight"))))
    assert "prefix" not in raised.value.fix


def test_a_reference_that_was_folded_says_by_its_record_what_it_was() -> None:
    unfolded = tree(state_at("", ("bias", (8,)), *pair("a.weight")))
    record = plan_fold(unfolded, Container.TORCH_ZIP).record
    like = tree(state_at("", ("bias", (8,)), ("a.weight", (8, 4, 3))), record=record)
    source = tree(state_at("", ("a.weight", (8, 4, 3)), ("bias", (8,))))
    (planned,) = split(source, like=like).state_dicts
    assert [step.name for step in planned.steps] == ["bias", "a.weight_g", "a.weight_v"]
    with pytest.raises(ArgumentError, match="no weight-normalized layers"):
        split(source, like=replace(like, record=()))


def test_a_dim_that_the_record_contradicts_is_said() -> None:
    unfolded = tree(state_at("", *pair("a.weight")))
    source = tree(
        state_at("", ("a.weight", (8, 4, 3))), record=plan_fold(unfolded, Container.TORCH_ZIP).record
    )
    assert split(source, "a.*", dim=0).notes == ()
    (note,) = split(source, "a.*", dim=1).notes
    assert note == "a.weight: the record says that it was folded along dim 0; it is split along 1"
    square = fold(tree(state_at("", *pair("a.weight", (4, 4)))))
    assert len(split(square, "a.weight", dim=1).notes) == 1
    one_row = fold(tree(state_at("", *pair("a.weight", (1, 4)))))
    assert split(one_row, "a.weight", dim=None).notes == ()  # the same numbers


def test_what_the_record_of_a_reference_says_must_fit_the_reference() -> None:
    source = tree(state_at("", ("a.weight", (8, 4, 3)), BIAS))
    assert len(split(source, like=recorded()).layers) == 1
    with pytest.raises(LayerError, match=r"layer a\.weight of --like cannot be used: .*not \(8, 4, 4\)"):
        split(source, like=recorded(v_shape=[8, 4, 4]))
    with pytest.raises(ArgumentError, match="no weight-normalized layers"):
        split(source, like=recorded(dim=7))
    assert split(source, like=recorded(v_shape=[8, 4, 4]), exclude=["a.*"]).layers == []
    names_of_both = tree(state_at("", *pair("b.weight"), ("a.weight", (8, 4, 3))), record=recorded().record)
    both = tree(state_at("", ("a.weight", (8, 4, 3)), ("b.weight", (8, 4, 3))))
    assert len(split(both, like=names_of_both).layers) == 2


def test_a_layer_of_the_reference_that_is_excluded_need_not_be_there() -> None:
    like = tree(state_at("", *pair("a.weight"), *pair("b.weight")))
    source = tree(state_at("m", ("a.weight", (8, 4, 3))), state_at("n", BIAS))
    with pytest.raises(ArgumentError, match="no state dict of it has all the layers"):
        split(source, like=like)
    assert [path for path, _ in split(source, like=like, exclude=["b.*"]).changes] == ["m"]
    assert [path for path, _ in split(source, "a.*", like=like).changes] == ["m"]


def test_layers_that_are_not_there_are_listed() -> None:
    like = tree(state_at("", *pair("a.weight"), *pair("b.weight"), *pair("c.weight")))
    source = tree(state_at("", ("a.weight", (8, 4, 3))))
    with pytest.raises(LayerError, match=r"(?m)it lacks 2 layers of --like:\n  b.weight\n  c.weight$"):
        split(source, like=like)
    assert len(split(source, like=like, exclude=["[bc].*"]).layers) == 1
    with pytest.raises(
        LayerError, match=r"(?m)none of the layers of --like is in it: a\.weight, b\.weight, c\.weight$"
    ):
        split(tree(state_at("", BIAS)), like=like)


def test_shapes_are_held_against_the_reference() -> None:
    like = tree(state_at("", *pair("a.weight"), *pair("b.weight")))
    source = tree(state_at("", ("a.weight", (8, 4, 3)), ("b.weight", (4, 8, 3))))
    with pytest.raises(
        LayerError, match=r"layer b.weight: unlike in --like, it is \(4, 8, 3\), not \(8, 4, 3\)"
    ):
        split(source, like=like)
    opaque = tree(StateDict("", (*state_at("", ("a.weight", (8, 4, 3))).entries, Entry("b.weight", None))))
    with pytest.raises(LayerError, match="it is not a plain tensor"):
        split(opaque, like=like)
    for dtype in ("int64", "float8_e4m3fn", "complex64"):
        with pytest.raises(LayerError, match=f"it is {dtype}, which has no norm"):
            split(tree(state_at("", ("a.weight", (8, 4, 3), dtype))), like=like, exclude=["b.*"])


@pytest.mark.parametrize(
    ("mine", "g", "v", "expected"),
    [
        ("float32", "float32", "float32", "float32"),
        ("float16", "float32", "float32", "float16"),  # the reference is not of this precision
        ("bfloat16", "float32", "bfloat16", "float32"),
        ("float64", "float32", "float64", "float64"),
    ],
)
def test_g_has_the_references_dtype_where_it_says_more(mine: str, g: str, v: str, expected: str) -> None:
    like = tree(state_at("", ("w_g", (8, 1), g), ("w_v", (8, 4), v)))
    source = tree(state_at("", ("w", (8, 4), mine)))
    assert [dtype for *_, dtype in specs(after(split(source, like=like), source))] == [expected, mine]


def test_a_reference_without_layers_or_for_other_state_dicts_is_refused() -> None:
    source = tree(state_at("a", ("a.weight", (8, 4, 3))), state_at("b", BIAS))
    with pytest.raises(ArgumentError, match="--like has no weight-normalized layers"):
        split(source, like=tree(state_at("", ("a.weight", (8, 4, 3)))))
    with pytest.raises(
        ArgumentError, match=r"no state dict .* all the layers of --like \(a\.weight, b"
    ) as caught:
        split(source, like=tree(state_at("", *pair("a.weight"), *pair("b.weight"))))
    assert "--only" in caught.value.fix


def test_a_refused_layer_of_the_reference_matters_where_it_is_gone_by() -> None:
    bad = [("b.weight_g", (5,), "float32"), ("b.weight_v", (4, 3), "float32")]
    source = tree(state_at("", ("a.weight", (8, 4, 3)), ("b.weight", (4, 3))))
    with pytest.raises(LayerError, match=r"layer b.weight of --like cannot be used: g .* does not fit"):
        split(source, like=tree(state_at("", *pair("a.weight"), *bad)))
    assert len(split(source, like=tree(state_at("", *pair("a.weight"), *bad)), exclude=["b.*"]).layers) == 1
    like = tree(state_at("other", *bad, *pair("c.weight")), state_at("mine", *pair("a.weight")))
    assert len(split(source, like=like).layers) == 1


def test_globs_choose_among_the_layers_of_the_reference() -> None:
    like = tree(state_at("", *pair("a.weight"), *pair("b.weight")))
    source = tree(state_at("", ("a.weight", (8, 4, 3)), ("b.weight", (8, 4, 3))))
    assert names(split(source, "a.*", like=like)) == ["a.weight_g", "a.weight_v", "b.weight"]
    plan = split(source, like=like, exclude=["a.*", "c.*"])
    assert names(plan) == ["a.weight", "b.weight_g", "b.weight_v"]
    assert plan.notes == ("--exclude 'c.*' matches no layer",)
    with pytest.raises(ArgumentError, match="--layers 'c' matches no layer") as caught:
        split(source, "c", like=like)
    assert caught.value.fix == "the layers are: a.weight, b.weight"
    assert split(source, like=like, exclude=["*"]).layers == []


def test_layers_that_are_split_already_are_left_and_counted() -> None:
    like = tree(state_at("", *new_pair("a.weight"), *new_pair("b.weight")))
    source = tree(state_at("", *pair("a.weight"), ("b.weight", (8, 4, 3))))
    plan = split(source, like=like)
    assert plan.already == 1
    assert names(plan) == ["a.weight_g", "a.weight_v", *(name for name, *_ in new_pair("b.weight"))]
    assert split(source, "b.*", like=like).already == 0


# -- globs and a dim


@pytest.mark.parametrize(
    ("dim", "g"),
    [(0, (8, 1, 1)), (1, (1, 4, 1)), (2, (1, 1, 3)), (-2, (1, 4, 1)), (-3, (8, 1, 1)), (None, ()), (-1, ())],
)
def test_globs_and_a_dim_make_the_g_that_torch_makes(dim: int | None, g: Shape) -> None:
    source = tree(state_at("", ("a.weight", (8, 4, 3)), ("a.bias", (8,))))
    plan = split(source, "a.weight", dim=dim)
    at = "a.parametrizations.weight.original"
    assert specs(after(plan, source)) == [
        ("a.bias", (8,), "float32"),
        (f"{at}0", g, "float32"),
        (f"{at}1", (8, 4, 3), "float32"),
    ]
    legacy = split(source, "a.weight", dim=dim, to="legacy")
    assert names(legacy) == ["a.bias", "a.weight_g", "a.weight_v"]


def test_an_axis_that_is_not_there_is_refused() -> None:
    source = tree(state_at("", ("a.weight", (8, 4, 3)), ("b.weight", (8, 4))))
    for dim in (2, -3):
        with pytest.raises(LayerError, match=rf"layer b.weight: it is \(8, 4\), and has no axis {dim}"):
            split(source, "*", dim=dim)
    with pytest.raises(LayerError, match="2 layers cannot be split"):
        split(source, "*", dim=7)


MODEL = [
    ("conv.weight", (8, 4, 3), "float32"),
    ("conv.bias", (8,), "float32"),
    ("emb.weight", (100, 8), "float32"),
    ("steps", (), "int64"),
    ("table", (3, 3), "int64"),
    ("u.weight_orig", (8, 8), "float32"),
    ("p.parametrizations.weight.0.base", (8, 8), "float32"),
    ("q.weight", (8, 8), "float8_e4m3fn"),
    ("bad.weight_g", (5,), "float32"),
    ("bad.weight_v", (4, 3), "float32"),
    ("lone.weight_g", (4, 1), "float32"),
]


def test_a_wildcard_takes_what_looks_like_a_weight_and_says_what_it_leaves() -> None:
    plan = split(tree(state_at("", *MODEL)), "*", dim=0)
    assert [change.name for _, change in plan.changes] == ["conv.weight"]
    (note,) = plan.notes
    for said in (
        "1-D: conv.bias",
        "like an embedding: emb.weight",
        "int64: steps, table",
        "float8_e4m3fn: q.weight",
        "a part of another reparameterization: u.weight_orig, p.parametrizations.weight.0.base",
        "half of a pair: bad.weight_g, bad.weight_v, lone.weight_g",
    ):
        assert said in note
    assert split(tree(state_at("", *MODEL)), "conv.w*", dim=0).notes == ()


def test_a_linear_with_a_bias_is_no_embedding_whatever_it_is_called() -> None:
    source = tree(state_at("", ("emb.weight", (8, 4)), ("emb.bias", (8,)), ("member.weight", (8, 4, 3))))
    assert len(split(source, "*.weight", dim=0).layers) == 2


def test_an_exact_name_is_taken_whatever_it_looks_like_but_for_what_has_no_norm() -> None:
    source = tree(state_at("", *MODEL))
    exact = split(source, "conv.bias", "emb.weight", dim=0)
    assert [(change.name, change.layer.g.shape) for _, change in exact.changes] == [
        ("conv.bias", (8,)),
        ("emb.weight", (100, 1)),
    ]
    (note,) = exact.notes
    assert note.startswith("conv.bias: the next command finds it as a layer only by its name in full, ")
    assert note.endswith("--layers 'conv.bias'")
    assert split(source, "conv.weight", "conv.bias", dim=0).notes == ()
    for name, why in {
        "table": "it is int64, which has no norm",
        "steps": "it is int64, which has no norm",
        "q.weight": "it is float8_e4m3fn, which has no norm",
    }.items():
        with pytest.raises(LayerError, match=f"layer {name}: {why}"):
            split(source, name, dim=0)
    with pytest.raises(LayerError, match="layer s: it is a single number"):
        split(tree(state_at("", ("s", ()))), "s", dim=None)


def test_globs_that_catch_nothing_to_split_are_an_error() -> None:
    source = tree(state_at("a", *MODEL), state_at("b", *MODEL[:2]))
    with pytest.raises(ArgumentError, match=r"(?m)nothing that looks like a weight \(1-D: conv.bias\)$"):
        split(source, "*.bias", dim=0)
    with pytest.raises(ArgumentError, match=r"--layers 'Conv.*' matches no weight") as caught:
        split(source, "Conv.*", "conv.*", dim=0)
    assert caught.value.fix.startswith("the weights are: conv.weight, conv.bias, ")
    with pytest.raises(ArgumentError, match="matches no weight"):
        split(source, "conv.weight", "nope", dim=0)


def test_exclude_holds_for_globs_too() -> None:
    source = tree(state_at("", *MODEL))
    plan = split(source, "[ce]*", dim=0, exclude=["emb.*", "zzz"])
    assert [change.name for _, change in plan.changes] == ["conv.weight"]
    assert plan.notes[0] == "--exclude 'zzz' matches no layer"
    assert "emb.weight" not in plan.notes[1]
    plan = split(source, "conv.weight", dim=0, exclude=["*"])
    assert (plan.layers, plan.notes) == ([], ())


def test_what_the_globs_mean_and_is_split_already_is_counted() -> None:
    source = tree(state_at("", *pair("a.weight"), *new_pair("b.weight"), ("c.weight", (8, 4))))
    plan = split(source, "*", dim=0)
    assert (len(plan.layers), plan.already) == (1, 2)
    assert plan.notes == ("a.weight split already in the other form: wnconvert migrate --to parametrize",)
    plan = split(source, "[ab].*", dim=0)
    assert (plan.layers, plan.already, names(plan)) == ([], 2, keys(source))


def test_a_name_that_is_taken_is_refused() -> None:
    source = tree(state_at("", ("a.weight", (8, 4)), ("a.weight_v", (8,))))
    with pytest.raises(LayerError, match=r"layer a.weight: the name a.weight_v is taken") as caught:
        split(source, "a.weight", dim=0, to="legacy")
    assert caught.value.fix == "--exclude 'a.weight' leaves it as it is"
    assert len(split(source, "a.weight", dim=0).layers) == 1


# -- what is said and what is not


def test_nothing_said_is_an_error_that_explains_the_three_ways() -> None:
    plain = tree(state_at("", ("a.weight", (8, 4))))
    for options in ({}, {"exclude": ["b"]}, {"to": "legacy"}):
        with pytest.raises(ArgumentError, match="nothing says which weights to split") as caught:
            split(plain, **options)
        for way in ("--like REF", "--layers GLOB --dim N", "wnconvert fold"):
            assert way in caught.value.fix


def test_a_dim_without_layers_and_layers_without_a_dim_are_not_enough() -> None:
    plain = tree(state_at("", ("a.weight", (8, 4))))
    for dim in (0, None, -1):
        with pytest.raises(ArgumentError, match="--dim alone names no layers") as caught:
            split(plain, dim=dim)
        assert "--layers" in caught.value.fix
    with pytest.raises(ArgumentError, match="not the axis of their norms") as caught:
        split(plain, "a.weight")
    assert "--dim 0" in caught.value.fix
    assert "--dim none" in caught.value.fix


@pytest.mark.parametrize("layers", [(), ("a.weight",)])
def test_like_and_dim_exclude_each_other(layers: Sequence[str]) -> None:
    like = tree(state_at("", *pair("a.weight")))
    source = tree(state_at("", ("a.weight", (8, 4, 3))))
    with pytest.raises(ArgumentError, match="--like says every dim itself"):
        split(source, *layers, dim=0, like=like)
    assert len(split(source, *layers, like=like).layers) == 1


@pytest.mark.parametrize(
    ("form", "to", "expected"),
    [
        ("legacy", None, ["b.weight_g", "b.weight_v", "b.bias", "b.sub.bias"]),
        ("legacy", "legacy", ["b.weight_g", "b.weight_v", "b.bias", "b.sub.bias"]),
        ("parametrize", "legacy", ["b.bias", "b.weight_g", "b.weight_v", "b.sub.bias"]),
        ("parametrize", None, ["b.bias", "b.sub.bias", "P0", "P1"]),
        ("legacy", "parametrize", ["b.bias", "b.sub.bias", "P0", "P1"]),
    ],
)
def test_another_form_than_the_recorded_one_has_its_own_places(
    form: str, to: str | None, expected: list[str]
) -> None:
    rest: list[Spec] = [("b.bias", (8,), "float32"), ("b.sub.bias", (8,), "float32")]
    end: Spec = ("c.bias", (8,), "float32")
    halves = pair("b.weight") if form == "legacy" else new_pair("b.weight")
    source = tree(
        state_at("", *halves, *rest, end) if form == "legacy" else state_at("", *rest, *halves, end)
    )
    long = [name.replace("P", "b.parametrizations.weight.original") for name in expected]
    assert names(split(fold(source), to=to)) == [*long, "c.bias"]
    like = split(fold(source), to=to, like=source)
    assert names(like) == [*long, "c.bias"]


def test_a_weight_that_shared_memory_with_a_name_that_stays_is_noted() -> None:
    state = state_at("", ("a", (8, 4)), ("b", (8, 4)), ("c", (8, 4)))
    a, b, c = state.entries
    assert a.tensor
    assert b.tensor
    tied = replace(b, tensor=replace(b.tensor, storage=a.tensor.storage))
    source = tree(replace(state, entries=(a, tied, c)))
    assert len(split(source, "a", dim=0).notes) == 1
    assert split(source, "a", "b", dim=0).notes == ()
    assert split(source, "c", dim=0).notes == ()


@pytest.mark.parametrize("globs", [("a",), ("*",)])
def test_a_weight_without_elements_is_refused_by_name(globs: tuple[str, ...]) -> None:
    source = tree(state_at("", ("a", (0, 4)), ("b", (8, 4))))
    with pytest.raises(LayerError, match=r"layer a: it is empty: saved from one rank") as caught:
        split(source, *globs, dim=0)
    assert caught.value.fix.startswith("gather it first (zero_to_fp32.py, FULL_STATE_DICT); --exclude 'a'")
    assert [row.name for row in split(source, "b", dim=0).layers] == ["b"]


def test_of_a_sharded_training_a_wildcard_says_that_all_is_empty() -> None:
    source = tree(state_at("", ("a", (0,)), ("b", (0,))))
    with pytest.raises(ArgumentError, match=r"nothing that looks like a weight \(empty: a, b\)"):
        split(source, "*", dim=0)


# -- which state dicts, and what is left out


def gan() -> Tree:
    folded = fold(
        tree(
            state_at("generator", *pair("pre.weight"), BIAS),
            state_at("discriminator", *new_pair("post.weight")),
            state_at("ema", ("pre.weight", (8, 4, 3))),
        )
    )
    return replace(folded, optimizers=("optim_g",), siblings=(Sibling("epoch", "int"),))


def test_a_torch_file_keeps_all_but_the_optimizers_state() -> None:
    plan = split(gan())
    assert [len(item.changes) for item in plan.state_dicts] == [1, 1, 0]
    assert [item.path for item in plan.dropped] == ["optim_g"]
    assert "--keep-optimizer" in plan.dropped[0].why
    assert "splitting" in plan.dropped[0].why
    assert split(gan(), keep_optimizer=True).dropped == ()
    assert split(gan(), exclude=["*"]).dropped == ()


@pytest.mark.parametrize("container", [Container.TORCH_ZIP, Container.SAFETENSORS])
def test_only_keeps_one_state_dict_and_its_record(container: Container) -> None:
    plan = plan_split(gan(), container, only="generator", selection=choose(exclude=["pre.*"]))
    assert [item.path for item in plan.dropped] == ["discriminator", "ema", "optim_g", "epoch"]
    (step,) = plan.record
    assert list(step["state_dicts"]) == ["generator" if container is Container.TORCH_ZIP else ""]
    assert names(plan_split(gan(), container, only="generator"), "generator") == [
        "pre.weight_g",
        "pre.weight_v",
        "bias",
    ]
    plan = plan_split(gan(), container, only="generator")
    assert [item.path for item in plan.dropped] == ["discriminator", "ema", "optim_g", "epoch"]
    with pytest.raises(ArgumentError, match="nothing says"):
        plan_split(gan(), container, only="ema")


def test_safetensors_takes_the_one_state_dict_that_something_is_wanted_of() -> None:
    with pytest.raises(ArgumentError, match="there are 2: generator, discriminator"):
        plan_split(gan(), Container.SAFETENSORS)
    assert plan_split(gan(), Container.SAFETENSORS, selection=choose("post.*")).only == "discriminator"
    like = tree(state_at("x", *new_pair("post.weight")))
    assert plan_split(gan(), Container.SAFETENSORS, like=like).only == "discriminator"


def test_a_state_dict_alone_has_no_other_one_in_it() -> None:
    root = state_at("", ("step", ()), ("a.weight", (8, 4)))
    inner = tuple(Entry(name, None) for name in ("epoch", "model"))
    nested = tree(replace(root, entries=(*inner, *root.entries)), state_at("model", ("b.weight", (8, 4))))
    at = "a.parametrizations.weight.original"
    plan = split(nested, "*", dim=0, only=".")
    assert names(plan) == ["epoch", "step", f"{at}0", f"{at}1"]
    both = split(nested, "*", dim=0)
    assert names(both) == ["epoch", "model", "step", f"{at}0", f"{at}1"]
    alone = plan_split(nested, Container.SAFETENSORS, only=".", selection=choose("*", dim=0))
    assert names(alone) == ["step", f"{at}0", f"{at}1"]


def test_a_whole_pickled_module_is_refused_but_not_its_tensors_alone() -> None:
    module = replace(gan().state_dicts[0], path="model", is_module=True)
    source = tree(module)
    with pytest.raises(LayerError, match=r"whole pickled module.* cannot be split") as caught:
        split(source, "pre.weight", dim=0)
    assert "safetensors" in caught.value.fix
    assert "split_module" in caught.value.fix
    plan = plan_split(source, Container.SAFETENSORS, selection=choose("pre.weight", dim=0))
    assert len(plan.layers) == 1
    beside = tree(module, state_at("b", ("x.weight", (8, 4))))
    assert len(split(beside, "x.weight", dim=0).layers) == 1


def test_a_plan_is_json_that_says_what_becomes_of_each_layer() -> None:
    plan = split(gan(), to="legacy")
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["verb"] == "split"
    assert data["already"] == 0
    assert data["layers"][1] == {
        "state_dict": "discriminator",
        "name": "post.weight",
        "kind": "weight",
        "form": "plain",
        "to": "legacy",
        "dim": 0,
        "shape": [8, 4, 3],
        "dtype": "float32",
        "rows": 8,
        "norm": "",
        "grade": "keys",
        "unproven": False,
    }
