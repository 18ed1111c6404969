"""Spectral norm, masks and their stacks are recognised by what they compute; what looks like them stays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils import spectral_norm as legacy_spectral
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests.helpers.onnx_graphs import Build, folded, model_of, run
from tests.helpers.states import output_of
from wnconvert import fold_file, inspect_file
from wnconvert.layers.kinds.table import ALL
from wnconvert.layers.rules import Mask, Norm, Operation, Rule, Spectral
from wnconvert.onnx.graph.layers import find_graph_layers

RNG = np.random.default_rng(3)
SHAPE = (4, 3, 5)


def numbers(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return (RNG.standard_normal(shape) + 0.1).astype(np.float32)


def used(b: Build, w: str, shape: Sequence[int] = SHAPE) -> onnx.ModelProto:
    b.op("Mul", "x", w, name="y")
    return b.model(["y"], {"x": shape})


def check_folded(model: onnx.ModelProto, *operations: Operation, left: int = 1) -> str:
    """It is one layer of this rule; folded, it computes the same with ``left`` nodes. The layer's name."""
    found, made = folded(model, ALL)
    onnx.checker.check_model(made)
    assert [layer.layer.rule for layer in found.layers] == [Rule(operations)]
    assert not found.refused
    shape = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": numbers(*shape)}
    for before, after in zip(run(model, feeds), run(made, feeds), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    assert len(made.graph.node) == left
    return found.layers[0].layer.name


def check_untouched(model: onnx.ModelProto) -> None:
    found, made = folded(model, ALL)
    assert not found.layers + found.refused
    assert made == model


def matrix_of(b: Build, w: str, shape: Sequence[int], dim: int = 0) -> str:
    order = [dim, *(axis for axis in range(len(shape)) if axis != dim)]
    moved = b.op("Transpose", w, perm=order) if dim else w
    return b.op("Reshape", moved, b.ints(shape[dim], -1))


def vectors(b: Build, shape: Sequence[int] = SHAPE, dim: int = 0) -> tuple[str, str, str]:
    rows = shape[dim]
    columns = int(np.prod(shape)) // rows
    return (
        b.tensor("conv.weight_orig", numbers(*shape)),
        b.tensor("conv.weight_u", numbers(rows)),
        b.tensor("conv.weight_v", numbers(columns)),
    )


def sigma(  # noqa: PLR0917 -- W, u, v, and how W is a matrix
    b: Build, w: str, u: str, v: str, shape: Sequence[int] = SHAPE, dim: int = 0
) -> str:
    return b.op("MatMul", u, b.op("MatMul", matrix_of(b, w, shape, dim), v))


def by_rows(  # noqa: PLR0917 -- as sigma
    b: Build, w: str, u: str, v: str, shape: Sequence[int], dim: int
) -> str:
    return b.op("MatMul", b.op("MatMul", u, matrix_of(b, w, shape, dim)), v)


def by_gemm(  # noqa: PLR0917 -- as sigma
    b: Build, w: str, u: str, v: str, shape: Sequence[int], dim: int
) -> str:
    row, column = b.unsqueeze(u, [0]), b.unsqueeze(v, [0])
    image = b.op("Gemm", matrix_of(b, w, shape, dim), column, transB=1)
    return b.op("Squeeze", b.op("Gemm", row, image), b.ints(0, 1))


def by_sum(  # noqa: PLR0917 -- as sigma
    b: Build, w: str, u: str, v: str, shape: Sequence[int], dim: int
) -> str:
    image = b.reduce("ReduceSum", b.op("Mul", matrix_of(b, w, shape, dim), v), [1], keepdims=0)
    return b.reduce("ReduceSum", b.op("Mul", u, image), [0], keepdims=0)


def at_once(  # noqa: PLR0917 -- as sigma
    b: Build, w: str, u: str, v: str, shape: Sequence[int], dim: int
) -> str:
    outer = b.op("Mul", b.unsqueeze(u, [1]), v)
    return b.reduce("ReduceSum", b.op("Mul", outer, matrix_of(b, w, shape, dim)), None, keepdims=0)


SIGMAS = {"mat·v first": sigma, "u·mat first": by_rows, "Gemm": by_gemm, "sums": by_sum, "at once": at_once}


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("spelling", SIGMAS)
def test_spectral_norm_is_found_however_it_is_spelled(spelling: str, dim: int) -> None:
    b = Build()
    w, u, v = vectors(b, SHAPE, dim)
    model = used(b, b.op("Div", w, SIGMAS[spelling](b, w, u, v, SHAPE, dim)))
    assert check_folded(model, Spectral(dim)) == "conv.weight"


def test_a_square_weight_belongs_to_the_axis_that_the_graph_says() -> None:
    for dim in (0, 1):
        b = Build()
        w, u, v = vectors(b, (4, 4, 3), dim)
        check_folded(used(b, b.op("Div", w, sigma(b, w, u, v, (4, 4, 3), dim)), (4, 4, 3)), Spectral(dim))


def test_one_output_has_a_u_of_one_number() -> None:
    b = Build()
    w, _, v = vectors(b, (1, 3, 5))
    u = b.tensor("one", np.ones(1, np.float32))
    check_folded(used(b, b.op("Div", w, sigma(b, w, u, v, (1, 3, 5))), (1, 3, 5)), Spectral(0))


def test_a_weight_that_is_used_transposed_is_stored_so() -> None:
    b = Build()
    w, u, v = vectors(b)
    turned = b.op("Transpose", b.op("Div", w, sigma(b, w, u, v)), perm=[2, 1, 0])
    check_folded(used(b, turned, SHAPE[::-1]), Spectral(0))


@pytest.mark.parametrize("swapped", [False, True])
def test_a_mask_is_found_by_its_name_on_either_side(*, swapped: bool) -> None:
    b = Build()
    tensors = {"a.weight_mask": numbers(*SHAPE), "a.weight_orig": numbers(*SHAPE)}
    names = sorted(tensors, reverse=swapped)
    for name in names:
        b.tensor(name, tensors[name])
    assert check_folded(used(b, b.op("Mul", *names)), Mask()) == "a.weight"


def stacked(b: Build, *operations: str) -> str:
    """A weight by these operations, the innermost first."""
    w = b.tensor("w", numbers(*SHAPE))
    for operation in operations:
        if operation == "mask":
            w = b.op("Mul", b.tensor("mask", np.round(np.abs(numbers(*SHAPE)))), w)
        elif operation == "norm":
            w = b.op("Div", b.op("Mul", b.tensor("g", numbers(4, 1, 1)), w), b.reduce("ReduceL2", w, [1, 2]))
        else:
            w = b.op("Div", w, sigma(b, w, b.tensor("u", numbers(4)), b.tensor("v", numbers(15))))
    return w


@pytest.mark.parametrize(
    ("stack", "rule"),
    [
        (("mask", "norm"), (Mask(), Norm(0))),
        (("mask", "spectral"), (Mask(), Spectral(0))),
        (("norm", "spectral"), (Norm(0), Spectral(0))),
        (("mask", "norm", "spectral"), (Mask(), Norm(0), Spectral(0))),
    ],
)
def test_what_is_stacked_is_one_layer(stack: Sequence[str], rule: Sequence[Operation]) -> None:
    b = Build()
    check_folded(used(b, stacked(b, *stack)), *rule)


def test_without_the_kinds_of_all_of_a_stack_what_is_inside_is_folded() -> None:
    b = Build()
    model = used(b, stacked(b, "mask", "norm", "spectral"))
    for kinds, rules, others in (
        ((), [], 1),
        (("prune",), [(Mask(),)], 1),
        (("prune", "weight"), [(Mask(), Norm(0))], 1),
        (("spectral",), [], 1),
        (ALL, [(Mask(), Norm(0), Spectral(0))], 0),
    ):
        found = find_graph_layers(model_of(model), kinds)
        assert [layer.layer.rule.operations for layer in found.layers] == rules
        assert len(found.others) == others


def test_inspect_names_the_kinds_that_fold_leaves_unless_it_is_asked(tmp_path: Path) -> None:
    for stack, notes in (
        (("mask", "spectral"), ["1 layer of spectral norm on prune: --kinds spectral,prune folds it"]),
        (("spectral",), ["1 layer of spectral norm: --kinds spectral folds it"]),
        ((), []),
    ):
        b = Build()
        path = tmp_path / "model.onnx"
        onnx.save(used(b, stacked(b, *stack)), path)
        assert [note for note in inspect_file(path).notes if "layer" in note] == notes


def test_a_masked_weight_that_is_used_as_it_is_too_is_a_layer_of_its_own() -> None:
    b = Build()
    masked = b.op("Mul", b.tensor("mask", numbers(4, 15)), b.tensor("w", numbers(4, 15)))
    normed = b.op(
        "Div", masked, sigma(b, masked, b.tensor("u", numbers(4)), b.tensor("v", numbers(15)), (4, 15))
    )
    model = used(b, b.op("Add", masked, normed), (4, 15))
    found, made = folded(model, ALL)
    assert [layer.layer.rule.operations for layer in found.layers] == [(Mask(),), (Mask(), Spectral(0))]
    assert [node.op_type for node in made.graph.node] == ["Add", "Mul"]


# What looks like it and is not.

Decoy = Callable[[Build, str, str, str], str]
DECOYS: dict[str, Decoy] = {
    "W·v without u": lambda b, w, u, v: b.op(
        "Div", w, b.unsqueeze(b.op("MatMul", matrix_of(b, w, SHAPE), v), [1, 2])
    ),
    "its square root": lambda b, w, u, v: b.op("Div", w, b.op("Sqrt", sigma(b, w, u, v))),
    "its magnitude": lambda b, w, u, v: b.op("Div", w, b.op("Abs", sigma(b, w, u, v))),
    "its square": lambda b, w, u, v: b.op("Div", w, b.op("Mul", *[sigma(b, w, u, v)] * 2)),
    "times σ": lambda b, w, u, v: b.op("Mul", w, sigma(b, w, u, v)),
    "σ and an eps": lambda b, w, u, v: b.op("Div", w, b.op("Add", sigma(b, w, u, v), b.number(1e-4))),
    "u twice": lambda b, w, u, v: b.op("Div", w, sigma(b, w, b.op("Mul", u, u), v)),
    "u is |u|": lambda b, w, u, v: b.op("Div", w, sigma(b, w, b.op("Abs", u), v)),
    "σ of |W|": lambda b, w, u, v: b.op("Div", w, sigma(b, b.op("Abs", w), u, v)),
    "σ of another weight": lambda b, w, u, v: b.op(
        "Div", w, sigma(b, b.tensor("other", numbers(*SHAPE)), u, v)
    ),
    "the norm of W·v": lambda b, w, u, v: b.op(
        "Div", w, b.reduce("ReduceL2", b.op("MatMul", matrix_of(b, w, SHAPE), v), None, keepdims=0)
    ),
    "columns in another order": lambda b, w, u, v: b.op(
        "Div",
        w,
        b.op(
            "MatMul",
            u,
            b.op("MatMul", b.op("Reshape", b.op("Transpose", w, perm=[0, 2, 1]), b.ints(4, 15)), v),
        ),
    ),
    "u as a step of iteration": lambda b, w, u, v: b.op(
        "Div", w, sigma(b, w, b.op("MatMul", matrix_of(b, w, SHAPE), v), v)
    ),
    "two σ": lambda b, w, u, v: b.op(
        "Div",
        w,
        b.op("Mul", sigma(b, w, u, v), sigma(b, w, b.tensor("u2", numbers(4)), b.tensor("v2", numbers(15)))),
    ),
    "u of an activation": lambda b, w, u, v: b.op(
        "Div", w, sigma(b, w, b.reduce("ReduceSum", "x", [1, 2], keepdims=0), v)
    ),
    "a run-time x times W times v": lambda b, w, u, v: b.op(
        "MatMul", b.op("MatMul", b.op("Reshape", "x", b.ints(-1, 4)), matrix_of(b, w, SHAPE)), v
    ),
    "a mask for each row": lambda b, w, u, v: b.op("Mul", w, b.tensor("mask", numbers(4, 1, 1))),
    "a mask on an activation": lambda b, w, u, v: b.op("Mul", "x", b.tensor("mask", numbers(*SHAPE))),
    "the square": lambda b, w, u, v: b.op("Mul", w, w),
    "a quotient": lambda b, w, u, v: b.op("Div", w, b.tensor("mask", numbers(*SHAPE))),
    "a mask of whole numbers": lambda b, w, u, v: b.op(
        "Mul", w, b.op("Cast", b.tensor("mask", np.ones(SHAPE, bool)), to=1)
    ),
}


@pytest.mark.parametrize("decoy", DECOYS)
def test_what_is_another_arithmetic_stays(decoy: str) -> None:
    b = Build()
    made = DECOYS[decoy](b, *vectors(b))
    b.op("Mul", "x", b.op("ReduceMean", made, keepdims=0), name="y")
    check_untouched(b.model(["y"], {"x": SHAPE}))


def test_a_product_of_two_tensors_is_refused_as_an_output_only_if_it_is_named_as_a_mask() -> None:
    for names, refused in ((("weight_orig", "weight_mask"), 1), (("a", "b"), 0)):
        b = Build()
        b.op("Mul", *(b.tensor(name, numbers(*SHAPE)) for name in names), name="y")
        b.op("Identity", "x", name="z")
        found = find_graph_layers(model_of(b.model(["y", "z"], {"x": SHAPE})), ALL)
        assert not found.layers
        assert len(found.refused) == refused


# What torch's exporters write.


class Net(nn.Module):
    """Layers of each kind that reparameterize their weights by ``how``."""

    def __init__(self, how: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.embed = how(nn.Embedding(9, 6))
        self.conv = how(nn.Conv1d(6, 5, 3, padding=1))
        self.up = how(nn.ConvTranspose1d(5, 5, 4, 2, 1))
        self.plane = how(nn.Conv2d(1, 4, 3, padding=1))
        self.unplane = how(nn.ConvTranspose2d(4, 2, 3, padding=1))
        self.space = how(nn.Conv3d(2, 3, 1))
        self.unspace = how(nn.ConvTranspose3d(3, 1, 3, padding=1))
        self.linear = how(nn.Linear(5, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.conv(self.embed(x).transpose(1, 2)))
        x = self.unplane(self.plane(x[:, None]))
        x = self.unspace(self.space(x[..., None]))[:, 0, ..., 0]
        return torch.as_tensor(self.linear(x.transpose(1, 2)))


LAYERS = 8


def masked(module: nn.Module, name: str) -> nn.Module:
    prune.random_unstructured(module, name, 0.3)  # type: ignore[no-untyped-call]
    return module


def masked_inside(module: nn.Module, name: str) -> nn.Module:
    masked(module.get_submodule("parametrizations.weight"), name)
    return module


#: How torch makes each, the exporters that leave it in the graph, and the kind of its layers.
HOW: dict[str, tuple[Callable[[nn.Module], nn.Module], Sequence[str], str]] = {
    "spectral, legacy": (legacy_spectral, ("dynamo", "torchscript"), "spectral"),
    "spectral, parametrize": (spectral_norm, ("dynamo",), "spectral"),
    "prune": (lambda m: masked(m, "weight"), ("dynamo", "torchscript"), "prune"),
    "prune, weight norm": (
        lambda m: masked_inside(weight_norm(m), "original1"),
        ("torchscript",),
        "prune+weight",
    ),
    "weight norm, spectral": (lambda m: spectral_norm(weight_norm(m)), ("dynamo",), "weight+spectral"),
}


def exported(how: Callable[[nn.Module], nn.Module], path: Path, exporter: str) -> tuple[Net, torch.Tensor]:
    torch.manual_seed(5)
    net, x = Net(how), torch.arange(6)[None]
    options: dict[str, Any] = {"dynamo": False, "do_constant_folding": False}
    if exporter == "dynamo":  # its optimizer computes small weights itself
        options = {"dynamo": True, "optimize": False, "external_data": False, "verbose": False}
    for _ in range(3):
        net(x)
    net.eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        net(x)
        torch.onnx.export(net, (x,), path, input_names=["x"], output_names=["y"], **options)
    return net, x


@pytest.mark.parametrize(
    ("name", "exporter"), [(name, exporter) for name, (_, by, _) in HOW.items() for exporter in by]
)
def test_what_torch_exports_is_folded_and_proven(name: str, exporter: str, tmp_path: Path) -> None:
    how, _, kind = HOW[name]
    net, x = exported(how, tmp_path / "in.onnx", exporter)
    result = fold_file(tmp_path / "in.onnx", tmp_path / "out.onnx", kinds="all", verify=True)
    assert [change.layer.rule.kind for _, change in result.plan.changes] == [kind] * LAYERS
    parts = ("embed", "conv", "up", "plane", "unplane", "space", "unspace", "linear")
    assert {change.layer.name for _, change in result.plan.changes} == {f"{part}.weight" for part in parts}
    assert f"{LAYERS} layers against the original's own arithmetic, the whole model on" in result.verified
    made = onnx.load(output_of(result))
    left = {node.op_type for node in made.graph.node}
    assert not left & {"Div", "Mul", "ReduceL2"}
    session = onnxruntime.InferenceSession(output_of(result), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        np.testing.assert_allclose(
            session.run(None, {"x": x.numpy()})[0], net(x).numpy(), rtol=1e-4, atol=1e-5
        )


def test_by_default_other_kinds_than_weight_norm_stay_and_are_counted(tmp_path: Path) -> None:
    exported(legacy_spectral, tmp_path / "in.onnx", "torchscript")
    result = fold_file(tmp_path / "in.onnx", tmp_path / "out.onnx", dry_run=True)
    assert not result.layers
    assert result.hints == ("8 layers of spectral norm: --kinds spectral folds them",)


def test_weight_norm_of_a_spectral_normed_v_is_folded_inside_only() -> None:
    b = Build()
    v, g = b.tensor("weight_v_orig", numbers(*SHAPE)), b.tensor("weight_g", numbers(4, 1, 1))
    inner = b.op("Div", v, sigma(b, v, b.tensor("u", numbers(4)), b.tensor("vector", numbers(15))))
    w = b.op("Mul", g, b.op("Div", inner, b.reduce("ReduceL2", inner, [1, 2])))
    found = find_graph_layers(model_of(used(b, w)), ALL)
    assert [layer.layer.rule.operations for layer in found.layers] == [(Spectral(0),)]
