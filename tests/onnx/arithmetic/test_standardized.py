"""Weight standardization is recognised by what it computes, with its numbers; what looks like it stays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everyone calls it
from onnx import TensorProto, numpy_helper
from torch import nn

from tests.helpers.onnx_graphs import Build, folded, model_of, run
from tests.helpers.states import output_of
from wnconvert import fold_file, inspect_file
from wnconvert.layers.rules import NormBehind, Rule, Standardize
from wnconvert.onnx.graph.layers import find_graph_layers

RNG = np.random.default_rng(21)
SHAPE, COUNT = (4, 3, 5), 15
KINDS = ("weight", "standardize", "norm")
Floats = np.ndarray[Any, np.dtype[np.float32]]


def numbers(*shape: int) -> Floats:
    return (RNG.standard_normal(shape) + 0.3).astype(np.float32)


def rounded(number: float) -> float:
    return float(np.float32(number))


def weight(b: Build) -> str:
    return b.tensor("conv.weight", numbers(*SHAPE))


def used(b: Build, w: str, shape: Sequence[int] = SHAPE) -> onnx.ModelProto:
    b.op("Mul", "x", w, name="y")
    return b.model(["y"], {"x": shape})


def check_folded(model: onnx.ModelProto, how: Standardize) -> str:
    """It is one standardized layer; folded, it computes the same. The layer's name."""
    found, made = folded(model, KINDS)
    onnx.checker.check_model(made)
    assert [layer.layer.rule for layer in found.layers] == [Rule((how,))]
    assert not found.refused + found.stay
    shape = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": numbers(*shape)}
    for before, after in zip(run(model, feeds), run(made, feeds), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    assert [node.op_type for node in made.graph.node] == ["Mul"]
    return found.layers[0].layer.name


def check_untouched(model: onnx.ModelProto) -> None:
    found, made = folded(model, KINDS)
    assert not found.layers + found.refused
    assert made == model


def mean(b: Build, x: str, axes: Sequence[int] = (1, 2)) -> str:
    return b.reduce("ReduceMean", x, axes)


def centred(b: Build, w: str, axes: Sequence[int] = (1, 2)) -> str:
    return b.op("Sub", w, mean(b, w, axes))


def variance(b: Build, w: str, axes: Sequence[int] = (1, 2)) -> str:
    apart = centred(b, w, axes)
    return mean(b, b.op("Mul", apart, apart), axes)


def with_eps(b: Build, x: str, eps: float = 1e-5) -> str:
    return b.op("Add", x, b.number(eps))


def plain(b: Build, w: str) -> str:
    return b.op("Div", centred(b, w), b.op("Sqrt", with_eps(b, variance(b, w))))


# However it is spelled.

PLAIN = Standardize(0, "biased", "var", rounded(1e-5))
Spelling = Callable[[Build, str], str]


def axis_by_axis(b: Build, w: str) -> str:
    apart = b.op("Sub", w, mean(b, mean(b, w, [1]), [2]))
    return b.op("Div", apart, b.op("Sqrt", with_eps(b, variance(b, w))))


def flat(b: Build, w: str) -> str:
    rows = b.op("Reshape", w, b.ints(4, -1))
    root = b.op("Sqrt", with_eps(b, variance(b, rows, [1])))
    return b.op("Reshape", b.op("Div", centred(b, rows, [1]), root), b.ints(*SHAPE))


def by_squares(b: Build, w: str) -> str:
    middle = mean(b, w)
    spread = b.op("Sub", mean(b, b.op("Mul", w, w)), b.op("Pow", middle, b.number(2)))
    return b.op("Div", b.op("Sub", w, middle), b.op("Pow", with_eps(b, spread), b.number(0.5)))


def by_sums(b: Build, w: str) -> str:
    middle = b.op("Div", b.reduce("ReduceSum", w, [1, 2]), b.number(COUNT))
    apart = b.op("Sub", w, middle)
    spread = b.op("Mul", b.reduce("ReduceSum", b.op("Mul", apart, apart), [1, 2]), b.number(1 / COUNT))
    return b.op("Mul", apart, b.op("Reciprocal", b.op("Sqrt", with_eps(b, spread))))


def in_two_parts(b: Build, w: str) -> str:
    root = b.op("Div", b.number(1), b.op("Sqrt", with_eps(b, variance(b, w))))
    return b.op("Sub", b.op("Mul", w, root), b.op("Mul", mean(b, w), root))


def rows_last(b: Build, w: str) -> str:
    moved = b.op("Transpose", w, perm=[1, 2, 0])
    made = b.op("Div", centred(b, moved, [0, 1]), b.op("Sqrt", with_eps(b, variance(b, moved, [0, 1]))))
    return b.op("Transpose", made, perm=[2, 0, 1])


def as_a_norm_in_training(b: Build, w: str) -> str:
    rows = b.op("Reshape", w, b.ints(1, 4, -1))
    given = [b.tensor(f"given{at}", np.full(4, number, "f")) for at, number in enumerate((1, 0, 5, 7))]
    made = b.op("BatchNormalization", rows, *given, training_mode=1)
    b.nodes[-1].output.extend(["mean", "variance"])
    return b.op("Reshape", made, b.op("Shape", w))


def as_a_norm_of_its_own_statistics(b: Build, w: str) -> str:
    rows = b.op("Reshape", w, b.ints(1, 4, -1))
    own = [b.op("Squeeze", each, b.ints(0, 2)) for each in (mean(b, rows, [0, 2]), variance(b, rows, [0, 2]))]
    ones, zeros = b.tensor("ones", np.ones(4, "f")), b.tensor("zeros", np.zeros(4, "f"))
    return b.op("Reshape", b.op("BatchNormalization", rows, ones, zeros, *own), b.op("Shape", w))


def expanded(b: Build, w: str) -> str:
    root = b.op("Sqrt", with_eps(b, variance(b, w)))
    return b.op("Div", centred(b, w), b.op("Expand", root, b.op("Shape", w)))


SPELLINGS: tuple[Spelling, ...] = (
    plain,
    axis_by_axis,
    flat,
    by_squares,
    by_sums,
    in_two_parts,
    rows_last,
    as_a_norm_in_training,
    as_a_norm_of_its_own_statistics,
    expanded,
)


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda each: each.__name__)
def test_it_is_found_however_it_is_spelled(spelling: Spelling) -> None:
    b = Build()
    assert check_folded(used(b, spelling(b, weight(b))), PLAIN) == "conv.weight"


