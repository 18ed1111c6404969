"""Loads the weights of a checkpoint into a module: any container, any form, and strictly all of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from glob import escape
from pathlib import PurePath
from typing import Any, cast

import torch
from torch import Tensor, nn

from wnconvert.errors import ArgumentError, InputError, LayerError, WnconvertError
from wnconvert.frozen import dataclass
from wnconvert.layers.schemes import Layer, Selection
from wnconvert.messages import counted, listed, printable, raise_listed, told
from wnconvert.plan.names.prefixes import prefixes_apart
from wnconvert.plan.names.renaming import Renaming
from wnconvert.plan.names.trees import renamed_state, weights_of
from wnconvert.plan.names.wrappers import SeenThrough, seen_through
from wnconvert.plan.selection.scope import choose
from wnconvert.plan.selection.wanted import find_layers
from wnconvert.storage.checkpoint import Checkpoint, open_checkpoint
from wnconvert.storage.files import unchanging
from wnconvert.storage.sources import Source
from wnconvert.tensors.tree import StateDict, StoredTensor
from wnconvert.verbs.conversion.state_dict import fold_state_dict, split_state_dict
from wnconvert.verbs.models.proof.functions import Exportable
from wnconvert.verbs.models.proof.running import check_shaped
from wnconvert.verbs.modules.finding.live import find_live
from wnconvert.verbs.shared.options import Form, renaming_of

__all__ = ["Loaded", "load_weights"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Weights that were loaded: the file, the path of the state dict in it, the number of tensors, notes."""

    path: PurePath
    state_dict: str
    tensors: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        at = f" at {self.state_dict}" if self.state_dict else ""
        return f"weights of {self.path}{at}: {counted(self.tensors, 'tensor')}"


