"""Modules exported and proven: both forms and exporters, what is fed, what fails, and what is left behind."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from tests.helpers import export_models
from tests.helpers.export_models import LENGTH_KEPT_BY, Dropped, Noisy, by_exporter, scramble, speech, vocoder
from tests.helpers.live_models import norm, portrait
from tests.helpers.marks import crossed, some
from wnconvert import ExportReport, check_onnx, export_onnx
from wnconvert.errors import ArgumentError, InputError, OutputError, WnconvertError
from wnconvert.reports.text.exports import proof_text
from wnconvert.verbs.export.exporters import EXPORTERS, Exporter
from wnconvert.verbs.models.proof.report import TimedStep
from wnconvert.verbs.modules.convert import folded

MEL = ["mel=float32[1,4,T]"]
BOTH = ["mel=float32[1,4,T]", "ids=int64[1,T]<100"]
RANGES = ["T=2..40"]


def initializers(path: Path) -> dict[str, Any]:
    """The stored tensors of a model, read by onnx."""
    model = onnx.load(str(path))
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def nodes(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(str(path)).graph.node]


def run(path: Path, **feeds: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return list(session.run(None, {name: np.asarray(value) for name, value in feeds.items()}))


@dataclass(frozen=True)
class Exported:
    """A model, exported, and what that could have changed: all of the module, torch's random state."""

    path: Path
    report: ExportReport
    before: tuple[list[str], torch.Tensor]
    after: tuple[list[str], torch.Tensor]


