"""Norms that fold into what follows them: whole, or their affine alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from wnconvert.frozen import dataclass
from wnconvert.layers.recipes import RecipeFold
from wnconvert.verbs.recipes.finding.behind import is_used_again, words_for
from wnconvert.verbs.recipes.finding.layers import Linear
from wnconvert.verbs.recipes.finding.norms import Normed, module_of
from wnconvert.verbs.recipes.tracing.channels import back, channels, is_movement
from wnconvert.verbs.recipes.tracing.trace import Trace, TracedStep, TracedValue

__all__ = ["Affine", "affines_in", "folds_before", "whole_folds_before"]


@dataclass(frozen=True, slots=True)
class Affine:
    """The affine at the end of a norm: γ, β, and what it makes, with its channels along ``axis``.

    ``owners`` are the elements of γ that the channels have.
    """

    name: str
    steps: tuple[TracedStep, ...]
    output: TracedValue
    axis: int
    tensors: Mapping[str, TracedValue]
    owners: tuple[int, ...]


# -- affines


def affines_in(trace: Trace) -> Iterator[Affine]:
    """The affines of a trace: of torch's norms, and products with a module's ``weight``."""
    for step in trace.steps:
        if not trace.is_live(step):
            continue
        if step.name in ("native_layer_norm", "_fused_rms_norm"):
            yield from _of_norm(trace, step, len(step.outputs[0].shape) - 1)
        elif step.name == "native_group_norm" or (
            step.name == "native_batch_norm" and step.argument("running_mean") is None
        ):
            yield from _of_norm(trace, step, 1)
        elif step.name in ("mul", "mul_"):
            yield from _of_product(trace, step)


def _of_norm(trace: Trace, step: TracedStep, axis: int) -> Iterator[Affine]:
    """The affine of a norm that torch has as one operator."""
    found = {"gamma": step.argument("weight"), "beta": step.argument("bias")}
    values = {role: value for role, value in found.items() if value is not None}
    yield from _affine(trace, (step,), step.outputs[0], axis, values)


def _of_product(trace: Trace, step: TracedStep) -> Iterator[Affine]:
    """The affine of a norm that a class computes: a product with its weight, then a sum with its bias."""
    gamma = _stored_operand(trace, step, "weight")
    if gamma is None:
        return
    axis = _axis(gamma, step.outputs[0])
    if axis is None:
        return
    then = trace.sole_user(step.outputs[0])
    beta = _stored_operand(trace, then, "bias") if then and then.name in ("add", "add_") else None
    if then is not None and beta is not None and _axis(beta, then.outputs[0]) == axis:
        yield from _affine(trace, (step, then), then.outputs[0], axis, {"gamma": gamma, "beta": beta})
    else:
        yield from _affine(trace, (step,), step.outputs[0], axis, {"gamma": gamma})


def _stored_operand(trace: Trace, step: TracedStep, name: str) -> TracedValue | None:
    """The operand that is a stored tensor of this last name, in some view."""
    found = [value for value in step.inputs if value in trace.sources]
    if len(found) != 1 or len(step.inputs) != 2 or step.argument("alpha", 1) != 1:
        return None
    names = trace.stored.get(back(trace, found[0])[0], ("",))
    return found[0] if names[0].rpartition(".")[2] == name else None


def _axis(operand: TracedValue, made: TracedValue) -> int | None:
    """The one axis along which an operand has elements, and all that there are."""
    shape = (1,) * (len(made.shape) - len(operand.shape)) + operand.shape
    axes = [axis for axis, size in enumerate(shape) if size != 1]
    return axes[0] if len(axes) == 1 and shape[axes[0]] == made.shape[axes[0]] else None


def _affine(
    trace: Trace,
    steps: tuple[TracedStep, ...],
    output: TracedValue,
    axis: int,
    values: Mapping[str, TracedValue],
) -> Iterator[Affine]:
    tensors: dict[str, TracedValue] = {}
    owners: list[list[int] | None] = []
    for role, value in values.items():
        stored, moves = back(trace, value, repeats=True)
        if stored not in trace.stored or len(stored.shape) != 1:
            return
        tensors[role] = stored
        longest = max(range(len(value.shape)), key=lambda each: value.shape[each])
        owners.append(channels(stored.shape, 0, moves, longest))
    name, named = module_of(trace, tensors)
    if "gamma" in tensors and named and owners[0] is not None and owners.count(owners[0]) == len(owners):
        yield Affine(name, steps, output, axis, tensors, tuple(owners[0]))


# -- what follows


def folds_before(
    trace: Trace, linears: Iterable[Linear], affines: Iterable[Affine], taken: Iterable[str]
) -> tuple[tuple[RecipeFold, ...], dict[str, str]]:
    """The folds of affines into every layer that follows, and the affines that stay, with the reasons.

    ``taken`` are the names of weights that take a norm already.
    """
    by_step = {linear.step: linear for linear in linears}
    busy = set(taken)
    folds: list[RecipeFold] = []
    left: dict[str, str] = {}
    for affine in affines:
        followers, reason = _followers(trace, by_step, affine)
        reason = is_used_again(trace, affine.tensors.values(), affine.steps) or reason
        reason = reason or next(
            (f"{each.weight} takes a norm" for each in followers if each.weight in busy), ""
        )
        if reason:
            left.setdefault(affine.name, reason)
            continue
        busy |= {each.weight for each in followers}
        folds += [_fold("affine before", each, affine.name) for each in followers]
    return tuple(folds), left


def whole_folds_before(
    trace: Trace, linears: Iterable[Linear], norms: Iterable[Normed], taken: Iterable[str]
) -> Iterator[RecipeFold]:
    """The norms with running statistics that fold into the one layer behind them."""
    by_step = {linear.step: linear for linear in linears}
    busy = set(taken)
    for norm in norms:
        affine = Affine(norm.name, norm.steps, norm.output, 1, norm.tensors, norm.owners)
        followers, reason = _followers(trace, by_step, affine)
        reason = norm.trouble or is_used_again(trace, norm.tensors.values(), norm.steps) or reason
        if not reason and len(followers) == 1 and followers[0].weight not in busy:
            busy.add(followers[0].weight)
            yield _fold("norm before", followers[0], norm.name, norm.eps)


def _fold(kind: str, linear: Linear, norm: str, eps: float | None = None) -> RecipeFold:
    own = f"{linear.weight[: linear.weight.rfind('.') + 1]}bias"
    return RecipeFold(
        "norm before" if kind == "norm before" else "affine before",
        linear.weight,
        norm,
        op=linear.op,
        groups=linear.groups if linear.op == "conv" else 1,
        eps=eps,
        bias="" if linear.bias in (None, own) else linear.bias,
    )


def _followers(
    trace: Trace, by_step: Mapping[TracedStep, Linear], affine: Affine
) -> tuple[tuple[Linear, ...], str]:
    """Every layer that reads what an affine makes; and the reason if anything else does, or one refuses."""
    found: list[Linear] = []
    todo: list[tuple[TracedValue, tuple[TracedStep, ...]]] = [(affine.output, ())]
    while todo:
        value, moves = todo.pop(0)
        if value in trace.returned:
            return (), "the model returns its output"
        for user in trace.users.get(value, ()):
            if user in by_step:
                reason = _against(by_step[user], value, moves, affine)
                if reason:
                    return (), reason
                found.append(by_step[user])
            elif is_movement(user):
                todo.append((user.outputs[0], (*moves, user)))
            else:
                return (), f"its output goes into {words_for(user)}"
    return tuple(found), "" if found else "nothing reads its output"


def _against(linear: Linear, value: TracedValue, moves: tuple[TracedStep, ...], affine: Affine) -> str:
    """Why a layer cannot take an affine before it."""
    shifted = "beta" in affine.tensors or "mean" in affine.tensors
    reasons = (
        (linear.input != value, "its output is a weight"),
        (bool(linear.trouble), linear.trouble),
        (linear.op == "conv_transpose", "before a transposed convolution"),
        (linear.padded and shifted, "its layer pads with zeros, which the norm does not see"),
        (linear.bias is None and shifted, "its layer has no place for a bias"),
    )
    if reason := next((words for holds, words in reasons if holds), ""):
        return reason
    places = channels(affine.output.shape, affine.axis, moves, linear.axis(value), affine.owners)
    fits = places == list(range(linear.inputs))
    return "" if fits else "its channels are not those of its layer"
