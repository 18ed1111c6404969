"""torch's two ONNX exporters behind one function.

Source: ``torch.onnx.export``, with ``dynamo=True`` (by ``torch.export``) and ``dynamo=False`` (by tracing).
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import inspect
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from glob import escape
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from wnconvert.errors import ArgumentError, LayerError
from wnconvert.layers.kinds.table import ALL
from wnconvert.messages import counted, listed, to_install
from wnconvert.storage.staging import translated
from wnconvert.verbs.models.proof.causes.steady import errors_name_sizes
from wnconvert.verbs.models.proof.functions import (
    EITHER_WAY,
    Exportable,
    caller,
    error_text,
    places_of,
    tensors_at,
)
from wnconvert.verbs.models.proof.report import TimedSteps
from wnconvert.verbs.models.proof.running import evaluating, quiet_torch
from wnconvert.verbs.models.proof.samples import Sample, export_sample
from wnconvert.verbs.models.proof.signatures import Signature
from wnconvert.verbs.modules.convert import folded
from wnconvert.verbs.modules.finding.live import find_live
from wnconvert.verbs.modules.folding.copies import CopyError

__all__ = ["AGES", "EXPORTERS", "Exporter", "export_raw", "folded_copy", "has_dynamo"]


#: An exporter of torch's.
Exporter: TypeAlias = Literal["dynamo", "torchscript"]
#: torch's exporters, and which is which.
AGES: dict[Exporter, str] = {"dynamo": "newer", "torchscript": "older"}
EXPORTERS: tuple[Exporter, ...] = tuple(AGES)

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}  # of the system, not of the model
_PLACES = "pkg.torch.onnx.stack_trace"
#: Where a module keeps the hooks of its forward.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def has_dynamo() -> bool:
    """Whether torch's newer exporter can run here: it needs onnxscript."""
    return importlib.util.find_spec("onnxscript") is not None


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
    other: Exporter | None = None,
    sample: tuple[Sample, Mapping[str, Tensor]] | None = None,
) -> None:
    """Export a model to ONNX with one of torch's exporters: in eval mode, without gradients.

    Before that it is run once, on a ``sample`` with its values, or on ``inputs``, which may take longer.
    ``model`` must be a copy, because its ``forward`` is replaced. ``outputs`` are the names of all outputs.
    With ``external_data`` weights may be written to files beside ``path``. The files do not name any path of
    this machine. Raises ``ArgumentError`` with torch's message if the exporter refuses the model; its fix
    names the ``other`` exporter, if that one is not tried anyway.
    """
    if opset is not None and type(opset) is not int:
        raise ArgumentError(f"opset {opset!r} is not a number", fix="give a number, such as opset=17")
    if exporter == "torchscript" and isinstance(model, ExportedProgram):
        raise ArgumentError(
            "torch's older exporter does not take exported programs",
            fix="choose --exporter dynamo, or export the module itself",
        )
    if exporter == "dynamo" and not has_dynamo():
        raise ArgumentError(
            "torch's newer exporter needs onnxscript, which is not installed",
            fix=f"{to_install('onnxscript')}, or choose --exporter torchscript",
        )
    letters = _letters(signature)
    if isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule):
        places = _tried(model, *(sample or (export_sample(signature), inputs)), exporter)
        _flatten(model, list(inputs), places)
    own = (_for_dynamo if exporter == "dynamo" else _for_torchscript)(model, inputs, letters, signature)
    common: dict[str, Any] = {
        "input_names": [spec.called for spec in signature.inputs],
        "output_names": list(outputs),
        "opset_version": opset,
        "verbose": False,
    }
    try:
        with quiet_torch(), torch.no_grad(), _dispatched_anew():
            if exporter == "dynamo":
                program: Any = torch.onnx.export(**own, **common)
                _forget_places(program.model)
                program.save(str(path), external_data=external_data)
            else:  # this one writes external data if the model is too large without
                torch.onnx.export(**own, **common, f=str(path))
    except (Exception, SystemExit) as error:
        full = next(
            (each for each in _causes(error) if isinstance(each, OSError) and each.errno in _DISK), None
        )
        if full:
            raise translated(full, path) from error
        _check_runs(model, signature, inputs)
        raise _refused(error, other, letters) from error


