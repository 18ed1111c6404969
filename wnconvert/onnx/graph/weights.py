"""The weights that an ONNX model computes at every run, although they hang on stored tensors alone.

Nodes are walked in the order of their inputs; a call of a function walks its body with the arguments bound.
Of each value that hangs on constants alone it is known which operators compute with its numbers. What only
moves elements (``Transpose``, ``Slice`` …) or gives them another dtype leaves a weight what it is: stored in
another layout. So does what quantizers write, since int8 with its scale is the form of a quantized model.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from wnconvert.onnx.file.model import Constant, Graph, GraphScope, Model, Node, OnnxFunction
from wnconvert.onnx.graph.index import Index, ValueId, in_dependency_order, unique_name
from wnconvert.onnx.graph.names import name_by_tensor
from wnconvert.plan.layout import Evaluate, FoldLayer
from wnconvert.tensors.tree import Shape

__all__ = ["EVALUATED", "QUOTIENTS", "EvaluatedWeight", "RunWeight", "weights_at_run"]


#: Operators that only onnxruntime has, by which of their inputs are weights, or scales for blocks of them.
_OF_ONNXRUNTIME = {
    (0,): "TorchEmbedding",
    (1,): "FusedConv NhwcConv NhwcFusedConv ConvTransposeWithDynamicPads Attention PackedAttention "
    "QAttention DecoderMaskedSelfAttention DynamicQuantizeMatMul MatMulFpQ4 GemmFastGelu",
    (0, 1): "FusedGemm FusedMatMul FusedMatMulActivation TransposeMatMul GemmFloat8 MatMulInteger16 "
    "MatMulIntegerToFloat",
    (1, 2): "MatMulNBits MatMulBnb4 AttnLSTM DynamicQuantizeLSTM",
    (0, 2): "GatherBlockQuantized QOrderedMatMul",
    (3,): "QLinearConv",
    (0, 3): "QGemm",
    (2, 3): "DecoderAttention",
    (1, 4): "LongformerAttention",
    (2, 3, 4): "EmbedLayerNormalization",
    (2, 4, 6): "MoE",
    (2, 3, 5, 6, 8, 9): "QMoE",
}
#: Operators by domain, and which of their inputs are weights; None: all of them.
_WEIGHTS: Mapping[tuple[str, str], Collection[int] | None] = {
    **{("", op): (1,) for op in ("Conv", "ConvTranspose", "ConvInteger", "DeformConv")},
    **{("", op): (1, 2) for op in ("LSTM", "GRU", "RNN")},
    **{("", op): (0, 1) for op in ("Gemm", "MatMul", "MatMulInteger")},
    ("", "QLinearConv"): (3,),
    ("", "QLinearMatMul"): (0, 3),
    ("", "Einsum"): None,
    ("", "Gather"): (0,),
    **{("com.microsoft", op): positions for positions, ops in _OF_ONNXRUNTIME.items() for op in ops.split()},
}
#: Operators that give elements another dtype: what they make is another weight, in fewer or more bytes.
_CASTS = frozenset(("Cast", "CastLike"))
#: Operators that move elements or repeat them: the first input has the elements.
_MOVES = frozenset(
    "Identity Transpose Reshape Squeeze Unsqueeze Flatten Slice Split Gather GatherElements GatherND Expand "
    "Tile Pad DepthToSpace SpaceToDepth".split()
)
#: Operators between elements and codes of them, by a scale and a zero point.
_CODES = frozenset(("DequantizeLinear", "QuantizeLinear"))
#: Operators whose result has no element of an input.
_MAKES = frozenset(("Shape", "Size", "ConstantOfShape", "Range"))
#: Operators that make something else of the same inputs at every run, or may.
_DRAWS = frozenset(
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli Dropout "
    "BiasDropout BitmaskDropout BitmaskBiasDropout".split()
)
#: Operators that onnx's reference evaluates in float64 (not Erf, nor Gelu by it) and that do not jump: a
#: rounding less changes their result little.
EVALUATED = frozenset(
    "Add Sub Mul Div Neg Abs Exp Log Sqrt Reciprocal Pow Sin Cos Tan Asin Acos Atan Sinh Cosh Tanh Asinh "
    "Acosh Atanh Sigmoid Softplus Softsign Relu LeakyRelu Elu Selu Celu Max Min Sum Mean Clip "
    "MatMul Gemm Einsum ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum "
    "ReduceLogSumExp ReduceSumSquare Softmax LogSoftmax CumSum Where Trilu".split()
)
#: Operators that make quotients of stored tensors, whose elements are rational numbers; those that divide.
_DIVIDE = frozenset(("Div", "Reciprocal"))
QUOTIENTS = _DIVIDE | {"Mul", "Clip", "Max", "Min"}
#: The domains whose operators are known to make the same of the same inputs.
_KNOWN = frozenset(("", "com.microsoft"))
#: The most nodes of functions to walk in all: every call walks a body again, and calls nest.
_MOST_CALLED_NODES = 300_000
_DEEPEST = 60
#: The first IR version in which an initializer that is an input too may be replaced by a caller.
_STORED_ALONE = 4


@dataclass(frozen=True, slots=True)
class RunWeight:
    """A weight that nodes compute of stored tensors, within some calls (the starts of their nodes).

    ``value`` is what the ``node`` uses; ``operators`` are those that compute with its numbers, and ``made``
    is what the last of them made. ``layer`` is the stored tensor of a known layer on which it hangs, or None.
    ``flow`` is the operator with a body, such as If, by which it comes.
    """

    name: str
    value: ValueId
    calls: tuple[int, ...]
    node: str
    operators: tuple[str, ...]
    made: ValueId
    layer: ValueId | None = None
    flow: str = ""

    @property
    def is_quotient(self) -> bool:
        """Whether it is a quotient of stored tensors, such as v over a norm that an exporter has stored."""
        return QUOTIENTS.issuperset(self.operators) and not _DIVIDE.isdisjoint(self.operators)


@dataclass(frozen=True, slots=True)
class EvaluatedWeight:
    """A weight that is evaluated and stored in the place of what was ``made``, in this shape.

    Rows of a tensor over the norms of another's are made as those of a layer are.
    """

    name: str
    made: ValueId
    operators: tuple[str, ...]
    shape: Shape
    work: Evaluate | FoldLayer

    @property
    def is_exact(self) -> bool:
        """Whether it is correctly rounded."""
        return isinstance(self.work, FoldLayer) or self.work.roundings is not None


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a value that hangs on constants alone; ``tensor`` is its largest one, of ``size``.

    Of several it is one that has a name of its own, if there is one.

    ``floats`` says whether one of its tensors has floats, ``made`` is the value that the last operator made.
    """

    operators: tuple[str, ...] = ()
    tensor: str = ""
    size: int = 0
    floats: bool = False
    layer: ValueId | None = None
    flow: str = ""
    made: ValueId | None = None

    def joined(self, other: _Known) -> _Known:
        """What is known of a value that is made of both."""
        larger = max(self, other, key=lambda known: (known.size, bool(name_by_tensor(known.tensor))))
        return _Known(
            tuple(dict.fromkeys((*self.operators, *other.operators))),
            larger.tensor,
            larger.size,
            self.floats or other.floats,
            self.layer or other.layer,
            self.flow or other.flow,
        )


