"""What a shell offers as the value of an option: names that stand in the files on the command line.

A shell completes while a line is typed: whatever is wrong with it, there is just nothing to offer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from wnconvert.errors import WnconvertError

if TYPE_CHECKING:
    import click

    from wnconvert.tensors.tree import Tree

__all__ = ["layers", "state_dicts"]


#: The parameters that name a checkpoint.
_FILES = ("src", "a", "b", "weights")


def state_dicts(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The paths of the state dicts, as ``--only`` takes them."""
    return _begun(incomplete, (state.shown for tree in _trees(context) for state in tree.state_dicts))


def layers(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The names of the weights, of a pair that of the weight that it computes, as ``--layers`` takes them."""
    weights = _WEIGHTS.get(context.command.name or "", _all_weights)
    return _begun(incomplete, (name for tree in _trees(context) for name in weights(tree)))


def _begun(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete) and name.isprintable()]


def _trees(context: click.Context) -> Iterator[Tree]:
    """The files that stand on the line so far, opened."""
    from wnconvert.storage.checkpoint import open_checkpoint

    for name in _files(context):
        with suppress(WnconvertError):
            yield open_checkpoint(Path(name)).tree


def _files(context: click.Context) -> list[str]:
    given = [context.params.get(name) for name in _FILES]
    several = [name for names in given if isinstance(names, tuple) for name in names]
    # What an option still lacks its value for, click leaves in `args`.
    return [*(name for name in given if isinstance(name, str)), *several, *context.args]


def _pairs(tree: Tree) -> Iterator[str]:
    """The weights that g and v compute."""
    from wnconvert.layers.find import pairs_in

    for state in tree.state_dicts:
        yield from (layer.name for layer in pairs_in(state).layers)


def _plain(tree: Tree) -> Iterator[str]:
    """The plain weights: floats of two and more dimensions that are no half of a layer."""
    from wnconvert.layers.find import pairs_in

    for state in tree.state_dicts:
        infos = [tensor.info for tensor in state.tensors.values()]
        halves = {half.name for layer in pairs_in(state).layers for half in layer.halves}
        plain = (info for info in infos if info.name not in halves and info.dtype.foldable)
        yield from (info.name for info in plain if len(info.shape) > 1)


def _all_weights(tree: Tree) -> Iterator[str]:
    yield from _pairs(tree)
    yield from _plain(tree)


#: The weights that a command's ``--layers`` chooses among, if not all.
_WEIGHTS: dict[str, Callable[[Tree], Iterator[str]]] = {"fold": _pairs, "migrate": _pairs, "split": _plain}
