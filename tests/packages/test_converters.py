"""What converters, runtimes and quantizers do with weight norm: the tables of "Do I have to fold before …?".

Each tool gets the models as they are, in both forms, and folded; its outputs are compared with torch's. Where
a release does otherwise, the row of docs/recipes.md is to be mended with the test.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import wnconvert
from tests.helpers.live_models import norm
from wnconvert.verbs.models.proof.running import quiet_torch

pytestmark = pytest.mark.filterwarnings("ignore")  # of these packages themselves

FORMS = ("legacy", "parametrize")
#: How far the outputs of a tool that computes in float32 may be off, as a part of the largest.
RIGHT = 1.5e-6
#: ncnn stores weights in half precision.
HALF = 7e-4
#: One of 127 of the weights, through two layers.
CODES = 3e-2
#: Off by so much are other numbers.
WRONG = 0.1
#: What is computed of a weight where the norm is left.
ARITHMETIC = {"ReduceL2", "ReduceSum", "ReduceSumSquare", "NormalizeL2", "Sqrt", "Div", "Divide", "Pow"}


class Convolutions(nn.Module):
    """Convolutions there and back, with a g that is not ‖v‖."""

    def __init__(self, form: str, dim: int | None = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pre = norm(nn.Conv1d(8, 16, 3, padding=1), form, dim=dim)
        self.up = norm(nn.ConvTranspose1d(16, 8, 4, 2, padding=1), form, dim=dim)
        self.post = norm(nn.Conv1d(8, 4, 3, padding=1), form, dim=dim)
        scaled(self)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.post(self.up(self.pre(x).relu()).relu())
        return y


class Linears(nn.Module):
    """Two linear layers, with a g that is not ‖v‖."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = norm(nn.Linear(16, 32), form)
        self.second = norm(nn.Linear(32, 8), form)
        scaled(self)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x).relu())
        return y


def scaled(model: nn.Module) -> None:
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(("_g", "original0")):
                value.mul_(torch.rand_like(value) + 0.5)
    model.eval()


MEL, ROWS = torch.randn(1, 8, 20), torch.randn(4, 16)
INPUTS: dict[type[nn.Module], Tensor] = {Convolutions: MEL, Linears: ROWS}


def input_of(model: nn.Module) -> Tensor:
    return next(given for kind, given in INPUTS.items() if isinstance(model, kind))


def expected(model: nn.Module) -> Any:
    with torch.no_grad():
        return model(input_of(model)).numpy()


def distance(found: Any, model: nn.Module) -> float:
    """How far outputs are off, as a part of the largest; infinite where one is no number."""
    should = expected(model)
    off = np.abs(np.asarray(found).reshape(should.shape) - should).max() / np.abs(should).max()
    return float(off) if np.isfinite(off) else np.inf


def folded(model: nn.Module) -> Any:
    return wnconvert.folded(model)


# -- OpenVINO


def in_openvino(converted: Any, given: Tensor) -> Any:
    import openvino

    # Some processors would compute in bfloat16.
    compiled = openvino.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return next(iter(compiled(given.numpy()).values()))


@pytest.mark.parametrize("dim", [0, 1, 2, None])
@pytest.mark.parametrize("form", FORMS)
def test_openvino_folds_a_traced_module(form: str, dim: int | None) -> None:
    import openvino

    for model in (plain := Convolutions(form, dim), folded(plain)):
        traced = torch.jit.trace(model, MEL)  # type: ignore[no-untyped-call]
        made = openvino.convert_model(traced, example_input=MEL)
        assert not ARITHMETIC & {op.get_type_name() for op in made.get_ops()}
        assert distance(in_openvino(made, MEL), plain) <= RIGHT


@pytest.mark.parametrize("form", FORMS)
def test_openvino_takes_an_exported_program_unless_the_norm_is_of_the_whole_weight(form: str) -> None:
    import openvino

    plain = Convolutions(form)
    made = openvino.convert_model(torch.export.export(plain, (MEL,)))
    assert distance(in_openvino(made, MEL), plain) <= RIGHT
    whole = Convolutions(form, None)
    with pytest.raises(openvino.frontend.OpConversionFailure):
        openvino.convert_model(torch.export.export(whole, (MEL,)))
    made = openvino.convert_model(torch.export.export(folded(whole), (MEL,)))
    assert distance(in_openvino(made, MEL), whole) <= RIGHT


# -- coremltools