_Env: TypeAlias = ChainMap[str, _Known | None]


def weights_at_run(
    model: Model, index: Index, folded: Mapping[ValueId, str], layers: Collection[ValueId]
) -> tuple[RunWeight, ...]:
    """The weights of a model that are computed at every run of stored tensors alone, in their order.

    Values that are ``folded``, each with the name of its weight, count as stored; ``layers`` are the stored
    tensors of known layers. No tensor is read.
    """
    walk = _Walk(index, folded, frozenset(layers), old=model.ir_version < _STORED_ALONE)
    walk.scope(model.graph, ChainMap(), ())
    return tuple(walk.named())


def _weights_of(node: Node) -> Iterator[str]:
    """The names of the inputs of a node that are weights, if there are any in its operator."""
    positions = _WEIGHTS.get((_domain(node), node.op), ())
    for at, name in enumerate(node.inputs):
        if name and (positions is None or at in positions):
            yield name


def _runs_alike(node: Node) -> bool:
    """Whether an operator makes the same of the same inputs at every run, as far as that is known."""
    if _domain(node) not in _KNOWN or node.op in _DRAWS:
        return False
    mode = node.attributes.get("training_mode")
    trains = (mode is not None and bool(mode.value)) or any(node.outputs[1:])
    return not (node.op == "BatchNormalization" and trains)


def _domain(node: Node) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


