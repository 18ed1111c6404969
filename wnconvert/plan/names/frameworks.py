"""A state dict as another framework has it: its names, the axes of its kernels, the shape of each g.

Names say what a tensor is where a framework calls it by a name of its own, shapes where the bias beside a
kernel has the size of one of its axes. What neither tells must be said, and what shapes alone tell is named.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase

from wnconvert.errors import ArgumentError, LayerError
from wnconvert.frozen import dataclass
from wnconvert.layers.dims import g_shape
from wnconvert.layers.find import pairs_in
from wnconvert.layers.kinds.formulas import formula_in_words
from wnconvert.layers.schemes import Layer, is_pair
from wnconvert.messages import counted, listed, option, printable, raise_listed
from wnconvert.plan.names.kernels import (
    FRAMEWORKS,
    KERNEL_KINDS,
    Framework,
    KernelKind,
    dim_taken_to,
    fits_rank,
    kernel_axes,
    shape_in_torch,
    taken_to,
)
from wnconvert.plan.names.places import COUNTS, Names, TensorPlace, leaf_of, name_parts, place_of
from wnconvert.plan.names.told import kind_told, may_be_other, misfit
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import Entry, StateDict, StoredTensor, Tree, repeated

__all__ = ["InFramework", "Relayout", "check_framework", "framework_of", "in_framework", "said_kinds"]


@dataclass(frozen=True, slots=True)
class Relayout:
    """What is asked for: the framework that a file is taken to, and what its names do not tell.

    ``source`` is its own, if that is told; ``said`` are kinds of kernels by globs, of which the first counts.
    """

    to: Framework
    source: Framework | None = None
    said: tuple[tuple[str, KernelKind], ...] = ()


@dataclass(frozen=True, slots=True)
class InFramework:
    """A state dict as another framework has it, the pairs before and after, and what is to be said of it."""

    state: StateDict
    pairs: tuple[tuple[Layer, Layer], ...]
    notes: tuple[str, ...]


def check_framework(name: str) -> Framework:
    """Raise ``ArgumentError`` if a name is not a framework's."""
    found = next((each for each in FRAMEWORKS if each == name), None)
    if found is None:
        raise ArgumentError(f"the layout of {name!r} is not known", fix=f"one of {', '.join(FRAMEWORKS)}")
    return found


def said_kinds(texts: Iterable[str]) -> tuple[tuple[str, KernelKind], ...]:
    """Kinds of kernels, each said as ``GLOB=KIND``. Raises ``ArgumentError`` for what is none.

    >>> said_kinds(["ups.*=transposed", "*=convolution"])
    (('ups.*', 'transposed'), ('*', 'convolution'))
    """
    found: list[tuple[str, KernelKind]] = []
    for text in texts:
        glob, _, word = text.rpartition("=")
        kind = next((each for each in KERNEL_KINDS if each == word), None)
        if kind is None or not glob:
            raise ArgumentError(
                f"{text!r} is not GLOB=KIND", fix=f"a kind is one of {', '.join(KERNEL_KINDS)}"
            )
        found.append((glob, kind))
    return tuple(found)


#: Forms of weight norm of frameworks whose layout is not known. Ports of torch's have a g as Paddle has it.
_OTHERS = ("keras", "equinox")


def framework_of(tree: Tree, state: StateDict, container: Container) -> Framework | None:
    """The framework whose layout a state dict has, by its file and its names; None where they do not tell.

    torch and MLX call their tensors alike, so only a torch file, or safetensors that say it, are either's.
    Names of flax in a torch file, and layers of other frameworks, tell nothing; nor does a file that
    wnconvert wrote of another: it makes torch files, and safetensors that say so, of any.
    """
    if any(layer.form in _OTHERS for layer in pairs_in(state).layers if is_pair(layer)):
        return None
    is_flax = any(leaf_of(name) in ("kernel", "embedding") for name in state.tensors)
    family = container.facts.family
    if family == "torch":
        has_kernel = any(
            leaf_of(name) == "kernel" and len(tensor.info.shape) > 1 for name, tensor in state.tensors.items()
        )
        return None if has_kernel or tree.record else "torch"
    if is_flax:
        return "nnx" if any("layer_instance" in name_parts(name) for name in state.tensors) else "flax"
    saved_by: dict[str | None, Framework] = {"pt": "torch", "mlx": "mlx"}
    return None if tree.record else saved_by.get(tree.metadata.get("format"))


