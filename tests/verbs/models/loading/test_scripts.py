"""TorchScript archives: those of models are loaded, and no code in one writes or sends without --trust."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.export_models import vocoder
from tests.helpers.runner import Runner
from wnconvert.errors import InputError
from wnconvert.verbs.models.loading.script_texts import fault_of
from wnconvert.verbs.models.loading.scripts import load_script


class Several(nn.Module):
    """What the interpreter has beside tensors: texts, dicts, optional values, loops, errors, forks, state."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.ReLU()])
        self.memory = nn.LSTM(4, 4)
        self.words = {'say "save"\n': 1, "größe": 2}
        self.state = torch.zeros(1)

    @torch.jit.export
    def reset_states(self, size: int = 1) -> None:
        self.state = torch.zeros(size)

    def forward(self, x: Tensor, name: str = "a", other: Tensor | None = None) -> dict[str, Tensor]:
        if x.dim() != 3:
            raise ValueError(f"please save {x.dim()} axes: not a 'batch'")
        for index, layer in enumerate(self.layers):
            x = layer(x) if index < 2 and name.upper() in ["A", "B"] else x
        if other is not None:
            x = x + other
        at = 0
        while at < 2:
            at += 1
            x[..., at] = float("inf") if torch.isnan(x).any() else 0.5
        waiting = torch.jit.fork(torch.relu, x)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            x = torch.jit.wait(waiting)  # type: ignore[no-untyped-call]
        print(f"{name} {at}", self.words)
        return {"x": x.to(x.device), "memory": self.memory(x.to(torch.float32))[0]}


class Quantized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def scripted() -> torch.jit.ScriptModule:
    found: torch.jit.ScriptModule = torch.jit.script(Several())
    return found


def traced() -> torch.jit.ScriptModule:
    found: torch.jit.ScriptModule = torch.jit.trace(vocoder("legacy").eval(), (torch.randn(1, 4, 9),))  # type: ignore[no-untyped-call]
    return found


