"""Paddle's files (``paddle.save``): a pickle of NumPy arrays, of which only the structure is read.

bfloat16, which NumPy does not have, is saved as uint16, and read back as bfloat16: Paddle has no uint16. In a
pickle of arrays that shows nothing of Paddle's, uint16 is what it says. A tensor that lies in a mapping of
the user's own is a tuple of its name and its array. Protocols 2 and 3 cut what is larger than 1 GiB into
slices. Sources: ``paddle/framework/io.py`` and ``io_utils.py`` (Paddle 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from wnconvert.errors import FormatError, InputError
from wnconvert.formats.pickle.skimming import load_skimmed
from wnconvert.formats.pickle.values import Dict, Object, Value
from wnconvert.formats.torch.arrays import HeldArrays, is_array
from wnconvert.formats.torch.contents import Contents, FoundStateDict, find_contents
from wnconvert.formats.torch.names import dangerous_names
from wnconvert.formats.torch.records import get, mapping_pairs
from wnconvert.frozen import dataclass
from wnconvert.messages import listed, printable
from wnconvert.tensors.dtypes import DTYPES
from wnconvert.tensors.files import GET_AGAIN, ReadableFile
from wnconvert.tensors.tree import (
    ByteRange,
    Entry,
    StateDict,
    StoredTensor,
    TensorInfo,
    Tree,
    contiguous_strides,
    repeated,
)
from wnconvert.tensors.views.assembled import Assembled, Chunk, FileView

__all__ = ["PaddleFile", "open_paddle"]


# Keys that paddle.save adds: the names of parameters in a program, and what was cut into slices.
_NAMES = "StructuredToParameterName@@"
_SLICES = "UnpackBigParamInfor@@"
_TUPLES = ("builtins.tuple", "__builtin__.tuple")
_EVALS = ("builtins.eval", "__builtin__.eval")


@dataclass(frozen=True, slots=True)
class PaddleFile:
    """An opened file: its tree, and the views of bytes that do not lie in the file as they are."""

    tree: Tree
    views: tuple[FileView, ...]


def open_paddle(file: ReadableFile) -> PaddleFile:
    """Read the structure of a file of Paddle.

    Raises ``FormatError`` for one that is damaged, ``InputError`` for a pickle without a mapping of arrays.
    """
    pickle = load_skimmed(file)
    unwrapped = _unwrap(pickle.nodes)
    own = _take_own_keys(pickle.root)
    slices = {key: value for key, value in mapping_pairs(own.get(_SLICES)) or () if isinstance(key, str)}
    contents = find_contents(pickle.root, pickle.end)
    kept = _as_paddle if own or unwrapped else _as_it_is
    arrays = HeldArrays.of((value for state in contents.state_dicts for _, value in state.items), 1)
    views = list(arrays.views)
    made = [
        _state_dict(state, arrays, {} if state.keys else slices, views, kept)
        for state in contents.state_dicts
    ]
    states = [state for state in made if state.tensors]
    if not states:
        raise InputError("a plain pickle without an array of numbers", fix="save it with torch.save")
    tree = Tree(tuple(states), notes=tuple(_notes(pickle.root, contents, states)))
    return PaddleFile(tree, tuple(views))


def _unwrap(nodes: Iterable[Value]) -> int:
    """Make the arrays that stand for tensors plain ones: ``tuple((name, array))``, ``eval("data", …)``.

    Returns how many there were.
    """
    count = 0
    for node in nodes:
        array = _array_in(node)
        if array is not None:
            node.op, node.callee, node.args = array.op, array.callee, array.args
            node.kwargs, node.changes = array.kwargs, array.changes
            count += 1
    return count


def _array_in(value: Value) -> Object | None:
    """The array that a tensor's record holds; None for any other value. Nothing is called."""
    if not isinstance(value, Object) or value.op != "REDUCE" or value.changes:
        return None
    found = None
    if value.is_call_of(*_TUPLES) and isinstance(value.args, tuple) and len(value.args) == 1:
        pair = value.args[0]
        found = pair[1] if isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) else None
    elif value.is_call_of(*_EVALS) and isinstance(value.args, tuple) and len(value.args) == 2:
        text, names = value.args
        found = get(names, "data") if text == "data" and isinstance(names, Dict) else None
    return found if isinstance(found, Object) and is_array(found) else None


