"""What a conversion is asked for, and the jobs that do it: into a file, a folder, or an ONNX model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from wnconvert.frozen import dataclass
from wnconvert.plan.names.renaming import Renaming
from wnconvert.plan.plan import Plan
from wnconvert.plan.selection.nothing import why_nothing
from wnconvert.storage.checkpoint import Checkpoint
from wnconvert.storage.files import Seen, seen_in
from wnconvert.storage.shards import DEFAULT_SHARD_SIZE, bytes_of
from wnconvert.storage.staging import check_target
from wnconvert.verbs.conversion.targets import StrPath, Target, check_apart, check_not_read
from wnconvert.verbs.shared.options import RunOptions, check_count

if TYPE_CHECKING:
    from wnconvert.onnx.graph.plan import OnnxFold
    from wnconvert.verbs.conversion.convert import Result
    from wnconvert.verbs.conversion.folders.plan import MakePlan
    from wnconvert.verbs.conversion.onnx.ready import Ready

__all__ = ["Check", "Job", "Request", "file_job", "folder_job", "onnx_job"]


@dataclass(frozen=True, slots=True)
class Request:
    """What is converted, into what, and what must hold for it.

    ``kind`` is put into the default name of the output. ``reference`` is ``like``, opened: a rule of
    ``renaming`` may meet its names alone. ``relayout`` gives the checkpoint as another framework has it, and
    what plans the output then. ``rewrites`` says that an option asks for an output
    even where no layer changes. Other fields as the options of ``fold_file``.
    """

    src: StrPath
    out: StrPath | None
    kind: str
    like: StrPath | None = None
    reference: Checkpoint | None = None
    renaming: Renaming = Renaming()
    relayout: Callable[[Checkpoint, Target], tuple[Checkpoint, MakePlan]] | None = None
    only: str | None = None
    max_shard_size: str | int = DEFAULT_SHARD_SIZE
    as_folder: bool = False
    in_place: bool = False
    copy: bool = False
    rewrites: bool = False
    drop_foreign: bool = False
    require_layers: int | None = None
    require_folded: bool = False
    clean: bool = False
    dry_run: bool = False
    on_plan: Callable[[Plan], None] | None = None

    def __post_init__(self) -> None:
        """Check the size of a shard and the number of layers."""
        bytes_of(self.max_shard_size)
        check_count(self.require_layers, "layers are always there", "--require-layers 1 or more")


class Check(Protocol):
    """Raises ``OutputError`` where the target may not be written, or exists, and ``force`` is not given."""

    def __call__(self, *, force: bool) -> None:
        """Check it."""


@dataclass(frozen=True, slots=True)
class Job:
    """A plan, why it changes nothing (where that is so), a check of the target, and what runs the plan.

    ``seen`` is what the files were that it reads.
    """

    plan: Plan
    why_nothing: Callable[[Plan], str]
    check: Check
    run: Callable[[Plan, RunOptions], Result]
    seen: Seen


def onnx_job(checkpoint: Checkpoint, fold: OnnxFold, output: Path, request: Request, ready: Ready) -> Job:
    """The fold of an ONNX model; ``ready`` is what checks it."""

    def run(plan: Plan, options: RunOptions) -> Result:
        from wnconvert.verbs.conversion.onnx.fold import convert_onnx

        return convert_onnx(checkpoint, replace(fold, plan=plan), output, options, ready)

    check = _file_check(checkpoint, output, request)
    return Job(fold.plan, lambda _: fold.why_nothing, check, run, checkpoint.seen)


def folder_job(
    checkpoint: Checkpoint, make_plan: MakePlan, output: Path, request: Request, renamed: Collection[str]
) -> Job:
    """A folder; ``renamed`` are the paths of the state dicts whose tensors have new names."""
    from wnconvert.verbs.conversion.folders.plan import plan_folder
    from wnconvert.verbs.conversion.folders.replace import check_in_place, check_replaced
    from wnconvert.verbs.conversion.folders.unfound import noting_unfound

    noting = noting_unfound(make_plan, checkpoint)
    planned = plan_folder(checkpoint, noting, request.max_shard_size, renamed)

    def check(*, force: bool) -> None:
        if request.in_place:
            check_in_place(output, planned.beside, request.like)
        else:
            check_replaced(checkpoint, output, force=force, like=request.like)

    def run(plan: Plan, options: RunOptions) -> Result:
        from wnconvert.verbs.conversion.folders.convert import convert_folder

        whole = replace(planned, plan=plan, is_ours=not request.in_place)
        return convert_folder(checkpoint, whole, output, options)

    seen = seen_in((planned.beside.seen(checkpoint.root or output), checkpoint.seen))
    return Job(planned.plan, partial(why_nothing, tree=checkpoint.tree), check, run, seen)


def file_job(checkpoint: Checkpoint, plan: Plan, output: Path, request: Request) -> Job:
    """A file of any other kind."""

    def run(plan: Plan, options: RunOptions) -> Result:
        from wnconvert.verbs.conversion.convert import convert

        return convert(checkpoint, plan, output, options)

    check = _file_check(checkpoint, output, request)
    return Job(plan, partial(why_nothing, tree=checkpoint.tree), check, run, checkpoint.seen)


def _file_check(checkpoint: Checkpoint, output: Path, request: Request) -> Check:
    """A check that a file is not written over what is read, nor where it may not be.

    A dry run tells of an existing file in a note; that it may be there by then is found when it is put there.
    """

    def check(*, force: bool) -> None:
        if checkpoint.root is not None:
            check_apart(checkpoint, output)
        if not request.in_place:
            check_not_read(checkpoint, output, request.like)
        if not request.dry_run:
            check_target(output, force=force)

    return check
