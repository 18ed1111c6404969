"""Notes on layers that ``from_pretrained`` will leave random in what a conversion writes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import PurePath

from wnconvert.errors import InputError
from wnconvert.layers.kinds.classes import BuiltClass, built_class
from wnconvert.messages import counted, listed, option, printable
from wnconvert.plan.plan import Change, Plan
from wnconvert.storage.checkpoint import Checkpoint
from wnconvert.storage.folder.config import NamedClass, named_class
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import Tree

__all__ = ["noting_unfound"]


def noting_unfound(
    make_plan: Callable[[Tree, Container], Plan], checkpoint: Checkpoint
) -> Callable[[Tree, Container], Plan]:
    """A planner whose plans note the layers that the class of a folder's config would not find.

    The folder is the checkpoint's, or one of each component of a pipeline.
    """

    def planned(tree: Tree, container: Container) -> Plan:
        plan = make_plan(tree, container)
        notes: list[str] = []
        for folder, changes in _by_folder(plan, checkpoint):
            if (known := _known_class(folder)) is not None:
                notes += (
                    (_under_new_names(known[0].name),) if plan.renamed else _notes(plan.verb, changes, *known)
                )
        return replace(plan, notes=(*plan.notes, *notes))

    return planned


def _by_folder(plan: Plan, checkpoint: Checkpoint) -> Iterator[tuple[PurePath, list[Change]]]:
    """The folders whose configs may name a class, with the changes of the layers that lie there."""
    if checkpoint.folder is not None:
        yield checkpoint.folder.root, [change for _, change in plan.changes]
    for name, component in checkpoint.components.items():
        if component.folder is not None:
            yield component.folder.root, [change for path, change in plan.changes if path == name]


def _known_class(folder: PurePath) -> tuple[NamedClass, BuiltClass] | None:
    """The class that the config of a folder names, and what it builds; None where that is not known."""
    try:
        named = named_class(folder)
    except InputError:  # a config that is not one is no reason not to convert
        return None
    built = built_class(named.library, named.name, named.config) if named else None
    return None if named is None or built is None else (named, built)


def _under_new_names(cls: str) -> str:
    return f"names are changed: wnconvert loads OUT tells what {printable(cls)}.from_pretrained will find"


def _notes(verb: str, changes: Collection[Change], named: NamedClass, built: BuiltClass) -> tuple[str, ...]:
    normalized = [change for change in changes if built.normalizes(change.name)]
    lost = [change for change in normalized if not _fits(change, built)]
    found = [change for change in changes if change not in normalized and change.after is not None]
    form = f"in form {built.forms[0]}" if len(built.forms) == 1 else "with weight norm"
    return (
        *_said(named.name, lost, 2, f"builds {{}} {form}", _how_to_keep(verb, built)),
        *_said(named.name, found, 1, "builds {} plain", "fold these layers"),
    )


def _fits(change: Change, built: BuiltClass) -> bool:
    """Whether a class that normalizes the layer takes it as it will be."""
    return change.after is not None and change.after.form in built.forms


def _how_to_keep(verb: str, built: BuiltClass) -> str:
    if verb == "fold":
        return "load the folder as it is, and fold the model then, with fold_module"
    return f"{option('to', built.forms[0])} writes what it takes"


def _said(cls: str, changes: list[Change], tensors: int, builds: str, how: str) -> tuple[str, ...]:
    if not changes:
        return ()
    names = listed((printable(change.name) for change in changes), 3)
    random = counted(tensors * len(changes), "tensor")
    said = f"{printable(cls)}.from_pretrained will leave {random} random: it {builds.format(names)}"
    return (f"{said}; {how}",)
