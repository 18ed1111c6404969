"""The model to export: built by a factory, or read from a file that holds one.

A factory is the user's own code, and is run. A file is data: an exported program must be as torch writes it
(``programs``), the code of a TorchScript archive must only compute (``scripts``), and only ``trust`` lets a
file do more, or run Python code that it holds or names.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

import wnconvert
from wnconvert.errors import ArgumentError, InputError, WnconvertError
from wnconvert.messages import listed, printable, refuse_other_than_path
from wnconvert.storage.checkpoint import Checkpoint, open_checkpoint
from wnconvert.storage.files import located, unchanging
from wnconvert.tensors.containers import Container
from wnconvert.verbs.models.loading.programs import is_exported_program, load_exported_program
from wnconvert.verbs.models.loading.scripts import load_script
from wnconvert.verbs.models.loading.weights import load_weights
from wnconvert.verbs.models.proof.functions import Exportable
from wnconvert.verbs.models.proof.report import TimedStep, TimedSteps

__all__ = ["Prepared", "build", "kwargs_of", "prepared"]


_HOW = "MODEL is package.module:factory, path/to/file.py:factory, a .pt2 or a TorchScript archive"
#: Exceptions that are not a failure of the user's code; all others are, BaseException included.
_STOPS = (KeyboardInterrupt, GeneratorExit)


def kwargs_of(text: str) -> dict[str, Any]:
    """The arguments of a factory, from JSON or a file of it (``@file.json``). Raises ``ArgumentError``.

    >>> kwargs_of('{"channels": 8}')
    {'channels': 8}
    """
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not a text file"
            raise ArgumentError(
                f"--kwargs {printable(text)}: it cannot be read ({reason})", fix="check the path"
            ) from error
    example = """give a JSON object, such as --kwargs '{"channels": 8}', or --kwargs @file.json"""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"--kwargs is not JSON: {error}", fix=example) from error
    if not isinstance(found, dict):
        raise ArgumentError(f"--kwargs is a JSON {type(found).__name__}, not an object", fix=example)
    return found


def build(
    model: str, *, kwargs: Mapping[str, Any] | None = None, trust: bool = False, only: str | None = None
) -> Exportable:
    """Build or read the model that ``model`` names.

    ``package.module:factory`` and ``path/to/file.py:factory`` import code and call the factory with
    ``kwargs``: a function or a class, or else a module that exists already; its name may have dots. In a
    file with several pickled modules, ``only`` is the path of the one to take.

    Raises ``ArgumentError`` for a factory that does not exist or fails; ``InputError`` for a file without a
    model, or with one that only ``trust`` may load.
    """
    refuse_other_than_path(model, "a model")
    where, colon, name = model.rpartition(":")
    if colon and where and name and not Path(model).is_file():
        _find_beside(Path(where).parent if _is_file(where) else Path())
        return _made(_attribute(_imported(where), where, name), model, kwargs or {})
    if colon and where and not name and not Path(model).exists():
        raise ArgumentError(
            f"{printable(where)} does not name a factory", fix=f"write {printable(where)}:NAME"
        )
    if kwargs:
        raise ArgumentError("--kwargs are for a factory, and MODEL is a file", fix="leave --kwargs out")
    path = Path(model)
    if not path.exists():
        near = f"{model}:NAME, for a factory in it" if _can_be_imported(model) else _HOW
        raise InputError("there is no such file", where=printable(model), fix=near)
    if path.suffix == ".py":
        raise ArgumentError(
            f"{printable(model)} does not name a factory", fix=f"write {printable(model)}:NAME"
        )
    if is_exported_program(path):
        return load_exported_program(path, trust=trust)
    checkpoint = open_checkpoint(path)
    with unchanging(checkpoint.seen):
        return _held(path, checkpoint, trust=trust, only=only)


# -- factories


def _is_file(where: str) -> bool:
    return where.endswith(".py") or "/" in where


def _can_be_imported(model: str) -> bool:
    if not all(part.isidentifier() for part in model.split(".")):
        return False
    _find_beside(Path())
    with contextlib.suppress(ImportError, ValueError):
        return importlib.util.find_spec(model.partition(".")[0]) is not None
    return False


def _find_beside(folder: Path) -> None:
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
            raise ArgumentError("there is no such file", where=printable(where), fix=_HOW)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ArgumentError("it is not a Python file", where=printable(where), fix=_HOW)
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
    except _STOPS:
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


def _made(factory: Any, model: str, kwargs: Mapping[str, Any]) -> Exportable:
    """Call a factory, or take the module that it is."""
    if isinstance(factory, (nn.Module, ExportedProgram)):
        if kwargs:
            raise ArgumentError(f"{printable(model)} is a module already: leave --kwargs out")
        return factory
    if not callable(factory):
        kind = type(factory).__name__
        raise ArgumentError(
            f"it is a {kind}, which cannot be called to make a model", where=printable(model), fix=_HOW
        )
    try:
        found = factory(**kwargs)
    except _STOPS:
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
    return ArgumentError(f"{doing} fails: {_said(error)}{at}", where=printable(model), fix=fix)


def _is_ours(path: Path) -> bool:
    """Whether a file is part of this package or of the machinery that imports modules."""
    return Path(wnconvert.__file__).parent in path.parents or path.parent.name == "importlib"


def _said(error: BaseException) -> str:
    """The class of an error, with its message if it has one."""
    text = str(error).strip().split("\n")[0]
    return printable(f"{type(error).__name__}: {text}" if text else type(error).__name__)


# -- files


def _held(path: Path, checkpoint: Checkpoint, *, trust: bool, only: str | None) -> nn.Module:
    """The module in a TorchScript archive or in a whole pickled module."""
    if checkpoint.container is Container.TORCHSCRIPT:
        return load_script(path, trust=trust)
    modules = [state.path for state in checkpoint.tree.state_dicts if state.is_module]
    if not modules:
        raise InputError(
            "a checkpoint: it has weights, but not a model that could be run",
            where=str(path),
            fix=f"MODEL is package.module:factory or path/to/file.py:factory, with --weights {path}",
        )
    if not trust:
        raise InputError(
            "a whole pickled module: loading it runs any code that the file names",
            where=str(path),
            fix=f"name a factory, with --weights {path}, which reads only its tensors; or give --trust, if "
            "you know who made it",
        )
    return _trusted(path, modules, only)


def _trusted(path: Path, modules: list[str], only: str | None) -> nn.Module:
    """A whole pickled module, loaded as torch loads it: its code runs."""
    at = next(iter(modules)) if only is None else only.removeprefix(".")
    shown = [each or "." for each in modules]
    if at not in modules:
        raise ArgumentError(
            f"there is no module at {only!r}", fix=f"give --only with one of: {listed(shown)}"
        )
    if only is None and len(modules) > 1:
        raise ArgumentError(
            f"{len(modules)} modules are in it: {listed(shown)}", fix=f"choose one, such as --only {shown[0]}"
        )
    _find_beside(Path())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about classes whose source has changed
            found = torch.load(path, map_location="cpu", weights_only=False)
    except _STOPS:
        raise
    except BaseException as error:
        raise InputError(
            f"torch cannot load it: {_said(error)}",
            where=str(path),
            fix="run in the folder of the model's code, or name its factory with --weights",
        ) from error
    for key in filter(None, at.split(".")):
        found = found[key] if isinstance(found, Mapping) else found[int(key)]
    if not isinstance(found, nn.Module):
        raise InputError(f"it holds a {type(found).__name__}, not an nn.Module", where=str(path))
    return found


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model ready to be exported, and the steps that made it."""

    module: Exportable
    steps: tuple[TimedStep, ...]
    notes: tuple[str, ...] = ()


def prepared(
    model: str,
    *,
    weights: str | None = None,
    kwargs: str | None = None,
    only: str | None = None,
    strip_prefix: Iterable[str] = (),
    trust: bool = False,
    progress: Callable[[TimedStep], None] = lambda step: None,
) -> Prepared:
    """Build what ``model`` names, with ``kwargs`` as JSON, and load ``weights`` into it.

    ``progress`` is called as each step begins and ends. Raises the errors of ``build`` and ``load_weights``.
    """
    arguments = None if kwargs is None else kwargs_of(kwargs)
    if weights is not None:
        open_checkpoint(weights)  # errors in it come before the model's code runs
    steps = TimedSteps(progress)
    with steps("build", model) as step:
        made = build(model, kwargs=arguments, trust=trust, only=only if weights is None else None)
        step.detail = type(made).__name__
    notes: tuple[str, ...] = ()
    if weights is not None:
        with steps("load", weights) as step:
            loaded = load_weights(made, located(weights), only=only, strip_prefix=strip_prefix)
            step.detail, notes = str(loaded), loaded.notes
    elif not Path(model).is_file():
        notes = ("no --weights are given: the model keeps the weights of its factory",)
    return Prepared(made, tuple(steps.every), notes)
