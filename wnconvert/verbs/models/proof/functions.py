"""A torch model as a function of arrays: it takes inputs by name, and returns outputs by name."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

import wnconvert
from wnconvert.errors import ArgumentError, InputError
from wnconvert.messages import listed
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.memory import array_of, made_like
from wnconvert.verbs.models.proof.causes.steady import NumericFunction
from wnconvert.verbs.models.proof.inputs.forwards import forward_of

__all__ = [
    "EITHER_WAY",
    "Exportable",
    "caller",
    "error_text",
    "function_of",
    "named_outputs",
    "places_of",
    "run_model",
    "tensors_at",
    "tensors_of",
    "unwrapped",
]


Exportable: TypeAlias = nn.Module | ExportedProgram

EITHER_WAY = inspect.Parameter.POSITIONAL_OR_KEYWORD
_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_COMPILED = "_orig_mod"  # of torch._dynamo's OptimizedModule, which takes long to import


def unwrapped(model: Exportable) -> Exportable:
    """The module inside the wrappers of ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``.

    >>> unwrapped(nn.DataParallel(nn.Linear(3, 2)))
    Linear(in_features=3, out_features=2, bias=True)
    """
    while isinstance(model, _PARALLEL) or (isinstance(model, nn.Module) and _COMPILED in model._modules):
        model = model.get_submodule("module" if isinstance(model, _PARALLEL) else _COMPILED)
    return model


def _positional(program: ExportedProgram) -> int:
    """The number of inputs of an exported program that come by position; these are the first."""
    arguments, keywords = program.module_call_graph[0].signature.in_spec.children()
    nested = not all(each.is_leaf() for each in (*arguments.children(), *keywords.children()))
    if nested or arguments.num_children + keywords.num_children != len(program.graph_signature.user_inputs):
        raise ArgumentError(
            "the exported program takes lists or dicts of tensors",
            fix="give a program whose forward takes tensors",
        )
    return int(arguments.num_children)


def run_model(model: nn.Module, inputs: Mapping[str, Tensor], by_position: int | None = None) -> Any:
    """Call a model with inputs by name. Raises ``ArgumentError`` with the model's message if it fails.

    The first ``by_position`` inputs of an exported program must come by position, the others by name.
    """
    try:
        if by_position is not None:
            first = list(inputs)[:by_position]
            others = {name: value for name, value in inputs.items() if name not in first}
            return model(*(inputs[name] for name in first), **others)
        if isinstance(model, torch.jit.ScriptModule):
            # By position if possible: a traced model may have lost the names.
            in_order = list(inputs) == [*forward_of(model).names[: len(inputs)]]
            return model(*inputs.values()) if in_order else model(**inputs)
        return caller(model, model.forward, list(inputs))(*inputs.values())
    except (Exception, SystemExit) as error:
        shapes = ", ".join(f"{name}{list(value.shape)}" for name, value in inputs.items())
        raise ArgumentError(
            f"the model fails on {shapes}: {error_text(error) or type(error).__name__}",
            where=_place_of(error),
            fix="give shapes, dtypes and bounds that its forward takes, and a range of sizes that it takes",
        ) from error


#: Files in these folders are not the user's code.
_PACKAGES = {Path(at) for package in (torch, wnconvert) for at in package.__path__}


def _place_of(error: BaseException) -> str:
    """The line of the user's code in which an exception was raised; or empty."""
    at = ""
    trace = error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if path.suffix == ".py" and not _PACKAGES & set(path.parents):
            at = f"{path.name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return at


def caller(
    function: Callable[..., Any], forward: Callable[..., Any], names: Sequence[str]
) -> Callable[..., Any]:
    """A function of tensors in the order of ``names``, which passes them as ``forward`` takes them."""
    kinds = {name: each.kind for name, each in inspect.signature(forward).parameters.items()}
    takes_any_name = inspect.Parameter.VAR_KEYWORD in kinds.values()

    def call(*values: Tensor) -> Any:
        given = dict(zip(names, values, strict=True))
        # Tensors for *args come by position, behind all parameters before it.
        others = [] if takes_any_name else [given.pop(name) for name in names if name not in kinds]
        # By position as far as possible, as people call modules: hooks look for inputs there.
        first = list(takewhile(lambda name: name in given or kinds[name] in _VARIADIC, kinds))
        by_position = [
            name
            for name, kind in kinds.items()
            if name in given
            and (
                kind is inspect.Parameter.POSITIONAL_ONLY
                or (kind is EITHER_WAY and (others or name in first))
            )
        ]
        return function(*(given.pop(name) for name in by_position), *others, **given)

    return call


