"""torch's two ONNX exporters behind one function, and modules as functions of inputs by name.

Source: ``torch.onnx.export``, with ``dynamo=True`` (by ``torch.export``) and ``dynamo=False`` (by tracing).
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from wnconvert.errors import ArgumentError
from wnconvert.signatures import Signature
from wnconvert.words import listed, printable

__all__ = ["EXPORTERS", "Exportable", "called", "check_inputs", "export_raw", "input_names"]
__all__ += ["named_outputs", "quiet_torch", "said"]

EXPORTERS = ("dynamo", "torchscript")

Exportable: TypeAlias = nn.Module | ExportedProgram

_EITHER_WAY = inspect.Parameter.POSITIONAL_OR_KEYWORD


# -- modules as functions


def input_names(model: Exportable) -> tuple[list[str], list[str], bool]:
    """The inputs of a model: all by name, those that must be given, and whether it takes others too.

    >>> input_names(nn.Linear(3, 2))
    (['input'], ['input'], False)
    """
    if isinstance(model, ExportedProgram):
        names = list(model.graph_signature.user_inputs)
        return [str(name) for name in names], [str(name) for name in names], False
    if isinstance(model, torch.jit.ScriptModule):
        schema: Any = model.forward
        arguments = schema.schema.arguments[1:]
        required = [each.name for each in arguments if not each.has_default_value()]
        return [each.name for each in arguments], required, False
    parameters = inspect.signature(model.forward).parameters
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = [name for name, each in parameters.items() if each.kind not in variadic]
    required = [name for name in named if parameters[name].default is inspect.Parameter.empty]
    return named, required, any(each.kind in variadic for each in parameters.values())


def check_inputs(model: Exportable, names: Sequence[str]) -> None:
    """Raise ``ArgumentError`` for an input that the model does not have, and for one that it lacks."""
    known, required, takes_others = input_names(model)
    what = "the exported program" if isinstance(model, ExportedProgram) else "forward"
    has = f"the inputs of {what} are: {listed(map(printable, known), 12) or '(there are none)'}"
    for name in names:
        if name not in known and (not takes_others or not name.isidentifier()):
            near = get_close_matches(name, known, 1)
            fix = f"did you mean {printable(near[0])}? {has}" if near else has
            raise ArgumentError(f"the model has no input {printable(name)!r}", fix=fix)
    lacking = [name for name in required if name not in names]
    if lacking:
        more = " ".join(f"--input '{printable(name)}=float32[…]'" for name in lacking[:4])
        raise ArgumentError(
            f"{what} needs {listed(map(printable, lacking))} too", fix=f"{more}, of its dtype and shape"
        )


def called(model: Exportable, inputs: Mapping[str, Tensor]) -> Any:
    """What a model gives for inputs by name. Raises ``ArgumentError`` where it fails, with what it says."""
    try:
        if isinstance(model, ExportedProgram):
            model = model.module()
        if isinstance(model, torch.jit.ScriptModule):
            # By position where that is possible: what was traced may have lost the names.
            in_order = list(inputs) == input_names(model)[0][: len(inputs)]
            return model(*inputs.values()) if in_order else model(**inputs)
        return _caller(model, model.forward, list(inputs))(*inputs.values())
    except Exception as error:
        shapes = ", ".join(f"{name}{list(value.shape)}" for name, value in inputs.items())
        raise ArgumentError(
            f"the model fails on {shapes}: {said(error) or type(error).__name__}",
            where=_place_of(error),
            fix="shapes, dtypes, bounds and ranges that its forward takes",
        ) from error


def _place_of(error: BaseException) -> str:
    """The line of the caller's own code in which an exception was raised."""
    at = ""
    trace = error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if path.suffix == ".py" and not {"torch", "wnconvert"} & set(path.parts[-4:]):
            at = f"{path.name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return at


def _caller(
    function: Callable[..., Any], forward: Callable[..., Any], names: Sequence[str]
) -> Callable[..., Any]:
    """A function of tensors in the order of ``names``, which reach ``function`` as ``forward`` takes them."""
    kinds = {name: each.kind for name, each in inspect.signature(forward).parameters.items()}
    takes_any_name = inspect.Parameter.VAR_KEYWORD in kinds.values()

    def call(*values: Tensor) -> Any:
        given = dict(zip(names, values, strict=True))
        # What goes into *args comes by position, behind all that stands before it.
        others = [] if takes_any_name else [given.pop(name) for name in names if name not in kinds]
        by_position = [
            name
            for name, kind in kinds.items()
            if name in given
            and (kind is inspect.Parameter.POSITIONAL_ONLY or (others and kind is _EITHER_WAY))
        ]
        return function(*(given.pop(name) for name in by_position), *others, **given)

    return call


