"""How a module reads its weight: torch's own classes by their functions, any other by running it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from wnconvert.frozen import dataclass
from wnconvert.layers.rules import AffineBefore, Neighbour, NormBehind
from wnconvert.tensors.tree import Shape
from wnconvert.verbs.modules.finding.computed import HELD
from wnconvert.verbs.modules.finding.live import Live
from wnconvert.verbs.modules.folding.trials import bare, drawn, near, on_axis, ran

__all__ = ["by_channel", "class_below", "is_torchs_own", "layer_with", "sample_inputs", "why_not_layer"]


#: torch's classes of layers; a subclass computes alike if it has their functions.
_OWN = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
#: Sizes of an input along each axis behind the channels: the first at which a layer runs is taken.
_SIZES = (3, 4, 7, 12, 33, 130)


def class_below(module: nn.Module) -> type[nn.Module]:
    """The class of a module, below the one that torch makes for its parametrizations."""
    cls = type(module)
    return cls.__bases__[0] if HELD in module._modules else cls


def is_torchs_own(module: nn.Module) -> bool:
    """Whether a module computes as one of torch's classes does.

    >>> is_torchs_own(nn.Conv1d(1, 1, 1)), is_torchs_own(nn.ReLU())
    (True, False)
    """
    cls = class_below(module)
    base = next((each for each in _OWN if issubclass(cls, each)), None)
    if base is None or "forward" in vars(module):
        return False
    names = ("forward", "_conv_forward", "_output_padding", "__call__")
    return all(getattr(cls, name, None) is getattr(base, name, None) for name in names)


def why_not_layer(live: Live, bias: str, plain: nn.Module | None) -> str:
    """Why a norm cannot go into a layer as its rule says, or ``""``.

    ``plain`` is what the layer becomes, where that is another class.
    """
    operation, module = live.layer.rule.neighbour, plain or live.module
    assert operation is not None  # noqa: S101 - what has no norm is not asked
    if plain is not None or is_torchs_own(module):
        return _why_not_torchs(module, operation)
    return _why_not_other(live, operation, bias)


def _why_not_torchs(module: nn.Module, operation: Neighbour) -> str:
    groups = module.groups if isinstance(module, _ConvNd) else 1
    assert isinstance(groups, int)  # noqa: S101 - torch's
    behind, transposed = isinstance(operation, NormBehind), isinstance(module, _ConvTransposeNd)
    dim = int(behind == transposed)
    cut = groups if dim else 1
    if (operation.dim, operation.groups) != (dim, cut):
        what = "outputs" if behind else "inputs"
        said = f"the recipe has axis {operation.dim}" + (
            f" in {operation.groups} groups" if operation.dim else ""
        )
        return (
            f"the {what} of a {type(module).__name__} are its axis {dim}"
            + (f" in {cut} groups" if dim else "")
            + f", and {said}"
        )
    shifts = not behind and not (isinstance(operation, AffineBefore) and not operation.shift)
    if shifts and transposed:
        return "what is added before a transposed convolution is not the same everywhere behind it"
    if shifts and isinstance(module, _ConvNd) and _pads(module):
        return "it pads its input with zeros, which the norm before it does not see"
    return ""


def _pads(module: _ConvNd) -> bool:
    padding = module.padding
    return module.padding_mode == "zeros" and (
        padding == "same" or (not isinstance(padding, str) and any(padding))
    )


# -- by running


@dataclass(frozen=True, slots=True)
class _Axes:
    """Where the channels of an input and of an output are."""

    inputs: int
    outputs: int
    axis: int


def layer_with(module: nn.Module, param: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A bare copy of a layer with a plain weight; ``tensors`` are its own by name, the weight among them."""
    made = bare(module, tensors)
    vars(made).pop(param, None)
    for home in (made._parameters, made._buffers):
        home.pop(param, None)
    if HELD in made._modules:
        del made._modules[HELD]
        object.__setattr__(made, "__class__", class_below(module))
    made._parameters |= {name: value for name, value in tensors.items() if name not in made._buffers}  # type: ignore[misc]
    return made


