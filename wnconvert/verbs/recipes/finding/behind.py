"""Norms that fold into the layer before them: which, and why the others stay."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping

from wnconvert.frozen import dataclass
from wnconvert.layers.recipes import RecipeFold
from wnconvert.verbs.recipes.finding.layers import Linear
from wnconvert.verbs.recipes.finding.norms import Normed
from wnconvert.verbs.recipes.tracing.channels import back, channels
from wnconvert.verbs.recipes.tracing.trace import Trace, TracedStep, TracedValue

__all__ = ["FoldedPair", "is_used_again", "left_behind", "pairs_behind", "words_for"]


@dataclass(frozen=True, slots=True)
class FoldedPair:
    """A fold, the layer that takes it, and the norm that goes into it."""

    fold: RecipeFold
    linear: Linear
    norm: Normed


def pairs_behind(
    trace: Trace, linears: Iterable[Linear], norms: Iterable[Normed]
) -> tuple[tuple[FoldedPair, ...], tuple[tuple[Normed, str], ...]]:
    """The norms that fold into the layer before them, and the others, each with the reason.

    A norm folds if its input is the output of one layer, through views, which nobody else reads; if the
    weight and the bias of that layer, and the norm's tensors, are used once in the whole forward; and if it
    computes with its own running statistics.
    """
    ends = {linear.end: linear for linear in linears}
    pairs: list[FoldedPair] = []
    left: list[tuple[Normed, str]] = []
    for norm in norms:
        linear, reason = _layer_before(trace, ends, norm)
        reason = norm.trouble or is_used_again(trace, norm.tensors.values(), norm.steps) or reason
        if linear is None or reason:
            left.append((norm, reason))
        else:
            pairs.append(FoldedPair(_fold(linear, norm), linear, norm))
    return tuple(pairs), tuple(left)


def _fold(linear: Linear, norm: Normed) -> RecipeFold:
    assert linear.bias is not None  # noqa: S101 - a layer without a place for one is refused
    name = f"{linear.weight[: linear.weight.rfind('.') + 1]}bias"
    return RecipeFold(
        "norm behind",
        linear.weight,
        norm.name,
        op=linear.op,
        groups=linear.groups if linear.op == "conv_transpose" else 1,
        eps=norm.eps,
        bias="" if linear.bias == name else linear.bias,
    )


def _layer_before(
    trace: Trace, ends: Mapping[TracedValue, Linear], norm: Normed
) -> tuple[Linear | None, str]:
    """The layer whose output a norm has alone; or None, and the reason."""
    value = norm.input
    alone = True
    moves: list[TracedStep] = []
    while True:
        alone = alone and trace.sole_user(value) is not None
        linear = ends.get(value)
        if linear is not None:
            break
        before, steps = back_one(trace, value)
        if not steps:
            return None, behind_what(trace, value)
        moves[:0] = steps
        value = before
    if not alone:
        return linear, "the output of its layer is used elsewhere too"
    if linear.trouble:
        return linear, linear.trouble
    if linear.bias is None:
        return linear, "its layer has no place for a bias"
    found = channels(linear.end.shape, linear.axis(linear.end), moves, 1)
    outputs = linear.end.shape[linear.axis(linear.end)]
    if found is None or tuple(found) != norm.owners or len(set(found)) != outputs:
        return linear, "its channels are not those of its layer"
    return linear, ""


def back_one(trace: Trace, value: TracedValue) -> tuple[TracedValue, tuple[TracedStep, ...]]:
    """The value that one movement made into ``value``; itself, and no steps, where none did."""
    before, steps = back(trace, value)
    return (steps[-1].inputs[0], steps[-1:]) if steps else (before, ())


def is_used_again(trace: Trace, tensors: Iterable[TracedValue], steps: Container[TracedStep]) -> str:
    """Why tensors are not those of these steps alone; empty if they are."""
    for value in tensors:
        if len(trace.stored[value]) > 1:
            return f"{trace.stored[value][0]} is tied to {trace.stored[value][1]}"
        readers = trace.readers.get(value, ())
        times = len([step for step in readers if step not in steps])
        if times or value in trace.shown:
            return f"used {times + 1} times"
    return ""


_BEHIND = {
    "an addition": "add add_ sub sub_ sum",
    "a product": "mul mul_ div div_",
    "a concatenation": "cat stack",
    "a pooling": "avg_pool2d max_pool2d_with_indices mean adaptive_avg_pool2d _adaptive_avg_pool2d "
    "avg_pool1d avg_pool3d max_pool3d_with_indices max_pool1d amax",
    "an activation": "relu relu_ hardtanh hardtanh_ silu silu_ gelu gelu_ sigmoid sigmoid_ hardswish "
    "hardswish_ hardsigmoid leaky_relu leaky_relu_ elu elu_ celu selu tanh tanh_ softplus mish mish_ "
    "_prelu_kernel clamp clamp_ clamp_min softmax _softmax",
    "another norm": "native_batch_norm native_layer_norm native_group_norm",
    "a resize": "upsample_nearest2d upsample_bilinear2d upsample_nearest1d upsample_bicubic2d "
    "constant_pad_nd reflection_pad2d reflection_pad1d replication_pad2d",
    "a part of a value": "split chunk slice select split_with_sizes unbind index index_select",
    "a change of dtype": "_to_copy",
    "a product that no weight is known of": "convolution addmm mm bmm baddbmm linear",
}
_WORDS = {name: words for words, names in _BEHIND.items() for name in names.split()}


def words_for(step: TracedStep) -> str:
    """What a step is, in words."""
    return _WORDS.get(step.name, step.name)


def behind_what(trace: Trace, value: TracedValue) -> str:
    """Where a value comes from, in words."""
    if value in trace.given:
        return "it stands before all layers"
    step = trace.makers.get(value)
    if step is None:
        return "behind what is no step of the forward"
    return f"behind {words_for(step)}"


def left_behind(reasons: Iterable[tuple[Normed, str]]) -> Iterator[tuple[str, str]]:
    """The norms that stay, each once: its name and the reason."""
    seen: dict[str, str] = {}
    for norm, reason in reasons:
        seen.setdefault(norm.name, reason)
    yield from seen.items()
