"""An ONNX model held against a module: a weight that is off by 1 % is found, whatever node it feeds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.helpers.export_models import Noisy, Squared, reshaping, scramble, speech, vocoder
from tests.helpers.live_models import norm
from tests.helpers.onnx_graphs import looping
from wnconvert import ExportReport, check_onnx, export_onnx, fold_file
from wnconvert.errors import ArgumentError, FormatError, InputError, UnfoldedError, WnconvertError
from wnconvert.reports.text.exports import proof_text


class Mixed(nn.Module):
    """One of each kind of node that holds weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = norm(nn.Conv1d(4, 6, 3, padding=1))
        self.up = norm(nn.ConvTranspose1d(6, 4, 4, 2, 1))
        self.rnn = nn.LSTM(4, 5, batch_first=True)
        norm(self.rnn, name="weight_hh_l0")
        self.matmul = norm(nn.Linear(5, 6, bias=False), dim=None)
        self.gemm = norm(nn.Linear(6, 3))
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, _ = self.rnn(self.up(self.conv(mel)).transpose(1, 2))
        y = self.matmul(y)
        return y * self.scale, self.gemm(y.mean(1))


MEL = ["mel=float32[1,4,T]"]
RANGES = ["T=4..20"]


def mixed() -> nn.Module:
    torch.manual_seed(2)
    made = Mixed()
    scramble(made, 2)
    return made


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return mixed()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, model: nn.Module) -> Path:
    path = tmp_path_factory.mktemp("good") / "mixed.onnx"
    assert export_onnx(model, path, inputs=MEL, ranges=RANGES, exporter="torchscript")
    return path


def spoiled(good: Path, out: Path, name: str, factor: float = 1.01) -> Path:
    """The model with one weight off by 1 %."""
    proto = onnx.load(str(good))
    (tensor,) = (each for each in proto.graph.initializer if each.name == name)
    array = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(array, np.float32), name))
    onnx.save(proto, str(out))
    return out


def consumer(good: Path, name: str) -> str:
    return str(next(node.op_type for node in onnx.load(str(good)).graph.node if name in node.input))


def test_what_was_exported_is_equal(good: Path, model: nn.Module) -> None:
    report = check_onnx(good, model, inputs=MEL, ranges=RANGES)
    assert report
    assert (report.residual_weight_norm, report.exporter) == (0, None)
    assert [output.name for output in report.outputs] == ["output_0", "output_1"]


#: The settings that docs recommend, beside the defaults.
SETTINGS: dict[str, dict[str, Any]] = {"defaults": {}, "few outliers": {"outliers": 1e-5, "min_snr": 100}}


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("conv.weight", "Conv"),
        ("conv.bias", "Conv"),
        ("up.weight", "ConvTranspose"),
        ("up.bias", "ConvTranspose"),
        ("matmul.weight", "MatMul"),
        ("gemm.weight", "Gemm"),
        ("gemm.bias", "Gemm"),
        ("rnn.weight_ih_l0", "LSTM"),
        ("rnn.weight_hh_l0", "LSTM"),
        ("rnn.bias_ih_l0+bias_hh_l0", "LSTM"),
        ("scale", "Mul"),
    ],
)
def test_a_weight_that_is_off_by_1_percent_is_found(
    good: Path, model: nn.Module, tmp_path: Path, name: str, node: str
) -> None:
    assert consumer(good, name) == node
    bad = spoiled(good, tmp_path / "bad.onnx", name)
    for settings in SETTINGS.values():
        report = check_onnx(bad, model, inputs=MEL, ranges=RANGES, **settings)
        assert not report
        worst = [output for output in report.outputs if not output.passed]
        assert worst
        assert all(output.worst is not None and output.needed_rtol for output in worst)
        assert "would have passed" in report.proof.advice


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", ["conv.bias", "up.bias", "gemm.bias"])
def test_a_bias_that_is_dropped_is_found(
    good: Path, model: nn.Module, tmp_path: Path, name: str, settings: str
) -> None:
    bad = spoiled(good, tmp_path / "bad.onnx", name, 0.0)
    assert not check_onnx(bad, model, inputs=MEL, ranges=RANGES, **SETTINGS[settings])


