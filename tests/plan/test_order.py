"""Where keys stand: lists of names in, the same names in another order out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wnconvert.plan.order import as_in, before_children, behind_module, is_buffer, restored

# -- a module, as far as the order of its keys goes


@dataclass(frozen=True)
class Node:
    """A module: its parameters, of which the last ``normed`` are normalized, its buffers, its children."""

    parameters: tuple[str, ...]
    normed: int
    buffers: tuple[str, ...]
    children: tuple[Node, ...]


def nodes(levels: int = 3) -> st.SearchStrategy[Node]:
    children = st.lists(st.deferred(lambda: nodes(levels - 1)), max_size=3) if levels else st.just([])
    parameters = st.integers(0, 3).map(lambda count: tuple("abc"[:count]))
    buffers = st.sampled_from([(), ("running_mean", "running_var", "num_batches_tracked"), ("_extra_state",)])
    return st.builds(
        lambda own, normed, kept, below: Node(own, min(normed, len(own)), kept, tuple(below)),
        parameters,
        st.integers(0, 2),
        buffers,
        children,
    )


def legacy_keys(node: Node, prefix: str = "") -> Iterator[str]:
    """The keys in torch's order where pairs are parameters of their module, the last of them."""
    plain = len(node.parameters) - node.normed
    yield from (prefix + name for name in node.parameters[:plain])
    yield from (f"{prefix}{name}_{half}" for name in node.parameters[plain:] for half in "gv")
    yield from (prefix + name for name in node.buffers)
    for at, child in enumerate(node.children):
        yield from legacy_keys(child, f"{prefix}{at}.")


def new_keys(node: Node, prefix: str = "") -> Iterator[str]:
    """The keys in torch's order where pairs are those of the last child; spelled as in ``legacy_keys``."""
    plain = len(node.parameters) - node.normed
    yield from (prefix + name for name in (*node.parameters[:plain], *node.buffers))
    for at, child in enumerate(node.children):
        yield from new_keys(child, f"{prefix}{at}.")
    yield from (f"{prefix}{name}_{half}" for name in node.parameters[plain:] for half in "gv")


def owners(names: Sequence[str]) -> dict[str, str]:
    return {name: name[: name.rfind(".") + 1] for name in names if name.endswith(("_g", "_v"))}


@given(nodes())
def test_both_rules_give_torchs_order_whatever_the_modules_are(root: Node) -> None:
    legacy, new = list(legacy_keys(root)), list(new_keys(root))
    moved = owners(legacy)
    assert behind_module(legacy, moved) == new
    assert before_children(new, moved) == legacy
    # What is there already stays.
    assert behind_module(new, moved) == new
    assert before_children(legacy, moved) == legacy


def test_what_that_is_held_against_moves_keys_at_all() -> None:
    inner = Node(("a", "b"), 1, ("running_mean",), ())
    root = Node(("a",), 1, (), (inner, Node((), 0, (), ())))
    assert list(legacy_keys(root)) == ["a_g", "a_v", "0.a", "0.b_g", "0.b_v", "0.running_mean"]
    assert list(new_keys(root)) == ["0.a", "0.running_mean", "0.b_g", "0.b_v", "a_g", "a_v"]


# -- any names at all

NAMES = st.lists(
    st.lists(st.sampled_from(["a", "b", "", "running_mean", "é"]), min_size=1, max_size=4).map(".".join),
    unique=True,
    max_size=12,
)


@st.composite
def moves(draw: st.DrawFn) -> tuple[list[str], dict[str, str]]:
    """Names, and some of them with the prefix of a module above them."""
    names = draw(NAMES)
    moved = {}
    for name in draw(st.lists(st.sampled_from(names), unique=True)) if names else []:
        dots = [at + 1 for at, letter in enumerate(name) if letter == "."]
        moved[name] = name[: draw(st.sampled_from([0, *dots]))]
    return names, moved


RULES = pytest.mark.parametrize("rule", [behind_module, before_children])
Rule = Callable[[Sequence[str], Mapping[str, str]], list[str]]


@RULES
@given(moves())
def test_a_rule_permutes_keys_and_leaves_the_order_of_those_that_stay(
    rule: Rule, drawn: tuple[list[str], dict[str, str]]
) -> None:
    names, moved = drawn
    found = rule(names, moved)
    assert sorted(found) == sorted(names)
    assert [name for name in found if name not in moved] == [name for name in names if name not in moved]
    assert rule(names, {}) == names
    assert names == drawn[0], "the list that was given is left alone"


@given(moves())
def test_behind_its_module_is_behind_all_that_stays_below_it(drawn: tuple[list[str], dict[str, str]]) -> None:
    names, moved = drawn
    found = behind_module(names, moved)
    place = {name: at for at, name in enumerate(found)}
    for name, prefix in moved.items():
        below = [other for other in names if other.startswith(prefix) and other not in moved]
        assert all(place[other] < place[name] for other in below)
        # But no key of another module is passed: what followed the last key of this one still follows.
        last = max(at for at, other in enumerate(names) if other.startswith(prefix))
        beyond = [other for other in names[last + 1 :] if other not in moved]
        assert all(place[name] < place[other] for other in beyond)


