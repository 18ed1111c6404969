"""The command line: parse, call, render, exit code. Heavy imports wait inside the commands."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from wnconvert import __version__
from wnconvert.errors import ArgumentError, OutputError, WnconvertError
from wnconvert.words import printable

__all__ = ["cli", "main"]

#: What ``inspect --sort`` and ``--format`` take; tests hold these to what the modules know.
SORTS = ("name", "form", "rows", "g-min", "g-mean", "g-max", "norm", "ratio")
FORMATS = ("table", "json", "csv", "markdown")
#: What ``split`` and ``migrate`` take as ``--to``.
FORMS = ("parametrize", "legacy")
#: What ``export`` takes as ``--exporter``.
EXPORTERS = ("dynamo", "torchscript")

# The control character \b keeps click from filling the paragraph.
EXIT_CODES = """\b
Exit codes: 0 done (nothing to do is done too), 1 checked and different,
2 could not, 3 a bug, 130 interrupted."""


def _dim(_: click.Context, __: click.Parameter, value: str) -> int | str | None:
    """The argument that ``--dim`` means."""
    if value == "none":
        return None
    try:
        return value if value == "auto" else int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no axis: use a number, none or auto") from None


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=EXIT_CODES
)
@click.version_option(__version__, prog_name="wnconvert")
def cli() -> None:
    """Fold, split, migrate, inspect and compare weight-normalized PyTorch checkpoints (w = g·v/‖v‖).

    Files are data: nothing in a checkpoint is imported or run, and nothing in it is lost.
    """


_Command = TypeVar("_Command", bound=Callable[..., Any])


def _with(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    """Several options as one decorator; the help shows them in this order."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _epilog(example: str) -> str:
    return f"\b\nExample:\n  {example}\n\n{EXIT_CODES}"


_THREADS = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads.  [default: the processors, at most 4]"
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
_NO_PROGRESS = click.option("--no-progress", is_flag=True, help="Show no progress on a terminal.")
_DROPS_OPTIMIZER = click.option(
    "--keep-optimizer", is_flag=True, help="Keep optimizer state although its positions no longer fit."
)


def _target(default: str) -> Callable[[_Command], _Command]:
    """What a conversion reads and where it writes; ``default`` is what goes before the suffix."""
    return _with(
        click.argument("src", type=click.Path()),
        click.option(
            "-o",
            "--out",
            type=click.Path(),
            metavar="OUT",
            help="File to write: safetensors if so called, else as torch.save writes; or a folder, if SRC is "
            f"one or OUT ends in a slash.  [default: SRC, {default} before its suffix]",
        ),
        click.option(
            "--only", metavar="PATH", help="Keep this state dict alone, e.g. generator (. is the root)."
        ),
    )


def _globs(does: str) -> Callable[[_Command], _Command]:
    return _with(
        click.option(
            "--layers",
            metavar="GLOB",
            multiple=True,
            help=f"{does} only layers of such names, e.g. 'dec.*' (repeatable).",
        ),
        click.option(
            "--exclude",
            metavar="GLOB",
            multiple=True,
            help="Leave layers of such names as they are (repeatable).",
        ),
    )


_WRITING = _with(
    click.option(
        "--verify",
        is_flag=True,
        help="Read the output back with an independent reader and recompute every layer.",
    ),
    click.option(
        "--max-shard-size",
        metavar="SIZE",
        default="5GB",
        show_default=True,
        help="Weights of a folder go into files of at most this: 500MB, 2GiB; a tensor is never cut.",
    ),
    click.option("--force", is_flag=True, help="Replace OUT if it exists; a folder whole."),
    _THREADS,
    click.option("--dry-run", is_flag=True, help="Print the plan and write nothing."),
    _JSON,
    click.option("--quiet", is_flag=True, help="Print nothing but errors."),
    _NO_PROGRESS,
)


