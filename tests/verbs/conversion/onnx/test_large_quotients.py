"""Quotients of stored tensors that are too large to be computed whole: done some rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from tests.bench.inputs import MIB
from tests.bench.measure import Command
from tests.bench.measure import run as measured
from tests.helpers.onnx_graphs import Build
from tests.helpers.states import output_of
from tests.verbs.conversion.onnx.test_constants import arrays, product, write
from tests.verbs.conversion.onnx.test_quotients import OVER_NORMS, fractions, number, rounded
from tests.whole.test_memory import WNCONVERT
from wnconvert import VerifyError, fold_file
from wnconvert.onnx import evaluation
from wnconvert.plan.layout import Evaluate
from wnconvert.plan.steps import EvaluateConstant
from wnconvert.verbs.conversion.onnx import evaluated, works

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too large has more than 8 elements, and two rows at a time are computed and compared."""
    monkeypatch.setattr(evaluation, "_MOST_EXACT", 8)
    monkeypatch.setattr(works, "_PIECE", 8)
    monkeypatch.setattr(evaluated, "_PIECE", 8)


def stored(b: Build, name: str, *shape: int) -> str:
    return b.tensor(name, RNG.uniform(0.1, 4, shape or (4, 4)).astype(np.float32))


#: Quotients that are made row by row: what they are in fractions, and the axes of rows of their parts.
IN_ROWS: dict[str, tuple[Callable[[Build], str], Callable[..., Any], dict[str, int]]] = {
    "whole by whole": (
        lambda b: b.op("Div", stored(b, "v"), stored(b, "n")),
        lambda v, n: v / n,
        {"v": 0, "n": 0},
    ),
    "by a column": (
        lambda b: b.op("Div", stored(b, "v"), stored(b, "n", 4, 1)),
        lambda v, n: v / n,
        {"v": 0, "n": 0},
    ),
    "by a row": (lambda b: b.op("Div", stored(b, "v"), stored(b, "n", 4)), lambda v, n: v / n, {"v": 0}),
    "of a column by a row": (
        lambda b: b.op("Div", stored(b, "v", 4, 1), stored(b, "n", 1, 4)),
        lambda v, n: v / n,
        {"v": 0},
    ),
    "turned": (
        lambda b: b.op("Div", b.op("Transpose", stored(b, "v")), stored(b, "n")),
        lambda v, n: v.T / n,
        {"v": 1, "n": 0},
    ),
    "expanded to a shape": (
        lambda b: b.op("Div", stored(b, "v"), b.op("Expand", stored(b, "n", 4, 1), b.op("Shape", "v"))),
        lambda v, n: v / n,
        {"v": 0, "n": 0},
    ),
    "expanded to the shape of what is made of others": (
        lambda b: b.op(
            "Div",
            stored(b, "v"),
            b.op("Expand", stored(b, "n", 4, 1), b.op("Shape", b.op("Max", "v", stored(b, "u")))),
        ),
        lambda v, n, u: v / n,
        {"v": 0, "n": 0},
    ),
    "of one that is expanded": (
        lambda b: b.op("Div", b.op("Expand", stored(b, "v", 4), b.ints(4, 4)), stored(b, "n", 4, 1)),
        lambda v, n: v / n,
        {"n": 0},
    ),
    "guarded, times g": (
        lambda b: b.op(
            "Mul",
            stored(b, "g", 4, 1),
            b.op("Div", stored(b, "v"), b.op("Clip", stored(b, "n", 4, 1), b.number(0.7))),
        ),
        lambda g, v, n: g * v / np.maximum(n, number(0.7)),
        {"g": 0, "v": 0, "n": 0},
    ),
    "of more axes": (
        lambda b: b.op(
            "Reshape", b.op("Div", stored(b, "v", 4, 2, 2), stored(b, "n", 4, 1, 1)), b.ints(4, 4)
        ),
        lambda v, n: (v / n).reshape(4, 4),
        {"v": 0, "n": 0},
    ),
}


def works_of(proto: onnx.ModelProto, path: Path) -> Evaluate:
    """How the only weight is evaluated."""
    (state,) = fold_file(write(path, proto), dry_run=True).state_dicts
    (step,) = (each for each in state.steps if isinstance(each, EvaluateConstant))
    assert isinstance(step.work, Evaluate)
    return step.work


@pytest.mark.parametrize("case", IN_ROWS)
def test_each_row_is_made_of_its_own_and_correctly_rounded(case: str, tmp_path: Path) -> None:
    build, exact, axes = IN_ROWS[case]
    proto = product(build)
    work = works_of(proto, tmp_path / "m.onnx")
    names = {name: tensor.info.name for name, tensor in work.parts}
    assert {names[name]: axis for name, axis in work.rows} == axes
    result = fold_file(tmp_path / "m.onnx", require_folded=True)
    assert "1 evaluated weight likewise" in result.verified
    kept = [fractions(numpy_helper.to_array(each)) for each in proto.graph.initializer]
    (constant,) = result.plan.constants
    weight = arrays(output_of(result))[constant.name]
    expected = rounded(np.broadcast_to(exact(*(each for each in kept if each.size > 1)), (4, 4)))
    assert weight.reshape(4, 4).tobytes() == expected.tobytes()


