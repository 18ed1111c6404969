"""One conversion of a file or a folder: open it, plan, write; errors say which file it was."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from wnconvert.errors import (
    ArgumentError,
    InputError,
    LayerError,
    OutputError,
    TooFewLayersError,
    UnfoldedError,
    WnconvertError,
)
from wnconvert.layers.schemes import Selection
from wnconvert.messages import counted, listed, refuse_other_than_path
from wnconvert.plan.names.renaming import Renaming
from wnconvert.plan.names.trees import NewNames, renamed_keys, weights_of
from wnconvert.plan.plan import ComputedWeight, Plan
from wnconvert.plan.selection.foreign import without_foreign
from wnconvert.plan.selection.scope import choose
from wnconvert.storage.checkpoint import Checkpoint, no_graph, open_checkpoint
from wnconvert.storage.files import blaming_changes, located, seen_in
from wnconvert.storage.layouts import fitted
from wnconvert.storage.shards import DEFAULT_SHARD_SIZE
from wnconvert.storage.stores.store import Address
from wnconvert.tensors.containers import Container, container_of
from wnconvert.tensors.tree import Tree
from wnconvert.verbs.conversion.jobs import Job, Request, file_job, folder_job, onnx_job
from wnconvert.verbs.conversion.places.piped import check_piped, goes_to_stdout, to_stdout
from wnconvert.verbs.conversion.targets import (
    StrPath,
    Target,
    check_is_checkpoint,
    check_name,
    check_suffix,
    clean_beside,
    target_of,
)
from wnconvert.verbs.shared.leftovers import named_leftovers
from wnconvert.verbs.shared.options import Proving, RunOptions
from wnconvert.verbs.shared.recipes import refuse_recipe

if TYPE_CHECKING:
    from wnconvert.onnx.file.reader import OnnxFile
    from wnconvert.onnx.graph.plan import OnnxFold
    from wnconvert.verbs.conversion.convert import Result
    from wnconvert.verbs.conversion.folders.plan import MakePlan
    from wnconvert.verbs.conversion.onnx.ready import Ready

__all__ = ["open_reference", "plan_onnx_fold", "run_conversion"]


#: Containers that are only read, each with what no other has.
_ONLY_READ = {
    Container.TORCHSCRIPT: "its code",
    Container.EXPORTED: "its graph",
    Container.FLAX: "MessagePack",
    Container.PADDLE: "the pickle of Paddle",
    Container.DISTRIBUTED: "the layout of torch.distributed.checkpoint",
}


def run_conversion(
    request: Request,
    make_plan: MakePlan,
    *,
    plan_graph: Callable[[OnnxFile], OnnxFold] | None = None,
    options: RunOptions,
) -> Result | Plan:
    """Open the source, rename, plan what goes into the target, and write it; errors say which file it was."""
    if request.out is not None:
        refuse_other_than_path(request.out, "an output")
    beside = clean_beside if request.clean and not request.dry_run else named_leftovers
    if goes_to_stdout(request.src, request.out):
        check_piped(in_place=request.in_place, as_folder=request.as_folder)
        passing = replace(options, passing=True)
        return to_stdout(
            request.src,
            lambda path: run_conversion(
                replace(request, out=path, copy=True), make_plan, plan_graph=plan_graph, options=passing
            ),
            beside,
            dry_run=request.dry_run,
        )
    source, in_place = located(request.src), request.in_place
    target = target_of(source, request.out, request.kind, as_folder=request.as_folder, in_place=in_place)
    if request.in_place:
        options = replace(options, force=True)
    if isinstance(target.path, Address):
        from wnconvert.verbs.conversion.places.stored import check_stored

        check_stored(options)
    with _errors_name(source, target.path), contextlib.ExitStack() as stack:
        graphs = plan_graph and _GraphFolds(plan_graph, options.proving, stack, dry_run=request.dry_run)
        opened = partial(_job, source, target, request, make_plan, graphs, force=options.force)
        job = opened()
        if job.plan.writes:
            job.check(force=options.force or request.dry_run)
        if left := _left_beside(
            target.path, request, beside
        ):  # in place, names of the source's own data may have gone with it
            job = opened()
        job = replace(job, plan=replace(job.plan, notes=(*left, *job.plan.notes)))
        if request.dry_run:
            return job.plan
        if request.on_plan is not None:
            request.on_plan(job.plan)
        with blaming_changes(job.seen):
            return job.run(job.plan, options)


class _GraphFolds:
    """Plans the folds of an ONNX model; what checks them is started before, and ends with a stack."""

    def __init__(
        self,
        plan: Callable[[OnnxFile], OnnxFold],
        proving: Proving,
        stack: contextlib.ExitStack,
        *,
        dry_run: bool,
    ) -> None:
        self.plan = plan
        self.proving = proving
        self.stack = stack
        self.dry_run = dry_run
        self.ready: Ready | None = None

    def fold(self, model: OnnxFile) -> tuple[OnnxFold, Ready]:
        """The plan, and what checks it, where it is more than planned."""
        from wnconvert.verbs.conversion.onnx.ready import Ready, made_ready

        if self.ready is None:
            started = Ready() if self.dry_run else self.stack.enter_context(made_ready(model, self.proving))
            self.ready = started
        return self.plan(model), self.ready


def _left_beside(
    target: PurePath, request: Request, beside: Callable[[Path], tuple[str, ...]]
) -> tuple[str, ...]:
    """What killed runs left of an output, and what becomes of it."""
    if isinstance(target, Address):
        from wnconvert.verbs.conversion.places.stored import aborted_uploads, named_uploads

        return (named_uploads if request.dry_run else aborted_uploads)(target)
    return beside(Path(target))


@contextlib.contextmanager
def _errors_name(source: PurePath, output: PurePath) -> Iterator[None]:
    """Errors that are raised inside say which file it was."""
    try:
        yield
    except OutputError as error:
        error.where = error.where or str(output)
        raise
    except WnconvertError as error:
        if error.where != str(source) and not error.where.startswith(f"{source}{os.sep}"):
            error.where = f"{source}: {error.where}" if error.where else str(source)
        raise


def _new_names(
    checkpoint: Checkpoint, renaming: Renaming, only: str | None, reference: Checkpoint | None
) -> Mapping[str, NewNames]:
    """The new names of the state dicts that are converted, by path."""
    if not renaming:
        return {}
    if checkpoint.onnx is not None:
        raise ArgumentError(
            "names are changed in checkpoints, and this is an ONNX model",
            fix="leave --strip-prefix, --add-prefix and --rename out",
        )
    states = () if reference is None else reference.tree.state_dicts
    beside = [name for state in states for name in weights_of(state).values()]
    return renamed_keys(checkpoint.tree, choose(checkpoint.tree, only), renaming, beside)


def _named(
    make_plan: Callable[[Tree, Container], Plan],
    names: Mapping[str, NewNames],
    tree: Tree,
    container: Container,
) -> Plan:
    """A plan that counts the names that are new in it. Raises ``LayerError`` for a module's own names."""
    plan = make_plan(tree, container)
    changed = {
        planned.path: names[planned.path].changed for planned in plan.state_dicts if planned.path in names
    }
    for path, count in changed.items():
        if count and tree.state_dict(path).is_module and container.facts.holds_trees:
            raise LayerError(
                "a whole pickled module, whose names are in its code too, cannot be renamed in the file",
                where=path,
                fix="-o OUT.safetensors for its tensors alone",
            )
    return replace(plan, renamed=sum(changed.values()))


