"""Names that would run something are not handed on in a .pt; what merely looks like them is."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wnconvert.errors import OutputError
from wnconvert.formats.pickle.reader import load
from wnconvert.formats.pickle.values import Global, Object
from wnconvert.formats.torch.names import dangerous_names, foreign_names
from wnconvert.verbs.conversion.files import fold_file

NAMES = [
    "os.system",
    "posix.system",
    "nt.system",
    "subprocess.Popen",
    "sys.exit",
    "shutil.rmtree",
    "socket.socket",
    "runpy.run_path",
    "importlib.import_module",
    "builtins.eval",
    "builtins.exec",
    "builtins.compile",
    "builtins.__import__",
    "__builtin__.eval",
    "__builtin__.exec",
    "os.path.join",
    "importlib.util.find_spec",
]
INNOCENT = [
    "ossature.System",
    "torch.optim.adam.Adam",
    "mine.os_config",
    "mine.eval",
    "re.compile",
    "sysconfig.Config",
    "builtins.set",
    "builtins.print",
    "mine.Model.eval",
    "mine.compile",
    "socketserver.X",
    "collections.Counter",
    "argparse.Namespace",
    "mine.__main__",
    "__main__.HParams",
    "pathlib.PosixPath",
]


def named(dotted: str) -> Global:
    module, _, name = dotted.rpartition(".")
    return Global(module, name)


def getattr_of(target: object, *rest: object) -> Object:
    return Object("REDUCE", Global("builtins", "getattr"), (target, *rest))


@pytest.mark.parametrize("dotted", NAMES)
def test_what_reaches_the_system_or_the_interpreter_is_dangerous(dotted: str) -> None:
    assert dangerous_names([{}, (named(dotted),)][1:]) == [dotted]


@pytest.mark.parametrize("dotted", INNOCENT)
def test_what_merely_looks_like_it_is_not(dotted: str) -> None:
    assert dangerous_names([named(dotted)]) == []


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.serialization", "os.system"),
        ("torch.serialization", "sys"),
        ("torch", "nn.__builtins__"),
        ("mine", "Model.__init__.__globals__"),
        ("torch", "__builtins__"),
        ("builtins", "eval.x"),
        ("torch", "builtins.eval"),
    ],
)
def test_a_dotted_name_is_a_chain_of_attributes(module: str, name: str) -> None:
    assert dangerous_names([Global(module, name)]) == [f"{module}.{name}"]


@pytest.mark.parametrize("name", ["Outer.Inner", "Model.forward", "Model.eval", "Model.__new__", "A.B.C"])
def test_a_nested_class_or_method_is_plain(name: str) -> None:
    assert dangerous_names([Global("mine", name)]) == []


@pytest.mark.parametrize("name", ["Inner", "forward", "eval", "_private", "__new__"])
def test_getattr_with_a_plain_constant_name_is_data(name: str) -> None:
    assert dangerous_names([getattr_of(Global("mine", "Outer"), name)]) == []
    assert dangerous_names([getattr_of(Object("NEWOBJ", Global("mine", "Outer"), ()), name)]) == []


@pytest.mark.parametrize(
    "arguments",
    [
        (Global("mine", "Outer"), "__globals__"),
        (Global("mine", "Outer"), "__class__"),
        (Global("torch", "serialization"), "os"),
        (Global("torch", "serialization"), "builtins"),
        (Global("mine", "Outer"), Object("REDUCE", Global("mine", "name"), ())),
        (Global("mine", "Outer"), "x", None),
        (Global("mine", "Outer"),),
    ],
)
def test_getattr_with_any_other_name_is_dangerous(arguments: tuple[object, ...]) -> None:
    assert dangerous_names([getattr_of(*arguments)]) == ["builtins.getattr"]


def test_getattr_handed_to_another_callee_is_dangerous() -> None:
    getter = Global("builtins", "getattr")
    plain = Object("REDUCE", getter, (Global("mine", "Outer"), "Inner"))
    assert dangerous_names([plain]) == []
    for other in (Object("REDUCE", Global("functools", "partial"), (getter,)), [getter]):
        assert dangerous_names([plain, other]) == ["builtins.getattr"]


def test_names_are_found_wherever_they_hang() -> None:
    system = Global("os", "system")
    for root in (
        Object("REDUCE", system, ()),
        Object("NEWOBJ", Global("a", "B"), (system,)),
        Object("NEWOBJ_EX", Global("a", "B"), (), system),
        Object("REDUCE", Global("a", "B"), (), changes=[("build", (None, system))]),
        Object("REDUCE", Global("a", "B"), (), changes=[("set", [(system, 1)])]),
        Object("REDUCE", Global("a", "B"), (), changes=[("append", [system])]),
    ):
        assert dangerous_names(root) == ["os.system"]


def test_python_2_spells_builtins_differently() -> None:
    assert dangerous_names(load(b"c__builtin__\neval\n.").root) == ["__builtin__.eval"]


def test_what_torch_reads_without_trust_is_not_foreign() -> None:
    buffer = io.BytesIO()
    tree = {
        "sd": collections.OrderedDict(
            a=torch.nn.Parameter(torch.zeros(2)), b=torch.zeros(2, dtype=torch.uint16)
        ),
        "size": torch.Size([1]),
        "dtype": torch.bfloat16,
        "set": {1},
    }
    torch.save(tree, buffer)
    with zipfile.ZipFile(buffer) as archive:
        pickled = archive.read("archive/data.pkl")
    assert foreign_names(load(pickled).root) == []
    assert foreign_names([Global("mine", "HParams"), Global("torch.optim.adam", "Adam")]) == [
        "mine.HParams",
        "torch.optim.adam.Adam",
    ]


# -- files


class Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return eval, ("1 + 1",)


def save(path: Path, extra: object) -> Path:
    pair = {"a.weight_g": torch.ones(3, 1), "a.weight_v": torch.full((3, 4), 0.5)}
    torch.save({"model": pair, "extra": extra}, path)
    return path


@pytest.mark.parametrize("extra", [Runs(), [{"deep": (Runs(),)}]])
def test_a_file_with_a_dangerous_name_is_written_as_safetensors_alone(extra: object, tmp_path: Path) -> None:
    source = save(tmp_path / "model.pt", extra)
    with pytest.raises(OutputError, match=r"names __builtin__\.eval") as caught:
        fold_file(source)
    assert "safetensors" in caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    fold_file(source, tmp_path / "out.safetensors")
    assert list(load_file(tmp_path / "out.safetensors")) == ["a.weight"]


def test_a_state_dict_alone_leaves_the_dangerous_sibling_behind(tmp_path: Path) -> None:
    source = save(tmp_path / "model.pt", Runs())
    fold_file(source, tmp_path / "out.pt", only="model")
    assert list(torch.load(tmp_path / "out.pt", weights_only=True)["model"]) == ["a.weight"]


def test_a_method_called_eval_goes_along(tmp_path: Path) -> None:
    for protocol in (2, 4):
        assert b"getattr" in pickle.dumps(torch.nn.ReLU().eval, protocol)
    source = save(tmp_path / "model.pt", torch.nn.ReLU().eval)
    fold_file(source, tmp_path / "out.pt")
    assert callable(torch.load(tmp_path / "out.pt", weights_only=False)["extra"])
