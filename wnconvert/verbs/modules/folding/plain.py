"""What a layer whose class computes its weight becomes: torch's plain class, with the same padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as torch has it
from torch import Tensor, nn

from wnconvert.frozen import dataclass
from wnconvert.layers.rules import Equalized, NormBehind, Operation, Rule, Standardize, Unit
from wnconvert.layers.schemes import Refused
from wnconvert.tensors.tree import Shape
from wnconvert.verbs.modules.finding.live import Live
from wnconvert.verbs.modules.folding.layers import class_below, layer_with, sample_inputs
from wnconvert.verbs.modules.folding.trials import drawn, near, on_axis, ran
from wnconvert.verbs.modules.selection import raise_refused
from wnconvert.verbs.modules.undo import become

__all__ = ["PlainEdit", "SameConv1d", "SameConv2d", "SameConv3d", "plain_edits", "put_plain"]


class SameConv1d(nn.Conv1d):
    """A convolution that pads for an output of ⌈size/stride⌉, as TensorFlow's "same" does."""

    def forward(self, x: Tensor) -> Tensor:
        """Pad by the size of the input, then convolve."""
        out: Tensor = self._conv_forward(_padded(x, self), self.weight, self.bias)
        return out


class SameConv2d(nn.Conv2d):
    """``SameConv1d`` of images."""

    def forward(self, x: Tensor) -> Tensor:
        """Pad by the size of the input, then convolve."""
        out: Tensor = self._conv_forward(_padded(x, self), self.weight, self.bias)
        return out


class SameConv3d(nn.Conv3d):
    """``SameConv1d`` of volumes."""

    def forward(self, x: Tensor) -> Tensor:
        """Pad by the size of the input, then convolve."""
        out: Tensor = self._conv_forward(_padded(x, self), self.weight, self.bias)
        return out


