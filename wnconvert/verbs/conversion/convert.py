"""A plan run on an opened checkpoint: laid out, executed into staged files, checked, put in place."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from wnconvert.frozen import dataclass
from wnconvert.messages import counted, short_repr
from wnconvert.plan.plan import Plan, PlannedLayer
from wnconvert.shown import Shown
from wnconvert.storage.checkpoint import Checkpoint
from wnconvert.storage.files import check_as_seen, common_mode
from wnconvert.storage.layouts import layout_of
from wnconvert.storage.sources import Source
from wnconvert.storage.staging import staged
from wnconvert.storage.workers import Workers
from wnconvert.verbs.conversion.executor import execute
from wnconvert.verbs.conversion.verify.structure import check_structure
from wnconvert.verbs.shared.options import RunOptions
from wnconvert.verbs.shared.proofs import ModelProof

__all__ = ["Result", "conversion_result", "convert", "nothing_written"]


@dataclass(frozen=True, slots=True, repr=False)
class Result(Shown):
    """The result of a conversion. ``seconds`` is wall time; ``verified`` names the reader that checked it.

    ``proof`` is that of the output with its model, where that was asked for.
    ``output`` is None where nothing was written: the source has nothing to convert, and no option asked for
    a copy. The last of the ``notes`` says why.
    """

    plan: Plan
    source: PurePath
    source_container: str
    output: PurePath | None
    bytes_in: int
    bytes_out: int
    seconds: float
    notes: tuple[str, ...]
    verified: str = ""
    proof: ModelProof | None = None

    @property
    def layers(self) -> list[PlannedLayer]:
        """Every layer that was changed."""
        return self.plan.layers

    def __repr__(self) -> str:
        done = {"fold": "folded", "migrate": "migrated"}.get(self.plan.verb, self.plan.verb)
        heading = f"Result: {counted(len(self.layers), 'layer')} {done}, {self.source} -> "
        if self.output is None:
            return short_repr(f"{heading}nothing", [], *self.notes[-1:])
        return short_repr(
            f"{heading}{self.output}",
            [layer.name for layer in self.layers],
            f"{self.bytes_in:,} bytes in, {self.bytes_out:,} out, in {self.seconds:.2f} s",
            f"checked by {self.verified}" if self.verified else "",
            f"proven equal to {self.proof.reference}" if self.proof else "",
            counted(len(self.notes), "note") if self.notes else "",
        )

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-able data; docs/json.md documents it."""
        plan = self.plan.to_dict()
        if self.proof is not None:
            plan["layers"] = [{**row, "unproven": False} for row in plan["layers"]]
        return {
            **plan,
            "source": os.fspath(self.source),
            "source_container": self.source_container,
            "output": None if self.output is None else os.fspath(self.output),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "seconds": round(self.seconds, 3),
            "verified": self.verified or None,
            "proof": None if self.proof is None else asdict(self.proof),
            "notes": list(self.notes),
        }


def conversion_result(
    checkpoint: Checkpoint,
    plan: Plan,
    output: PurePath | None,
    began: float,
    *,
    bytes_in: int | None = None,
    bytes_out: int,
    notes: Iterable[str],
    verified: str = "",
    proof: ModelProof | None = None,
) -> Result:
    """The result of a conversion that started at ``began``; ``notes`` are those of the run.

    ``bytes_in`` is the size of the checkpoint unless more was read.
    """
    return Result(
        plan=plan,
        source=checkpoint.path,
        source_container=str(checkpoint.container),
        output=output,
        bytes_in=checkpoint.size if bytes_in is None else bytes_in,
        bytes_out=bytes_out,
        seconds=time.perf_counter() - began,
        notes=(*plan.notes, *notes),
        verified=verified,
        proof=proof,
    )


def convert(
    checkpoint: Checkpoint,
    plan: Plan,
    output: Path,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
) -> Result:
    """Run ``plan`` on an opened checkpoint and put the result at ``output``, whole or not at all.

    Raises ``NumbersError`` for rows that ``options.numbers`` does not allow, ``OutputError`` where the output
    cannot be written, ``VerifyError`` where it was read back and is wrong.
    """
    began = time.perf_counter()
    layout = layout_of(checkpoint, plan)
    mode, check = common_mode(checkpoint.shards), partial(check_as_seen, checkpoint.seen)
    with (
        staged(output, force=options.force, size=layout.size, mode=mode, check=check) as target,
        Source(checkpoint.sources, opener=checkpoint.reopen) as source,
    ):
        target.passing = options.passing
        workers = Workers(options.threads, options.progress)
        if options.verify:
            from wnconvert.verbs.conversion.verify.output import bytes_to_verify

            workers.expect(sum(blob.effort for blob in layout.blobs) + bytes_to_verify(checkpoint, plan))
        notes, size = execute(source, target, layout, options.numbers, workers), layout.size
        del layout  # of many tensors it takes as much as the tree of the output, which is read now
        check_structure(target.path, plan.container)
        verified = ""
        more: tuple[str, ...] = ()
        if options.verify:
            from wnconvert.verbs.conversion.verify.output import verify_output

            verified, more = verify_output(checkpoint, plan, source, target.path, workers)
        proof = options.prove(target.path, plan) if options.prove else None
    return conversion_result(
        checkpoint,
        plan,
        output,
        began,
        bytes_out=size,
        notes=(*notes, *more),
        verified=verified,
        proof=proof,
    )


def nothing_written(checkpoint: Checkpoint, plan: Plan) -> Result:
    """The result where a plan changes nothing, and nothing is written."""
    return conversion_result(checkpoint, plan, None, time.perf_counter(), bytes_in=0, bytes_out=0, notes=())
