"""Quantized graphs, spoiled after the fold: they are caught whatever is run, and by the run alone.

The weights of ``activations`` and ``mixed`` are floats, all or one: rounding swallows their last digit alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from tests.helpers.quantized import LAYERS, quantize, vocoder
from tests.helpers.states import output_of
from wnconvert import fold_file
from wnconvert.errors import VerifyError
from wnconvert.layers.schemes import Selection
from wnconvert.numerics.rows import RowPolicy
from wnconvert.onnx.graph.plan import plan_onnx
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.verbs.conversion.onnx import check, run
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


def by_one_percent(name: str) -> Spoil:
    """A whole weight that is 1 % off."""
    return changed(name, lambda weight: weight * np.float32(1.01))


def backwards(weight: Any) -> Any:
    """A weight whose kernels lie backwards."""
    return weight[..., ::-1]


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
    **{f"{name} by 1 %": ("activations", by_one_percent(f"{name}.weight")) for name in LAYERS},
    "bias beside floats": ("activations", without_bias("Conv")),
    "bias of a transposed convolution": ("activations", without_bias("ConvTranspose")),
    "axis of floats": ("activations", changed("res.weight", turned)),
    "kernels backwards": ("activations", changed("pre.weight", backwards)),
    "the only floats by 1 %": ("mixed", by_one_percent("up.weight")),
    "the only floats backwards": ("mixed", changed("up.weight", backwards)),
}
#: What of that is of folded weights alone.
OF_WEIGHTS = [kind for kind in SPOILED if "axis" in kind or "by 1 %" in kind or "backwards" in kind]
#: How each form is quantized: of which operators.
_ACTIVATIONS = ["LeakyRelu", "Add", "Tanh"]
FORMS: dict[str, dict[str, Any]] = {
    "QDQ": {"form": "QDQ"},
    "QOperator": {"form": "QOperator", "ops": ["Conv", "LeakyRelu", "Add", "Tanh", "Mul", "Div"]},
    "activations": {"form": "QDQ", "ops": _ACTIVATIONS},
    "mixed": {"form": "QOperator", "ops": ["Conv", "ConvTranspose"]},
}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """A vocoder in both forms, and its fold."""
    from onnxruntime.quantization import QuantFormat

    made = {}
    for name, how in FORMS.items():
        folder = tmp_path_factory.mktemp(name)
        form = QuantFormat[how["form"]]
        source = quantize(vocoder(), folder, quant_format=form, op_types_to_quantize=how.get("ops"))
        made[name] = source, output_of(fold_file(source))
    return made


def checked(source: Path, path: Path, proof: Proof = "model") -> check.FoldCheck:
    opened = open_checkpoint(source)
    assert opened.onnx is not None
    return check.check_fold(
        opened.onnx, plan_onnx(opened.onnx, Selection()), path, proving=Proving(proof=proof)
    )


@pytest.mark.parametrize("form", FORMS)
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
        if proof != "none" or kind not in OF_WEIGHTS  # a folded weight is proven by a run
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


class Outputs:
    """A model, loaded, whose only output is that of the original but for what is off in some of its runs."""

    def __init__(self, off: Sequence[float]) -> None:
        self.off = iter(off)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """What it makes of inputs."""
        y = feeds["x"].reshape(-1)[:4]
        return {"y": y / np.abs(y).max() + np.float32(next(self.off))}

    def close(self) -> None:
        """It holds nothing."""


def both(*off: float, dtypes: Collection[str]) -> list[str]:
    """Notes on two models of four outputs, the second of which is off by so much in each of its runs."""
    feeds = {"x": np.random.default_rng(0).normal(0, 0.5, (2, 8)).astype(np.float32)}
    original, written = Outputs([0] * 9), Outputs(off)
    first, second = cast(Any, lambda: original), cast(Any, lambda: written)
    before = run.OriginalRun(feeds, Outputs([0]).run(feeds))
    return run._both(first, second, RowPolicy(), dtypes, before)[1]


FLOATS = {"float32", run.BETWEEN_ROUNDINGS}
QUANTUM = 1 / 127


def test_of_few_outputs_a_quantum_is_looked_for_on_other_inputs() -> None:
    """It is there where a last digit lies next to a midpoint, and a weight that is off is off everywhere."""
    assert not both(0, dtypes=FLOATS)
    for off in ((QUANTUM, 0), (QUANTUM, QUANTUM, 0)):
        (note,) = both(*off, dtypes=FLOATS)
        assert note == "on some inputs, rounding makes another whole number of a last digit"
    with pytest.raises(VerifyError, match="on the average"):
        both(QUANTUM, QUANTUM, QUANTUM, dtypes=FLOATS)


def test_codes_that_are_others_by_a_last_digit_are_off_on_all_inputs() -> None:
    assert not both(QUANTUM, dtypes={run.WHOLE_NUMBERS})
    with pytest.raises(VerifyError, match="is off by"):
        both(*[3 * QUANTUM] * 3, dtypes={run.WHOLE_NUMBERS})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_on_the_average_no_more_is_asked_than_of_any_model_of_the_dtype(dtype: str) -> None:
    off = run.whole_tolerance([dtype])
    assert not both(0.49 * off, dtypes={dtype, run.BETWEEN_ROUNDINGS})
    with pytest.raises(VerifyError):
        both(*[0.52 * off] * 3, dtypes={dtype, run.BETWEEN_ROUNDINGS})


@pytest.mark.parametrize("off", [np.nan, np.inf])
def test_what_is_no_number_is_no_quantum(off: float) -> None:
    with pytest.raises(VerifyError):
        both(off, off, off, dtypes=FLOATS)