def change_all(array: Any) -> Any:
    return array * np.float32(1.01)


def change_one(array: Any) -> Any:
    found = array.copy()
    found.reshape(-1)[np.abs(found).argmax()] *= np.float32(1.01)
    return found


def drop(array: Any) -> Any:
    return np.zeros_like(array)


def swap(array: Any) -> Any:
    return np.ascontiguousarray(array[..., ::-1])


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    path, model = tmp_path_factory.mktemp("long") / "vocoder.onnx", vocoder()
    assert export_onnx(model, path, inputs=MEL, ranges=RANGES, exporter="torchscript")
    return path, model


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        *((name, change) for name in ("conv_pre", "up", "proj") for change in (change_all, change_one)),
        *((name, swap) for name in ("conv_pre", "up")),
        *((f"{name}.bias", drop) for name in ("conv_pre", "up", "proj")),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_spoiled_is_found_where_a_few_of_many_elements_may_be_off(
    long: tuple[Path, nn.Module], tmp_path: Path, name: str, spoil: Callable[[Any], Any]
) -> None:
    path, model = long
    wave = ["T=20000..20002"]  # 120,000 elements, of which one may be off
    assert check_onnx(path, model, inputs=MEL, ranges=wave, samples=1, **SETTINGS["few outliers"])
    proto = onnx.load(str(path))
    called = name if name.endswith("bias") else f"{name}.weight"
    (tensor,) = (each for each in proto.graph.initializer if each.name == called)
    changed = spoil(onnx.numpy_helper.to_array(tensor))
    tensor.CopyFrom(onnx.numpy_helper.from_array(changed, called))
    onnx.save(proto, str(tmp_path / "bad.onnx"))
    report = check_onnx(
        tmp_path / "bad.onnx", model, inputs=MEL, ranges=wave, samples=1, **SETTINGS["few outliers"]
    )
    assert not report
    assert report.outputs[0].out_of_tolerance > 1 or report.outputs[0].noisy


@pytest.mark.parametrize("settings", SETTINGS)
def test_an_axis_that_is_swapped_is_found(
    good: Path, model: nn.Module, tmp_path: Path, settings: str
) -> None:
    proto = onnx.load(str(good))
    (tensor,) = (each for each in proto.graph.initializer if each.name == "conv.weight")
    flipped = np.ascontiguousarray(onnx.numpy_helper.to_array(tensor)[..., ::-1])
    tensor.CopyFrom(onnx.numpy_helper.from_array(flipped, "conv.weight"))
    onnx.save(proto, str(tmp_path / "bad.onnx"))
    bad = tmp_path / "bad.onnx"
    assert not check_onnx(bad, model, inputs=MEL, ranges=RANGES, **SETTINGS[settings])
    assert check_onnx(good, model, inputs=MEL, ranges=RANGES, **SETTINGS[settings])


def test_a_tolerance_that_is_told_to_pass_does(good: Path, model: nn.Module, tmp_path: Path) -> None:
    bad = spoiled(good, tmp_path / "bad.onnx", "conv.weight")
    report = check_onnx(bad, model, inputs=MEL, ranges=RANGES)
    needed = report.proof.needed
    assert needed is not None
    assert needed.atol is not None
    assert check_onnx(bad, model, inputs=MEL, ranges=RANGES, atol=needed.atol * 1.001)


def test_a_graph_constant_that_is_off_is_found(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 0.7

    path = tmp_path / "m.onnx"
    assert export_onnx(Scaled(), path, inputs=["x=float32[3]"], exporter="torchscript")
    proto = onnx.load(str(path))
    (node,) = (each for each in proto.graph.node if each.op_type == "Constant")
    value = onnx.numpy_helper.to_array(node.attribute[0].t)
    node.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(value * np.asarray(1.01, value.dtype)))
    onnx.save(proto, str(path))
    assert not check_onnx(path, Scaled(), inputs=["x=float32[3]"])


def test_a_model_of_other_weights_or_another_shape_is_different(good: Path) -> None:
    torch.manual_seed(7)
    assert not check_onnx(good, Mixed(), inputs=MEL, ranges=RANGES)