def _forget_places(model: Any) -> None:
    """Remove the stack traces, with paths of this machine, that onnxscript keeps for each node."""
    from onnxscript import ir

    for graph in (model.graph, *model.functions.values()):
        for node in ir.traversal.RecursiveGraphIterator(graph):
            node.metadata_props.pop(_PLACES, None)


@contextlib.contextmanager
def _dispatched_anew() -> Iterator[None]:
    """Clear the cached kernels of recurrent layers, before and after.

    While it exports, torch.onnx (2.13, in ``torch.export._patches``) exchanges the kernels of LSTM and GRU
    for kernels of dynamic lengths. A kernel cached before would stay in use, and fix the length silently.
    """
    caches = [getattr(op.input, "_dispatch_cache", {}) for op in (torch.ops.aten.lstm, torch.ops.aten.gru)]
    for cache in caches:
        cache.clear()
    try:
        yield
    finally:
        for cache in caches:
            cache.clear()


def _letters(signature: Signature) -> dict[str, dict[int, str]]:
    """The letters of the axes that may change in size, by input."""
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
    dims = {
        letter: torch.export.Dim(letter, min=span.low, max=span.high)
        for letter, span in signature.ranges.items()
        if span.low < span.high
    }
    shapes = tuple({axis: dims[letter] for axis, letter in letters[name].items()} for name in inputs)
    return {"model": model, "args": tuple(inputs.values()), "dynamic_shapes": shapes, "dynamo": True}


def _for_torchscript(
    model: Exportable,
    inputs: Mapping[str, Tensor],
    letters: Mapping[str, Mapping[int, str]],
    signature: Signature,
) -> dict[str, Any]:
    axes = {spec.called: dict(letters[spec.name]) for spec in signature.inputs if letters[spec.name]}
    return {"model": model, "args": tuple(inputs.values()), "dynamic_axes": axes, "dynamo": False}


def _tried(model: nn.Module, sample: Sample, inputs: Mapping[str, Tensor], exporter: str) -> tuple[int, ...]:
    """Run a model on the inputs of a sample; the places of tensors among the leaves of its output.

    Raises ``ArgumentError`` if it fails, and for a forward on which torch's newer exporter crashes the
    process: one that writes to ``.data`` of a parameter, which is exported as ``aten.set_``.
    """
    before = _marks(model)
    with evaluating(model), errors_name_sizes(sample):
        places = places_of(model, inputs)
        after = _marks(model)
        # A write that torch counts as a new version is exported well: max_norm of an embedding.
        written = [
            name
            for name, (version, *mark) in after.items()
            if mark != [*before[name][1:]] and version == before[name][0]
        ]
    if written and exporter == "dynamo":
        raise ArgumentError(
            f"forward writes to .data of parameters, which torch's newer exporter cannot export: "
            f"{listed(written)}",
            fix="choose --exporter torchscript, or change forward so that it computes new tensors",
        )
    return places


def _check_runs(model: Exportable, signature: Signature, inputs: Mapping[str, Tensor]) -> None:
    """Raise ``ArgumentError`` for a module that fails on the inputs of the export, no exporter's fault."""
    if isinstance(model, nn.Module):
        with evaluating(model), errors_name_sizes(export_sample(signature)):
            places_of(model, inputs)


def _marks(model: nn.Module) -> dict[str, tuple[int, int, str]]:
    """The version of each float parameter, its address, and the sum of its numbers."""
    return {
        name: (value._version, value.data_ptr(), repr(value.detach().sum(dtype=torch.float64).item()))
        for name, value in model.named_parameters()
        if value.is_floating_point()
    }