# -- taking


def in_framework(tree: Tree, state: StateDict, container: Container, asked: Relayout) -> InFramework:
    """A state dict as another framework has it.

    Raises ``ArgumentError`` where its own framework is not told, or is the one asked for, and ``LayerError``
    for tensors whose axes are not told and for layers that the framework cannot have.
    """
    source = asked.source or framework_of(tree, state, container)
    if source is None:
        raise ArgumentError(
            "nothing in it tells which framework's layout its kernels have",
            fix=f"{option('framework', metavar='NAME')} says it, of {', '.join(FRAMEWORKS)}; others (Keras, "
            "Paddle, Equinox) have a layout of their own, whose names may look alike",
        )
    if source == asked.to:
        raise ArgumentError(f"it has the layout of {source} already", fix="name another framework")
    return _Taking(state, source, asked).done()


class _Taking:
    """Takes the tensors of one state dict."""

    def __init__(self, state: StateDict, source: Framework, asked: Relayout) -> None:
        found = pairs_in(state)
        raise_listed(
            LayerError,
            f"{counted(len(found.refused), 'layer')} cannot be read",
            [(f"layer {each.name}", each.reason) for each in found.refused],
            fix="fold them first, or leave them out",
        )
        self.state, self.source, self.to, self.said = state, source, asked.to, asked.said
        self.pairs = {layer.v.name: layer for layer in found.layers if is_pair(layer)}
        self.of_g = {layer.g.name for layer in self.pairs.values()}
        self.places = {name: self._place_of(name) for name in state.tensors if name not in self.of_g}
        self.biases = {
            place.owner: state.tensors[name].info.shape
            for name, place in self.places.items()
            if place.leaf == "bias"
        }
        wrapped = (self.places[name].owner for name in self.pairs)
        self.names = Names(asked.to, self.places.values(), wrapped)
        self.untold: list[tuple[str, str]] = []
        self.entries: list[Entry] = []
        self.made: list[tuple[Layer, Layer]] = []
        self.kinds: dict[KernelKind, int] = {}
        self.by_shape: dict[KernelKind, list[str]] = {}
        self.scales: list[str] = []

    def _place_of(self, name: str) -> TensorPlace:
        pair = self.pairs.get(name)
        return place_of(name if pair is None else pair.name, self.source)

    def done(self) -> InFramework:
        """All of them."""
        if self.to == "flax" and self.pairs:
            first = next(iter(self.pairs.values()))
            raise LayerError(
                "flax.linen numbers its WeightNorm scopes in the order of calls, which no file has",
                where=f"layer {first.name}",
                fix="fold the file first; or --to nnx, which names weight norm by its module",
            )
        for name, place in self.places.items():
            if place.leaf != COUNTS or self.to == "torch":
                self._take(self.state.tensors[name], place)
        raise_listed(
            LayerError,
            f"{counted(len(self.untold), 'tensor')} whose axes are not told",
            self.untold,
            fix=f"{option('layout', metavar='GLOB=KIND')} says what they are, of "
            f"{', '.join(KERNEL_KINDS)}: {option('layout', glob='ups.*=transposed')} "
            f"{option('layout', glob='*=convolution')}"
            f"{'; Conv2DTranspose of Keras is a transpose-kernel' if self.source == 'flax' else ''}",
        )
        if (twice := repeated(entry.name for entry in self.entries)) is not None:
            raise LayerError(f"two tensors would be called {printable(twice)}", fix="--rename one of them")
        state = StateDict(self.state.path, tuple(self.entries))
        return InFramework(state, tuple(self.made), tuple(self._notes()))

    def _take(self, tensor: StoredTensor, place: TensorPlace) -> None:
        pair, rank = self.pairs.get(tensor.info.name), len(tensor.info.shape)
        if place.called == "weight" and rank < 2 and tensor.info.numel == 1 and self.to in ("flax", "nnx"):
            self.untold.append((printable(place.name), "it may be PReLU's slope, which flax calls otherwise"))
            return
        if (
            self.to in ("flax", "nnx")
            and rank == 1
            and place.called == "weight"
            and place.owner not in self.biases
        ):
            self.scales.append(place.owner)
        kind = self._kind(tensor, place, pair) if rank > 1 else None
        if rank > 1 and kind is None:
            return
        source, target = (kernel_axes(each, kind or "as-is", rank) for each in (self.source, self.to))
        if kind is not None:
            self.kinds[kind] = self.kinds.get(kind, 0) + (source != target)
        made = taken_to(tensor, source, target)
        if pair is None:
            self._put(self.names.of(place, kind), made)
        else:
            self._put_pair(pair, place, made, dim_taken_to(pair.dim, source, target))

    def _put(self, name: str, tensor: StoredTensor) -> StoredTensor:
        made = replace(tensor, info=replace(tensor.info, name=name))
        self.entries.append(Entry(name, made))
        return made

    def _put_pair(self, pair: Layer, place: TensorPlace, v: StoredTensor, dim: int | None) -> None:
        names, g = self.names.of_pair(place), self.state.tensors[pair.g.name]
        shape = (pair.rows,) if self.to == "nnx" and dim is not None else g_shape(v.info.shape, dim)
        made_g = self._put(names[0], g.shaped(shape))
        made_v = self._put(names[1], v)
        form = {"torch": "parametrize", "nnx": "nnx"}.get(self.to, "legacy")
        name = names[1] if self.to == "nnx" else place.name
        self.made.append((pair, Layer.of_pair(name, form, dim, made_g.info, made_v.info)))

    def _kind(self, tensor: StoredTensor, place: TensorPlace, pair: Layer | None) -> KernelKind | None:
        """What a tensor of two axes or more is; None where it is not told, which is noted."""
        name, shape = tensor.info.name, tensor.info.shape
        sizes = self.biases.get(place.owner, ())
        bias = sizes[0] if len(sizes) == 1 else None
        said = self._said(tensor, place)
        kind: KernelKind | str = said or (
            f"its bias has {len(sizes)} axes, as where layers are stacked"
            if len(sizes) > 1
            else kind_told(place, shape, bias, pair, self.source)
        )
        known = next((each for each in KERNEL_KINDS if each == kind), None)
        if not said and known and place.called == "weight" and may_be_other(known, shape, bias):
            self.by_shape.setdefault(known, []).append(place.owner)
        wrong = (
            kind
            if known is None
            else misfit(known, shape_in_torch(shape, kernel_axes(self.source, known, len(shape))), bias)
        )
        if wrong:
            self.untold.append((f"{printable(name)} {shape}", wrong))
            return None
        return known

    def _said(self, tensor: StoredTensor, place: TensorPlace) -> KernelKind | None:
        """What a tensor is said to be, by the first glob that means it and whose kind it can be."""
        name, rank = tensor.info.name, len(tensor.info.shape)
        return next(
            (
                kind
                for glob, kind in self.said
                if fits_rank(kind, rank) and (fnmatchcase(name, glob) or fnmatchcase(place.name, glob))
            ),
            None,
        )

    def _notes(self) -> Iterable[str]:
        moved = {kind: count for kind, count in self.kinds.items() if count}
        if moved:
            kinds = ", ".join(f"{count} {kind}" for kind, count in moved.items())
            yield f"from {self.source} to {self.to}: the axes of {kinds}"
        if supposed := {kind: names for kind, names in self.by_shape.items() if kind in moved}:
            taken = "; ".join(f"{kind}: {listed(names, 3)}" for kind, names in supposed.items())
            else_ = option("layout", metavar="GLOB=KIND")
            yield f"by their shapes alone these are taken for {taken} (else: {else_})"
        if self.scales:
            yield f"taken for scales of norms, though slopes of PReLU look alike: {listed(self.scales, 3)}"
        if self.to != "torch" and any(place.leaf == COUNTS for place in self.places.values()):
            yield f"{COUNTS} is left out: {self.to} does not count batches"
        turned = [(now.name, None if now.dim is None else now.dim - len(now.v.shape)) for _, now in self.made]
        if self.to == "nnx" and self.made:
            yield "flax.nnx turns the rows of a negative g round at every call: fold such layers first"
        if self.to == "nnx" and (others := [f"{name} {axis}" for name, axis in turned if axis != -1]):
            yield f"WeightNorm must be given its feature_axes: {listed(others, 6)}"
        apart = [(was, now) for was, now in self.made if was.guard != now.guard]
        if apart:
            was, now = apart[0]
            yield (
                f"{listed([each.name for each, _ in apart], 3)}: {self.source} computes "
                f"{formula_in_words(was.rule)}, {self.to} {formula_in_words(now.rule)}"
            )