def test_other_names_of_outputs_are_compared_in_their_order(
    good: Path, model: nn.Module, tmp_path: Path
) -> None:
    proto = onnx.load(str(good))
    proto.graph.node.append(onnx.helper.make_node("Identity", ["output_0"], ["audio"]))
    proto.graph.output[0].name = "audio"
    onnx.save(proto, str(tmp_path / "renamed.onnx"))
    report = check_onnx(tmp_path / "renamed.onnx", model, inputs=MEL, ranges=RANGES)
    assert report
    assert [output.name for output in report.outputs] == ["audio", "output_1"]
    wrong = check_onnx(
        tmp_path / "renamed.onnx", model, inputs=MEL, ranges=RANGES, outputs=["output_1", "audio"]
    )
    assert not wrong
    assert "outputs" in wrong.proof.mismatches[0]


def test_an_output_more_is_different(good: Path, model: nn.Module, tmp_path: Path) -> None:
    proto = onnx.load(str(good))
    del proto.graph.output[1]
    onnx.save(proto, str(tmp_path / "less.onnx"))
    report = check_onnx(tmp_path / "less.onnx", model, inputs=MEL, ranges=RANGES)
    assert not report
    assert report.proof.mismatches


@pytest.mark.parametrize("form", ["legacy", "parametrize"])
def test_weight_norm_that_is_left_is_counted_and_folding_the_file_takes_it_out(
    tmp_path: Path, form: str
) -> None:
    raw, model = tmp_path / "raw.onnx", vocoder(form).eval()
    options: dict[str, Any] = {"input_names": ["mel"], "dynamic_axes": {"mel": {2: "T"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.randn(1, 4, 9),), str(raw), dynamo=False, **options)
    left = check_onnx(raw, model, inputs=MEL, ranges=RANGES)
    assert left
    assert left.residual_weight_norm == 3
    fold_file(raw, tmp_path / "folded.onnx")
    folded = check_onnx(tmp_path / "folded.onnx", model, inputs=MEL, ranges=RANGES)
    assert folded
    assert folded.residual_weight_norm == 0


class Squashed(nn.Module):
    """A linear layer whose weight an exporter leaves to be computed: the tanh of what is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(4, 4)
        self.stored = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.before(x), torch.tanh(self.stored))


def test_a_weight_that_is_computed_at_every_run_ends_an_export_and_a_check_that_want_none(
    tmp_path: Path,
) -> None:
    torch.manual_seed(4)
    path, model = tmp_path / "m.onnx", Squashed().eval()
    asked: dict[str, Any] = {"inputs": ["x=float32[B,4]"], "exporter": "torchscript"}
    with pytest.raises(UnfoldedError, match="1 weight is computed at every run: stored") as caught:
        export_onnx(model, path, require_folded=True, **asked)
    assert caught.value.exit_code == 1
    assert not [*tmp_path.iterdir()]
    report = export_onnx(model, path, **asked)
    assert [weight.name for weight in report.computed] == ["stored"]
    with pytest.raises(UnfoldedError, match="1 weight is computed at every run: stored"):
        check_onnx(path, model, inputs=asked["inputs"], require_folded=True)
    folded = tmp_path / "folded.onnx"
    fold_file(path, folded, constants=True)
    again = check_onnx(folded, model, inputs=asked["inputs"], require_folded=True)
    assert again
    assert not again.computed


# -- what is refused


def refused(path: Path, model: nn.Module, inputs: list[str] = MEL) -> WnconvertError:
    with pytest.raises(WnconvertError) as caught:
        check_onnx(path, model, inputs=inputs, ranges=RANGES if "T" in "".join(inputs) else [])
    assert caught.value.exit_code == 2
    return caught.value


def write_checkpoint(path: Path) -> None:
    torch.save(vocoder().state_dict(), path)


def write_nothing(path: Path) -> None:
    del path


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (write_nothing, "no such file"),
        (lambda path: path.write_bytes(b""), "an empty file"),
        (lambda path: path.write_bytes(b"\x08\x07\x12\x04junk" * 9), ""),
        (write_checkpoint, "a checkpoint (torch zip), not an ONNX model"),
    ],
)
def test_what_is_no_onnx_model_is_told(
    tmp_path: Path, model: nn.Module, write: Callable[[Path], object], says: str
) -> None:
    path = tmp_path / "m.onnx"
    write(path)
    error = refused(path, model)
    assert says in str(error)
    assert "m.onnx" in str(error)


def test_a_model_that_is_cut_short_is_told(good: Path, model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(good.read_bytes()[:-200])
    assert isinstance(refused(tmp_path / "m.onnx", model), (FormatError, InputError))


def test_an_invalid_graph_is_told(good: Path, model: nn.Module, tmp_path: Path) -> None:
    proto = onnx.load(str(good))
    proto.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(proto, str(tmp_path / "m.onnx"))
    assert "NoSuchOperator" in str(refused(tmp_path / "m.onnx", model))


def test_external_data_that_is_missing_or_outside_is_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = norm(nn.Linear(64, 64))
    path = tmp_path / "m.onnx"
    inputs = ["input=float32[B,64]"]
    assert export_onnx(model, path, inputs=inputs, external_data=True, exporter="torchscript")
    (tmp_path / "m.onnx.data").rename(tmp_path / "away")
    assert "m.onnx.data" in str(refused(path, model, inputs))
    proto = onnx.load(str(path), load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../away" if entry.key == "location" else entry.value
    path.write_bytes(proto.SerializeToString())
    assert isinstance(refused(path, model, inputs), InputError)


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_a_model_that_computes_for_ever_is_an_error_after_its_time(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(looping(1 << 60).SerializeToString())
    with pytest.raises(InputError, match=r"onnxruntime took longer than 0\.3 s") as caught:
        check_onnx(tmp_path / "model.onnx", Twice(), inputs="x=float32[2,4]", timeout=0.3)
    assert (caught.value.exit_code, caught.value.fix) == (2, "--timeout SECONDS gives it more time")
    (tmp_path / "model.onnx").write_bytes(looping(3).SerializeToString())
    assert not check_onnx(tmp_path / "model.onnx", Twice(), inputs="x=float32[2,4]", timeout=60)


def test_an_export_that_takes_longer_than_its_time_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="onnxruntime took longer than"):
        export_onnx(
            Twice(), tmp_path / "m.onnx", inputs="x=float32[2,4]", exporter="torchscript", timeout=1e-6
        )
    assert not list(tmp_path.iterdir())


def test_inputs_that_only_one_side_has_are_told(good: Path) -> None:
    assert isinstance(refused(good, vocoder(), ["x=float32[1,4,T]"]), ArgumentError)
    assert isinstance(refused(good, speech(), MEL), ArgumentError)


def with_inputs_called(path: Path, out: Path, names: Mapping[str, str]) -> Path:
    """The model with other names of its inputs."""
    proto = onnx.load(str(path))
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    for port in proto.graph.input:
        port.name = names.get(port.name, port.name)
    onnx.save(proto, str(out))
    return out


def test_an_input_of_another_name_is_taken_in_its_place_or_as_the_user_says(
    good: Path, model: nn.Module, tmp_path: Path
) -> None:
    renamed = with_inputs_called(good, tmp_path / "m.onnx", {"mel": "x"})
    report = check_onnx(renamed, model, inputs=MEL, ranges=RANGES)
    assert report
    assert "the model has other names of inputs, taken in their order: mel is x" in report.notes
    named = check_onnx(renamed, model, inputs=["mel:x=float32[1,4,T]"], ranges=RANGES)
    assert named
    assert not any("other names" in note for note in named.notes)
    error = refused(renamed, model, ["x=float32[1,4,T]"])
    assert error.fix.endswith("if x is the ONNX model's name of mel, give 'mel:x=…'")


class Apart(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a - b


def test_of_two_that_are_alike_only_the_user_knows_which_is_which(tmp_path: Path) -> None:
    made = tmp_path / "m.onnx"
    inputs = ["a=float32[3]", "b=float32[3]"]
    assert export_onnx(Apart(), made, inputs=inputs, exporter="torchscript")
    swapped = with_inputs_called(made, tmp_path / "swapped.onnx", {"a": "y", "b": "x"})
    assert check_onnx(swapped, Apart(), inputs=inputs)
    assert check_onnx(swapped, Apart(), inputs=["a:y=float32[3]", "b:x=float32[3]"])
    assert not check_onnx(swapped, Apart(), inputs=["a:x=float32[3]", "b:y=float32[3]"])
    examples = {"b:x": torch.randn(3), "a:y": torch.randn(3)}
    assert check_onnx(swapped, Apart(), inputs=examples)


def test_a_dtype_or_size_that_an_input_of_another_name_does_not_take_is_told_as_it_is_written(
    tmp_path: Path,
) -> None:
    made = tmp_path / "m.onnx"
    assert export_onnx(Apart(), made, inputs=["a:x=float32[3]", "b:y=float32[3]"], exporter="torchscript")
    wide = refused(made, Apart(), ["a:x=float64[3]", "b:y=float64[3]"])
    assert (str(wide), wide.fix) == (
        f"{made}: input x is float32, but float64 is given",
        "give a:x=float32[3]",
    )
    assert (
        refused(made, Apart(), ["a=float32[4]", "b:y=float32[4]"]).fix == "give 'a:x=float32[4]', if it is a"
    )
    long = refused(made, Apart(), ["a:x=float32[4]", "b:y=float32[4]"])
    assert long.fix == "give sizes that it takes: a:x=float32[3]"


def test_a_model_with_an_input_more_is_told_with_what_to_give(tmp_path: Path) -> None:
    made = tmp_path / "m.onnx"
    assert export_onnx(Apart(), made, inputs=["a=float32[3]", "b=float32[3]"], exporter="torchscript")
    error = refused(made, nn.Linear(3, 3), ["input=float32[3]"])
    assert error.lines == [f"{made}: its input a, float32[3], is none of the inputs that are given"]
    assert error.fix == "give 'input:a=float32[3]', if it is input"


# -- sizes that an exporter has fixed


def checked(path: Path, *ranges: str) -> ExportReport:
    return check_onnx(path, Squared(), inputs=["x=float32[B,T,2]"], ranges=ranges)


def test_a_size_that_the_exporter_fixed_is_named_where_the_model_runs_at_no_other(tmp_path: Path) -> None:
    report = checked(reshaping(tmp_path / "m.onnx", -1, 72, 2), "T=16..128", "B=2..5")
    assert not report
    assert report.proof.fixed == {"T": 72}
    assert report.to_dict()["fixed"] == {"T": 72}
    lines = proof_text(report).splitlines()[-4:]
    assert lines[0].startswith("different from Squared in torch")
    assert lines[1] == "the exporter fixed T at 72: the model runs at no other size"
    assert lines[2].startswith(f"at B = 2, T = 16: {tmp_path}/m.onnx: the model fails in onnxruntime: ")
    assert lines[3] == "export it again with the other of torch's exporters, or give 72 in place of T"


def test_each_of_several_sizes_that_are_fixed_is_named(tmp_path: Path) -> None:
    report = checked(reshaping(tmp_path / "m.onnx", 4, 72, 2), "T=16..128", "B=2..5")
    assert report.proof.fixed == {"B": 4, "T": 72}
    assert "the exporter fixed B at 4, T at 72: the model runs at no other size" in proof_text(report)


def test_nothing_is_said_to_be_fixed_where_the_model_runs_at_other_sizes_or_at_none(tmp_path: Path) -> None:
    some = checked(reshaping(tmp_path / "some.onnx", -1, 16, 2), "T=16..128", "B=2..5")
    none = checked(reshaping(tmp_path / "none.onnx", -1, 131, 2), "T=16..128", "B=2..5")
    for report in (some, none):
        assert not report
        assert report.proof.fixed == {}
        assert report.advice == "no tolerance would have passed"
        assert "fixed" not in proof_text(report)
    assert checked(reshaping(tmp_path / "good.onnx", 0, -1, 2), "T=16..128", "B=2..5").proof.fixed == {}


def test_a_stochastic_reference_is_refused(tmp_path: Path) -> None:
    there = reshaping(tmp_path / "m.onnx", 0, -1, 2)
    assert "stochastic" in str(refused(there, Noisy(), ["x=float32[1,3,8]"]))
