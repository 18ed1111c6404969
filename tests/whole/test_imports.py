"""Who may import whom, what may be loaded where, and what starting up may not bring in.

The order of the packages stands here, once; the order of the files in a package is the list in its docstring.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import wnconvert
from tests.helpers.golden import ROOT

PACKAGE = ROOT / "wnconvert"
FILES = sorted(PACKAGE.rglob("*.py"))

#: What stands at the top, from what everything is made of to what shows it. A package imports only what
#: stands left of it; those that share a place do not import each other.
ORDER = (
    "frozen | errors heap shown signals subnormals | messages | tensors | layers | numerics | plan | "
    "formats onnx source | storage | verbs | reports | cli"
)
#: The same for the folders of `verbs`, of which only these arrows run between two that share a place.
VERBS = (
    "shared | inspection conversion comparison modules | models | loads export recipes fleet | modernization"
)
ARROWS = {("modules", "inspection")}

#: Packages that only some places may import, and where: folders or files below `wnconvert/`.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "click": ("cli",),
    "tqdm": ("cli", "verbs/shared/progress.py"),
    "matplotlib": ("reports", "shown.py"),
    "pandas": ("reports", "shown.py"),
    "jinja2": ("reports/html",),
}
#: Packages that no module may import but inside a function, except in these places.
NOT_AT_THE_TOP: dict[str, tuple[str, ...]] = {
    "torch": (
        "verbs/modules",
        "verbs/models",
        "verbs/loads/libraries.py",
        "verbs/recipes",
        "verbs/export",
        "verbs/modernization/child.py",
    ),
    "onnx": (),
    "onnxruntime": (),
    "libcst": (),
    "matplotlib": (),
    "jinja2": (),
    "pandas": (),
    "distributed": (),
}
#: What `wnconvert --help` may not pay for.
HEAVY = {"torch", "numpy", "onnx", "onnxruntime", "matplotlib", "pandas", "jinja2", "transformers", "libcst"}
#: What it takes some milliseconds to load, which few commands can do without.
SMALL = {"dataclasses", "shutil"}
#: What comes with an extra, so that a module that needs it cannot be imported everywhere.
EXTRAS = {"torch", "onnx", "onnxscript", "onnxruntime", "matplotlib", "jinja2", "libcst"}


def dotted(path: Path) -> str:
    """The name of a module below `wnconvert`, with dots."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {dotted(path): path for path in FILES}


def imports(source: str, *, at_the_top: bool = False) -> Iterator[str]:
    """Whole names of the modules that a source imports, and of what it takes from them."""
    tree = ast.parse(source)
    for node in _top(tree.body) if at_the_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _top(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that importing a module runs; what only type checkers see is not among them."""
    for node in body:
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or typing_only:
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            yield from _top(getattr(node, field, []))


def ours(source: str) -> set[str]:
    """The modules of this package that a source imports, wherever in it."""
    inside = {name.removeprefix("wnconvert.") for name in imports(source) if name.startswith("wnconvert.")}
    return inside & MODULES.keys()


def listed_in(docstring: str) -> list[str]:
    """The names of a package's files, in the order of the list in its docstring."""
    return re.findall(r"^(\w+) {2,}\S", docstring, re.MULTILINE)


def order_of(folder: Path) -> list[list[str]]:
    """The names in a folder from left to right; names that share a place do not import each other."""
    if folder == PACKAGE:
        return [place.split() for place in ORDER.split("|")]
    if folder == PACKAGE / "verbs":
        return [place.split() for place in VERBS.split("|")]
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()), clean=False)
    return [[name] for name in listed_in(docstring or "")]


def against_order(importer: str, imported: str) -> str:
    """Why one module may not import another; empty where it may."""
    a, b = importer.split("."), imported.split(".")
    shared = next((at for at, (left, right) in enumerate(zip(a, b, strict=False)) if left != right), None)
    if shared is None:
        return "" if len(a) != len(b) else "a module imports itself"
    folder = PACKAGE.joinpath(*a[:shared])
    place = {name: at for at, names in enumerate(order_of(folder)) for name in names}
    left, right = a[shared], b[shared]
    if (left, right) in ARROWS or place[right] < place[left]:
        return ""
    return f"{importer} imports {imported}, but in {folder.name} {right} does not stand before {left}"


def below(path: Path, places: tuple[str, ...]) -> bool:
    return any((PACKAGE / place) in (path, *path.parents) for place in places)


