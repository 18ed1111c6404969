"""Torch models as functions: how inputs reach forward, how outputs are called, what is left as it was."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.helpers.export_models import Branching, vocoder
from wnconvert.errors import ArgumentError, InputError
from wnconvert.tensors.dtypes import DTYPES
from wnconvert.verbs.models.proof.functions import (
    function_of,
    named_outputs,
    tensors_of,
    unwrapped,
)
from wnconvert.verbs.models.proof.running import evaluating


class Positional(nn.Module):
    def forward(self, x: Tensor, /, y: Tensor, *, z: Tensor) -> Tensor:
        return x * 4 + y * 2 + z


class Variadic(nn.Module):
    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        return first + sum(2 * at * other for at, other in enumerate(others, 1))


class Keywords(nn.Module):
    def forward(self, **tensors: Tensor) -> dict[str, Tensor]:
        return {name: tensor * 2 for name, tensor in tensors.items()}


ONE = np.ones(1, np.float32)


@pytest.mark.parametrize("order", ["xyz", "zyx", "yzx"])
def test_inputs_reach_forward_by_name_in_any_order(order: str) -> None:
    feeds = {name: ONE * 10 ** "xyz".index(name) for name in order}
    assert function_of(Positional())(feeds) == {"output": ONE * (4 + 20 + 100)}


def test_inputs_of_variadic_forwards_come_too() -> None:
    found = function_of(Variadic())({"first": ONE, "a": ONE * 10, "b": ONE * 100})
    assert found == {"output": ONE * (1 + 20 + 400)}
    assert list(function_of(Keywords())({"a": ONE, "b": ONE})) == ["a", "b"]


def test_outputs_are_flattened_in_torchs_order() -> None:
    zero = torch.zeros(1)
    nested = {"b": [zero, (zero, None)], "a": zero, "n": 3}
    assert [name for name, _ in named_outputs(nested)] == ["b.0", "b.1.0", "a"]
    assert [name for name, _ in named_outputs((zero, {"x": zero}))] == ["output_0", "output_1.x"]
    assert [name for name, _ in named_outputs((zero, zero), ["p", "q"])] == ["p", "q"]
    nothings: list[Any] = [None, 3, {}, [None]]
    for nothing in nothings:
        with pytest.raises(ArgumentError, match="does not return a tensor"):
            named_outputs(nothing)
    with pytest.raises(ArgumentError, match="1 names of outputs are given, and the model has 2"):
        named_outputs((zero, zero), ["p"])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "complex64", "bool"])
def test_arrays_become_tensors_of_their_dtype(dtype: str) -> None:
    array = np.array([0, 1]).astype(DTYPES[dtype].numpy() if dtype in DTYPES else dtype)
    (tensor,) = tensors_of({"x": array}).values()
    assert tensor.dtype == getattr(torch, dtype)
    assert tensor.to(torch.complex64).tolist() == [0, 1]


def test_a_failure_of_the_model_is_told_with_its_line_and_shapes() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(7)

    with pytest.raises(ArgumentError, match=r"the model fails on x\[3\]: shape '\[7\]' is invalid") as caught:
        function_of(Fails())({"x": np.ones(3, np.float32)})
    assert caught.value.where.startswith("test_functions.py, line")


def test_what_is_handed_out_is_a_copy() -> None:
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = torch.zeros(2)

        def forward(self, x: Tensor) -> Any:
            self.held += x
            return self.held

    function = function_of(Same())
    first = function({"x": ONE})["output"]
    function({"x": ONE})
    assert first.tolist() == [1, 1]


def test_hooks_of_the_model_run() -> None:
    model = nn.Linear(1, 1)
    model.register_forward_hook(lambda module, inputs, output: output * 0 + 5)
    with evaluating(model):
        assert function_of(model)({"input": ONE})["output"].tolist() == [5]


def test_modes_come_back_after_an_error_too() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(1, 1).eval())

    def fails() -> None:
        with evaluating(model):
            assert not any(each.training for each in model.modules())
            assert not torch.is_grad_enabled()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fails()
    assert [each.training for each in model.modules()] == [True, True, False]
    assert torch.is_grad_enabled()


def test_a_cached_weight_stays_on_its_graph() -> None:
    model = vocoder("legacy")
    before = model.conv_pre.weight
    assert before.grad_fn is not None
    with evaluating(model):
        function_of(model)({"mel": np.ones((1, 4, 3), np.float32)})
        assert model.conv_pre.weight is not before
    assert model.conv_pre.weight is before


def test_a_model_without_numbers_is_refused() -> None:
    with pytest.raises(InputError, match="meta device"):
        function_of(nn.Linear(1, 1, device="meta"))


def test_a_model_without_parameters_runs() -> None:
    assert function_of(Branching())({"x": ONE})["output"].tolist() == [2]


def test_hooks_find_inputs_where_people_pass_them() -> None:
    model = nn.Linear(1, 1)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs)))
    function_of(model)({"input": ONE})
    assert seen == [1]


def test_a_model_that_ends_the_process_is_told() -> None:
    class Ends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise SystemExit(f"no licence for {len(x)}")

    with pytest.raises(ArgumentError, match="no licence"):
        function_of(Ends())({"x": ONE})


def test_outputs_of_one_name_are_told_apart() -> None:
    zero = torch.zeros(1)
    found = named_outputs({"a": {"b": zero}, "a.b": zero, "a.b_2": zero})
    assert [name for name, _ in found] == ["a.b", "a.b_2", "a.b_2_2"]


def test_what_is_wrapped_around_a_module_is_taken_off() -> None:
    model = nn.Linear(1, 1)
    compiled: Any = torch.compile(nn.DataParallel(model), backend="eager")
    assert unwrapped(compiled) is model
    assert unwrapped(model) is model


def test_a_dataclass_that_torch_knows_without_its_keys_is_opened() -> None:
    @dataclasses.dataclass
    class Decoded(OrderedDict[str, Tensor]):  # as diffusers has them
        sample: Tensor

    pytree.register_pytree_node(Decoded, lambda it: ([it.sample], None), lambda values, _: Decoded(*values))
    zero = torch.zeros(1)
    assert [name for name, _ in named_outputs(Decoded(zero))] == ["sample"]
    assert [name for name, _ in named_outputs({"a": Decoded(zero), "b": (zero, None)})] == ["a.sample", "b.0"]