@pytest.mark.parametrize("form", FORMS)
def test_coremltools_folds_weight_norm(form: str) -> None:
    """Nothing here runs its models: their weights are read."""
    import coremltools

    plain = Convolutions(form)
    weights = [value.numpy() for name, value in folded(plain).state_dict().items() if name.endswith("weight")]
    for model in (plain, folded(plain)):
        made = coremltools.convert(
            torch.jit.trace(model, MEL),  # type: ignore[no-untyped-call]
            inputs=[coremltools.TensorType(shape=MEL.shape)],
            compute_precision=coremltools.precision.FLOAT32,
        )
        ops = [op for op in made._mil_program.functions["main"].operations if op.op_type != "const"]
        assert Counter(op.op_type for op in ops) == {"conv": 2, "conv_transpose": 1, "relu": 2}
        kernels = [op.weight.val for op in ops if op.op_type != "relu"]
        for found, weight in zip(kernels, weights, strict=True):
            np.testing.assert_allclose(found, weight, rtol=1e-6)


# -- ExecuTorch


def in_executorch(model: nn.Module, partitioners: list[Any]) -> tuple[Any, int, int]:
    """What a program computes, its bytes, and the operators that it computes by itself."""
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    given = (input_of(model),)
    edge = to_edge_transform_and_lower(torch.export.export(model, given), partitioner=partitioners)
    own = [node for node in edge.exported_program().graph.nodes if "aten" in str(node.target)]
    program = edge.to_executorch()
    method = Runtime.get().load_program(program.buffer).load_method("forward")
    return method.execute(given)[0], len(program.buffer), len(own)


@pytest.mark.parametrize("kind", [Convolutions, Linears])
@pytest.mark.parametrize("form", FORMS)
def test_executorch_computes_the_norm_at_every_run(form: str, kind: Callable[[str], nn.Module]) -> None:
    plain = kind(form)
    found, size, ops = in_executorch(plain, [])
    assert distance(found, plain) <= RIGHT
    found, small, fewer = in_executorch(folded(plain), [])
    assert distance(found, plain) <= RIGHT
    assert small < 0.8 * size
    assert fewer < ops


@pytest.mark.parametrize("kind", [Convolutions, Linears])
@pytest.mark.parametrize("form", FORMS)
def test_xnnpack_drops_the_norm_of_a_legacy_linear_and_is_given_all_that_is_folded(
    form: str, kind: Callable[[str], nn.Module]
) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    plain = kind(form)
    found, _, own = in_executorch(plain, [XnnpackPartitioner()])
    if (kind, form) == (Linears, "legacy"):
        assert distance(found, plain) >= WRONG
    else:
        assert distance(found, plain) <= RIGHT
        assert own > 0
    found, _, own = in_executorch(folded(plain), [XnnpackPartitioner()])
    assert distance(found, plain) <= RIGHT
    assert own == 0


# -- pnnx and ncnn


def in_ncnn(model: nn.Module, folder: Path) -> Any:
    import ncnn
    import pnnx

    with contextlib.chdir(folder):
        pnnx.export(model, str(folder / "m.pt"), MEL)
    net = ncnn.Net()
    assert net.load_param(str(folder / "m.ncnn.param")) == 0
    assert net.load_model(str(folder / "m.ncnn.bin")) == 0
    extractor = net.create_extractor()
    extractor.input("in0", ncnn.Mat(MEL[0].numpy()).clone())
    return np.array(extractor.extract("out0")[1])


@pytest.mark.parametrize("dim", [0, 1, 2, None])
@pytest.mark.parametrize("form", FORMS)
def test_pnnx_takes_every_axis_of_legacy_weight_norm_for_the_first(
    form: str, dim: int | None, tmp_path: Path
) -> None:
    plain = Convolutions(form, dim)
    off = distance(in_ncnn(plain, tmp_path), plain)
    assert off >= WRONG if form == "legacy" and dim != 0 else off <= HALF
    assert distance(in_ncnn(folded(plain), tmp_path), plain) <= HALF


# -- TorchScript


@pytest.mark.parametrize("form", FORMS)
def test_a_trace_that_is_frozen_has_no_norm_left(form: str) -> None:
    for model in (plain := Convolutions(form), folded(plain)):
        traced: Any = torch.jit.freeze(torch.jit.trace(model, MEL))  # type: ignore[no-untyped-call]
        assert not {"aten::norm", "aten::_weight_norm"} & {node.kind() for node in traced.graph.nodes()}
        assert distance(traced(MEL).detach(), plain) <= RIGHT


