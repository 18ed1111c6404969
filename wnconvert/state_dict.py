"""The verbs on a state dict in memory: a mapping of names to torch tensors or numpy arrays.

No torch is needed for numpy arrays (:mod:`wnconvert.values`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from wnconvert.blocks import Array
from wnconvert.dims import AUTO
from wnconvert.errors import ArgumentError, LayerError
from wnconvert.inspection import Inspection, inspect_tree
from wnconvert.options import dtype_of, numbers_of, selection_of
from wnconvert.plan import Fold, PlannedStateDict, metadata_gone, plan_fold
from wnconvert.policy import Problem, raise_problems
from wnconvert.rounding import cast, count_overflow
from wnconvert.tensors import Entry, StateDict, Tree
from wnconvert.values import InMemory, array_of, is_torch, made_like, stored_tensor, view_of
from wnconvert.weightnorm import fold_with_report

__all__ = ["fold_state_dict", "inspect_state_dict"]


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

    >>> import numpy as np
    >>> folded = fold_state_dict({"conv.weight_g": np.float32([[10]]), "conv.weight_v": np.float32([[3, 4]])})
    >>> folded
    {'conv.weight': array([[6., 8.]], dtype=float32)}
    """
    tree, values = _tree(state_dict)
    numbers = numbers_of(zero_rows, allow_nonfinite=allow_nonfinite)
    selection = selection_of(layers, exclude, dim)
    (planned,) = plan_fold(tree, "torch", selection=selection, dtype=dtype_of(dtype)).state_dicts
    folded: dict[str, Any] = OrderedDict() if isinstance(state_dict, OrderedDict) else {}
    made: dict[object, Any] = {}  # what is tied stays tied
    problems: list[tuple[str, tuple[Problem, ...]]] = []
    for step in planned.steps:
        if isinstance(step, Fold):
            g, v = values[step.layer.g.name], values[step.layer.v.name]
            key: object = (view_of(g), view_of(v), step.dtype)
            if key not in made:
                where = f"layer {step.name}"
                halves = _numbers(where, v), _numbers(where, g)
                w, report = fold_with_report(*halves, step.layer.dim, dtype=step.dtype)
                problems.append((where, numbers.problems(report)))
                made[key] = made_like(v, w)
            folded[step.name] = made[key]
        elif step.dtype is not None:
            value = values[step.source]
            key = (view_of(value), step.dtype)
            if key not in made:
                before = _numbers(step.name, value)
                after = cast(before, step.dtype)
                problems.append((step.name, numbers.cast_problems(count_overflow(before, after), step.dtype)))
                made[key] = made_like(value, after)
            folded[step.name] = made[key]
        else:
            folded[step.name] = values[step.source]
    raise_problems(problems)
    folded.update(_not_named(state_dict))
    _keep_metadata(state_dict, folded, planned)
    return folded


def inspect_state_dict(
    state_dict: Mapping[str, Any],
    *,
    layers: Iterable[str] = (),
    full: bool = False,
    all_weights: bool = False,
) -> Inspection:
    """Inspect a state dict in memory: its layers, their magnitudes, what folding it would do.

    Values and options as for ``fold_state_dict`` and ``inspect_file``. Raises ``ArgumentError`` where there
    is no tensor in ``state_dict``, but in a mapping inside it.

    >>> import numpy as np
    >>> found = inspect_state_dict({"weight_g": np.float32([[10]]), "weight_v": np.float32([[3, 4]])})
    >>> found.layers[0].g.mean, found.fold
    (10.0, 'would make 1 plain weight')
    """
    tree, values = _tree(state_dict)
    return inspect_tree(tree, InMemory(values), layers=layers, full=full, all_weights=all_weights)


def _not_named(state_dict: Mapping[Any, Any]) -> dict[Any, Any]:
    """What stands under a key that is no text; a file keeps it too."""
    return {key: value for key, value in state_dict.items() if not isinstance(key, str)}


def _tree(state_dict: Any) -> tuple[Tree, dict[str, Any]]:
    """What a state dict holds by names, dtypes and shapes, and its values by name."""
    if not isinstance(state_dict, Mapping):
        kind = type(state_dict).__name__
        raise ArgumentError(f"a {kind} is no state dict", fix="pass a mapping of names to tensors")
    values = {name: value for name, value in state_dict.items() if isinstance(name, str)}
    entries = tuple(
        Entry(name, stored := stored_tensor(name, value), is_opaque=stored is None and is_torch(value))
        for name, value in values.items()
    )
    if not any(entry.tensor for entry in entries):
        _refuse_nested(state_dict)
    return Tree((StateDict("", entries),)), values


def _numbers(where: str, value: Any) -> Array:
    try:
        return array_of(value)
    except LayerError as error:
        error.where = where
        raise


def _refuse_nested(state_dict: Mapping[str, Any]) -> None:
    """A whole checkpoint was passed where a state dict is meant: silence would be taken for success."""
    for name, value in state_dict.items():
        if isinstance(value, Mapping) and any(stored_tensor("", item) for item in value.values()):
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
