"""The texts that are allowed in an exported program, by place: torch makes code of most of them.

The rules are grammars: of sizes (sympy evaluates them), guards (torch runs them), trees (torch imports their
types), names (they are part of generated code) and operators (they are called). None is evaluated here.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import keyword
import re
from collections.abc import Callable
from typing import Any

from wnconvert.verbs.models.loading.operators import registered

__all__ = ["KEYS", "PLAIN", "TEXTS", "TextRule"]


_MOST_TEXT = 20_000  # characters of one expression
_MOST_DIGITS = 20  # of a number in one: 64 bits
_MOST_POWER = 64


@dataclasses.dataclass(frozen=True)
class TextRule:
    """The texts that are allowed in a place, and a description of all others for the error."""

    holds: Callable[[str], object]
    otherwise: str


def _matching(pattern: str) -> Callable[[str], object]:
    return re.compile(pattern, re.ASCII).fullmatch


@functools.cache
def _operators() -> frozenset[str]:
    """Targets that a node may call: torch's registered operators, arithmetic of sizes, control flow."""
    found = {f"torch.ops.{library}.{base}.{overload}" for library, base, overload in registered()}
    python = "eq ne le ge lt gt neg pos mul add sub floordiv mod pow truediv and_ or_ lshift rshift".split()
    sizes = "sym_not sym_int sym_float sym_ite sym_max sym_min _sym_sqrt".split()
    graphs = "cond while_loop scan map_impl wrap_with_set_grad_enabled wrap_with_autocast".split()
    return frozenset(
        found
        | {f"_operator.{each}" for each in python}
        | {f"torch.{each}" for each in sizes}
        | {f"torch.ops.higher_order.{each}" for each in graphs}
        | {"math.trunc"}
    )


