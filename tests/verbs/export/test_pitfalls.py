"""What exports are known to get wrong, with torch's exporters or with a proof that looks too little."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.export_models import by_exporter
from tests.helpers.live_models import norm
from tests.helpers.marks import crossed
from wnconvert import check_onnx, export_onnx
from wnconvert.errors import ArgumentError, InputError, LayerError
from wnconvert.reports.text.exports import proof_text
from wnconvert.verbs.export.exporters import EXPORTERS, Exporter

X = ["x=float32[B,4]"]


@dataclass
class Answer:
    """An output that torch does not know as one."""

    wave: Tensor
    rate: int
    twice: Tensor


class Computes(nn.Module):
    """A normalized layer, and what a test makes of it."""

    def __init__(self, forward: Callable[..., Any], seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.lin = norm(nn.Linear(4, 4))
        self.of = forward

    def forward(self, x: Tensor) -> Any:
        return self.of(self.lin(x), x)


class Flagged(nn.Module):
    """What a trace fixes: which way it went."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = norm(nn.Linear(4, 4))

    def forward(self, x: Tensor, flag: Tensor) -> Tensor:
        y: Tensor = self.lin(x)
        return y * 2 if flag else y


# -- what torch sees


def tripled(_: nn.Module, __: Any, found: Any) -> Any:
    assert isinstance(found, (Tensor, dict)), "a hook sees what the module gives"
    return {"y": found["y"] * 3} if isinstance(found, dict) else found * 3


def doubled(_: nn.Module, args: Any, kwargs: Any) -> Any:
    return tuple(each * 2 for each in args), {name: each * 2 for name, each in kwargs.items()}


@crossed(exporter=EXPORTERS[::-1], output=["a tensor", "a dict"])
def test_hooks_of_the_module_itself_are_part_of_it(tmp_path: Path, exporter: Exporter, output: str) -> None:
    model = Computes(lambda y, x: y if output == "a tensor" else {"y": y})
    model.register_forward_hook(tripled)
    model.register_forward_pre_hook(doubled, with_kwargs=True)
    assert export_onnx(model, tmp_path / "m.onnx", inputs=X, exporter=exporter)
    assert len(model._forward_hooks) == len(model._forward_pre_hooks) == 1
    assert "forward" not in model.__dict__


@by_exporter
def test_numbers_among_the_outputs_are_no_outputs(tmp_path: Path, exporter: Exporter) -> None:
    model = Computes(lambda y, x: {"n": x.shape[0], "y": y, "z": (y.shape[1], y + 1)})
    report = export_onnx(model, tmp_path / "m.onnx", inputs=X, exporter=exporter)
    assert report
    assert [output.name for output in report.outputs] == ["y", "z.1"]


@by_exporter
def test_a_dataclass_is_opened(tmp_path: Path, exporter: Exporter) -> None:
    model = Computes(lambda y, x: Answer(y, 22050, y * 2))
    report = export_onnx(model, tmp_path / "m.onnx", inputs=X, exporter=exporter)
    assert report
    assert [output.name for output in report.outputs] == ["wave", "twice"]


def test_one_output_may_be_named_by_a_text(tmp_path: Path) -> None:
    model = Computes(lambda y, x: y)
    report = export_onnx(model, tmp_path / "m.onnx", inputs=X, outputs="wave", exporter="torchscript")
    assert [output.name for output in report.outputs] == ["wave"]


# -- what a proof must look at


@pytest.mark.parametrize("flag", ["flag=bool[]", "flag=bool[1]", "flag=int64[]<2"])
def test_a_flag_that_a_trace_fixed_is_caught(tmp_path: Path, flag: str) -> None:
    report = export_onnx(Flagged(), tmp_path / "m.onnx", inputs=[*X, flag], exporter="torchscript")
    assert not report
    assert "inputs that the exporter left out, because nothing uses them: flag" in report.notes
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("text", ["B=3..41", "B=1..9", "B=5..301"])
def test_what_is_wrong_at_even_sizes_alone_is_caught(tmp_path: Path, text: str) -> None:
    right = Computes(lambda y, x: y + (1 - x.shape[0] % 2))
    plain = Computes(lambda y, x: y)
    path = tmp_path / "m.onnx"
    assert export_onnx(plain, path, inputs=X, ranges=[text], exporter="torchscript")
    assert not check_onnx(path, right, inputs=X, ranges=[text])


