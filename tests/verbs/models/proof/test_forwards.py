"""What a model takes, told by it or by its class, and the texts that are proposed for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.export_models import scripted, speech
from wnconvert.errors import ArgumentError
from wnconvert.verbs.models.proof.inputs.forwards import (
    Forward,
    class_promised,
    forward_of,
    forward_of_class,
)
from wnconvert.verbs.models.proof.inputs.proposed import (
    KNOWN,
    known_class,
    proposed_by_names,
    proposed_for_program,
)
from wnconvert.verbs.models.proof.signatures import signature_of


class Variadic(nn.Module):
    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        return first + sum(others)


class Keywords(nn.Module):
    def forward(self, **tensors: Tensor) -> dict[str, Tensor]:
        return tensors


class Mel(nn.Module):
    def forward(self, mel: Tensor, gain: float = 1.0) -> Tensor:
        return mel * gain

    @classmethod
    def from_config(cls) -> Any:
        return cls()

    @classmethod
    def other(cls) -> Any:
        return nn.ReLU()


class Base(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Below(Base):
    def forward(self, mel: Tensor) -> Tensor:
        return mel


class Assigned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.forward = self.run  # type: ignore[assignment,method-assign]

    def forward(self, x: Tensor) -> Tensor:
        return x

    def run(self, mel: Tensor) -> Tensor:
        return mel


class Replaced(nn.Module):
    def __new__(cls) -> Any:
        return nn.ReLU()

    def forward(self, mel: Tensor) -> Tensor:
        return mel


def to_mel() -> Mel:
    return Mel()


def to_base() -> Base:
    return Below()


def to_any_module() -> nn.Module:
    return Mel()


def to_nobody_knows():  # type: ignore[no-untyped-def]
    return Mel()


# -- forward


def test_names_of_inputs_are_those_of_forward() -> None:
    found = forward_of(speech())
    assert (found.names, found.needed) == (("mel", "ids", "gain"), ("mel", "ids"))
    assert (found.defaults, found.takes_others) == ({"gain": "1.0"}, False)
    assert forward_of(Variadic()).takes_others
    script = forward_of(scripted(nn.Linear(3, 2)))
    assert (script.names, script.needed) == (("input",), ("input",))


def test_inputs_are_checked_against_forward() -> None:
    forward_of(speech()).check(["ids", "mel"])
    forward_of(Keywords()).check(["whatever"])
    with pytest.raises(ArgumentError, match="no input 'idx'") as caught:
        forward_of(speech()).check(["idx", "mel"])
    assert "did you mean ids?" in caught.value.fix
    with pytest.raises(ArgumentError, match="forward needs ids too"):
        forward_of(speech()).check(["mel"])
    with pytest.raises(ArgumentError, match=r"no input 'a\.b'"):
        forward_of(Keywords()).check(["a.b"])


@pytest.mark.parametrize("factory", [Mel, Mel.from_config, to_mel], ids=["class", "classmethod", "function"])
def test_a_factory_that_says_its_class_tells_its_inputs_before_it_is_called(factory: Any) -> None:
    assert class_promised(factory) is Mel
    assert forward_of_class(Mel) == forward_of(Mel())


@pytest.mark.parametrize(
    "factory",
    [Mel.other, to_base, to_any_module, to_nobody_knows, print, 3],
    ids=["any classmethod", "a base class", "nn.Module", "no annotation", "builtin", "number"],
)
def test_a_factory_that_may_make_something_else_promises_nothing(factory: Any) -> None:
    made = class_promised(factory)
    assert made is None or forward_of_class(made) is None


@pytest.mark.parametrize("cls", [Assigned, Replaced, nn.Module])
def test_a_class_whose_instances_have_another_forward_promises_nothing(cls: type[nn.Module]) -> None:
    assert forward_of_class(cls) is None


# -- proposals


def test_usual_names_have_texts_that_are_read_and_others_a_place_to_fill() -> None:
    names = ("mel", "ids", "lengths", "scales", "f0", "sid", "audio", "attention_mask", "images")
    proposal = proposed_by_names(Forward(names, names))
    assert signature_of(proposal.inputs).names == names
    unknown = proposed_by_names(Forward(("x", "labels"), ("x",), defaults={"labels": "None"}))
    assert [(each.name, each.needed, each.text) for each in unknown.arguments] == [
        ("x", True, "x=float32[…]"),
        ("labels", False, ""),
    ]
    assert unknown.inputs == ("x=float32[…]",)


def test_a_program_proposes_the_shapes_that_it_was_exported_with() -> None:
    class Two(nn.Module):
        def forward(self, mel: Tensor, ids: Tensor) -> Tensor:
            return mel.sum() + ids.sum()

    sizes = torch.export.Dim("frames", min=3, max=40)
    program = torch.export.export(
        Two(),
        (torch.ones(1, 4, 9), torch.ones(1, 5, dtype=torch.int64)),
        dynamic_shapes={"mel": {2: sizes}, "ids": None},
    )
    proposal = proposed_for_program(program)
    assert proposal.inputs == ("mel=float32[1,4,T]", "ids=int64[1,5]<100")
    assert proposal.ranges == ("T=3..40",)


def test_a_class_of_the_table_is_found_by_its_whole_name_and_library() -> None:
    assert known_class("transformers", "SpeechT5HifiGan") is KNOWN[0]
    for library, name in (
        ("diffusers", "SpeechT5HifiGan"),
        ("transformers", "SpeechT5HifiGanX"),
        ("transformers", "os.system"),
        ("acme", "VitsModel"),
    ):
        assert known_class(library, name) is None
