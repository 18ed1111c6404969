"""The class that a folder names, built by its library without memory for weights, and what it lacks.

transformers loads stand-ins that nobody writes to, so all that ``from_pretrained`` does to names counts: old
names renamed, tied weights, a model loaded into one with a head. diffusers' class is built on the meta
device, and its names compared.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from wnconvert.errors import InputError
from wnconvert.frozen import dataclass
from wnconvert.messages import printable
from wnconvert.storage.folder.config import CONFIG, NamedClass
from wnconvert.tensors.tree import TensorInfo
from wnconvert.verbs.loads.result import Misfit
from wnconvert.verbs.models.loading.folders import library_class
from wnconvert.verbs.models.proof.functions import error_text
from wnconvert.verbs.models.proof.running import quiet_torch

__all__ = ["Fit", "fit_of"]


Infos: TypeAlias = Mapping[str, TensorInfo]


@dataclass(frozen=True, slots=True)
class Fit:
    """The version of the library, and how names and shapes of the class differ from those that are there."""

    version: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misfits: tuple[Misfit, ...]


def fit_of(named: NamedClass, folder: Path, infos: Infos) -> Fit:
    """Hold a class against the names and shapes of tensors.

    Raises ``ArgumentError`` if the library is not installed, ``InputError`` if it does not have the class, or
    cannot build it.
    """
    cls = library_class(named, folder)
    version = str(importlib.import_module(named.library).__version__)
    with quiet_torch():
        try:
            fit = _FITS[named.library](cls, named, folder, infos)
        except Exception as error:
            said = error_text(error) or type(error).__name__
            what = f"{named.library} {version} cannot build {printable(named.name)}"
            raise InputError(
                f"{what}: {printable(said)}",
                where=str(folder / CONFIG),
                fix=f"try {named.name}.from_pretrained itself, or another version of {named.library}",
            ) from error
    return replace(fit, version=version)


def _of_transformers(cls: Any, _: NamedClass, folder: Path, infos: Infos) -> Fit:
    """Have transformers load stand-ins; what is missing it makes anew."""
    found = {name: _stand_in(info) for name, info in infos.items()}
    _, said = cls.from_pretrained(
        None,
        config=cls.config_class.from_pretrained(folder),
        state_dict=found,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        dtype=torch.float32,
    )
    misfits = (Misfit(name, tuple(own), tuple(its)) for name, own, its in said["mismatched_keys"])
    return Fit(
        "",
        tuple(sorted(said["missing_keys"])),
        tuple(sorted(said["unexpected_keys"])),
        tuple(sorted(misfits, key=lambda item: item.name)),
    )


def _stand_in(info: TensorInfo) -> torch.Tensor:
    """A tensor of this shape; floats are all of one dtype, which the class has too, so none is cast.

    It is never written to or read, so the system gives it addresses, but no memory.
    """
    own = getattr(torch, info.dtype.name, torch.float32)
    dtype = torch.float32 if own.is_floating_point else own
    return torch.empty(info.shape, dtype=dtype)


def _of_diffusers(cls: Any, named: NamedClass, _: Path, infos: Infos) -> Fit:
    with torch.device("meta"):
        model = cls.from_config(dict(named.config))
    found = dict(infos)
    model._fix_state_dict_keys_on_load(found)  # names of old versions
    wanted = model.state_dict()
    shared = {name: tuple(wanted[name].shape) for name in wanted if name in found}
    return Fit(
        "",
        tuple(name for name in wanted if name not in found),
        tuple(name for name in found if name not in wanted),
        tuple(
            Misfit(name, found[name].shape, shape)
            for name, shape in shared.items()
            if found[name].shape != shape
        ),
    )


_FITS: Mapping[str, Callable[[Any, NamedClass, Path, Infos], Fit]] = {
    "transformers": _of_transformers,
    "diffusers": _of_diffusers,
}
