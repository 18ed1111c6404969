"""Pages: what one costs beside the command that it shows, and one of very many rows."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.bench import inputs, models
from tests.bench.builds import NOW
from tests.bench.inputs import GIB, MIB, written
from tests.bench.measure import in_turns, run
from tests.bench.rows import Row

#: Of a page of 1,000 layers of 2,048 rows, which is read and made in one command.
_SECONDS, _MEMORY = 3, 256 * MIB
#: The files of a run, and of each of two folders.
_STEPS, _PAIRS = 20, 10


def pages(folder: Path, rounds: int) -> Iterator[Row]:
    """The page of a large file against its full inspection, and that of many rows."""
    page = folder / "page.html"
    with written(folder, "large.safetensors", inputs.many_layers(2 * GIB)) as (source, _):
        full, html = NOW.command("inspect", source, "--full"), ("--html", page, "--force")
        ours, other = in_turns(rounds, NOW.command("inspect", source, *html), full, memory=True)
        yield Row("`inspect --html`, 2 GiB", ours, "`inspect --full`", other, 1.3)
        ours, other = in_turns(rounds, NOW.command("inspect", source, *html, "--sha256"), full)
        yield Row("`inspect --html --sha256`, 2 GiB", ours, "`inspect --full`", other)
    shapes: inputs.Shapes = {}
    for at in range(1000):
        shapes |= inputs.layer(f"blocks.{at // 8}.convs.{at % 8}", 2048, 4)
    with written(folder, "rows.safetensors", shapes) as (source, _):
        ours = run(NOW.command("inspect", source, *html), memory=True)
        what = f"`inspect --html`, 1,000 layers of 2,048 rows (at most {_SECONDS} s)"
        yield Row(what, ours, most_anonymous=_MEMORY)
        size = page.stat().st_size / 1e6
        yield Row(f"its page, {size:.2f} MB", ours)
    page.unlink()


def other_pages(folder: Path, rounds: int) -> Iterator[Row]:
    """The pages of a run, of comparisons and of a proof, against their commands without; of HiFi-GAN V1."""
    page = folder / "page.html"

    def row(what: str, *command: str | Path) -> Row:
        html = NOW.command(*command, "--html", page, "--force")
        ours, other = in_turns(rounds, html, NOW.command(*command), memory=True, may_differ=True)
        return Row(f"{what}, {page.stat().st_size / 1e6:.2f} MB", ours, "without `--html`", other)

    with _steps(folder) as steps:
        yield row(f"the page of a run of {_STEPS} steps", "inspect", *steps)
        yield row("that of two checkpoints", "compare", steps[0], steps[-1])
        with _folders(folder, steps[0], steps[-1]) as both:
            yield row(f"that of two folders of {_PAIRS} files", "compare", *both)
    model, fed = folder / "model.onnx", ("--input", models.INPUT, "--range", models.RANGE)
    source = f"{models.__file__}:hifigan"
    run(NOW.command("export", source, *fed, "-o", model, "--force"))
    yield row("that of two ONNX models", "compare", model, model)
    yield row("that of a proof", "check", model, source, *fed)
    model.unlink()
    page.unlink()


@contextlib.contextmanager
def _steps(folder: Path) -> Iterator[list[Path]]:
    """Checkpoints of a run, each two ulps further than the one before; removed afterwards."""
    with written(folder, "step_0.safetensors", inputs.hifigan()) as (first, _):
        steps = [first]
        for at in range(1, _STEPS):
            steps.append(folder / f"step_{at}.safetensors")
            shutil.copy(steps[-2], steps[-1])
            for _ in range(2):
                inputs.shift(steps[-1])
        yield steps
        for step in steps[1:]:
            step.unlink()


@contextlib.contextmanager
def _folders(folder: Path, *sources: Path) -> Iterator[list[Path]]:
    """A folder for each source, with links to it under some names; removed afterwards."""
    made = [folder / name for name in "ab"]
    for one, source in zip(made, sources, strict=True):
        one.mkdir()
        for at in range(_PAIRS):
            (one / f"{at}.safetensors").hardlink_to(source)
    yield made
    for one in made:
        shutil.rmtree(one)


BENCHES = (pages, other_pages)
