"""Sites of the old weight norm in Python code, counted by its tokens alone."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["OldSite", "old_sites"]


_FUNCTIONS = ("weight_norm", "remove_weight_norm")
_HALF = re.compile(r"(?<![A-Za-z0-9_])weight_[gv](?![A-Za-z0-9_])")
_HOMES = ("torch.nn.utils", "torch.nn.utils.weight_norm")
_NEW_HOMES = ("torch.nn.utils.parametrizations", "torch.nn.utils.parametrize")


@dataclass(frozen=True)
class OldSite:
    """A line in which the old form is used, and how: imported, used, reached through a module, a half."""

    line: int
    kind: str


def old_sites(code: str) -> list[OldSite]:
    """The sites of a file, as far as it has tokens.

    >>> old_sites("from torch.nn.utils import weight_norm as wn\\nf(wn(x), weight_norm=3)\\nm.weight_g\\n")
    [OldSite(line=1, kind='import'), OldSite(line=2, kind='use'), OldSite(line=3, kind='half')]
    >>> old_sites("from paddle.nn.utils import weight_norm\\nweight_norm(x)\\nm.remove_weight_norm()\\n")
    []
    """
    tokens = list(_tokens(code))
    inside, names, modules = _imports(tokens)
    return [
        OldSite(token.start[0], kind)
        for at, token in enumerate(tokens)
        if (kind := _kind(tokens, at, inside, names, modules))
    ]


def _tokens(code: str) -> Iterator[tokenize.TokenInfo]:
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT)
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            if token.type not in skipped:
                yield token
    except (tokenize.TokenError, IndentationError, SyntaxError):
        return


def _imports(tokens: list[tokenize.TokenInfo]) -> tuple[dict[int, str], set[str], set[str]]:
    """The tokens of imports with the module, the names of old functions, and those of torch.nn.utils."""
    inside: dict[int, str] = {}
    old, new, modules = set[str](), set[str](), {"utils"}
    for first, token in enumerate(tokens):
        if token.string not in ("from", "import") or not _begins(tokens, first):
            continue
        last = next(at for at in range(first, len(tokens)) if tokens[at].string in ("\n", "\r\n", ";", ""))
        words = [one.string for one in tokens[first + 1 : last]]
        module = (
            "".join(words[: words.index("import")]) if token.string == "from" and "import" in words else ""
        )
        inside |= dict.fromkeys(range(first, last), module)
        named = re.findall(
            r"([\w.]+)(?: as (\w+))?",
            " ".join(words).replace(" . ", ".").partition("import ")[2] or " ".join(words),
        )
        for name, local in named:
            if name in _FUNCTIONS and module in _HOMES:
                old.add(local or name)
            if name in _FUNCTIONS and module in _NEW_HOMES:
                new.add(local or name)
            if name == "torch.nn.utils" and local:
                modules.add(local)
    return inside, old - new, modules


def _begins(tokens: list[tokenize.TokenInfo], at: int) -> bool:
    return (
        at == 0
        or tokens[at - 1].string in ("\n", "\r\n", ";", ":", "")
        or tokens[at - 1].type == tokenize.NEWLINE
    )


def _kind(
    tokens: list[tokenize.TokenInfo], at: int, inside: dict[int, str], names: set[str], modules: set[str]
) -> str:
    """How the old form is used at a token; empty where it is not."""
    token = tokens[at]
    before = tokens[at - 1].string if at else ""
    after = tokens[at + 1].string if at + 1 < len(tokens) else ""
    if at in inside:
        owned = inside[at] in _HOMES and bool(
            names & {*_FUNCTIONS, after, *(one.string for one in tokens[at : at + 3])}
        )
        return "import" if token.string in _FUNCTIONS and owned and before != "." else ""
    if token.type == tokenize.STRING:
        key = _HALF.search(token.string) and not re.search(r"\s", token.string.strip())
        return "half" if key and not _is_docstring(tokens, at) else ""
    if token.type != tokenize.NAME:
        return ""
    if before == ".":
        owner = tokens[at - 2].string
        if token.string in _FUNCTIONS and owner in modules:
            return "use"
        return "half" if token.string in ("weight_g", "weight_v") else ""
    declared = before in ("def", "class", "as") or (after == "=" and before in ("(", ","))
    return "use" if token.string in names and not declared else ""


def _is_docstring(tokens: list[tokenize.TokenInfo], at: int) -> bool:
    return tokens[at + 1].type == tokenize.NEWLINE and _begins(tokens, at)