def _job(
    source: PurePath,
    target: Target,
    request: Request,
    make_plan: MakePlan,
    graphs: _GraphFolds | None,
    *,
    force: bool,
) -> Job:
    """Open the source, and plan what goes into the target."""
    opened = open_checkpoint(source)
    if request.reference is not None:  # the plan is made of it too
        opened = replace(opened, seen=seen_in((request.reference.seen, opened.seen)))
    _check_not_frozen(opened)
    names = _new_names(opened, request.renaming, request.only, request.reference)
    checkpoint = opened.renamed(names) if names else opened
    _check_fits(checkpoint, target, request)
    make_plan = partial(_named, make_plan, names)
    if request.relayout is not None:
        checkpoint, make_plan = request.relayout(checkpoint, target)
    if request.drop_foreign:
        make_plan = partial(without_foreign, make_plan)
    if isinstance(target.path, Address):
        if checkpoint.onnx is not None and graphs is not None:
            from wnconvert.verbs.conversion.places.stored import refuse_graph

            refuse_graph()
        job = _stored_job(checkpoint, make_plan, target, request, names)
    elif checkpoint.onnx is not None and graphs is not None:
        check_suffix(target.path)
        fold, ready = graphs.fold(checkpoint.onnx)
        job = onnx_job(checkpoint, fold, Path(target.path), request, ready)
    elif target.is_folder:
        changed = [path for path in names if names[path].changed]
        job = folder_job(checkpoint, make_plan, Path(target.path), request, changed)
    else:
        check_is_checkpoint(checkpoint, target.path, request.kind)
        plan = fitted(make_plan(checkpoint.tree, container_of(target.path)))
        job = file_job(checkpoint, plan, Path(target.path), request)
    job = _settled(job, checkpoint, target, request, force=force)
    if job.plan.writes:
        return job

    def run(plan: Plan, _options: RunOptions) -> Result:
        from wnconvert.verbs.conversion.convert import nothing_written

        return nothing_written(checkpoint, plan)

    return replace(job, run=run)


def _stored_job(
    checkpoint: Checkpoint,
    make_plan: MakePlan,
    target: Target,
    request: Request,
    names: Mapping[str, NewNames],
) -> Job:
    """What becomes an object of a store, or a folder of them."""
    from wnconvert.verbs.conversion.places.stored import stored_file_job, stored_folder_job

    output = target.path
    assert isinstance(output, Address)  # noqa: S101 - it is asked for such alone
    if target.is_folder:
        changed = [path for path in names if names[path].changed]
        return stored_folder_job(checkpoint, make_plan, output, request, changed)
    check_is_checkpoint(checkpoint, output, request.kind)
    return stored_file_job(
        checkpoint, fitted(make_plan(checkpoint.tree, container_of(output))), output, request
    )


