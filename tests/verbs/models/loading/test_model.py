"""The model to export: factories of the user's, files that hold a model, and what is refused."""

from __future__ import annotations

import io
import json
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import export_models
from tests.helpers.export_models import Vocoder, vocoder
from wnconvert.errors import ArgumentError, InputError
from wnconvert.verbs.models.loading.model import build, kwargs_of

MODELS = "tests.helpers.export_models"


@pytest.fixture(autouse=True)
def import_paths(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if not hasattr(sys.modules[name], "__path__") and "." not in name:
            del sys.modules[name]


def refused(*arguments: Any, **options: Any) -> ArgumentError | InputError:
    with pytest.raises((ArgumentError, InputError)) as caught:
        build(*arguments, **options)
    assert caught.value.exit_code == 2
    assert isinstance(caught.value, (ArgumentError, InputError))
    return caught.value


# -- factories


def test_a_factory_may_be_a_function_a_class_or_a_module_made_already() -> None:
    assert isinstance(build(f"{MODELS}:vocoder"), Vocoder)
    assert isinstance(build(f"{MODELS}:Vocoder"), Vocoder)
    assert build(f"{MODELS}:MADE.conv_pre") is export_models.MADE.conv_pre
    assert build(f"{MODELS}:MADE") is export_models.MADE


def test_kwargs_reach_the_factory() -> None:
    built = build(f"{MODELS}:Vocoder", kwargs={"form": "legacy", "channels": 3})
    assert {"conv_pre.weight_g", "up.weight_v"} <= set(built.state_dict())
    assert built.state_dict()["conv_pre.bias"].shape == (3,)


def test_a_file_is_imported_with_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "layers_beside.py").write_text("from torch import nn\n\nWIDTH = 3\n")
    (tmp_path / "my_model.py").write_text(
        "import dataclasses\nfrom layers_beside import WIDTH, nn\n\n"
        "@dataclasses.dataclass\nclass Config:\n    width: int = WIDTH\n\n"
        "def make(more=0):\n    return nn.Linear(Config().width + more, 2)\n"
    )
    built = build(f"{tmp_path}/my_model.py:make", kwargs={"more": 4})
    assert isinstance(built, nn.Linear)
    assert built.in_features == 7


def test_a_module_in_the_folder_that_one_is_in_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here_it_is.py").write_text("from torch import nn\n\ndef make():\n    return nn.ReLU()\n")
    monkeypatch.chdir(tmp_path)
    assert isinstance(build("here_it_is:make"), nn.ReLU)


@pytest.mark.parametrize(
    ("model", "what", "fix"),
    [
        ("no_such_package.models:make", "there is no module no_such_package", "path/to/file.py:factory"),
        ("tests.no_such:make", "there is no module tests.no_such", "install it"),
        (f"{MODELS}:vocodr", "it has no vocodr", "did you mean vocoder"),
        (f"{MODELS}:zzz", "it has no zzz", "Vocoder"),
        (f"{MODELS}:MADE.conv_pos", "it has no conv_pos", "did you mean conv_pre"),
        (
            f"{MODELS}:broken",
            "RuntimeError: no config.json beside it (export_models.py, line",
            "mend the code",
        ),
        (f"{MODELS}:Noisy.forward", "calling it fails: TypeError", "--kwargs"),
        (f"{MODELS}:no_module", "it returns a", "returns the module to export"),
        (f"{MODELS}:NUMBER", "it is a int, which cannot be called to make a model", "MODEL is"),
        ("nowhere.py:make", "there is no such file", "MODEL is"),
        ("nowhere.pt", "there is no such file", "MODEL is"),
        (MODELS, "there is no such file", f"{MODELS}:NAME"),
        (f"{MODELS}:", f"{MODELS} does not name a factory", f"{MODELS}:NAME"),
        ("voc.py:", "voc.py does not name a factory", "voc.py:NAME"),
        ("tests/helpers/export_models.py", "does not name a factory", "tests/helpers/export_models.py:NAME"),
    ],
)
def test_a_factory_that_is_not_there_or_fails_is_told_with_what_to_do(
    model: str, what: str, fix: str
) -> None:
    error = refused(model)
    assert what in str(error)
    assert fix in error.fix


