"""Charting libraries against each other: bytes in a page, time to draw, what a strict policy leaves of them.

``python -m tests.bench.charts FOLDER``, with the unpacked releases of the libraries in a folder, each under
the name of its package: ``d3``, ``plot`` (@observablehq/plot), ``uplot``, ``plotly``
(plotly.js-cartesian-dist-min), ``vega``, ``vega-lite``, ``vega-interpreter`` and ``bokehjs``. Each draws the
same picture: 1,000 layers, of each the least and the greatest of 2,048 rows, the quartiles and the median.
Times are those of the page's thread alone, so that other work on the machine does not count.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.helpers.browser import Browser, started

LAYERS, ROWS = 1000, 2048


@dataclass(frozen=True, slots=True)
class Library:
    """A library: its files below a folder, and the script that draws ``data`` into ``place``."""

    name: str
    files: tuple[str, ...]
    draw: str
    styles: tuple[str, ...] = ()


_SPEC = """{data: {values: data}, width: 1200, height: 300,
  encoding: {x: {field: "x", type: "quantitative"}}, layer: [
    {mark: {type: "rule", tooltip: true},
      encoding: {y: {field: "min", type: "quantitative", scale: {type: "log"}}, y2: {field: "max"}}},
    {mark: {type: "rule", size: 3}, encoding: {y: {field: "q1", type: "quantitative"}, y2: {field: "q3"}}},
    {mark: "point", encoding: {y: {field: "median", type: "quantitative"}}}]}"""

LIBRARIES = (
    Library(
        "Observable Plot",
        ("d3/dist/d3.min.js", "plot/dist/plot.umd.min.js"),
        """place.append(Plot.plot({width: 1200, height: 300, y: {type: "log"}, marks: [
          Plot.ruleX(data, {x: "x", y1: "min", y2: "max"}),
          Plot.ruleX(data, {x: "x", y1: "q1", y2: "q3", strokeWidth: 3}),
          Plot.dot(data, {x: "x", y: "median", tip: "x"})]}))""",
    ),
    Library(
        "uPlot",
        ("uplot/dist/uPlot.iife.min.js",),
        """const names = ["x", "min", "q1", "median", "q3", "max"];
        new uPlot({width: 1200, height: 300, scales: {x: {time: false}, y: {distr: 3}},
          bands: [{series: [5, 1], fill: "#8884"}, {series: [4, 2], fill: "#8888"}],
          series: names.map((label) => ({label, stroke: "black"}))},
          names.map((name) => data.map((each) => each[name])), place)""",
        ("uplot/dist/uPlot.min.css",),
    ),
    Library(
        "Plotly (cartesian)",
        ("plotly/plotly-cartesian.min.js",),
        """const of = (name) => data.map((each) => each[name]);
        Plotly.newPlot(place, [{type: "box",
          x: of("x"), lowerfence: of("min"), q1: of("q1"), median: of("median"),
          q3: of("q3"), upperfence: of("max")}], {width: 1200, height: 300, yaxis: {type: "log"}})""",
    ),
    Library(
        "Vega-Lite, its own functions",
        ("vega/build/vega.min.js", "vega-lite/build/vega-lite.min.js"),
        f"""const spec = vegaLite.compile({_SPEC}).spec;
        new vega.View(vega.parse(spec), {{renderer: "svg", container: place}}).run()""",
    ),
    Library(
        "Vega-Lite, interpreted",
        (
            "vega/build/vega.min.js",
            "vega-lite/build/vega-lite.min.js",
            "vega-interpreter/build/vega-interpreter.js",
        ),
        f"""const spec = vegaLite.compile({_SPEC}).spec;
        new vega.View(vega.parse(spec, null, {{ast: true}}),
          {{renderer: "svg", container: place, expr: expression}}).run()""",
    ),
    Library(
        "Bokeh",
        ("bokehjs/build/js/bokeh.min.js", "bokehjs/build/js/bokeh-api.min.js"),
        """const of = (name) => data.map((each) => each[name]), {Plotting} = Bokeh;
        const source = new Bokeh.ColumnDataSource({data: {
          x: of("x"), min: of("min"), q1: of("q1"), median: of("median"), q3: of("q3"), max: of("max")}});
        const figure = Plotting.figure({width: 1200, height: 300, y_axis_type: "log", tools: "hover"});
        figure.segment({x0: {field: "x"}, x1: {field: "x"}, y0: {field: "min"}, y1: {field: "max"}, source});
        figure.segment({x0: {field: "x"}, x1: {field: "x"}, y0: {field: "q1"}, y1: {field: "q3"}, source,
          line_width: 3});
        figure.scatter({x: {field: "x"}, y: {field: "median"}, source});
        Plotting.show(figure, place)""",
    ),
)


def summaries() -> str:
    """The five numbers of each layer, as JSON."""
    numbers = np.random.default_rng(1)
    rows = np.exp(numbers.standard_normal((LAYERS, ROWS)) * 0.3 + np.sin(np.arange(LAYERS) / 40)[:, None])
    names = ("min", "q1", "median", "q3", "max")
    found = np.quantile(rows, [0, 0.25, 0.5, 0.75, 1], axis=1).T
    return json.dumps(
        [{"x": at, **dict(zip(names, map(float, each), strict=True))} for at, each in enumerate(found)]
    )


def page_of(library: Library, folder: Path, data: str) -> str:
    """A page with a library in it, under a policy by hashes, as those of wnconvert."""
    draw = f"const place = document.getElementById('place'), data = {data};\n{library.draw};"
    scripts = [*(_script((folder / name).read_text()) for name in library.files), draw]
    styles = [(folder / name).read_text() for name in library.styles]
    policy = f"default-src 'none'; img-src data:; script-src {_hashes(scripts)}; style-src {_hashes(styles)}"
    parts = [f"<style>{text}</style>" for text in styles]
    parts += ['<div id="place"></div>', *(f"<script>{text}</script>" for text in scripts)]
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    return f"<!doctype html>{head}{''.join(parts)}"


def _script(text: str) -> str:
    """A module that takes what it needs of Vega as a script; others are scripts as they are."""
    text = re.sub(r"^import (\{.*\}) from 'vega-util';", r"const \1 = vega;", text)
    return re.sub(r"\nexport \{.*\};", "", text)


def _hashes(texts: list[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"


def measured(browser: Browser, library: Library, folder: Path, data: str, at: Path) -> str:
    """A row of the table."""
    at.write_text(page_of(library, folder, data))
    browser.driver.get("about:blank")
    before = _seconds(browser)
    browser.open(at)
    time.sleep(2)
    spent = _seconds(browser) - before
    said = browser.logged()[0]
    nodes = browser.run("return document.querySelectorAll('#place *').length")
    texts = browser.run("return document.querySelectorAll('#place text').length")
    canvases = browser.run("return document.querySelectorAll('#place canvas').length")
    size = sum((folder / name).stat().st_size for name in (*library.files, *library.styles))
    first = f": {said[0][:300]}" if said else ""
    return (
        f"| {library.name} | {size / 1000:.0f} kB | {spent * 1000:.0f} ms | {nodes} elements, {texts} texts, "
        f"{canvases} canvases | {len(said)} refused or failed{first} |"
    )


def _seconds(browser: Browser) -> float:
    """The seconds that the page's thread has worked."""
    metrics = browser.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return float(next(each["value"] for each in metrics if each["name"] == "TaskDuration"))


def main() -> None:
    """Print a table of what each library costs."""
    folder, data = Path(sys.argv[1]), summaries()
    with tempfile.TemporaryDirectory() as scratch:
        browser = started(Path(scratch) / "profile")
        try:
            browser.driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
            for library in LIBRARIES:
                print(measured(browser, library, folder, data, Path(scratch) / "page.html"), flush=True)
        finally:
            browser.driver.quit()


if __name__ == "__main__":
    main()
