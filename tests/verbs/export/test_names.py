"""Initializers known by their content: transposed, reordered, joined, fused; and those that tell nothing."""

from __future__ import annotations

import numpy as np
import pytest

from wnconvert.tensors.blocks import Array
from wnconvert.tensors.dtypes import DTYPES
from wnconvert.verbs.export.names import names_of


def numbers(*shape: int, seed: int = 0, dtype: str = "float32") -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(DTYPES[dtype].numpy())


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_what_is_transposed_keeps_the_name_of_its_parameter(dtype: str) -> None:
    weight, other = numbers(5, 3, dtype=dtype), numbers(5, 3, seed=1, dtype=dtype)
    found = names_of({"onnx::MatMul_34": weight.T, "val_12": other}, {"a.weight": weight, "b.weight": other})
    assert found == {"onnx::MatMul_34": "a.weight", "val_12": "b.weight"}


def test_gates_in_another_order_keep_their_name() -> None:
    weight = numbers(4, 7, 5)
    reordered = weight[[0, 3, 1, 2]].reshape(1, 28, 5)
    assert names_of({"val_45": reordered}, {"lstm.weight_ih_l0": weight.reshape(28, 5)}) == {
        "val_45": "lstm.weight_ih_l0"
    }


def test_parameters_of_a_recurrent_layer_end_to_end_are_named_by_both() -> None:
    parts = {
        f"enc.lstm.{name}_l0{way}": numbers(28, seed=at)
        for at, (name, way) in enumerate(
            (name, way) for way in ("", "_reverse") for name in ("bias_ih", "bias_hh")
        )
    }
    ih, hh, *reverse = parts.values()
    assert names_of({"val_68": np.concatenate([hh, ih])[None]}, parts) == {
        "val_68": "enc.lstm.bias_ih_l0+bias_hh_l0"
    }
    every = np.stack([np.concatenate([ih, hh]), np.concatenate(reverse)])
    assert names_of({"val_68": every}, parts) == {
        "val_68": "enc.lstm.bias_ih_l0+bias_hh_l0+bias_ih_l0_reverse+bias_hh_l0_reverse"
    }


def test_parameters_of_two_modules_end_to_end_are_nobodys() -> None:
    parts = {"a.bias_l0": numbers(28), "b.bias_l0": numbers(28, seed=1)}
    assert names_of({"val_68": np.concatenate(list(parts.values()))}, parts) == {}


def test_a_fold_evaluated_once_more_is_known_by_closeness() -> None:
    weight = numbers(5, 3)
    again = np.nextafter(weight, np.float32(9))
    assert names_of({"mul": again}, {"conv.weight": weight}) == {"mul": "conv.weight"}
    assert names_of({"mul": again.T}, {"conv.weight": weight}) == {"mul": "conv.weight"}
    assert names_of({"mul": weight * np.float32(1.0001) + 1e-3}, {"conv.weight": weight}) == {}


def test_a_weight_with_a_batch_norm_in_it_is_known_by_its_rows() -> None:
    weight = numbers(5, 3, 4)
    fused = weight * numbers(5, 1, 1, seed=2)
    assert names_of({"onnx::Conv_9": fused}, {"conv.weight": weight}) == {"onnx::Conv_9": "conv.weight"}
    assert names_of({"onnx::Conv_9": fused + fused[::-1]}, {"conv.weight": weight}) == {}


@pytest.mark.parametrize(
    "array",
    [
        np.ones((3, 3), np.float32),
        np.zeros(4, np.float32),
        np.float32(3),
        np.full(1, 2.5, np.float32),
        np.arange(9),
    ],
)
def test_constants_single_numbers_and_integers_say_nothing(array: Array) -> None:
    array = np.asarray(array)
    assert names_of({"val_1": array}, {"norm.weight": array}) == {}


def test_what_two_parameters_could_be_keeps_its_name() -> None:
    weight = numbers(3, 3)
    assert names_of({"val_1": weight.T}, {"a.weight": weight, "b.weight": weight.copy()}) == {}


def test_what_two_initializers_could_be_keeps_their_names() -> None:
    weight = numbers(3, 3)
    found = names_of({"val_1": weight[::-1], "val_2": weight[:, ::-1]}, {"a.weight": weight})
    assert found == {}


def test_a_second_copy_that_is_transposed_says_so() -> None:
    weight = numbers(5, 3)
    transposed = {"val_1": "emb.weight.transposed"}
    assert names_of({"emb.weight": weight, "val_1": weight.T}, {"emb.weight": weight}) == transposed
    both = names_of({"val_1": weight.T, "val_2": weight}, {"emb.weight": weight})
    assert both == {**transposed, "val_2": "emb.weight"}


def test_a_parameters_own_name_is_never_given_twice() -> None:
    weight = numbers(5, 3)
    assert names_of({"a.weight": weight, "val_1": weight[::-1]}, {"a.weight": weight}) == {}


def test_another_dtype_or_size_is_another_tensor() -> None:
    weight = numbers(5, 3)
    assert names_of({"val_1": weight.astype(np.float64)}, {"a.weight": weight}) == {}
    assert names_of({"val_1": weight[:4]}, {"a.weight": weight}) == {}


def test_only_biases_and_weights_of_one_recurrent_layer_are_joined() -> None:
    biases = {
        f"lstm.bias_{kind}_l{layer}": numbers(8, seed=layer) for layer in (0, 1) for kind in ("ih", "hh")
    }
    biases["lstm.bias_hh_l0"] = numbers(8, seed=7)
    across = np.concatenate([biases["lstm.bias_hh_l0"], biases["lstm.bias_ih_l1"]])
    within = np.concatenate([biases["lstm.bias_ih_l0"], biases["lstm.bias_hh_l0"]])
    assert names_of({"val_1": across, "val_2": within}, biases) == {"val_2": "lstm.bias_ih_l0+bias_hh_l0"}


def test_many_parameters_with_the_names_of_layers_are_not_joined() -> None:
    many = {f"x_l{at}": numbers(4, seed=at) for at in range(300)}  # of four of them there are 3·10⁸
    assert names_of({"val_1": numbers(16, seed=999)}, many) == {}
