"""A folder held against the class that its config names: names and shapes, no numbers."""

from __future__ import annotations

from pathlib import Path

from wnconvert.messages import refuse_other_than_path
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.storage.files import local_path, located
from wnconvert.storage.folder.config import class_of_folder
from wnconvert.storage.folder.links import is_entry, snapshot_in
from wnconvert.verbs.loads.result import LoadReport

__all__ = ["loads_folder"]


def loads_folder(folder: str | Path) -> LoadReport:
    """Tell whether ``from_pretrained`` of the class that a folder names finds its tensors there.

    The class is the one in ``config.json``: ``architectures`` of transformers, ``_class_name`` of diffusers.
    The library builds it without its weights, and only names and shapes in the folder are read. Returns a
    report that is false if tensors are missing, which are random then, if there are others that the class
    does not have, or if shapes differ.

    Raises ``WnconvertError``: ``InputError`` for a folder that names no class, or one that the library does
    not have; ``ArgumentError`` if the library is not installed, or ``folder`` is not a path.
    """
    refuse_other_than_path(folder, "a folder")
    given = located(folder)
    root = local_path(snapshot_in(given) if is_entry(given) else given, "from_pretrained reads it")
    named = class_of_folder(root)
    checkpoint = open_checkpoint(given)
    infos = {
        name: tensor.info for state in checkpoint.tree.state_dicts for name, tensor in state.tensors.items()
    }
    from wnconvert.verbs.loads.libraries import fit_of  # which imports torch

    fit = fit_of(named, root, infos)
    return LoadReport(
        folder=str(folder),
        library=named.library,
        version=fit.version,
        class_name=named.name,
        tensors=len(infos),
        missing=fit.missing,
        unexpected=fit.unexpected,
        misfits=fit.misfits,
        notes=checkpoint.tree.notes,
    )
