"""The notebook of docs/ as a test: its cells run, and show what is stored in it.

`--refresh` writes the outputs again. Pictures are drawn, but not compared: another matplotlib draws others.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.golden import ROOT, sandbox
from tests.helpers.pages import DOCS

nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

NOTEBOOK = DOCS / "results.ipynb"
_SECONDS = re.compile(r"in \d+\.\d\d s")


def read() -> Any:
    import nbformat

    return nbformat.read(NOTEBOOK, as_version=4)


def ran(notebook: Any, folder: Path) -> Any:
    """A copy of a notebook after its cells have run in a folder."""
    made = copy.deepcopy(notebook)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(made, timeout=300, record_timing=False, resources=resources).execute()
    made.metadata = copy.deepcopy(notebook.metadata)  # not the version of this Python
    return made


def shown(notebook: Any) -> list[list[dict[str, str]]]:
    """What each cell of code shows, by kind; of a picture only that there is one."""
    return [
        [
            {
                kind: "" if kind.startswith("image/") else _SECONDS.sub("in … s", text)
                for kind, text in output["data"].items()
            }
            for output in cell.outputs
        ]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the root of a clone, in which a kernel leaves nothing in the user's home."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    return sandbox(tmp_path).parent


def test_the_notebook_shows_what_happens(folder: Path, refresh: bool) -> None:
    import nbformat

    written = read()
    made = ran(written, folder)
    if refresh:
        nbformat.write(made, NOTEBOOK)
        return
    assert shown(made) == shown(written), "if this is meant: make golden"


def test_the_notebook_shows_tables_frames_and_pictures() -> None:
    outputs = [output for cell in shown(read()) for output in cell]
    assert all(output["text/plain"] for output in outputs)
    kinds = [sorted(output) for output in outputs]
    assert kinds.count(["image/png", "text/plain"]) == 2
    assert sum("58 more" in output.get("text/html", "") for output in outputs) == 1
    assert sum('class="dataframe"' in output.get("text/html", "") for output in outputs) == 3
    assert NOTEBOOK.stat().st_size < 150_000
    assert "(results.ipynb)" in (DOCS / "python.md").read_text()


def test_an_output_that_is_stale_is_seen(folder: Path) -> None:
    written = read()
    written.cells = written.cells[:2]
    written.cells[1].source = "print  # loads nothing\n'another'"
    assert shown(ran(written, folder)) != shown(written)
