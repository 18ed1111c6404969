"""Weight norm is recognised by what it computes, and what only looks like it is left alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.helpers.onnx_graphs import COMBINED, NORMS, Build, folded, model_of, run, stored_as
from wnconvert.onnx.graph.layers import GraphLayers, find_graph_layers

RNG = np.random.default_rng(5)
SHAPE = (4, 3, 5)


def numbers(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return (RNG.standard_normal(shape) + 0.1).astype(np.float32)


def kept(shape: Sequence[int], dim: int | None) -> tuple[int, ...]:
    return tuple(size if axis == dim else 1 for axis, size in enumerate(shape))


def layered(opset: int = 17, shape: tuple[int, ...] = SHAPE, dim: int | None = 0) -> tuple[Build, str, str]:
    b = Build(opset)
    return (
        b,
        b.tensor("conv.weight_g", np.abs(numbers(*kept(shape, dim)))),
        b.tensor("conv.weight_v", numbers(*shape)),
    )


def used(b: Build, w: str, shape: Sequence[int] = SHAPE) -> onnx.ModelProto:
    """A model whose output is an input times w."""
    b.op("Mul", "x", w, name="y")
    return b.model(["y"], {"x": shape})


def check_folded(model: onnx.ModelProto, *, left: int = 1, layers: int = 1) -> GraphLayers:
    """Everything is found, the folded graph computes the same, and ``left`` nodes remain."""
    found, made = folded(model)
    onnx.checker.check_model(made)
    assert len(found.layers) == layers
    assert not found.refused
    feeds = {
        port.name: numbers(*(size.dim_value for size in port.type.tensor_type.shape.dim))
        for port in model.graph.input
    }
    for before, after in zip(run(model, feeds), run(made, feeds), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    assert find_graph_layers(model_of(made)) == GraphLayers((), ())
    assert len(made.graph.node) == left
    return found


def check_untouched(model: onnx.ModelProto) -> None:
    found, made = folded(model)
    assert not found.layers + found.refused
    assert made == model


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("dim", [0, 1, 2, None])
@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_is_found_however_it_is_spelled(norm: str, dim: int | None, opset: int) -> None:
    for combined in COMBINED:
        b, g, v = layered(opset, SHAPE, dim)
        model = used(b, COMBINED[combined](b, g, v, NORMS[norm](b, v, SHAPE, dim)))
        found = check_folded(model)
        layer = found.layers[0].layer
        assert (layer.name, layer.form, layer.dim) == ("conv.weight", "onnx", dim)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_layer_of_any_shape_is_found_in_any_spelling_and_order(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    dim = data.draw(st.one_of(st.none(), st.integers(0, len(shape) - 1)))
    b = Build(data.draw(st.sampled_from([11, 13, 18])))
    g, v = b.tensor("a_g", np.abs(numbers(*kept(shape, dim)))), b.tensor("a_v", numbers(*shape))
    # Of a view of v as well as of v itself: in another order, with more axes of size 1.
    order = data.draw(st.permutations(range(len(shape))))
    if data.draw(st.booleans()) and len(shape) > 1:
        g, v = (b.op("Transpose", name, perm=order) for name in (g, v))
        shape = tuple(shape[axis] for axis in order)
        dim = order.index(dim) if dim is not None else None
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(shape)))
        g, v = (b.unsqueeze(name, [place]) for name in (g, v))
        shape = (*shape[:place], 1, *shape[place:])
        dim = dim + (dim >= place) if dim is not None else None
    norms = [name for name in NORMS if len(shape) > 1 or name == "ReduceSumSquare" or dim is None]
    names = [name for name in norms if dim is None or len(shape) > 1]
    if not names:  # no axis is left to sum over, which older opsets cannot say
        return
    n = NORMS[data.draw(st.sampled_from(names))](b, v, shape, dim)
    w = COMBINED[data.draw(st.sampled_from(sorted(COMBINED)))](b, g, v, n)
    model = used(b, w, shape)
    found = check_folded(model)
    assert found.layers[0].layer.name == "a"


@pytest.mark.parametrize("g_shape", [(), (1,), (1, 1), (1, 1, 1)])
def test_one_magnitude_for_the_whole_tensor_has_any_rank(g_shape: tuple[int, ...]) -> None:
    b = Build()
    g, v = b.tensor("a_g", np.full(g_shape, 2, np.float32)), b.tensor("a_v", numbers(3, 4, 2))
    found = check_folded(used(b, b.op("Mul", g, b.op("Div", v, b.reduce("ReduceL2", v, None))), (3, 4, 2)))
    assert found.layers[0].layer.dim is None


def test_a_size_1_axis_of_v_is_dim_0_as_in_a_checkpoint() -> None:
    b, g, v = layered(shape=(1, 3, 5))
    found = check_folded(
        used(b, COMBINED["v(g/n)"](b, g, v, NORMS["ReduceL2"](b, v, (1, 3, 5), 0)), (1, 3, 5))
    )
    assert found.layers[0].layer.dim == 0


def test_rows_of_one_element_are_their_sign() -> None:
    b, g, v = layered(shape=(6, 1))
    check_folded(used(b, COMBINED["v(g/n)"](b, g, v, NORMS["ReduceL2"](b, v, (6, 1), 0)), (6, 1)))


def test_a_magnitude_of_ones_is_a_magnitude_and_a_factor_of_ones_is_none() -> None:
    b, _, v = layered()
    g = b.tensor("ones_g", np.ones((4, 1, 1), np.float32))
    one = b.tensor("one", np.ones((), np.float32))
    w = b.op("Mul", b.op("Mul", v, b.op("Div", one, b.reduce("ReduceL2", v, [1, 2]))), g)
    found = check_folded(used(b, w))
    assert found.layers[0].parts["g"].name == "ones_g"


def test_a_power_of_minus_one_half_is_a_norm() -> None:
    b, g, v = layered()
    n = b.op("Pow", b.reduce("ReduceSumSquare", v, [1, 2]), b.number(-0.5))
    check_folded(used(b, b.op("Mul", b.op("Mul", g, v), n)))


def test_constants_may_be_nodes() -> None:
    b = Build()
    g = b.op("Constant", value=numpy_helper.from_array(numbers(4, 1, 1)), name="c.weight_g")
    v = b.op("Constant", value=numpy_helper.from_array(numbers(*SHAPE)), name="c.weight_v")
    found = check_folded(used(b, COMBINED["g(v/n)"](b, g, v, NORMS["ReduceL2"](b, v, SHAPE, 0))))
    assert found.layers[0].layer.name == "c.weight"


@pytest.mark.parametrize(
    ("g", "v", "name"),
    [
        ("dec.conv.weight_g", "dec.conv.weight_v", "dec.conv.weight"),
        ("r.weight_hh_l0_g", "r.weight_hh_l0_v", "r.weight_hh_l0"),
        ("p.parametrizations.weight.original0", "p.parametrizations.weight.original1", "p.weight"),
        ("onnx::Mul_12", "a.weight_v", "a.weight"),
        ("onnx::Mul_12", "onnx::Div_13", "onnx::Div_13.folded"),
    ],
)
def test_a_layer_is_named_by_its_tensors(g: str, v: str, name: str) -> None:
    b = Build()
    b.tensor(g, numbers(4, 1, 1))
    b.tensor(v, numbers(*SHAPE))
    model = used(b, COMBINED["g(v/n)"](b, g, v, NORMS["ReduceL2"](b, v, SHAPE, 0)))
    assert check_folded(model).layers[0].layer.name == name


def test_two_layers_of_one_name_have_two() -> None:
    b, g, v = layered()
    one = COMBINED["g(v/n)"](b, g, v, NORMS["ReduceL2"](b, v, SHAPE, 0))
    other = b.tensor("h_g", numbers(4, 1, 1))
    two = COMBINED["g(v/n)"](b, other, v, NORMS["ReduceL2"](b, v, SHAPE, 0))
    model = used(b, b.op("Add", b.op("Mul", "x", one), two))
    found = check_folded(model, layers=2, left=3)
    assert [layer.layer.name for layer in found.layers] == ["conv.weight", "conv.weight_2"]


# What is not weight norm.


def twice(b: Build, v: str) -> str:
    return b.op("Expand", b.unsqueeze(v, [0]), b.ints(2, *SHAPE))


def normed(b: Build, g: str, v: str, axes: Sequence[int]) -> str:
    return b.op("Mul", g, b.op("Div", v, b.reduce("ReduceL2", v, axes)))


Decoy = Callable[[Build, str, str], str]
#: Products and quotients that are something else.
DECOYS: dict[str, Decoy] = {
    "no root": lambda b, g, v: b.op("Mul", g, b.op("Div", v, b.reduce("ReduceSumSquare", v, [1, 2]))),
    "the norm's square root": lambda b, g, v: b.op(
        "Mul", g, b.op("Div", v, b.op("Sqrt", b.reduce("ReduceL2", v, [1, 2])))
    ),
    "sum of magnitudes": lambda b, g, v: b.op("Mul", g, b.op("Div", v, b.reduce("ReduceL1", v, [1, 2]))),
    "a sum, not of squares": lambda b, g, v: b.op(
        "Mul", g, b.op("Div", v, b.op("Sqrt", b.reduce("ReduceSum", v, [1, 2])))
    ),
    "no g": lambda b, g, v: b.op("Div", v, b.reduce("ReduceL2", v, [1, 2])),
    "g of another axis": lambda b, g, v: b.op(
        "Mul", b.tensor("other", numbers(1, 3, 1)), b.op("Div", v, b.reduce("ReduceL2", v, [1, 2]))
    ),
    "one g for many norms": lambda b, g, v: b.op(
        "Mul", b.tensor("other", numbers(1, 1, 1)), b.op("Div", v, b.reduce("ReduceL2", v, [1, 2]))
    ),
    "many g for one norm": lambda b, g, v: b.op("Mul", g, b.op("Div", v, b.reduce("ReduceL2", v, None))),
    "the norm over one axis of two": lambda b, g, v: b.op(
        "Mul", g, b.op("Div", v, b.reduce("ReduceL2", v, [2]))
    ),
    "the norm of another tensor": lambda b, g, v: b.op(
        "Mul", g, b.op("Div", v, b.reduce("ReduceL2", b.tensor("u", numbers(*SHAPE)), [1, 2]))
    ),
    "|v| in place of v": lambda b, g, v: b.op(
        "Mul", g, b.op("Div", b.op("Abs", v), b.reduce("ReduceL2", v, [1, 2]))
    ),
    "√(v²) in place of v": lambda b, g, v: b.op(
        "Mul", g, b.op("Div", b.op("Sqrt", b.op("Mul", v, v)), b.reduce("ReduceL2", v, [1, 2]))
    ),
    "g twice": lambda b, g, v: b.op(
        "Mul", b.op("Mul", g, g), b.op("Div", v, b.reduce("ReduceL2", v, [1, 2]))
    ),
    "twice the weight": lambda b, g, v: b.op(
        "Mul", b.op("Mul", b.number(2), g), b.op("Div", v, b.reduce("ReduceL2", v, [1, 2]))
    ),
    "standardized": lambda b, g, v: b.op(
        "Mul",
        g,
        b.op("Div", b.op("Sub", v, b.reduce("ReduceMean", v, [1, 2])), b.reduce("ReduceL2", v, [1, 2])),
    ),
    "the norm of the standardized": lambda b, g, v: normed(
        b, g, b.op("Sub", v, b.reduce("ReduceMean", v, [1, 2])), [1, 2]
    ),
    "an activation's norm": lambda b, g, v: b.op(
        "Mul", g, b.op("Div", "x", b.reduce("ReduceL2", "x", [1, 2]))
    ),
    "with an activation": lambda b, g, v: b.op("Mul", b.op("Mul", g, "x"), b.reduce("ReduceL2", v, [1, 2])),
    "a sum over what was only repeated": lambda b, g, v: b.op(
        "Mul",
        g,
        b.op("Div", v, b.unsqueeze(b.reduce("ReduceL2", twice(b, v), [0, 2, 3], keepdims=0), [1, 2])),
    ),
    "a number that went through an integer": lambda b, g, v: b.op(
        "Mul",
        g,
        b.op("Div", b.op("Cast", b.op("Cast", v, to=7), to=1), b.reduce("ReduceL2", v, [1, 2])),
    ),
    "v that went through float16": lambda b, g, v: b.op(
        "Mul", g, b.op("Div", b.op("Cast", b.op("Cast", v, to=10), to=1), b.reduce("ReduceL2", v, [1, 2]))
    ),
    "rows cut in two": lambda b, g, v: normed(
        b,
        b.tensor("halves", numbers(8, 1)),
        b.op("Reshape", b.tensor("even_v", numbers(4, 6, 5)), b.ints(8, 15)),
        [1],
    ),
}


@pytest.mark.parametrize("decoy", DECOYS)
def test_what_is_not_weight_norm_stays(decoy: str) -> None:
    b, g, v = layered()
    made = DECOYS[decoy](b, g, v)
    b.op("Mul", "x", b.op("ReduceMean", made), name="y")
    check_untouched(b.model(["y"], {"x": SHAPE}))


def test_the_norm_of_a_square_matrix_turned_is_another_norm() -> None:
    b, g, v = layered(shape=(4, 4))
    turned = b.op("Transpose", b.reduce("ReduceL2", v, [0]), perm=[1, 0])
    check_untouched(used(b, COMBINED["g(v/n)"](b, g, v, turned), (4, 4)))


def test_a_square_magnitude_of_the_other_axis_is_none() -> None:
    b, g, v = layered(shape=(4, 4))
    across = b.op("Transpose", g, perm=[1, 0])
    check_untouched(used(b, COMBINED["g(v/n)"](b, across, v, NORMS["ReduceL2"](b, v, (4, 4), 0)), (4, 4)))


def test_spectral_norm_is_not_weight_norm() -> None:
    b, g, v = layered(shape=(4, 3))
    u, s = b.tensor("u", numbers(1, 4)), b.tensor("s", numbers(3, 1))
    sigma = b.op("MatMul", b.op("MatMul", u, v), s)
    check_untouched(used(b, b.op("Mul", g, b.op("Div", v, sigma)), (4, 3)))


@pytest.mark.parametrize(("known", "check"), [(3, check_folded), (4, check_untouched)])
def test_a_branch_is_followed_where_its_condition_is_known_and_not_the_other(
    known: int, check: Callable[..., Any]
) -> None:
    b, g, v = layered()
    branches = [Build(prefix="then"), Build(prefix="else")]
    graphs = [
        inner.graph([inner.reduce("ReduceL2" if at == 0 else "ReduceL1", v, [1, 2])])
        for at, inner in enumerate(branches)
    ]
    rank = b.op("Size", b.op("Shape", v))
    condition = b.op("Equal", rank, b.number(known, np.int64))
    n = b.op("If", condition, then_branch=graphs[0], else_branch=graphs[1])
    check(used(b, COMBINED["g(v/n)"](b, g, v, n)))


# Dtypes.

HALVES = [TensorProto.FLOAT16, TensorProto.BFLOAT16]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("wide", ["cast first", "cast last"])
def test_a_half_weight_has_the_dtype_of_the_value_that_is_used(dtype: int, wide: str) -> None:
    b = Build(18)
    b.stored += [stored_as(numbers(4, 1, 1), "a_g", dtype), stored_as(numbers(*SHAPE), "a_v", dtype)]
    g, v = "a_g", "a_v"
    if wide == "cast first":
        g, v = (b.op("Cast", name, to=TensorProto.FLOAT) for name in (g, v))
    w = COMBINED["g(v/n)"](b, g, v, NORMS["ReduceL2"](b, v, SHAPE, 0))
    if wide == "cast last":
        w = b.op("Cast", w, to=TensorProto.FLOAT)
    found, made = folded(used(b, w))
    assert len(found.layers) == 1
    stored = made.graph.initializer[0]
    # What the arithmetic has rounded to half precision stays rounded: the Cast behind it is kept.
    assert stored.data_type == (TensorProto.FLOAT if wide == "cast first" else dtype)
    assert [node.op_type for node in made.graph.node] == (
        ["Mul"] if wide == "cast first" else ["Cast", "Mul"]
    )


@pytest.mark.parametrize("g_dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE])
@pytest.mark.parametrize("v_dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_g_and_v_of_any_dtypes_are_one_layer(g_dtype: int, v_dtype: int) -> None:
    b = Build(18)
    b.stored += [stored_as(numbers(4, 1, 1), "a_g", g_dtype), stored_as(numbers(*SHAPE), "a_v", v_dtype)]
    g, v = (b.op("Cast", name, to=TensorProto.FLOAT) for name in ("a_g", "a_v"))
    check_folded(used(b, COMBINED["g(v/n)"](b, g, v, NORMS["ReduceL2"](b, v, SHAPE, 0))))


def test_float8_is_refused_by_name() -> None:
    b = Build(19)
    stored = helper.make_tensor("a_v", TensorProto.FLOAT8E4M3FN, [4, 3], bytes(range(48, 60)), raw=True)
    b.stored.append(stored)
    g, v = b.tensor("a_g", numbers(4, 1)), b.op("Cast", "a_v", to=TensorProto.FLOAT)
    model = used(b, COMBINED["g(v/n)"](b, g, v, NORMS["ReduceL2"](b, v, (4, 3), 0)), (4, 3))
    found, made = folded(model)
    assert not found.layers
    assert [(one.name, one.reason) for one in found.refused] == [
        ("a", "a_v is float8_e4m3fn, which cannot be folded without its scale")
    ]
    assert made == model


def test_numbers_that_do_not_lie_end_to_end_are_refused() -> None:
    b = Build(18)
    bits = numbers(4, 3).astype(np.float16).view(np.uint16).astype(np.int32)
    stored = onnx.TensorProto(name="a_v", data_type=TensorProto.FLOAT16, dims=[4, 3])
    stored.int32_data.extend(bits.reshape(-1).tolist())
    b.stored.append(stored)
    g, v = b.tensor("a_g", numbers(4, 1)), b.op("Cast", "a_v", to=TensorProto.FLOAT)
    model = used(b, COMBINED["g(v/n)"](b, g, v, NORMS["ReduceL2"](b, v, (4, 3), 0)), (4, 3))
    found, made = folded(model)
    assert [one.reason for one in found.refused] == ["the elements of a_v are not stored end to end"]
    assert "raw_data" in found.refused[0].fix
    assert made == model


def test_a_value_that_is_made_of_itself_does_no_harm() -> None:
    b, g, v = layered()
    w = COMBINED["g(v/n)"](b, g, v, NORMS["ReduceL2"](b, v, SHAPE, 0))
    model = used(b, w)
    model.graph.node.insert(len(model.graph.node) - 1, helper.make_node("Identity", [w], [w]))
    assert len(find_graph_layers(model_of(model)).layers) <= 1


def test_a_weight_that_is_an_output_is_refused() -> None:
    b, g, v = layered()
    b.op("Mul", g, b.op("Div", v, b.reduce("ReduceL2", v, [1, 2])), name="w")
    b.op("Mul", "x", "w", name="y")
    model = b.model(["y", "w"], {"x": SHAPE})
    found, made = folded(model)
    assert [one.reason for one in found.refused] == [
        "the computed weight is itself an output, w, of the graph"
    ]
    assert made == model


def test_what_a_caller_may_replace_is_refused() -> None:
    b, g, v = layered()
    b.op("Mul", "x", COMBINED["g(v/n)"](b, g, v, b.reduce("ReduceL2", v, [1, 2])), name="y")
    model = b.model(["y"], {"x": SHAPE, v: SHAPE})
    found, made = folded(model)
    assert ["is an input of the graph too" in one.reason for one in found.refused] == [True]
    assert made == model


def test_shape_arithmetic_of_every_kind_is_followed() -> None:
    b, g, v = layered()
    sizes = b.op("Shape", v)
    rows = b.op("Slice", sizes, b.ints(0), b.ints(1))
    rest = b.op("ReduceProd", b.op("Slice", sizes, b.ints(1), b.ints(9)), keepdims=1)
    flat = b.op("Reshape", v, b.op("Concat", rows, rest, axis=0))
    n = b.reduce("ReduceL2", flat, [-1])
    ones = b.op("ConstantOfShape", b.ints(2), value=numpy_helper.from_array(np.array([1], np.int64)))
    back = b.op("Concat", b.op("Cast", b.op("Cast", rows, to=6), to=7), ones, axis=0)
    wanted = b.op("Where", b.op("Equal", back, b.ints(-1, -1, -1)), ones_of(b, 3), back)
    check_folded(used(b, COMBINED["v(g/n)"](b, g, v, b.op("Reshape", n, wanted))))


def ones_of(b: Build, count: int) -> str:
    counted = b.op("Range", *(b.number(at, np.int64) for at in (0, count, 1)))
    return b.op("Add", b.op("Sub", counted, b.ints(*range(count))), b.ints(1))


def test_what_is_done_to_a_weight_afterwards_stays() -> None:
    b, g, v = layered()
    w = COMBINED["g(v/n)"](b, g, v, NORMS["ReduceL2"](b, v, SHAPE, 0))
    check_folded(used(b, b.op("Mul", b.op("Neg", w), g)), left=3)


def test_opset_6_broadcasting_is_not_guessed_at() -> None:
    b = Build(6)
    g, v = b.tensor("a_g", numbers(4)), b.tensor("a_v", numbers(4, 3))
    w = b.op(
        "Mul",
        b.op("Div", v, b.reduce("ReduceL2", v, [1], keepdims=0), axis=0, broadcast=1),
        g,
        axis=0,
        broadcast=1,
    )
    check_untouched(used(b, w, (4, 3)))


def test_weight_norm_that_nothing_uses_is_left_alone() -> None:
    b, g, v = layered()
    COMBINED["g(v/n)"](b, g, v, NORMS["ReduceL2"](b, v, SHAPE, 0))
    b.op("Identity", "x", name="y")
    check_untouched(b.model(["y"], {"x": SHAPE}))


def test_every_pair_of_spellings_is_another_graph() -> None:
    """Else the table would test one spelling twice."""
    graphs = set()
    for norm, combined in itertools.product(NORMS, COMBINED):
        b = Build(13)
        g, v = b.tensor("a_g", np.ones((4, 1, 1), np.float32)), b.tensor("a_v", np.ones(SHAPE, np.float32))
        COMBINED[combined](b, g, v, NORMS[norm](b, v, SHAPE, 0))
        graphs.add(str(b.nodes))
    assert len(graphs) == len(NORMS) * len(COMBINED)


def test_a_node_without_inputs_is_no_stored_tensor() -> None:
    b, g, v = layered()
    w = COMBINED["g(v/n)"](b, g, v, NORMS["ReduceL2"](b, v, SHAPE, 0))
    b.op("Add", b.op("Mul", "x", w), b.op("RandomNormal", shape=list(SHAPE), scale=1e-9), name="y")
    check_folded(b.model(["y"], {"x": SHAPE}), left=3)


@pytest.mark.parametrize("axis", [1, -1, None])
def test_a_normalization_along_one_axis_is_weight_norm(axis: int | None) -> None:
    b, g, v = layered(shape=(4, 6))
    settings: dict[str, Any] = {} if axis is None else {"axis": axis, "p": 2}
    w = b.op("Mul", b.op("LpNormalization", v, **settings), g)
    assert check_folded(used(b, w, (4, 6))).layers[0].layer.dim == 0


@pytest.mark.parametrize("settings", [{"p": 1, "axis": 1}, {"axis": 0}, {"axis": 7}])
def test_a_normalization_of_another_kind_is_not(settings: dict[str, Any]) -> None:
    b, g, v = layered(shape=(4, 6))
    w = b.op("Mul", b.op("LpNormalization", v, **settings), g)
    b.op("Mul", "x", w, name="y")
    model = helper.make_model(b.graph(["y"], {"x": (4, 6)}), opset_imports=[helper.make_opsetid("", 17)])
    assert not find_graph_layers(model_of(model)).layers


def test_a_switch_that_is_neither_on_nor_off_is_not_guessed_at() -> None:
    for number, layers in ((1, 1), (2, 0), (-1, 0)):
        b, g, v = layered(shape=(4, 4))
        w = COMBINED["g(v/n)"](b, g, v, b.op("ReduceL2", v, axes=[1], keepdims=number))
        assert len(find_graph_layers(model_of(used(b, w, (4, 4)))).layers) == layers


def test_nodes_that_stand_in_any_order_are_followed() -> None:
    # As onnxruntime's converter to float16 leaves a graph: its casts stand behind everything.
    for first, _ in itertools.permutations(range(5), 2):
        b, g, v = layered()
        model = used(b, COMBINED["g(v/n)"](b, g, v, NORMS["ReduceL2"](b, v, SHAPE, 0)))
        nodes = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend(nodes[first:][::-1] + nodes[:first])
        assert len(find_graph_layers(model_of(model)).layers) == 1


def test_a_branch_that_uses_what_stands_behind_it_is_followed() -> None:
    b, g, v = layered()
    inner = Build(17, prefix="in_")
    inner.op("Mul", g, inner.op("Div", v, "norm"), name="unused")
    inner.op("Mul", "x", "unused", name="then_y")
    graphs = [inner.graph(["then_y"]), Build(17, prefix="el_").graph(["x"])]
    b.op("If", b.op("Greater", b.op("ReduceSum", "x", keepdims=0), b.number(0)), name="y")
    for name, graph in zip(("then_branch", "else_branch"), graphs, strict=True):
        b.nodes[-1].attribute.append(helper.make_attribute(name, graph))
    b.op("ReduceL2", v, axes=[1, 2], name="norm")
    model = helper.make_model(b.graph(["y"], {"x": SHAPE}), opset_imports=[helper.make_opsetid("", 17)])
    assert [item.layer.name for item in find_graph_layers(model_of(model)).layers] == ["conv.weight"]


def test_numbers_that_broadcast_to_many_are_not_worked_out() -> None:
    b, g, v = layered()
    many = b.tensor("many", np.ones((64, 1, 1), np.float32))
    sides = [b.tensor("rows", np.ones((1, 64, 1), np.float32)), b.tensor("more", np.zeros((1, 1, 64), bool))]
    b.op("ReduceSum", b.op("Where", sides[1], many, sides[0]), name="z")
    model = used(b, COMBINED["g(v/n)"](b, g, v, NORMS["ReduceL2"](b, v, SHAPE, 0)))
    check_folded(model, left=3)
