"""Fold checkpoints, folders and ONNX models; ``wnconvert fold`` and ``fold_file`` are one call.

With ``dry_run`` it returns the very plan that it would run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from wnconvert.errors import ArgumentError
from wnconvert.layers.dims import AUTO
from wnconvert.layers.schemes import Selection
from wnconvert.layers.telling.asked import SaidStandardize
from wnconvert.messages import listed, option
from wnconvert.plan.fold import plan_fold
from wnconvert.storage.shards import DEFAULT_SHARD_SIZE
from wnconvert.tensors.dtypes import AnyDType
from wnconvert.verbs.conversion.jobs import Request
from wnconvert.verbs.conversion.run import plan_onnx_fold, run_conversion
from wnconvert.verbs.conversion.targets import StrPath
from wnconvert.verbs.shared.options import (
    IN_GRAPHS,
    TIMEOUT,
    DimOption,
    ProofOption,
    Proving,
    RunOptions,
    ZeroRows,
    dtype_of,
    numbers_of,
    renaming_of,
)
from wnconvert.verbs.shared.progress import Progress, bytes_progress
from wnconvert.verbs.shared.proofs import Prove
from wnconvert.verbs.shared.recipes import recipe_given
from wnconvert.verbs.shared.selections import kinds_of, selection_of
from wnconvert.verbs.shared.told import Said, asked_of, eps_alone

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from typing_extensions import Unpack

    from wnconvert.layers.recipes import Recipe
    from wnconvert.onnx.file.reader import OnnxFile
    from wnconvert.onnx.graph.plan import OnnxFold
    from wnconvert.plan.plan import Plan
    from wnconvert.tensors.containers import Container
    from wnconvert.tensors.tree import Tree
    from wnconvert.verbs.conversion.convert import Result
    from wnconvert.verbs.conversion.files.overloads import FoldOptions
    from wnconvert.verbs.conversion.folders.plan import MakePlan

__all__ = ["fold_file"]


@overload
def fold_file(
    src: StrPath, out: StrPath | None = ..., *, dry_run: Literal[False] = ..., **options: Unpack[FoldOptions]
) -> Result: ...


@overload
def fold_file(
    src: StrPath, out: StrPath | None = ..., *, dry_run: Literal[True], **options: Unpack[FoldOptions]
) -> Plan: ...


def fold_file(
    src: StrPath,
    out: StrPath | None = None,
    *,
    only: str | None = None,
    strip_prefix: Iterable[str] = (),
    add_prefix: str = "",
    rename: Iterable[str] | Mapping[str, str] = (),
    dtype: AnyDType | None = None,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    kinds: Iterable[str] = ("weight",),
    recipe: StrPath | Recipe | None = None,
    norm: Iterable[str] = (),
    standardize: Iterable[str] = (),
    eps: float | None = None,
    std: str | None = None,
    eps_at: str | None = None,
    gain: str | None = None,
    scale: float | str | None = None,
    keep_norms: bool = False,
    record: bool = True,
    dim: DimOption = AUTO,
    zero_rows: ZeroRows = "error",
    allow_nonfinite: bool = False,
    keep_optimizer: bool = False,
    drop_foreign: bool = False,
    requantize: bool = False,
    proof: ProofOption = "model",
    prove: Prove | None = None,
    timeout: float = TIMEOUT,
    copy: bool = False,
    require_layers: int | None = None,
    constants: bool = False,
    require_folded: bool = False,
    as_folder: bool = False,
    in_place: bool = False,
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
    verify: bool = False,
    force: bool = False,
    clean: bool = False,
    threads: int | None = None,
    dry_run: bool = False,
    progress: Progress = False,
    on_plan: Callable[[Plan], None] | None = None,
    executor: Executor | None = None,
) -> Result | Plan:
    """Fold the weight-normalized layers of a checkpoint, or of an ONNX model, into plain weights.

    ``src`` is a checkpoint of any readable format; ``out`` is written as safetensors or .npz if that is
    its suffix, else as a torch zip (default: ``.folded`` before the suffix of ``src``). ``"-"`` is stdin and
    stdout. An ONNX model stays one, and runs beside the original before it is put in place (this needs onnx
    and onnxruntime): with ``proof="layers"`` only the arithmetic of each layer does, with ``"none"`` nothing;
    what takes longer than ``timeout`` seconds in all is not run, and a note says so. It takes none of
    ``only``, ``dtype``, ``dim``, ``keep_optimizer`` and ``drop_foreign``. A file goes into ``out`` if that is
    a folder.

    A folder with weights, the index of one, or a pipeline of diffusers becomes a folder, unless ``out`` has a
    checkpoint's suffix; a file does with ``as_folder``. Its weights lie in files of at most
    ``max_shard_size`` (bytes, or ``"5GB"``, ``"2GiB"``); all other files go along. With ``force`` an old
    folder is replaced whole, if wnconvert wrote all that is in it. ``in_place`` writes over ``src``: the
    notes of the plan say what cannot be brought back. What killed runs left beside the output is named in
    notes; ``clean`` deletes it.

    If no layer changes, nothing is written, ``Result.output`` is None and a note says why; unless ``copy``,
    ``only``, ``dtype``, ``drop_foreign``, new names or another container ask for one. With fewer layers than
    ``require_layers`` nothing is written, and ``TooFewLayersError`` is raised; with ``require_folded``,
    ``UnfoldedError`` if an ONNX model would still compute a weight of stored tensors at every run.
    ``constants`` evaluates in float64 the weights of an ONNX model that no rule knows, and rounds once.

    ``only`` is the path of the one state dict to keep. ``drop_foreign`` leaves out what lies beside the
    state dicts and names classes or functions that ``torch.load(weights_only=True)`` does not know. Names are
    changed as the file is opened: the first of ``strip_prefix`` is taken off, then each ``rename`` made
    (``"OLD=NEW"`` or a mapping: whole dotted parts wherever they stand, ``*`` for one of them), then
    ``add_prefix`` put before; ``layers`` and ``exclude`` are globs on the new names of weights. ``dtype``
    (``"float16"`` or ``"fp16"``, ``torch.bfloat16``, ``numpy.float32`` …) folds and casts in one rounding.
    ``kinds`` are those of the layers to fold: ``"weight"`` norm, ``"spectral"`` norm, ``"prune"``,
    ``"spectral-step"`` (ports that take a step in eval), ``"all"`` for the first three, and of an ONNX model
    ``"unit"`` (rows of length 1), ``"norm"`` (batch norm) and ``"standardize"``; a layer under several needs
    all of them. ``recipe``, a ``Recipe`` or its file, tells what keys do not: which norms fold into which
    layers, and what classes make of their weights. Without one, ``norm`` says which norms fold: those
    of which names tell the layer (``"by-names"``), or pairs (``"NORM=LAYER"``), all with ``eps``. Alone,
    ``eps`` is that of weight norm of frameworks that have one (flax, Keras, Paddle), in place of their own.
    ``standardize`` are globs on weights that their classes standardize, by ``std`` (``"biased"`` or
    ``"unbiased"``), with ``eps`` added to the variance or to the deviation (``eps_at``, ``"var"`` or
    ``"std"``); ``gain`` is the name of their γ, ``scale`` a factor, or ``"X/fan"`` for X · fan_in ** -0.5.
    Of an ONNX model ``requantize`` stores a weight whose v is stored as codes (int8, say) as codes again, by
    the same scheme: the notes say how far it is from the folded weight, which is stored in full without it.
    A norm's keys go away and its layer has a bias; with ``keep_norms`` the keys stay those of the source's
    class, and the norms do nothing but add that bias.
    The output keeps a record of what was done, with which ``split`` undoes it; that of an ONNX model, in its
    metadata, tells the source and the proof. With ``record=False`` it has none.
    ``prove`` is called with the new checkpoint and the plan before it is put in place, as
    ``prove_checkpoint(module, inputs=…)`` gives it; then the result has a ``proof``.
    ``dim`` is an axis, None for the whole tensor, or ``"auto"``: read from shapes. ``zero_rows`` is
    ``"error"`` or ``"zero"``. ``progress`` is called with the bytes done and in all, or True for a bar;
    ``on_plan`` once with the ``Plan``, before anything is written. ``executor``, of ``concurrent.futures``,
    writes each file of a folder on a disk as a job of its own, with so many ``threads``. With ``dry_run``
    nothing is written and the ``Plan`` is returned.

    Raises ``WnconvertError``: ``InputError``, ``LayerError``, ``NumbersError``, ``OutputError``,
    ``ArgumentError``, ``TooFewLayersError``, ``UnfoldedError``, ``VerifyError``; nothing is written then.

    >>> plan = fold_file("fixtures/g_02500000", dry_run=True)
    >>> len(plan.layers), plan.layers[0].name
    (78, 'conv_pre.weight')
    """
    # The options by their names: whatever follows takes those that it needs.
    return _fold(src, out, cast("FoldOptions", locals()), dry_run=dry_run)


def _fold(src: StrPath, out: StrPath | None, given: FoldOptions, *, dry_run: bool) -> Result | Plan:
    """Fold, or plan it, with all of the options given."""
    selection = _selection(given)
    make_plan, plan_graph = _planners(selection, given)
    request = Request(
        src,
        out,
        "folded",
        renaming=renaming_of(given["strip_prefix"], given["add_prefix"], given["rename"]),
        only=given["only"],
        max_shard_size=given["max_shard_size"],
        as_folder=given["as_folder"],
        in_place=given["in_place"],
        drop_foreign=given["drop_foreign"],
        copy=given["copy"],
        rewrites=given["dtype"] is not None,
        require_layers=given["require_layers"],
        require_folded=given["require_folded"],
        clean=given["clean"],
        dry_run=dry_run,
        on_plan=given["on_plan"],
    )
    options = RunOptions(
        given["force"],
        given["threads"],
        given["verify"],
        numbers_of(given["zero_rows"], allow_nonfinite=given["allow_nonfinite"]),
        Proving(given["proof"], given["timeout"]),
        bytes_progress(given["progress"]),
        prove=given["prove"],
        executor=given["executor"],
        record=given["record"],
    )
    return run_conversion(request, make_plan, plan_graph=plan_graph, options=options)


def _selection(given: FoldOptions) -> Selection:
    """The layers that are wanted, and what tells of those that keys do not show."""
    said = Said(
        norm=given["norm"],
        standardize=given["standardize"],
        eps=given["eps"],
        std=given["std"],
        eps_at=given["eps_at"],
        gain=given["gain"],
        scale=given["scale"],
    )
    return selection_of(
        given["layers"],
        given["exclude"],
        given["dim"],
        given["kinds"],
        recipe_given(given["recipe"]),
        asked=asked_of(said, given["recipe"]),
        eps=eps_alone(said, given["recipe"]),
        shown=IN_GRAPHS,
    )


def _plan_by_keys(
    tree: Tree,
    container: Container,
    *,
    selection: Selection,
    of_graphs: Mapping[str, bool],
    is_proven: bool,
    record: bool,
    **options: Any,
) -> Plan:
    """The plan of a checkpoint. Raises ``ArgumentError`` for kinds and options that only graphs have."""
    if given := [name for name, value in of_graphs.items() if value]:
        raise ArgumentError(
            f"only ONNX models, which compute weights, take {listed(given)}, and this is a checkpoint",
            fix=f"leave it out; {option('require_layers')} tells whether layers were folded",
        )
    kinds_of(selection.kinds)
    plan = plan_fold(tree, container, selection=selection, **options)
    plan = plan if record else replace(plan, record=())
    return plan if is_proven else plan.doubted()


def _planners(selection: Selection, given: FoldOptions) -> tuple[MakePlan, Callable[[OnnxFile], OnnxFold]]:
    """What plans the fold of a checkpoint, and that of an ONNX model, which takes fewer options."""
    others: dict[str, object] = {
        "--only": given["only"],
        "--dtype": given["dtype"],
        "--keep-optimizer": given["keep_optimizer"] or None,
        "--drop-foreign": given["drop_foreign"] or None,
        "--dim": None if selection.dim == AUTO else str(selection.dim),
        "--recipe": selection.recipe,
        "--standardize" if isinstance(selection.asked, SaidStandardize) else "--norm": selection.asked,
        "--model": given["prove"],
    }
    make_plan = partial(
        _plan_by_keys,
        selection=selection,
        of_graphs={option(name, True): given[name] for name in ("constants", "require_folded", "requantize")},
        is_proven=given["prove"] is not None,
        record=given["record"],
        only=given["only"],
        dtype=dtype_of(given["dtype"]),
        keep_norms=given["keep_norms"],
        keep_optimizer=given["keep_optimizer"],
    )
    return make_plan, partial(
        plan_onnx_fold,
        selection=selection,
        others=others,
        constants=given["constants"],
        requantize=given["requantize"],
    )
