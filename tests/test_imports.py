"""Who may import whom, and what starting up may not bring in."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden import ROOT

#: A module may import what stands before it: the lines above its own, and its own line to the left.
ORDER = """
errors words dims tensors layout blocks
schemes kinds rounding sums weightnorm policy options workers atomic atomic_folder stats values
sharding shard_index
plan order provenance scope
split_wishes split_like split_ways fold_plan migrate_plan split_plan module_metadata making
pickle_values pickles pickle_writer safetensors_file
protobuf onnx_model
onnx_constants onnx_monomials onnx_uses onnx_rules onnx_values onnx_frontier onnx_arithmetic onnx_surgery
onnx_tensors onnx_file onnx_plan onnx_writer
foreign zips torch_objects torch_contents torch_modules torch_optimizers torch_file torch_writer
shard_plan merging folders checkpoint sources
comparison gaps pairing readings
steps signatures samples runtime output_proof proof onnx_slices onnx_check
verify onnx_data executor convert compare onnx_inspection
inspection prospects inspecting
targets files state_dict
live live_choice edits surgery module_split modules
module_state callables exporters exported_texts exported_programs factory module_weights prepared
initializer_names exported_graph export_request export
tables report inspection_report comparison_report export_report plots
terminal cli_options cli_files cli_export cli __main__
""".split()
MODULES = sorted(path for path in (ROOT / "wnconvert").rglob("*.py") if path.name != "__init__.py")

#: What `wnconvert --help` may not pay for.
HEAVY = {"torch", "numpy", "onnx", "onnxruntime", "matplotlib", "transformers"}
#: What comes with an extra, so that a module that needs it cannot be imported everywhere.
EXTRAS = {"torch", "onnx", "onnxscript", "onnxruntime", "matplotlib"}


def imported(source: str) -> set[str]:
    """The modules of this package that a source text imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = "wnconvert" if node.level else ""
            path = ".".join(filter(None, (package, node.module)))
            names |= {path, *(f"{path}.{alias.name}" for alias in node.names)}
    inside = {name.split(".")[1] for name in names if name.startswith("wnconvert.")}
    return inside & {*ORDER, *(path.stem for path in MODULES)}


def wrongly_imported(module: str, source: str) -> set[str]:
    return imported(source) - set(ORDER[: ORDER.index(module)])


def brought_in(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter holds after running some code."""
    ending = f"\nimport sys; print('brought in', *sys.modules.keys() & {HEAVY})"
    done = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[2:])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_imports_only_what_stands_before_it(path: Path) -> None:
    assert path.stem in ORDER, "a new module needs its place in ORDER"
    assert path.parent.name == "wnconvert", "the package is flat"
    assert not wrongly_imported(path.stem, path.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "import wnconvert.plan",
        "from wnconvert import plan",
        "from wnconvert.plan import Plan",
        "from . import plan",
        "from .plan import Plan",
        "def later():\n    from wnconvert.plan import Plan",
    ],
)
def test_an_import_of_a_later_module_is_seen_in_every_spelling(source: str) -> None:
    assert wrongly_imported("schemes", source) == {"plan"}
    assert not wrongly_imported("checkpoint", source)


def test_the_table_of_modules_in_contributing_is_this_list() -> None:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    told = [name for row in rows for name in re.findall(r"\w+", row)]
    there = {path.stem for path in MODULES} - {"__main__"}
    assert told == [name for name in ORDER if name in there]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_can_be_imported_or_lacks_an_extra(path: Path) -> None:
    try:
        importlib.import_module(f"wnconvert.{path.stem}")
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise


def test_importing_the_cli_brings_in_nothing_heavy() -> None:
    assert brought_in("import wnconvert.cli") == set()


def test_help_brings_in_nothing_heavy() -> None:
    code = """
import sys
from wnconvert.cli import main
sys.argv = ["wnconvert", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code
"""
    assert brought_in(code) == set()


def test_the_check_for_heavy_imports_can_fail() -> None:
    assert brought_in("import numpy") == {"numpy"}
