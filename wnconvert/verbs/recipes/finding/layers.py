"""The linear layers of a forward: what each convolution and product is handed, and whose tensors that is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from wnconvert.frozen import dataclass
from wnconvert.layers.recipes import Op
from wnconvert.verbs.recipes.tracing.channels import back, channels, is_movement
from wnconvert.verbs.recipes.tracing.trace import Trace, TracedStep, TracedValue

__all__ = ["PARAMETRIZED", "Linear", "Weights", "is_parametrized", "linears_in"]


@dataclass(frozen=True, slots=True)
class Linear:
    """A step that multiplies an input by a weight, along an axis of channels.

    ``handed`` is the value that it is given as its weight, ``weight`` the name of the tensor that the module
    has for it: stored, or computed in a way that is known (``computed``). ``bias`` is the name of its bias,
    stored or to be made; None where the module has no place for one. ``end`` is the value behind the bias.
    ``place`` counts the steps of this kind in a forward. A weight that is computed in a way that nobody knows
    yet has ``base``, the stored tensor that it may be computed of, and ``made``, what is computed.
    """

    place: int
    step: TracedStep
    op: Op
    groups: int
    handed: TracedValue
    weight: str
    shape: tuple[int, ...]
    computed: bool
    bias: str | None
    added: TracedValue | None
    input: TracedValue
    end: TracedValue
    padded: bool
    trouble: str = ""
    made: TracedValue | None = None
    base: TracedValue | None = None

    @property
    def inputs(self) -> int:
        """The number of its input channels."""
        if self.op == "conv":
            return self.shape[1] * self.groups
        return self.shape[1] if self.op == "linear" else self.shape[0]

    def axis(self, value: TracedValue) -> int:
        """The axis of channels of its input, or of its output."""
        return 1 if self.step.name == "convolution" else len(value.shape) - 1


#: Why a weight under ``torch.nn.utils.parametrize`` stays: no file has it by its plain name.
PARAMETRIZED = (
    "a parametrization computes it: remove_parametrizations of torch.nn.utils.parametrize makes it plain"
)


def is_parametrized(name: str) -> bool:
    """Whether a tensor is what a parametrization computes a weight of.

    >>> is_parametrized("conv.parametrizations.weight.original"), is_parametrized("original")
    (True, False)
    """
    return name.split(".")[-3::2] == ["parametrizations", "original"]


@dataclass(frozen=True, slots=True)
class Weights:
    """What is known of the weights of a module beside its tensors.

    ``made`` has the plain name of a weight by the names of the stored tensors that it is computed of in a way
    that is known, such as weight norm; ``biases`` are the names for which modules have a place.
    """

    made: Mapping[frozenset[str], str]
    biases: frozenset[str]


def linears_in(trace: Trace, weights: Weights) -> tuple[Linear, ...]:
    """The linear layers of a trace, in order; of some only the reason is known why they take no norm."""
    return tuple(_found(trace, weights))


def _found(trace: Trace, weights: Weights) -> Iterator[Linear]:
    place = 0
    for step in trace.steps:
        if step.name not in ("convolution", "addmm", "mm", "linear"):
            continue
        place += 1
        if not trace.is_live(step):
            continue
        linear = _convolution(step) if step.name == "convolution" else _product(trace, step)
        if linear is not None:
            yield _named(trace, weights, replace(linear, place=place - 1))


def _convolution(step: TracedStep) -> Linear | None:
    handed, bias = step.argument("weight"), step.argument("bias")
    given = step.argument("input")
    padded = any(step.argument("padding")) or step.argument("transposed")
    op: Op = "conv_transpose" if step.argument("transposed") else "conv"
    return Linear(
        0,
        step,
        op,
        step.argument("groups"),
        handed,
        "",
        handed.shape,
        False,
        None,
        bias,
        given,
        step.outputs[0],
        padded,
    )


def _product(trace: Trace, step: TracedStep) -> Linear | None:
    """A product of an input and a weight; the bias may be added behind it, through views."""
    if step.name == "linear":
        given, handed, bias = (step.argument(name) for name in ("input", "weight", "bias"))
    else:
        given, handed = step.argument("mat1", step.argument("self")), step.argument("mat2")
        bias = step.argument("self") if step.name == "addmm" else None
        if step.name == "addmm" and (step.argument("beta") != 1 or step.argument("alpha") != 1):
            return None
    if handed not in trace.sources or given in trace.sources:
        return None
    end = step.outputs[0]
    if step.name == "mm":
        bias, end = _added(trace, end)
    return Linear(0, step, "linear", 1, handed, "", handed.shape, False, None, bias, given, end, False)


def _added(trace: Trace, value: TracedValue) -> tuple[TracedValue | None, TracedValue]:
    """The bias that is added behind a product, and the value behind that."""
    user, behind = trace.sole_user(value), value
    while user is not None and user.name in ("view", "_unsafe_view"):
        behind = user.outputs[0]
        user = trace.sole_user(behind)
    if user is None or user.name not in ("add", "add_") or user.argument("alpha") != 1:
        return None, value
    one, other = user.argument("self"), user.argument("other")
    fits = isinstance(other, TracedValue) and one == behind and other.shape == behind.shape[-1:]
    return (other, user.outputs[0]) if fits and other in trace.stored else (None, value)


def _named(trace: Trace, weights: Weights, linear: Linear) -> Linear:
    """The layer with the names of its tensors, or with what is against it."""
    if linear.handed not in trace.sources:
        return replace(linear, trouble="the weight of its layer comes from an input")
    sources = trace.sources[linear.handed]
    if not sources:
        return replace(linear, trouble="the weight of its layer is no parameter")
    linear, names = _weight(trace, weights, linear)
    if not names or is_parametrized(names[0]):
        return replace(linear, weight="".join(names[:1]), trouble=PARAMETRIZED if names else linear.trouble)
    linear = replace(
        linear, weight=names[0], trouble=linear.trouble or _against(trace, linear, sources, names)
    )
    return (
        _without_bias(trace, weights, linear)
        if linear.added is None
        else _with_bias(trace, linear, linear.added)
    )


def _without_bias(trace: Trace, weights: Weights, linear: Linear) -> Linear:
    """A layer that adds nothing, with the name of the bias that its class has in such a case."""
    name = f"{linear.weight[: linear.weight.rfind('.') + 1]}bias"
    trouble = linear.trouble
    if any(name in every for every in trace.stored.values()):
        trouble = trouble or "its layer has a bias that it does not add"
    return replace(linear, bias=name if name in weights.biases else None, trouble=trouble)


def _with_bias(trace: Trace, linear: Linear, added: TracedValue) -> Linear:
    """A layer with the name of what it adds."""
    trouble = linear.trouble
    held = trace.stored.get(added, ())
    if not held:
        return replace(linear, trouble=trouble or "the bias of its layer is computed")
    if len(added.shape) != 1:
        return replace(linear, trouble=trouble or "the bias of its layer is not one number a channel")
    trouble = trouble or _against(trace, linear, (added,), held)
    return replace(linear, bias=held[0], trouble=trouble)


def _weight(trace: Trace, weights: Weights, linear: Linear) -> tuple[Linear, tuple[str, ...]]:
    """The layer with how it reads its weight, and the names of that: none, where it is no weight's."""
    stored, steps = back(trace, linear.handed)
    if stored in trace.stored:
        return _oriented(linear, stored, steps), trace.stored[stored]
    sources = trace.sources[linear.handed]
    maker = trace.makers[linear.handed]
    turned = linear.step.name in ("mm", "addmm") and is_movement(maker)
    made, moves = (maker.inputs[0], (maker,)) if turned else (linear.handed, ())
    linear = replace(_oriented(linear, made, moves), computed=True)
    parts = frozenset(trace.stored[value][0] for value in sources)
    if parts in weights.made:
        return linear, (weights.made[parts],)
    like = [value for value in sources if value.shape == made.shape and value.dtype.is_floating_point]
    if len(like) != 1:
        return replace(linear, trouble="the weight of its layer is computed of several"), ()
    return replace(linear, made=made, base=like[0]), trace.stored[like[0]]