def _flatten(model: nn.Module, names: Sequence[str], places: Sequence[int]) -> None:
    """Replace the forward of a module: it takes the fed inputs by position, and returns a tuple of tensors.

    The instance itself is changed: a module around it would change the names of all parameters. Its hooks
    must see the usual inputs and outputs, so a twin that shares everything else runs them inside.
    """
    function: Any = model.forward
    if any(model.__dict__.get(kept) for kept in _HOOKS):
        function = object.__new__(type(model))
        function.__dict__.update(model.__dict__)
        model.__dict__.update((kept, OrderedDict()) for kept in _HOOKS)
    call = caller(function, model.forward, names)

    def forward(*values: Tensor) -> tuple[Tensor, ...]:
        return tensors_at(call(*values), places)

    # The exporters read the names of inputs here.
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, EITHER_WAY) for name in names]
    )
    model.__dict__["forward"] = forward


def _refused(
    error: BaseException, other: Exporter | None, letters: Mapping[str, Mapping[int, str]]
) -> ArgumentError:
    """The error for a refusal of the exporter: torch's message, the place in the model, what to try."""
    if isinstance(error, ArgumentError):
        return error
    causes = list(_causes(error))
    root = causes[-1]
    layer = next(filter(None, map(_layer_in, causes)), "")
    return ArgumentError(
        f"torch's exporter refused the model: {error_text(root) or type(root).__name__}",
        where=f"layer {layer}" if layer else _line_in(causes),
        fix=_to_try(other, "\n".join(map(str, causes)), letters),
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__


def _layer_in(error: BaseException) -> str:
    """The module whose operation failed, read from the frames of the exporter's functions; or empty."""
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
    """The line of the model's code that torch's message names."""
    for error in reversed(causes):
        if place := re.search(r'File "([^"]+)", line (\d+), in (\w+)', str(error)):
            return f"{Path(place[1]).name}, line {place[2]}"
    return ""


_RANGE_IS_WRONG = ("constraints violated", "not all values of", "not in vr[")


def _to_try(other: Exporter | None, message: str, letters: Mapping[str, Mapping[int, str]]) -> str:
    """Advice, chosen by torch's message."""
    exporter = f"--exporter {other}, " if other else ""
    dynamic = sorted({letter for by_axis in letters.values() for letter in by_axis.values()})
    if dynamic and any(each in message.lower() for each in _RANGE_IS_WRONG):
        letter = dynamic[0]
        return (
            f"give --range {letter}=LOW..HIGH as torch says, or try {exporter}a number in place of {letter}"
        )
    if "2GB" in message or "2GiB" in message or "maximum protobuf size" in message:
        return "give --external-data, which writes the weights to a file beside the model"
    if "egister it as" in message and "buffer" in message:
        return "register the tensors that the module holds with register_buffer, or as Parameters"
    if "onnx_opset_version" in message:
        return "choose another --opset, or leave it out"
    fixed = ", a number in place of each letter" if dynamic else ""
    return f"try {exporter}a higher --opset{fixed}, or a forward without that operation"


def folded_copy(module: Exportable, steps: TimedSteps) -> tuple[Exportable, dict[str, str]]:
    """A folded copy to export, and the kinds of its layers; some models can only be folded in the graph."""
    if isinstance(module, (ExportedProgram, torch.jit.ScriptModule)):
        return module, {}
    with steps("fold", "a copy of the module") as step:
        found, refused = find_live(module, ALL), find_live(module).refused
        layers = {live.layer.name: live.layer.rule.kind for live in found.layers}
        # What is computed in a way that no fold knows is left to the exporter; weight norm is not.
        known = {name for item in refused if not item.in_graph for name in item.names}
        left = [name for item in found.refused for name in item.names if name not in known]
        try:
            copy = folded(module, exclude=map(escape, left), kinds=ALL).to("cpu")
        except CopyError as error:  # its fix is to fold in place, which does not help here
            error.fix = "before the export, remove the attributes that cannot be copied from the module"
            raise
        except LayerError as error:  # its fix names options of a fold, which an export does not have
            error.fix = f"fold before the export, as a checkpoint or with fold_module: {error.fix}"
            raise
        for each in copy.modules():
            each.training = False
        step.detail = f"{counted(len(layers), 'layer')} in a copy"
    return copy, layers
