"""What torch's exporters write, folded as files: proven, quantized, inspected, in little memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.nn.utils import weight_norm as legacy
from torch.nn.utils.parametrizations import weight_norm as parametrize

from tests.bench.inputs import MIB
from tests.bench.measure import run as measured
from tests.helpers.states import output_of
from tests.whole.test_memory import MOST, WNCONVERT
from wnconvert import fold_file, inspect_file
from wnconvert.reports.text.inspections import inspection_text

EXPORTERS = ("dynamo", "torchscript")


class Net(nn.Module):
    """A convolution of each kind, and a linear layer whose weight is used transposed."""

    def __init__(self, norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.pre = norm(nn.Conv1d(4, 96, 7, padding=3))
        self.up = norm(nn.ConvTranspose1d(96, 64, 4, 2, 1))
        self.pos = norm(nn.Conv1d(64, 64, 5, padding=2), name="weight", dim=2)
        self.lin = norm(nn.Linear(64, 150))
        self.post = nn.Conv1d(150, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.leaky_relu(self.pos(self.up(self.pre(x))), 0.1)
        return torch.tanh(self.post(self.lin(x.transpose(1, 2)).transpose(1, 2)))


def export(module: nn.Module, path: Path, exporter: str, *, external: bool = False) -> None:
    example = torch.randn(1, 4, 32)
    options: dict[str, Any] = {"dynamo": False, "dynamic_axes": {"x": {2: "T"}}, "opset_version": 17}
    options["do_constant_folding"] = False
    if exporter == "dynamo":
        length = torch.export.Dim("T", min=4, max=400)
        options = {"dynamo": True, "dynamic_shapes": {"x": {2: length}}, "external_data": external}
        options["verbose"] = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (example,), path, input_names=["x"], output_names=["y"], **options)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """One module in both forms, exported by both exporters; the same weights everywhere."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(4)
    first = Net(parametrize).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = Net(legacy).eval()
        other.load_state_dict({**dict(zip(other.state_dict(), _in_order(first, other), strict=True))})
    for form, module in (("parametrize", first), ("legacy", other)):
        for exporter in EXPORTERS:
            export(module, folder / f"{form}_{exporter}.onnx", exporter, external=form == "parametrize")
    return folder, first