def _parsed(text: str) -> ast.expr | None:
    """The text parsed as an expression; None if that fails."""
    if len(text) > _MOST_TEXT:
        return None
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_literal(node: ast.expr) -> bool:
    """Whether an expression is a number that is not too large."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    if not isinstance(node, ast.Constant) or type(node.value) not in (int, float):
        return False
    return type(node.value) is float or node.value < 10**_MOST_DIGITS


def _is_power(base: ast.expr, exponent: ast.expr) -> bool:
    """Whether a power stays small: the exponent is a small number, and there is no power in the base."""
    if isinstance(exponent, ast.Call) and ast.unparse(exponent.func) in ("Integer", "Rational"):
        return all(_is_power(base, each) for each in exponent.args)
    powers = [
        each
        for each in ast.walk(base)
        if (isinstance(each, ast.BinOp) and isinstance(each.op, ast.Pow))
        or (isinstance(each, ast.Name) and each.id in _POWERS)
    ]
    return not powers and _is_literal(exponent) and abs(ast.literal_eval(exponent)) <= _MOST_POWER


_POWERS = frozenset("Pow PowByNatural FloatPow LShift RShift".split())
#: Functions that sympy's ``srepr`` writes and torch reads (torch/_export/serde/serialize.py).
_FUNCTIONS = frozenset(
    """
    Add Mul Max Min Mod Abs Not And Or Equality Unequality
    GreaterThan LessThan StrictGreaterThan StrictLessThan Piecewise ExprCondPair floor ceiling Rational
    FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv FloatTrueDiv IntTrueDiv
    IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt ToFloat Identity
    """.split()
)
_ASSUMPTIONS = frozenset(
    "positive negative nonnegative nonpositive zero nonzero integer real finite rational even odd".split()
)
_IN_EXPRESSIONS = re.compile(r"[\w '=(),.+*/-]*", re.ASCII)
_SYMBOL = re.compile(r"[a-z]{1,4}[0-9]{1,6}", re.ASCII)
_FLOAT = re.compile(r"-?[0-9]{0,40}\.?[0-9]{0,40}(e[+-]?[0-9]{1,3})?", re.ASCII)


@functools.lru_cache(1024)
def _is_expression(text: str) -> bool:
    """Whether a text is a size as torch writes it: torch passes it to sympy, and sympy to ``eval``.

    >>> _is_expression("Add(Mul(Integer(2), Symbol('s53', positive=True, integer=True)), Integer(1))")
    True
    >>> _is_expression("Symbol.as_dummy.__globals__"), _is_expression("Pow(Integer(9), Integer(999999))")
    (False, False)
    """
    node = _parsed(text) if _IN_EXPRESSIONS.fullmatch(text) and "__" not in text else None
    try:
        return node is not None and _is_size(node)
    except RecursionError:
        return False


def _is_size(node: ast.expr) -> bool:
    match node:
        case ast.Name(id=name):
            return name in ("true", "false", "oo") or bool(_SYMBOL.fullmatch(name))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _is_size(left) and _is_power(left, right)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), right=right):
            return _is_size(left) and _is_size(right)
        case ast.Call(func=ast.Name(id=function), args=args, keywords=keywords):
            return _is_function(function, args, keywords)
    return _is_literal(node)


def _is_function(name: str, args: list[ast.expr], keywords: list[ast.keyword]) -> bool:
    texts = [each.value for each in args if isinstance(each, ast.Constant)]
    match name, texts:
        case "Symbol", [str(text)]:
            flags = all(
                each.arg in _ASSUMPTIONS
                and isinstance(each.value, ast.Constant)
                and type(each.value.value) is bool
                for each in keywords
            )
            return flags and len(args) == 1 and bool(_SYMBOL.fullmatch(text))
        case "Float", [str(text)]:
            precise = [each.value for each in keywords if each.arg == "precision"]
            few = all(isinstance(each, ast.Constant) and each.value == 53 for each in precise)  # of a double
            return len(args) == 1 and bool(_FLOAT.fullmatch(text)) and few and len(precise) == len(keywords)
    if keywords:
        return False
    if name in _POWERS:
        return len(args) == 2 and all(map(_is_size, args)) and _is_power(args[0], args[1])
    if name == "Integer":
        return len(args) == 1 and _is_literal(args[0])
    return name in _FUNCTIONS and all(map(_is_size, args))


_IN_GUARDS = re.compile(r"[\w '\[\](),.+*/%<>=!:-]*", re.ASCII)
#: What torch's printers of Python write (torch/utils/_sympy/printers.py); sym_max and sym_min since 2.14.
_CALLED_IN_GUARDS = frozenset(
    """
    max min abs round math.floor math.ceil math.trunc math.sqrt math.log2 torch.sym_float torch._sym_sqrt
    torch.sym_max torch.sym_min IsNonOverlappingAndDenseIndicator
    """.split()
)


@functools.lru_cache(1024)
def _is_guard(text: str) -> bool:
    """Whether a text compares sizes of inputs: torch puts it into a function and calls ``exec``.

    >>> _is_guard("L['y'].size()[2] == (2*L['x'].size()[2])"), _is_guard("math.__loader__.load_module('os')")
    (True, False)
    """
    node = _parsed(text) if _IN_GUARDS.fullmatch(text) and "__" not in text else None
    try:
        return node is not None and _is_condition(node)
    except RecursionError:
        return False


def _is_condition(node: ast.expr) -> bool:
    """Whether an expression is arithmetic or a comparison of numbers and sizes."""
    parts = _operands(node)
    if parts is not None:
        return all(map(_is_condition, parts))
    return _is_literal(node) or _is_source(node) or _is_measure(node) or _is_constant(node)


def _operands(node: ast.expr) -> list[ast.expr] | None:
    parts: list[ast.expr] | None = None
    match node:
        case ast.Compare(left=left, ops=ops, comparators=others):
            if all(
                isinstance(each, ast.Eq | ast.NotEq | ast.Lt | ast.LtE | ast.Gt | ast.GtE) for each in ops
            ):
                parts = [left, *others]
        case ast.BoolOp(values=values):
            parts = values
        case ast.IfExp(test=test, body=body, orelse=other):
            parts = [test, body, other]
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            parts = [operand]
        case ast.BinOp(left=left, op=op, right=right):
            plain = isinstance(op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.FloorDiv | ast.Mod)
            if plain or (isinstance(op, ast.Pow) and _is_power(left, right)):
                parts = [left, right]
        case ast.Call(func=function, args=args, keywords=[]):
            parts = args if ast.unparse(function) in _CALLED_IN_GUARDS else None
    return parts


def _is_constant(node: ast.expr) -> bool:
    match node:
        case ast.Attribute(value=ast.Name(id="math"), attr="inf" | "nan") | ast.Constant(value=bool()):
            return True
    return False


def _is_measure(node: ast.expr) -> bool:
    """Whether an expression reads a size of a tensor: ``L['x'].size()[2]``."""
    match node:
        case ast.Subscript(value=ast.Call(func=ast.Attribute(value=source, attr=name), args=[], keywords=[])):
            return name in ("size", "stride") and _is_source(source) and _is_index(node.slice)
        case ast.Call(func=ast.Attribute(value=source, attr="storage_offset"), args=[], keywords=[]):
            return _is_source(source)
    return False


def _is_source(node: ast.expr) -> bool:
    """Whether an expression is an input, ``L['x']``, or lies in one, ``L['batch']['mel'][0]``."""
    if not isinstance(node, ast.Subscript) or not (_is_index(node.slice) or _is_key(node.slice)):
        return False
    if isinstance(node.value, ast.Name):
        return node.value.id == "L" and _is_key(node.slice)
    return _is_source(node.value)


def _is_index(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int


def _is_key(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is str and bool(PLAIN.holds(node.value))


@functools.lru_cache(1024)
def _is_tree(text: str) -> bool:
    """Whether a text describes tuples, lists and dicts only: other types name modules that torch imports.

    Keywords of ``forward`` are the keys of a dict next to the tuple of the other inputs.
    """
    try:
        version, root = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return False
    if version != 1 or not _is_branch(root):
        return False
    children = root["children_spec"]
    if len(children) != 2 or children[0]["type"] != "builtins.tuple":
        return True
    keywords = json.loads(children[1]["context"] or "null")
    return keywords is None or all(type(each) is str and _OPEN_NAME.holds(each) for each in keywords)


def _is_branch(spec: Any) -> bool:
    if type(spec) is not dict or type(spec.get("children_spec")) is not list or "context" not in spec:
        return False
    children, kind, context = spec["children_spec"], spec.get("type"), spec["context"]
    if kind is None:
        return context is None and not children
    if kind in ("builtins.tuple", "builtins.list"):
        fits = context == "null"
    else:
        fits = kind in ("builtins.dict", "collections.OrderedDict") and _is_keys(context, len(children))
    return fits and all(map(_is_branch, children))


def _is_keys(text: Any, count: int) -> bool:
    try:
        keys = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return False
    if type(keys) is not list or len(keys) != count:
        return False
    return all(type(each) is int or (type(each) is str and PLAIN.holds(each)) for each in keys)


def _are_functions(text: str) -> bool:
    """Whether a text names origins of nodes, which are not called: ``add,_operator.add;…``."""
    pairs = [each.partition(",")[::2] for each in text.split(";")]
    return all(_NAME.holds(name) and _FUNCTION.fullmatch(target) for name, target in pairs)


_FUNCTION = re.compile(r"(__main__|(?!__)\w+)(\.(?!__)[\w<>]+){0,99}", re.ASCII)
_ANY = TextRule(lambda text: True, "")
#: Excludes the keywords of Python.
_WORDS = rf"(?!({'|'.join(keyword.kwlist)})\Z)"
_NAME = TextRule(
    _matching(_WORDS + r"[A-Za-z_]\w{0,999}"),
    "a name that is not a Python name without accents, and becomes code",
)
_OPEN_NAME = TextRule(_matching(_WORDS + r"(?!__)[A-Za-z_]\w{0,999}"), _NAME.otherwise)
_NAME_OR_NONE = TextRule(_matching(_WORDS + r"([A-Za-z_]\w{0,999})?"), _NAME.otherwise)
_PATH = TextRule(
    _matching(r"(?!__)[\w-]{1,999}(\.(?!__)[\w-]{1,999})*"),
    "the name of a weight or module with other characters than letters without accents, digits, _ and -",
)
_CALLED_PATH = TextRule(_matching(r"[\w.@-]{0,9999}"), _PATH.otherwise)
PLAIN = TextRule(_matching(r"[\w .:/+<=-]{0,999}"), "a text that may become code")
_OPERATOR = TextRule(lambda text: text in _operators(), "an operator that is not known to be harmless")
_EXPRESSION = TextRule(
    _is_expression, "a size that is not plain arithmetic, and is evaluated when it is loaded"
)
_RANGED = TextRule(
    # torch counts up to the number in the name of a size that depends on data (u3, zuf3).
    _matching(r"[a-z]{1,4}[0-9]{1,5}|(?![uz])[\w +*/(),.-]{1,999}"),
    "a range of a size that is not plain arithmetic",
)
_GUARD = TextRule(_is_guard, "a guard that is not a comparison of sizes, and is run when it is loaded")
_TREE = TextRule(
    _is_tree,
    "inputs or outputs other than tuples, lists and dicts, which may import the types that they name",
)
_FUNCTION_NAMES = TextRule(_are_functions, "the name of a function that torch does not write")

TEXTS = {
    "Device.type": TextRule(_matching("cpu|cuda|mps|xpu|meta"), "a device that is not known"),
    "SymExpr.expr_str": _EXPRESSION,
    "SymIntArgument.as_name": _NAME,
    "SymFloatArgument.as_name": _NAME,
    "SymBoolArgument.as_name": _NAME,
    "TensorArgument.name": _NAME,
    "TokenArgument.name": _NAME,
    "GraphArgument.name": _OPEN_NAME,
    "NamedArgument.name": _NAME_OR_NONE,
    # Some arguments of operators are texts: an equation, a message.
    "NamedArgument.as_string": _ANY,
    "NamedArgument.as_strings": _ANY,
    "NamedArgument.as_operator": _OPERATOR,
    # Programs compare texts in their inputs with those of the export, in code.
    "Graph.as_string": PLAIN,
    "UserInputSpec.as_string": PLAIN,
    "UserOutputSpec.as_string": PLAIN,
    "ModuleCallSignature.as_string": PLAIN,
    "ConstantValue.as_string": PLAIN,
    "Node.target": _OPERATOR,
    "Node.name": _NAME,
    "Node.metadata": _ANY,  # for people, and for matching patterns
    "Node.metadata.source_fn_stack": _FUNCTION_NAMES,
    "GraphModule.metadata": _ANY,
    "InputToConstantInputSpec.name": _NAME,
    "InputToParameterSpec.parameter_name": _PATH,
    "InputToBufferSpec.buffer_name": _PATH,
    "InputToTensorConstantSpec.tensor_constant_name": _PATH,
    "BufferMutationSpec.buffer_name": _PATH,
    "ParameterMutationSpec.parameter_name": _PATH,
    "GradientToParameterSpec.parameter_name": _PATH,
    "GradientToUserInputSpec.user_input_name": _NAME,
    "UserInputMutationSpec.user_input_name": _NAME,
    "ModuleCallSignature.in_spec": _TREE,
    "ModuleCallSignature.out_spec": _TREE,
    "ModuleCallSignature.forward_arg_names": _OPEN_NAME,
    "ModuleCallEntry.fqn": _CALLED_PATH,
    "NamedTupleDef.field_names": _NAME,
    "ExportedProgram.verifiers": TextRule(_matching("[A-Z_]{1,99}"), "a dialect that is not known"),
    "ExportedProgram.torch_version": PLAIN,
    "ExportedProgram.guards_code": _GUARD,
    "PayloadMeta.path_name": TextRule(_matching("(weight|tensor)_[0-9]+"), "a tensor in a place of its own"),
}
KEYS = {
    "NamedArgument.as_string_to_argument": _NAME,
    "Node.metadata": _NAME,
    "Graph.tensor_values": _NAME,
    "Graph.sym_int_values": _NAME,
    "Graph.sym_bool_values": _NAME,
    "Graph.sym_float_values": _NAME,
    "GraphModule.metadata": _NAME,
    "GraphModule.treespec_namedtuple_fields": PLAIN,
    "ExportedProgram.opset_version": PLAIN,
    "ExportedProgram.range_constraints": _RANGED,
    "PayloadConfig.config": _PATH,
}
