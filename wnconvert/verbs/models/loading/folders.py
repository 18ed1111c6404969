"""A folder as the hub lays it out: its model, built by the installed class that its config names.

Nothing in a folder is imported or run. The class is one of a table, and comes from transformers or diffusers
as they are installed; code that lies in the folder (``auto_map``) is left alone, and the weights are read as
data by our own reader.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from wnconvert.errors import ArgumentError, InputError, WnconvertError
from wnconvert.frozen import dataclass
from wnconvert.messages import listed, printable, to_install
from wnconvert.storage.files import local_path, located
from wnconvert.storage.folder.config import CONFIG, NamedClass, class_of_folder
from wnconvert.storage.folder.links import is_entry, snapshot_in
from wnconvert.verbs.models.proof.functions import error_text
from wnconvert.verbs.models.proof.inputs.proposed import KnownClass, known_class
from wnconvert.verbs.models.proof.running import quiet_torch

__all__ = ["FolderModel", "class_settings", "folder_model", "library_class"]


#: The class that all models of a library have.
_BASES = {"transformers": "PreTrainedModel", "diffusers": "ModelMixin"}
#: Settings that choose code in place of numbers, which may be code that is downloaded.
_NO_SETTINGS = ("auto_map", "attn_implementation", "_attn_implementation", "experts_implementation")


@dataclass(frozen=True, slots=True)
class FolderModel:
    """The model of a folder, not yet built: its class, the row of that in the table, and its whole config."""

    root: Path
    cls: type[nn.Module]
    known: KnownClass
    config: Any
    settings: Mapping[str, Any]
    notes: tuple[str, ...]

    def build(self) -> nn.Module:
        """The model with random weights, in float32. Raises ``InputError`` if its library cannot build it."""
        with quiet_torch():
            try:
                model = _BUILDS[self.known.library](self.cls, self.config)
            except Exception as error:
                raise _cannot(self.known.library, self.cls.__name__, self.root, error) from error
        model.eval()
        return model


def folder_model(path: Path, kwargs: Mapping[str, Any]) -> FolderModel:
    """Find the class that a folder names, with ``kwargs`` in place of settings in its config.

    Raises ``InputError`` for a folder that names no class, one that its library does not have, or one that
    is not in the table; ``ArgumentError`` for a setting that the config does not have, and if the library is
    not installed.
    """
    given = located(path)
    root = local_path(snapshot_in(given) if is_entry(given) else given, "its library builds the model")
    named = class_of_folder(root)
    cls = library_class(named, root)
    known = known_class(named.library, named.name)
    if known is None:
        name = f"{named.library}:{named.name}.from_pretrained"
        fix = f"""give {name} --kwargs '{{"pretrained_model_name_or_path": "{root}"}}' as MODEL"""
        what = f"{printable(named.name)} is not among the classes that are built for a folder"
        raise InputError(what, where=str(root / CONFIG), fix=printable(fix))
    with quiet_torch():
        try:
            config, settings = _CONFIGS[named.library](cls, _plain(named.config))
            if kwargs:
                own = {name: _as_setting(name, value, settings, root) for name, value in kwargs.items()}
                config, settings = _CONFIGS[named.library](cls, {**_plain(named.config), **_plain(own)})
        except WnconvertError:
            raise
        except Exception as error:
            raise _cannot(named.library, named.name, root, error) from error
    return FolderModel(root, cls, known, config, settings, tuple(_notes(named)))


def class_settings(cls: type, config: Mapping[str, Any]) -> tuple[KnownClass, Mapping[str, Any]] | None:
    """The row of a class of a library, and all settings with a config; None if it is not in the table."""
    library, _, _ = cls.__module__.partition(".")
    known = known_class(library, cls.__name__)
    if known is None:
        return None
    with quiet_torch():
        _, settings = _CONFIGS[library](cls, _plain(config))
    return known, settings


def library_class(named: NamedClass, folder: Path) -> Any:
    """The class itself, which must be one of the library's models: the name is only a text in a file.

    Raises ``ArgumentError`` if the library is not installed, ``InputError`` if it does not have the class.
    """
    if importlib.util.find_spec(named.library) is None:
        raise ArgumentError(
            f"{printable(named.name)} is a class of {named.library}, which is not installed",
            fix=to_install(named.library),
        )
    with quiet_torch():
        try:
            library: Any = importlib.import_module(named.library)
            cls = getattr(library, named.name, None)
            base = getattr(library, _BASES[named.library])
        except Exception as error:  # an import inside of it fails
            raise InputError(
                f"{named.library} cannot import {printable(named.name)}: {error_text(error)}",
                where=str(folder),
            ) from error
    if not isinstance(cls, type) or not issubclass(cls, base):
        own = "auto_map" in named.config
        raise InputError(
            f"{named.library} {library.__version__} has no model that is called {printable(named.name)}",
            where=str(folder / CONFIG),
            fix="its code lies beside the weights, and is not run"
            if own
            else f"install the version of {named.library} that wrote the folder",
        )
    return cls


# -- libraries


def _of_transformers(cls: Any, config: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    made = cls.config_class.from_dict(dict(config))
    return made, made.to_dict()


def _of_diffusers(cls: Any, config: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    parameters = inspect.signature(cls.__init__).parameters
    defaults = {
        name: each.default for name, each in parameters.items() if each.default is not inspect.Parameter.empty
    }
    return config, {**defaults, **{name: value for name, value in config.items() if name in parameters}}


def _build_of_diffusers(cls: Any, config: Any) -> nn.Module:
    model: nn.Module = cls.from_config(config)
    return model


def _build_of_transformers(cls: Any, config: Any) -> nn.Module:
    model: nn.Module = cls(config)
    return model


_CONFIGS = {"transformers": _of_transformers, "diffusers": _of_diffusers}
_BUILDS = {"transformers": _build_of_transformers, "diffusers": _build_of_diffusers}


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config, and the configs in it, without settings that choose code."""
    return {
        key: _plain(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _NO_SETTINGS
    }


def _as_setting(name: str, value: Any, settings: Mapping[str, Any], root: Path) -> Any:
    """A value in place of a setting; a whole number is written for a float too."""
    if name not in settings:
        near = get_close_matches(name, settings, 3)
        raise ArgumentError(
            f"--kwargs: the config has no setting {printable(name)!r}",
            where=str(root / CONFIG),
            fix=f"did you mean {listed(near)}?" if near else "give settings that its config has",
        )
    return float(value) if type(settings[name]) is float and type(value) is int else value


def _notes(named: NamedClass) -> list[str]:
    found = []
    if "auto_map" in named.config:
        found.append(f"code in the folder (auto_map of {CONFIG}) is not run; {named.library}'s own class is")
    dtype = named.config.get("dtype", named.config.get("torch_dtype"))
    if isinstance(dtype, str) and dtype != "float32":
        found.append(f"the weights are {printable(dtype)}, and the model computes in float32")
    return found


def _cannot(library: str, name: str, root: Path, error: Exception) -> InputError:
    version = getattr(importlib.import_module(library), "__version__", "")
    said = printable(error_text(error) or type(error).__name__)
    return InputError(
        f"{library} {version} cannot build {printable(name)}: {said}",
        where=str(root / CONFIG),
        fix=f"try {name}.from_pretrained itself, or another version of {library}",
    )
