"""The facts of a torch file that only its pickle tells."""

from __future__ import annotations

from dataclasses import replace

from wnconvert.formats.pickle.values import PersistentId, Value, walk
from wnconvert.formats.pickle.writer import dump
from wnconvert.formats.torch.names import dangerous_names, foreign_names
from wnconvert.formats.torch.reader import FROZEN, TorchFile
from wnconvert.formats.torch.records import read_storage
from wnconvert.storage.checkpoint import Checkpoint
from wnconvert.tensors.containers import Container
from wnconvert.verbs.inspection.result import Inspection, SiblingSummary
from wnconvert.verbs.inspection.summaries.steps import step_in

__all__ = ["with_pickle"]


def with_pickle(found: Inspection, checkpoint: Checkpoint, opened: TorchFile) -> Inspection:
    """Add the facts of a pickle: sizes of siblings, optimizers, devices of all storages, names of classes."""
    siblings = [(item.path, item.node) for item in (*opened.contents.siblings, *opened.contents.optimizers)]
    kinds = {item.path: item.kind for item in checkpoint.tree.siblings}
    kinds |= dict.fromkeys(checkpoint.tree.optimizers, "optimizer")
    storages = [read_storage(value) for value in walk(opened.pickle.root) if isinstance(value, PersistentId)]
    script = checkpoint.container is Container.TORCHSCRIPT
    return replace(
        found,
        version=_version(checkpoint.container, opened),
        siblings=tuple(
            SiblingSummary(path, kinds.get(path, ""), _tensor_bytes(value) + len(dump(value, 2)))
            for path, value in siblings
        ),
        devices=tuple(dict.fromkeys(storage.location for storage in storages if storage)),
        foreign=() if script else tuple(foreign_names(opened.pickle.root)),
        dangerous=() if script else tuple(dangerous_names(opened.pickle.root)),
        notes=(*found.notes, *([FROZEN] if opened.is_frozen else [])),
        step=step_in(siblings, checkpoint.tree.metadata),
    )


def _version(container: Container, opened: TorchFile) -> str:
    """The version of the format; the pickle of a folder of chunks is in none of its files."""
    if container is Container.DISTRIBUTED:
        return opened.version
    return f"{opened.version}, pickle protocol {opened.pickle.protocol}"


def _tensor_bytes(value: Value) -> int:
    storages = (read_storage(item) for item in walk(value) if isinstance(item, PersistentId))
    return sum({storage.key: storage.nbytes for storage in storages if storage}.values())