def quantized() -> torch.jit.ScriptModule:
    made = torch.ao.quantization.quantize_dynamic(Quantized().eval(), {nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]
    found: torch.jit.ScriptModule = torch.jit.script(made)
    return found


MODELS: dict[str, Callable[[Path], None]] = {
    "scripted": lambda path: scripted().save(str(path)),
    "traced": lambda path: traced().save(str(path)),
    "frozen": lambda path: torch.jit.freeze(traced()).save(str(path)),
    "of a vocoder": lambda path: torch.jit.script(vocoder().eval()).save(str(path)),
    "quantized": lambda path: quantized().save(str(path)),
    "of mobiles": lambda path: traced()._save_for_lite_interpreter(str(path)),
}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    warnings.simplefilter("ignore")  # TorchScript is deprecated


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_loaded_without_trust(model: str, tmp_path: Path) -> None:
    MODELS[model](tmp_path / "model.pt")
    assert isinstance(load_script(tmp_path / "model.pt", trust=False), torch.jit.ScriptModule)


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Stateful(nn.Module):
    @torch.jit.export
    def __getstate__(self) -> int:
        return 1

    @torch.jit.export
    def __setstate__(self, state: int) -> None:
        self.training = state > 1

    def forward(self, x: Tensor) -> Tensor:
        return x


def archive(
    path: Path, made: type[nn.Module], *replaced: tuple[str, str], extra: dict[str, bytes] | None = None
) -> Path:
    """The archive of a module, some texts of its code replaced."""
    whole: torch.jit.ScriptModule = torch.jit.script(made())
    whole.save(str(path))
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, record in records.items():
            content = record
            for before, after in replaced if name.endswith(".py") else ():
                assert before.encode() in content
                content = content.replace(before.encode(), after.encode())
            new.writestr(name, content)
        for name, content in (extra or {}).items():
            new.writestr(name, content, zipfile.ZIP_DEFLATED)
    return path


def refused(path: Path) -> str:
    with pytest.raises(InputError, match="a TorchScript archive with ") as caught:
        load_script(path, trust=False)
    assert caught.value.where == str(path)
    assert caught.value.fix == "give --trust, if you know who made it"
    return caught.value.what.removeprefix("a TorchScript archive with ")


def test_code_that_writes_a_file_as_it_is_loaded_needs_trust(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    call = f'self.training = torch.gt(torch.numel(torch.from_file("{trap}", True, 4)), 1)'
    path = archive(
        tmp_path / "model.pt", Stateful, ("    self.training = ", f"    {call}\n    self.training = ")
    )
    assert refused(path).startswith("code that calls aten::from_file (line ")
    assert refused(path).endswith("), in model/code/__torch__/tests/verbs/models/loading/test_scripts.py")
    assert not trap.exists()
    load_script(path, trust=True)
    assert trap.exists()  # so it is refused with reason


def test_code_that_writes_a_file_as_it_is_called_needs_trust(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    path = archive(
        tmp_path / "model.pt", Plain, ("    return x", f'    torch.save(x, "{trap}")\n    return x')
    )
    assert "calls aten::save" in refused(path)
    load_script(path, trust=True)(torch.ones(1))
    assert trap.exists()


def test_export_and_check_say_what_they_would_run(tmp_path: Path, run: Runner) -> None:
    trap = tmp_path / "trap"
    path = archive(
        tmp_path / "model.pt", Plain, ("    return x", f'    torch.save(x, "{trap}")\n    return x')
    )
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])), tmp_path / "model.onnx")
    for command in (("export", path, "-o", tmp_path / "out.onnx"), ("check", tmp_path / "model.onnx", path)):
        ended = run(*command, "--input", "x=float32[3]")
        assert ended.returncode == 2
        assert (
            f"error: {path}: a TorchScript archive with code that calls aten::save (line 8)" in ended.stderr
        )
        assert ended.stderr.endswith("fix: give --trust, if you know who made it\n")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx", "model.pt"]


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ('torch.save(x, "f")', "calls aten::save"),
        ('ops.aten.save(x, "f")', "calls aten::save"),
        ('x.save("f")', "calls aten::save"),
        ('"f".from_file(True, 4)', "calls aten::from_file"),
        ('(x).from_file("f")', "calls aten::from_file"),
        ('getattr("f", "from_file")(True, 4)', "calls aten::from_file"),
        ('getattr("f", "fr\\157m_file")(True, 4)', "calls aten::from_file"),
        ("getattr(x, name)", "reads attributes by names that it computes"),
        ("f = getattr", "hands on getattr"),
        ('_0 = torch\n_0.save(x, "f")', "hands on torch"),
        ("_0 = ops.aten", "calls aten"),
        ("_0 = ops", "hands on ops"),
        ("_0 = __torch__\n_0.torch.classes.a.B()", "hands on __torch__"),
        ("_0 = __torch__.torch\n_0.classes.a.B()", "makes torch"),
        ("_0 = __torch__.torch.classes\n_0.a.B()", "makes torch.classes"),
        ("_0 = __torch__.torch.classes.quantized", "makes torch.classes.quantized"),
        ("fork(torch.save, x)", "calls aten::save"),
        ("_0 = x.save", "calls aten::save"),
        ('ops.prim.rpc_sync("a", f)', "calls prim::rpc_sync"),
        ("ops.torchaudio.load()", "calls torchaudio::load"),
        ("torch.jit.load()", "calls aten::jit.load"),
        ("torch.no_such_operator(x)", "calls aten::no_such_operator"),
        ("class A(Module):\n  a : Final[int] = torch.save(1)", "calls aten::save"),
        ("def f(x: int=torch.save(1)) -> int:\n  return x", "calls aten::save"),
        (
            "class A(Module):\n  a : __torch__.torch.classes.ffmpeg.Reader",
            "makes torch.classes.ffmpeg.Reader",
        ),
        ("import os", "torch does not write"),
        ("f = lambda: 1", "torch does not write"),
        ("[x for x in y]", "torch does not write"),
    ],
)
def test_a_call_of_more_than_computation_is_found_however_it_is_written(code: str, fault: str) -> None:
    found = fault_of(code.encode())
    assert found.startswith(f"code that {fault} (line ")


