"""Norms with running statistics behind a linear node: which node each of them follows, told by adjacency.

A norm folds into the node before it if its numbers are stored, and nothing else uses what lies between the
two. Views may lie between them as long as the channels provably stay an axis of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wnconvert.frozen import dataclass
from wnconvert.onnx.file.model import Graph, Model, Node
from wnconvert.onnx.graph.channels import VIEWS, ChannelAxis, ViewError, viewed
from wnconvert.onnx.graph.index import Index, ValueId, removal
from wnconvert.onnx.graph.values import Symbols
from wnconvert.tensors.blocks import Array

__all__ = ["Behind", "BiasPlace", "Stays", "StaysError", "norms_behind"]


#: The epsilon of a node that states none: 1e-5 as float32.
_EPS = 9.999999747378752e-06
#: The first opset in which a node is in eval unless it says otherwise.
_FIRST_OPSET = 7
_ROLES = ("gamma", "beta", "mean", "variance")
_OWN = {"", "ai.onnx"}
#: Operators by which exporters give a norm without an affine the shape and dtype of its input.
_OF_KIND = {"Shape", "CastLike"}


@dataclass(frozen=True, slots=True)
class BiasPlace:
    """Where a bias is read: input ``slot`` of a node; ``value`` is what stands there, None if it is free."""

    node: Node
    slot: int
    value: ValueId | None


@dataclass(frozen=True, slots=True)
class Behind:
    """A norm behind a linear node of the same scope, at ``path``.

    ``weight`` is the value that the linear node multiplies, whose axis ``dim`` has the outputs of each of
    ``groups``. ``last`` makes the input of the norm, of which ``bias`` has the bias. If that is None, an
    addition takes the place of the norm, of a bias with ``ones`` axes of size 1 behind its own. ``constants``
    are the norm's tensors by their roles.
    """

    path: str
    norm: Node
    linear: Node
    last: Node
    weight: ValueId
    dim: int
    groups: int
    eps: float
    constants: Mapping[str, ValueId]
    bias: BiasPlace | None
    ones: int = 0

    @property
    def name(self) -> str:
        """The norm's name for people."""
        return _name(self.norm)


@dataclass(frozen=True, slots=True)
class Stays:
    """A norm that stays, with the reason."""

    name: str
    reason: str


def norms_behind(model: Model, index: Index, symbols: Symbols) -> Iterator[Behind | Stays]:
    """Every norm with running statistics of a model, in the order of its nodes."""
    search = _Search(model, index, symbols)
    for path, scope in index.scopes.items():
        for node in scope.nodes:
            computes_weights = any((path, name) in symbols.known for name in node.outputs)
            if node.op == "BatchNormalization" and node.domain in _OWN and not computes_weights:
                try:
                    yield search.behind(path, node)
                except StaysError as error:
                    yield Stays(_name(node), str(error))


class StaysError(Exception):
    """Why a norm stays."""


def _name(node: Node) -> str:
    return node.name or next(iter(node.outputs), "")


@dataclass(frozen=True, slots=True)
class _Made:
    """The outputs of a linear node: the axis of its weight that has them, their groups, their place."""

    dim: int
    groups: int
    channels: ChannelAxis


