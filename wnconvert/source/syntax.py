"""Calls and imports rewritten by LibCST, so that comments and layout stay: texts of one call or statement."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import libcst

__all__ = ["behind_last_argument", "module_span", "without_names"]


_FROM = re.compile(r"from[\s\\]+([\w.]+)")


def module_span(statement: str) -> tuple[int, int]:
    """Where the module's name stands in ``from … import …``.

    >>> module_span("from torch.nn import utils")
    (5, 13)
    """
    found = _FROM.match(statement)
    if found is None:
        raise ValueError(f"no import from a module: {statement}")
    return found.span(1)


def behind_last_argument(call: str) -> int:
    """The offset behind the last argument of a call, before a comma or a comment.

    >>> behind_last_argument("f((m) , )")
    5
    """
    import libcst as cst

    code = cst.Module([]).code_for_node
    node = cst.parse_expression(f"({call})")  # so that it may have several lines
    if not isinstance(node, cst.Call) or not node.args:
        raise ValueError(f"no call with arguments: {call}")
    *others, last = node.args
    bare = last.with_changes(comma=cst.MaybeSentinel.DEFAULT, whitespace_after_arg=cst.SimpleWhitespace(""))
    before = [node.func, node.whitespace_after_func, node.whitespace_before_args, *others, bare]
    return len("".join(map(code, before)).encode()) + 1


def without_names(statement: str, gone: Sequence[str]) -> tuple[str, Mapping[str, str]]:
    r"""An import from a module without some names, and the comments that stood behind these.

    >>> without_names("from a import (\n    b,  # why\n    c,\n)", ["b"])
    ('from a import (\n    c,\n)', {'b': '# why'})
    """
    import libcst as cst

    line = cst.parse_statement(statement)
    node: Any = line.body[0]  # type: ignore[index]
    kept = [alias for alias in node.names if alias.name.value not in gone]
    comments = {alias.name.value: _comment(alias) for alias in node.names if alias.name.value in gone}
    changed = node.with_changes(names=kept)
    if kept[-1] is not node.names[-1]:
        changed = _ended(changed, node)
    return cst.Module([]).code_for_node(changed), {name: text for name, text in comments.items() if text}


def _ended(node: Any, whole: Any) -> Any:
    """An import whose last names are gone: it ends as the whole did, and the last name keeps its comment."""
    import libcst as cst

    *others, last = node.names
    old, own = whole.names[-1].comma, last.comma
    spread = isinstance(own.whitespace_after, cst.ParenthesizedWhitespace)
    trailing = isinstance(old, cst.Comma)
    if spread:
        end = old.whitespace_after if trailing else node.rpar.whitespace_before
        line = getattr(end, "last_line", cst.SimpleWhitespace(""))
        comma = own.with_changes(whitespace_after=own.whitespace_after.with_changes(last_line=line))
    else:
        comma = (
            own.with_changes(whitespace_after=cst.SimpleWhitespace(""))
            if trailing
            else cst.MaybeSentinel.DEFAULT
        )
    changed = node.with_changes(names=[*others, last.with_changes(comma=comma)])
    if spread and not trailing:
        rpar = node.rpar.with_changes(whitespace_before=cst.SimpleWhitespace(""))
        return changed.with_changes(rpar=rpar)
    return changed


def _comment(alias: libcst.ImportAlias) -> str:
    """The comments behind a name of an import, on one line."""
    code = (
        ""
        if isinstance(alias.comma, str) or not hasattr(alias.comma, "whitespace_after")
        else _rendered(alias.comma)
    )
    return "  ".join(re.findall(r"#[^\n]*", code))


def _rendered(node: Any) -> str:
    import libcst as cst

    return cst.Module([]).code_for_node(node)