def test_a_script_is_made_of_what_is_folded_alone() -> None:
    with pytest.raises(AttributeError, match="__name__"):
        torch.jit.script(Convolutions("legacy"))
    frozen = torch.jit.freeze(torch.jit.script(Convolutions("parametrize")))
    with pytest.raises(torch.jit.Error):
        frozen(MEL)
    for form in FORMS:
        plain = Convolutions(form)
        frozen = torch.jit.freeze(torch.jit.script(folded(plain)))
        assert distance(frozen(MEL).detach(), plain) <= RIGHT


# -- ONNX files in which weight norm is left


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def exported(model: nn.Module, folder: Path) -> tuple[Path, Path]:
    """A model as torch's older exporter leaves it, and its fold."""
    path, out = folder / "m.onnx", folder / "folded.onnx"
    with quiet_torch():
        torch.onnx.export(
            model, (input_of(model),), str(path), dynamo=False, opset_version=18, input_names=["x"]
        )
    assert "ReduceL2" in ops(onnx.load(path))
    wnconvert.fold_file(path, out, force=True)
    return path, out


def ops(proto: Any) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node)


def in_onnxruntime(proto: Any, model: nn.Module) -> Any:
    import onnxruntime

    content = proto if isinstance(proto, str) else proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": input_of(model).numpy()})[0]