@dataclass(frozen=True, slots=True)
class _Search:
    """The search for the linear node before a norm."""

    model: Model
    index: Index
    symbols: Symbols

    def behind(self, path: str, norm: Node) -> Behind:
        """The linear node before a norm. Raises ``StaysError``."""
        eps = self.eps(path, norm)
        names = zip(_ROLES, norm.inputs[1:], strict=True)
        constants = {role: self.value(path, name) for role, name in names}
        last = before = self.alone(path, norm.inputs[0], norm)
        views: list[Node] = []
        while before.op in VIEWS and before.domain in _OWN:
            views.append(before)
            before = self.alone(path, next(iter(before.inputs), ""), norm)
        addition = before if before.op == "Add" and before.domain in _OWN else None
        linear, bias = self.summands(path, addition, norm) if addition else (before, None)
        if linear.op not in _LINEAR or linear.domain not in _OWN or len(linear.inputs) < 2:
            raise StaysError(f"it is behind {linear.op}, not behind a linear layer")
        weight = self.value(path, linear.inputs[1])
        made = _LINEAR[linear.op](self, path, linear, weight)
        channels = made.channels
        for view in reversed(views):
            channels = self.behind_view(path, view, channels, constants["variance"])
        if channels.front is None:
            raise StaysError("the rank of its input is not known, so its channels may be another axis")
        if channels.front != 1:
            raise StaysError("its channels are not the outputs of the layer before it")
        if addition is None and linear.op != "MatMul":
            bias = self.own_bias(path, linear)
        ones = 0
        if bias is None:
            if channels.rank is None:
                raise StaysError("the rank of its input is not known")
            ones = channels.rank - 2
        return Behind(path, norm, linear, last, weight, made.dim, made.groups, eps, constants, bias, ones)

    def eps(self, path: str, norm: Node) -> float:
        """The epsilon of a norm. Raises ``StaysError`` for one that is not in eval, or in a function."""
        if not isinstance(self.index.scopes[self.index.roots[path]], Graph):
            raise StaysError("it is in a function: inline the model's functions first")
        if self.model.opsets.get("", 0) < _FIRST_OPSET:
            raise StaysError(f"opset {self.model.opsets.get('')} is older than {_FIRST_OPSET}")
        settings = {name: attribute.value for name, attribute in norm.attributes.items()}
        if settings.get("training_mode", 0) != 0 or len([name for name in norm.outputs if name]) != 1:
            raise StaysError("it is in training mode, so it takes the statistics of the batch")
        if settings.get("spatial", 1) != 1:
            raise StaysError("it has statistics for each place, not for each channel")
        eps = settings.get("epsilon", _EPS)
        if len(norm.inputs) != len(_ROLES) + 1 or not all(norm.inputs) or not isinstance(eps, float):
            raise StaysError("it is not as the specification has it")
        return eps

    def value(self, path: str, name: str) -> ValueId:
        """The value of a name."""
        value = self.index.resolve(path, name)
        if value is None:
            raise StaysError(f"{name} is not there")
        return value

    def alone(self, path: str, name: str, norm: Node) -> Node:
        """The maker of a value that only one node uses, once the norm is gone and what makes its tensors."""
        value = self.value(path, name)
        maker = self.index.makers.get(value)
        if maker is None or value[0] != path:
            raise StaysError("it is behind an input, not behind a linear layer")
        users = [node for _, node in self.index.users[value]]
        if any(node.op in _OF_KIND for node in users):
            released = ((path, each) for each in norm.inputs[1:])
            gone = removal(self.index, (), released).nodes
            users = [node for node in users if node.record.start not in gone]
        if len(users) > 1 or value in self.index.outputs:
            raise StaysError(f"{name}, which comes before it, is used elsewhere too")
        return maker

    def summands(self, path: str, addition: Node, norm: Node) -> tuple[Node, BiasPlace]:
        """The product of an addition, and the stored tensor that is added to it."""
        for slot, other in ((0, 1), (1, 0)) if len(addition.inputs) == 2 else ():
            value = self.index.resolve(path, addition.inputs[slot])
            if value is not None and self.symbols.stored(value) is not None:
                product = self.alone(path, addition.inputs[other], norm)
                if product.op != "MatMul" or product.domain not in _OWN:
                    break
                return product, BiasPlace(addition, slot, value)
        raise StaysError("it is behind Add, not behind a linear layer")

    def own_bias(self, path: str, linear: Node) -> BiasPlace:
        """The bias of a linear node that takes one."""
        name = linear.inputs[2] if len(linear.inputs) > 2 else ""
        return BiasPlace(linear, 2, self.value(path, name) if name else None)

    def behind_view(self, path: str, view: Node, channels: ChannelAxis, statistics: ValueId) -> ChannelAxis:
        """Where the channels are behind a view."""
        arrays: list[Array | None] = [None]
        for name in view.inputs[1:]:
            known = self.symbols.known.get(self.value(path, name)) if name else None
            arrays.append(known.numbers if known is not None else None)
        settings = {name: attribute.value for name, attribute in view.attributes.items()}
        known = self.symbols.known.get(statistics)
        try:
            return viewed(view.op, arrays, settings, channels, known.shape[0] if known and known.shape else 0)
        except ViewError as error:
            raise StaysError(f"{view.op} before it need not keep the channels together") from error

    # -- linear nodes

    def convolved(self, _path: str, node: Node, weight: ValueId) -> _Made:
        """Of a convolution: w is (out, in / groups, …)."""
        del node
        return _Made(0, 1, ChannelAxis(1, self.rank(weight)))

    def transposed(self, _path: str, node: Node, weight: ValueId) -> _Made:
        """Of a transposed convolution: w is (in, out / groups, …)."""
        return _Made(1, _whole(node, "group", 1), ChannelAxis(1, self.rank(weight)))

    def gemm(self, _path: str, node: Node, _weight: ValueId) -> _Made:
        """Of a Gemm: w is (in, out), or (out, in) if it is transposed; alpha is a factor beside w."""
        beta = node.attributes["beta"].value if "beta" in node.attributes else 1.0
        if beta != 1:
            raise StaysError("the layer before it takes a multiple of its bias")
        return _Made(1 - _whole(node, "transB", 0), 1, ChannelAxis(1, 2))

    def product(self, path: str, node: Node, weight: ValueId) -> _Made:
        """Of a product of matrices: w is (in, out)."""
        if self.rank(weight) != 2:
            raise StaysError("it is behind a product of stacks of matrices")
        rank = self.stated(path, node.outputs[0]) or self.stated(path, node.inputs[0])
        maker = self.index.makers.get(self.value(path, node.inputs[0]))
        if rank is None and maker is not None:
            rank = self.rank_of_output(path, maker)
        return _Made(1, 1, ChannelAxis(-1, rank))

    def rank(self, value: ValueId) -> int | None:
        """The rank of a value of stored tensors."""
        known = self.symbols.known.get(value)
        return None if known is None else len(known.shape)

    def rank_of_output(self, path: str, node: Node) -> int | None:
        """The rank of what a node makes, as is stated, or as nodes before it show; None if it is unknown."""
        seen: set[int] = set()
        while node.record.start not in seen:
            seen.add(node.record.start)
            rank = self.stated(path, node.outputs[0]) or self.rank_of_operator(path, node)
            follows = node.op in _OF_FIRST and node.domain in _OWN and bool(node.inputs)
            if rank is None and follows:
                rank = self.stated(path, node.inputs[0])
            if rank is not None or not follows:
                return rank
            value = self.value(path, node.inputs[0])
            node = self.index.makers.get(value, node) if value[0] == path else node
        return None

    def rank_of_operator(self, path: str, node: Node) -> int | None:
        """The rank of what an operator makes, where it has but one, or its weight shows it."""
        if node.domain in _OWN and node.op in {"Flatten", "Gemm"}:
            return 2
        if node.domain in _OWN and node.op in {"Conv", "ConvTranspose"} and len(node.inputs) > 1:
            return self.rank(self.value(path, node.inputs[1]))
        return None

    def stated(self, path: str, name: str) -> int | None:
        """The rank that a model states for a value of a graph."""
        value = self.index.resolve(path, name)
        if value is None or not isinstance(self.index.scopes[value[0]], Graph):
            return None
        ports = [self.index.inputs[value]] if value in self.index.inputs else []
        ports += self.index.types.get(value, ())
        return next((len(port.sizes) for port in ports if port.sizes is not None), None)


#: Operators whose result has the rank of their first input.
_OF_FIRST = frozenset(
    {"BatchNormalization", "Clip", "Dropout", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Identity"}
    | {"LeakyRelu", "Mish", "Neg", "PRelu", "Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Sqrt", "Tanh"}
)


_LINEAR: dict[str, Callable[[_Search, str, Node, ValueId], _Made]] = {
    "Conv": _Search.convolved,
    "ConvTranspose": _Search.transposed,
    "Gemm": _Search.gemm,
    "MatMul": _Search.product,
}


def _whole(node: Node, name: str, default: int) -> int:
    """An attribute that is a whole number."""
    value: Any = node.attributes[name].value if name in node.attributes else default
    if not isinstance(value, int) or value < 0:
        raise StaysError(f"the {name} of the layer before it is none")
    return value
