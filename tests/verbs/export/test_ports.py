"""Which input of the ONNX model is which of the module's, and what to do where that cannot be told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from wnconvert.errors import ArgumentError
from wnconvert.onnx.runtime.ports import ValueInfo
from wnconvert.onnx.runtime.process import Opened
from wnconvert.tensors.dtypes import DTYPES
from wnconvert.verbs.export.ports import Ports, ports_of
from wnconvert.verbs.models.proof.inputs.texts import parse_input
from wnconvert.verbs.models.proof.signatures import signature_of

MEL, IDS = "mel=float32[1,80,T]", "ids=int64[1,T]<9"


def model(*texts: str) -> Opened:
    """A model whose inputs are written as for --input."""
    specs = map(parse_input, texts)
    ports = tuple(ValueInfo(spec.name, f"tensor({spec.dtype})", spec.dtype, spec.shape) for spec in specs)
    return Opened(Path("m.onnx"), ports, (), None)


def paired(opened: Opened, *inputs: str) -> Ports:
    return ports_of(opened, signature_of(inputs, ["T=4..20"]))


@pytest.mark.parametrize(
    ("there", "inputs", "names"),
    [
        ([MEL, IDS], [MEL, IDS], {"mel": "mel", "ids": "ids"}),
        ([IDS, MEL], [MEL, IDS], {"mel": "mel", "ids": "ids"}),
        (["x=float32[1,80,T]"], ["mel:x=float32[1,80,T]"], {"mel": "x"}),
        (["b=float32[3]", "a=float32[3]"], ["a:b=float32[3]", "b:a=float32[3]"], {"a": "b", "b": "a"}),
    ],
)
def test_inputs_are_paired_by_the_names_that_are_given(
    there: list[str], inputs: list[str], names: Mapping[str, str]
) -> None:
    ports = ports_of(model(*there), signature_of(inputs))
    assert (ports.names, ports.notes) == (names, ())


@pytest.mark.parametrize(
    ("there", "inputs", "names"),
    [
        (["x=float32[1,80,T]"], [MEL], {"mel": "x"}),
        (["x=float32[1,80,N]", "y=int64[1,N]<9"], [MEL, IDS], {"mel": "x", "ids": "y"}),
        (["ids=int64[1,T]<9", "x=float32[1,80,72]"], [MEL, IDS], {"mel": "x", "ids": "ids"}),
    ],
)
def test_where_counts_agree_other_names_are_taken_in_their_order_and_that_is_said(
    there: list[str], inputs: list[str], names: Mapping[str, str]
) -> None:
    ports = paired(model(*there), *inputs)
    assert ports.names == names
    assert ports.notes[0].startswith("the model has other names of inputs, taken in their order: mel is x")


@pytest.mark.parametrize(
    ("there", "inputs", "fix"),
    [
        (["x=float32[1,80,T]", "y=float32[1,80,T]"], [MEL], "give 'mel:x=float32[1,80,T]', if it is mel"),
        (["x=int64[1,T]<9"], [MEL], "give 'mel:x=float32[1,80,T]', if it is mel"),
        (["x=float32[1,T]"], [MEL], "give 'mel:x=float32[1,80,T]', if it is mel"),
        (["x=float32[1,70,T]"], [MEL], "give 'mel:x=float32[1,80,T]', if it is mel"),
        (["mel=float32[1,80,T]", "y=int64[1,T]<9"], [MEL], "give 'NAME:y=int64[1,T]', where NAME is its"),
        (["x=int64[1,T]<9", "y=float32[1,80,T]"], [MEL, IDS], "give 'mel:x=float32[1,80,T]', if it is mel"),
    ],
)
def test_what_cannot_be_paired_is_told_with_the_text_that_pairs_it(
    there: list[str], inputs: list[str], fix: str
) -> None:
    with pytest.raises(ArgumentError, match=r"m\.onnx: its input [xy], \S+, is none of") as caught:
        paired(model(*there), *inputs)
    assert caught.value.fix.startswith(fix)


def test_a_name_that_the_model_does_not_have_is_told() -> None:
    with pytest.raises(ArgumentError, match="the model has no input 'z'") as caught:
        paired(model("x=float32[1,80,T]"), "mel:z=float32[1,80,T]")
    assert caught.value.fix == "its inputs are: x"


def test_an_input_that_the_exporter_left_out_is_a_note() -> None:
    ports = paired(model(MEL), MEL, IDS)
    assert ports.names == {"mel": "mel"}
    assert ports.notes == ("inputs that the exporter left out, because nothing uses them: ids",)


def test_the_other_name_may_have_colons_and_neither_may_be_empty_or_come_twice() -> None:
    spec = parse_input("mel:serving:0=float32[1,T]")
    assert (spec.name, spec.port, spec.dtype) == ("mel", "serving:0", DTYPES["float32"])
    assert parse_input(str(spec)) == spec
    for text in (":x=float32[1]", "mel:=float32[1]"):
        with pytest.raises(ArgumentError, match="two names are written NAME:OTHER"):
            parse_input(text)
    with pytest.raises(ArgumentError, match="two inputs are called x"):
        signature_of(["a:x=float32[1]", "b:x=float32[1]"])