def named_outputs(found: Any, names: Sequence[str] = ()) -> list[tuple[str, Tensor]]:
    """The tensors in what a module gives, in torch's order, each with a name: ``names``, else by its place.

    What is no tensor is left out. Raises ``ArgumentError`` where there is none, or not as many as names.

    >>> zero = torch.zeros(1)
    >>> [name for name, _ in named_outputs({"wave": zero, "state": (zero, None)})]
    ['wave', 'state.0']
    >>> [name for name, _ in named_outputs(zero)], [name for name, _ in named_outputs((zero, zero))]
    (['output'], ['output_0', 'output_1'])
    """
    leaves, _ = pytree.tree_flatten_with_path(found)
    tensors = [(path, leaf) for path, leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors:
        kind = type(found).__name__
        raise ArgumentError(
            f"the model gives no tensor (it gives a {kind})", fix="a forward that returns tensors"
        )
    own = [_name_at(path) for path, _ in tensors]
    if names and len(names) != len(own):
        raise ArgumentError(
            f"{len(names)} names of outputs are given, and the model has {len(own)}: {listed(own, 8)}",
            fix="one --output NAME for each, in this order",
        )
    return list(zip(names or own, (leaf for _, leaf in tensors), strict=True))


def _name_at(path: tuple[Any, ...]) -> str:
    keys = [str(getattr(part, "key", getattr(part, "idx", getattr(part, "name", part)))) for part in path]
    if not keys:
        return "output"
    return f"output_{'.'.join(keys)}" if keys[0].isdecimal() else ".".join(keys)


# -- the exporters


def export_raw(
    model: Exportable,
    inputs: Mapping[str, Tensor],
    signature: Signature,
    path: Path,
    *,
    exporter: str,
    outputs: Sequence[str],
    opset: int | None = None,
    external_data: bool = False,
) -> None:
    """Write a model as ONNX, as one of torch's exporters gives it: in eval mode, without gradients.

    ``model`` is one's own copy, for its ``forward`` is replaced. ``outputs`` are the names of all outputs.
    With ``external_data`` weights may lie in files beside ``path``. Raises ``ArgumentError`` where the
    exporter refuses, with what torch says of it.
    """
    if exporter == "torchscript" and isinstance(model, ExportedProgram):
        raise ArgumentError(
            "torch's older exporter takes no exported programs",
            fix="--exporter dynamo, or the module itself",
        )
    letters = _letters(signature)
    own = (_for_dynamo if exporter == "dynamo" else _for_torchscript)(model, inputs, letters, signature)
    common: dict[str, Any] = {
        "input_names": list(inputs),
        "output_names": list(outputs),
        "opset_version": opset,
    }
    if exporter == "dynamo":
        common["external_data"] = external_data  # the older one does it where it must
    try:
        with quiet_torch(), torch.no_grad():
            torch.onnx.export(**own, **common, f=str(path), verbose=False)
    except Exception as error:
        raise _refused(error, exporter, letters) from error


def _letters(signature: Signature) -> dict[str, dict[int, str]]:
    """Of each input, the letters of the axes whose size may change."""
    return {
        spec.name: {
            axis: size
            for axis, size in enumerate(spec.shape)
            if isinstance(size, str) and signature.ranges[size].low < signature.ranges[size].high
        }
        for spec in signature.inputs
    }


def _for_dynamo(
    model: Exportable,
    inputs: Mapping[str, Tensor],
    letters: Mapping[str, Mapping[int, str]],
    signature: Signature,
) -> dict[str, Any]:
    if isinstance(model, ExportedProgram):
        return {"model": model, "dynamo": True}
    _flatten(model, list(inputs))
    dims = {
        letter: torch.export.Dim(letter, min=span.low, max=span.high)
        for letter, span in signature.ranges.items()
        if span.low < span.high
    }
    shapes = tuple({axis: dims[letter] for axis, letter in letters[name].items()} for name in inputs)
    return {"model": model, "args": tuple(inputs.values()), "dynamic_shapes": shapes, "dynamo": True}


def _for_torchscript(
    model: Exportable, inputs: Mapping[str, Tensor], letters: Mapping[str, Mapping[int, str]], _: Signature
) -> dict[str, Any]:
    if isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule):
        _flatten(model, list(inputs))
    axes = {name: dict(by_axis) for name, by_axis in letters.items() if by_axis}
    return {"model": model, "args": tuple(inputs.values()), "dynamic_axes": axes, "dynamo": False}