def named_outputs(found: Any, names: Sequence[str] = ()) -> list[tuple[str, Tensor]]:
    """The tensors in the output of a module, in torch's order, named by ``names`` or by their places.

    Dataclasses are opened; leaves that are not tensors are left out. Raises ``ArgumentError`` if there is no
    tensor, or if the number of names is different.

    >>> zero = torch.zeros(1)
    >>> [name for name, _ in named_outputs({"wave": zero, "state": (zero, None)})]
    ['wave', 'state.0']
    >>> [name for name, _ in named_outputs(zero)], [name for name, _ in named_outputs((zero, zero))]
    (['output'], ['output_0', 'output_1'])
    """
    tensors = [(path, leaf) for path, leaf in _leaves(found) if isinstance(leaf, Tensor)]
    if not tensors:
        kind = type(found).__name__
        raise ArgumentError(
            f"the model does not return a tensor, but a {kind}",
            fix="give a module whose forward returns tensors",
        )
    own = _each_once([_name_at(path) for path, _ in tensors])
    if names and len(names) != len(own):
        raise ArgumentError(
            f"{len(names)} names of outputs are given, and the model has {len(own)}: {listed(own, 8)}",
            fix="give one --output-name NAME for each, in this order",
        )
    return list(zip(names or own, (leaf for _, leaf in tensors), strict=True))


def tensors_at(found: Any, places: Sequence[int]) -> tuple[Tensor, ...]:
    """The leaves of a module's output at some places, which ``places_of`` found before."""
    leaves = _leaves(found)
    return tuple(leaves[place][1] for place in places)


def places_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[int, ...]:
    """The places of tensors among the leaves of a model's output; while it is traced, numbers can be tensors.

    Raises ``ArgumentError`` if the model fails.
    """
    leaves = _leaves(run_model(model, inputs))
    return tuple(place for place, (_, leaf) in enumerate(leaves) if isinstance(leaf, Tensor))


def _leaves(found: Any, around: tuple[int, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """The leaves of a module's output inside lists, dicts and dataclasses, each with its path.

    ``around`` are the ids of the dataclasses around ``found``: a dataclass may hold itself.
    """
    try:
        leaves, _ = pytree.tree_flatten_with_path(found)
    except ValueError:  # diffusers' outputs are known to torch without their keys, and are dataclasses
        leaves, _ = pytree.tree_flatten_with_path(found, is_leaf=dataclasses.is_dataclass)
    every: list[tuple[tuple[Any, ...], Any]] = []
    for path, leaf in leaves:
        is_open = dataclasses.is_dataclass(leaf) and not isinstance(
            leaf, type
        )  # one that torch does not know
        if is_open and id(leaf) not in around:
            inside = {each.name: getattr(leaf, each.name) for each in dataclasses.fields(leaf)}
            every += [((*path, *more), value) for more, value in _leaves(inside, (*around, id(leaf)))]
        else:
            every.append((tuple(path), leaf))
    return every


def _name_at(path: tuple[Any, ...]) -> str:
    keys = [str(getattr(part, "key", getattr(part, "idx", getattr(part, "name", part)))) for part in path]
    if not keys:
        return "output"
    return f"output_{'.'.join(keys)}" if keys[0].isdecimal() else ".".join(keys)


def _each_once(names: list[str]) -> list[str]:
    """Names with numbers behind repeated ones: keys may have dots in them, so paths can look alike."""
    found: list[str] = []
    for name in names:
        numbers = (f"{name}_{at}" for at in range(2, len(names) + 2))
        found.append(next(each for each in (name, *numbers) if each not in found))
    return found


def error_text(error: BaseException) -> str:
    """The message of an exception without chatter, in one line; empty if it has none."""
    text = _COLOR.sub("", str(error)).strip()
    lines = [line.strip() for line in text.splitlines()]
    kept: list[str] = []
    for line in lines:
        if not line or line.startswith(_CHATTER):
            if kept:
                break
            continue
        kept.append(line)
    text = " ".join(kept[:_LINES])
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_CHATTER = ("For more information", "Caused by:", "For extended logs", "consider using", "Suggested fixes")
_LINES = 6
_LONGEST = 600


# -- run


def tensors_of(arrays: Mapping[str, Array], device: torch.device | None = None) -> dict[str, Tensor]:
    """Arrays as torch tensors, bfloat16 among them."""
    found = {name: made_like(torch.empty(0), array) for name, array in arrays.items()}
    return {name: value if device is None else value.to(device) for name, value in found.items()}


def function_of(model: Exportable, names: Sequence[str] = ()) -> NumericFunction:
    """A model as a function of arrays; its outputs are named by ``names``, or by their places.

    Raises ``InputError`` for a model on the meta device.
    """
    runner = model.module() if isinstance(model, ExportedProgram) else model
    by_position = _positional(model) if isinstance(model, ExportedProgram) else None
    held = [*runner.parameters(), *runner.buffers()]
    if any(value.is_meta for value in held):
        raise InputError("the model is on the meta device and has no numbers", fix="load its weights first")
    device = held[0].device if held else None

    def function(feeds: Mapping[str, Array]) -> dict[str, Array]:
        found = named_outputs(run_model(runner, tensors_of(feeds, device), by_position), names)
        # A copy, because the model may return its own memory and write to it again.
        return {name: array_of(value).copy() for name, value in found}

    return function
