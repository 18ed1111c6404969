"""The verbs on a state dict in memory: a mapping of names to torch tensors or numpy arrays.

No torch is needed for numpy arrays (:mod:`wnconvert.tensors.memory`).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import singledispatch
from typing import Any

import numpy as np

from wnconvert.errors import LayerError
from wnconvert.frozen import dataclass
from wnconvert.layers.dims import AUTO
from wnconvert.layers.recipes import Recipe
from wnconvert.layers.schemes import NAMED_FORMS
from wnconvert.messages import options_as_python, raise_listed
from wnconvert.numerics.rows import Problem, RowPolicy, raise_problems
from wnconvert.numerics.splitting import directions
from wnconvert.plan.fold import plan_fold
from wnconvert.plan.layout import CopyBytes, Directions, Work
from wnconvert.plan.migrate import plan_migrate
from wnconvert.plan.names.renaming import Renaming
from wnconvert.plan.names.trees import renamed_keys, renamed_modules, renamed_tree, weights_of
from wnconvert.plan.order import NEW_ENTRY, SPECTRAL_VERSIONS, Versions, metadata_keys, versions_moved
from wnconvert.plan.plan import Plan, PlannedStateDict
from wnconvert.plan.split.plan import plan_split
from wnconvert.plan.steps import MadeTensor, Step
from wnconvert.tensors.blocks import Array, Block, Read, reader_of
from wnconvert.tensors.containers import Container
from wnconvert.tensors.distributed import obstacle
from wnconvert.tensors.dtypes import AnyDType
from wnconvert.tensors.memory import array_of, is_torch, made_like, shaped_like, tree_of, view_of
from wnconvert.tensors.tree import ByteRange, StoredTensor, TensorInfo, Tree, contiguous_strides
from wnconvert.verbs.conversion.executor import make_tensor
from wnconvert.verbs.shared.options import (
    DimOption,
    NamedForm,
    ZeroRows,
    check_form,
    dtype_of,
    numbers_of,
    renaming_of,
)
from wnconvert.verbs.shared.recipes import recipe_given
from wnconvert.verbs.shared.selections import selection_of
from wnconvert.verbs.shared.told import Said, asked_of, eps_alone

__all__ = ["fold_state_dict", "migrate_state_dict", "split_state_dict"]


def fold_state_dict(
    state_dict: Mapping[str, Any],
    *,
    dtype: AnyDType | None = None,
    strip_prefix: Iterable[str] = (),
    add_prefix: str = "",
    rename: Iterable[str] | Mapping[str, str] = (),
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    kinds: Iterable[str] = ("weight",),
    recipe: str | os.PathLike[str] | Recipe | None = None,
    norm: Iterable[str] = (),
    standardize: Iterable[str] = (),
    eps: float | None = None,
    std: str | None = None,
    eps_at: str | None = None,
    gain: str | None = None,
    scale: float | str | None = None,
    keep_norms: bool = False,
    dim: DimOption = AUTO,
    zero_rows: ZeroRows = "error",
    allow_nonfinite: bool = False,
) -> dict[str, Any]:
    """Fold the weight-normalized layers of a state dict; the mapping and its tensors are left alone.

    Values may be torch tensors (on any device; Parameters stay Parameters) or numpy arrays (bfloat16 as
    ml_dtypes'); other values are kept. A new mapping is returned, an ``OrderedDict`` with its
    ``_metadata`` where the source is one; unchanged values in it are the very same objects. Options as for
    ``fold_file``.

    Raises ``LayerError`` for refused layers, ``NumbersError`` for their numbers and
    ``ArgumentError`` if only a mapping inside ``state_dict`` holds tensors.

    >>> import numpy as np
    >>> folded = fold_state_dict({"conv.weight_g": np.float32([[10]]), "conv.weight_v": np.float32([[3, 4]])})
    >>> folded
    {'conv.weight': array([[6., 8.]], dtype=float32)}
    """
    with options_as_python():
        opened = _opened(state_dict, renaming_of(strip_prefix, add_prefix, rename))
        numbers = numbers_of(zero_rows, allow_nonfinite=allow_nonfinite)
        said, told = Said(norm, standardize, eps, std, eps_at, gain, scale), recipe_given(recipe)
        asked, alone = asked_of(said, told), eps_alone(said, told)
        selection = selection_of(layers, exclude, dim, kinds, told, asked=asked, eps=alone)
        plan = plan_fold(
            opened.tree,
            Container.TORCH_ZIP,
            selection=selection,
            dtype=dtype_of(dtype),
            keep_norms=keep_norms,
        )
        return _made(opened, plan, numbers)


def split_state_dict(
    state_dict: Mapping[str, Any],
    *,
    to: NamedForm | None = None,
    like: Mapping[str, Any] | None = None,
    strip_prefix: Iterable[str] = (),
    add_prefix: str = "",
    rename: Iterable[str] | Mapping[str, str] = (),
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    dim: DimOption = AUTO,
) -> dict[str, Any]:
    """Split plain weights of a state dict into g = ‖w‖ and v = w; the mapping and its tensors are left alone.

    ``like`` is another state dict, with layers; values, result and other options as for
    ``fold_state_dict`` and ``split_file``. v is the very tensor that w is, unless a row of it is zero.

    Raises as ``split_file`` does.

    >>> import numpy as np
    >>> split = split_state_dict({"conv.weight": np.float32([[3, 4]])}, layers="*", dim=0, to="legacy")
    >>> {name: value.tolist() for name, value in split.items()}
    {'conv.weight_g': [[5.0]], 'conv.weight_v': [[3.0, 4.0]]}
    """
    with options_as_python():
        check_form(to, NAMED_FORMS)
        renaming = renaming_of(strip_prefix, add_prefix, rename)
        reference = None if like is None else tree_of(like)[0]
        opened = _opened(state_dict, renaming, reference)
        plan = plan_split(
            opened.tree,
            Container.TORCH_ZIP,
            to=to,
            like=reference,
            renaming=renaming,
            selection=selection_of(layers, exclude, dim),
        )
        return _made(opened, plan)


def migrate_state_dict(
    state_dict: Mapping[str, Any],
    *,
    to: NamedForm = "parametrize",
    strip_prefix: Iterable[str] = (),
    add_prefix: str = "",
    rename: Iterable[str] | Mapping[str, str] = (),
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    kinds: Iterable[str] = ("weight",),
) -> dict[str, Any]:
    """Give the layers of a state dict the names of the other form; the values are the very same objects.

    (But for a g of a shape that torch does not load, such as a vector: it is a view in torch's shape.)
    ``to`` is ``"parametrize"``, ``"legacy"``, ``"paddle"``, ``"physicsnemo"`` or ``"equinox"``; other
    options and the result as for ``fold_state_dict``, the order of keys and ``_metadata`` as torch has
    them. Raises as ``migrate_file`` does.

    >>> import numpy as np
    >>> list(migrate_state_dict({"weight_g": np.float32([[10]]), "weight_v": np.float32([[3, 4]])}))
    ['parametrizations.weight.original0', 'parametrizations.weight.original1']
    """
    with options_as_python():
        check_form(str(to), NAMED_FORMS)  # here None is not a choice
        opened = _opened(state_dict, renaming_of(strip_prefix, add_prefix, rename))
        selection = selection_of(layers, exclude, AUTO, kinds)
        plan = plan_migrate(opened.tree, Container.TORCH_ZIP, to=to, selection=selection)
        return _made(opened, plan)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A state dict in memory: its tree, its values, and torch's ``_metadata``, all under their new names."""

    source: Mapping[str, Any]
    tree: Tree
    values: Mapping[str, Any]
    metadata: Mapping[str, Any] | None


def _opened(state_dict: Mapping[str, Any], renaming: Renaming, reference: Tree | None = None) -> _Opened:
    """Open a state dict and rename it; a rule may meet a name of the ``reference`` alone."""
    tree, values = tree_of(state_dict)
    metadata = getattr(state_dict, "_metadata", None)
    metadata = metadata if isinstance(metadata, Mapping) else None
    beside = () if reference is None else weights_of(reference.state_dict("")).values()
    names = renamed_keys(tree, tree.state_dicts, renaming, beside).get("")
    if names is None:
        return _Opened(state_dict, tree, values, metadata)
    if metadata is not None:
        modules = renamed_modules(list(metadata), renaming, names.keys.values())
        metadata = {new: dict(NEW_ENTRY) if old is None else metadata[old] for new, old in modules.items()}
    renamed = {names.keys[name]: value for name, value in values.items()}
    return _Opened(state_dict, renamed_tree(tree, {"": names}), renamed, metadata)


def _made(
    opened: _Opened,
    plan: Plan,
    numbers: RowPolicy = RowPolicy(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """A new mapping as planned: an ``OrderedDict`` with its ``_metadata`` where the source is one."""
    (planned,) = plan.state_dicts
    _refuse_shards(planned.steps, opened.values, "split" if plan.verb == "split" else "folded")
    maker = _Maker(opened.values, opened.tree.state_dict("").tensors, numbers)
    made: dict[str, Any] = OrderedDict() if isinstance(opened.source, OrderedDict) else {}
    for step in planned.steps:
        made[step.name] = maker.value(step)
    raise_problems(maker.problems)
    made.update(_not_named(opened.source))
    if opened.metadata is not None and isinstance(made, OrderedDict):
        made._metadata = _metadata(opened.metadata, planned)  # type: ignore[attr-defined]  # as torch has it
    return made


def _refuse_shards(steps: Iterable[Step], values: Mapping[str, Any], done: str) -> None:
    """Raise one ``LayerError`` for all tensors that must be read and of which this rank has a part only."""
    found = {
        name: reason
        for step in steps
        if step.kept is None or step.dtype is not None
        for name in step.sources
        if is_torch(values[name]) and (reason := obstacle(values[name]))
    }
    for fix in dict.fromkeys(fix for _, fix in found.values()):
        bad = [(name, what) for name, (what, its) in found.items() if its == fix]
        raise_listed(LayerError, f"{len(bad)} tensors cannot be {done}", bad, fix=fix)


class _Maker:
    """Makes the values of steps; what is tied stays tied."""

    def __init__(
        self, values: Mapping[str, Any], tensors: Mapping[str, StoredTensor], numbers: RowPolicy
    ) -> None:
        self.values = values
        self.tensors = tensors
        self.numbers = numbers
        self.places: dict[object, int] = {}
        self.placed: list[Any] = []  # the values by place, one for each memory
        self.made: dict[object, Any] = {}
        self.problems: list[tuple[str, tuple[Problem, ...]]] = []

    def value(self, step: Step) -> Any:
        """The value that a step puts."""
        if step.kept is not None and step.is_as_it_was:
            return self.values[step.kept]
        item = step.made_of({name: self.stored(name) for name in step.sources})
        key = item.work, item.info.shape
        if key not in self.made:
            try:
                self.made[key] = _make(item.work, item, self)
            except LayerError as error:
                error.where = item.work.where
                raise
        return self.made[key]

    def stored(self, name: str) -> StoredTensor:
        """A tensor whose storage is the number of its memory: works are equal where their memories are."""
        value = self.values[name]
        place = self.places.setdefault(view_of(value), len(self.placed))
        if place == len(self.placed):
            self.placed.append(value)
        info = self.tensors[name].info
        return StoredTensor(info, ByteRange(0, info.nbytes, place), 0, contiguous_strides(info.shape))

    def of(self, tensor: StoredTensor) -> Any:
        """The value that is a tensor of ``stored``."""
        return self.placed[tensor.storage.shard]

    def reader(self, tensor: StoredTensor) -> Read:
        """A function from a block of a tensor to its elements."""
        return reader_of(self.whole(tensor))

    def whole(self, tensor: StoredTensor) -> Array:
        """All elements of a tensor."""
        return array_of(self.of(tensor))


class _Elements:
    """Takes the elements of a new tensor into one array."""

    def __init__(self, info: TensorInfo) -> None:
        self.all: Array = np.empty(info.numel, info.dtype.numpy())
        self.at = 0

    def room(self, block: Block, dtype: np.dtype[Any]) -> Array:  # noqa: ARG002 - all is of one dtype
        """Where to make the elements of the next block."""
        return self.all[self.at :][: block.stop - block.start].reshape(block.shape)

    def made(self, values: Array) -> None:
        """Take the elements that were made in ``room``."""
        self.at += values.size

    def array(self, values: Array) -> None:
        """Take the elements of the next block."""
        self.all[self.at : self.at + values.size] = values.reshape(-1)
        self.at += values.size

    def passed(self, count: int) -> None:
        """Nothing: nobody counts."""


@singledispatch
def _make(work: Work, item: MadeTensor, maker: _Maker) -> Any:
    """The value of a new tensor, made as for a file."""
    out = _Elements(item.info)
    outcome = make_tensor(work, maker, out, maker.numbers)
    maker.problems.append((work.where, outcome.problems))
    return made_like(maker.of(item.like), out.all.reshape(item.info.shape))


@_make.register
def _make_kept(work: CopyBytes, item: MadeTensor, maker: _Maker) -> Any:  # noqa: ARG001
    """The same elements in another shape."""
    return shaped_like(maker.of(item.like), item.info.shape)


@_make.register
def _make_directions(work: Directions, item: MadeTensor, maker: _Maker) -> Any:
    """v: the very value that w is, where no row of it is zero."""
    value = maker.of(item.like)
    array = array_of(value)
    v = directions(array, work.dim)
    return value if v is array else made_like(value, v)


def _not_named(state_dict: Mapping[Any, Any]) -> dict[Any, Any]:
    """The items whose keys are not strings; a file keeps them too."""
    return {key: value for key, value in state_dict.items() if not isinstance(key, str)}


def _metadata(before: Mapping[str, Any], planned: PlannedStateDict) -> OrderedDict[str, Any]:
    """torch's ``_metadata``, an attribute of the OrderedDict, as the modules come and go."""
    keys, moved = metadata_keys(planned, list(before)), versions_moved(planned)
    return OrderedDict(
        (key, _entry(before[key], moved.get(key)) if key in before else dict(NEW_ENTRY)) for key in keys
    )


def _entry(entry: Any, moved: Versions | None) -> Any:
    """The entry of a module without the versions that are gone, and with those that come."""
    if moved is None or not isinstance(entry, dict):
        return entry
    versions = entry.get(SPECTRAL_VERSIONS, {})
    if not isinstance(versions, dict):
        return entry
    left = {name: version for name, version in versions.items() if name not in moved.gone}
    left |= dict.fromkeys(moved.come, NEW_ENTRY["version"])
    others = {name: value for name, value in entry.items() if name != SPECTRAL_VERSIONS}
    return {**others, SPECTRAL_VERSIONS: left} if left else others
