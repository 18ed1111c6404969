"""The verbs on a state dict in memory: a mapping of names to torch tensors or numpy arrays.

torch is used only where the values are torch's, and so it is imported already. CPU tensors are viewed as
numpy arrays without a copy; others come to the CPU, and their weights go back to their device.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from wnconvert.blocks import Array
from wnconvert.dims import AUTO
from wnconvert.errors import ArgumentError, LayerError
from wnconvert.options import dtype_of, numbers_of, selection_of
from wnconvert.plan import Fold, PlannedStateDict, metadata_gone, plan_fold
from wnconvert.policy import Problem, raise_problems
from wnconvert.rounding import cast, count_overflow
from wnconvert.tensors import DTYPES, ByteRange, Entry, StateDict, StoredTensor, TensorInfo, Tree
from wnconvert.weightnorm import fold_with_report

__all__ = ["fold_state_dict"]


def fold_state_dict(
    state_dict: Mapping[str, Any],
    *,
    dtype: str | None = None,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    dim: int | str | None = AUTO,
    zero_rows: str = "error",
    allow_nonfinite: bool = False,
) -> dict[str, Any]:
    """Fold the weight-normalized layers of a state dict; the mapping and its tensors are left alone.

    Values may be torch tensors (on any device; Parameters stay Parameters) or numpy arrays (bfloat16 as
    ml_dtypes'); what is no tensor is kept. A new mapping is returned, an ``OrderedDict`` with its
    ``_metadata`` where the source is one; unchanged values in it are the very same objects. Options as for
    ``fold_file``.

    Raises ``LayerError`` for layers that are refused, ``NumbersError`` for their numbers and
    ``ArgumentError`` where there is no tensor in ``state_dict``, but in a mapping inside it.

    >>> folded = fold_state_dict({"conv.weight_g": np.float32([[10]]), "conv.weight_v": np.float32([[3, 4]])})
    >>> folded
    {'conv.weight': array([[6., 8.]], dtype=float32)}
    """
    entries = tuple(Entry(str(name), _stored(str(name), value)) for name, value in state_dict.items())
    if not any(entry.tensor for entry in entries):
        _refuse_nested(state_dict)
    numbers = numbers_of(zero_rows, allow_nonfinite=allow_nonfinite)
    plan = plan_fold(
        Tree((StateDict("", entries),)),
        "torch",
        selection=selection_of(layers, exclude, dim),
        dtype=dtype_of(dtype),
    )
    (planned,) = plan.state_dicts
    values = {str(name): value for name, value in state_dict.items()}
    folded: dict[str, Any] = OrderedDict() if isinstance(state_dict, OrderedDict) else {}
    made: dict[object, Any] = {}  # what is tied stays tied
    problems: list[tuple[str, tuple[Problem, ...]]] = []
    for step in planned.steps:
        if isinstance(step, Fold):
            g, v = values[step.layer.g.name], values[step.layer.v.name]
            key: object = (_view(g), _view(v), step.dtype)
            if key not in made:
                w, report = fold_with_report(_array(v), _array(g), step.layer.dim, dtype=step.dtype)
                problems.append((f"layer {step.name}", numbers.problems(report)))
                made[key] = _like(v, w)
        else:
            value = values[step.source]
            key = (_view(value), step.dtype)
            if step.dtype is None:
                made[key] = value
            elif key not in made:
                before = _array(value)
                after = cast(before, step.dtype)
                problems.append((step.name, numbers.cast_problems(count_overflow(before, after), step.dtype)))
                made[key] = _like(value, after)
        folded[step.name] = made[key]
    raise_problems(problems)
    _keep_metadata(state_dict, folded, planned)
    return folded


def _refuse_nested(state_dict: Mapping[str, Any]) -> None:
    """A whole checkpoint was passed where a state dict is meant: silence would be taken for success."""
    for name, value in state_dict.items():
        if isinstance(value, Mapping) and any(_stored("", item) for item in value.values()):
            raise ArgumentError(
                f"there is no tensor in it, but a state dict at {name!r}", fix=f"pass checkpoint[{name!r}]"
            )


def _keep_metadata(state_dict: Mapping[str, Any], folded: dict[str, Any], planned: PlannedStateDict) -> None:
    """torch's ``_metadata``, an attribute of the OrderedDict, without the modules that went."""
    metadata = getattr(state_dict, "_metadata", None)
    if isinstance(metadata, Mapping) and isinstance(folded, OrderedDict):
        gone = metadata_gone(planned)
        kept = OrderedDict((key, value) for key, value in metadata.items() if key not in gone)
        folded._metadata = kept  # type: ignore[attr-defined]  # as torch.nn.Module.state_dict does


# -- values


def _is_torch(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _stored(name: str, value: Any) -> StoredTensor | None:
    """A value's name, dtype and shape, or None where it is no plain tensor (a sparse one is not)."""
    if _is_torch(value):
        plain = str(value.layout) == "torch.strided"
        dtype, shape = DTYPES.get(str(value.dtype).removeprefix("torch.")), tuple(value.shape)
    elif isinstance(value, (np.ndarray, np.generic)):
        plain, dtype, shape = True, DTYPES.get(value.dtype.name), tuple(value.shape)
    else:
        return None
    if dtype is None or not plain:
        return None
    return StoredTensor(TensorInfo(name, dtype, shape), ByteRange(0, 0), 0, ())


def _view(value: Any) -> object:
    """Equal for two values where they are the same elements in memory; by identity for all else."""
    if _is_torch(value) and str(value.layout) == "torch.strided" and value.device.type != "meta":
        return (
            str(value.device),
            value.data_ptr(),
            tuple(value.shape),
            value.stride(),
            str(value.dtype),
            type(value),
        )
    if isinstance(value, np.ndarray):
        return ("numpy", value.ctypes.data, value.shape, value.strides, value.dtype.str)
    return id(value)


def _array(value: Any) -> Array:
    """A tensor's elements as a numpy array; no copy of a CPU tensor."""
    if not _is_torch(value):
        return np.asarray(value)
    import torch

    if value.device.type == "meta":
        raise LayerError(
            "a tensor on the meta device has no numbers", fix="load the checkpoint with its data"
        )
    value = value.detach().cpu()
    if value.dtype == torch.bfloat16:
        bits: Array = value.view(torch.int16).numpy()
        return bits.view(DTYPES["bfloat16"].numpy())
    plain: Array = value.numpy()
    return plain


def _like(value: Any, array: Array) -> Any:
    """New elements as the kind of thing that ``value`` is: a Parameter, its device, its requires_grad."""
    if not _is_torch(value):
        return array
    import torch

    if array.dtype == DTYPES["bfloat16"].numpy():
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    tensor = tensor.to(value.device)
    if isinstance(value, torch.nn.Parameter):
        return torch.nn.Parameter(tensor, requires_grad=value.requires_grad)
    return tensor