def halves(b: Build) -> tuple[str, str]:
    """Two parts of a tensor, which one node makes."""
    b.nodes.append(onnx.helper.make_node("Split", [stored(b, "v", 8, 4)], ["upper", "lower"], axis=0))
    return "upper", "lower"


#: Quotients whose rows are made of several rows, or of what is not known to be one.
NOT_IN_ROWS: dict[str, Callable[[Build], str]] = {
    "turned beside itself": lambda b: b.op("Div", stored(b, "v"), b.op("Transpose", "v")),
    "in another shape": lambda b: b.op(
        "Div", b.op("Reshape", stored(b, "v", 16), b.ints(4, 4)), stored(b, "n")
    ),
    "rows in another order": lambda b: b.op(
        "Div", b.op("Gather", stored(b, "v"), b.ints(3, 1, 0, 2), axis=0), stored(b, "n")
    ),
    "a half": lambda b: b.op(
        "Div", b.op("Slice", stored(b, "v", 8, 4), b.ints(2), b.ints(6), b.ints(0)), stored(b, "n")
    ),
    "as wide as there are rows": lambda b: b.op(
        "Div",
        stored(b, "v"),
        b.op("Expand", stored(b, "n", 1), b.op("Slice", b.op("Shape", "v"), b.ints(0), b.ints(1))),
    ),
    "one of several parts": lambda b: b.op("Div", *halves(b)),
}


@pytest.mark.parametrize("case", NOT_IN_ROWS)
def test_what_is_not_made_by_rows_is_left_where_it_is_large(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "m.onnx", product(NOT_IN_ROWS[case]))
    plan = fold_file(source, dry_run=True)
    assert [left.fix for left in plan.computed] == ["fold with --constants evaluates it in float64"]
    monkeypatch.setattr(evaluation, "_MOST_EXACT", 1 << 20)
    (constant,) = fold_file(source, require_folded=True).plan.constants
    assert constant.exact


def test_elements_in_doubt_are_settled_in_their_own_rows(tmp_path: Path) -> None:
    """147·(v/49) is 3·v, of 25 bits and odd: midway between two of float32. Half of the rows are so."""
    v = np.arange(11180001, 11180065, 2).astype(np.float32).reshape(8, 4)
    n, g = np.full((8, 1), 49, np.float32), np.full((8, 1), 147, np.float32)
    n[::2], g[::2] = 1, 2

    def built(b: Build) -> str:
        for name, array in (("v", v), ("n", n), ("g", g)):
            b.tensor(name, array)
        return b.op("Transpose", b.op("Mul", "g", b.op("Div", "v", "n")))

    result = fold_file(write(tmp_path / "m.onnx", product(built)), proof="none")
    (constant,) = result.plan.constants
    weight: NDArray[np.float32] = arrays(output_of(result))[constant.name]
    expected = rounded(fractions(v) * fractions(g) / fractions(n))
    assert weight.tobytes() == expected.tobytes()


def test_what_is_large_needs_no_memory_that_is_not_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_MOST_BYTES", 64)
    source = write(tmp_path / "m.onnx", product(IN_ROWS["by a column"][0]))
    assert fold_file(source, require_folded=True).plan.constants
    (left,) = fold_file(write(source, product(NOT_IN_ROWS["in another shape"])), dry_run=True).computed
    assert "its values would take" in left.reason


@pytest.mark.parametrize("build", [IN_ROWS["by a column"][0], OVER_NORMS["u/‖v‖"][0]])
@pytest.mark.parametrize("row", [0, 3])
def test_a_wrong_element_of_any_row_is_not_kept(
    build: Callable[[Build], str], row: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = evaluated._compare
    done: list[int] = []

    def spoiled(weight: Any, found: Any, expected: Any) -> int:
        at = row - sum(done)
        done.append(len(found))
        if 0 <= at < len(found):
            found = found.copy()
            found[at, 1] *= np.float32(1.01)
        return true(weight, found, expected)

    monkeypatch.setattr(evaluated, "_compare", spoiled)
    with pytest.raises(VerifyError, match="is off by"):
        fold_file(write(tmp_path / "m.onnx", product(build)))
    assert done == [2] * (1 + row // 2)


def test_rows_that_the_graph_does_not_make_alone_are_compared_whole(tmp_path: Path) -> None:
    """An ``Expand`` to a shape that stands in the graph makes all rows, however many it is given."""

    def built(b: Build) -> str:
        return b.op("Div", stored(b, "v"), b.op("Expand", stored(b, "n", 1, 4), b.ints(4, 4)))

    result = fold_file(write(tmp_path / "m.onnx", product(built)), require_folded=True)
    assert "1 evaluated weight likewise" in result.verified


@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon stands in /proc")
def test_a_quotient_of_any_size_takes_little_memory(tmp_path: Path) -> None:
    def of(rows: int) -> int:
        b = Build(17)
        v = b.tensor("v", RNG.random((rows, 4096), np.float32) + 1)
        b.op("MatMul", "x", b.op("Div", v, stored(b, "n", rows, 1)), name="y")
        onnx.save(b.model(["y"], {"x": (1, rows)}), tmp_path / "m.onnx")
        out = tmp_path / "out.onnx"
        command: Command = [WNCONVERT, "fold", tmp_path / "m.onnx", "-o", out, "--proof", "none", "--quiet"]
        return measured(command, target=out, memory=True).anonymous

    assert of(6144) < of(64) + 48 * MIB  # 96 MiB, of which float64 alone would be 192
