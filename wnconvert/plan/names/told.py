"""What kernels are, by the names of modules in flax, and by the sizes of biases in torch."""

from __future__ import annotations

from collections.abc import Mapping

from wnconvert.layers.schemes import Layer
from wnconvert.plan.names.kernels import Framework, KernelKind
from wnconvert.plan.names.places import Place
from wnconvert.tensors.tree import Shape

__all__ = ["may_be_other", "misfit", "told"]


#: What frameworks call kernels.
_KERNELS: Mapping[Framework, tuple[str, ...]] = {
    "torch": ("weight",),
    "flax": ("kernel", "embedding"),
    "nnx": ("kernel", "embedding"),
    "mlx": ("weight",),
}
_MODULES: Mapping[str, KernelKind] = {"Conv": "convolution", "ConvTranspose": "transposed"}
#: How the names begin that flax gives to the modules of ``nn.scan`` and ``nn.vmap``, which stack kernels.
_LIFTS = ("Scan", "Vmap")


def told(
    place: Place, shape: Shape, bias: int | None, pair: Layer | None, source: Framework
) -> KernelKind | str:
    """What a tensor of two axes or more is, or why that is not told; ``bias`` is the size of its bias."""
    if place.called not in _KERNELS[source]:
        return f"{place.called} is no name of a kernel"
    if len(shape) == 2:
        return _told_of_matrix(place, shape, bias, pair)
    if place.called == "kernel":
        return _told_by_flax(place, shape, bias)
    if source == "mlx":
        return "it may be a convolution, or a transposed one: MLX has the outputs first in both"
    return _told_by_bias(shape, bias)


def _told_of_matrix(place: Place, shape: Shape, bias: int | None, pair: Layer | None) -> KernelKind | str:
    if place.called == "embedding":
        return "embedding"
    if place.called == "kernel" or pair is not None or bias == shape[0]:
        return "linear"
    return "it may be a linear layer without a bias, or an embedding"


def _told_by_flax(place: Place, shape: Shape, bias: int | None) -> KernelKind | str:
    module = place.owner.rpartition(".")[2]
    begin, _, number = module.rpartition("_")
    kind = _MODULES.get(begin) if number.isdigit() else None
    if kind is None:
        return "nothing tells what it is, as the names Conv_N and ConvTranspose_N of flax.linen do"
    if bias is None and any(part.startswith(_LIFTS) for part in place.owner.split(".")):
        return "layers may be stacked in it"
    if kind == "convolution":
        return kind
    given, turned = shape[-1], shape[-2]
    if given == turned or bias not in (given, turned):
        return "nothing tells whether it was made with transpose_kernel"
    return "transposed" if bias == given else "transpose-kernel"


def _told_by_bias(shape: Shape, bias: int | None) -> KernelKind | str:
    """torch has (out, in / groups, …), and of a transposed convolution (in, out / groups, …)."""
    if bias is None:
        return "it has no bias, whose size would tell a convolution from a transposed one"
    if bias not in shape[:2]:
        return (
            "its bias fits neither of its first axes: a transposed convolution in groups has no layout here"
        )
    if bias == shape[0] and shape[1] and shape[0] % shape[1] == 0:  # one in groups has (in, out / groups, …)
        return "it may be a convolution, or a transposed one: its bias fits both"
    return "convolution" if bias == shape[0] else "transposed"


def misfit(kind: KernelKind, in_torch: Shape, bias: int | None) -> str:
    """Why a kernel of a kind cannot be taken elsewhere, or nothing."""
    if kind in ("linear", "convolution") and bias is not None and bias != in_torch[0]:
        return f"it would be a {kind} layer of {in_torch[0]} outputs, and its bias has {bias}"
    if kind in ("transposed", "transpose-kernel") and bias is not None and bias != in_torch[1]:
        return f"a transposed convolution in groups: a bias of {bias}, {in_torch[1]} outputs in a group"
    return ""


def may_be_other(kind: KernelKind, shape: Shape, bias: int | None) -> bool:
    """Whether another module of torch has a weight of this shape, which nothing would tell.

    ``nn.Bilinear`` has (out, in, in) and the bias of a convolution, transformers' ``Conv1D`` (in, out).

    >>> may_be_other("convolution", (4, 5, 6), 4), may_be_other("linear", (4, 5), 4)
    (True, False)
    """
    if kind == "linear":
        return bias is None or shape[0] == shape[1]
    return kind == "convolution" and len(shape) == 3