Make = Callable[[str], nn.Module]
Export = Callable[[Make, str, str], Exported]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A model by its factory, form and exporter, half of it in training; each is exported once."""
    folder = tmp_path_factory.mktemp("exported")

    @functools.cache
    def export(make: Make, form: str, exporter: Exporter) -> Exported:
        model = make(form).train()
        model.get_submodule("conv_pre" if make is vocoder else "emb").eval()
        path = folder / f"{make.__name__}.{form}.{exporter}.onnx"
        inputs = MEL if make is vocoder else BOTH[::-1]
        before = portrait(model), torch.get_rng_state()
        report = export_onnx(model, path, inputs=inputs, ranges=RANGES, exporter=exporter)
        return Exported(path, report, before, (portrait(model), torch.get_rng_state()))

    return export


# -- what is written


@crossed(exporter=EXPORTERS[::-1], form=["parametrize", "legacy"])
def test_a_model_of_either_form_is_exported_folded_and_equal(
    exported: Export, form: str, exporter: Exporter
) -> None:
    made = exported(vocoder, form, exporter)
    path, report = made.path, made.report
    assert report
    assert report.residual_weight_norm == 0
    assert (report.folded_in_module, report.exporter) == (3, exporter)
    assert not {"ReduceL2", "Sqrt", "Div", "Pow", "ReduceSumSquare"} & set(nodes(path))
    state = {name: value.numpy() for name, value in folded(vocoder(form)).state_dict().items()}
    details = [step.detail for step in report.steps if step.name in ("fold", "name")]
    whats = ["3 layers in a copy", "no weight norm was left in the graph", "1 initializer after layers"]
    assert details == whats
    stored = initializers(path)
    assert {"conv_pre.weight", "conv_pre.bias", "up.weight", "up.bias", "proj.weight", "proj.bias"} <= set(
        stored
    )
    assert not [name for name in stored if name.startswith(("val_", "onnx::", "mul"))]
    for name, value in state.items():
        found = stored[name] if stored[name].shape == value.shape else stored[name].T
        assert np.array_equal(found, value), name


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_the_length_is_dynamic_and_other_lengths_are_compared(exported: Export, exporter: Exporter) -> None:
    made = exported(vocoder, "parametrize", exporter)
    path, report = made.path, made.report
    assert [sample.sizes["T"] for sample in report.proof.samples][:2] == [2, 40]
    assert 21 not in [sample.sizes["T"] for sample in report.proof.samples]  # the exported one
    mel = torch.randn(1, 4, 33)
    (found,) = run(path, mel=mel)
    with torch.no_grad():
        expected = vocoder()(mel).numpy()
    assert found.shape == expected.shape
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_steps_are_told_as_they_begin_and_as_they_end(tmp_path: Path) -> None:
    told: list[TimedStep] = []
    report = export_onnx(
        vocoder(),
        tmp_path / "m.onnx",
        inputs=MEL,
        ranges=RANGES,
        exporter="torchscript",
        progress=told.append,
    )
    assert [step.name for step in report.steps] == ["try", "fold", "export", "fold", "name", "check", "run"]
    assert told[1::2] == [*report.steps]
    assert [step.name for step in told[::2]] == [step.name for step in report.steps]
    assert all(step.seconds is None and step.detail for step in told[::2])
    assert all(step.seconds is not None for step in report.steps)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@crossed(exporter=LENGTH_KEPT_BY[::-1], form=["parametrize", "legacy"])
def test_recurrent_layers_two_inputs_and_a_dict_of_outputs(
    exported: Export, form: str, exporter: Exporter
) -> None:
    made = exported(speech, form, exporter)
    path, report = made.path, made.report
    assert report
    assert [output.name for output in report.outputs] == ["wave", "state.0", "state.1"]
    stored = initializers(path)
    assert {"emb.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0+bias_hh_l0"} <= set(
        stored
    )
    assert [port.name for port in onnx.load(str(path)).graph.input] == ["mel", "ids"]


def test_a_second_export_in_a_process_has_a_dynamic_length_too(tmp_path: Path) -> None:
    for name in "ab":
        lstm = nn.LSTM(4, 5, batch_first=True)
        assert export_onnx(lstm, tmp_path / f"{name}.onnx", inputs=["input=float32[1,T,4]"])


def test_a_length_that_the_exporter_bakes_in_is_found(tmp_path: Path) -> None:
    export = functools.partial(export_onnx, nn.LSTM(4, 5), tmp_path / "m.onnx", exporter="dynamo")
    if "dynamo" not in LENGTH_KEPT_BY:
        with pytest.raises(ArgumentError, match="fixed T of the input input at 72") as caught:
            export(inputs=["input=float32[T,1,4]"])
        assert caught.value.fix == "try --exporter torchscript, or give 72 in place of T"
        assert not [*tmp_path.iterdir()]
        return
    # torch 2.13 writes the exported length of an LSTM without batch_first into a Reshape.
    report = export(inputs=["input=float32[T,1,4]"])
    if not report:
        assert "Reshape" in report.proof.mismatches[0]
        assert ".tmp" not in "".join(report.proof.mismatches)
        assert report.proof.fixed == {"T": 72}
        assert report.advice == "try --exporter torchscript, or give 72 in place of T"
    assert (tmp_path / "m.onnx").exists() == bool(report)


def test_where_all_initializers_have_their_names_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = nn.Sequential(norm(nn.Conv1d(4, 3, 3)), nn.Tanh(), nn.Conv1d(3, 2, 3))
    report = export_onnx(model, path, inputs=["input=float32[1,4,T]"], exporter="torchscript")
    (named,) = (step.detail for step in report.steps if step.name == "name")
    assert named == "every weight had its layer's name"


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True, bidirectional=True)
        self.out = norm(nn.Linear(10, 3))

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.out(self.lstm(mel)[0])
        return found


@pytest.mark.full
def test_a_bidirectional_lstm_whose_length_the_newer_exporter_fixes_is_exported_by_the_older_one(
    tmp_path: Path,
) -> None:
    inputs = ["mel=float32[1,T,4]"]
    if "dynamo" in LENGTH_KEPT_BY:
        newer = export_onnx(Tagger(), tmp_path / "newer.onnx", inputs=inputs, exporter="dynamo")
        if not newer:  # torch 2.13
            text = proof_text(newer)
            assert "the exporter fixed T at 72: the model runs at no other size" in text
            assert text.endswith("try --exporter torchscript, or give 72 in place of T")
    assert export_onnx(Tagger(), tmp_path / "older.onnx", inputs=inputs, exporter="torchscript")
    number = tmp_path / "number.onnx"
    assert export_onnx(Tagger(), number, inputs=["mel=float32[1,72,4]"], exporter="torchscript")


@some("exporter", {exporter: exporter for exporter in EXPORTERS}, ["torchscript"])
def test_an_input_is_named_as_asked_and_its_length_is_dynamic(tmp_path: Path, exporter: Exporter) -> None:
    path = tmp_path / "m.onnx"
    inputs = ["mel:sound=float32[1,4,T]"]
    report = export_onnx(vocoder(), path, inputs=inputs, ranges=RANGES, exporter=exporter)
    assert report
    assert not [note for note in report.notes if "names" in note]
    assert check_onnx(path, vocoder(), inputs=MEL, ranges=RANGES)
    (port,) = onnxruntime.InferenceSession(str(path)).get_inputs()
    assert (port.name, port.shape) == ("sound", [1, 4, "T"])


@by_exporter
def test_outputs_are_named_as_asked(tmp_path: Path, exporter: Exporter) -> None:
    path = tmp_path / "m.onnx"
    assert (
        export_onnx(vocoder(), path, inputs=MEL, ranges=RANGES, exporter=exporter, outputs=["audio"])
        .outputs[0]
        .name
        == "audio"
    )
    assert [port.name for port in onnx.load(str(path)).graph.output] == ["audio"]
    with pytest.raises(ArgumentError, match="2 names of outputs are given, and the model has 1: output"):
        export_onnx(vocoder(), tmp_path / "n.onnx", inputs=MEL, outputs=["a", "b"])


def test_an_output_that_is_called_as_an_input_gets_another_name(tmp_path: Path) -> None:
    class Echo(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x": x * 2, "y": x}

    report = export_onnx(Echo(), tmp_path / "m.onnx", inputs=["x=float32[3]"], exporter="torchscript")
    assert report
    assert [output.name for output in report.outputs] == ["x_out", "y"]


@by_exporter
def test_weights_may_lie_beside_the_model(tmp_path: Path, exporter: Exporter) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(norm(nn.Linear(64, 64)), nn.ReLU(), norm(nn.Linear(64, 3)))
    scramble(model, 0)
    path = tmp_path / "m.onnx"
    report = export_onnx(model, path, inputs=["input=float32[B,64]"], external_data=True, exporter=exporter)
    assert report
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert report.size == sum(each.stat().st_size for each in tmp_path.iterdir())
    assert np.array_equal(initializers(path)["0.weight"], folded(model).state_dict()["0.weight"].numpy())
    assert check_onnx(path, model, inputs=["input=float32[B,64]"])


def test_examples_may_be_tensors_with_letters_for_their_axes(tmp_path: Path) -> None:
    report = export_onnx(
        vocoder(),
        tmp_path / "m.onnx",
        inputs=[torch.randn(1, 4, 12)],
        dynamic={"mel": {2: "T"}},
        ranges={"T": (8, 24)},
        exporter="torchscript",
    )
    assert report
    assert {sample.sizes["T"] for sample in report.proof.samples} >= {8, 24}


@by_exporter
def test_a_fixed_size_needs_no_letter(tmp_path: Path, exporter: Exporter) -> None:
    report = export_onnx(vocoder(), tmp_path / "m.onnx", inputs=["mel=float32[1,4,9]"], exporter=exporter)
    assert report
    assert len({sample.seed for sample in report.proof.samples}) == 4


def test_opset_is_that_which_was_asked_for(tmp_path: Path) -> None:
    report = export_onnx(vocoder(), tmp_path / "m.onnx", inputs=MEL, opset=13, exporter="torchscript")
    assert report.opset == 13
    assert onnx.load(str(tmp_path / "m.onnx")).opset_import[0].version == 13


@pytest.mark.parametrize(
    ("opset", "fix"), [(11, "choose --exporter torchscript, or --opset 18"), (99, "choose --opset 18")]
)
def test_an_opset_that_the_newer_exporter_silently_exchanges_is_an_error(
    tmp_path: Path, opset: int, fix: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        export_onnx(vocoder(), tmp_path / "m.onnx", inputs=MEL, opset=opset, exporter="dynamo")
    assert f"not {opset}" in caught.value.what
    assert caught.value.fix == fix
    assert not [*tmp_path.iterdir()]


def test_an_opset_that_the_older_exporter_does_not_know_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="99") as caught:
        export_onnx(vocoder(), tmp_path / "m.onnx", inputs=MEL, opset=99, exporter="torchscript")
    assert caught.value.fix.startswith("choose another --opset")


# -- which exporter


def test_a_model_that_the_newer_exporter_takes_is_not_given_to_the_older_one(tmp_path: Path) -> None:
    report = export_onnx(vocoder(), tmp_path / "m.onnx", inputs=MEL, ranges=RANGES)
    assert report
    assert report.exporter == "dynamo"
    assert not any("exporter" in note for note in report.notes)


def test_a_newer_exporter_that_fails_is_followed_by_the_older_one_and_that_is_said(tmp_path: Path) -> None:
    report = export_onnx(vocoder(), tmp_path / "m.onnx", inputs=MEL, ranges=RANGES, opset=11)
    assert report
    assert (report.exporter, report.opset) == ("torchscript", 11)
    said = (
        "torch's older exporter was used, since the newer one failed: torch's exporter made opset 18, not 11"
    )
    assert any(note.startswith(said) for note in report.notes)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_size_that_the_newer_exporter_fixes_is_left_to_the_older_one(tmp_path: Path) -> None:
    report = export_onnx(Tagger(), tmp_path / "m.onnx", inputs=["mel=float32[1,T,4]"])
    assert report
    if report.exporter == "torchscript":
        (note,) = [note for note in report.notes if "since the newer one failed" in note]
        fixed = "it fixed T" if "dynamo" in LENGTH_KEPT_BY else "torch's exporter fixed T of the input mel"
        assert f"failed: {fixed} at 72" in note


@pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")  # torch warns of its own trees
def test_where_both_exporters_fail_the_newer_ones_words_are_told(tmp_path: Path) -> None:
    error = refused(tmp_path, export_models.Eigen(), ["x=float32[4,4]"])
    assert error.where == "layer inner.1"
    tried = "try a higher --opset, or a forward without that operation; torch's older exporter failed too: "
    assert error.fix.startswith(tried)
    assert not [*tmp_path.iterdir()]


# -- other kinds of models


@pytest.fixture(scope="module")
def mel() -> torch.Tensor:
    return torch.randn(1, 4, 9)


@pytest.mark.parametrize("form", ["legacy", "parametrize"])
def test_torchscript_is_folded_in_the_graph(tmp_path: Path, form: str, mel: torch.Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.trace(vocoder(form).eval(), (mel,))  # type: ignore[no-untyped-call]
    report = export_onnx(script, tmp_path / "m.onnx", inputs=MEL, ranges=RANGES)
    assert report
    assert (report.folded_in_module, report.folded_in_graph, report.residual_weight_norm) == (0, 3, 0)
    assert any("older one was used" in note for note in report.notes)
    details = [step.detail for step in report.steps if step.name == "fold"]
    assert details == ["3 layers that the exporter left in the graph"]
    assert {"conv_pre.weight", "up.weight", "proj.weight"} <= set(initializers(tmp_path / "m.onnx"))


class OwnSpectral(nn.Module):
    """A convolution with spectral norm of its own in forward, of which no hook tells."""

    u: torch.Tensor
    v: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight_orig = nn.Parameter(torch.randn(96, 64, 7))
        left, _, right = torch.linalg.svd(self.weight_orig.detach().flatten(1))
        self.register_buffer("u", left[:, 0].clone())
        self.register_buffer("v", right[0].clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sigma = torch.dot(self.u, torch.mv(self.weight_orig.flatten(1), self.v))
        return nn.functional.conv1d(x, self.weight_orig / sigma, padding=3)


def test_spectral_norm_that_only_the_graph_shows_is_folded_there(tmp_path: Path) -> None:
    inputs = ["x=float32[1,64,T]"]
    report = export_onnx(OwnSpectral(), tmp_path / "m.onnx", inputs=inputs, ranges=RANGES, exporter="dynamo")
    assert report
    assert report.folded_in_graph
    made = onnx.load(tmp_path / "m.onnx").graph
    assert {node.op_type for node in made.node} == {"Conv"}


def test_spectral_norm_of_torchs_is_folded_before(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(
            nn.utils.spectral_norm(nn.Conv1d(4, 96, 7, padding=3)),
            nn.utils.spectral_norm(nn.ConvTranspose1d(96, 64, 4)),
        )
    for _ in range(20):  # u and v become singular vectors, and the outputs no thousands
        model(torch.zeros(1, 4, 8))
    inputs = ["input=float32[1,4,T]"]
    report = export_onnx(model, tmp_path / "m.onnx", inputs=inputs, ranges=RANGES, exporter="dynamo")
    assert report
    assert not report.folded_in_graph
    made = onnx.load(tmp_path / "m.onnx").graph
    assert {node.op_type for node in made.node} == {"Conv", "ConvTranspose"}


@pytest.mark.parametrize("kind", ["traced", "scripted"])
def test_a_frozen_torchscript_is_exported_from_memory_and_from_a_file(
    tmp_path: Path, mel: torch.Tensor, kind: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "traced":
            script = torch.jit.trace(vocoder("legacy").eval(), (mel,))  # type: ignore[no-untyped-call]
        else:
            script = torch.jit.script(folded(vocoder()).eval())
        frozen = torch.jit.freeze(script)
        torch.jit.save(frozen, tmp_path / "frozen.pt")
        read = torch.jit.load(tmp_path / "frozen.pt")  # type: ignore[no-untyped-call]
    assert not hasattr(frozen, "training")
    for at, given in enumerate((frozen, read)):
        path = tmp_path / f"{at}.onnx"
        report = export_onnx(given, path, inputs=MEL, ranges=RANGES)
        assert report
        assert (report.residual_weight_norm, report.initializers_named) == (0, 0)
        sound = torch.randn(1, 4, 17)
        with torch.no_grad():
            expected = vocoder("legacy")(sound).numpy()
        assert np.allclose(run(path, mel=sound)[0], expected, rtol=1e-4, atol=1e-5)


def program(mel: torch.Tensor, *, dynamic: bool = True) -> torch.export.ExportedProgram:
    length = torch.export.Dim("length", min=2, max=64)
    shapes = ({2: length},) if dynamic else None
    return torch.export.export(vocoder(), (mel,), dynamic_shapes=shapes)


def test_an_exported_program_is_a_model(tmp_path: Path, mel: torch.Tensor) -> None:
    report = export_onnx(program(mel), tmp_path / "m.onnx", inputs=MEL, ranges=RANGES)
    assert report
    assert report.residual_weight_norm == 0
    assert {"conv_pre.weight", "up.weight", "proj.weight"} <= set(initializers(tmp_path / "m.onnx"))


def test_what_an_exported_program_has_fixed_cannot_be_a_letter(tmp_path: Path, mel: torch.Tensor) -> None:
    with pytest.raises(ArgumentError, match="has T fixed at 9"):
        export_onnx(program(mel, dynamic=False), tmp_path / "m.onnx", inputs=MEL, ranges=RANGES)
    with pytest.raises(ArgumentError, match="does not take exported programs"):
        export_onnx(program(mel), tmp_path / "m.onnx", inputs=MEL, ranges=RANGES, exporter="torchscript")
    assert not [*tmp_path.iterdir()]


# -- the module is left as it was


@crossed(
    lambda value: getattr(value, "__name__", value),
    exporter=EXPORTERS[::-1],
    make=[vocoder, speech],
    form=["parametrize", "legacy"],
)
def test_the_module_and_the_random_state_are_left_as_they_were(
    exported: Export, form: str, make: Make, exporter: Exporter
) -> None:
    made = exported(make, form, exporter)
    assert made.report
    (before, state), (after, state_after) = made.before, made.after
    assert after == before
    assert torch.equal(state_after, state)


def test_a_module_that_is_trained_is_compared_in_eval_mode(tmp_path: Path) -> None:
    model = nn.Sequential(norm(nn.Linear(4, 4)), nn.Dropout(0.5), nn.BatchNorm1d(4)).train()
    assert export_onnx(model, tmp_path / "m.onnx", inputs=["input=float32[B,4]"], exporter="torchscript")
    assert model.training


# -- what is refused


@pytest.mark.parametrize("model", [Dropped(), Noisy()])
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_stochastic_model_is_recognised(tmp_path: Path, model: nn.Module, exporter: Exporter) -> None:
    with pytest.raises(InputError, match="is stochastic: run twice on the same input") as caught:
        export_onnx(model, tmp_path / "m.onnx", inputs=["x=float32[3,8]"], exporter=exporter)
    assert "remove noise, dropout and memory" in caught.value.fix
    assert not [*tmp_path.iterdir()]


def refused(tmp_path: Path, model: nn.Module, inputs: list[str], **options: Any) -> WnconvertError:
    with pytest.raises(WnconvertError) as caught:
        export_onnx(model, tmp_path / "m.onnx", inputs=inputs, **options)
    assert caught.value.exit_code == 2
    assert not [*tmp_path.iterdir()]
    return caught.value


@pytest.mark.parametrize(
    ("inputs", "what", "fix"),
    [
        (["mle=float32[1,4,T]"], "the model has no input 'mle'", "did you mean mel?"),
        (["x=float32[1,4,T]"], "the model has no input 'x'", "the inputs of forward are: mel"),
        ([*MEL, "ids=int64[3]<5"], "the model has no input 'ids'", "the inputs of forward are: mel"),
        (["mel=float32[1,4"], "mel=float32[1,4", "such as"),
        (["mel=float33[1,4,T]"], "float33", "float32"),
        (["mel=float32[1,7,T]"], "the model fails on mel[1, 7, 16]", "shapes, dtypes"),
        (["mel=int64[1,4,T]<9"], "the model fails on mel[1, 4, 16]", "shapes, dtypes"),
    ],
)
def test_inputs_that_do_not_fit_are_told(tmp_path: Path, inputs: list[str], what: str, fix: str) -> None:
    error = refused(tmp_path, vocoder(), inputs)
    assert what in str(error)
    assert fix in error.fix


def test_an_input_that_is_lacking_is_told(tmp_path: Path) -> None:
    error = refused(tmp_path, speech(), MEL)
    assert "forward needs ids too" in str(error)
    assert "--input 'ids=" in error.fix


def test_an_operation_that_the_exporter_refuses_is_told_with_its_layer(tmp_path: Path) -> None:
    for exporter, other in (EXPORTERS, EXPORTERS[::-1]):
        error = refused(tmp_path, export_models.Eigen(), ["x=float32[4,4]"], exporter=exporter)
        assert error.where == "layer inner.1"
        assert "linalg_eig" in str(error)
        assert f"--exporter {other}" in error.fix


def test_control_flow_is_told_with_its_line(tmp_path: Path) -> None:
    error = refused(tmp_path, export_models.Branching(), ["x=float32[4,4]"], exporter="dynamo")
    assert "data-dependent" in str(error)
    assert error.where.startswith("export_models.py, line")


def test_nothing_of_torchs_reaches_the_user(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for exporter in LENGTH_KEPT_BY:
        export_onnx(speech(), tmp_path / f"{exporter}.onnx", inputs=BOTH, exporter=exporter)
    for exporter in EXPORTERS:
        with pytest.raises(ArgumentError):
            export_onnx(
                export_models.Eigen(), tmp_path / "x.onnx", inputs=["x=float32[4,4]"], exporter=exporter
            )
    assert capfd.readouterr() == ("", "")


def test_a_target_that_exists_is_kept_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("mine")
    with pytest.raises(OutputError, match="it exists"):
        export_onnx(vocoder(), path, inputs=MEL, exporter="torchscript")
    assert path.read_text() == "mine"
    assert export_onnx(vocoder(), path, inputs=MEL, exporter="torchscript", force=True)
    onnx.checker.check_model(str(path))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("x.pt", "would not be a checkpoint"),
        ("x.safetensors", "would not be a checkpoint"),
        ("x.ort", "would not be a model in onnxruntime's own format"),
    ],
)
def test_an_output_is_what_its_suffix_says(tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(ArgumentError, match=f"{name} {what}, as its name says, but an ONNX model") as caught:
        export_onnx(nn.Linear(2, 2), tmp_path / name, inputs=["input=float32[1,2]"])
    assert caught.value.fix == "-o OUT.onnx"


def test_an_exporter_that_there_is_not_is_told(tmp_path: Path) -> None:
    assert "no exporter is called 'onnxruntime'" in str(
        refused(tmp_path, vocoder(), MEL, exporter="onnxruntime")
    )


def test_a_module_without_numbers_is_refused(tmp_path: Path) -> None:
    assert "meta device" in str(refused(tmp_path, nn.Linear(3, 2, device="meta"), ["input=float32[3]"]))


# -- what is different


class Tracing(nn.Module):
    """Computes something else where it is traced than where it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = norm(nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.lin(x)
        return y * 2 if torch.jit._trace.is_tracing() else y  # type: ignore[no-untyped-call]


def test_what_is_not_equal_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    report = export_onnx(Tracing(), path, inputs=["x=float32[B,4]"], exporter="torchscript")
    assert not report
    assert report.outputs[0].worst is not None
    assert "would have passed" in report.proof.advice
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("external", [False, True])
def test_what_is_not_equal_can_be_kept_under_a_name_that_says_so(tmp_path: Path, external: bool) -> None:
    report = export_onnx(
        Tracing(),
        tmp_path / "m.onnx",
        inputs=["x=float32[B,4]"],
        exporter="torchscript",
        keep_failed=True,
        external_data=external,
    )
    assert not report
    assert (tmp_path / "m.failed.onnx").exists()
    assert not (tmp_path / "m.onnx").exists()
    assert any("m.failed.onnx" in note for note in report.notes)
    run(tmp_path / "m.failed.onnx", x=np.ones((2, 4), np.float32))


def test_a_baked_in_length_is_found(tmp_path: Path) -> None:
    class Baked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * int(x.shape[1])

    report = export_onnx(Baked(), tmp_path / "m.onnx", inputs=["x=float32[1,T]"], exporter="torchscript")
    assert not report
    assert report.outputs[0].out_of_tolerance


# -- what a forward may do


class Caching(nn.Module):
    """Gives what it computed first, ever after; and counts."""

    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.lin = norm(nn.Linear(4, 4))
        self.first: torch.Tensor | None = None
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        if self.first is None:
            self.first = self.lin(x)
        return self.first + 0 * x.sum()


def test_a_module_that_remembers_is_as_new_on_each_sample_and_afterwards(tmp_path: Path) -> None:
    model = Caching()
    before = portrait(model)
    report = export_onnx(model, tmp_path / "m.onnx", inputs=["x=float32[B,4]"], exporter="torchscript")
    assert report
    assert [output.name for output in report.outputs] == ["output"]
    assert portrait(model) == before
    assert check_onnx(tmp_path / "m.onnx", model, inputs=["x=float32[B,4]"])
    assert portrait(model) == before


def test_batch_statistics_are_as_before(tmp_path: Path) -> None:
    class Batch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.bn.train()(x)
            return y

    model = Batch()
    before = portrait(model)
    for exporter in EXPORTERS:
        export_onnx(model, tmp_path / f"{exporter}.onnx", inputs=["x=float32[B,4]"], exporter=exporter)
        assert portrait(model) == before


@by_exporter
def test_what_is_wrapped_around_a_module_is_taken_off(tmp_path: Path, exporter: Exporter) -> None:
    path = tmp_path / "m.onnx"
    wrapped: Any = torch.compile(nn.DataParallel(vocoder()), backend="eager")
    assert export_onnx(wrapped, path, inputs=MEL, ranges=RANGES, exporter=exporter)
    assert {"conv_pre.weight", "up.weight", "proj.weight"} <= set(initializers(path))
    assert check_onnx(path, wrapped, inputs=MEL, ranges=RANGES)


@by_exporter
def test_names_of_outputs_that_weights_have_are_not_used_twice(tmp_path: Path, exporter: Exporter) -> None:
    class Named(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            y = super().forward(x)
            return {"weight": y, "weight_out": y * 2, "a": {"b": y * 3}, "a.b": y * 4}

    report = export_onnx(norm(Named(3, 2)), tmp_path / "m.onnx", inputs=["x=float32[B,3]"], exporter=exporter)
    assert report
    names = [output.name for output in report.outputs]
    assert names == ["weight_out", "weight_out_out", "a.b", "a.b_2"]


def test_names_of_outputs_that_are_taken_are_refused(tmp_path: Path) -> None:
    for name, what in (("mel", "an input has this name"), ("up.weight", "a weight has this name")):
        assert what in str(refused(tmp_path, vocoder(), MEL, outputs=[name]))
    assert "this is not a name" in str(refused(tmp_path, vocoder(), MEL, outputs=[""]))
    assert "two outputs are called a" in str(refused(tmp_path, vocoder(), MEL, outputs=["a", "a"]))


class Faint(nn.Linear):
    """Outputs that are nearly zero, and zero; and one that is not, where that is wanted."""

    quiet = 1e-8
    loud = False

    def forward(self, x: torch.Tensor) -> Any:
        y = super().forward(x)
        return (y * self.quiet, y * 0, *([y] * self.loud))


def test_outputs_that_atol_alone_would_let_pass_are_proven_by_their_own_size(tmp_path: Path) -> None:
    report = export_onnx(Faint(3, 2), tmp_path / "m.onnx", inputs=["x=float32[B,3]"])
    assert report
    assert 0 < report.outputs[0].largest < 1e-6
    other = check_onnx(tmp_path / "m.onnx", Faint(3, 2), inputs=["x=float32[B,3]"])
    assert not other
    assert not other.outputs[0].out_of_tolerance
    assert other.outputs[0].unproven
    text = proof_text(other)
    assert "output output_0 is at most" in text
    assert "so zeros would be within 1e-05" in text


def test_a_faint_output_beside_others_is_a_note(tmp_path: Path) -> None:
    model, other = Faint(3, 2), Faint(3, 2)
    model.loud = other.loud = True
    assert export_onnx(model, tmp_path / "m.onnx", inputs=["x=float32[B,3]"])
    other.load_state_dict(model.state_dict())
    other.quiet = 1.1e-8
    report = check_onnx(tmp_path / "m.onnx", other, inputs=["x=float32[B,3]"])
    assert report
    assert report.outputs[0].unproven
    (faint, alike) = (note for note in report.notes if "proves little" in note)
    assert faint.startswith("output output_0 is at most ")
    assert alike == "output output_1 is the same number everywhere: that proves little"


def test_no_folder_of_this_machine_is_named_in_what_is_exported(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    assert export_onnx(vocoder(), path, inputs=MEL, ranges=RANGES)
    for folder in (Path(__file__).parent, Path(torch.__file__).parent, tmp_path, Path.home()):
        assert str(folder).encode() not in path.read_bytes()