def test_the_rows_may_be_another_axis() -> None:
    b = Build()
    w = weight(b)
    made = b.op("Div", centred(b, w, [0, 2]), b.op("Sqrt", with_eps(b, variance(b, w, [0, 2]))))
    check_folded(used(b, made), Standardize(1, "biased", "var", rounded(1e-5)))


def unbiased(b: Build, w: str, factor: float | None = None) -> str:
    if factor is not None:
        return b.op("Mul", variance(b, w), b.number(factor))
    return b.op("Div", b.op("Mul", variance(b, w), b.number(COUNT)), b.number(COUNT - 1))


@pytest.mark.parametrize("factor", [None, COUNT / (COUNT - 1)])
def test_the_unbiased_deviation_is_told_by_its_factor(factor: float | None) -> None:
    b = Build()
    w = weight(b)
    made = b.op("Div", centred(b, w), b.op("Sqrt", with_eps(b, unbiased(b, w, factor))))
    check_folded(used(b, made), Standardize(0, "unbiased", "var", rounded(1e-5)))


@pytest.mark.parametrize("std", ["biased", "unbiased"])
def test_eps_may_stand_outside_of_the_root(std: str) -> None:
    b = Build()
    w = weight(b)
    spread = variance(b, w) if std == "biased" else unbiased(b, w)
    made = b.op("Div", centred(b, w), with_eps(b, b.op("Sqrt", spread), 1e-3))
    check_folded(used(b, made), Standardize(0, std, "std", rounded(1e-3)))  # type: ignore[arg-type]