@dataclass(slots=True)
class _Walk:
    index: Index
    folded: Mapping[ValueId, str]
    layers: frozenset[ValueId]
    old: bool
    found: dict[tuple[ValueId, tuple[int, ...]], tuple[Node, _Known]] = field(default_factory=dict)
    ordered: dict[str, Sequence[Node]] = field(default_factory=dict)
    budget: int = _MOST_CALLED_NODES
    depth: int = 0

    def scope(self, scope: GraphScope, env: _Env, calls: tuple[int, ...]) -> None:
        """Walk a scope, and put what is known of its values into ``env``."""
        if self.depth > _DEEPEST:
            return
        self.depth += 1
        if isinstance(scope, Graph):
            inputs = {port.name for port in scope.inputs} if scope.path or not self.old else set()
            for constant in scope.constants:  # a caller may replace one that is an input too
                env[constant.name] = None if constant.name in inputs else self.stored(scope.path, constant)
        if scope.path not in self.ordered:
            self.ordered[scope.path] = in_dependency_order(scope.nodes)
        for node in self.ordered[scope.path]:
            outputs = self.node(scope.path, node, env, calls)
            for at, name in enumerate(node.outputs):
                env[name] = self.made(scope.path, name, outputs[at] if at < len(outputs) else None)
        self.depth -= 1

    def made(self, path: str, name: str, known: _Known | None) -> _Known | None:
        """What is known of an output: one that is folded is stored."""
        weight = self.folded.get((path, name))
        if known is not None and known.operators and known.made is None:
            known = replace(known, made=(path, name))
        return known if weight is None else _Known((), weight, known.size if known else 1, floats=True)

    def stored(self, path: str, constant: Constant) -> _Known:
        place, info = (path, constant.name), constant.info
        floats = info is not None and (info.dtype.foldable or info.dtype.is_float8)
        layer = place if place in self.layers else None
        return _Known((), constant.name, info.numel if info else 0, floats, layer)

    def node(self, path: str, node: Node, env: _Env, calls: tuple[int, ...]) -> Sequence[_Known | None]:
        """What is known of the outputs of a node; where it uses a weight of the kind, that is found."""
        inputs = [env.get(name) for name in node.inputs if name]
        constant = all(each is not None for each in inputs)
        if (function := self.index.called(node)) is not None:
            return self.call(function, node, env, calls)
        if node.graphs:
            return self.flow(node, env, calls, constant=constant)
        if not constant:
            for name in _weights_of(node):
                value, known = self.index.resolve(path, name), env.get(name)
                if value is None or known is None or not known.operators:
                    continue
                if node.op != "Gather" or known.floats:  # of whole numbers alone: no table of a layer
                    self.found.setdefault((value, calls), (node, known))
            return ()
        if not _runs_alike(node):
            return ()
        known = _result(node, [each for each in inputs if each is not None], path, self)
        return [known] * len(node.outputs)

    def call(
        self, function: OnnxFunction, node: Node, env: _Env, calls: tuple[int, ...]
    ) -> Sequence[_Known | None]:
        """What is known of the outputs of a call."""
        if self.budget < len(function.nodes):
            return []
        self.budget -= len(function.nodes) + 1
        given = {
            formal: self.made(function.path, formal, env.get(name) if name else None)
            for formal, name in zip(function.inputs, node.inputs, strict=False)
        }
        inner: _Env = ChainMap(given)
        self.scope(function, inner, (*calls, node.record.start))
        return [inner.get(name) for name in function.outputs]

    def flow(
        self, node: Node, env: _Env, calls: tuple[int, ...], *, constant: bool
    ) -> Sequence[_Known | None]:
        """What is known of the outputs of If, Loop and Scan, whose bodies are walked."""
        given = _Known(flow=node.op) if constant and _domain(node) in _KNOWN else None
        results: list[_Known | None] = [given] * len(node.outputs)
        for graph in node.graphs:
            inner: _Env = env.new_child({port.name: given for port in graph.inputs})
            self.scope(graph, inner, calls)
            made = [inner.get(name) for name in graph.outputs]
            if given is None or any(each is None for each in made):
                results = []
                continue
            # Of Loop the first output of a body is its condition, so that all of them are taken together.
            for each in made:
                results = [known.joined(each) if known and each else None for known in results]
        return [replace(each, operators=(*each.operators, node.op)) if each else None for each in results]

    def named(self) -> Iterator[RunWeight]:
        """What was found, each with a name of its own: that of its largest tensor, or of the node."""
        taken: set[str] = set()
        for (value, calls), (node, known) in self.found.items():
            name = unique_name(name_by_tensor(known.tensor) or node.name or value[1], taken)
            made = known.made or value
            yield RunWeight(name, value, calls, node.name, known.operators, made, known.layer, known.flow)


def _result(node: Node, inputs: Sequence[_Known], path: str, walk: _Walk) -> _Known:
    """What is known of the result of an operator on constants."""
    if node.op == "Constant" and not inputs:
        value = node.attributes["value"].value if "value" in node.attributes else None
        if isinstance(value, Constant) and node.outputs:
            return walk.stored(path, replace(value, name=node.outputs[0]))
        return _Known()
    if node.op in _MAKES:
        return _Known()
    if node.op in _MOVES | _CASTS and inputs:
        return inputs[0] if node.op in _MOVES else replace(inputs[0], made=None)
    joined = _Known()
    for each in inputs:
        joined = joined.joined(each)
    if node.op in _CODES:  # where the elements or the scale alone are computed, these are what is evaluated
        computed = [each for each in inputs if each.operators]
        return replace(joined, made=computed[0].made if len(computed) == 1 else None)
    own = () if node.op == "Concat" else (node.op,)
    return replace(joined, operators=tuple(dict.fromkeys((*joined.operators, *own))))
