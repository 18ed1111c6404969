"""A fold that is told, and proven, by the model that its checkpoint is for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from wnconvert.cli.options import with_options
from wnconvert.cli.runs.start import check_torch
from wnconvert.cli.terminal import stdout_to_stderr
from wnconvert.errors import ArgumentError, LayerError
from wnconvert.messages import listed, printable

if TYPE_CHECKING:
    from wnconvert.layers.recipes import Recipe

__all__ = ["BY_MODEL", "told_by_model"]


BY_MODEL = with_options(
    click.option(
        "--model",
        metavar="MODEL",
        help="The model of SRC, package.module:factory or path/to/file.py:factory, which is run, or a FOLDER "
        "as of export: it tells the recipe if nothing else does, and proves the output before it is put in "
        "place. Needs --input, but for a FOLDER.",
    ),
    click.option(
        "--input",
        "inputs",
        metavar="NAME=DTYPE[SHAPE]",
        multiple=True,
        help="With --model: an input of it, as export has them, e.g. 'x=float32[1,3,H,W]' (repeatable).",
    ),
    click.option(
        "--inputs",
        "data",
        type=click.Path(),
        metavar="FILE",
        multiple=True,
        help="With --model: prove on your own inputs too, an .npz with each by its name, or an .npy of one "
        "(repeatable).",
    ),
    click.option(
        "--range",
        "ranges",
        metavar="H=LOW..HIGH",
        multiple=True,
        help="With --model: the sizes of a letter.  [default: 16..128]",
    ),
    click.option(
        "--kwargs", metavar="JSON|@FILE", help="With --model: arguments of the factory, as a JSON object."
    ),
    click.option(
        "--rtol",
        type=click.FloatRange(min=0),
        default=1e-3,
        show_default=True,
        help="With --model: equal means |folded-unfolded| <= atol + rtol·|unfolded|.",
    ),
    click.option("--atol", type=click.FloatRange(min=0), default=1e-5, show_default=True, help="See --rtol."),
)
#: The options above, as a command has them.
_OURS = ("model", "inputs", "data", "ranges", "kwargs", "rtol", "atol")
#: The options that say nothing without a model, by their names.
_OF_A_MODEL = {"inputs": "--input", "data": "--inputs", "ranges": "--range", "kwargs": "--kwargs"}


def told_by_model(src: tuple[str, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a fold, with a ``prove`` and a ``recipe`` in place of those of the model.

    The model tells the recipe only where nothing else does: neither --recipe nor what is said in its place.
    Raises ``ArgumentError`` for --input without --model, and the other way round; for several files.
    """
    from dataclasses import fields  # which `--help` need not wait for

    left = {name: value for name, value in options.items() if name not in _OURS}
    model = options["model"]
    if model is None:
        given = next((text for name, text in _OF_A_MODEL.items() if options[name]), None)
        if given is not None:
            raise ArgumentError(f"{given} is of a model", fix="give --model too")
        return left
    if len(src) != 1 or options["recursive"] or not Path(src[0]).exists():
        raise ArgumentError("--model is that of one checkpoint", fix="give one SRC that is on this disk")
    from wnconvert.verbs.shared.told import Said, asked_of

    said = Said(**{each.name: options[each.name] for each in fields(Said)})
    is_told = asked_of(said, options["recipe"]) is not None or options["recipe"] is not None
    check_torch()
    from wnconvert.storage.checkpoint import no_graph, open_checkpoint

    no_graph(open_checkpoint(src[0]), "the checkpoint of --model")
    from wnconvert.verbs.export.folds import prove_checkpoint
    from wnconvert.verbs.models.loading.prepared import prepared
    from wnconvert.verbs.models.proof.signatures import signature_of
    from wnconvert.verbs.recipes.recipe import recipe_of

    fed: dict[str, Any] = {name: options[name] for name in ("inputs", "ranges", "data")}
    if fed["inputs"]:
        signature_of(**fed)  # errors in it come before the model's code runs
    with stdout_to_stderr():  # the model's own prints
        made = prepared(
            model,
            weights=src[0],
            kwargs=options["kwargs"],
            only=options["only"],
            strip_prefix=options["strip_prefix"],
            **fed,
        )
        asked = {**fed, "inputs": made.inputs, "ranges": made.ranges}
        if not is_told or (left["recipe"] is not None and left["keep_norms"]):
            told = recipe_of(cast(Any, made.module), made_by=model, **asked)
            left["recipe"] = _as_told(left["recipe"], told) if is_told else told
    prove = prove_checkpoint(made.module, rtol=options["rtol"], atol=options["atol"], **asked)

    def proved(path: Any, plan: Any) -> Any:
        with stdout_to_stderr():
            return prove(path, plan)

    return {**left, "prove": proved}


def _as_told(path: str, told: Recipe) -> Recipe:
    """The recipe of a file whose norms are kept: its folds must be those that the model tells.

    Outputs hardly show an eps that is a little off, and a norm that is kept is not replaced in the model, so
    that nothing else would. Raises ``LayerError``.
    """
    from wnconvert.layers.recipes import norms_untold
    from wnconvert.verbs.shared.recipes import recipe_given

    given = recipe_given(path)
    assert given is not None  # noqa: S101 - it was given
    if untold := norms_untold(given, told):
        raise LayerError(
            f"of {listed([printable(fold.norm) for fold in untold], 6)} the model tells another fold or none",
            where=path,
            fix="without --recipe the model's own is taken",
        )
    return given
