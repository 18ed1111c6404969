"""README.md and the pages of docs/ as tests: what they show runs, and what they say of outputs is so.

The console and python blocks of a page run in order, in a folder with a copy of fixtures/ in it, as in the
root of a clone; python blocks share one namespace. A fence opened with `norun` is only shown. Between
`<!-- help: wnconvert fold -->` and `<!-- /help -->` stands what `wnconvert fold --help` prints, between
`<!-- python: fold_file -->` and `<!-- /python -->` a signature and a docstring's first sentence. `--refresh`
writes all of it again; an output with a `...` is written by hand: it fails where it does not fit.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import wnconvert
from tests.helpers import pages
from tests.helpers.clusters import dask_cluster
from tests.helpers.export_models import reshaping, waving
from tests.helpers.golden import ANYTHING, ROOT, Step, differences, parse, run, run_process, sandbox, says
from tests.helpers.pages import DOCS, FENCE, HELP, LINKED, PAGES, PYTHON, README, page_id
from tests.helpers.servers import VARIABLES, s3_server
from tests.helpers.tool import run_here
from tests.storage.remote.conftest import anew
from tests.verbs.export.pairs.graphs import changed, renamed, two_layers
from wnconvert.cli import cli
from wnconvert.verbs.loads.result import LoadReport, Misfit
from wnconvert.verbs.modernization.modernize import modernize_code
from wnconvert.verbs.modernization.result import CodeCheck, CodeProof

JSON_PAGE = DOCS / "json.md"
STORES_PAGE = DOCS / "stores.md"
FLEETS_PAGE = DOCS / "many-files.md"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_a_page_shows_what_happens(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refresh: bool
) -> None:
    folder = sandbox(tmp_path).parent
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)  # as where a user's Python runs
    text = page.read_text()
    with contextlib.ExitStack() as beside:
        if page in (STORES_PAGE, FLEETS_PAGE):
            beside.enter_context(a_bucket(folder, monkeypatch))
        if page == FLEETS_PAGE:
            scheduler, _ = beside.enter_context(dask_cluster(tmp_path))
            monkeypatch.setenv("SCHEDULER", scheduler)
        renewed, wrong = rerun(text, page, folder, refresh=refresh)
    renewed = HELP.sub(lambda match: helped(match["command"], folder), renewed)
    renewed = PYTHON.sub(lambda match: generated(match["names"]), renewed)
    if refresh:
        page.write_text(renewed)
    else:
        wrong += "".join(
            f"--- written\n{old}\n--- printed\n{new}\n"
            for old, new in zip(sections(text), sections(renewed), strict=True)
            if old != new
        )
    if wrong:  # after a refresh, what is written by hand
        pytest.fail(f"{wrong}If this is meant: make golden", pytrace=False)


@contextlib.contextmanager
def a_bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The bucket of the page on stores, on a server of this machine."""
    runs = folder / "s3" / "models" / "runs"
    runs.mkdir(parents=True)
    shutil.copy(folder / "fixtures" / "g_02500000", runs)
    with s3_server(folder / "s3") as url:
        for name, value in {**VARIABLES, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        anew(monkeypatch)  # another page had another server
        yield


def test_the_job_of_a_ci_folds_what_is_new_and_fails_where_weight_norm_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sandbox(tmp_path).parent
    monkeypatch.chdir(folder)
    (job,) = (match["body"] for match in FENCE.finditer(FLEETS_PAGE.read_text()) if match["info"] == "yaml")
    assert job.count("\n") <= 11
    steps = [line.partition("- run: ")[2].strip('"') for line in job.splitlines() if "- run: " in line]
    assert steps[0].startswith("pip install")
    models = folder / "s3" / "models"

    def ends() -> list[int]:
        """The exit codes of the steps, up to the first that fails, as a CI has it."""
        codes = []
        for step in steps[1:]:
            said = run_process(step, folder).printed
            codes.append(int(found[1]) if (found := re.search(r"\[exit (\d+)\]$", said.strip())) else 0)
            if codes[-1]:
                break
        return codes

    with a_bucket(folder, monkeypatch):
        assert ends() == [0, 0, 0]
        assert [path.name for path in (models / "folded").iterdir()] == ["g_02500000.folded"]
        first = (models / "folded" / "g_02500000.folded").stat().st_mtime_ns
        shutil.copy(folder / "fixtures" / "gan.pt", models / "runs" / "new.pt")
        assert ends() == [0, 0, 0]
        assert (models / "folded" / "new.folded.pt").exists()
        assert (models / "folded" / "g_02500000.folded").stat().st_mtime_ns == first
        shutil.copy(folder / "fixtures" / "gan.pt", models / "folded" / "left.pt")
        assert ends() == [0, 0, 1]
        shutil.copy(folder / "fixtures" / "zero_row.safetensors", models / "runs")
        assert ends() == [2]


def rerun(text: str, page: Path, folder: Path, *, refresh: bool) -> tuple[str, str]:
    """A page after its blocks have run: with new outputs, where wanted, and what differs."""
    namespace: dict[str, Any] = {"__name__": page.stem}
    wrong = ""

    def block(match: re.Match[str]) -> str:
        nonlocal wrong
        body = match["body"]
        if match["info"].strip() == "python":
            # The blank lines before it give a traceback the page's own line numbers.
            above = "\n" * text.count("\n", 0, match.start("body"))
            code = compile(above + body, str(page), "exec", dont_inherit=True)
            exec(code, namespace)  # noqa: S102  # that the page's code runs is what is tested
        if match["info"].strip() != "console":
            return match[0]
        written = parse(body)
        printed = [run(step.command, folder) for step in written]
        kept = [refreshed(*pair) for pair in zip(written, printed, strict=True)] if refresh else written
        wrong += differences(kept, printed)
        return f"```{match['info']}\n{''.join(map(str, kept))}```"

    return FENCE.sub(block, text), wrong


def refreshed(written: Step, printed: Step) -> Step:
    """What a page should show: what it shows, where right or written by hand; else what is printed."""
    by_hand = ANYTHING in written.printed
    return written if by_hand or says(written.printed, printed.printed) else printed


def helped(command: str, folder: Path) -> str:
    printed = run(f"{command} --help", folder).printed
    return f"<!-- help: {command} -->\n```text\n{printed}```\n<!-- /help -->"


def generated(names: str) -> str:
    entries = [pages.described(name) for name in names.split()]
    between = "" if all(entry.startswith("- ") for entry in entries) else "\n"
    return f"<!-- python: {names} -->\n{between.join(entries)}<!-- /python -->"


def sections(text: str) -> list[str]:
    """What is generated into a page, part by part."""
    return [match[0] for pattern in (HELP, PYTHON) for match in pattern.finditer(text)]


def test_there_is_something_to_run_on_the_pages() -> None:
    infos = Counter(match["info"].strip() for page in PAGES for match in FENCE.finditer(page.read_text()))
    assert infos["console"] > 20, "a comparison of nothing is a failure"
    assert infos["python"] >= 10
    first = next(match for match in FENCE.finditer(README.read_text()) if match["info"].strip() == "console")
    assert parse(first["body"])[0].command.startswith("wnconvert"), "README's first command runs the tool"


def test_every_command_has_its_help_on_the_page_of_commands() -> None:
    found = [match["command"] for match in HELP.finditer((DOCS / "commands.md").read_text())]
    assert sorted(found) == ["wnconvert", *(f"wnconvert {name}" for name in sorted(cli.commands))]


def test_every_public_name_is_on_the_page_of_python_once() -> None:
    markers = PYTHON.finditer((DOCS / "python.md").read_text())
    assert sorted(name for match in markers for name in match["names"].split()) == sorted(wnconvert.__all__)


def test_a_hand_written_output_survives_a_refresh_and_a_stale_one_does_not() -> None:
    printed = Step("ls", "a\nb\n")
    assert refreshed(Step("ls", "a\n...\n"), printed).printed == "a\n...\n"
    assert refreshed(Step("ls", "c\n"), printed) == printed


def test_a_stale_output_and_a_failing_assertion_are_seen(tmp_path: Path) -> None:
    stale = "```console\n$ python -c 'print(1)'\n2\n```\n"
    assert "--- printed\n1\n" in rerun(stale, README, tmp_path, refresh=False)[1]
    assert rerun(stale, README, tmp_path, refresh=True) == (stale.replace("\n2\n", "\n1\n"), "")
    assert rerun(stale.replace("console", "console norun"), README, tmp_path, refresh=False)[1] == ""
    by_hand = stale.replace("2\n", "...\n2\n")
    renewed, wrong = rerun(by_hand, README, tmp_path, refresh=True)
    assert renewed == by_hand
    assert "--- printed\n1\n" in wrong
    with pytest.raises(AssertionError):
        rerun("```python\nx = 1\n```\n```python\nassert x == 2\n```\n", README, tmp_path, refresh=False)


# -- pages as texts


@pytest.mark.parametrize("page", LINKED, ids=page_id)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    assert dead_links(page.read_text(), page) == []


def dead_links(text: str, page: Path) -> list[str]:
    dead = []
    for link in pages.links(text):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = page.parent / path if path else page
        reached = text if target == page else target.read_text() if target.suffix == ".md" else ""
        if not target.exists() or (anchor and anchor not in pages.anchors(reached)):
            dead.append(link)
    return dead


def test_a_dead_link_is_seen() -> None:
    text = "# A\n[a](#a) [b](#b) [c](docs/rules.md) [d](docs/rules.md#no-such) [e](docs/no.png)"
    assert dead_links(text, README) == ["#b", "docs/rules.md#no-such", "docs/no.png"]


def test_readme_is_short_and_links_to_every_page_and_the_pages_are_few() -> None:
    assert len(README.read_text().splitlines()) <= 200
    assert {page_id(page) for page in PAGES[1:]} <= {
        link.partition("#")[0] for link in pages.links(README.read_text())
    }
    assert len(PAGES[1:]) <= 12


def test_every_page_begins_with_a_sentence_that_tells_what_it_is_for() -> None:
    for page in PAGES:
        heading, sentence = page.read_text().split("\n\n")[:2]
        assert re.fullmatch(r"# .+", heading), page
        assert re.match(r"This page|wnconvert", sentence), page
        assert sentence.endswith("."), page


def test_no_page_and_no_message_installs_a_release_that_there_is_not() -> None:
    for page in (*LINKED, *(ROOT / "wnconvert").rglob("*.py")):
        for match in re.finditer(r"pip install[^\n`]*", page.read_text()):
            assert not re.search(r"\bwnconvert\b", match[0]), f"{page}: {match[0]}"


# -- the JSON


def _json(*arguments: str | Path) -> Any:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        cli([str(argument) for argument in arguments], standalone_mode=False)
    return json.loads(printed.getvalue())


def _hold(found: list[Any], *headings: str) -> None:
    """The documented paths are exactly those of real outputs, and so are the types."""
    types: dict[str, set[str]] = {}
    for heading in headings:
        types |= pages.documented(JSON_PAGE.read_text(), heading)
    seen: dict[str, set[str]] = {}
    for value in found:
        for path, kind in pages.observed(value, types):
            seen.setdefault(path, set()).add(kind)
    listed = {path: kinds for path, kinds in types.items() if not path.endswith("[]")}
    shown = {path: kinds for path, kinds in seen.items() if not path.endswith("[]")}
    assert (listed.keys() - shown, shown.keys() - listed) == (set(), set()), (
        "only on the page, only in outputs"
    )
    wrong = {
        path: kinds - types.get(path, set()) for path, kinds in seen.items() if kinds - types.get(path, set())
    }
    assert not wrong, "types that the page does not name"


def _normed(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """A checkpoint with two batch norms, one of which stands behind no layer, and what builds its model."""
    (folder / "normed.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    kinds = nn.BatchNorm1d(2), nn.ReLU(), nn.BatchNorm1d(2, affine=False)\n"
        "    return nn.Sequential(nn.Conv1d(3, 2, 5), *kinds).eval()\n"
    )
    net = folder / "normed.pt"
    torch.save(runpy.run_path(str(folder / "normed.py"))["build"]().state_dict(), net)
    return net, (f"{folder / 'normed.py'}:build", "--input", "input=float32[1,3,T]")


def test_the_json_of_conversions_is_as_documented(tmp_path: Path) -> None:
    fixtures = sandbox(tmp_path)
    plans = [
        _json("fold", fixtures / "lightning.ckpt", "--json", "--dry-run"),
        _json("fold", fixtures / "sharded", "--json", "--dry-run"),
        _json("fold", fixtures / "gan.pt", "--only", "generator", "--json", "--dry-run"),
        _json("fold", fixtures / "codec_bf16.safetensors", "--json", "--dry-run"),
        _json("migrate", fixtures / "vits.pth", "--json", "--dry-run"),
        _json("split", fixtures / "plain.pt", "--layers", "conv.*", "--dim", "none", "--json", "--dry-run"),
    ]
    net, build = _normed(tmp_path)
    named = "--norm", "by-names", "--eps", "1e-5"
    plans.append(_json("fold", net, *named, "--json", "--dry-run"))
    waves = waving(tmp_path / "waves.onnx")
    plans.append(_json("fold", waves, "--constants", "--json", "--dry-run"))
    _hold(plans, "Of fold, split and migrate")
    results = [
        _json("fold", fixtures / "lightning.ckpt", "--json"),
        _json("fold", fixtures / "sharded", "--json", "--verify"),
        _json("fold", fixtures / "gan.pt", "--only", "generator", "--json"),
        _json("fold", fixtures / "tcn.onnx", "--json"),
        _json("fold", waves, "--constants", "--json"),
        _json("migrate", fixtures / "g_02500000", "--json"),
        _json("fold", net, *named, "--model", *build, "--json"),
    ]
    _hold(results, "Of fold, split and migrate", "When it is done")


def test_the_json_of_many_files_is_as_documented(tmp_path: Path) -> None:
    fixtures = sandbox(tmp_path)
    names = ("gan.pt", "plain.pt", "zero_row.safetensors")
    asked = ("--jobs", "1", "--keep-going", "--report", tmp_path / "r.jsonl", "--json")
    found = json.loads(run_here("fold", *(fixtures / name for name in names), *asked).stdout)
    _hold([found], "Of many files")
    told = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert {*told[0]} - {*found["files"][0]} == {"options"}


def test_the_json_of_inspections_is_as_documented(tmp_path: Path) -> None:
    fixtures = sandbox(tmp_path)
    names = [
        "codec_bf16.safetensors",
        "do_02500000",
        "lightning.ckpt",
        "sharded",
        "tcn.onnx",
        "zero_row.safetensors",
    ]
    found = [
        _json("inspect", fixtures / name, "--format", "json", *more)
        for name in names
        for more in ([], ["--full"], ["--tensors", "--metadata"])
    ]
    norm = tmp_path / "norm.safetensors"
    save_file({"running_mean": np.zeros(2, np.float32)}, norm)
    found.append(_json("inspect", norm, "--format", "json"))
    normed, _ = _normed(tmp_path)
    found.append(_json("inspect", normed, "--full", "--json"))
    waves = waving(tmp_path / "waves.onnx")
    found.append(_json("inspect", waves, "--json"))
    _hold(found, "Of inspect")
    both = (*(fixtures / name for name in (*names[:2], names[-1])), norm, normed, waves)
    several = _json("inspect", *both, "--full", "--tensors", "--metadata", "--json")
    assert sorted(several) == ["files", "schema"]
    _hold(several["files"], "Of inspect")


def test_the_json_of_comparisons_is_as_documented(tmp_path: Path) -> None:
    fixtures = sandbox(tmp_path)
    steps = [fixtures / f"step_{count}000.safetensors" for count in (1, 2)]
    pairs = [steps, [fixtures / "gan.pt"] * 2, [steps[0], fixtures / "step_3000.safetensors"]]
    found = [_json("compare", *pair, "--json", *more) for pair in pairs for more in ([], ["--rtol", "0.01"])]
    _hold(found, "Of compare")


def test_the_json_of_two_onnx_models_is_as_documented(tmp_path: Path) -> None:
    a, b = two_layers(tmp_path / "a.onnx"), two_layers(tmp_path / "b.onnx", "float16", scale=1.01)
    c = changed(a, tmp_path / "c.onnx", renamed({"w1": "onnx::1"}))
    found = [_json("compare", *pair, "--json") for pair in ((a, b), (a, c))]
    found.append(_json("compare", a, c, "--samples", "0", "--json"))
    assert [item["equal"] for item in found] == [False, True, True]
    _hold([item.pop("weights") for item in (found[0], found[1])], "Of compare")
    exported = pages.documented(JSON_PAGE.read_text(), "Of export and check")
    assert set(found[0].pop("proof")) <= set(exported)
    assert set(found[1].pop("proof")) <= set(exported)
    for item in found:
        item.setdefault("proof", {})
        item.setdefault("weights", {})
    found[-1]["weights"] = {}
    _hold(found, "Of two ONNX models")


def test_the_json_of_two_folders_is_as_documented(tmp_path: Path) -> None:
    fixtures = sandbox(tmp_path)
    for side in "ab":
        (tmp_path / side).mkdir()
        shutil.copy(fixtures / "gan.pt", tmp_path / side / "gan.pt")
        shutil.copy(fixtures / "gan.pt", tmp_path / side / f"{side}.pt")
        (tmp_path / side / "cut.pt").write_bytes(b"PK\x03\x04")
    found = _json("compare", tmp_path / "a", tmp_path / "b", "--json")
    whole = [item.pop("comparison") for item in found["files"]]
    for item, comparison in zip(found["files"], whole, strict=True):
        item["comparison"] = comparison and {}
    _hold([found], "Of two folders")


def test_the_json_of_env_is_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WNCONVERT_FOLD_THREAD", "2")
    monkeypatch.setenv("WNCONVERT_FOLD_THREADS", "2")
    found = _json("env", "--json")
    assert found["unknown_variables"] == ["WNCONVERT_FOLD_THREAD"]
    _hold([found], "Of env")


def test_the_json_of_an_error_is_as_documented(tmp_path: Path) -> None:
    said = run_here("fold", tmp_path / "no.pt", "--json")
    assert said.returncode == 2
    _hold([json.loads(said.stdout)], "Of an error")


def test_the_json_of_loads_is_as_documented() -> None:
    misfit = Misfit("a", (1,), (2,))
    report = LoadReport("folder", "transformers", "5", "Model", 3, ("b",), ("c",), (misfit,), ("a note",))
    _hold([report.to_dict()], "Of loads")


def test_the_json_of_modernize_is_as_documented(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from torch.nn.utils import weight_norm as wn\nsd['weight_g']\n")
    (tmp_path / "b.py").write_text("weight_norm(\n")
    cell = {"cell_type": "code", "source": "f'{name}.weight_g'", "outputs": [], "metadata": {}}
    (tmp_path / "c.ipynb").write_text(json.dumps({"cells": [cell]}))
    report = modernize_code(tmp_path)
    proven = replace(report, proof=CodeProof("models:build", (CodeCheck("outputs", "they differ"),)))
    _hold([report.to_dict(), proven.to_dict()], "Of modernize")


def test_the_json_of_exports_and_checks_is_as_documented(tmp_path: Path) -> None:
    (tmp_path / "conv.py").write_text(
        "from torch import nn\n"
        "from torch.nn.utils.parametrizations import weight_norm\n"
        "def build():\n"
        "    return weight_norm(nn.Conv1d(3, 2, 5))\n"
    )
    asked = [f"{tmp_path / 'conv.py'}:build", "--input", "input=float32[1,3,T]", "--json"]
    out = tmp_path / "conv.onnx"
    report = _json("export", *asked, "-o", out, "--exporter", "torchscript")
    # Its weights are random, and so other ones now: they differ.
    found = [report, _json("check", out, *asked)]
    assert [item["equal"] for item in found] == [True, False]
    fixed = reshaping(tmp_path / "fixed.onnx", -1, 72, 2)
    found.append(
        _json("check", fixed, "tests.helpers.export_models:Squared", "--input", "x=float32[1,T,2]", "--json")
    )
    waves, squared = waving(tmp_path / "waves.onnx"), "tests.helpers.export_models:Squared"
    found.append(_json("check", waves, squared, "--input", "x=float32[B,4]", "--json"))
    shaped = (
        "tests.helpers.export_models:Shaped",
        "--input",
        "x=float32[B,4]",
        "-o",
        tmp_path / "shaped.onnx",
    )
    found.append(_json("export", *shaped, "--exporter", "torchscript", "--constants", "--json"))
    net, asked_of_net = _normed(tmp_path)
    recipe = "--recipe", tmp_path / "net.toml"
    _json("recipe", *asked_of_net, "-o", recipe[1], "--json")
    _json("fold", net, *recipe, "--json")
    found.append(_json("check", tmp_path / "normed.folded.pt", *asked_of_net, *recipe, "--json"))
    assert [layer["name"] for layer in found[-1]["layers"]] == ["0.weight"]
    _hold(found, "Of export and check")


def test_the_json_of_a_list_of_inputs_is_as_documented(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["VitsModel"]}')
    found = [_json("export", model, "--list-inputs", "--json") for model in (tmp_path, "torch.nn:Linear")]
    settings = [item.pop("settings") for item in found]
    assert settings == [{"noise_scale": 0.0, "noise_scale_duration": 0.0}, {}]
    _hold([{**item, "settings": {}} for item in found], "Of the list of inputs")


def test_the_json_of_a_recipe_is_as_documented(tmp_path: Path) -> None:
    _, asked = _normed(tmp_path)
    found = _json("recipe", *asked, "-o", tmp_path / "net.toml", "--json")
    assert [left["name"] for left in found["left"]] == ["3"]
    _hold([found], "Of recipe")


def test_a_key_that_is_not_documented_and_one_that_does_not_exist_are_seen() -> None:
    heading = "Of compare"
    types = pages.documented(JSON_PAGE.read_text(), heading)
    assert types["equal"] == {"bool"}
    with pytest.raises(AssertionError):
        _hold([{"schema": 1}], heading)
