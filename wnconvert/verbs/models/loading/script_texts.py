"""The code of TorchScript archives as text: whether it only computes. None of it is compiled or run here.

torch prints code in a small part of Python, plain enough for Python's parser and torch's own to agree on it;
what is not so plain is refused. In it an operator is called as ``torch.NAME`` or ``ops.LIBRARY.NAME``, as
a method of any value (``"path".from_file(…)`` is one), or through ``getattr``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import torch

from wnconvert.verbs.models.loading.operators import is_for_scripts

__all__ = ["fault_of", "is_known_class"]


_MOST_CODE = 64 << 20
#: Strings and comments as torch prints them, which both parsers read alike; and what stands around these.
_ASIDE = re.compile(rb'(?<![\w"])"(?:[^"\\\n]|\\[^\n])*"(?!")|#[^\n]*')
_PLAIN = re.compile(rb"[ !$-&(-\[\]-~\n]*")
_PRINTED = re.compile(rb"[ -~\n]*")
_NODES = """
    Add And AnnAssign Assign Attribute AugAssign BinOp BitAnd BitOr BitXor BoolOp Break Call ClassDef
    Compare Constant Continue Dict Div Eq Expr FloorDiv For FunctionDef Gt GtE If IfExp In Invert Is
    IsNot LShift List Load Lt LtE MatMult Mod Module Mult Name Not NotEq NotIn Or Pass Pow RShift Return
    Slice Starred Store Sub Subscript Tuple UAdd USub UnaryOp While With arg arguments keyword withitem
"""
_WRITTEN = tuple(getattr(ast, name) for name in _NODES.split())
_MODULES = ("torch", "ops", "__torch__")


def fault_of(code: bytes) -> str:
    r"""What speaks against a text of code, for people, or nothing: ``code that calls aten::save (line 3)``.

    >>> fault_of(b"def f(x: Tensor) -> Tensor:\n  return torch.relu(x)\n")
    ''
    >>> fault_of(b'def f(x: Tensor) -> Tensor:\n  x.save("model.pt")\n  return x\n')
    'code that calls aten::save (line 2)'
    """
    is_plain = _PRINTED.fullmatch(code) and _PLAIN.fullmatch(_ASIDE.sub(b"", code))
    if len(code) > _MOST_CODE or not is_plain:
        return "code that torch does not write"
    try:
        tree = ast.parse(code)
        faults = _faults(tree)
        return next((f"code that {fault}{_line(node)}" for node, fault in faults), "")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "code that torch does not write"


def is_known_class(names: list[str]) -> bool:
    """Whether a path in ``__torch__`` is of the archive, or a class of torch's for quantized models."""
    if names[1:3] == ["torch", "classes"]:
        return len(names) > 4 and names[3] in ("quantized", "rnn", "sparse")
    return names != ["__torch__", "torch"]  # by which classes could be reached under another name


def _line(node: ast.AST) -> str:
    return f" (line {node.lineno})" if isinstance(node, ast.stmt | ast.expr) else ""


def _faults(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    nodes = list(ast.walk(tree))
    within = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        if not isinstance(node, _WRITTEN):
            yield node, "torch does not write"
        elif isinstance(node, ast.Attribute) and id(node) not in within:
            for fault in _in_path(node):
                yield node, fault
        elif isinstance(node, ast.Name):
            lonely = node.id in _MODULES and id(node) not in within
            if lonely or (node.id == "getattr" and id(node) not in called):
                yield node, f"hands on {node.id}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            name = node.args[1] if len(node.args) > 1 else None
            if not (isinstance(name, ast.Constant) and isinstance(name.value, str)):
                yield node, "reads attributes by names that it computes"
            elif _is_withheld(name.value):
                yield node, f"calls aten::{name.value}"


def _in_path(node: ast.Attribute) -> Iterator[str]:
    """The faults of attributes of attributes, by the name in front of them."""
    names: list[str] = []
    value: ast.expr = node
    while isinstance(value, ast.Attribute):
        names.append(value.attr)
        value = value.value
    root = value.id if isinstance(value, ast.Name) else ""
    names = [root, *reversed(names)]
    if root == "torch":
        if len(names) != 2 or not is_for_scripts("aten", names[1]):
            yield f"calls aten::{'.'.join(names[1:])}"
    elif root == "ops":
        if len(names) != 3 or not is_for_scripts(names[1], names[2]):
            yield f"calls {'::'.join(names[1:])}"
    elif root == "__torch__":
        if not is_known_class(names):
            yield f"makes {'.'.join(names[1:])}"
    else:
        yield from (f"calls aten::{name}" for name in names[1:] if _is_withheld(name))


def _is_withheld(name: str) -> bool:
    """Whether a method of this name is an operator, and not one that is known to only compute."""
    is_operator = bool(torch._C._jit_get_schemas_for_operator(f"aten::{name}"))
    return is_operator and not is_for_scripts("aten", name)
