"""A state dict as another framework has it: its names, the axes of its kernels, the shape of each g.

Names say what a tensor is where a framework calls it by a name of its own, shapes where the bias beside a
kernel has the size of one of its axes. What neither tells must be said; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from wnconvert.errors import ArgumentError, LayerError
from wnconvert.layers.dims import g_shape
from wnconvert.layers.find import pairs_in
from wnconvert.layers.kinds.formulas import formula_in_words
from wnconvert.layers.schemes import Layer, is_pair, spelled
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
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import Entry, Shape, StateDict, StoredTensor, Tree, repeated

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


def framework_of(tree: Tree, state: StateDict, container: Container) -> Framework | None:
    """The framework whose layout a state dict has, by its names and its file; None where they do not tell.

    torch and MLX call their tensors alike, so only a torch file, or safetensors that say it, are either's.
    """
    parts = {part for name in state.tensors for part in _parts(name)}
    if "kernel" in parts or "embedding" in parts:
        return "nnx" if "layer_instance" in parts else "flax"
    if container.facts.family == "torch":
        return "torch"
    saved_by: dict[str | None, Framework] = {"pt": "torch", "mlx": "mlx"}
    return saved_by.get(tree.metadata.get("format"))


def _parts(name: str) -> list[str]:
    return name.replace("/", ".").split(".")


# -- names

_COLLECTIONS = ("params", "batch_stats")
# What flax calls the tensors of a module, as torch does.
_OF_FLAX = {
    "kernel": "weight",
    "embedding": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
_KERNELS = ("kernel", "embedding", "weight")
_STATISTICS = {"running_mean": "mean", "running_var": "var"}
#: What torch counts, and no other framework.
_COUNTS = "num_batches_tracked"
_MODULES: tuple[tuple[str, KernelKind], ...] = (("Conv_", "convolution"), ("ConvTranspose_", "transposed"))


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor: its module and its leaf as torch calls them, and how the source calls its leaf."""

    owner: str
    leaf: str
    called: str

    @property
    def name(self) -> str:
        return f"{self.owner}.{self.leaf}" if self.owner else self.leaf


def _place(name: str, source: Framework) -> _Place:
    parts = _parts(name)
    called = parts.pop()
    if source not in ("flax", "nnx"):
        return _Place(".".join(parts), called, called)
    if parts[:1] and parts[0] in _COLLECTIONS:
        parts = parts[1:]
    if source == "nnx":
        parts = [part for part in parts if part != "layer_instance"]
    return _Place(".".join(parts), _OF_FLAX.get(called, called), called)


class _Names:
    """How a framework spells names; ``wrapped`` are the modules with weight norm."""

    def __init__(self, target: Framework, wrapped: Iterable[str], *, has_statistics: bool) -> None:
        self.target = target
        self.wrapped = frozenset(wrapped)
        self.has_statistics = has_statistics

    def of(self, place: _Place, kind: KernelKind | None) -> str:
        """The name of a tensor of a ``kind``, None: of fewer than two axes."""
        if self.target in ("torch", "mlx"):
            return place.name
        leaf = _STATISTICS.get(place.leaf, place.leaf)
        if leaf == "weight":
            leaf = "scale" if kind is None else "embedding" if kind == "embedding" else "kernel"
        owner = place.owner.replace(".", "/")
        if self.target == "nnx" and place.owner in self.wrapped:
            owner += "/layer_instance"
        collection = (
            ("batch_stats/" if place.leaf in _STATISTICS else "params/") if self.has_statistics else ""
        )
        return f"{collection}{owner}/{leaf}" if owner else f"{collection}{leaf}"

    def of_pair(self, place: _Place) -> tuple[str, str]:
        """The names of g and v of a weight."""
        if self.target == "nnx":
            collection = "params/" if self.has_statistics else ""
            owner = place.owner.replace(".", "/")
            return f"{collection}{owner}/scales/('kernel',)", self.of(place, "as-is")
        form = "parametrize" if self.target == "torch" else "legacy"
        names = spelled(form, place.name)
        assert names is not None  # noqa: S101 - both forms are known
        return names