def load_weights(
    module: Exportable, path: PurePath, *, only: str | None = None, strip_prefix: Iterable[str] = ()
) -> Loaded:
    """Load the weights of a checkpoint into a module, each layer in the form that it has in the module.

    If the file has several state dicts, the one that fits is taken, or the one that ``only`` names.
    ``strip_prefix`` is removed from the names (``module.``), and wrappers in names, as torch.compile's, are
    seen through. A folded weight for a normalized layer becomes
    g = ‖w‖ and v = w. A tensor that has two names in the module may have one of them in the file, and batch
    norm's count of batches may be missing.

    Raises ``InputError`` with a list of all names that are missing, unexpected or of another shape; the
    module is unchanged then. Raises ``ArgumentError`` for state that is not a tensor, and the errors of
    ``check_shaped``, ``open_checkpoint`` and ``fold_state_dict``.
    """
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise ArgumentError("MODEL is a file that holds its own weights", fix="leave --weights out")
    check_shaped(module)
    renaming = renaming_of(strip_prefix, "", ())
    checkpoint = open_checkpoint(path)
    try:
        wanted = _wanted(module)
        fits = [_fit(state, wanted, renaming) for state in choose(checkpoint.tree, only)]
        fit = _chosen(fits)
        values = _in_form(_read(checkpoint, fit), fit, wanted)
        _put(module, values)
    except WnconvertError as error:
        error.where = f"{path}: {error.where}" if error.where else str(path)
        raise
    return Loaded(path, fit.state.path, len(fit.tensors), tuple(_notes(fit)))


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The tensors of a module's state dict by name, and its layers by the names of their weights.

    ``counts`` are the names of batch norms' counts, which torch does not insist on either.
    """

    tensors: Mapping[str, Tensor]
    layers: Mapping[str, Layer]
    counts: frozenset[str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name."""
        return {name: tuple(value.shape) for name, value in self.tensors.items()}

    @property
    def weights(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, with a plain weight in place of each pair."""
        return _without_pairs(self.shapes, self.layers.values())

    def halves(self, weight: str) -> list[str]:
        """The names under which a weight is stored: its own, or those of g and v."""
        layer = self.layers.get(weight)
        return [half.name for half in layer.halves] if layer else [weight]

    def holds(self, layer: Layer) -> bool:
        """Whether both halves of a layer are tensors of the module, and not those of torch's weight norm."""
        return layer.name not in self.layers and all(half.name in self.tensors for half in layer.halves)

    def twins(self, absent: Iterable[str], present: Iterable[str]) -> dict[str, str]:
        """The absent weights that are the same tensors as present ones, each with that one's name."""
        # Reversed, so that the first of several names wins.
        by_tensors = {self._identity(name): name for name in reversed([*present])}
        found = {name: by_tensors.get(self._identity(name)) for name in absent}
        return {name: twin for name, twin in found.items() if twin is not None}

    def _identity(self, weight: str) -> tuple[int, ...]:
        return tuple(id(self.tensors[name]) for name in self.halves(weight))


@dataclass(frozen=True, slots=True)
class _Fit:
    """How a state dict of the file fits the module, both with plain weights in place of g and v.

    Two kinds of names may be missing: ``twins``, each with the name of the same tensors in the file, and
    ``uncounted``, counts that stay as they are in the module. ``seen`` says which modules of the file have
    other wrappers in their names.
    """

    state: StateDict
    tensors: Mapping[str, StoredTensor]
    layers: Mapping[str, Layer]
    twins: Mapping[str, str]
    uncounted: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    hint: str
    seen: SeenThrough

    @property
    def misfits(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)


def _wanted(module: nn.Module) -> _Wanted:
    state: Mapping[str, object] = module.state_dict(keep_vars=True)  # the parameters themselves
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if others := [printable(name) for name in state if name not in tensors]:
        raise ArgumentError(
            f"the model keeps state that is not a tensor, as from get_extra_state: {listed(others, 8)}",
            fix="load the weights in a factory of your own: here, nothing in a file is unpickled",
        )
    layers = {name: live.named(name).layer for live in find_live(module).layers for name in live.names}
    counts = {
        f"{name}.num_batches_tracked".lstrip(".")
        for name, each in module.named_modules(remove_duplicate=False)
        if isinstance(each, nn.modules.batchnorm._NormBase)
    }
    return _Wanted(
        tensors,
        {name: layer for name, layer in layers.items() if layer.v.name in tensors},
        frozenset(counts & tensors.keys()),
    )


def _without_pairs(
    shapes: Mapping[str, tuple[int, ...]], layers: Iterable[Layer]
) -> dict[str, tuple[int, ...]]:
    halves = {half.name: layer for layer in layers for half in layer.halves}
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        layer = halves.get(name)
        if layer is None:
            found[name] = shape
        else:
            found.setdefault(layer.name, layer.v.shape)
    return found


def _hint(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """The fix if all missing names are there with one prefix more; or empty."""
    apart = prefixes_apart(missing, unexpected, least=len(missing))
    return apart.fix if apart and not apart.here else ""


def _fit(state: StateDict, wanted: _Wanted, renaming: Renaming) -> _Fit:
    held = replace(state, entries=tuple(entry for entry in state.entries if entry.tensor))
    stripped = renamed_state(held, renaming)
    seen = seen_through(weights_of(stripped).values(), wanted.weights)
    named = renamed_state(stripped, seen)
    tensors = named.tensors
    found = find_layers(named, Selection(named=tuple(wanted.layers)))
    # A module may have a g and a v of its own, and know itself what to do with them.
    layers = {layer.name: layer for layer in found.layers if not wanted.holds(layer)}
    here = _without_pairs({name: each.info.shape for name, each in tensors.items()}, layers.values())
    there = wanted.weights
    absent = [name for name in there if name not in here]
    twins = wanted.twins(absent, (name for name in there if name in here))
    uncounted = tuple(name for name in absent if name in wanted.counts and name not in twins)
    missing = tuple(name for name in absent if name not in twins and name not in uncounted)
    unexpected = tuple(name for name in here if name not in there)
    reshaped = tuple(
        f"{name}: {_sizes(here[name])} in the file, {_sizes(there[name])} in the model"
        for name in there
        if name in here and here[name] != there[name]
    )
    return _Fit(
        named,
        tensors,
        layers,
        twins,
        uncounted,
        missing,
        unexpected,
        reshaped,
        tuple((no.name, no.reason) for no in found.refused),
        _hint(missing, unexpected),
        seen,
    )


def _chosen(fits: list[_Fit]) -> _Fit:
    """The one state dict that fits. Raises one error with all that does not fit."""
    if not fits:
        raise InputError(
            "it does not hold a state dict", fix="give a checkpoint with the weights of the model"
        )
    good = [fit for fit in fits if not fit.misfits]
    if len(good) > 1:
        paths = [printable(fit.state.shown) for fit in good]
        raise ArgumentError(
            f"{len(good)} of its state dicts fit the model: {listed(paths)}",
            fix=f"choose one, such as --only {paths[0]}",
        )
    if good:
        return good[0]
    if len(fits) > 1:
        raise_listed(
            InputError,
            f"none of its {len(fits)} state dicts fits the model",
            [
                (
                    printable(fit.state.shown),
                    (
                        f"{counted(len(fit.missing), 'tensor')} missing, {len(fit.unexpected)} unexpected, "
                        f"{len(fit.reshaped)} of another shape"
                    ),
                )
                for fit in fits
            ],
            fix="give --only PATH for the one that you mean, to see what does not fit",
        )
    (fit,) = fits
    raise InputError(
        f"the weights do not fit the model ({counted(fit.misfits, 'name')})",
        fix=fit.hint
        or "give the checkpoint of this model, or --kwargs that build the model of this checkpoint",
        items=[
            *((f"layer {printable(name)}", printable(reason)) for name, reason in fit.refused),
            *(("missing", printable(name)) for name in fit.missing),
            *(("unexpected", printable(name)) for name in fit.unexpected),
            *(("shape", printable(each)) for each in fit.reshaped),
        ],
    )


def _sizes(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _notes(fit: _Fit) -> Iterator[str]:
    """Notes on layers that are refused, and on names that the file may well lack."""
    refused = ((printable(name), reason) for name, reason in fit.refused)
    yield from told(refused, " is not read as a layer: ", " are not read as layers: ")
    yield from fit.seen.notes()
    if fit.twins:
        pairs = [f"{printable(name)} (as {printable(twin)})" for name, twin in fit.twins.items()]
        yield f"in the file under another name of the same tensor in the model: {listed(pairs, 4)}"
    if fit.uncounted:
        names = listed(map(printable, fit.uncounted), 4)
        yield f"not in the file (old torch did not write it), so left as in the model: {names}"


# -- numbers


def _read(checkpoint: Checkpoint, fit: _Fit) -> dict[str, Tensor]:
    """Read the tensors of a state dict, with our own reader."""
    found: dict[str, Tensor] = OrderedDict()
    with unchanging(checkpoint.seen), Source(checkpoint.sources, opener=checkpoint.reopen) as source:
        for name, tensor in fit.tensors.items():
            found[name] = _tensor(source, tensor)
    return found


def _tensor(source: Source, tensor: StoredTensor) -> Tensor:
    info = tensor.info
    dtype = getattr(torch, info.dtype.name, None)
    if not isinstance(dtype, torch.dtype) or info.dtype.name.startswith("q"):
        raise LayerError(f"{info.name} is {info.dtype}, which cannot be loaded", fix="save it dequantized")
    if not info.numel:
        return torch.empty(info.shape, dtype=dtype)
    content = bytearray(source.whole(tensor).tobytes())
    return torch.frombuffer(content, dtype=dtype).reshape(info.shape)


def _in_form(values: dict[str, Tensor], fit: _Fit, wanted: _Wanted) -> dict[str, Any]:
    """The values, each layer in the form that it has in the module.

    Layers are converted in the dtype of the module: in half precision, g would not fit v any more.
    """
    folded = [name for name, layer in fit.layers.items() if not _alike(layer, wanted.layers.get(name))]
    for name in folded:
        for half in fit.layers[name].halves:
            values[half.name] = _cast(values[half.name], wanted, name)
    made: dict[str, Any] = fold_state_dict(values, layers=map(escape, folded)) if folded else dict(values)
    for name, layer in wanted.layers.items():
        if name in fit.twins:
            continue
        there = fit.layers.get(name)
        if there is None or name in folded:
            weight = {name: _cast(made.pop(name), wanted, name)}
            made |= split_state_dict(weight, layers=[escape(name)], dim=layer.dim, to=cast(Form, layer.form))
        else:
            g, v = made.pop(there.g.name), made.pop(there.v.name)
            made |= {layer.g.name: g, layer.v.name: v}
        made[layer.g.name] = made[layer.g.name].reshape(layer.g.shape)
    for name, twin in fit.twins.items():
        made |= {own: made[its] for own, its in zip(wanted.halves(name), wanted.halves(twin), strict=True)}
    return made | {name: wanted.tensors[name] for name in fit.uncounted}


def _cast(value: Tensor, wanted: _Wanted, weight: str) -> Tensor:
    """A float tensor in the dtype of the weight that it is for."""
    layer = wanted.layers.get(weight)
    like = wanted.tensors[layer.v.name if layer else weight]
    return value.to(like.dtype) if like.is_floating_point() and value.is_floating_point() else value


def _alike(layer: Layer, wanted: Layer | None) -> bool:
    """Whether g and v can be used as they are."""
    return wanted is not None and (layer.dim == wanted.dim or layer.rows == wanted.rows == 1)


def _put(module: nn.Module, values: Mapping[str, Any]) -> None:
    try:
        module.load_state_dict(values)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InputError(
            "the weights do not fit the model",
            items=[(printable(line), "") for line in lines[1:] or lines],
            fix="give the checkpoint of this model",
        ) from error
