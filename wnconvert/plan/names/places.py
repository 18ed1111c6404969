"""How frameworks call the tensors of a module, and where a tensor of theirs belongs in torch's words."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from wnconvert.frozen import dataclass
from wnconvert.layers.schemes import spelled
from wnconvert.plan.names.kernels import Framework, KernelKind

__all__ = ["COUNTS", "Names", "TensorPlace", "leaf_of", "name_parts", "place_of"]


def name_parts(name: str) -> list[str]:
    """The parts of a name that dots or slashes join."""
    return name.replace("/", ".").split(".")


def leaf_of(name: str) -> str:
    """What a module calls a tensor: the last part of its name."""
    return name_parts(name)[-1]


_COLLECTIONS = ("params", "batch_stats")
# What flax calls the tensors of a module, as torch does.
_OF_FLAX = {"kernel": "weight", "embedding": "weight", "scale": "weight"}
_MOVING = {"mean": "running_mean", "var": "running_var"}
# What torch calls the statistics of a batch norm, and how flax does.
_STATISTICS = {"running_mean": "mean", "running_var": "var"}
#: What torch counts, and no other framework.
COUNTS = "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """A tensor: its module and its leaf as torch calls them, and how the source calls its leaf."""

    owner: str
    leaf: str
    called: str

    @property
    def name(self) -> str:
        """Its name in torch."""
        return f"{self.owner}.{self.leaf}" if self.owner else self.leaf


def place_of(name: str, source: Framework) -> TensorPlace:
    """Where a tensor of a framework belongs.

    Only what stands in flax's ``batch_stats``, or where nnx has no collections, is a statistic.

    >>> place_of("batch_stats/bn/mean", "flax").name, place_of("params/head/mean", "flax").name
    ('bn.running_mean', 'head.mean')
    """
    parts = name_parts(name)
    called = parts.pop()
    if source not in ("flax", "nnx"):
        return TensorPlace(".".join(parts), called, called)
    collection = parts.pop(0) if parts[:1] and parts[0] in _COLLECTIONS else ""
    leaf = _OF_FLAX.get(called, called)
    if collection == "batch_stats" or (source == "nnx" and not collection):
        leaf = _MOVING.get(leaf, leaf)
    if source == "nnx":
        parts = [part for part in parts if part != "layer_instance"]
    return TensorPlace(".".join(parts), leaf, called)


class Names:
    """How a framework spells the names of ``places``; ``wrapped`` are the modules with weight norm.

    Names of flax begin with collections where there are statistics, or a module is called as a collection is.
    """

    def __init__(self, target: Framework, places: Collection[TensorPlace], wrapped: Iterable[str]) -> None:
        self.target = target
        self.wrapped = frozenset(wrapped)
        self.has_collections = any(
            place.leaf in _STATISTICS or place.owner.partition(".")[0] in _COLLECTIONS for place in places
        )

    def of(self, place: TensorPlace, kind: KernelKind | None) -> str:
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
            ("batch_stats/" if place.leaf in _STATISTICS else "params/") if self.has_collections else ""
        )
        return f"{collection}{owner}/{leaf}" if owner else f"{collection}{leaf}"

    def of_pair(self, place: TensorPlace) -> tuple[str, str]:
        """The names of g and v of a weight."""
        if self.target == "nnx":
            collection = "params/" if self.has_collections else ""
            owner = place.owner.replace(".", "/")
            return f"{collection}{owner}/scales/('kernel',)", self.of(place, "as-is")
        form = "parametrize" if self.target == "torch" else "legacy"
        names = spelled(form, place.name)
        assert names is not None  # noqa: S101 - both forms are known
        return names
