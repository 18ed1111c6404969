"""What scanners of pickles list as dangerous is dangerous here too: their own lists, as pinned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fickling.analysis import UnsafeImportsML
from fickling.fickle import SAFE_BUILTINS, UNSAFE_IMPORTS
from modelscan.settings import DEFAULT_SETTINGS
from picklescan.scanner import _unsafe_globals

from wnconvert.formats.pickle.values import Global, Object
from wnconvert.formats.torch.known_names import DATA
from wnconvert.formats.torch.names import dangerous_names

#: Of a module that is listed whole: no name in it is harmless, but for types of data.
ANY = ("run", "Popen", "_reduce")
#: In a list of modules, and none.
NOT_MODULES = {"compile", "eval", "exec"}


def spread(module: str, names: str | Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in [names] if isinstance(names, str) else names:
        yield from ((module, each) for each in (ANY if name == "*" else (name,)))


def listed() -> set[tuple[str, str]]:
    found = {pair for module, names in _unsafe_globals.items() for pair in spread(module, names)}
    for severity in DEFAULT_SETTINGS["unsafe_globals"].values():
        found |= {pair for module, names in severity.items() for pair in spread(module, names)}
    found |= {pair for module in UNSAFE_IMPORTS - NOT_MODULES for pair in spread(module, "*")}
    found |= {pair for module in UnsafeImportsML.UNSAFE_MODULES for pair in spread(module, "*")}
    return found | {
        pair for module, names in UnsafeImportsML.UNSAFE_IMPORTS.items() for pair in spread(module, names)
    }


def test_every_name_on_a_scanners_list_is_dangerous_as_a_value_and_in_every_kind_of_call() -> None:
    pairs = listed()
    assert len(pairs) > 400
    missed = [
        (module, name, op)
        for module, name in sorted(pairs)
        for op in ("REDUCE", "NEWOBJ", "OBJ", "")
        if not dangerous_names(Object(op, Global(module, name), ()) if op else [Global(module, name)])
    ]
    assert missed == []


def test_what_is_data_in_the_modules_listed_whole_is_known() -> None:
    whole = {*UNSAFE_IMPORTS, *(module for module, names in _unsafe_globals.items() if names == "*")}
    data = {name for name in DATA if name.rpartition(".")[0] in whole}
    assert data - {f"builtins.{name}" for name in SAFE_BUILTINS} == {
        "builtins.Ellipsis",
        "builtins.NotImplemented",
        "types.SimpleNamespace",
    }