def test_kwargs_that_a_factory_does_not_take_are_told() -> None:
    assert "unexpected keyword argument 'depth'" in str(refused(f"{MODELS}:Vocoder", kwargs={"depth": 3}))
    assert "leave --kwargs out" in str(refused(f"{MODELS}:MADE", kwargs={"depth": 3}))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("import not_installed_at_all\n", "it imports not_installed_at_all, which is not installed"),
        ("def make(:\n", "importing it fails: SyntaxError"),
        ("import sys\nsys.exit(3)\n", "importing it fails: SystemExit"),
        (
            "class Odd(BaseException): pass\nraise Odd('so')\n",
            "importing it fails: Odd: so (spoiled.py, line 2)",
        ),
        ("raise ValueError\n", "importing it fails: ValueError (spoiled.py, line 1)"),
        ("x = 1 / 0\n", "importing it fails: ZeroDivisionError: division by zero (spoiled.py, line 1)"),
    ],
)
def test_a_file_that_cannot_be_imported_is_told(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "spoiled.py").write_text(content)
    error = refused(f"{tmp_path}/spoiled.py:make")
    assert says in str(error)
    assert "spoiled.py" in error.where


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        ("Odd('so')", "calling it fails: Odd: so (voc_fails.py, line 3)"),
        ("Odd", "calling it fails: Odd (voc_fails.py, line 3)"),
        ("ValueError", "calling it fails: ValueError (voc_fails.py, line 3)"),
        ("ValueError(' ')", "calling it fails: ValueError (voc_fails.py, line 3)"),
        ("SystemExit(1)", "calling it fails: SystemExit: 1 (voc_fails.py, line 3)"),
    ],
)
def test_whatever_a_factory_raises_is_told(tmp_path: Path, raised: str, says: str) -> None:
    (tmp_path / "voc_fails.py").write_text(
        f"class Odd(BaseException): pass\ndef make():\n    raise {raised}\n"
    )
    assert refused(f"{tmp_path}/voc_fails.py:make").heading == says


@pytest.mark.parametrize("stop", [KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("name", ["make", "late"])
def test_what_stops_a_program_is_no_failure_of_a_factory(
    tmp_path: Path, stop: type[BaseException], name: str
) -> None:
    late = "" if name == "late" else f"raise {stop.__name__}"
    (tmp_path / "voc_stops.py").write_text(f"{late}\ndef late():\n    raise {stop.__name__}\n")
    with pytest.raises(stop):
        build(f"{tmp_path}/voc_stops.py:{name}")


def test_kwargs_come_from_json_or_a_file_of_it(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"form": "legacy", "channels": 3}))
    assert kwargs_of(f"@{path}") == kwargs_of(path.read_text()) == {"form": "legacy", "channels": 3}


@pytest.mark.parametrize("text", ["{'a': 1}", "[1]", "3", "", "@no/such.json", "[" * 100_000])
def test_kwargs_that_are_no_json_object_are_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="--kwargs"):
        kwargs_of(text)


# -- files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in every kind of file."""
    folder = tmp_path_factory.mktemp("models")
    model, mel = vocoder("legacy").eval(), torch.randn(1, 4, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, (mel,)).save(folder / "script.pt")  # type: ignore[no-untyped-call]
        length = torch.export.Dim("T", min=2, max=64)
        program = torch.export.export(vocoder(), (mel,), dynamic_shapes=({2: length},))
        torch.export.save(program, folder / "program.pt2")
        torch.save(nn.Sequential(nn.Linear(3, 2)), folder / "whole.pt")
        torch.save({"a": nn.Linear(3, 2), "b": nn.ReLU()}, folder / "several.pt")
        torch.save(model.state_dict(), folder / "weights.pt")
    return folder


def test_a_torchscript_archive_is_a_model(files: Path) -> None:
    assert isinstance(build(str(files / "script.pt")), torch.jit.ScriptModule)


