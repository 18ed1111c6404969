"""What becomes of the norm beside a layer, and where the bias of the layer is put."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from wnconvert.frozen import dataclass
from wnconvert.layers.rules import AffineBefore, NormBefore, NormBehind
from wnconvert.layers.schemes import Refused
from wnconvert.messages import listed
from wnconvert.verbs.modules.finding.computed import tensor_of
from wnconvert.verbs.modules.finding.live import Live
from wnconvert.verbs.modules.folding.layers import why_not_layer
from wnconvert.verbs.modules.folding.places import Places
from wnconvert.verbs.modules.folding.trials import TRAINING, remains_of, why_not_affine
from wnconvert.verbs.modules.selection import raise_refused
from wnconvert.verbs.modules.surgery import hold, settings_of
from wnconvert.verbs.modules.undo import become, refill

__all__ = ["NormEdit", "besides_of", "put_beside"]


_EVALUATE = "module.eval() before: the weights are those of eval mode"


@dataclass(frozen=True, slots=True, eq=False)
class NormEdit:
    """What a fold changes beside the weight of ``live``.

    ``norm`` becomes a module of the class ``remains``; None: it stays, and its affine does nothing. The bias
    is put into ``home`` as ``bias``; home None: there is none.
    """

    live: Live
    norm: nn.Module
    remains: type[nn.Module] | None
    home: nn.Module | None = None
    bias: str = ""

    @property
    def modules(self) -> Iterator[nn.Module]:
        """The modules that are edited."""
        yield self.norm
        if self.home is not None:
            yield self.home


def besides_of(
    chosen: Iterable[Live], found: Iterable[Live], plain: Mapping[Live, nn.Module], places: Places
) -> tuple[NormEdit, ...]:
    """What changes beside the chosen layers, of all that are found; ``plain`` is what some become.

    Raises ``LayerError`` for norms of which more than the norm would be lost, and for those that stand before
    several layers, of which not all are chosen.
    """
    every = [live for live in chosen if live.layer.norm]
    before: dict[str, list[str]] = {}
    for live in found:
        before.setdefault(live.layer.norm, []).append(live.layer.name)
    names = {live.layer.name for live in every}
    made: list[NormEdit] = []
    refused: list[Refused] = []
    for live in every:
        norm = places.modules[live.layer.norm]
        left = [name for name in before[live.layer.norm] if name not in names]
        if left:
            reason = f"{live.layer.norm} stands before {listed(left)} too, and goes into all of them or none"
            refused.append(Refused(live.layer.name, reason, "choose all of them, or exclude them all"))
            continue
        if reason := why_not_layer(live, live.layer.bias, plain.get(live)):
            refused.append(Refused(live.layer.name, reason))
            continue
        remains, reason = _remains(live, norm)
        if reason:
            fix = _EVALUATE if reason == TRAINING else ""
            refused.append(Refused(live.layer.name, f"{live.layer.norm} cannot be taken out: {reason}", fix))
        home, bias = places.owner(live.layer.bias) if live.layer.bias else (None, "")
        made.append(NormEdit(live, norm, remains, home, bias))
    raise_refused(refused, "folded")
    return tuple(made)


def _remains(live: Live, norm: nn.Module) -> tuple[type[nn.Module] | None, str]:
    operation, shape = live.layer.rule.neighbour, live.layer.original.shape
    assert operation is not None  # noqa: S101 - what has a norm has one
    channels = operation.norms(shape)
    if isinstance(operation, AffineBefore):
        return None, why_not_affine(norm, operation, channels)
    assert isinstance(operation, (NormBehind, NormBefore))  # noqa: S101
    return remains_of(norm, operation, channels, len(shape))


def put_beside(besides: Iterable[NormEdit], biases: Iterable[Tensor | None]) -> None:
    """Give the layers their biases, and take the norms out."""
    for beside, bias in zip(besides, biases, strict=True):
        if beside.home is not None and bias is not None:
            _put_bias(beside.home, beside.bias, bias, behind=beside.live.param)
        if beside.remains is None:
            _do_nothing(beside.norm)
        else:
            _reduce(beside.norm, beside.remains)


def _put_bias(home: nn.Module, name: str, value: Tensor, *, behind: str) -> None:
    """Put a bias in the place of the old one, or behind the weight, if that is in the same module."""
    container = home._parameters if isinstance(value, nn.Parameter) else home._buffers
    is_new = container.get(name) is None
    for other in (home._parameters, home._buffers):
        if other is not container:
            other.pop(name, None)
    hold(home, name, value, fleeting=False)
    if is_new and behind in container:
        rest = {key: each for key, each in container.items() if key != name}
        items: dict[str, Tensor | None] = {}
        for key, each in rest.items():
            items[key] = each
            if key == behind:
                items[name] = value
        refill(container, items)


def _reduce(norm: nn.Module, cls: type[nn.Module]) -> None:
    """Make a norm what remains of it: hooks, mode and the modules in it stay, tensors and settings go."""
    norm._parameters.clear()
    norm._buffers.clear()
    norm._non_persistent_buffers_set.clear()
    known = vars(nn.Module()).keys()
    for name in [name for name in vars(norm) if name not in known]:
        del norm.__dict__[name]
    become(norm, cls)


def _do_nothing(norm: nn.Module) -> None:
    """Make the affine of a norm one that changes nothing."""
    for name, number in (("weight", 1.0), ("bias", 0.0)):
        old = tensor_of(norm, name)
        if old is not None:
            hold(norm, name, _filled(old, number), fleeting=name in norm._non_persistent_buffers_set)


def _filled(old: Tensor, number: float) -> Tensor:
    made: Tensor = torch.full_like(old.detach(), number)
    if isinstance(old, nn.Parameter):
        made = nn.Parameter(made, requires_grad=old.requires_grad)
    vars(made).update(settings_of(old))
    return made