# -- the order


def test_a_module_imports_only_what_stands_before_it() -> None:
    wrong = [
        reason
        for name, path in MODULES.items()
        if name not in ("", "__main__")
        for imported in sorted(ours(path.read_text()))
        if (reason := against_order(name, imported))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "source",
    [
        "import wnconvert.plan.fold",
        "from wnconvert.plan import fold",
        "from wnconvert.plan.fold import plan_fold",
        "def later():\n    from wnconvert.plan.fold import plan_fold",
    ],
)
def test_an_import_of_a_later_module_is_seen_in_every_spelling(source: str) -> None:
    assert "plan.fold" in ours(source)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("layers.find", "plan.fold"),
        ("layers.dims", "numerics.folding"),
        ("formats.zips", "onnx.slices"),
        ("plan.selection.scope", "plan.fold"),
        ("verbs.conversion.run", "verbs.models.proof.proof"),
        ("storage.sources", "verbs.conversion.run"),
        ("reports.tables", "cli.files"),
    ],
)
def test_the_check_of_the_order_can_fail(importer: str, imported: str) -> None:
    assert against_order(importer, imported)
    assert not against_order(imported, importer) or importer.split(".", maxsplit=1)[0] in (
        "numerics",
        "formats",
        "verbs",
    )


def test_every_folder_lists_its_files_in_its_docstring_and_has_at_most_eleven() -> None:
    for folder in sorted({path.parent for path in FILES}):
        there = {
            path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
        }
        there -= {"__init__", "__main__"}
        shown = {name for place in order_of(folder) for name in place}
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()), clean=False) or ""
        assert shown == there, f"{folder.name}: the order and the folder differ in {sorted(shown ^ there)}"
        if folder != PACKAGE:  # which holds eleven packages, and `errors` and `messages`
            assert len(there) <= 11, f"{folder.name} has {len(there)} files and folders"
            assert set(listed_in(docstring)) == there, f"{folder.name}: its docstring lists other files"
            assert len(docstring.splitlines()[0]) <= 110, f"{folder.name}: its job in one line"


# -- sizes


def test_no_file_is_longer_than_400_lines() -> None:
    long = [f"{path}: {lines} lines" for path in FILES if (lines := path.read_text().count("\n")) > 400]
    assert not long, "\n".join(long)


def test_no_function_has_more_than_60_lines_of_code() -> None:
    long = [
        f"{path}, line {node.lineno}: {node.name} has {lines} lines of code"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (lines := code_lines(node)) > 60
    ]
    assert not long, "\n".join(long)


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function from its `def` on, less those of its docstring."""
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if is_docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def test_lines_of_code_are_counted_without_the_docstring() -> None:
    source = 'def f(\n    a,\n):\n    """One.\n\n    Two.\n    """\n    return a\n'
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert code_lines(function) == 4


# -- what may be loaded where


def test_layers_plan_and_formats_load_without_numpy() -> None:
    names = [name for name in MODULES if name.split(".")[0] in ("layers", "plan", "formats")]
    code = "".join(f"import wnconvert.{name}\n" for name in names)
    assert brought_in(code) == set()


def test_packages_are_imported_only_where_they_belong() -> None:
    wrong = []
    for path in FILES:
        source = path.read_text()
        for package, places in ONLY_IN.items():
            if not below(path, places) and package in {name.split(".")[0] for name in imports(source)}:
                wrong.append(f"{dotted(path)} imports {package}, which belongs into {', '.join(places)}")
        for package, places in NOT_AT_THE_TOP.items():
            top = {name.split(".")[0] for name in imports(source, at_the_top=True)}
            if not below(path, places) and package in top:
                wrong.append(f"{dotted(path)} imports {package} outside a function")
    assert not wrong, "\n".join(wrong)


def test_imports_inside_functions_and_for_type_checkers_are_not_at_the_top() -> None:
    source = (
        "if TYPE_CHECKING:\n    import a\ndef f():\n    import c\ntry:\n    import d\nfinally:\n    import b"
    )
    assert set(imports(source)) == {"a", "b", "c", "d"}
    assert set(imports(source, at_the_top=True)) == {"b", "d"}


def test_numerics_knows_no_file_and_plan_opens_none() -> None:
    opening = re.compile(r"\bopen\(|\bos\.|\bPath\b|\bimport os\b")
    for name, path in MODULES.items():
        if name.split(".")[0] in ("numerics", "plan"):
            assert not opening.search(path.read_text()), f"{name} knows files"


def test_a_module_can_be_imported_or_lacks_an_extra() -> None:
    lacking = {name: missing_for(f"wnconvert.{name}".rstrip(".")) for name in MODULES}
    assert set(lacking.values()) <= {"", *EXTRAS}, lacking


def missing_for(name: str) -> str:
    """The package whose absence keeps a module from being imported; empty where it can be."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        return error.name or "?"
    return ""