# -- kinds


def _told(
    place: _Place, tensor: StoredTensor, bias: int | None, pair: Layer | None, source: Framework
) -> KernelKind | str:
    """What a tensor of two axes or more is, or why that is not told."""
    shape = tensor.info.shape
    if place.called not in _KERNELS:
        return f"{place.called} is no name of a kernel"
    if len(shape) == 2:
        return _told_of_matrix(place, shape, bias, pair)
    if place.called == "kernel":
        return _told_by_flax(place, shape, bias)
    return _told_by_norm(shape, pair) if source == "mlx" else _told_by_bias(shape, bias)


def _told_of_matrix(place: _Place, shape: Shape, bias: int | None, pair: Layer | None) -> KernelKind | str:
    if place.called == "embedding":
        return "embedding"
    if place.called == "kernel" or pair is not None or bias == shape[0]:
        return "linear"
    return "it may be a linear layer without a bias, or an embedding"


def _told_by_flax(place: _Place, shape: Shape, bias: int | None) -> KernelKind | str:
    module = place.owner.rpartition(".")[2]
    kind = next((kind for begin, kind in _MODULES if module.removeprefix(begin).isdigit()), None)
    if kind is None:
        return "its module is not called Conv_N or ConvTranspose_N"
    if kind == "convolution":
        return kind
    given, turned = shape[-1], shape[-2]
    if given == turned or bias not in (given, turned):
        return "nothing tells whether it was made with transpose_kernel"
    return "transposed" if bias == given else "transpose-kernel"


def _told_by_norm(shape: Shape, pair: Layer | None) -> KernelKind | str:
    """MLX has the output first in both kinds of convolution; torch's norms, which ports keep, differ."""
    if pair is not None and pair.dim == 0 and pair.rows > 1:
        return "convolution"
    if pair is not None and pair.dim == len(shape) - 1 and pair.rows > 1:
        return "transposed"
    return "it may be a convolution, or a transposed one"


def _told_by_bias(shape: Shape, bias: int | None) -> KernelKind | str:
    """torch has (out, in / groups, …), and of a transposed convolution (in, out / groups, …)."""
    if bias is None:
        return "it has no bias, whose size would tell a convolution from a transposed one"
    if bias not in shape[:2]:
        return (
            "its bias fits neither of its first axes: a transposed convolution in groups has no layout here"
        )
    if shape[0] == shape[1] or (shape[1] == 1 and bias == shape[0]):
        return "it may be a convolution, or a transposed one: its bias fits both"
    return "convolution" if bias == shape[0] else "transposed"


def _misfit(kind: KernelKind, in_torch: Shape, bias: int | None) -> str:
    """Why a kernel of a kind cannot be taken elsewhere, or nothing."""
    if kind in ("linear", "convolution") and bias is not None and bias != in_torch[0]:
        return f"it would be a {kind} layer of {in_torch[0]} outputs, and its bias has {bias}"
    if kind in ("transposed", "transpose-kernel") and bias is not None and bias != in_torch[1]:
        return f"a transposed convolution in groups: a bias of {bias}, {in_torch[1]} outputs in a group"
    return ""


# -- taking