def _in_order(source: nn.Module, like: nn.Module) -> list[torch.Tensor]:
    state = source.state_dict()
    spelled = {
        f"{name}.{part}": f"{name}.parametrizations.weight.original{number}"
        for name in ("pre", "up", "pos", "lin")
        for number, part in enumerate(("weight_g", "weight_v"))
    }
    return [state[spelled.get(key, key)] for key in like.state_dict()]


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("form", ["parametrize", "legacy"])
def test_a_folded_export_computes_what_the_module_does(
    exported: tuple[Path, nn.Module], tmp_path: Path, form: str, exporter: str
) -> None:
    folder, module = exported
    source = folder / f"{form}_{exporter}.onnx"
    before = inspect_file(source)
    left = sum(layer.form == "onnx" for layer in before.layers)
    assert left >= 2
    assert before.fold == f"would make {left} plain weights"
    result = fold_file(source, tmp_path / "out.onnx", verify=True)
    assert len(result.plan.layers) == left
    assert "the whole model on" in result.verified
    after = inspect_file(output_of(result))
    assert {layer.form for layer in after.layers} == {"plain"}
    assert after.fold == "nothing to fold: no weight norm is left in the graph"
    session = onnxruntime.InferenceSession(output_of(result), providers=["CPUExecutionProvider"])
    for length in (7, 32, 100):
        x = torch.randn(1, 4, length)
        (found,) = session.run(None, {"x": x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, module(x).numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_what_was_not_folded_stands_in_the_file_as_it_was(
    exported: tuple[Path, nn.Module], tmp_path: Path, exporter: str
) -> None:
    source = exported[0] / f"parametrize_{exporter}.onnx"
    before, after = (
        onnx.load(source),
        onnx.load(output_of(fold_file(source, tmp_path / "out.onnx", record=False))),
    )
    kept = {node.name: node for node in before.graph.node}
    names = {name for node in after.graph.node for name in node.input}
    for node in after.graph.node:
        old = kept[node.name]
        same = [
            a == b or a in {item.name for item in after.graph.initializer}
            for a, b in zip(node.input, old.input, strict=True)
        ]
        assert all(same)
        node.input[:] = old.input
        assert node == old
    old_tensors = {item.name: item for item in before.graph.initializer}
    for item in after.graph.initializer:
        assert item.name in names
        assert item.name not in old_tensors or item == old_tensors[item.name]
    for made in (before, after):
        del made.graph.node[:], made.graph.initializer[:], made.graph.value_info[:]
    assert after == before


def test_magnitudes_in_the_graph_are_those_of_the_module(
    exported: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    folder, module = exported
    source = folder / "legacy_torchscript.onnx"
    out = output_of(fold_file(source, tmp_path / "out.onnx"))
    found = {layer.name: layer for layer in inspect_file(source, full=True).layers}
    plain = {layer.name: layer for layer in inspect_file(out).layers}
    for name in ("pre", "up", "pos", "lin"):
        g = module.get_parameter(f"{name}.parametrizations.weight.original0").detach().abs().double()
        # Of a plain weight no graph tells which dim its norm had: the rows are those of its outputs.
        for layer in (found[f"{name}.weight"], *([plain[f"{name}.weight"]] if name != "pos" else [])):
            assert layer.g is not None
            assert layer.g.mean == pytest.approx(g.mean().item(), rel=1e-6)
            assert layer.g.max == pytest.approx(g.max().item(), rel=1e-6)
        assert found[f"{name}.weight"].norm is not None
        assert found[f"{name}.weight"].form == "onnx"
        assert plain[f"{name}.weight"].form == "plain"
    assert found["post.weight"].form == "plain"
    text = inspection_text(inspect_file(source))
    assert "layers: 4 onnx, 1 plain" in text
    assert "(ONNX, IR 8, opset 17, by pytorch" in text
    assert "migrate" not in text


def test_only_the_named_layers_are_shown(exported: tuple[Path, nn.Module]) -> None:
    source = exported[0] / "legacy_torchscript.onnx"
    found = inspect_file(source, layers=["p*.weight"])
    assert {layer.name for layer in found.layers} == {"pre.weight", "pos.weight", "post.weight"}
    every = inspect_file(source, all_weights=True)
    assert len(every.layers) == 5


def test_after_a_fold_a_graph_quantizes_that_did_not_before(tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    class Linears(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.layers = nn.Sequential(*(legacy(nn.Conv1d(4, 4, 3, padding=1)) for _ in range(2)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.layers(x)
            return made

    export(Linears().eval(), tmp_path / "model.onnx", "torchscript")
    options: dict[str, Any] = {"weight_type": QuantType.QUInt8}
    with pytest.raises(ValueError, match="to be an initializer"):
        quantize_dynamic(tmp_path / "model.onnx", tmp_path / "quantized.onnx", **options)
    folded = output_of(fold_file(tmp_path / "model.onnx"))
    quantize_dynamic(folded, tmp_path / "quantized.onnx", **options)
    ops = {node.op_type for node in onnx.load(tmp_path / "quantized.onnx").graph.node}
    assert "ConvInteger" in ops


# -- memory


def large(path: Path, mib: int) -> None:
    """A model of ``mib`` MiB of weight norm in a data file, without ever holding it."""
    rows, columns, count = 1024, 1024, mib // 4
    with path.with_suffix(".bin").open("wb") as data:
        stored, nodes, at, x = [], [], 0, "x"
        rng = np.random.default_rng(0)
        for layer in range(count):
            for part, shape in (("g", (rows, 1)), ("v", (rows, columns))):
                array = rng.random(shape, np.float32)
                data.write(array.tobytes())
                tensor = TensorProto(
                    name=f"{layer}.weight_{part}", data_type=1, dims=shape, data_location=TensorProto.EXTERNAL
                )
                for key, value in (
                    ("location", path.with_suffix(".bin").name),
                    ("offset", at),
                    ("length", array.nbytes),
                ):
                    tensor.external_data.add(key=key, value=str(value))
                stored.append(tensor)
                at += array.nbytes
            name = f"{layer}.weight"
            nodes += [
                helper.make_node("ReduceL2", [f"{name}_v"], [f"n{layer}"], axes=[1]),
                helper.make_node("Div", [f"{name}_v", f"n{layer}"], [f"u{layer}"]),
                helper.make_node("Mul", [f"u{layer}", f"{name}_g"], [f"w{layer}"]),
                helper.make_node("Gemm", [x, f"w{layer}"], [f"x{layer}"], transB=1),
            ]
            x = f"x{layer}"
    first, last = (helper.make_tensor_value_info(name, 1, ["N", 1024]) for name in ("x", x))
    graph = helper.make_graph(nodes, "graph", [first], [last], stored)
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)


@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon stands in /proc")
def test_a_fold_of_a_large_model_takes_little_memory_of_its_own(tmp_path: Path) -> None:
    large(tmp_path / "model.onnx", 300)
    code = """
import sys
from pathlib import Path
from wnconvert.onnx.graph.plan import plan_onnx
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.storage.workers import Workers
from wnconvert.verbs.conversion.onnx.fold import model_layouts, write_model
checkpoint, out = open_checkpoint(Path(sys.argv[1])), Path(sys.argv[2])
layouts = model_layouts(checkpoint.onnx, plan_onnx(checkpoint.onnx), out)
write_model(checkpoint, layouts, out.parent, out, workers=Workers(2))
"""
    out = tmp_path / "out.onnx"
    alone = measured(
        [WNCONVERT.with_name("python"), "-c", code, tmp_path / "model.onnx", out], target=out, memory=True
    )
    assert 8 * MIB < alone.anonymous < MOST
    assert (tmp_path / "out.onnx.data").stat().st_size > 290 * MIB
    inspected = measured([WNCONVERT, "inspect", tmp_path / "model.onnx", "--full"], memory=True)
    assert inspected.anonymous < MOST
    for path in tmp_path.iterdir():
        path.unlink()