# -- the public names


def test_the_lists_of_public_names_agree() -> None:
    source = (PACKAGE / "__init__.py").read_text()
    block = next(
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    typed = {
        alias.name: (node.module or "").removeprefix("wnconvert.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {
        name: wnconvert._HOMES.get(name, "errors") for name in wnconvert.__all__ if name != "__version__"
    }
    assert typed == homes
    for name, home in homes.items():
        assert getattr(wnconvert, name) is getattr(importlib.import_module(f"wnconvert.{home}"), name)
    assert dir(wnconvert) == sorted(wnconvert.__all__)


def test_a_public_name_has_one_meaning() -> None:
    homes: dict[str, list[str]] = {}
    for name, path in MODULES.items():
        for public in public_names(path.read_text()) if name else ():
            homes.setdefault(public, []).append(name)
    shared = {public: places for public, places in homes.items() if len(places) > 1}
    assert not shared, f"one name, several meanings: {shared}"


def public_names(source: str) -> set[str]:
    """What a module defines without a leading underscore."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def test_public_names_are_functions_classes_and_constants() -> None:
    assert public_names("def a(): ...\nclass B: ...\nC = D = 1\nE: int = 2\n_f = 3") == {*"aBCDE"}


# -- starting up


def brought_in(code: str, packages: set[str] = HEAVY) -> set[str]:
    """Those of some packages that a fresh interpreter holds after running some code."""
    ending = f"\nimport sys; print('brought in', *sys.modules.keys() & {packages})"
    done = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[2:])


def test_importing_the_cli_brings_in_nothing_heavy() -> None:
    assert brought_in("import wnconvert.cli") == set()


@pytest.mark.parametrize("arguments", ["--help", "env", "help fold"])
def test_help_brings_in_nothing_heavy(arguments: str) -> None:
    code = f"""
import sys
from wnconvert.cli import main
sys.argv = ["wnconvert", *{arguments.split()!r}]
try:
    main()
except SystemExit as stop:
    assert not stop.code
"""
    assert brought_in(code, HEAVY if arguments == "env" else HEAVY | SMALL) == set()


#: What no small file needs, each of some milliseconds.
UNNEEDED = {"numpy.ma", "email", "importlib.metadata", "socket", "torch", "onnx", "jinja2"}


@pytest.mark.parametrize("verb", ["inspect IN", "fold IN -o OUT", "fold IN --dry-run", "compare IN IN"])
def test_a_command_on_a_small_file_is_quick_to_load_and_starts_no_threads(tmp_path: Path, verb: str) -> None:
    places = {"IN": str(ROOT / "fixtures" / "hifigan.safetensors"), "OUT": str(tmp_path / "out.safetensors")}
    code = f"""
import os, sys, time
from wnconvert.cli import main

def threads():
    return len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 1

sys.argv = ["wnconvert", *{[places.get(word, word) for word in verb.split()]!r}]
try:
    main()
except SystemExit as stop:
    assert not stop.code
until = time.monotonic() + 5  # the system forgets a thread that has ended a moment later
while threads() > 1 and time.monotonic() < until:
    time.sleep(0.01)
print("of", threads(), *sorted(sys.modules.keys() & {UNNEEDED}))
"""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.splitlines()[-1] == "of 1"


def test_threads_that_a_user_asks_numpy_for_are_started() -> None:
    code = """
import os, sys
from wnconvert.cli import main
sys.argv = ["wnconvert", "inspect", sys.argv[1]]
try:
    main()
finally:
    print(os.environ["OPENBLAS_NUM_THREADS"])
"""
    source = str(ROOT / "fixtures" / "hifigan.safetensors")
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code, source], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.splitlines()[-1] == "2"


def test_the_check_for_heavy_imports_can_fail() -> None:
    assert brought_in("import numpy") == {"numpy"}
