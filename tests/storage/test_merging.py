"""Several files as one checkpoint."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.infos import pair, state_at
from wnconvert.errors import FormatError
from wnconvert.plan.fold import plan_fold
from wnconvert.storage.shards import merged
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import Entry, Sibling, StateDict, Tree

ONE = Tree((state_at("", ("a.weight_g", (8, 1, 1)), ("a.bias", (8,))),), metadata={"format": "pt"})
TWO = Tree((state_at("", ("a.weight_v", (8, 4, 3)), *pair("b.weight")),), metadata={"format": "pt"})


def test_keys_stand_as_in_the_files_and_say_in_which_of_them_they_are() -> None:
    tree = merged({"1": ONE, "2": TWO})
    (state,) = tree.state_dicts
    assert [(entry.name, entry.tensor.storage.shard) for entry in state.entries if entry.tensor] == [
        ("a.weight_g", 0),
        ("a.bias", 0),
        ("a.weight_v", 1),
        ("b.weight_g", 1),
        ("b.weight_v", 1),
    ]
    assert tree.metadata == {"format": "pt"}


def test_halves_of_a_layer_in_two_files_are_a_layer() -> None:
    plan = plan_fold(merged({"1": ONE, "2": TWO}), Container.SAFETENSORS)
    assert [change.name for _, change in plan.changes] == ["a.weight", "b.weight"]
    assert plan.notes == ()
    assert plan_fold(ONE, Container.SAFETENSORS).notes == (
        "a.weight_g stands without its other half and is left as it is",
    )


def test_what_lies_at_the_same_place_of_two_files_is_not_tied() -> None:
    (state,) = merged({"1": ONE, "2": ONE}).state_dicts
    first, _, again, _ = (entry.tensor for entry in state.entries if entry.tensor)
    assert first.info == again.info
    assert first.view != again.view


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (Tree((state_at("model", ("a", (1,))),)), "it has model"),
        (Tree((state_at(""),), siblings=(Sibling("epoch", "int"),)), "it has epoch"),
        (Tree((state_at(""),), optimizers=("optimizer",)), "it has optimizer"),
        (Tree((StateDict("", (Entry("scale", None),)),)), "it has scale"),
        (Tree((replace(state_at(""), is_module=True),)), "it is a pickled module"),
    ],
)
def test_a_file_that_holds_more_than_a_state_dict_is_refused(tree: Tree, says: str) -> None:
    with pytest.raises(FormatError, match=f"2.bin is not a plain state dict.*: {says}") as caught:
        merged({"1.bin": ONE, "2.bin": tree})
    assert caught.value.fix


def test_metadata_that_only_one_has_is_kept_and_metadata_that_differ_are_refused() -> None:
    more = replace(TWO, metadata={"by": "me"})
    assert merged({"1": ONE, "2": more}).metadata == {"format": "pt", "by": "me"}
    other = replace(TWO, metadata={"format": "tf"})
    with pytest.raises(FormatError, match="1 and 2 differ in the metadata 'format': 'pt', 'tf'"):
        merged({"1": ONE, "2": other})


def test_the_record_is_that_of_any_shard_and_a_note_is_said_once() -> None:
    step = {"verb": "fold", "state_dicts": {"": []}}
    noted = replace(TWO, notes=("a note",))
    tree = merged({"1": replace(noted, record=(step,)), "2": noted})
    assert (tree.record, tree.notes) == ((step,), ("a note",))