def _oriented(linear: Linear, stored: TracedValue, steps: Iterable[TracedStep]) -> Linear:
    """The layer with the shape of what is stored, and with how it reads it."""
    steps = tuple(steps)
    linear = replace(linear, shape=stored.shape)
    if linear.step.name in ("convolution", "linear"):
        fits = len(stored.shape) == len(linear.handed.shape) and not _turned(stored, steps)
        return linear if fits else replace(linear, trouble="its weight is a view of a parameter")
    if len(stored.shape) != 2:
        return replace(linear, trouble="its weight is a view of a parameter")
    if channels(stored.shape, 0, steps, 1) == list(range(stored.shape[0])) and (
        channels(stored.shape, 1, steps, 0) == list(range(stored.shape[1]))
    ):
        return replace(linear, op="linear")
    if not _turned(stored, steps):
        return replace(linear, op="linear_transposed")
    return replace(linear, trouble="its weight is a view of a parameter")


def _turned(stored: TracedValue, steps: tuple[TracedStep, ...]) -> bool:
    """Whether movements change where elements are."""
    axes = range(len(stored.shape))
    return any(channels(stored.shape, axis, steps, axis) != list(range(stored.shape[axis])) for axis in axes)


def _against(trace: Trace, linear: Linear, sources: Iterable[TracedValue], names: tuple[str, ...]) -> str:
    """What is against a layer whose tensors these are: other names, other uses."""
    if len(names) > 1:
        return f"{names[0]} is tied to {names[1]}"
    for value in sources:
        readers = trace.readers.get(value, ())
        own = [step for step in readers if step is linear.step or _is_bias(trace, linear, step)]
        if len(readers) > len(own) or value in trace.shown:
            return f"{trace.stored[value][0]} is used {len(readers)} times"
        if len(trace.stored[value]) > 1:
            return f"{trace.stored[value][0]} is tied to {trace.stored[value][1]}"
    return ""


def _is_bias(trace: Trace, linear: Linear, step: TracedStep) -> bool:
    return linear.end in step.outputs and step is trace.makers.get(linear.end)