def _settled(job: Job, checkpoint: Checkpoint, target: Target, request: Request, *, force: bool) -> Job:
    """The job, whose plan notes why nothing changes, and what is lost or replaced.

    Raises ``TooFewLayersError`` where more layers are required, ``UnfoldedError`` where no weight may be
    computed at every run.
    """
    plan, notes = job.plan, [*job.plan.notes, *job.plan.hints]
    count, look = len(plan.changes) + len(plan.constants), f"wnconvert inspect {request.src}"
    why = "" if count or request.relayout else job.why_nothing(plan)
    if request.require_layers is not None and count < request.require_layers:
        because = f": {why}" if why else ""
        raise TooFewLayersError(
            f"{counted(count, 'layer')} to {plan.verb}, and {request.require_layers} asked for{because}",
            fix=f"{look} shows what is in it",
        )
    if request.require_folded and plan.computed:
        heading, *reasons = ComputedWeight.told(plan.computed)
        raise UnfoldedError(heading, fix="; ".join(reasons))
    writes = bool(count) or _is_asked_for(plan, checkpoint, target, request)
    if why:
        ending = "" if writes else "; nothing is written (--copy writes a copy)"
        notes.append(f"nothing to {plan.verb}: {why}: {look}{ending}")
    if writes and request.in_place:
        alone = _ONLY_READ.get(checkpoint.container)
        if lost := [*plan.lost, *([alone] if alone else [])]:
            notes.append(f"in place of the source: {listed(lost, 10)} cannot be brought back")
    elif writes and force and target.is_folder and isinstance(target.path, Path):
        from wnconvert.verbs.conversion.folders.replace import what_goes

        if gone := what_goes(target.path):
            notes.append(f"{target.path} is replaced: {gone}")
    return replace(job, plan=replace(plan, notes=tuple(notes), writes=writes))


def _is_asked_for(plan: Plan, checkpoint: Checkpoint, target: Target, request: Request) -> bool:
    """Whether an output is asked for though no layer changes: a copy, a cast, names, another container."""
    return (
        request.copy
        or request.only is not None
        or request.rewrites
        or request.drop_foreign
        or request.max_shard_size != DEFAULT_SHARD_SIZE
        or plan.renamed > 0
        or target.is_folder != (checkpoint.root is not None)
        or plan.container.facts.family != checkpoint.container.facts.family
        or checkpoint.container in _ONLY_READ
    )


def _check_fits(checkpoint: Checkpoint, target: Target, request: Request) -> None:
    """Raise ``ArgumentError`` for options that do not fit the source, or the target."""
    if target.is_named:
        check_name(checkpoint, target)
    states = checkpoint.tree.state_dicts
    if states and not any(state.tensors for state in states) and not target.is_folder:
        made = container_of(target.path).facts  # an empty file of another kind does not tell what it is
        if made.family != checkpoint.container.facts.family:
            raise ArgumentError(
                f"there is no tensor in it that {made.noun} could hold",
                fix=f"wnconvert inspect {request.src}",
            )
    if target.is_folder and checkpoint.onnx:
        raise ArgumentError(f"an ONNX model is a file, and {target.path} a folder", fix="-o OUT.onnx")
    if request.max_shard_size != DEFAULT_SHARD_SIZE and not target.is_folder:
        raise ArgumentError(
            f"--max-shard-size cuts the weights of a folder, and {target.path} will be a file",
            fix="--as-folder",
        )


#: The options that tell what the keys of a checkpoint do not.
_TELLING = ("recipe", "norm", "standardize")


def plan_onnx_fold(
    opened: OnnxFile,
    *,
    selection: Selection,
    others: Mapping[str, object],
    constants: bool,
    requantize: bool = False,
) -> OnnxFold:
    """The fold of an ONNX model; ``ArgumentError`` for one of ``others``, which only checkpoints have.

    With ``constants`` weights that no rule knows are evaluated, with ``requantize`` those whose original is
    stored as codes become codes.
    """
    from wnconvert.verbs.conversion.onnx.fold import plan_graph_fold

    if told := next((name for name in _TELLING if others.get(f"--{name}") is not None), ""):
        refuse_recipe(told)
    if given := [name for name, value in others.items() if value is not None]:
        raise ArgumentError(
            f"only checkpoints take {listed(given)}, and this is an ONNX model",
            fix="leave it out; --layers and --exclude choose layers",
        )
    return plan_graph_fold(opened, selection, constants=constants, requantize=requantize)


def _check_not_frozen(checkpoint: Checkpoint) -> None:
    """Raise ``InputError`` for a TorchScript archive without weights that could be told from its code."""
    if checkpoint.torch is not None and checkpoint.torch.is_frozen:
        from wnconvert.formats.torch.reader import FROZEN

        raise InputError(
            FROZEN,
            fix="use the archive from before torch.jit.freeze, or a checkpoint of the module",
        )


def open_reference(like: StrPath) -> Checkpoint:
    """The checkpoint that ``--like`` names."""
    refuse_other_than_path(like, "the reference")
    return no_graph(open_checkpoint(like), "the reference of a split")