@pytest.mark.parametrize(
    "code",
    [
        "x = 'single'",
        'x = """three"""',
        "x = 1\ttab",
        "x = \\\n  1",
        'x = f"{y}"',
        'x = "größe"',
        "größe = 1",
        "x = 1\r",
        'x = "open',
        'x = "a""b"',
        "Python 2 print",
        "(" * 300 + ")" * 300,
    ],
)
def test_text_that_two_parsers_might_read_in_two_ways_is_refused(code: str) -> None:
    assert fault_of(code.encode()) == "code that torch does not write"


@pytest.mark.parametrize(
    "code",
    [
        'ops.prim.RaiseException("please save: \\\'x\\\' \\"y\\" # not from_file", "builtins.ValueError")',
        'x = torch.format("{}\\n\\303\\274", 1)  # type: (int) -> str',
        'y = getattr(self, "0")',
        "y = (self.saved).forward(x, )",
        "_0, _1, = torch.max(x, -1), inf",
        "a = __torch__.torch.classes.quantized.LinearPackedParamsBase",
        "op_version_set = 1",
        "",
    ],
)
def test_what_torch_writes_of_a_model_is_not_refused(code: str) -> None:
    assert fault_of(code.encode()) == ""


def test_code_is_found_wherever_torch_might_look_for_it(tmp_path: Path) -> None:
    code = b'def f(x: Tensor) -> Tensor:\n  torch.save(x, "f")\n  return x\n' + b"# " + b"x" * 3000 + b"\n"
    for name in ("model/code/__torch__/a.py", "MODEL/CODE/__TORCH__/B.PY", "other/code/c.py", "code/d.ts"):
        path = archive(tmp_path / "model.pt", Plain, extra={name: code})
        assert refused(path) == f"code that calls aten::save (line 2), in {name}"
    path = archive(tmp_path / "model.pt", Plain, extra={"model/extra/notes.py": code})
    load_script(path, trust=False)


def test_an_archive_that_torch_would_take_for_another_format_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "model.pt", Plain)
    content = bytearray(path.read_bytes())
    content[4:8] = b"PTMF"
    path.write_bytes(content)
    assert refused(path).startswith("the mark of mobile flatbuffers")


def test_code_that_cannot_be_inflated_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "model.pt", Plain, extra={"model/code/a.py": b"x = 1\n" * 99})
    with zipfile.ZipFile(path) as made:
        at = made.getinfo("model/code/a.py").header_offset + 30 + len("model/code/a.py")
    content = bytearray(path.read_bytes())
    content[at : at + 4] = bytes(4)
    path.write_bytes(content)
    assert "cannot be inflated" in refused(path)


def test_what_the_pickles_of_an_archive_name_is_held_too(tmp_path: Path) -> None:
    for name, content, fault in (
        (
            "other/data.pkl",
            b"c__torch__.torch.classes.dist\nReader\n)\x81.",
            "an object of __torch__.torch.classes.dist.Reader",
        ),
        ("model/x/constants.pkl", b"cos\nsystem\n.", "an object of os.system"),
        (
            "model/bytecode.pkl",
            b"(X\x0a\x00\x00\x00aten::saveX\x00\x00\x00\x00t.",
            "code that calls aten::save",
        ),
        ("model/x/data.pkl", b"no pickle", "a pickle that cannot be read"),
        ("model/model.json", b"{}", "the format of torch before 1.4"),
    ):
        assert refused(archive(tmp_path / "model.pt", Plain, extra={name: content})).startswith(fault)
    path = archive(
        tmp_path / "model.pt", Plain, extra={"model/bytecode.pkl": b"(X\x09\x00\x00\x00aten::addt."}
    )
    load_script(path, trust=False)
