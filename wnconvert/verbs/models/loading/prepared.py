"""A model as a command needs it: its inputs settled, then built, its weights loaded; or its inputs listed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from wnconvert.errors import ArgumentError
from wnconvert.frozen import dataclass
from wnconvert.messages import listed, printable
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.storage.files import located
from wnconvert.verbs.models.loading.model import FoundModel, find_model, kwargs_of
from wnconvert.verbs.models.loading.weights import load_weights
from wnconvert.verbs.models.proof.functions import Exportable
from wnconvert.verbs.models.proof.inputs.forwards import Forward, forward_of
from wnconvert.verbs.models.proof.inputs.proposed import (
    Proposal,
    proposed_by_names,
    proposed_for_program,
)
from wnconvert.verbs.models.proof.inputs.texts import parse_range
from wnconvert.verbs.models.proof.report import TimedStep, TimedSteps
from wnconvert.verbs.models.proof.signatures import Data, signature_of

__all__ = ["ModelInputs", "Prepared", "inputs_of", "prepared"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model ready to be run, and the steps that made it; the texts of its inputs and of their ranges."""

    module: Exportable
    inputs: tuple[str, ...]
    ranges: tuple[str, ...]
    steps: tuple[TimedStep, ...]
    notes: tuple[str, ...] = ()


def prepared(
    model: str,
    *,
    inputs: Iterable[str],
    ranges: Iterable[str] = (),
    data: Iterable[Data] = (),
    weights: str | None = None,
    kwargs: str | None = None,
    only: str | None = None,
    strip_prefix: Iterable[str] = (),
    trust: bool = False,
    progress: Callable[[TimedStep], None] = lambda step: None,
) -> Prepared:
    """Build what ``model`` names, with ``kwargs`` as JSON, and load ``weights`` into it.

    ``inputs``, ``ranges`` and ``data`` are those of ``signature_of``, and wrong ones are told before the
    build. Without ``inputs`` a folder's are those that are proposed. ``progress`` is called as each step
    begins and ends. Raises ``ArgumentError`` for inputs that the model does not take, and the errors of
    ``find_model``, ``build``, ``signature_of`` and ``load_weights``.
    """
    arguments = None if kwargs is None else kwargs_of(kwargs)
    if weights is not None:
        open_checkpoint(weights)  # errors in it come before the model's code runs
    steps = TimedSteps(progress)
    with steps("build", model) as step:
        found = find_model(model, kwargs=arguments, trust=trust, only=only if weights is None else None)
        texts, spans = _settled(found, model, tuple(inputs), tuple(ranges))
        names = signature_of(texts, spans, data=data).names
        if found.forward is not None:
            found.forward.check(names)
        _check_steady(found)
        made = found.build()
        step.detail = type(made).__name__
    proposed = () if inputs else (f"the inputs are those proposed: {_typed(texts, spans)}",)
    notes = (*found.notes, *proposed)
    place = found.weights if weights is None else located(weights)
    if place is not None:
        with steps("load", str(place)) as step:
            loaded = load_weights(made, place, only=only, strip_prefix=strip_prefix)
            step.detail, notes = str(loaded), (*notes, *loaded.notes)
    elif not Path(model).is_file():
        notes = (*notes, "no --weights are given: the model keeps the weights of its factory")
    return Prepared(made, texts, spans, tuple(steps.every), notes)


def _settled(
    found: FoundModel, model: str, inputs: tuple[str, ...], ranges: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The inputs and ranges that are given, or those proposed for a folder; ranges that are given come first.

    Raises ``ArgumentError`` where no inputs are given, and none are sure.
    """
    if inputs:
        return inputs, ranges
    if found.weights is not None and found.proposal is not None:
        given = {parse_range(text)[0] for text in ranges}
        more = (text for text in found.proposal.ranges if parse_range(text)[0] not in given)
        return found.proposal.inputs, (*ranges, *more)
    if found.proposal is None:
        how = f"wnconvert export {printable(model)} --list-inputs"
        raise ArgumentError(
            "the model is run, and needs its inputs", fix=f"give --input; {how} proposes them"
        )
    names = listed([each.name for each in found.proposal.arguments if each.needed]) or "(none by name)"
    raise ArgumentError(
        f"the model needs its inputs: {names}",
        fix=f"give them, such as {_typed(found.proposal.inputs, ())}, with their dtypes and shapes",
    )


def _check_steady(found: FoundModel) -> None:
    """Raise ``ArgumentError`` for a folder whose config has its model draw noise, which no proof can bear."""
    if found.weights is not None and found.proposal is not None and found.proposal.settings:
        said = json.dumps(dict(found.proposal.settings))
        raise ArgumentError(
            f"{found.class_name} draws noise: no two runs are the same, and nothing could be proven",
            fix=f"give --kwargs '{said}'; or a factory whose noise is an input, as in docs/recipes.md",
        )


def _typed(inputs: Iterable[str], ranges: Iterable[str]) -> str:
    """Inputs and ranges as they are typed on a command line."""
    return " ".join([*(f"--input '{text}'" for text in inputs), *(f"--range {text}" for text in ranges)])


# -- the list of inputs


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """The arguments of a model's forward, and a text that is proposed for each.

    ``built`` says whether the model had to be built to know them. ``takes_others``: inputs of any other name
    are taken too.
    """

    model: str
    class_name: str
    proposal: Proposal
    takes_others: bool
    built: bool
    notes: tuple[str, ...] = ()

    @property
    def typed(self) -> str:
        """The options that give the needed inputs, as they are typed."""
        return _typed(self.proposal.inputs, self.proposal.ranges)

    def to_dict(self) -> dict[str, Any]:
        """The list as JSON-able data; docs/json.md documents it."""
        return {
            "schema": 1,
            "model": self.model,
            "class_name": self.class_name,
            "built": self.built,
            "takes_others": self.takes_others,
            "arguments": [
                {**asdict(each), "default": each.default or None, "text": each.text or None}
                for each in self.proposal.arguments
            ],
            "ranges": list(self.proposal.ranges),
            "settings": dict(self.proposal.settings),
            "notes": list(self.notes),
        }


def inputs_of(model: str, *, kwargs: str | None = None, trust: bool = False) -> ModelInputs:
    """List what a model takes, with texts that are proposed; it is built only where nothing else tells.

    Raises the errors of ``find_model`` and ``build``.
    """
    arguments: Mapping[str, Any] | None = None if kwargs is None else kwargs_of(kwargs)
    found = find_model(model, kwargs=arguments, trust=trust)
    if found.forward is not None and found.proposal is not None:
        others = found.forward.takes_others
        return ModelInputs(model, found.class_name, found.proposal, others, built=False, notes=found.notes)
    made = found.build()
    forward: Forward = forward_of(made)
    proposal = proposed_for_program(made) if isinstance(made, ExportedProgram) else proposed_by_names(forward)
    return ModelInputs(model, type(made).__name__, proposal, forward.takes_others, built=True)
