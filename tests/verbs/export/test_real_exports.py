"""Real models, tiny, by both exporters and in both forms of weight norm: exported, proven, and folded.

``fold model.onnx`` is tried on the same models as torch's exporters leave them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

from tests.helpers import zoo
from wnconvert import WnconvertError, export_onnx, fold_file, inspect_file, inspect_module
from wnconvert.tensors.blocks import Array as Floats
from wnconvert.verbs.export.exporters import Exporter
from wnconvert.verbs.models.proof.samples import export_arrays
from wnconvert.verbs.models.proof.signatures import signature_of

ROWS = {row.name: row for row in zoo.ROWS}
EXPORTERS = ("dynamo", "torchscript")


@dataclass(frozen=True)
class Case:
    """A model: built in a form, what is fed, and the exporters that torch has for it."""

    name: str
    build: Callable[[str], nn.Module]
    inputs: tuple[str, ...]
    ranges: tuple[str, ...]
    exporters: tuple[str, ...] = EXPORTERS


def row(name: str) -> Callable[[str], nn.Module]:
    return ROWS[name].normed


def decoder(name: str) -> Callable[[str], nn.Module]:
    def build(form: str) -> nn.Module:
        found = ROWS[name].normed(form).get_submodule("decoder")
        return found.eval()

    return build


def wide_hifigan(form: str) -> nn.Module:
    """A HiFi-GAN with layers of more than 8,192 elements: torch's newer exporter leaves those."""
    small = zoo.hifigan("SpeechT5HifiGan")
    torch.manual_seed(7)
    with zoo.weight_norm_is(form):
        model = zoo.made(
            "SpeechT5HifiGan",
            "SpeechT5HifiGanConfig",
            model_in_dim=6,
            **{**zoo.GAN, "upsample_initial_channel": 96},
        )
        small.norm(model)
    zoo.scramble(model, 0.5)
    return model.eval()


CASES = (
    Case("HiFi-GAN", row("SpeechT5HifiGan"), ("spectrogram=float32[1,T,6]",), ("T=16..90",)),
    Case("HiFi-GAN, wide", wide_hifigan, ("spectrogram=float32[1,T,6]",), ("T=16..40",)),
    Case(
        "VITS decoder",
        row("VitsHifiGan"),
        ("spectrogram=float32[1,6,T]", "global_conditioning=float32[1,4,1]"),
        ("T=8..60",),
    ),
    # EnCodec keeps strides as tensors: torch.export refuses what depends on data. It unrolls an RNN.
    Case(
        "EnCodec decoder",
        decoder("EncodecModel"),
        ("hidden_states=float32[1,8,T]",),
        ("T=8..40",),
        ("torchscript",),
    ),
    Case("DAC decoder", decoder("DacModel"), ("hidden_state=float32[1,16,T]",), ("T=8..40",)),
    Case("Wav2Vec2", row("Wav2Vec2Model"), ("input_values=float32[1,T]",), ("T=200..900",)),
    Case("CNN", row("CNN"), ("input=float32[N,1,8,8]",), ("N=2..9",)),
    Case("RNN", row("RNN"), ("input=float32[2,T,3]",), ("T=2..30",), ("torchscript",)),
)


def _by_default(case: Case, exporter: str, form: str) -> bool:
    """Both forms are folded before the export: one model shows it. One shows the newer exporter."""
    if form == "legacy":
        return case is CASES[0] and exporter == "torchscript"
    return case is CASES[0] or (case.name, exporter) in (
        ("EnCodec decoder", "torchscript"),
        ("RNN", "torchscript"),
    )


EXPORTS = [
    pytest.param(
        case,
        exporter,
        form,
        id=f"{case.name}, {exporter}, {form}",
        marks=() if _by_default(case, exporter, form) else pytest.mark.full,
    )
    for case in CASES
    for exporter in case.exporters
    for form in zoo.FORMS
]


@pytest.mark.parametrize(("case", "exporter", "form"), EXPORTS)
def test_a_real_model_is_exported_and_proven_at_other_lengths(
    case: Case, exporter: Exporter, form: str, tmp_path: Path
) -> None:
    model = case.build(form)
    layers = [layer.name for layer in inspect_module(model).layers]
    assert layers, "a model without weight norm proves nothing"
    path = tmp_path / "model.onnx"
    report = export_onnx(model, path, inputs=case.inputs, ranges=case.ranges, exporter=exporter)
    assert report
    assert len(report.proof.samples) == 4
    assert len({tuple(sample.sizes.values()) for sample in report.proof.samples}) > 1
    assert report.residual_weight_norm == 0
    assert report.folded_in_module == len(layers)
    assert [layer.name for layer in inspect_module(model).layers] == layers, "the module is as it was"
    assert inspect_file(path).fold.startswith("nothing to fold")
    onnx.checker.check_model(path, full_check=True)
    names = {tensor.name for tensor in onnx.load(path).graph.initializer}
    assert set(layers) <= names, "initializers are named after their layers"


