"""Every tensor of a checkpoint as rows, and what its files say of themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing

from wnconvert.layers.find import pairs_in
from wnconvert.layers.schemes import Selection
from wnconvert.storage.checkpoint import Checkpoint
from wnconvert.storage.files import open_file
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import StateDict, Tree
from wnconvert.verbs.inspection.result import TensorSummary

__all__ = ["metadata_of", "tensor_rows"]


def tensor_rows(tree: Tree, selection: Selection) -> tuple[TensorSummary, ...]:
    """The tensors whose names are wanted, and the halves of layers whose names are."""
    return tuple(row for state in tree.state_dicts for row in _rows(state, selection))


def _rows(state: StateDict, selection: Selection) -> Iterator[TensorSummary]:
    infos = [tensor.info for tensor in state.tensors.values()]
    layers = () if selection.wants_all else pairs_in(state).layers
    halves = {half.name for layer in layers if selection.wants(layer.name) for half in layer.halves}
    for info in infos:
        if info.name in halves or selection.wants(info.name):
            yield TensorSummary(state.path, info.name, str(info.dtype), info.shape, info.nbytes)


def metadata_of(checkpoint: Checkpoint) -> dict[str, str]:
    """The metadata of safetensors files and their index, or what an ONNX model says; else nothing."""
    return dict(_metadata(checkpoint))


def _metadata(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    if checkpoint.container is Container.SAFETENSORS:
        from wnconvert.formats.safetensors import read_metadata

        if checkpoint.folder and checkpoint.folder.index:
            yield from _texts(checkpoint.folder.index.metadata)
        for path in checkpoint.shards:
            with closing(open_file(path)) as file:
                yield from read_metadata(file).items()
    elif checkpoint.container is Container.ONNX:
        from wnconvert.onnx.file.description import described

        with closing(open_file(checkpoint.path)) as file:
            yield from described(file).items()


def _texts(metadata: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    return ((key, str(value)) for key, value in metadata.items())
