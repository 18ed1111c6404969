"""The norms of a forward: those with running statistics, whatever class or function computes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from wnconvert.frozen import dataclass
from wnconvert.verbs.recipes.finding.frozen import frozen_in
from wnconvert.verbs.recipes.tracing.channels import back, channels
from wnconvert.verbs.recipes.tracing.trace import Trace, TracedStep, TracedValue

__all__ = ["ROLES", "Normed", "module_of", "norms_in"]


#: The names that the tensors of a norm have in its module, by their roles.
ROLES = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "variance": "running_var"}
_OTHER_NAMES = "its tensors have other names than those of torch's norms"
_BATCH_NORMS = frozenset(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
    "_batch_norm_with_update _batch_norm_no_update cudnn_batch_norm miopen_batch_norm batch_norm".split()
)
_PLACES = {
    "gamma": ("weight",),
    "beta": ("bias",),
    "mean": ("running_mean",),
    "variance": ("running_var", "running_variance"),
}


@dataclass(frozen=True, slots=True)
class Normed:
    """One use of a norm: its module's name, its input and output, and its tensors, by their roles.

    ``owners`` are the channels of its statistics, one for each channel of its input, which lie along axis 1.
    ``trouble`` says why it is no fixed function, where it is none.
    """

    name: str
    steps: tuple[TracedStep, ...]
    input: TracedValue
    output: TracedValue
    eps: float
    tensors: Mapping[str, TracedValue]
    owners: tuple[int, ...]
    trouble: str = ""


def norms_in(trace: Trace) -> tuple[Normed, ...]:
    """The uses of norms in a trace, in order."""
    return tuple(_found(trace))


def _found(trace: Trace) -> Iterator[Normed]:
    for step in trace.steps:
        if step.name in _BATCH_NORMS and trace.is_live(step):
            yield _of_operator(trace, step)
    for frozen in frozen_in(trace):
        product, addition = frozen.steps
        name, named = module_of(trace, frozen.tensors)
        given = next(value for value in product.inputs if value not in trace.sources)
        places = tuple(range(product.outputs[0].shape[1]))
        trouble = "" if named else _OTHER_NAMES
        steps, output = frozen.steps, addition.outputs[0]
        yield Normed(name, steps, given, output, frozen.eps, frozen.tensors, places, trouble)


def _of_operator(trace: Trace, step: TracedStep) -> Normed:
    """What torch's own operator of a batch norm computes."""
    given = step.argument("input")
    eps = step.argument("eps", step.argument("epsilon"))
    tensors: dict[str, TracedValue] = {}
    owners: list[list[int] | None] = []
    trouble = ""
    for role, places in _PLACES.items():
        value = next((found for place in places if (found := step.argument(place)) is not None), None)
        if value is None:
            continue
        stored, moves = back(trace, value, repeats=True)
        if stored not in trace.stored:
            trouble = trouble or (
                f"its {_WORDS[role]} comes from an input"
                if value not in trace.sources
                else f"its {_WORDS[role]} is computed"
            )
            continue
        tensors[role] = stored
        owners.append(channels(stored.shape, 0, moves, 0) if len(stored.shape) == 1 else None)
    if step.argument("training") or "variance" not in tensors or "mean" not in tensors:
        trouble = trouble or "it uses the batch"
    if not trouble and (None in owners or any(each != owners[0] for each in owners)):
        trouble = "its tensors are not one number a channel"
    name, named = module_of(trace, tensors)
    if not named and not trouble:
        trouble = _OTHER_NAMES
    first = owners[0] if owners else None
    return Normed(name, (step,), given, step.outputs[0], eps, tensors, tuple(first or ()), trouble)


_WORDS = {"gamma": "weight", "beta": "bias", "mean": "mean", "variance": "variance"}


def module_of(trace: Trace, tensors: Mapping[str, TracedValue]) -> tuple[str, bool]:
    """The module that holds the tensors of a norm, and whether they have the names that torch gives them."""
    names = {role: trace.stored[value][0] for role, value in tensors.items()}
    if not names:
        return "", False
    owners = {name.rpartition(".")[0] for name in names.values()}
    fits = all(name.rpartition(".")[2] == ROLES[role] for role, name in names.items())
    first = next(iter(names.values())).rpartition(".")[0]
    return first, fits and len(owners) == 1 and first != ""
