"""The meaning of the records of torch's pickles: storages, tensors, mappings, modules.

Records are only read and made here; the choice of edits is made elsewhere. Sources of the
spellings: ``torch/_utils.py`` (``_rebuild_tensor_v2`` and friends), ``torch/serialization.py``
(``persistent_id``) and ``torch/nn/modules/module.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import NoneType

from wnconvert.errors import FormatError
from wnconvert.formats.pickle.values import Dict, Global, Object, PersistentId, Value
from wnconvert.tensors.dtypes import DTYPES, DType
from wnconvert.tensors.tree import MAX_RANK

__all__ = [
    "Storage",
    "TensorRecord",
    "class_of",
    "forget",
    "get",
    "has_own_state",
    "is_module",
    "is_rebuilt",
    "is_script_module",
    "mapping_pairs",
    "read_storage",
    "read_tensor",
    "shown",
    "slots_of",
    "state_dict_node",
    "storage_record",
    "tensor_record",
    "with_pairs",
    "with_storage",
]


_STORAGES: dict[str, DType] = {dtype.storage: dtype for dtype in DTYPES.values() if dtype.storage}
_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")


@dataclass(frozen=True, slots=True)
class Storage:
    """torch's ``("storage", class, key, location, numel)``; ``dtype`` is None for an untyped one (bytes).

    ``first`` is the element of the root storage at which a storage of the oldest files, a view, begins.
    """

    key: str
    dtype: DType | None
    location: str
    numel: int
    first: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes of one element, as ``numel`` counts them."""
        return self.dtype.itemsize if self.dtype else 1

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.itemsize


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor as its record states it; offset and strides count elements of ``dtype``.

    ``is_lazy`` where its numbers are the storage's negated or conjugated (torch's ``is_neg``, ``is_conj``).
    """

    storage: Storage
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    is_lazy: bool = False


def read_storage(value: Value) -> Storage | None:
    """The storage that a persistent id names, or None for any other value."""
    if type(value) is not PersistentId:
        return None
    meaning = value.meaning
    if meaning is None:
        meaning = value.meaning = _storage(value.pid) or _NOTHING
    return meaning if type(meaning) is Storage else None


def forget(value: Value) -> None:
    """Read a record anew from now on: it was changed."""
    if isinstance(value, (Object, PersistentId)):
        value.meaning = None


#: What a record means that is neither a storage nor a tensor.
_NOTHING = object()


def _storage(pid: Value) -> Storage | None:
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        return None
    _, cls, key, location, numel = pid[:5]
    if not isinstance(cls, Global) or cls.module not in _STORAGE_MODULES:
        raise FormatError(f"a storage of it is of the unknown kind {shown(cls)}")
    if cls.name != "UntypedStorage" and cls.name not in _STORAGES:
        raise FormatError(f"a storage of it is of the unknown kind {cls.dotted}")
    first = 0
    if len(pid) == 6 and pid[5] is not None:
        # Storages that are views of a root storage, as the oldest torch wrote them.
        if not (isinstance(pid[5], tuple) and len(pid[5]) == 3 and _count(pid[5][1])):
            raise FormatError("a storage of it is a view of another in a way that torch never wrote")
        first = pid[5][1]
    if not ((isinstance(key, str) or _count(key)) and isinstance(location, str) and _count(numel)):
        raise FormatError(
            f"one of its storages has a key, device or size that makes no sense: {shown(pid[2:5])}"
        )
    return Storage(str(key), _STORAGES.get(cls.name), str(location), numel, first)


def read_tensor(value: Value) -> TensorRecord | None:
    """The tensor that a record rebuilds, or None for any other value.

    Understands ``_rebuild_tensor``, ``_rebuild_tensor_v2``, ``_rebuild_tensor_v3`` and the
    ``_rebuild_parameter`` around them. Raises ``FormatError`` where such a record makes no sense.
    """
    if type(value) is not Object:
        return None
    meaning = value.meaning
    if meaning is None:
        meaning = value.meaning = _tensor(value) or _NOTHING
    return meaning if type(meaning) is TensorRecord else None


def _tensor(value: Object) -> TensorRecord | None:
    core = _core(value)
    if core is None:
        return None
    args = core.args
    storage = read_storage(args[0])
    if storage is None:
        raise FormatError("one of its tensors has no storage")
    offset, shape, strides = args[1:4]
    if not (
        _count(offset) and _counts(shape) and _counts(strides) and len(shape) == len(strides) <= MAX_RANK
    ):
        raise FormatError(f"a tensor of it has an absurd offset, shape or stride: {shown(args[1:4])}")
    dtype, metadata = storage.dtype, args[6:7]
    if core.is_call_of("torch._utils._rebuild_tensor_v3"):
        named, metadata = args[6] if len(args) > 6 else None, args[7:8]
        dtype = DTYPES.get(named.name) if isinstance(named, Global) and named.module == "torch" else None
    if dtype is None:
        raise FormatError("a tensor of it has a dtype that is not known here")
    is_lazy = any(get(math_bits, bit) is True for math_bits in metadata for bit in ("neg", "conj"))
    return TensorRecord(storage, dtype, offset + storage.first, tuple(shape), tuple(strides), is_lazy)


def is_rebuilt(value: Value) -> bool:
    """Whether a record is a tensor of whatever kind: quantized, sparse, meta ones too."""
    return (
        isinstance(value, Object)
        and isinstance(value.callee, Global)
        and value.callee.dotted.startswith(("torch._utils._rebuild_", "torch._tensor._rebuild_"))
    )


_TENSORS = frozenset(f"torch._utils._rebuild_tensor{suffix}" for suffix in ("", "_v2", "_v3"))
# A tensor of a subclass, or with attributes: how it is rebuilt, its class, the arguments of that, its state.
_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")


def _core(value: Value) -> Object | None:
    """The ``_rebuild_tensor`` record in a tensor's or parameter's record."""
    for _ in range(3):
        if not isinstance(value, Object) or value.op != "REDUCE" or not isinstance(value.args, tuple):
            return None
        called = value.callee.dotted if isinstance(value.callee, Global) else ""
        if called in _TENSORS and len(value.args) >= 4:
            return value
        if called == _FROM_TYPE and len(value.args) == 4:
            value = Object("REDUCE", value.args[0], value.args[2])
        elif called in _PARAMETERS and value.args:
            value = value.args[0]
        else:
            return None
    return None


def _count(value: Value) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _counts(value: Value) -> bool:
    if not isinstance(value, (tuple, list)):
        return False
    for item in value:  # noqa: SIM110 - a generator takes longer than the few that there are
        if not _count(item):
            return False
    return True


def shown(value: Value, levels: int = 2) -> str:
    """A value in few words; whatever hangs below it, this takes no time."""
    if isinstance(value, Global):
        text = value.dotted
    elif isinstance(value, tuple) and levels and len(value) <= 8:
        text = f"({', '.join(shown(item, levels - 1) for item in value)})"
    elif value is None or isinstance(value, (bool, float)):
        text = repr(value)
    elif isinstance(value, int):
        text = str(value) if value.bit_length() < 200 else "a number without end"
    elif isinstance(value, str):
        text = repr(str(value[:80]))
    else:
        text = f"a {type(value).__name__.lower()}"
    return text if len(text) <= 80 else text[:77] + "..."


# -- making


def storage_record(key: str, dtype: DType | None, location: str, numel: int) -> PersistentId:
    """The persistent id of a storage of ``numel`` elements of ``dtype``, of bytes where that is None.

    A dtype without a storage class of its own (float8, uint16) lies in an untyped storage, counted in bytes.
    """
    if dtype and dtype.storage:
        return PersistentId(("storage", _storage_class(dtype), key, location, numel))
    nbytes = numel * dtype.itemsize if dtype else numel
    return PersistentId(("storage", _storage_class(None), key, location, nbytes))


@cache
def _storage_class(dtype: DType | None) -> Global:
    """The class of a storage: one object for any number of tensors."""
    return Global("torch", dtype.storage) if dtype else Global("torch.storage", "UntypedStorage")


def with_storage(
    value: Value, storage: PersistentId, offset: int, shape: Sequence[int], strides: Sequence[int]
) -> Object:
    """The tensor or parameter record ``value`` over another storage, all else (requires_grad) as it was."""
    if value.is_call_of(*_PARAMETERS):
        inner = with_storage(value.args[0], storage, offset, shape, strides)
        return Object(value.op, value.callee, (inner, *value.args[1:]), value.kwargs, value.changes)
    core = _core(value)
    if core is None:
        raise TypeError("not a tensor record")
    callee, args = core.callee, (storage, offset, tuple(shape), tuple(strides), *core.args[4:])
    if core.is_call_of("torch._utils._rebuild_tensor_v3"):
        # v3 exists for dtypes without a storage class; a foldable dtype is spelled in v2.
        callee, args = Global("torch._utils", "_rebuild_tensor_v2"), args[:6]
    made = Object(core.op, callee, args, core.kwargs, core.changes)
    if core is value:
        return made
    _, cls, _, state = value.args
    return Object(value.op, value.callee, (made.callee, cls, made.args, state), value.kwargs, value.changes)


def tensor_record(
    storage: PersistentId, offset: int, shape: Sequence[int], strides: Sequence[int], dtype: DType
) -> Object:
    """The record of a plain tensor, as ``torch.save`` writes it: each with tuples of its own."""
    hooks = Object("REDUCE", Global("collections", "OrderedDict"), ())
    args = (storage, offset, (*shape,), (*strides,), False, hooks)
    if dtype.storage:
        return Object("REDUCE", Global("torch._utils", "_rebuild_tensor_v2"), args)
    rebuild = Global("torch._utils", "_rebuild_tensor_v3")
    return Object("REDUCE", rebuild, (*args, Global("torch", dtype.name)))


def state_dict_node(pairs: Sequence[tuple[str, Value]]) -> Object:
    """An ``OrderedDict`` of these pairs."""
    return Object("REDUCE", Global("collections", "OrderedDict"), (), changes=[("set", list(pairs))])


# -- mappings


def mapping_pairs(value: Value) -> list[tuple[Value, Value]] | None:
    """The pairs of a dict, or of an object that is one (``OrderedDict``, a foreign dict); else None."""
    if isinstance(value, Dict):
        return value.pairs
    if not isinstance(value, Object):
        return None
    pairs = value.pairs
    if not pairs and value.is_call_of("collections.OrderedDict"):
        # Python 2 wrote OrderedDict([[key, value], …]).
        items = value.args[0] if isinstance(value.args, tuple) and value.args else []
        if isinstance(items, list) and all(
            isinstance(item, (list, tuple)) and len(item) == 2 for item in items
        ):
            return [(item[0], item[1]) for item in items]
        return None
    return pairs if pairs or value.is_call_of("collections.OrderedDict") else None


def with_pairs(value: Value, pairs: Sequence[tuple[Value, Value]]) -> Dict | Object:
    """The mapping ``value`` with other pairs, and all else (class, ``_metadata``) as it was."""
    if isinstance(value, Dict):
        return Dict(list(pairs))
    args = () if value.is_call_of("collections.OrderedDict") else value.args
    first = next((at for at, (kind, _) in enumerate(value.changes) if kind == "set"), 0)
    others = [change for change in value.changes if change[0] != "set"]
    changes = [*others[:first], ("set", list(pairs)), *others[first:]]
    return Object(value.op, value.callee, args, value.kwargs, changes)


def get(value: Value, key: str) -> Value:
    """The value of ``key`` in a mapping, or None."""
    found = None
    for name, item in mapping_pairs(value) or ():
        if name == key:
            found = item  # the last one wins, as in a dict
    return found


def slots_of(state: Value) -> dict[str, Value]:
    """The attributes that a state holds: a mapping; for a class with slots two of them, or None and one."""
    parts = state if isinstance(state, tuple) else (state,)
    pairs = (pair for part in parts for pair in mapping_pairs(part) or ())
    return {key: value for key, value in pairs if isinstance(key, str)}


# -- modules


def is_module(value: Value) -> bool:
    """Whether a record is a pickled ``nn.Module``."""
    state = value.state if isinstance(value, Object) else None
    return state is not None and all(get(state, key) is not None for key in ("_parameters", "_modules"))


def is_script_module(value: Value) -> bool:
    """Whether a record is an object of a TorchScript archive."""
    return (
        isinstance(value, Object)
        and isinstance(value.callee, Global)
        and value.callee.module.split(".")[0] == "__torch__"
        and isinstance(value.state, Dict)
    )


def has_own_state(value: Value) -> bool:
    """Whether a record is an object of a TorchScript archive that its own ``__getstate__`` has packed."""
    return (
        isinstance(value, Object)
        and isinstance(value.callee, Global)
        and value.callee.module.split(".")[0] == "__torch__"
        and not isinstance(value.state, (Dict, NoneType))
    )


def class_of(value: Value) -> str:
    """The dotted name of the class of which a record is an instance."""
    if not isinstance(value, Object):
        return ""
    cls = value.callee
    if value.is_call_of("copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__"):
        cls = value.args[0] if isinstance(value.args, tuple) and value.args else None  # protocols 0 and 1
    return cls.dotted if isinstance(cls, Global) else ""
