"""Pipelines of diffusers: a folder with ``model_index.json``, and each model in a folder below."""

from __future__ import annotations

from pathlib import Path

from wnconvert.storage.folder.weights import Folder, find_all_weights

__all__ = ["find_components"]


_PIPELINE = "model_index.json"


def find_components(root: Path) -> dict[str, Folder]:
    """The weights of each component of a pipeline, by the component's name; nothing if it is not a pipeline.

    Where a component has its weights more than once (in variants, or in two formats), each of them stands
    by the path of its file. Raises as ``find_weights`` does.
    """
    found: dict[str, Folder] = {}
    if not (root / _PIPELINE).is_file():
        return found
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink()):
        every = find_all_weights(folder)
        for weights in every:
            file = weights.listing or weights.files[0]
            found[folder.name if len(every) == 1 else f"{folder.name}/{file}"] = weights
    return found