@pytest.mark.parametrize("op", ["Max", "Clip"])
def test_eps_may_be_the_least_of_a_multiple(op: str) -> None:
    b = Build()
    w, gain = weight(b), b.tensor("conv.gain", numbers(4, 1, 1))
    least = b.op(op, b.op("Mul", variance(b, w), b.number(COUNT)), b.number(1e-4))
    root = b.op("Mul", b.op("Reciprocal", b.op("Sqrt", least)), gain)
    made = b.op("Sub", b.op("Mul", w, root), b.op("Mul", mean(b, w), root))
    check_folded(used(b, made), Standardize(0, "biased", "max", rounded(1e-4), fan=COUNT, gain=True))


def test_a_gain_a_scale_and_an_offset_are_parts_of_it() -> None:
    b = Build()
    gain, shift = b.tensor("conv.gain", numbers(4, 1, 1)), b.tensor("conv.shift", numbers(4, 1, 1))
    made = b.op("Mul", b.op("Mul", gain, b.number(1.7)), plain(b, weight(b)))
    how = Standardize(0, "biased", "var", rounded(1e-5), rounded(1.7), gain=True, shift=True)
    check_folded(used(b, b.op("Add", made, shift)), how)


def test_a_norm_behind_a_standardized_convolution_is_folded_with_it() -> None:
    b = Build()
    made = b.op("Conv", "x", plain(b, weight(b)))
    parts = [b.tensor(name, np.abs(numbers(4)) + np.float32(0.1)) for name in ("γ", "β", "μ", "v")]
    b.op("BatchNormalization", made, *parts, name="y")
    model = b.model(["y"], {"x": (2, 3, 6)})
    found, after = folded(model, KINDS)
    ((how, behind),) = [layer.layer.rule.operations for layer in found.layers]
    assert (how, type(behind)) == (PLAIN, NormBehind)
    feeds = {"x": numbers(2, 3, 6)}
    np.testing.assert_allclose(run(after, feeds)[0], run(model, feeds)[0], rtol=1e-4, atol=1e-4)
    assert [node.op_type for node in after.graph.node] == ["Conv"]


def test_it_is_left_and_counted_unless_it_is_asked_for(tmp_path: Path) -> None:
    b = Build()
    model = used(b, plain(b, weight(b)))
    found = find_graph_layers(model_of(model))
    assert [layer.rule for layer in found.others] == [Rule((PLAIN,))]
    onnx.save(model, tmp_path / "model.onnx")
    hint = "1 layer of weight standardization: --kinds standardize folds it"
    assert hint in inspect_file(tmp_path / "model.onnx").notes


# What looks like it and is not.


def of(b: Build, apart: str, divisor: str) -> str:
    return b.op("Div", apart, divisor)


