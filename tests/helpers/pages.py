"""README and the pages of docs/ as data: blocks, headings, links, tables, and what is generated into them."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import wnconvert
from tests.helpers.golden import ROOT

README = ROOT / "README.md"
DOCS = ROOT / "docs"
#: The pages whose blocks are run.
PAGES = [README, *sorted(DOCS.glob("*.md"))]
#: Every page whose links are followed.
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "fixtures" / "README.md"]

#: A fenced block, and the words after its backticks.
FENCE = re.compile(r"^```(?P<info>[^\n`]+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
#: What `COMMAND --help` prints.
HELP = re.compile(r"<!-- help: (?P<command>[^\n]+?) -->\n(?P<body>.*?)<!-- /help -->", re.DOTALL)
#: Signatures and first sentences of public names.
PYTHON = re.compile(r"<!-- python: (?P<names>[^\n]+?) -->\n(?P<body>.*?)<!-- /python -->", re.DOTALL)

_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_LINK = re.compile(r"\]\((?P<target>[^()\s]+)\)")
_WIDTH = 100


def page_id(page: Path) -> str:
    """A page's name as the id of a test."""
    return page.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", text)


def links(text: str) -> list[str]:
    """The targets of a page's links and pictures.

    >>> links("[a](rules.md#g), ![b](c.png)\\n```text\\n[no](link)\\n```")
    ['rules.md#g', 'c.png']
    """
    return [match["target"] for match in _LINK.finditer(prose(text))]


def anchors(text: str) -> list[str]:
    """The anchors of a page's headings, as GitHub makes them.

    >>> anchors("# It's `a_b`, isn't it?\\n## Two\\n## Two\\n")
    ['its-a_b-isnt-it', 'two', 'two-1']
    """
    found: list[str] = []
    for match in _HEADING.finditer(prose(text)):
        slug = re.sub(r"[^\w\- ]", "", match[1].strip().lower()).replace(" ", "-")
        repeats = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found)
        found.append(f"{slug}-{repeats}" if repeats else slug)
    return found


def table_rows(text: str, heading: str) -> list[list[str]]:
    """The rows of the tables below a heading, down to the next one of any level.

    >>> table_rows("## a\\n| k | v |\\n|---|---|\\n| `x` | 1 |\\n## b\\n| y | 2 |\\n", "a")
    [['`x`', '1']]
    """
    section = re.split(rf"^#+ {re.escape(heading)}$", text, flags=re.MULTILINE)
    assert len(section) == 2, f"one heading called {heading!r}, not {len(section) - 1}"
    lines = re.split(r"^#+ ", section[1], flags=re.MULTILINE)[0].splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows]
    heads = [at - 1 for at, row in enumerate(cells) if set("".join(row)) <= set("-:")]
    return [row for at, row in enumerate(cells) if at not in heads and at - 1 not in heads]


# -- what stands in python.md


def described(name: str) -> str:
    """A public name in Markdown: what it takes, and the first sentence of its docstring."""
    thing = getattr(wnconvert, name)
    if isinstance(thing, str):
        return f"- **`{name}`**: the version of wnconvert, a string.\n"
    sentence = _first_sentence(thing)
    if isinstance(thing, type) and issubclass(thing, Exception):
        return f"- **`{name}`**, a kind of `{thing.__bases__[0].__name__}`: {sentence}\n"
    code = _class(thing) if isinstance(thing, type) else _signature(name, thing)
    return f"### {name}\n\n{sentence}\n\n```python norun\n{code}\n```\n"


def _first_sentence(thing: object) -> str:
    paragraph = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    return paragraph.replace("``", "`")


def _signature(name: str, function: Callable[..., Any]) -> str:
    found = inspect.signature(function)
    said: list[str] = []
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not any(one.startswith("*") for one in said):
            said.append("*")
        said.append(_parameter(parameter))
    returned = str(found.return_annotation)
    if inspect.isgeneratorfunction(inspect.unwrap(function)):  # it was made a context manager
        returned = returned.replace("Iterator", "AbstractContextManager")
    lines = _packed([f"{one}," for one in said])
    return "\n".join([f"{name}(", *lines, f") -> {returned}"])


def _parameter(parameter: inspect.Parameter) -> str:
    star = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
    said = f"{star}{parameter.name}: {parameter.annotation}"
    if parameter.default is parameter.empty:
        return said
    return f"{said} = {'...' if callable(parameter.default) else repr(parameter.default)}"


def _packed(words: list[str]) -> list[str]:
    """Words in as few lines as they need, none broken."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > _WIDTH - 4:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return textwrap.indent("\n".join(lines), "    ").splitlines()


def _class(thing: type) -> str:
    """A result's attributes and methods; those of a tuple are its own."""
    head = f"class {thing.__name__}:"
    if issubclass(thing, tuple):
        head = f"class {thing.__name__}(tuple):"
    fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
    lines = [f"    {field.name}: {field.type}" for field in fields]
    ours = [kind for kind in thing.__mro__ if kind.__module__.startswith("wnconvert.")]
    for name, member in (pair for kind in ours for pair in vars(kind).items()):
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            returned = inspect.signature(member.fget).return_annotation  # type: ignore[arg-type]
            lines.append(f"    {name}: {returned}")
        elif inspect.isfunction(member):
            lines.append(f"    def {name}{_unquoted(inspect.signature(member))}: ...")
    instance = [] if fields else list(getattr(thing, "__annotations__", {}).items())
    lines[:0] = [f"    {name}: {kind}" for name, kind in instance]
    return "\n".join([head, *lines])


def _unquoted(signature: inspect.Signature) -> str:
    return str(signature).replace("'", "")


# -- JSON, as documented and as it is


def documented(text: str, heading: str) -> dict[str, set[str]]:
    """The types of every path in the tables below a heading: ``layers[].g.min`` → number, null.

    >>> documented("## x\\n| `a` | list of strings | |\\n", "x")
    {'a': {'list'}, 'a[]': {'string'}}
    """
    types: dict[str, set[str]] = {}
    for path, kinds, *_ in table_rows(text, heading):
        for said in kinds.split(" or "):
            kind, _, items = said.partition(" of ")
            types.setdefault(path.strip("`"), set()).add(kind)
            if items:
                types.setdefault(f"{path.strip('`')}[]", set()).add(items.removesuffix("s"))
    return types


def observed(value: object, types: Mapping[str, set[str]], path: str = "") -> Iterator[tuple[str, str]]:
    """Every path in a JSON value with the type that stands there; free keys, documented as ``x.*``, are one.

    >>> list(observed({"a": [1.5], "b": {"T": 3}}, {"b.*": {"integer"}}))
    [('a', 'list'), ('a[]', 'number'), ('b', 'object'), ('b.*', 'integer')]
    """
    if path:
        yield path, _json_type(value)
    if isinstance(value, dict):
        free = f"{path}.*" in types
        for key, item in value.items():
            yield from observed(item, types, f"{path}.{'*' if free else key}".lstrip("."))
    elif isinstance(value, list):
        for item in value:
            yield from observed(item, types, f"{path}[]")


def _json_type(value: object) -> str:
    kinds = {bool: "bool", int: "integer", float: "number", str: "string", list: "list", dict: "object"}
    return "null" if value is None else kinds[type(value)]