def test_a_length_that_the_newer_exporter_fixes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WnconvertError, match="fixed T") as caught:
        export_onnx(
            row("RNN")("legacy"), tmp_path / "rnn.onnx", inputs=["input=float32[2,T,3]"], exporter="dynamo"
        )
    assert "--exporter torchscript" in caught.value.fix or 'exporter="torchscript"' in caught.value.fix
    assert list(tmp_path.iterdir()) == []


BY_DEFAULT = {("HiFi-GAN, wide", "dynamo"), ("HiFi-GAN", "torchscript"), ("RNN", "torchscript")}
FOLDS = [
    pytest.param(
        case,
        exporter,
        id=f"{case.name}, {exporter}",
        # The newer exporter leaves weight norm in large layers only; the older one in all.
        marks=() if (case.name, exporter) in BY_DEFAULT else pytest.mark.full,
    )
    for case in CASES
    for exporter in case.exporters
]


@pytest.mark.parametrize(("case", "exporter"), FOLDS)
def test_weight_norm_that_torch_leaves_in_the_graph_is_folded(
    case: Case, exporter: Exporter, tmp_path: Path
) -> None:
    model = case.build("parametrize")
    raw, out = tmp_path / "raw.onnx", tmp_path / "folded.onnx"
    feeds = as_torch_exports(model, case, exporter, raw)
    left = [layer.name for layer in inspect_file(raw).layers if layer.form == "onnx"]
    known = [layer.name for layer in inspect_module(model).layers]
    if exporter == "torchscript":
        assert sorted(left) == sorted(known), "the older exporter folds none"
    elif case.name == "HiFi-GAN, wide":
        assert 0 < len(left) < len(known)
    result = fold_file(raw, out, copy=True)
    assert [change.name for _, change in result.plan.changes] == left
    assert inspect_file(out).fold.startswith("nothing to fold")
    with torch.no_grad():
        expected = flat(model(*(torch.from_numpy(value) for value in feeds.values())))
    for path in (raw, out):
        for got, wanted in zip(run(path, feeds), expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5)


def as_torch_exports(model: nn.Module, case: Case, exporter: Exporter, path: Path) -> dict[str, Floats]:
    """Write the module, weight norm and all, as torch's exporter does; return what was fed."""
    signature = signature_of(case.inputs, case.ranges)
    feeds = export_arrays(signature)
    axes = {
        spec.name: {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in signature.inputs
    }
    letters = {
        letter: torch.export.Dim(letter, min=size.low, max=size.high)
        for letter, size in signature.ranges.items()
    }
    dims = [{axis: letters[letter] for axis, letter in of_one.items()} for of_one in axes.values()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            tuple(torch.from_numpy(value) for value in feeds.values()),
            path,
            dynamo=exporter == "dynamo",
            input_names=list(feeds),
            external_data=False,
            verbose=False,
            **({"dynamic_shapes": tuple(dims)} if exporter == "dynamo" else {"dynamic_axes": axes}),
        )
    return feeds


def flat(outputs: object) -> list[Floats]:
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return [leaf.detach().numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def run(path: Path, feeds: Mapping[str, Floats]) -> list[Floats]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: list[Floats] = session.run(None, dict(feeds))
    return found


def test_a_graph_that_could_not_be_quantized_can_be_when_it_is_folded(tmp_path: Path) -> None:
    raw, out, small = tmp_path / "raw.onnx", tmp_path / "folded.onnx", tmp_path / "int8.onnx"
    feeds = as_torch_exports(CASES[0].build("legacy"), CASES[0], "torchscript", raw)
    # Older onnxruntimes (1.23) convolve unsigned weights only.
    with pytest.raises(ValueError, match=r"Expected .*Mul_output_0 to be an initializer"):
        quantize_dynamic(raw, small, weight_type=QuantType.QUInt8)
    fold_file(raw, out)
    quantize_dynamic(out, small, weight_type=QuantType.QUInt8)
    operators = [node.op_type for node in onnx.load(small).graph.node]
    assert operators.count("ConvInteger") > 0
    (expected,), (found,) = run(out, feeds), run(small, feeds)
    assert found.shape == expected.shape
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9
