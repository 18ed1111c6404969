"""The model that is named: built by a factory, by its class for a folder, or read from a file that holds one.

A factory is the user's own code, and is run. A folder and a file are data: an exported program must be as
torch writes it (``programs``), the code of a TorchScript archive must only compute (``scripts``), and only
``trust`` lets a file do more, or run Python code that it holds or names. What a model will take is told
before it is built, as far as that is sure.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from wnconvert.errors import ArgumentError, InputError
from wnconvert.frozen import dataclass
from wnconvert.messages import listed, printable, refuse_other_than_path
from wnconvert.storage.checkpoint import Checkpoint, open_checkpoint
from wnconvert.storage.files import located, unchanging
from wnconvert.storage.folder.config import named_class
from wnconvert.tensors.containers import Container
from wnconvert.verbs.models.loading.factories import (
    HOW,
    STOPS,
    can_be_imported,
    factory_of,
    import_beside,
    made_by,
    said,
)
from wnconvert.verbs.models.loading.folders import class_settings, folder_model
from wnconvert.verbs.models.loading.programs import is_exported_program, load_exported_program
from wnconvert.verbs.models.loading.scripts import load_script
from wnconvert.verbs.models.proof.functions import Exportable
from wnconvert.verbs.models.proof.inputs.forwards import (
    Forward,
    class_promised,
    forward_of,
    forward_of_class,
)
from wnconvert.verbs.models.proof.inputs.proposed import Proposal, proposed_by_names

__all__ = ["FoundModel", "build", "find_model", "kwargs_of"]


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


@dataclass(frozen=True, slots=True)
class FoundModel:
    """What MODEL names, before it is built, and what builds it.

    ``class_name`` and ``forward`` are those of the model to come, as far as they are sure, and ``proposal``
    has texts for its inputs. ``weights`` is where they lie if the user names no others.
    """

    build: Callable[[], Exportable]
    class_name: str = ""
    forward: Forward | None = None
    proposal: Proposal | None = None
    weights: Path | None = None
    notes: tuple[str, ...] = ()


def build(
    model: str, *, kwargs: Mapping[str, Any] | None = None, trust: bool = False, only: str | None = None
) -> Exportable:
    """Build or read the model that ``model`` names; that of a folder without its weights.

    The arguments and errors are those of ``find_model``. Raises ``ArgumentError`` for a factory that fails
    too, and ``InputError`` for a file without a model, or with one that only ``trust`` may load.
    """
    return find_model(model, kwargs=kwargs, trust=trust, only=only).build()


def find_model(
    model: str, *, kwargs: Mapping[str, Any] | None = None, trust: bool = False, only: str | None = None
) -> FoundModel:
    """Find what ``model`` names, and what the model will take; nothing is built yet.

    ``package.module:factory`` and ``path/to/file.py:factory`` import code, to call the factory with
    ``kwargs``: a function or a class, or else a module that exists already; its name may have dots. A folder
    is built by the class of transformers or diffusers in its ``config.json``, with ``kwargs`` in place of
    settings there. In a file with several pickled modules, ``only`` is the path of the one to take.

    Raises ``ArgumentError`` for a factory that does not exist, ``InputError`` for a file or folder that does
    not name a model.
    """
    refuse_other_than_path(model, "a model")
    where, colon, name = model.rpartition(":")
    path = Path(model)
    if colon and where and name and not path.exists():
        return _of_factory(factory_of(where, name), model, kwargs or {})
    if colon and where and not name and not path.exists():
        raise ArgumentError(
            f"{printable(where)} does not name a factory", fix=f"write {printable(where)}:NAME"
        )
    if path.is_dir():
        return _of_folder(path, kwargs or {}, trust=trust)
    if kwargs:
        raise ArgumentError("--kwargs are for a factory, and MODEL is a file", fix="leave --kwargs out")
    if not path.exists():
        near = f"{model}:NAME, for a factory in it" if can_be_imported(model) else HOW
        raise InputError("there is no such file", where=printable(model), fix=near)
    if path.suffix == ".py":
        raise ArgumentError(
            f"{printable(model)} does not name a factory", fix=f"write {printable(model)}:NAME"
        )
    if is_exported_program(path):
        return FoundModel(partial(load_exported_program, path, trust=trust))
    return FoundModel(partial(_held, path, trust=trust, only=only))


def _of_factory(factory: Any, model: str, kwargs: Mapping[str, Any]) -> FoundModel:
    made = partial(made_by, factory, model, kwargs)
    if isinstance(factory, (nn.Module, ExportedProgram)):
        return FoundModel(made, type(factory).__name__, forward_of(factory))
    cls = class_promised(factory)
    forward = None if cls is None else forward_of_class(cls)
    if cls is None or forward is None:
        return FoundModel(made)
    known = class_settings(cls, _config_of(kwargs))
    if known is None:
        return FoundModel(made, cls.__name__, forward, proposed_by_names(forward))
    proposal = known[0].proposal(forward, known[1])
    return FoundModel(made, cls.__name__, proposal.narrowed(forward), proposal)


def _config_of(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of a folder that is given to ``from_pretrained``; empty where none is on this disk."""
    name = kwargs.get("pretrained_model_name_or_path")
    named = named_class(located(name)) if isinstance(name, str) and Path(name).is_dir() else None
    return {} if named is None else named.config


def _of_folder(path: Path, kwargs: Mapping[str, Any], *, trust: bool) -> FoundModel:
    if trust:
        raise ArgumentError(
            "--trust is of a file: code in a folder is never run", fix="leave --trust out, or name a factory"
        )
    found = folder_model(path, kwargs)
    forward = forward_of_class(found.cls)
    if forward is None:  # another version of the library may build its classes in other ways
        return FoundModel(found.build, found.cls.__name__, weights=found.root, notes=found.notes)
    proposal = found.known.proposal(forward, found.settings)
    narrowed = proposal.narrowed(forward)
    return FoundModel(found.build, found.cls.__name__, narrowed, proposal, found.root, found.notes)


# -- files


def _held(path: Path, *, trust: bool, only: str | None) -> nn.Module:
    """The module in a file, which does not change while it is read."""
    checkpoint = open_checkpoint(path)
    with unchanging(checkpoint.seen):
        return _module_in(path, checkpoint, trust=trust, only=only)


def _module_in(path: Path, checkpoint: Checkpoint, *, trust: bool, only: str | None) -> nn.Module:
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
    import_beside(Path())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about classes whose source has changed
            found = torch.load(path, map_location="cpu", weights_only=False)
    except STOPS:
        raise
    except BaseException as error:
        raise InputError(
            f"torch cannot load it: {said(error)}",
            where=str(path),
            fix="run in the folder of the model's code, or name its factory with --weights",
        ) from error
    for key in filter(None, at.split(".")):
        found = found[key] if isinstance(found, Mapping) else found[int(key)]
    if not isinstance(found, nn.Module):
        raise InputError(f"it holds a {type(found).__name__}, not an nn.Module", where=str(path))
    return found