def sample_inputs(shape: Shape, channels: int, seed: int = 5) -> Iterator[Tensor]:
    """Inputs of so many channels for a weight of a shape: images on axis 1, vectors on the last axis."""
    if len(shape) == 2:
        yield drawn(3 * channels, seed).reshape(3, channels)
        yield drawn(6 * channels, seed).reshape(2, 3, channels)
    for size in _SIZES if len(shape) > 2 else ():
        inner = [size] * (len(shape) - 2)
        yield drawn(2 * channels * size ** len(inner), seed).reshape(2, channels, *inner)


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """Drawn numbers for a layer: its weight, its bias, a factor and a shift for each channel of the norm."""

    w: Tensor
    b: Tensor
    a: Tensor
    s: Tensor


def _why_not_other(live: Live, operation: Neighbour, bias: str) -> str:
    """The same of a class that is not torch's: it is run before and after a fold of drawn numbers."""
    module, shape, name = live.module, live.layer.original.shape, bias.rpartition(".")[2]
    behind, adds = isinstance(operation, NormBehind), bool(name)
    if adds and not behind and operation.dim == 0 and len(shape) > 2:
        return "what is added before a transposed convolution is not the same everywhere behind it"
    axes = _axes(module, operation, shape)
    channels = axes.outputs if behind else axes.inputs
    numbers = _Drawn(
        drawn(torch.Size(shape).numel(), 21).reshape(shape),
        drawn(axes.outputs, 22),
        drawn(channels, 23),
        drawn(channels, 24) * adds,
    )
    own = {**module._parameters, **module._buffers}
    has_bias = own.get(name or "bias") is not None

    def layer(w: Tensor, b: Tensor) -> nn.Module:
        return layer_with(
            module, live.param, {live.param: w} | ({name or "bias": b} if adds or has_bias else {})
        )

    before = numbers.b if has_bias else torch.zeros_like(numbers.b)
    scaled = numbers.w * by_channel(numbers.a, operation, shape)
    plain = layer(numbers.w, before)
    for x in sample_inputs(shape, axes.inputs):
        a, s, b = (on_axis(each, axes.axis, x.dim()) for each in (numbers.a, numbers.s, before))
        found = ran(plain, x)
        if not isinstance(found, Tensor):
            continue
        if behind:
            expected: object = (found - b) * a + s
            result = ran(layer(scaled, numbers.s), x)
        else:
            expected = ran(plain, x * a + s)
            added = numbers.w * by_channel(numbers.s, operation, shape)
            added = added.sum(0) if operation.dim == 0 else added.flatten(1).sum(1)
            result = ran(layer(scaled, before + added), x)
        if isinstance(expected, Tensor) and near(result, expected, expected.abs() + found.abs().max()):
            return ""
        return f"a {type(module).__name__} computes more than its weight times its input, plus its bias"
    return ""  # only its owner can run it: the recipe was proven there


def _axes(module: nn.Module, operation: Neighbour, shape: Shape) -> _Axes:
    behind = isinstance(operation, NormBehind)
    out_first = (operation.dim == 0) == behind
    groups = getattr(module, "groups", 1)
    groups = groups if isinstance(groups, int) else 1
    outputs, inputs = (shape[0], shape[1] * groups) if out_first else (shape[1] * groups, shape[0])
    return _Axes(inputs, outputs, 1 if len(shape) > 2 else -1)


def by_channel(values: Tensor, operation: Neighbour, shape: Shape) -> Tensor:
    """The number of each element's channel, to be multiplied with a weight."""
    inner = [1] * (len(shape) - 2)
    if operation.dim == 0:
        return values.reshape(-1, *[1] * (len(shape) - 1))
    of_groups = values.reshape(operation.groups, shape[1])
    return of_groups.repeat_interleave(shape[0] // operation.groups, 0).reshape(*shape[:2], *inner)
