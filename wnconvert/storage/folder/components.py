"""Pipelines of diffusers: a folder with ``model_index.json``, and each model in a folder below."""

from __future__ import annotations

from pathlib import PurePath

from wnconvert.storage.files import kind_of, listing_of
from wnconvert.storage.folder.links import is_link
from wnconvert.storage.folder.weights import Folder, find_all_weights
from wnconvert.storage.stores.store import PathKind

__all__ = ["find_components"]


_PIPELINE = "model_index.json"


def find_components(root: PurePath) -> dict[str, Folder]:
    """The weights of each component of a pipeline, by the component's name; nothing if it is not a pipeline.

    Where a component has its weights more than once (in variants, or in two formats), each of them stands
    by the path of its file. Raises as ``find_weights`` does.
    """
    found: dict[str, Folder] = {}
    if kind_of(root / _PIPELINE) is not PathKind.FILE:
        return found
    for folder in (root / name for name in listing_of(root)):
        if kind_of(folder) is not PathKind.FOLDER or is_link(folder):
            continue
        every = find_all_weights(folder)
        for weights in every:
            file = weights.listing or weights.files[0]
            found[folder.name if len(every) == 1 else f"{folder.name}/{file}"] = weights
    return found