def test_an_exported_program_is_a_model(files: Path) -> None:
    assert isinstance(build(str(files / "program.pt2")), torch.export.ExportedProgram)


def test_a_state_dict_is_no_model(files: Path) -> None:
    error = refused(str(files / "weights.pt"))
    assert "it has weights, but not a model that could be run" in str(error)
    assert f"--weights {files / 'weights.pt'}" in error.fix


def test_a_whole_pickled_module_needs_trust(files: Path) -> None:
    error = refused(str(files / "whole.pt"))
    assert "runs any code that the file names" in str(error)
    assert "--trust" in error.fix
    assert isinstance(build(str(files / "whole.pt"), trust=True), nn.Sequential)


class Unready(nn.Module):
    """It cannot be unpickled, and does not say why."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise ValueError


def test_a_pickled_module_that_fails_without_a_word_is_told(tmp_path: Path) -> None:
    torch.save(Unready(), tmp_path / "unready.pt")
    error = refused(str(tmp_path / "unready.pt"), trust=True)
    assert error.heading == "torch cannot load it: ValueError"


def test_of_several_pickled_modules_one_is_named(files: Path) -> None:
    error = refused(str(files / "several.pt"), trust=True)
    assert "2 modules are in it: a, b" in str(error)
    assert error.fix == "choose one, such as --only a"
    assert isinstance(build(str(files / "several.pt"), trust=True, only="a"), nn.Linear)
    assert "no module at 'c'" in str(refused(str(files / "several.pt"), trust=True, only="c"))


class Runs:
    """A pickle that runs something when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_no_code_in_an_exported_program_is_run_without_trust(files: Path, tmp_path: Path) -> None:
    buffer, ran = io.BytesIO(), tmp_path / "it-ran"
    torch.save(Runs(ran), buffer)
    bad = tmp_path / "bad.pt2"
    with zipfile.ZipFile(files / "program.pt2") as source, zipfile.ZipFile(bad, "w") as target:
        names = source.namelist()
        assert any("sample_inputs" in name for name in names)
        for name in names:
            target.writestr(name, buffer.getvalue() if "sample_inputs" in name else source.read(name))
    error = refused(str(bad))
    assert "may run code" in str(error)
    assert "--trust" in error.fix
    assert not ran.exists()


def test_compiled_code_in_an_exported_program_is_refused(files: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt2"
    bad.write_bytes((files / "program.pt2").read_bytes())
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr("program/data/aotinductor/model/model.so", b"\x7fELF")
    assert "compiled code" in str(refused(str(bad)))


@pytest.mark.parametrize("trust", [False, True])
def test_code_in_an_exported_program_is_run_with_trust_alone(
    files: Path, tmp_path: Path, trust: bool
) -> None:
    ran, bad = tmp_path / "it-ran", tmp_path / "bad.pt2"
    with zipfile.ZipFile(files / "program.pt2") as source, zipfile.ZipFile(bad, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("models/model.json"):
                data = json.loads(content)
                data["guards_code"].append(f"__import__('pathlib').Path({str(ran)!r}).touch() is None")
                content = json.dumps(data).encode()
            target.writestr(name, content)
    if trust:
        program = build(str(bad), trust=True)
        assert isinstance(program, torch.export.ExportedProgram)
        program.module()(torch.randn(1, 4, 9))
    else:
        assert "a guard that is not a comparison of sizes" in str(refused(str(bad)))
    assert ran.exists() == trust


def test_kwargs_are_not_for_files(files: Path) -> None:
    assert "MODEL is a file" in str(refused(str(files / "script.pt"), kwargs={"a": 1}))


@pytest.mark.parametrize(("name", "keep"), [("script.pt", 3000), ("program.pt2", 900)])
def test_a_file_that_is_cut_short_is_told(files: Path, tmp_path: Path, name: str, keep: int) -> None:
    short = tmp_path / name
    short.write_bytes((files / name).read_bytes()[:keep])
    assert str(refused(str(short))).startswith(str(short))