@pytest.mark.parametrize(
    "of",
    [
        lambda y, x: torch.log(-y.abs() - 1),
        lambda y, x: torch.relu(y - 100),
        lambda y, x: y.abs() / torch.zeros(()),
    ],
)
def test_outputs_of_nothing_but_zeros_or_nan_prove_nothing(tmp_path: Path, of: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="0, NaN or infinite on all samples, which proves nothing"):
        export_onnx(Computes(of), tmp_path / "m.onnx", inputs=X, exporter="torchscript")
    assert not [*tmp_path.iterdir()]


def test_an_output_that_is_the_same_everywhere_is_told(tmp_path: Path) -> None:
    model = Computes(lambda y, x: (y, torch.sigmoid(y + 100)))
    report = export_onnx(model, tmp_path / "m.onnx", inputs=X, exporter="torchscript")
    assert report
    said = "output output_1 is the same number everywhere: that proves little"
    assert said in report.notes


# -- what is refused, and what then helps


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_model_that_fails_at_the_exported_size_is_named_and_no_exporter(
    tmp_path: Path, exporter: Exporter
) -> None:
    model = Computes(lambda y, x: y.reshape(y.shape[0] // 2, 8))
    with pytest.raises(ArgumentError, match=r"the model fails on x\[21, 4\]") as caught:
        export_onnx(model, tmp_path / "m.onnx", inputs=X, ranges=["B=2..40"], exporter=exporter)
    assert "B = 21" in caught.value.where
    assert "a range of sizes that it takes" in caught.value.fix
    assert not [*tmp_path.iterdir()]


def test_numbers_that_cannot_be_folded_are_told_with_what_helps(tmp_path: Path) -> None:
    model = Computes(lambda y, x: y)
    with torch.no_grad():
        model.lin.parametrizations.weight.original1[1] = 0
    with pytest.raises(LayerError) as caught:
        export_onnx(model, tmp_path / "m.onnx", inputs=X)
    assert "zero" in caught.value.what
    assert caught.value.fix.startswith("fold before the export, as a checkpoint or with fold_module: ")


def test_bfloat16_that_no_runtime_has_is_no_bug_of_ours(tmp_path: Path) -> None:
    model = nn.Sequential(norm(nn.Conv1d(4, 4, 3))).bfloat16()
    with pytest.raises((ArgumentError, InputError)) as caught:
        export_onnx(model, tmp_path / "m.onnx", inputs=["input=bfloat16[1,4,T]"])
    assert caught.value.exit_code == 2
    assert "export in float32" in caught.value.fix


def test_half_precision_that_fails_is_explained(tmp_path: Path) -> None:
    model = nn.Sequential(*(norm(nn.Conv1d(16, 16, 9)) for _ in range(4))).half()
    report = export_onnx(model, tmp_path / "m.onnx", inputs=["input=float16[1,16,T]"], ranges=["T=40..90"])
    assert not report
    assert "float16 has 11 bits: choose --rtol and --atol for that" in proof_text(report)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dynamic": {"x": [2]}}, "does not name axes by letters"),
        ({"dynamic": {"x": {"2": "T"}}}, "does not name axes by letters"),
        ({"dynamic": [2]}, "does not name axes by letters"),
        ({"ranges": [("B", 2, 5)]}, "is not a list of strings"),
        ({"ranges": 5}, "is not a list of strings"),
        ({"samples": 2.5}, "not whole numbers"),
        ({"opset": "18"}, "opset '18' is not a number"),
    ],
)
def test_arguments_of_other_types_are_told(tmp_path: Path, options: Any, says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        export_onnx(Computes(lambda y, x: y), tmp_path / "m.onnx", inputs=X, **options)


def test_what_is_no_module_is_told(tmp_path: Path) -> None:
    for run in (export_onnx, check_onnx):
        arguments: Any = ("m", tmp_path / "m.onnx") if run is export_onnx else (tmp_path / "m.onnx", "m")
        with pytest.raises(ArgumentError, match="str is not a model"):
            run(*arguments, inputs=X)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_biases_into_which_a_batch_norm_is_fused_are_named_after_their_layers(
    tmp_path: Path, exporter: Exporter
) -> None:
    model = nn.Sequential(norm(nn.Conv1d(3, 4, 3)), nn.BatchNorm1d(4), nn.Conv1d(4, 2, 1, bias=False))
    model.append(nn.BatchNorm1d(2))
    for module in model:
        if isinstance(module, nn.BatchNorm1d):
            for value in (module.weight, module.bias, module.running_mean):
                assert value is not None
                nn.init.normal_(value)
    path = tmp_path / "m.onnx"
    assert export_onnx(model, path, inputs=["input=float32[1,3,T]"], exporter=exporter)
    names = {tensor.name for tensor in onnx.load(str(path)).graph.initializer}
    assert names == {"0.weight", "0.bias", "2.weight", "2.bias"}


# -- what a forward leaves behind


class Leaves(nn.Module):
    """A forward that writes to whatever it can."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = norm(nn.Linear(4, 4))
        self.cache = torch.zeros(3)
        self.seen: dict[str, list[int]] = {"calls": []}
        self.last: deque[int] = deque(maxlen=4)

    def forward(self, x: Tensor) -> Tensor:
        self.cache.add_(1)
        self.seen["calls"].append(1)
        self.last.append(len(self.seen["calls"]))
        y: Tensor = self.lin(x)
        return y


def test_caches_in_attributes_come_back(tmp_path: Path) -> None:
    model = Leaves()
    seen, calls = model.seen, model.seen["calls"]
    assert export_onnx(model, tmp_path / "m.onnx", inputs=X, exporter="torchscript")
    assert check_onnx(tmp_path / "m.onnx", model, inputs=X)
    assert model.cache.tolist() == [0, 0, 0]
    assert model.seen is seen
    assert model.seen == {"calls": []}
    assert model.seen["calls"] is calls
    assert not model.last


def test_a_lazy_module_is_refused_and_stays_one(tmp_path: Path) -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ArgumentError, match="parameters without a shape yet") as caught:
        export_onnx(model, tmp_path / "m.onnx", inputs=["input=float32[2,4]"])
    assert caught.value.fix.startswith("run it once")
    assert type(model[0]) is nn.LazyLinear


class Renormalizes(nn.Module):
    """A forward that writes to its own parameter behind autograd's back."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.arange(1.0, 5))

    def forward(self, x: Tensor) -> Tensor:
        self.p.data = self.p.data / self.p.data.norm()
        return x * self.p


@by_exporter
def test_an_embedding_that_renormalizes_itself_is_exported(tmp_path: Path, exporter: Exporter) -> None:
    embedding = nn.Embedding(10, 4, max_norm=0.5)
    model, before = nn.Sequential(embedding, norm(nn.Linear(4, 2))), embedding.weight.clone()
    assert export_onnx(model, tmp_path / "m.onnx", inputs=["input=int64[1,T]<10"], exporter=exporter)
    assert torch.equal(embedding.weight, before)


def test_a_forward_that_writes_to_parameters_is_refused_where_torch_would_end_the_process(
    tmp_path: Path,
) -> None:
    model = Renormalizes()
    with pytest.raises(ArgumentError, match=r"(?m)forward writes to .data of parameters.*: p$") as caught:
        export_onnx(model, tmp_path / "m.onnx", inputs=X, exporter="dynamo")
    assert caught.value.fix.startswith("choose --exporter torchscript")
    assert export_onnx(model, tmp_path / "m.onnx", inputs=X, exporter="torchscript")
    assert model.p.tolist() == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")  # torch warns of its own trees
def test_a_graph_that_computes_a_weight_itself_is_exported(tmp_path: Path) -> None:
    graph = torch.export.export(Computes(lambda y, x: y + x).eval(), (torch.ones(2, 4),)).module()
    out = tmp_path / "m.onnx"
    report = export_onnx(graph, out, inputs=["x=float32[2,4]"])
    assert report
    assert not report.residual_weight_norm
    assert out.exists()