@cli.command(epilog=_epilog("wnconvert fold g_02500000 --only generator -o generator.safetensors"))
@_target(".folded")
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    help="Fold and cast in one rounding; other float tensors of the state dict are cast too.",
)
@_globs("Fold")
@click.option(
    "--dim",
    callback=_dim,
    metavar="N|none|auto",
    default="auto",
    show_default=True,
    help="The axis that is not summed over; auto reads it from the shape of g.",
)
@click.option(
    "--zero-rows",
    type=click.Choice(["error", "zero"]),
    default="error",
    show_default=True,
    help="A zero row of v has no direction: refuse it, or write zeros.",
)
@click.option("--allow-nonfinite", is_flag=True, help="Write NaN, infinities and overflow as they come.")
@_DROPS_OPTIMIZER
@_WRITING
def fold(src: str, out: str | None, **options: Any) -> None:
    """Fold g and v into plain weights.

    SRC is a checkpoint of any kind: safetensors, what torch.save wrote at any time, a whole pickled module,
    a TorchScript archive. Every state dict in it is folded, in both forms of weight norm. Or it is an ONNX
    model: what its graph computes of g and v becomes stored weights, and the rest stays byte for byte; it is
    run beside the original before it is put in place.
    """
    from wnconvert.files import fold_file

    _convert(fold_file, "folded", src, out, **options)


@cli.command(epilog=_epilog("wnconvert split generator.safetensors --like g_02500000"))
@_target(".split")
@click.option(
    "--like", type=click.Path(), metavar="REF", help="Take layers, dims and form of this checkpoint."
)
@click.option(
    "--to",
    type=click.Choice(FORMS),
    help="The form to write.  [default: as recorded or as in REF, else parametrize]",
)
@_globs("Split")
@click.option(
    "--dim",
    callback=_dim,
    metavar="N|none",
    default="auto",
    help="With --layers: the axis that is not summed over (0 is torch's default); none, or torch's -1: the "
    "whole tensor.",
)
@_DROPS_OPTIMIZER
@_WRITING
def split(src: str, out: str | None, **options: Any) -> None:
    """Split plain weights into g and v.

    To train them further; folded, they are the same bits again. g is the norm of each row, correctly
    rounded, and v the weight itself. A file that wnconvert fold wrote gets its layers back as they were; for
    any other say which they are: --like REF, or --layers with --dim.
    """
    from wnconvert.files import split_file

    _convert(split_file, "split", src, out, **options)


@cli.command(epilog=_epilog("wnconvert migrate g_02500000 --to parametrize"))
@_target(".parametrize or .legacy")
@click.option(
    "--to",
    type=click.Choice(FORMS),
    default="parametrize",
    show_default=True,
    help="parametrize: the names of torch 2.1 and later; legacy: weight_g and weight_v.",
)
@_globs("Migrate")
@click.option(
    "--drop-optimizer", is_flag=True, help="Leave optimizer state out (where its positions would not fit)."
)
@_WRITING
def migrate(src: str, out: str | None, *, to: str, **options: Any) -> None:
    """Rename old weight norm's layers as torch 2.1's, or back.

    Names and order of keys change as torch has them, bytes do not; optimizer state in the file stays valid.
    """
    from wnconvert.files import migrate_file

    _convert(migrate_file, to, src, out, to=to, **options)


