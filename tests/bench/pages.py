"""Pages: what one costs beside the inspection that it shows, and one of very many rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.bench import inputs
from tests.bench.builds import NOW
from tests.bench.inputs import GIB, MIB, written
from tests.bench.measure import in_turns, run
from tests.bench.rows import Row

#: Of a page of 1,000 layers of 2,048 rows, which is read and made in one command.
_SECONDS, _MEMORY = 3, 256 * MIB


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


BENCHES = (pages,)