DECOYS: dict[str, Spelling] = {
    "another number of elements": lambda b, w: of(
        b, centred(b, w), b.op("Sqrt", with_eps(b, unbiased(b, w, COUNT / (COUNT - 2))))
    ),
    "no eps": lambda b, w: of(b, centred(b, w), b.op("Sqrt", variance(b, w))),
    "an eps below zero": lambda b, w: of(b, centred(b, w), b.op("Sqrt", with_eps(b, variance(b, w), -1e-5))),
    "eps twice": lambda b, w: of(b, centred(b, w), with_eps(b, b.op("Sqrt", with_eps(b, variance(b, w))))),
    "eps in the mean": lambda b, w: of(
        b, with_eps(b, centred(b, w)), b.op("Sqrt", with_eps(b, variance(b, w)))
    ),
    "an eps for each row": lambda b, w: of(
        b,
        centred(b, w),
        b.op("Sqrt", b.op("Add", variance(b, w), b.tensor("eps", np.abs(numbers(4, 1, 1))))),
    ),
    "the variance itself": lambda b, w: of(b, centred(b, w), with_eps(b, variance(b, w))),
    "a multiple of the root": lambda b, w: of(
        b, centred(b, w), with_eps(b, b.op("Mul", b.op("Sqrt", variance(b, w)), b.number(3)))
    ),
    "the deviation of another tensor": lambda b, w: of(
        b, centred(b, w), b.op("Sqrt", with_eps(b, variance(b, b.tensor("other", numbers(*SHAPE)))))
    ),
    "the mean of another tensor": lambda b, w: of(
        b,
        b.op("Sub", w, mean(b, b.tensor("other", numbers(*SHAPE)))),
        b.op("Sqrt", with_eps(b, variance(b, w))),
    ),
    "the mean of other axes": lambda b, w: of(
        b, centred(b, w, [0, 1]), b.op("Sqrt", with_eps(b, variance(b, w)))
    ),
    "the deviation of all": lambda b, w: of(
        b, centred(b, w), b.op("Sqrt", with_eps(b, variance(b, w, [0, 1, 2])))
    ),
    "no mean": lambda b, w: of(b, w, b.op("Sqrt", with_eps(b, variance(b, w)))),
    "the mean twice": lambda b, w: of(
        b, b.op("Sub", centred(b, w), mean(b, w)), b.op("Sqrt", with_eps(b, variance(b, w)))
    ),
    "the mean is added": lambda b, w: of(
        b, b.op("Add", w, mean(b, w)), b.op("Sqrt", with_eps(b, variance(b, w)))
    ),
    "times the deviation": lambda b, w: b.op("Mul", centred(b, w), b.op("Sqrt", with_eps(b, variance(b, w)))),
    "squares about zero": lambda b, w: of(
        b, centred(b, w), b.op("Sqrt", with_eps(b, mean(b, b.op("Mul", w, w))))
    ),
    "the fourth power": lambda b, w: of(
        b, centred(b, w), b.op("Sqrt", with_eps(b, mean(b, b.op("Pow", centred(b, w), b.number(4)))))
    ),
    "magnitudes": lambda b, w: of(b, centred(b, w), with_eps(b, mean(b, b.op("Abs", centred(b, w))))),
    "two gains": lambda b, w: b.op(
        "Mul",
        b.op("Mul", plain(b, w), b.tensor("a", numbers(4, 1, 1))),
        b.tensor("b", numbers(4, 1, 1)),
    ),
    "a gain of columns": lambda b, w: b.op("Mul", plain(b, w), b.tensor("a", numbers(3, 1))),
    "an offset of columns": lambda b, w: b.op("Add", plain(b, w), b.tensor("a", numbers(3, 1))),
    "an offset of one number": lambda b, w: b.op("Add", plain(b, w), b.number(0.5)),
    "a number of run time": lambda b, w: of(
        b,
        centred(b, w),
        b.op("Sqrt", b.op("Add", variance(b, w), b.op("ReduceMax", "x", keepdims=0))),
    ),
    "whole numbers on the way": lambda b, w: of(
        b, centred(b, w), b.op("Cast", b.op("Cast", with_eps(b, variance(b, w), 1.5), to=7), to=1)
    ),
}


@pytest.mark.parametrize("decoy", list(DECOYS))
def test_what_is_another_arithmetic_stays(decoy: str) -> None:
    b = Build()
    made = DECOYS[decoy](b, weight(b))
    b.op("Mul", "x", b.op("ReduceMax", made, keepdims=0), name="y")
    if decoy in {"two gains", "a gain of columns", "an offset of columns", "an offset of one number"}:
        found, _ = folded(b.model(["y"], {"x": SHAPE}), KINDS)  # what is inside it is standardized
        assert [layer.layer.rule for layer in found.layers] in (
            [Rule((PLAIN,))],
            [Rule((Standardize(0, "biased", "var", rounded(1e-5), gain=True),))],
        )
        return
    check_untouched(b.model(["y"], {"x": SHAPE}))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_digits_that_are_lost_on_the_way_are_not_stored(dtype: str) -> None:
    b = Build()
    code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    w = b.op("Cast", weight(b), to=code)
    eps = b.op("Cast", b.number(1e-3), to=code)
    made = b.op("Div", centred(b, w), b.op("Sqrt", b.op("Add", variance(b, w), eps)))
    found, _ = folded(used(b, b.op("Cast", made, to=TensorProto.FLOAT)), KINDS)
    ((stored,),) = [layer.weights for layer in found.layers]
    assert stored.view.dtype.name == ("float16" if dtype == "float16" else "float32")


# What torch exports, of each formula that people use.