def _padded(x: Tensor, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Tensor:
    pads: list[int] = []
    settings = zip(x.shape[2:], conv.kernel_size, conv.stride, conv.dilation, strict=True)
    for size, kernel, stride, dilation in reversed(list(settings)):
        pad = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        pads += [pad // 2, pad - pad // 2]
    return F.pad(x, pads)


_CONVS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_TRANSPOSED = {3: nn.ConvTranspose1d, 4: nn.ConvTranspose2d, 5: nn.ConvTranspose3d}
_SAME = {3: SameConv1d, 4: SameConv2d, 5: SameConv3d}
#: How many sizes of inputs are tried: an odd and an even one.
_TRIED = 2


@dataclass(frozen=True, slots=True, eq=False)
class PlainEdit:
    """A layer that becomes ``like`` in class and settings; its tensors ``gone`` go away."""

    live: Live
    like: nn.Module
    gone: tuple[str, ...]


def plain_edits(chosen: Iterable[Live]) -> tuple[PlainEdit, ...]:
    """What the layers whose class computes their weight become.

    Raises ``LayerError`` for those of which no plain class computes the same.
    """
    made: list[PlainEdit] = []
    refused: list[Refused] = []
    for live in chosen:
        if not any(map(_is_own, live.layer.rule.operations)):
            continue
        parts = live.layer.parts
        gone = tuple(parts[role].name.rpartition(".")[2] for role in ("gain", "shift") if role in parts)
        like = next((each for each in _candidates(live) if _computes_alike(live, each)), None)
        if like is None:
            name = class_below(live.module).__name__
            reason = f"no plain layer with the weight of the recipe computes what a {name} does"
            refused.append(Refused(live.layer.name, reason))
        else:
            made.append(PlainEdit(live, like, gone))
    raise_refused(refused, "folded")
    return tuple(made)


def put_plain(edits: Iterable[PlainEdit]) -> None:
    """Make layers plain, which have their folded weights; hooks and modes stay."""
    known = vars(nn.Module()).keys()
    for edit in edits:
        module = edit.live.module
        for home in (module._parameters, module._buffers):
            for name in edit.gone:
                home.pop(name, None)
        for name in [name for name in vars(module) if name not in known]:
            del module.__dict__[name]
        vars(module).update(_settings(edit.like))
        module._parameters.setdefault("bias", None)
        become(module, type(edit.like))


def _is_own(operation: Operation) -> bool:
    """Whether a class computes it of its own weight."""
    return isinstance(operation, (Standardize, Unit, Equalized))


def _settings(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are not those of every module."""
    known = vars(nn.Module()).keys()
    return {name: value for name, value in vars(module).items() if name not in known}


def _candidates(live: Live) -> Iterator[nn.Module]:
    """Layers, without numbers, that may compute the same with the folded weight."""
    module, shape = live.module, live.layer.original.shape
    if len(shape) == 2:
        yield nn.Linear(shape[1], shape[0], device="meta")
        return
    cls = class_below(module)
    operation, given = live.layer.rule.neighbour, _given(module)
    by_norm = operation is not None and (operation.dim == 1) == isinstance(operation, NormBehind)
    if by_norm or any(issubclass(cls, each) for each in _TRANSPOSED.values()):
        made = _built(_TRANSPOSED, shape[0], shape[1] * given["groups"], shape, given)
        yield from filter(None, (made,))
        return
    given.pop("output_padding", None)
    for table in (_CONVS, _SAME):
        settings = given if table is _CONVS else {**given, "padding": 0}
        yield from filter(None, (_built(table, shape[1] * given["groups"], shape[0], shape, settings),))


def _given(module: nn.Module) -> dict[str, Any]:
    """The settings of a convolution as a module has them."""
    names = ("stride", "padding", "dilation", "groups", "padding_mode", "output_padding")
    found = {name: getattr(module, name) for name in names if hasattr(module, name)}
    return {"groups": 1, **found}


def _built(
    table: Mapping[int, Any], inputs: int, outputs: int, shape: Shape, given: Mapping[str, Any]
) -> nn.Module | None:
    """A layer of torch's with settings that may be no settings of torch's at all."""
    try:
        made: nn.Module = table[len(shape)](inputs, outputs, tuple(shape[2:]), device="meta", **given)
    except (KeyError, TypeError, ValueError, RuntimeError):
        return None
    return made


def _computes_alike(live: Live, like: nn.Module) -> bool:
    """Whether a layer computes with the folded weight what the module does with its own, told by running."""
    module, shape = live.module, live.layer.original.shape
    w = drawn(torch.Size(shape).numel(), 31).reshape(shape)
    given = {
        role: drawn(value.numel(), 32).reshape(value.shape)
        for role, value in live.tensors.items()
        if role in ("gain", "shift")
    }
    own = {live.layer.parts[role].name.rpartition(".")[2]: value for role, value in given.items()}
    bias = {} if module._parameters.get("bias") is None else {"bias": drawn(_outputs(like), 33)}
    computes = layer_with(module, live.param, {live.param: w, **own, **bias})
    plain = layer_with(like, "weight", {"weight": _weight(live.layer.rule, w, given), **bias})
    if not bias:
        plain._parameters["bias"] = None
    tried = 0
    for x in sample_inputs(shape, _inputs(like)):
        expected, found = ran(computes, x), ran(plain, x)
        if not isinstance(expected, Tensor):
            continue
        if not near(found, expected, expected.abs().amax() + expected.abs()):
            return False
        tried += 1
        if tried == _TRIED:
            break
    return tried > 0


def _inputs(like: Any) -> int:
    return int(like.in_features if isinstance(like, nn.Linear) else like.in_channels)


def _outputs(like: Any) -> int:
    return int(like.out_features if isinstance(like, nn.Linear) else like.out_channels)


def _weight(rule: Rule, w: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """What the class should make of a weight, by torch's plain arithmetic; ``given`` are its γ and β."""
    for operation in rule.operations:
        if isinstance(operation, Standardize):
            w = _standardized(operation, w, given)
        elif isinstance(operation, Unit):
            axes = [axis for axis in range(w.dim()) if axis != operation.dim]
            eps = operation.guard.eps if operation.guard else 0.0
            w = float(operation.scale) * w / w.square().sum(axes, keepdim=True).sqrt().clamp_min(eps)
        elif isinstance(operation, Equalized):
            w = operation.scale * w
    return w


def _standardized(operation: Standardize, w: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    axes = [axis for axis in range(w.dim()) if axis != operation.dim]
    mean = w.mean(axes, keepdim=True)
    variance = w.var(axes, keepdim=True, unbiased=operation.std == "unbiased")
    if operation.eps_at == "var":
        divisor = (variance + operation.eps).sqrt()
    elif operation.eps_at == "std":
        divisor = variance.sqrt() + operation.eps
    else:
        divisor = (variance * operation.fan).clamp_min(operation.eps).sqrt()
    w = (w - mean) * operation.scale / divisor
    if "gain" in given:
        w = w * on_axis(given["gain"].reshape(-1), operation.dim, w.dim())
    if "shift" in given:
        w = w + on_axis(given["shift"].reshape(-1), operation.dim, w.dim())
    return w
