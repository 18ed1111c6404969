"""Every value of an ONNX model that depends on stored tensors alone, symbolically and by shapes.

Nodes are walked in the order of their inputs; a call of a function walks its body with the arguments bound.
No tensor is read: large ones are known by name and shape, and the reader provides the numbers of small ones.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from typing import Any, TypeAlias

import numpy as np

from wnconvert.frozen import dataclass
from wnconvert.onnx.arithmetic.codes import quantization_of, staged_value, start_of
from wnconvert.onnx.arithmetic.known import KnownValue
from wnconvert.onnx.arithmetic.operators import numbers_as_array, result_of
from wnconvert.onnx.arithmetic.products.monomials import VALUE, Factor, leaf
from wnconvert.onnx.arithmetic.rowwise import leaf_rows
from wnconvert.onnx.file.model import Attribute, Constant, Graph, GraphScope, Model, Node, OnnxFunction
from wnconvert.onnx.graph.index import Index, ValueId, in_dependency_order, may_be_replaced
from wnconvert.tensors.blocks import Array
from wnconvert.tensors.dtypes import DTYPES, DType
from wnconvert.tensors.tree import ByteRange, Shape, StoredTensor, TensorInfo, contiguous_strides
from wnconvert.tensors.views.dequantized import CODED, dequantized
from wnconvert.tensors.views.quantization import Quantization

__all__ = ["Leaf", "SeenValue", "Symbols", "symbolic_values"]


#: The most nodes of functions to walk in all: every call walks a body again, and calls nest.
_MOST_CALLED_NODES = 300_000
_DEEPEST = 60
_INT64, _FLOAT32 = DTYPES["int64"], DTYPES["float32"]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A stored tensor, and the value that it is.

    Numbers that codes stand for are one, too: ``value`` is then that of the codes, ``beside`` are those
    of their scale and zero.
    """

    value: ValueId
    constant: Constant
    info: TensorInfo
    beside: tuple[ValueId, ...] = ()

    @property
    def stored(self) -> StoredTensor:
        """The place of its elements; an empty place if they do not lie end to end."""
        nowhere = StoredTensor(self.info, ByteRange(0, 0), 0, contiguous_strides(self.info.shape))
        return self.constant.tensor or nowhere


@dataclass(frozen=True, slots=True)
class SeenValue:
    """A value that was met on the walk: its place, the calls that led there, and the value.

    ``calls`` are the starts of the calling nodes, outermost first. ``is_formal`` is true for a value that a
    call passes to a function.
    """

    place: ValueId
    calls: tuple[int, ...]
    value: KnownValue
    is_formal: bool = False


_Env: TypeAlias = ChainMap[str, KnownValue | None]
_Bound: TypeAlias = Mapping[str, Attribute]


@dataclass(frozen=True, slots=True)
class Symbols:
    """The stored tensors of a model, and ``seen``, every value that is a product or a sum of several.

    ``known`` is all that is known of values outside of functions, a stored tensor among them.
    """

    leaves: Sequence[Leaf]
    seen: Sequence[SeenValue]
    known: Mapping[ValueId, KnownValue]

    def stored(self, value: ValueId) -> tuple[Factor, Leaf] | None:
        """The stored tensor that a value is, in some shape and a dtype that holds its numbers; None if none.

        The factor has the axes of the tensor as dims of the value's monomial.
        """
        found = self.known.get(value)
        if found is None or found.monomial is None or len(found.monomial.factors) != 1:
            return None
        ((factor, exponent),) = found.monomial.factors
        atoms = factor.atoms
        once = exponent == 1 and found.monomial.number == 1
        whole = factor.kind == VALUE and once and len(atoms) == len(set(atoms))
        if not whole or len(atoms) != sum(map(len, found.monomial.dims)):
            return None
        leaf = self.leaves[factor.tensor]
        dtype = leaf.info.dtype
        wider = found.dtype == dtype or (found.dtype.foldable and dtype.foldable and found.dtype.holds(dtype))
        return (factor, leaf) if wider and not found.coarse else None


def symbolic_values(model: Model, index: Index) -> Symbols:
    """What is known of the values of a model."""
    walk = _Walk(index, model.ir_version)
    walk.scope(model.graph, ChainMap(), (), {})
    for function in model.functions:
        walk.alone(function)
    return Symbols(walk.leaves, walk.seen, walk.known)


