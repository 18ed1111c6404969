"""Which axis of a value has the channels, followed through views of it; unknown where that is not sure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wnconvert.frozen import dataclass
from wnconvert.onnx.arithmetic.constants import Settings, axes_of
from wnconvert.tensors.blocks import Array

__all__ = ["VIEWS", "ChannelAxis", "ViewError", "viewed"]


class ViewError(Exception):
    """It is not sure which axis has the channels."""


@dataclass(frozen=True, slots=True)
class ChannelAxis:
    """The axis of the channels: from the front, or below zero from the back; ``rank`` where it is known."""

    axis: int
    rank: int | None = None

    @property
    def front(self) -> int | None:
        """The axis from the front, where that is known."""
        if self.axis >= 0:
            return self.axis
        return None if self.rank is None else self.axis + self.rank

    @property
    def back(self) -> int | None:
        """The axis from the back, below zero, where that is known."""
        if self.axis < 0:
            return self.axis
        return None if self.rank is None else self.axis - self.rank


def viewed(
    op: str, inputs: Sequence[Array | None], settings: Settings, channels: ChannelAxis, count: int
) -> ChannelAxis:
    """Where ``count`` channels are behind a view; ``inputs`` are the numbers of its inputs, where known.

    Raises ``ViewError`` where that is not sure.

    >>> viewed("Transpose", [None], {"perm": (0, 2, 1)}, ChannelAxis(-1), 8)
    ChannelAxis(axis=1, rank=3)
    """
    try:
        return _VIEWS[op](inputs, settings, channels, count)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ViewError(op) from error


def _same(
    _inputs: Sequence[Array | None], _settings: Settings, channels: ChannelAxis, _count: int
) -> ChannelAxis:
    return channels


def _transpose(
    _inputs: Sequence[Array | None], settings: Settings, channels: ChannelAxis, _count: int
) -> ChannelAxis:
    order = settings.get("perm")
    if order is None:  # the axes from the last to the first
        return ChannelAxis(-1 - channels.axis, channels.rank)
    if sorted(order) != list(range(len(order))) or channels.rank not in {None, len(order)}:
        raise ValueError(order)
    axis = ChannelAxis(channels.axis, len(order)).front
    return ChannelAxis(order.index(axis), len(order))


def _reshape(
    inputs: Sequence[Array | None], settings: Settings, channels: ChannelAxis, count: int
) -> ChannelAxis:
    """The last axis stays if it is given as what it was; the second too, if the first does."""
    given = settings["shape"] if "shape" in settings else inputs[1]
    if given is None:
        raise ValueError("shape")
    shape = [int(size) for size in given]
    if channels.back == -1 and shape[-1] == count:
        return ChannelAxis(len(shape) - 1, len(shape))
    kept = settings.get("allowzero", 0) == 0 and shape[0] == 0
    if channels.front == 1 and kept and shape[1] in {0, count}:
        return ChannelAxis(1, len(shape))
    raise ValueError(shape)


def _squeeze(
    inputs: Sequence[Array | None], settings: Settings, channels: ChannelAxis, _count: int
) -> ChannelAxis:
    axes = axes_of(inputs, settings)
    if not axes:
        raise ValueError("axes")
    axis, gone = _alike(channels, axes, channels.rank)
    if axis in gone:
        raise ValueError(axes)
    rank = channels.rank - len(gone) if channels.rank is not None else None
    if axis < 0:
        return ChannelAxis(axis + sum(each > axis for each in gone), rank)
    return ChannelAxis(axis - sum(each < axis for each in gone), rank)


def _unsqueeze(
    inputs: Sequence[Array | None], settings: Settings, channels: ChannelAxis, _count: int
) -> ChannelAxis:
    axes = axes_of(inputs, settings)
    if not axes:
        raise ValueError("axes")
    rank = channels.rank + len(axes) if channels.rank is not None else None
    axis, new = _alike(channels, axes, rank)
    for each in sorted(new, reverse=axis < 0):
        if axis >= 0 and each <= axis:
            axis += 1
        elif axis < 0 and each >= axis:
            axis -= 1
    return ChannelAxis(axis, rank)


def _alike(channels: ChannelAxis, axes: Sequence[int], rank: int | None) -> tuple[int, set[int]]:
    """The axis of the channels, and other axes of a value of ``rank``, all from the same end."""
    if rank is not None and channels.front is not None:
        return channels.front, {axis % rank for axis in axes}
    if all(axis < 0 for axis in axes) and channels.back is not None:
        return channels.back, set(axes)
    if all(axis >= 0 for axis in axes) and channels.front is not None:
        return channels.front, set(axes)
    raise ValueError(axes)


_View = Callable[[Sequence[Array | None], Settings, ChannelAxis, int], ChannelAxis]
_VIEWS: dict[str, _View] = {
    "Identity": _same,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
#: The operators through which channels are followed.
VIEWS = frozenset(_VIEWS)