class Standardized(nn.Conv2d):
    """A convolution whose weight ``how`` makes."""

    def __init__(self, how: Callable[[Standardized], torch.Tensor]) -> None:
        super().__init__(3, 8, 3, padding=1)
        self.how = how
        self.gain = nn.Parameter(torch.rand(8, 1, 1, 1) + 0.5)
        self.shift = nn.Parameter(torch.randn(8, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.how(self), self.bias, padding=1)


def unbiased_outside(conv: Standardized) -> torch.Tensor:
    w = conv.weight
    w = w - w.mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
    std = w.view(w.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
    return w / std.expand_as(w)


def batch_norm_of_rows(conv: Standardized) -> torch.Tensor:
    rows = conv.weight.reshape(1, conv.out_channels, -1)
    return F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(conv.weight)


def scaled_batch_norm_of_rows(conv: Standardized) -> torch.Tensor:
    rows, gain = conv.weight.reshape(1, conv.out_channels, -1), (conv.gain * (1.7 / 27**0.5)).view(-1)
    return F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0).reshape_as(conv.weight)


def var_and_mean(conv: Standardized) -> torch.Tensor:
    spread, middle = torch.var_mean(conv.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
    return (conv.weight - middle) / torch.sqrt(spread + 1e-10)


def inverse_root(conv: Standardized) -> torch.Tensor:
    w, rows = conv.weight, (1, 2, 3)
    spread = w.var(rows, unbiased=False, keepdim=True)
    return (w - w.mean(rows, keepdim=True)) * (spread + 1e-5).rsqrt()


def with_an_affine(conv: Standardized) -> torch.Tensor:
    rows = conv.weight.view(conv.weight.size(0), -1)
    std = torch.sqrt(rows.var(dim=1) + 1e-5).view(-1, 1, 1, 1)
    return conv.gain * ((conv.weight - rows.mean(dim=1).view(-1, 1, 1, 1)) / std) + conv.shift


def largest_of_fan(conv: Standardized) -> torch.Tensor:
    spread, middle = torch.var_mean(conv.weight, dim=(1, 2, 3), unbiased=False, keepdim=True)
    scale = torch.rsqrt(torch.maximum(spread * 27, torch.tensor(1e-4))) * conv.gain
    return conv.weight * scale - middle * scale


FORMULAS: dict[Callable[[Standardized], torch.Tensor], Standardize] = {
    unbiased_outside: Standardize(0, "unbiased", "std", rounded(1e-5)),
    batch_norm_of_rows: Standardize(0, "biased", "var", rounded(1e-6)),
    scaled_batch_norm_of_rows: Standardize(
        0, "biased", "var", rounded(1e-5), rounded(1.7 / 27**0.5), gain=True
    ),
    var_and_mean: Standardize(0, "biased", "var", rounded(1e-10)),
    inverse_root: Standardize(0, "biased", "var", rounded(1e-5)),
    with_an_affine: Standardize(0, "unbiased", "var", rounded(1e-5), gain=True, shift=True),
    largest_of_fan: Standardize(0, "biased", "max", rounded(1e-4), fan=27, gain=True),
}


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("formula", FORMULAS, ids=lambda each: each.__name__)
def test_what_torch_exports_is_folded_and_proven(
    formula: Callable[[Standardized], torch.Tensor], exporter: str, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    conv, x = Standardized(formula).eval(), torch.randn(1, 3, 6, 6)
    options: dict[str, Any] = {"dynamo": False, "do_constant_folding": False}
    if exporter == "dynamo":
        options = {"dynamo": True, "optimize": False, "external_data": False, "verbose": False}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(conv, (x,), tmp_path / "in.onnx", input_names=["x"], **options)
        expected = formula(conv.double()).numpy()
    result = fold_file(tmp_path / "in.onnx", tmp_path / "out.onnx", kinds="standardize", verify=True)
    assert [change.layer.rule for _, change in result.plan.changes] == [Rule((FORMULAS[formula],))]
    assert "1 layer against the original's own arithmetic, the whole model on" in result.verified
    made = onnx.load(output_of(result))
    assert [node.op_type for node in made.graph.node if node.op_type != "Constant"] == ["Conv"]
    stored = {each.name: numpy_helper.to_array(each) for each in made.graph.initializer}
    np.testing.assert_allclose(stored["weight"], expected, rtol=1e-6, atol=1e-7)
