"""Quantized graphs, spoiled after the fold: they are caught whatever is run, and by the run alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from tests.helpers.quantized import quantize, vocoder
from tests.helpers.states import output_of
from wnconvert import fold_file
from wnconvert.errors import VerifyError
from wnconvert.layers.schemes import Selection
from wnconvert.onnx.graph.plan import plan_onnx
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.verbs.conversion.onnx import check
from wnconvert.verbs.conversion.onnx.layers import LayersCompared
from wnconvert.verbs.shared.options import Proving

Proof = Literal["model", "layers", "none"]
Spoil = Callable[[ModelProto], None]


def changed(name: str, change: Callable[[Any], Any]) -> Spoil:
    """A stored tensor that is another."""

    def spoil(proto: ModelProto) -> None:
        (stored,) = (each for each in proto.graph.initializer if each.name == name)
        array = numpy_helper.to_array(stored)
        stored.CopyFrom(numpy_helper.from_array(np.asarray(change(array), array.dtype), name))

    return spoil


def scaled(name: str) -> Spoil:
    """A scale that is 1 % off."""
    return changed(name, lambda scale: scale * np.float32(1.01))


def one_code(name: str) -> Spoil:
    """One element of a weight that is 1 % of the greatest off: the code beside it."""

    def beside(codes: Any) -> Any:
        at = int(np.abs(codes.astype(int)).argmax())
        made = codes.astype(int)
        made.reshape(-1)[at] -= np.sign(made.reshape(-1)[at])
        return made

    return changed(name, beside)


def without_bias(op: str) -> Spoil:
    """The first node of an operator without its bias."""

    def spoil(proto: ModelProto) -> None:
        node = next(each for each in proto.graph.node if each.op_type == op)
        del node.input[8 if op == "QLinearConv" else 2]

    return spoil


def turned(codes: Any) -> Any:
    """The codes of a square weight along its other axis."""
    return codes.transpose(1, 0, 2)


#: What is spoiled in which form.
SPOILED: dict[str, tuple[str, Spoil]] = {
    "scale of an input": ("QDQ", scaled("mel_scale")),
    "scale of an output": ("QDQ", scaled("t20_scale")),
    "scales of a weight": ("QDQ", scaled("res.product_scale")),
    "scale of a bias": ("QDQ", scaled("up.bias_quantized_scale")),
    "bias": ("QDQ", without_bias("ConvTranspose")),
    "bias that is zero": ("QDQ", changed("post.bias_quantized", np.zeros_like)),
    "axis": ("QDQ", changed("res.weight", turned)),
    "scale of a layer": ("QOperator", scaled("t4_scale")),
    "scale of a whole weight": ("QOperator", scaled("pre.product_scale")),
    "bias in whole numbers": ("QOperator", without_bias("QLinearConv")),
}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """A vocoder in both forms, and its fold."""
    from onnxruntime.quantization import QuantFormat

    made = {}
    for form in ("QDQ", "QOperator"):
        folder = tmp_path_factory.mktemp(form)
        ops = ["Conv", "LeakyRelu", "Add", "Tanh", "Mul", "Div"] if form == "QOperator" else None
        source = quantize(
            vocoder(),
            folder,
            quant_format=QuantFormat[form],
            op_types_to_quantize=ops,
        )
        made[form] = source, output_of(fold_file(source))
    return made


def checked(source: Path, path: Path, proof: Proof = "model") -> check.FoldCheck:
    opened = open_checkpoint(source)
    assert opened.onnx is not None
    return check.check_fold(
        opened.onnx, plan_onnx(opened.onnx, Selection()), path, proving=Proving(proof=proof)
    )


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_what_is_not_spoiled_passes(
    form: str, quantized: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    source, folded = quantized[form]
    changed("res.weight", np.asarray)(proto := onnx.load(folded))
    onnx.save(proto, tmp_path / "again.onnx")
    assert "the whole model on mel" in checked(source, tmp_path / "again.onnx").by


@pytest.mark.parametrize(
    ("kind", "proof"),
    [
        (kind, proof)
        for kind in SPOILED
        for proof in ("model", "layers", "none")
        if (kind, proof) != ("axis", "none")  # a folded weight is proven by a run
    ],
)
def test_a_spoiled_graph_is_caught_whatever_is_run(
    kind: str, proof: Proof, quantized: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    form, spoil = SPOILED[kind]
    source, folded = quantized[form]
    spoil(proto := onnx.load(folded))
    onnx.save(proto, tmp_path / "spoiled.onnx")
    with pytest.raises(VerifyError):
        checked(source, tmp_path / "spoiled.onnx", proof)


@pytest.mark.parametrize("kind", SPOILED)
def test_the_run_of_the_whole_model_alone_catches_it_too(
    kind: str, quantized: dict[str, tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form, spoil = SPOILED[kind]
    source, folded = quantized[form]
    spoil(proto := onnx.load(folded))
    onnx.save(proto, tmp_path / "spoiled.onnx")
    monkeypatch.setattr(check, "check_unchanged", lambda *_: None)
    monkeypatch.setattr(check, "compare_layers", lambda *_: LayersCompared(4, {}, (), ()))
    with pytest.raises(VerifyError, match="output wav is off by"):
        checked(source, tmp_path / "spoiled.onnx")


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_one_code_beside_the_right_one_is_no_rounding(
    form: str, quantized: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    source, folded = quantized[form]
    one_code("res.weight")(proto := onnx.load(folded))
    onnx.save(proto, tmp_path / "spoiled.onnx")
    with pytest.raises(VerifyError, match=r"layer res\.weight is .* where the original computes"):
        checked(source, tmp_path / "spoiled.onnx", "layers")