class _UnknownError(Exception):
    """An attribute that the caller does not give."""


@dataclass(slots=True)
class _Walk:
    index: Index
    ir_version: int
    leaves: list[Leaf] = field(default_factory=list)
    numbers: dict[ValueId | StoredTensor, int] = field(default_factory=dict)
    seen: list[SeenValue] = field(default_factory=list)
    known: dict[ValueId, KnownValue] = field(default_factory=dict)
    unbound: dict[str, tuple[KnownValue | None, ...]] = field(default_factory=dict)
    ordered: dict[str, Sequence[Node]] = field(default_factory=dict)
    budget: int = _MOST_CALLED_NODES
    depth: int = 0

    def scope(self, scope: GraphScope, env: _Env, calls: tuple[int, ...], bound: _Bound) -> None:
        """Walk a scope, and put its values into ``env``."""
        if self.depth > _DEEPEST:
            return
        self.depth += 1
        if isinstance(scope, Graph):
            env.update(dict.fromkeys(port.name for port in scope.inputs))
            for constant in scope.constants:
                env[constant.name] = value = self.stored((scope.path, constant.name), constant)
                self.note((scope.path, constant.name), calls, value)
        if scope.path not in self.ordered:
            self.ordered[scope.path] = in_dependency_order(scope.nodes)
        for node in self.ordered[scope.path]:
            outputs = self.node(scope.path, node, env, calls, bound)
            for name, value in zip(node.outputs, outputs, strict=False):
                env[name] = value
                self.note((scope.path, name), calls, value)
        self.depth -= 1

    def note(
        self, place: ValueId, calls: tuple[int, ...], value: KnownValue | None, *, is_formal: bool = False
    ) -> None:
        """Remember a value, by its place outside of functions, and if it is a product or a sum of several."""
        if value is not None and not isinstance(self.index.scopes[self.index.roots[place[0]]], OnnxFunction):
            self.known[place] = value
        if value is not None and (_is_product(value) or _is_sum(value) or value.staged is not None):
            self.seen.append(SeenValue(place, calls, value, is_formal))

    def stored(self, place: ValueId, constant: Constant) -> KnownValue | None:
        """The value of a stored tensor."""
        info = constant.info if constant.tensor is None else constant.tensor.info
        if info is None:
            return None
        numbers = None
        if constant.values is not None and not may_be_replaced(self.index, self.ir_version, place):
            numbers = numbers_as_array(constant.values, info.shape, info.dtype)
        if info.dtype.foldable or info.dtype.is_float8:
            return self.leaf(place, Leaf(place, constant, info), numbers)
        return KnownValue(info.shape, info.dtype, numbers)

    def leaf(self, key: ValueId | StoredTensor, made: Leaf, numbers: Array | None = None) -> KnownValue:
        """The value of a stored tensor of floats; one with a key that was met before is the same."""
        number = self.numbers.setdefault(key, len(self.leaves))
        if number == len(self.leaves):
            self.leaves.append(made)
        shape, dtype = made.info.shape, made.info.dtype
        all_of_it = KnownValue(shape, dtype, numbers).number
        monomial, rows = leaf(number, shape, all_of_it), leaf_rows(number, shape)
        return KnownValue(shape, dtype, numbers, monomial, rows=rows)

    def node(
        self, path: str, node: Node, env: _Env, calls: tuple[int, ...], bound: _Bound
    ) -> Sequence[KnownValue | None]:
        """The outputs of a node."""
        names = list(node.inputs)
        while names and not names[-1]:  # left out at the end, as if there were none
            names.pop()
        inputs = [env.get(name) if name else None for name in names]
        branches: dict[str, tuple[KnownValue | None, ...]] = {}
        for attribute in node.attributes.values():
            for graph in attribute.graphs:
                inner: _Env = env.new_child()
                self.scope(graph, inner, calls, bound)
                branches[attribute.name] = tuple(inner.get(name) for name in graph.outputs)
        if (function := self.index.called(node)) is not None:
            return self.call(function, node, inputs, calls, bound)
        if (rule := _ROUNDED.get((node.domain, node.op))) is not None:
            return (rule(self, path, node, inputs),)
        if node.domain not in {"", "ai.onnx"} or not (any(inputs) or (node.op == "Constant" and not names)):
            return ()
        if node.op == "If":
            return branches.get(_taken(inputs[0]), ())
        return (self.result(path, node, inputs, bound),)

    def result(
        self, path: str, node: Node, inputs: Sequence[KnownValue | None], bound: _Bound
    ) -> KnownValue | None:
        """The output of an operator."""
        try:
            settings = _settings(node, bound)
        except _UnknownError:
            return None
        if node.op == "Constant":
            return self.constant(path, node, settings)
        if node.op == "Mul" and any(value is not None and value.staged is not None for value in inputs):
            return self.staged_product(inputs)
        return result_of(node.op, inputs, settings)

    def constant(self, path: str, node: Node, settings: Mapping[str, Any]) -> KnownValue | None:
        """The value of a Constant node."""
        for name, kind in (("value_int", _INT64), ("value_ints", _INT64), ("value_float", _FLOAT32)):
            if name in settings:
                return _known(np.asarray(settings[name]), kind)
        if "value_floats" in settings:
            return _known(np.asarray(settings["value_floats"], np.float64), _FLOAT32)
        constant = settings.get("value")
        if not isinstance(constant, Constant) or not node.outputs:
            return None
        return self.stored((path, node.outputs[0]), replace(constant, name=node.outputs[0]))

    # -- codes and the numbers that they stand for

    def origin(self, path: str, name: str) -> tuple[ValueId, Constant] | None:
        """The stored tensor that a name is, seen from a scope; None for anything that is computed."""
        place = self.index.resolve(path, name) if name else None
        if place is None:
            return None
        constant, maker = self.index.constants.get(place), self.index.makers.get(place)
        if constant is None and maker is not None and maker.op == "Constant" and "value" in maker.attributes:
            value = maker.attributes["value"].value
            constant = value if isinstance(value, Constant) else None
        return (place, constant) if constant is not None else None

    def quantization(
        self, path: str, names: Sequence[str], node: Node, shape: Shape, codes: DType | None
    ) -> tuple[Quantization, tuple[ValueId, ...]] | None:
        """How codes of a shape are quantized, by the names of their scale and zero, and where these are."""
        found = [each for name in names[:2] if name and (each := self.origin(path, name)) is not None]
        if not found or len(found) < len(list(filter(None, names[:2]))):
            return None
        how = quantization_of(node, [constant for _, constant in found], shape, codes)
        return (how, tuple(place for place, _ in found)) if how is not None else None

    def replaceable(self, places: Sequence[ValueId]) -> bool:
        """Whether a caller may give other tensors in the place of these."""
        return any(may_be_replaced(self.index, self.ir_version, place) for place in places)

    def dequantized(self, path: str, node: Node, inputs: Sequence[KnownValue | None]) -> KnownValue | None:
        """The numbers of codes: a stored tensor of their own, or a stage of a value that is rounded."""
        first = inputs[0] if inputs else None
        if first is not None and first.staged is not None:
            found = self.quantization(path, node.inputs[1:], node, first.shape, first.dtype)
            if found is None or self.replaceable(found[1]):
                return None
            return staged_value(first.staged.dequantized(found[0]))
        codes = self.origin(path, node.inputs[0]) if node.inputs else None
        tensor = codes[1].elements if codes is not None else None
        if codes is None or tensor is None or tensor.info.dtype.name not in CODED:
            return None
        found = self.quantization(path, node.inputs[1:], node, tensor.info.shape, tensor.info.dtype)
        if found is None:
            return None
        numbers = dequantized(tensor, found[0])
        constant = replace(codes[1], tensor=numbers, values=None, info=numbers.info, held=None)
        return self.leaf(numbers, Leaf(codes[0], constant, numbers.info, found[1]))

    def quantized(self, path: str, node: Node, inputs: Sequence[KnownValue | None]) -> KnownValue | None:
        """The codes of a value that is computed."""
        first = inputs[0] if inputs else None
        staged = start_of(first)
        if first is None or staged is None:
            return None
        found = self.quantization(path, node.inputs[1:], node, first.shape, None)
        if found is None or found[0].dtype.is_float8 or self.replaceable(found[1]):
            return None
        return staged_value(staged.quantized(found[0]))

    def staged_product(self, inputs: Sequence[KnownValue | None]) -> KnownValue | None:
        """A value that was rounded, times a stored tensor."""
        first, second = inputs
        if first is None or second is None:
            return None
        staged, other = (first.staged, second) if first.staged is not None else (second.staged, first)
        if staged is None or other.monomial is None or len(other.monomial.factors) != 1:
            return None
        ((factor, _),) = other.monomial.factors
        if factor.kind != VALUE:
            return None
        return staged_value(staged.times(factor.tensor, self.leaves[factor.tensor].stored, other.monomial))

    def quantized_product(
        self, path: str, node: Node, inputs: Sequence[KnownValue | None]
    ) -> KnownValue | None:
        """Codes times codes: what DequantizeLinear of both, Mul and QuantizeLinear make."""
        if len(node.inputs) < 7:
            return None
        names = [*node.inputs, ""]
        sides = [
            self.dequantized(path, replace(node, inputs=tuple(names[at : at + 3])), inputs[at : at + 1])
            for at in (0, 3)
        ]
        made = self.staged_product(sides)
        found = self.quantization(path, names[6:8], node, made.shape, None) if made is not None else None
        if made is None or made.staged is None or found is None or self.replaceable(found[1]):
            return None
        return staged_value(made.staged.quantized(found[0]))

    def call(
        self,
        function: OnnxFunction,
        node: Node,
        inputs: Sequence[KnownValue | None],
        calls: tuple[int, ...],
        bound: _Bound,
    ) -> tuple[KnownValue | None, ...]:
        """The outputs of a call."""
        if not any(inputs) or self.budget < len(function.nodes):
            return self.alone(function)
        self.budget -= len(function.nodes) + 1
        env: _Env = ChainMap(dict(zip(function.inputs, inputs, strict=False)))
        calls = (*calls, node.record.start)
        for name, value in env.items():
            self.note((function.path, name), calls, value, is_formal=True)
        given = {name: bound.get(value.reference, value) for name, value in node.attributes.items()}
        self.scope(function, env, calls, given)
        return tuple(env.get(name) for name in function.outputs)

    def alone(self, function: OnnxFunction) -> tuple[KnownValue | None, ...]:
        """The outputs of a function that do not depend on its inputs."""
        if function.path not in self.unbound:
            self.unbound[function.path] = ()  # for a function that calls itself nothing is known
            env: _Env = ChainMap()
            self.scope(function, env, (), {})
            self.unbound[function.path] = tuple(env.get(name) for name in function.outputs)
        return self.unbound[function.path]