@pytest.mark.parametrize("form", FORMS)
def test_quantize_dynamic_quantizes_what_is_folded_alone(form: str, tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    out = tmp_path / "int8.onnx"
    path, plain = exported(Convolutions(form), tmp_path)
    with unlogged(), pytest.raises(ValueError, match="to be an initializer"):
        quantize_dynamic(path, out)
    with unlogged():
        quantize_dynamic(plain, out)
    assert ops(onnx.load(out))["ConvInteger"] == 2  # a transposed one has no such operator
    model = Linears(form)
    path, plain = exported(model, tmp_path)
    with unlogged():
        quantize_dynamic(path, out)
    assert "MatMulInteger" not in ops(onnx.load(out))
    with unlogged():
        quantize_dynamic(plain, out)
    assert ops(onnx.load(out))["MatMulInteger"] == 2
    assert distance(in_onnxruntime(onnx.load(out), model), model) <= CODES


@pytest.mark.parametrize("form", FORMS)
def test_quant_pre_process_raises_where_weight_norm_is_left(form: str, tmp_path: Path) -> None:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = Convolutions(form)
    path, plain = exported(model, tmp_path)
    with unlogged(), pytest.raises(TypeError, match="NoneType"):
        quant_pre_process(path, tmp_path / "ready.onnx")
    with unlogged():
        quant_pre_process(plain, tmp_path / "ready.onnx")
    assert distance(in_onnxruntime(onnx.load(tmp_path / "ready.onnx"), model), model) <= RIGHT


@pytest.mark.parametrize("form", FORMS)
def test_quantize_static_takes_weights_for_activations_where_the_norm_is_left(
    form: str, tmp_path: Path
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Mels(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([MEL.numpy()])

        def get_next(self) -> Any:
            given = next(self.left, None)
            return None if given is None else {"x": given}

    path, plain = exported(Convolutions(form), tmp_path)
    for source, codes in ((path, False), (plain, True)):
        with unlogged():
            quantize_static(source, tmp_path / "int8.onnx", Mels(), per_channel=True)
        proto = onnx.load(tmp_path / "int8.onnx")
        kinds = {each.name: each.data_type for each in proto.graph.initializer}
        weights = [kind for name, kind in kinds.items() if name.endswith("weight_quantized")]
        assert (weights == [onnx.TensorProto.INT8] * 3) is codes
        assert bool(ARITHMETIC & set(ops(proto))) is not codes


@pytest.fixture
def without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torchvision that has nothing: onnx2torch imports it for two operators that no model here has."""
    for name in ("torchvision", "torchvision.ops"):
        module: Any = ModuleType(name)
        module.ops, module.nms, module.roi_align = module, None, None
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("without_torchvision")
@pytest.mark.parametrize("form", FORMS)
def test_onnx2torch_converts_what_is_folded_alone(form: str, tmp_path: Path) -> None:
    import onnx2torch

    model = Convolutions(form)
    path, plain = exported(model, tmp_path)
    with pytest.raises(NotImplementedError):
        onnx2torch.convert(path)
    assert distance(onnx2torch.convert(plain)(MEL).detach(), model) <= RIGHT


@pytest.mark.parametrize("kind", [Convolutions, Linears])
@pytest.mark.parametrize("form", FORMS)
def test_onnxsim_folds_and_calls_weights_by_the_product(
    form: str, kind: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    import onnxsim

    model = kind(form)
    path, plain = exported(model, tmp_path)
    for source, named in ((path, False), (plain, True)):
        made, equal = onnxsim.simplify(onnx.load(source))
        assert equal
        assert not ARITHMETIC & set(ops(made))
        assert distance(in_onnxruntime(made, model), model) <= RIGHT
        names = [each.name for each in made.graph.initializer if "bias" not in each.name]
        assert all(name.endswith(".weight") for name in names) is named


@pytest.mark.parametrize("form", FORMS)
def test_onnxslim_folds_small_layers_and_onnxoptimizer_none(form: str, tmp_path: Path) -> None:
    import onnxoptimizer
    import onnxslim

    model = Convolutions(form)
    path, plain = exported(model, tmp_path)
    for tool, leaves in ((onnxslim.slim, False), (onnxoptimizer.optimize, True)):
        made = tool(onnx.load(path))
        assert bool(ARITHMETIC & set(ops(made))) is leaves
        assert distance(in_onnxruntime(made, model), model) <= RIGHT
        assert not ARITHMETIC & set(ops(tool(onnx.load(plain))))


def test_onnxscripts_optimizer_leaves_layers_of_more_than_8192_elements(tmp_path: Path) -> None:
    from onnxscript import optimizer

    torch.manual_seed(0)
    for size, leaves in ((90, False), (100, True)):
        layer = norm(nn.Linear(size, size), "parametrize").eval()
        path = tmp_path / "m.onnx"
        with quiet_torch():
            torch.onnx.export(layer, (torch.randn(2, size),), str(path), dynamo=False, opset_version=18)
        assert ("ReduceL2" in ops(optimizer.optimize(onnx.load(path)))) is leaves


# -- quantizers and adapters of torch's modules


@pytest.mark.parametrize("form", FORMS)
def test_torchs_own_dynamic_quantization_takes_what_is_folded_alone(form: str) -> None:
    plain = Linears(form)
    with pytest.raises((RuntimeError, AssertionError)):
        torch.ao.quantization.quantize_dynamic(plain, {nn.Linear})  # type: ignore[no-untyped-call]
    made = torch.ao.quantization.quantize_dynamic(folded(plain), {nn.Linear})  # type: ignore[no-untyped-call]
    assert distance(made(ROWS), plain) <= CODES


@pytest.mark.parametrize("form", FORMS)
def test_torchao_quantizes_what_is_folded_alone(form: str) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def of_quantized(model: Any) -> Tensor:
        quantize_(model, Int8WeightOnlyConfig())
        outputs: Tensor = model(ROWS)
        return outputs.detach()

    with pytest.raises((TypeError, KeyError)):
        of_quantized(Linears(form))
    plain = Linears(form)
    assert distance(of_quantized(folded(plain)), plain) <= CODES


@pytest.mark.parametrize("form", FORMS)
def test_peft_loses_the_adapter_that_it_merges_into_weight_norm(form: str) -> None:
    import peft

    def adapted(model: nn.Module) -> tuple[Any, Any]:
        torch.manual_seed(1)
        config = peft.LoraConfig(target_modules=["first", "second"], init_lora_weights=False)
        made = peft.get_peft_model(model, config).eval()
        with torch.no_grad():
            return made, made(ROWS).numpy()

    def off(model: Any, should: Any) -> float:
        with torch.no_grad():
            return float(np.abs(model(ROWS).numpy() - should).max() / np.abs(should).max())

    model, should = adapted(Linears(form))
    assert off(model.merge_and_unload(), should) >= WRONG
    model, should = adapted(folded(Linears(form)))
    assert off(model.merge_and_unload(), should) <= RIGHT
    model, should = adapted(Linears(form))
    wnconvert.fold_module(model)
    assert off(model.merge_and_unload(), should) <= RIGHT


@pytest.mark.parametrize("form", FORMS)
def test_accelerates_offload_computes_garbage_with_the_legacy_hook(form: str) -> None:
    import accelerate

    plain = Linears(form)
    should = expected(plain)
    for model, wrong in ((Linears(form), form == "legacy"), (folded(plain), False)):
        made = accelerate.cpu_offload(model, execution_device="cpu")
        with torch.no_grad():
            off = float(np.abs(made(ROWS).numpy() - should).max() / np.abs(should).max())
        assert off >= WRONG if wrong else off <= RIGHT