def in_framework(tree: Tree, state: StateDict, container: Container, asked: Relayout) -> InFramework:
    """A state dict as another framework has it.

    Raises ``ArgumentError`` where its own framework is not told, or is the one asked for, and ``LayerError``
    for tensors whose axes are not told and for layers that the framework cannot have.
    """
    source = asked.source or framework_of(tree, state, container)
    if source is None:
        raise ArgumentError(
            "its names are torch's and MLX's alike", fix=f"{option('framework', 'torch')}, or mlx"
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
        statistics = any(place.leaf in _STATISTICS for place in self.places.values())
        wrapped = (self.places[name].owner for name in self.pairs)
        self.names = _Names(asked.to, wrapped, has_statistics=statistics)
        self.untold: list[tuple[str, str]] = []
        self.entries: list[Entry] = []
        self.made: list[tuple[Layer, Layer]] = []
        self.kinds: dict[KernelKind, int] = {}

    def _place_of(self, name: str) -> _Place:
        pair = self.pairs.get(name)
        return _place(name if pair is None else pair.name, self.source)

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
            if place.leaf != _COUNTS or self.to == "torch":
                self._take(self.state.tensors[name], place)
        raise_listed(
            LayerError,
            f"{counted(len(self.untold), 'tensor')} whose axes are not told",
            self.untold,
            fix=f"{option('layout', metavar='GLOB=KIND')} says what they are, of "
            f"{', '.join(KERNEL_KINDS)}: {option('layout', glob='ups.*=transposed')} "
            f"{option('layout', glob='*=convolution')}",
        )
        if (twice := repeated(entry.name for entry in self.entries)) is not None:
            raise LayerError(f"two tensors would be called {printable(twice)}", fix="--rename one of them")
        state = StateDict(self.state.path, tuple(self.entries))
        return InFramework(state, tuple(self.made), tuple(self._notes()))

    def _take(self, tensor: StoredTensor, place: _Place) -> None:
        pair, rank = self.pairs.get(tensor.info.name), len(tensor.info.shape)
        if place.called == "weight" and rank < 2 and tensor.info.numel == 1 and self.to in ("flax", "nnx"):
            self.untold.append((printable(place.name), "it may be PReLU's slope, which flax calls otherwise"))
            return
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

    def _put_pair(self, pair: Layer, place: _Place, v: StoredTensor, dim: int | None) -> None:
        names, g = self.names.of_pair(place), self.state.tensors[pair.g.name]
        shape = (pair.rows,) if self.to == "nnx" and dim is not None else g_shape(v.info.shape, dim)
        made_g = self._put(names[0], g.shaped(shape))
        made_v = self._put(names[1], v)
        form = {"torch": "parametrize", "nnx": "nnx"}.get(self.to, "legacy")
        name = names[1] if self.to == "nnx" else place.name
        self.made.append((pair, Layer.of_pair(name, form, dim, made_g.info, made_v.info)))

    def _kind(self, tensor: StoredTensor, place: _Place, pair: Layer | None) -> KernelKind | None:
        """What a tensor of two axes or more is; None where it is not told, which is noted."""
        name, shape = tensor.info.name, tensor.info.shape
        sizes = self.biases.get(place.owner, ())
        bias = sizes[0] if len(sizes) == 1 else None
        called = (name, place.name)
        kind: KernelKind | str = next(
            (
                kind
                for glob, kind in self.said
                if fits_rank(kind, len(shape)) and any(fnmatchcase(each, glob) for each in called)
            ),
            "",
        ) or _told(place, tensor, bias, pair, self.source)
        known = next((each for each in KERNEL_KINDS if each == kind), None)
        wrong = (
            kind
            if known is None
            else _misfit(known, shape_in_torch(shape, kernel_axes(self.source, known, len(shape))), bias)
        )
        if wrong:
            self.untold.append((f"{printable(name)} {shape}", wrong))
            return None
        return known

    def _notes(self) -> Iterable[str]:
        moved = {kind: count for kind, count in self.kinds.items() if count}
        if moved:
            told = ", ".join(f"{count} {kind}" for kind, count in moved.items())
            yield f"from {self.source} to {self.to}: the axes of {told}"
        if self.to != "torch" and any(place.leaf == _COUNTS for place in self.places.values()):
            yield f"{_COUNTS} is left out: {self.to} does not count batches"
        turned = [(now.name, now.dim - len(now.v.shape)) for _, now in self.made if now.dim is not None]
        if self.to == "nnx" and (others := [f"{name} {axis}" for name, axis in turned if axis != -1]):
            yield f"WeightNorm must be given its feature_axes: {listed(others, 6)}"
        apart = [(was, now) for was, now in self.made if was.guard != now.guard]
        if apart:
            was, now = apart[0]
            yield (
                f"{listed([each.name for each, _ in apart], 3)}: {self.source} computes "
                f"{formula_in_words(was.rule)}, {self.to} {formula_in_words(now.rule)}"
            )
