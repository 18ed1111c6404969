"""Factories of the user's: code that is imported, and called to make a model."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch.export import ExportedProgram

import wnconvert
from wnconvert.errors import ArgumentError, WnconvertError
from wnconvert.messages import listed, printable
from wnconvert.verbs.models.proof.functions import Exportable

__all__ = ["HOW", "STOPS", "can_be_imported", "factory_of", "import_beside", "made_by", "said"]


#: What a model is named by.
HOW = (
    "MODEL is package.module:factory, path/to/file.py:factory, a folder with a config.json, a .pt2 or a "
    "TorchScript archive"
)
#: Exceptions that are not a failure of the user's code; all others are, BaseException included.
STOPS = (KeyboardInterrupt, GeneratorExit)


def factory_of(where: str, name: str) -> Any:
    """What ``where:name`` names: ``where`` is a module or a file, which is imported, ``name`` may have dots.

    Raises ``ArgumentError`` for what is not there, and for code that fails.
    """
    import_beside(Path(where).parent if _is_file(where) else Path())
    with _unwarned():
        return _attribute(_imported(where), where, name)


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """What torch warns of in the user's code, such as old weight norm, is no failure, whatever -W says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _is_file(where: str) -> bool:
    return where.endswith(".py") or "/" in where


def can_be_imported(model: str) -> bool:
    """Whether a text names a module, as where ``:factory`` was left out."""
    if not all(part.isidentifier() for part in model.split(".")):
        return False
    import_beside(Path())
    with contextlib.suppress(ImportError, ValueError):
        return importlib.util.find_spec(model.partition(".")[0]) is not None
    return False


def import_beside(folder: Path) -> None:
    """Let modules in a folder be imported, as for a script that is run there."""
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.insert(0, place)


def _imported(where: str) -> ModuleType:
    """The module of a path or dotted name; a file is run anew."""
    try:
        if not _is_file(where):
            return importlib.import_module(where)
        path = Path(where)
        if not path.is_file():
            raise ArgumentError("there is no such file", where=printable(where), fix=HOW)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ArgumentError("it is not a Python file", where=printable(where), fix=HOW)
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
    except WnconvertError:
        raise
    except ModuleNotFoundError as error:
        lacking = error.name or ""
        if _is_file(where) or not f"{where}.".startswith(f"{lacking}."):
            fix = f"install {printable(lacking)}, or run in the environment of the model"
            raise ArgumentError(
                f"it imports {printable(lacking)}, which is not installed", where=printable(where), fix=fix
            ) from error
        raise ArgumentError(
            f"there is no module {printable(lacking)}",
            where=printable(where),
            fix="run in the folder that holds it, install it, or name its file: path/to/file.py:factory",
        ) from error
    except STOPS:
        raise
    except BaseException as error:
        raise _fails(where, error, "importing it") from error
    return module


def _attribute(module: ModuleType, where: str, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [each for each in dir(found) if not each.startswith("_")]
            near = get_close_matches(part, public, 3)
            made = [each for each in public if _makes_modules(getattr(found, each, None), module)]
            fix = f"did you mean {listed(near)}?" if near else f"it has {listed(made) or 'no factory'}"
            raise ArgumentError(f"it has no {printable(part)}", where=printable(where), fix=printable(fix))
        found = getattr(found, part)
    return found


def _makes_modules(value: Any, module: ModuleType) -> bool:
    if isinstance(value, nn.Module):
        return True
    own = getattr(value, "__module__", None) == module.__name__
    return own and (inspect.isfunction(value) or (inspect.isclass(value) and issubclass(value, nn.Module)))


def made_by(factory: Any, model: str, kwargs: Mapping[str, Any]) -> Exportable:
    """Call a factory, or take the module that it is."""
    if isinstance(factory, (nn.Module, ExportedProgram)):
        if kwargs:
            raise ArgumentError(f"{printable(model)} is a module already: leave --kwargs out")
        return factory
    if not callable(factory):
        kind = type(factory).__name__
        raise ArgumentError(
            f"it is a {kind}, which cannot be called to make a model", where=printable(model), fix=HOW
        )
    try:
        with _unwarned():
            found = factory(**kwargs)
    except STOPS:
        raise
    except BaseException as error:
        raise _fails(model, error, "calling it") from error
    if not isinstance(found, (nn.Module, ExportedProgram)):
        kind = type(found).__name__
        raise ArgumentError(
            f"it returns a {kind}, not an nn.Module",
            where=printable(model),
            fix="name a factory that returns the module to export",
        )
    return found


def _fails(model: str, error: BaseException, doing: str) -> ArgumentError:
    """The error for a failure of the user's code, with its message and the line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_ours(Path(frame.filename))]
    own = [frame for frame in own if not frame.filename.startswith("<")]
    at = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    fix = "give its arguments by --kwargs '{…}'" if isinstance(error, TypeError) else "mend the code there"
    return ArgumentError(f"{doing} fails: {said(error)}{at}", where=printable(model), fix=fix)


def _is_ours(path: Path) -> bool:
    """Whether a file is part of this package or of the machinery that imports modules."""
    return Path(wnconvert.__file__).parent in path.parents or path.parent.name == "importlib"


def said(error: BaseException) -> str:
    """The class of an error, with its message if it has one."""
    text = str(error).strip().split("\n")[0]
    return printable(f"{type(error).__name__}: {text}" if text else type(error).__name__)