def _take_own_keys(root: Value) -> Mapping[str, Value]:
    """Take out of the root what Paddle added, by its keys."""
    if not isinstance(root, Dict):
        return {}
    own = {key: value for key, value in root.pairs if isinstance(key, str) and key in (_NAMES, _SLICES)}
    root.pairs = [pair for pair in root.pairs if not (isinstance(pair[0], str) and pair[0] in own)]
    return own


def _state_dict(
    found: FoundStateDict,
    arrays: HeldArrays,
    slices: Mapping[str, Value],
    views: list[FileView],
    kept: Callable[[StoredTensor], StoredTensor],
) -> StateDict:
    """A state dict as data, its slices put together; ``kept`` makes a tensor of an array."""
    tensors = {
        name: kept(stored)
        for name, value in found.items
        if (stored := arrays.stored(name, value)) is not None
    }
    names = [name for name, _ in found.items]
    for name, how in slices.items():
        parts = _parts(name, how)
        tensors[name] = _joined(name, how, [tensors.pop(part, None) for part in parts], views)
        names = [each for each in names if each not in parts] + [name]
    if (twice := repeated(names)) is not None:
        raise FormatError(f"{printable(found.path) or 'it'} has the key {twice!r} twice", fix="save it again")
    entries = (Entry(name, tensors[name]) for name in names if name in tensors)
    return StateDict(found.path, tuple(entries))


def _as_paddle(stored: StoredTensor) -> StoredTensor:
    """Paddle's dtype: what NumPy calls uint16 is bfloat16."""
    if stored.info.dtype.name != "uint16":
        return stored
    return replace(stored, info=replace(stored.info, dtype=DTYPES["bfloat16"]))


def _as_it_is(stored: StoredTensor) -> StoredTensor:
    """NumPy's own dtype."""
    return stored


def _parts(name: str, how: Value) -> list[str]:
    parts = get(how, "slices")
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
        raise FormatError(f"the slices of {printable(name)} make no sense", fix=GET_AGAIN)
    return parts


def _joined(name: str, how: Value, parts: list[StoredTensor | None], views: list[FileView]) -> StoredTensor:
    """The tensor that flat slices are, end to end."""
    shape, first = get(how, "OriginShape"), parts[0]
    wrong = FormatError(f"the slices of {printable(name)} do not fit its shape", fix=GET_AGAIN)
    if not isinstance(shape, tuple | list) or not all(type(size) is int and size >= 0 for size in shape):
        raise wrong
    chunks, numel = [], 0
    for part in parts:
        if part is None or first is None or len(part.info.shape) != 1 or part.info.dtype != first.info.dtype:
            raise wrong
        chunks.append(Chunk((numel,), part.info.shape, part.data))
        numel += part.info.numel
    assert first is not None  # noqa: S101 - there is one at least
    info = TensorInfo(name, first.info.dtype, tuple(shape))
    if info.numel != numel:
        raise wrong
    views.append(Assembled((numel,), info.dtype.itemsize, tuple(chunks)))
    return StoredTensor(info, ByteRange(0, info.nbytes, len(views)), 0, contiguous_strides(info.shape))


def _notes(root: Value, contents: Contents, states: Iterable[StateDict]) -> Iterable[str]:
    """What the user should know of a file."""
    if names := dangerous_names(root):
        yield f"the file names what could run something where Paddle loads it: {listed(names, 6)}"
    if any(tensor.info.dtype.name == "bfloat16" for state in states for tensor in state.tensors.values()):
        yield "its arrays of uint16 are bfloat16, as Paddle saves it"
    beside = [item.path for item in (*contents.optimizers, *contents.siblings)]
    beside += [name for state in contents.state_dicts for name, value in state.items if not is_array(value)]
    if beside:
        yield f"what is no array of a state dict is left out: {listed(map(printable, beside), 6)}"