_Rounded: TypeAlias = Callable[[_Walk, str, Node, Sequence[KnownValue | None]], KnownValue | None]
#: The operators on codes, by domain and name.
_ROUNDED: dict[tuple[str, str], _Rounded] = {
    ("", "QuantizeLinear"): _Walk.quantized,
    ("", "DequantizeLinear"): _Walk.dequantized,
    ("com.microsoft", "QuantizeLinear"): _Walk.quantized,
    ("com.microsoft", "DequantizeLinear"): _Walk.dequantized,
    ("com.microsoft", "QLinearMul"): _Walk.quantized_product,
}


def _is_product(value: KnownValue) -> bool:
    return value.monomial is not None and len(value.monomial.factors) > 1


def _is_sum(value: KnownValue) -> bool:
    return value.rows is not None and value.rows.whole >= 0 and len(value.rows.terms) > 1


def _known(numbers: Array, dtype: DType) -> KnownValue:
    return KnownValue(numbers.shape, dtype, numbers)


def _settings(node: Node, bound: _Bound) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, attribute in node.attributes.items():
        given = attribute
        if attribute.reference:
            if attribute.reference not in bound or bound[attribute.reference].reference:
                raise _UnknownError(name)
            given = bound[attribute.reference]
        settings[name] = given.value
    return settings


def _taken(condition: KnownValue | None) -> str:
    """The branch of If that is taken, or ``""`` if that is not known."""
    if condition is None or condition.numbers is None or condition.numbers.size != 1:
        return ""
    return "then_branch" if condition.numbers.reshape(-1)[0] else "else_branch"