def _convert(
    verb: Callable[..., Any],
    kind: str,
    src: str,
    out: str | None,
    *,
    as_json: bool,
    quiet: bool,
    no_progress: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Run a verb on a file, or plan it, and say what came of it."""
    from wnconvert.files import default_output
    from wnconvert.report import plan_text, result_text

    output = str(default_output(src, kind)) if out is None else out
    if dry_run:
        plan = verb(src, output, dry_run=True, **options)
        there = (
            () if options["force"] or not Path(output).exists() else (f"{output} exists: --force is needed",)
        )
        _say((*plan.notes, *there), quiet=quiet)
        _print(json.dumps(plan.to_dict(), indent=1) if as_json else plan_text(plan, output), quiet=quiet)
        return
    with _progress(src, shown=not (quiet or no_progress)) as progress:
        result = verb(src, output, progress=progress, **options)
    _say(result.notes, quiet=quiet)
    _print(json.dumps(result.to_dict(), indent=1) if as_json else result_text(result), quiet=quiet)


@cli.command(epilog=_epilog("wnconvert inspect ckpt.safetensors --full --sort ratio --top 20"))
@click.argument("src", nargs=-1, required=True, type=click.Path())
@click.option("--full", is_flag=True, help="Read v too: ‖v‖, g/‖v‖, zero rows, overflow, untouched layers.")
@click.option(
    "--all", "all_weights", is_flag=True, help="Show every plain weight of two and more dimensions too."
)
@click.option("--layers", metavar="GLOB", multiple=True, help="Show only layers of such names (repeatable).")
@click.option("--sort", type=click.Choice(SORTS), help="Order by a column, the largest first.")
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Show the first N layers only.")
@click.option(
    "--format", "style", type=click.Choice(FORMATS), default="table", show_default=True, help="How to print."
)
@click.option("--wide", is_flag=True, help="Show long names whole, however wide the terminal is.")
@click.option("--plot", type=click.Path(), metavar="FILE", help="Draw the magnitudes into a .png or .svg.")
@_NO_PROGRESS
def inspect(
    src: tuple[str, ...],
    *,
    sort: str | None,
    top: int | None,
    style: str,
    wide: bool,
    plot: str | None,
    no_progress: bool,
    **options: Any,
) -> None:
    """Show what is in a checkpoint and whether it is healthy.

    Its form, its layers' magnitudes, what fold, split and migrate would do. Only g is read, kilobytes of a
    file of gigabytes (of an ONNX model plain weights too). Of several files (a training run) one row a layer
    is shown, with the layers that moved most first.
    """
    from wnconvert.inspection import inspect_file
    from wnconvert.inspection_report import arranged, inspection_text, moves_text

    if sort is not None and len(src) > 1:
        raise click.UsageError("--sort is for one file; several are sorted by how far they moved")
    if sort in ("norm", "ratio") and not options["full"]:
        raise click.UsageError(f"--sort {sort} needs --full, which reads v")
    found = []
    for path in src:
        with _progress(path, shown=not no_progress) as progress:
            found.append(inspect_file(path, progress=progress, **options))
    if len(found) == 1:
        found = [arranged(found[0], sort=sort, top=top)]
    width = _width(wide=wide)
    if style == "json":
        data = (
            found[0].to_dict()
            if len(found) == 1
            else {"schema": 1, "files": [item.to_dict() for item in found]}
        )
        _print(json.dumps(data, indent=1))
    elif len(found) == 1:
        _print(inspection_text(found[0], style=style, width=width))
    else:
        _print(moves_text(found, style=style, top=top, width=width))
    if plot is not None:
        from wnconvert.plots import plot_magnitudes

        plot_magnitudes(found, plot)


@cli.command(epilog=_epilog("wnconvert compare g_02500000 generator.safetensors"))
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--rtol", type=click.FloatRange(min=0), help="Equal where |a-b| <= atol + rtol·|b|.")
@click.option(
    "--atol", type=click.FloatRange(min=0), help="See --rtol.  [default of both: 1 ulp of the coarser dtype]"
)
@click.option(
    "--strip-prefix",
    metavar="PREFIX",
    multiple=True,
    help="Take this off the names of either side, e.g. module. (repeatable).",
)
@click.option(
    "--only",
    metavar="PATH",
    multiple=True,
    help="Compare this state dict, on whichever side has it; twice: A's, then B's.",
)
@click.option(
    "--layers", metavar="GLOB", multiple=True, help="Compare only tensors of such names (repeatable)."
)
@click.option(
    "--exclude", metavar="GLOB", multiple=True, help="Leave tensors of such names out (repeatable)."
)
@_THREADS
@_JSON
@click.option("--wide", is_flag=True, help="Show long names whole, however wide the terminal is.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors; the exit code says it.")
@_NO_PROGRESS
def compare(
    a: str, b: str, *, as_json: bool, wide: bool, quiet: bool, no_progress: bool, **options: Any
) -> int:
    """Tell whether two checkpoints are the same function.

    In any form, container and nesting: weight-normalized layers are compared by the weights that they
    compute. Exit code 0: equal, 1: not.
    """
    from wnconvert.compare import compare_files
    from wnconvert.comparison_report import comparison_text

    with _progress(f"{Path(a).name} {Path(b).name}", shown=not (quiet or no_progress)) as progress:
        found = compare_files(a, b, progress=progress, **options)
    _say(found.notes, quiet=quiet)
    text = json.dumps(found.to_dict(), indent=1) if as_json else comparison_text(found, _width(wide=wide))
    _print(text, quiet=quiet)
    return 0 if found else 1


_MODEL = _with(
    click.option(
        "--weights", type=click.Path(), metavar="CKPT", help="Load this checkpoint, of any kind and form."
    ),
    click.option("--kwargs", metavar="JSON|@FILE", help="Arguments of the factory, a JSON object."),
    click.option(
        "--only", metavar="PATH", help="Of several state dicts in CKPT take this one, e.g. generator."
    ),
    click.option(
        "--strip-prefix",
        metavar="PREFIX",
        multiple=True,
        help="Take this off the names in CKPT, e.g. module. (repeatable).",
    ),
    click.option("--trust", is_flag=True, help="Load a whole pickled module: runs the code it names."),
)
_FED = _with(
    click.option(
        "--input",
        "inputs",
        metavar="NAME=DTYPE[SHAPE]",
        multiple=True,
        required=True,
        help="An input, e.g. 'mel=float32[1,80,T]' or 'ids=int64[1,L]<100'; a letter is a dynamic size.",
    ),
    click.option(
        "--range",
        "ranges",
        metavar="T=LOW..HIGH",
        multiple=True,
        help="The sizes of a letter, e.g. T=16..400.",
    ),
    click.option(
        "--output", "outputs", metavar="NAME", multiple=True, help="Name the outputs, in order (repeatable)."
    ),
)
_PROOF = _with(
    click.option(
        "--rtol",
        type=click.FloatRange(min=0),
        default=1e-3,
        show_default=True,
        help="Equal where |onnx-torch| <= atol + rtol·|torch|.",
    ),
    click.option("--atol", type=click.FloatRange(min=0), default=1e-5, show_default=True, help="See --rtol."),
    click.option(
        "--samples",
        type=click.IntRange(min=1),
        default=4,
        show_default=True,
        help="Inputs to compare on: of the least, the largest and odd sizes.",
    ),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the inputs."),
)
_REPORTING = _with(
    _JSON,
    click.option("--wide", is_flag=True, help="Show long names whole, however wide the terminal is."),
    click.option("--quiet", is_flag=True, help="Print nothing but errors; the exit code says it."),
)


@cli.command(
    epilog=_epilog(
        "wnconvert export models.py:Generator -o gan.onnx --weights g_02500000 --only generator \\\n"
        "      --input 'mel=float32[1,80,T]' --range T=16..400"
    )
)
@click.argument("model")
@click.option("-o", "--out", type=click.Path(), metavar="OUT", required=True, help="The ONNX file to write.")
@_MODEL
@_FED
@click.option(
    "--opset", type=click.IntRange(min=7), metavar="N", help="ONNX opset.  [default: the exporter's]"
)
@click.option(
    "--exporter",
    type=click.Choice(EXPORTERS),
    default="dynamo",
    show_default=True,
    help="torch's newer exporter, or its older one.",
)
@click.option("--external-data", is_flag=True, help="Put weights into a file beside OUT.")
@_PROOF
@click.option("--keep-failed", is_flag=True, help="Keep what is not equal as OUT with .failed in its name.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@_REPORTING
def export(
    model: str,
    out: str,
    *,
    weights: str | None,
    kwargs: str | None,
    only: str | None,
    strip_prefix: tuple[str, ...],
    trust: bool,
    as_json: bool,
    wide: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Export a model to ONNX, weight norm folded, and prove it.

    MODEL is package.module:factory or path/to/file.py:factory, code that is run; or a .pt2 exported program
    or a TorchScript archive. The unfolded module in torch is compared with OUT in onnxruntime, at other
    lengths than were exported. Exit code 1: they differ, and there is no OUT.
    """
    _check_torch()
    from wnconvert.export import export_onnx

    def run(module: Any, progress: Callable[[Any], None]) -> Any:
        return export_onnx(module, out, progress=progress, **options)

    how = {"weights": weights, "kwargs": kwargs, "only": only, "strip_prefix": strip_prefix, "trust": trust}
    return _prove(run, model, how, as_json=as_json, wide=wide, quiet=quiet)


@cli.command(
    epilog=_epilog(
        "wnconvert check gan.onnx models.py:Generator --weights g.pt --input 'mel=float32[1,80,T]'"
    )
)
@click.argument("path", type=click.Path(), metavar="MODEL.ONNX")
@click.argument("model")
@_MODEL
@_FED
@_PROOF
@_REPORTING
def check(
    path: str,
    model: str,
    *,
    weights: str | None,
    kwargs: str | None,
    only: str | None,
    strip_prefix: tuple[str, ...],
    trust: bool,
    as_json: bool,
    wide: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Tell whether an ONNX model computes what a module does.

    MODEL and options are as for export. The module in torch is compared with MODEL.ONNX in onnxruntime.
    Exit code 0: equal, 1: not.
    """
    _check_torch()
    from wnconvert.export import check_onnx

    def run(module: Any, progress: Callable[[Any], None]) -> Any:
        return check_onnx(path, module, progress=progress, **options)

    how = {"weights": weights, "kwargs": kwargs, "only": only, "strip_prefix": strip_prefix, "trust": trust}
    return _prove(run, model, how, as_json=as_json, wide=wide, quiet=quiet)


def _check_torch() -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise ArgumentError(
            "the module is run in torch, which is not installed", fix='pip install "wnconvert[export]"'
        )


def _prove(
    run: Callable[[Any, Callable[[Any], None]], Any],
    model: str,
    how: Mapping[str, Any],
    *,
    as_json: bool,
    wide: bool,
    quiet: bool,
) -> int:
    """Build the model, export or check it, and say what came of it; each step as it is done."""
    from dataclasses import replace

    from wnconvert.export_report import proof_text, step_text
    from wnconvert.prepared import prepared

    def progress(step: Any) -> None:
        if not quiet:
            click.echo(step_text(step), err=True)

    with contextlib.redirect_stdout(sys.stderr):  # what the model's own code prints is no report
        made = prepared(model, progress=progress, **how)
        report = run(made.module, progress)
    report = replace(report, steps=(*made.steps, *report.steps), notes=(*made.notes, *report.notes))
    _say(report.notes, quiet=quiet)
    text = json.dumps(report.to_dict(), indent=1) if as_json else proof_text(report, _width(wide=wide))
    _print(text, quiet=quiet)
    return 0 if report else 1


def _width(*, wide: bool) -> int | None:
    """The width that tables have to fit: the terminal's, or what COLUMNS asks for; none in a pipe."""
    fits = sys.stdout.isatty() or "COLUMNS" in os.environ
    return shutil.get_terminal_size().columns if fits and not wide else None


def _say(notes: tuple[str, ...], *, quiet: bool) -> None:
    for note in () if quiet else notes:
        click.echo(f"note: {printable(note)}", err=True)


def _print(text: str, *, quiet: bool = False) -> None:
    """Print to stdout, where a full disk is the user's affair and no bug; OUT is written by then."""
    if quiet:
        return
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"it cannot be written ({error.strerror})", where="stdout") from error


@contextlib.contextmanager
def _progress(label: str, *, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where that is a terminal, for whatever takes longer than a second."""
    if not (shown and sys.stderr.isatty()):
        yield lambda done, total: None
        return
    from tqdm import tqdm

    with tqdm(desc=Path(label).name, unit="B", unit_scale=True, delay=1, leave=False) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


def main() -> NoReturn:
    """Run the command line and exit: errors in the user's words, never a traceback but for a bug."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # a warning of a library says nothing to a user of this tool
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) != signal.SIG_IGN:  # nohup has it ignored
            signal.signal(ending, _terminated)
    gc.disable()  # what a short process makes goes with it; to look for cycles took 20 ms
    code = _run()
    gc.freeze()
    sys.exit(code)


def _run() -> int:
    try:
        code = cli(standalone_mode=False)
    except WnconvertError as error:
        _say_error(str(error), error.fix)
        code = error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        _say_error(error.format_message(), f"{context.command_path if context else 'wnconvert'} --help")
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; nothing is written", err=True)
        code = 130
    except BrokenPipeError:
        # The reader of stdout is gone (| head); Python must not fail again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception:  # noqa: BLE001 - the last resort, and it says so
        traceback.print_exc()
        click.echo("this is a bug of wnconvert: please report the lines above", err=True)
        code = 3
    return code if isinstance(code, int) else 0


def _say_error(what: str, fix: str) -> None:
    lines = what.split("\n  ")  # as errors list items; any other line break stands in a name
    click.echo("\n  ".join(printable(line) for line in ("error: " + lines[0], *lines[1:])), err=True)
    if fix:
        click.echo(f"fix: {printable(fix)}", err=True)


def _terminated(*_: object) -> NoReturn:
    """End as after Ctrl-C: what was begun is cleaned up."""
    raise KeyboardInterrupt