def _flatten(model: nn.Module, names: Sequence[str]) -> None:
    """Give a module a forward of the inputs that are fed, by position, to a tuple of its tensors.

    On the instance: with a module around it, the names of all parameters would change.
    """
    call = _caller(model.forward, model.forward, names)

    def forward(*values: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor for _, tensor in named_outputs(call(*values)))

    # The exporters ask for the names of inputs.
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, _EITHER_WAY) for name in names]
    )
    model.__dict__["forward"] = forward


# -- quiet, and what is said instead


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """No warnings, log lines or prints of torch's inside (nor of the model's)."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
            _no_traces(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def _no_traces() -> Iterator[None]:
    """Where the older exporter fails, it prints the whole graph, and not by way of Python."""
    torch._C._jit_set_onnx_log_output_stream("stderr")  # which is not buffered
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        kept = -1
    try:
        if kept >= 0:
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        if kept >= 0:
            os.dup2(kept, 2)
            os.close(kept)
        torch._C._jit_set_onnx_log_output_stream("stdout")


def said(error: BaseException) -> str:
    """What an exception says, in a line or a few; its kind where it says nothing."""
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


def _refused(error: Exception, exporter: str, letters: Mapping[str, Mapping[int, str]]) -> ArgumentError:
    """What the exporter refused, in torch's words, where in the model, and what to try."""
    if isinstance(error, ArgumentError):
        return error
    causes = list(_causes(error))
    root = causes[-1]
    layer = next(filter(None, map(_layer_in, causes)), "")
    return ArgumentError(
        f"torch's exporter refused the model: {said(root) or type(root).__name__}",
        where=f"layer {layer}" if layer else _line_in(causes),
        fix=_to_try(exporter, "\n".join(map(str, causes)), letters),
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__


def _layer_in(error: BaseException) -> str:
    """The module whose operation the exporter was at, as the frames of its own functions tell."""
    found = ""
    for frame in _frames(error.__traceback__):
        node, graph = frame.f_locals.get("node"), frame.f_locals.get("graph")
        if isinstance(node, torch.fx.Node):
            stack = node.meta.get("nn_module_stack") or {}
            paths = [str(path) for path, _ in stack.values()]
            found = (paths[-1] if paths else "").removeprefix("L['self'].") or found
        elif isinstance(graph, torch._C.Graph) and (named := re.search(r"operator '([\w:]+)'", str(error))):
            line = re.search(re.escape(named[1]) + r"\(.*scope: (\S+)", str(graph))
            found = line[1].rpartition("::")[2] if line else found
    return found


def _frames(trace: TracebackType | None) -> Iterator[Any]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _line_in(causes: Sequence[BaseException]) -> str:
    """The line of the model's code that torch names."""
    for error in reversed(causes):
        if place := re.search(r'File "([^"]+)", line (\d+), in (\w+)', str(error)):
            return f"{Path(place[1]).name}, line {place[2]}"
    return ""


def _to_try(exporter: str, message: str, letters: Mapping[str, Mapping[int, str]]) -> str:
    """What may help, by what torch complains of."""
    other = next(each for each in EXPORTERS if each != exporter)
    dynamic = sorted({letter for by_axis in letters.values() for letter in by_axis.values()})
    if dynamic and ("onstraints violated" in message or "not all values of" in message.lower()):
        letter = dynamic[0]
        return (
            f"--range {letter}=LOW..HIGH as torch says, a number in place of {letter} (a fixed size), "
            f"or --exporter {other}"
        )
    fixed = ", a number in place of each letter" if dynamic else ""
    return f"--exporter {other}, a higher --opset{fixed}, or a forward without that operation"