@given(moves())
def test_before_the_children_is_before_each_of_them(drawn: tuple[list[str], dict[str, str]]) -> None:
    names, moved = drawn
    found = before_children(names, moved)
    place = {name: at for at, name in enumerate(found)}
    for name, prefix in moved.items():
        below = [other for other in names if other.startswith(prefix) and other not in moved]
        children = [other for other in below if "." in other[len(prefix) :]]
        assert all(place[name] < place[other] for other in children)


def test_a_module_whose_name_begins_as_another_is_another() -> None:
    names = ["a.w_g", "a.w_v", "a.bias", "ab.bias", "a2.x.y"]
    moved = {"a.w_g": "a.", "a.w_v": "a."}
    assert behind_module(names, moved) == ["a.bias", "a.w_g", "a.w_v", "ab.bias", "a2.x.y"]
    assert before_children(["ab.c.d", "a.c.d", "a.w_g"], {"a.w_g": "a."}) == ["ab.c.d", "a.w_g", "a.c.d"]


def test_a_pair_passes_buffers_of_torchs_norms_but_no_other_key() -> None:
    own = ["bias", "running_mean", "running_var", "num_batches_tracked", "w_g", "w_v"]
    moved = {"w_g": "", "w_v": ""}
    assert before_children(own, moved) == ["bias", "w_g", "w_v", *own[1:4]]
    # A window may be a parameter as well: what is not known stays before the pair.
    assert before_children(["bias", "window", "w_g", "w_v"], moved) == ["bias", "window", "w_g", "w_v"]


@pytest.mark.parametrize("name", ["running_mean", "a.b.running_var", "num_batches_tracked", "a._extra_state"])
def test_what_torch_itself_never_registers_as_a_parameter_is_a_buffer(name: str) -> None:
    assert is_buffer(name)


@pytest.mark.parametrize("name", ["running_mean.weight", "my_running_mean", "weight", "", "window"])
def test_another_name_may_be_a_parameter(name: str) -> None:
    assert not is_buffer(name)


@RULES
def test_keys_of_one_module_stand_in_the_order_in_which_they_are_given(rule: Rule) -> None:
    names = ["a.x_v", "a.y_g", "a.bias", "a.x_g", "a.y_v"]
    pairs = ["a.x_g", "a.x_v", "a.y_g", "a.y_v"]
    assert rule(names, dict.fromkeys(pairs, "a.")) == ["a.bias", *pairs]


@RULES
def test_a_key_of_very_many_dots_takes_no_memory(rule: Rule) -> None:
    # All its prefixes together would take 25 GB.
    long = "a." * 160_000 + "w"
    assert sorted(rule([long, "x.w_g"], {"x.w_g": "x."})) == [long, "x.w_g"]
    assert rule([f"{long}_g", "x"], {f"{long}_g": long[:-1]}) == [f"{long}_g", "x"]


# -- places of a record


@given(NAMES, st.data())
def test_places_that_a_list_had_give_it_back(names: list[str], data: st.DataObject) -> None:
    moved = data.draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    places = {name: names.index(name) for name in moved}
    staying = [name for name in names if name not in places]
    others = list(staying)
    for name in data.draw(st.permutations(moved)):
        others.insert(data.draw(st.integers(0, len(others))), name)
    assert restored(others, places) == names


PLACES = st.one_of(st.integers(-3, 15), st.sampled_from([1 << 40, (1 << 63) - 1]))


@given(NAMES, st.dictionaries(st.sampled_from(["a", "b", "a.b", "none", "b.none"]), PLACES))
def test_places_that_make_no_sense_still_permute(names: list[str], places: dict[str, int]) -> None:
    found = restored(names, places)
    assert sorted(found) == sorted(names)
    assert [name for name in found if name not in places] == [name for name in names if name not in places]
    there = [name for name in found if name in places]
    assert [places[name] for name in there] == sorted(places[name] for name in there)


def test_a_place_behind_the_last_is_the_end() -> None:
    assert restored(["a", "b", "c"], {"a": (1 << 63) - 1, "b": 7}) == ["c", "b", "a"]
    assert restored(["a", "b", "c"], {"c": -5}) == ["c", "a", "b"]
    assert restored(["a", "b"], {}) == ["a", "b"]


# -- the order of another state dict


@given(NAMES, NAMES, st.data())
def test_moved_keys_stand_behind_those_that_they_follow_there(
    names: list[str], more: list[str], data: st.DataObject
) -> None:
    mine, reference = names, data.draw(st.permutations(list(dict.fromkeys([*names, *more]))))
    moved = data.draw(st.lists(st.sampled_from(mine), unique=True)) if mine else []
    found = as_in(mine, moved, reference)
    assert sorted(found) == sorted(mine)
    staying = [name for name in mine if name not in moved]
    assert [name for name in found if name not in moved] == staying
    for name in moved:
        before = [other for other in reference[: reference.index(name)] if other in staying]
        if before:  # there may be other moved keys between them
            assert before[-1] == [other for other in found[: found.index(name)] if other in staying][-1]


def test_a_list_in_the_order_of_the_other_becomes_the_other() -> None:
    reference = ["g", "v", "bias", "h", "u", "last"]
    assert as_in(["bias", "last", "v", "g", "h", "u"], ["g", "v", "h", "u"], reference) == reference


def test_what_is_first_there_stands_before_the_key_that_follows_it_there_not_before_all() -> None:
    assert as_in(["other", "bias", "g"], ["g"], ["g", "bias"]) == ["other", "g", "bias"]
    assert as_in(["other", "g"], ["g"], ["g", "none"]) == ["g", "other"]
