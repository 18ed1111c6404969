"""Exported programs: those that torch writes are loaded, and no code in a file is run without --trust."""

from __future__ import annotations

import io
import json
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from tests.helpers.export_models import vocoder
from tests.helpers.marks import some
from wnconvert.errors import InputError
from wnconvert.verbs.models.loading import programs
from wnconvert.verbs.models.loading.programs import is_exported_program, load_exported_program

PROGRAM = "models/model.json"
SAMPLES = "data/sample_inputs/model.pt"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


class Several(nn.Module):
    """Weights that are tied, a buffer, constants, and sizes that depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 4, 3, padding=1)
        self.second = nn.Conv1d(4, 4, 3, padding=1)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.ones(4, 1))
        self.shift = torch.full((4, 1), 2.0)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, int]:
        mixed = self.second(self.first(x)) * self.scale + self.shift + torch.tensor([1.0])
        return torch.cat([mixed, y[:, :, : x.shape[2]]], 1), x.shape[2] // 2


class Checks(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._check(  # type: ignore[no-untyped-call]
            x.shape[1] % 4 == 0
        )
        torch._check(  # type: ignore[no-untyped-call]
            x.shape[1] > 8
        )
        larger = nn.functional.interpolate(x[None], scale_factor=1.5)[0]
        return larger.reshape(x.shape[0], -1, 4).mean(1)


class Counts(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = x.max().long().item()
        torch._check(  # type: ignore[no-untyped-call]
            count >= 0
        )
        torch._check(  # type: ignore[no-untyped-call]
            count < 100
        )
        return torch.zeros(count)  # type: ignore[arg-type]


class Nested(nn.Module):
    def forward(
        self, batch: dict[str, torch.Tensor], *more: torch.Tensor, gain: Any = None, mode: str = ""
    ) -> dict[str, Any]:
        return {"out": batch["mel.0"] * gain + more[0], "rest": [batch["f0"], len(mode)]}


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            loud = (x > 0) & (x.sum() > 1)
        return torch.where(loud, torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,)), x)


def exported(model: nn.Module, *inputs: Any, **options: Any) -> ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model.eval(), inputs, **options)


def saved(program: ExportedProgram, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, path)
    return path


def several(**shapes: Any) -> ExportedProgram:
    x, y = torch.randn(2, 4, 16), torch.randn(2, 4, 32)
    return exported(Several(), x, y, **({"dynamic_shapes": shapes} if shapes else {}))


T, B = Dim("T", min=2, max=512), Dim("B", max=16)
MEL = torch.randn(1, 4, 9)
PROGRAMS: dict[str, Callable[[], ExportedProgram]] = {
    "static": several,
    "one letter": lambda: several(x={0: B}, y={0: B}),
    "two letters": lambda: several(x={0: B, 2: T}, y={0: B, 2: 2 * T}),
    "a derived letter": lambda: several(x={2: T}, y={2: 2 * T}),
    "found letters": lambda: several(x={0: Dim.AUTO, 2: Dim.AUTO}, y={0: Dim.AUTO, 2: Dim.AUTO}),
    "checks": lambda: exported(Checks(), torch.randn(2, 16), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},)),
    "counts": lambda: exported(Counts(), torch.rand(3) * 5),
    "nested inputs": lambda: exported(
        Nested(), {"mel.0": MEL, "f0": MEL}, MEL, kwargs={"gain": torch.ones(1), "mode": "a-b"}
    ),
    "branches": lambda: exported(Branches(), MEL),
    "strict": lambda: exported(nn.Linear(9, 2), MEL, strict=True),
    "legacy weight norm": lambda: exported(vocoder("legacy"), MEL, dynamic_shapes=({2: T},)),
    "weight norm": lambda: exported(vocoder(), MEL, dynamic_shapes=({2: T},)),
    "decomposed": lambda: exported(vocoder(), MEL).run_decompositions(),
    "an LSTM": lambda: exported(nn.LSTM(4, 5, bidirectional=True), torch.randn(7, 2, 4)),
    "an attention": lambda: exported(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 7, 8)
    ),
}


@some("kind", {kind: kind for kind in PROGRAMS}, [*PROGRAMS][::3])
def test_a_program_that_torch_writes_is_loaded_and_gives_what_it_gave(kind: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = PROGRAMS[kind]()
    path = saved(program, tmp_path / "real.pt2")
    assert is_exported_program(path)
    found = load_exported_program(path, trust=False)
    assert program.example_inputs is not None
    inputs, kwargs = program.example_inputs
    torch.testing.assert_close(found.module()(*inputs, **kwargs), program.module()(*inputs, **kwargs))


# -- attacks


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with weights, constants, guards and sizes that are expressions."""
    program = PROGRAMS["a derived letter"]()
    assert program._guards_code
    return saved(program, tmp_path_factory.mktemp("real") / "real.pt2")


Edit = Callable[[dict[str, bytes]], None]


def rewritten(real: Path, path: Path, edit: Edit, compression: int = zipfile.ZIP_STORED) -> Path:
    """The program with other records."""
    with zipfile.ZipFile(real) as source:
        records = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
    edit(records)
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, content in records.items():
            target.writestr(f"real/{name}", content)
    return path


def in_json(name: str, edit: Callable[[Any], None]) -> Edit:
    def whole(records: dict[str, bytes]) -> None:
        data = json.loads(records[name])
        edit(data)
        records[name] = json.dumps(data).encode()

    return whole


def every(data: Any, key: str, change: Callable[[Any], Any]) -> None:
    """Change what stands under a key, wherever it is."""
    for each in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        every(each, key, change)
    if isinstance(data, dict) and key in data:
        data[key] = change(data[key])


def signature(data: Any) -> Any:
    return data["graph_module"]["module_call_graph"][0]["signature"]


def renamed(name: str) -> Callable[[Any], None]:
    """The input ``y``, by another name."""

    def edit(data: Any) -> None:
        every(data, "name", lambda old: name if old == "y" else old)
        values = data["graph_module"]["graph"]["tensor_values"]
        values[name] = values.pop("y")

    return edit


def tree(kind: str, context: str) -> str:
    leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
    return json.dumps([1, {"type": kind, "context": context, "children_spec": [leaf, leaf]}])


class Runs:
    """A pickle that runs something when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def as_torch(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def attacks(ran: Path) -> dict[str, tuple[Edit, str]]:
    """What runs code when a program is loaded and its module built, and the words for it."""
    code = f"open({str(ran)!r}, 'w')"
    hidden = f"Symbol.as_dummy.__globals__['__builtins__']['open']({str(ran)!r}, 'w')"
    marker = f"import_me_{ran.parent.name.replace('-', '_')}"
    (ran.parent / f"{marker}.py").write_text(f"{code}\nclass Kind: A = 1\n")
    first_weight = "data/weights/weight_0"

    def pickled(config: str, record: str, flag: object) -> Edit:
        def edit(records: dict[str, bytes]) -> None:
            in_json(config, lambda data: every(data, "use_pickle", lambda _: flag))(records)
            records[record] = as_torch(Runs(ran))

        return edit

    def custom(prefix: str, content: bytes) -> Edit:
        def edit(records: dict[str, bytes]) -> None:
            in_json(CONSTANTS, lambda data: every(data, "path_name", lambda _: f"{prefix}0"))(records)
            in_json(CONSTANTS, lambda data: every(data, "use_pickle", lambda _: True))(records)
            records[f"data/constants/{prefix}0"] = content

        return edit

    def samples(content: bytes) -> Edit:
        return lambda records: records.update({SAMPLES: content})

    def in_program(edit: Callable[[Any], None]) -> Edit:
        return in_json(PROGRAM, edit)

    def expression(change: Callable[[Any], Any]) -> Edit:
        return in_program(lambda data: every(data, "expr_str", change))

    old = "a pickle that may run code"
    size, guard = "a size that is not plain arithmetic", "a guard that is not a comparison of sizes"
    name, imports = "a name that is not a Python name", "may import the types that they name"
    default = json.dumps(
        [
            1,
            {
                "type": "collections.defaultdict",
                "context": {
                    "default_factory_module": marker,
                    "default_factory_name": "Kind",
                    "dict_context": [],
                },
                "children_spec": [],
            },
        ]
    )
    enum = json.dumps([{"__enum__": True, "fqn": f"{marker}:Kind", "name": "A"}, "b"])
    return {
        "a guard": (in_program(lambda data: data["guards_code"].append(f"{code} or True")), guard),
        "a guard after a guard": (
            in_program(lambda data: data["guards_code"].append(f"1 == 1), {code} or (1")),
            guard,
        ),
        "a size": (expression(lambda _: hidden), size),
        "a size in a size": (
            expression(lambda old: f"Add({old}, {hidden})"),
            size,
        ),
        "sizes in a list": (
            expression(lambda _: [hidden]),
            "data that is not known to be safe (SymExpr.expr_str",
        ),
        "a pickle of 1996": (samples(pickle.dumps(Runs(ran), 0)), old),
        "a bare pickle": (samples(pickle.dumps(Runs(ran), 2)), old),
        "a pickle behind a blank": (samples(b"(0" + pickle.dumps(Runs(ran), 0)), old),
        "a legacy pickle": (samples(as_torch(Runs(ran), _use_new_zipfile_serialization=False)), old),
        "a zipped pickle": (samples(as_torch(Runs(ran))), old),
        "a pickled weight": (pickled(WEIGHTS, first_weight, flag=True), "use_pickle"),
        "a weight pickled in disguise": (pickled(WEIGHTS, first_weight, flag=1), "use_pickle"),
        "a pickled constant": (pickled(CONSTANTS, "data/constants/tensor_0", flag=True), "use_pickle"),
        "an opaque constant": (custom("opaque_obj_", pickle.dumps(Runs(ran))), "a custom object"),
        "a custom object": (custom("custom_obj_", as_torch(Runs(ran))), "a custom object"),
        "weights of torch 2.8": (
            lambda records: records.update({"data/weights/model.pt": as_torch(Runs(ran))}),
            "a record that is not known to be safe (data/weights/model.pt)",
        ),
        "the name of an input": (in_program(renamed(f"y={code}")), name),
        "the name of an argument": (
            in_program(lambda data: signature(data).update(forward_arg_names=["x", f"y={code}"])),
            name,
        ),
        "a type of inputs": (
            in_program(lambda data: signature(data).update(in_spec=default)),
            imports,
        ),
        "a key of outputs": (
            in_program(lambda data: signature(data).update(out_spec=tree("builtins.dict", enum))),
            imports,
        ),
    }


ATTACKS = """
a guard; a guard after a guard; a size; a size in a size; sizes in a list; a pickle of 1996; a bare pickle;
a pickle behind a blank; a legacy pickle; a zipped pickle; a pickled weight; a weight pickled in disguise;
a pickled constant; an opaque constant; a custom object; weights of torch 2.8; the name of an input;
the name of an argument; a type of inputs; a key of outputs
"""


def refused(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        load_exported_program(path, trust=False)
    assert caught.value.exit_code == 2
    assert caught.value.where == str(path)
    return caught.value


@pytest.mark.parametrize("kind", [" ".join(each.split()) for each in ATTACKS.split(";")])
def test_no_code_in_a_program_is_run_without_trust(
    kind: str, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    ran = tmp_path / "ran"
    edit, words = attacks(ran)[kind]
    error = refused(rewritten(real, tmp_path / "evil.pt2", edit))
    assert not ran.exists()
    assert words in str(error)
    assert error.fix == "give --trust, if you know who made it"


def test_every_attack_is_tried(tmp_path: Path) -> None:
    assert [" ".join(each.split()) for each in ATTACKS.split(";")] == list(attacks(tmp_path / "ran"))


def test_what_is_trusted_is_loaded_as_torch_loads_it(real: Path, tmp_path: Path) -> None:
    assert isinstance(load_exported_program(real, trust=True), ExportedProgram)
    ran = tmp_path / "ran"
    edit, _ = attacks(ran)["a guard"]
    program = load_exported_program(rewritten(real, tmp_path / "evil.pt2", edit), trust=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file is never closed
        program.module()(*program.example_inputs[0])
    assert ran.exists(), "the attack would work"


def test_the_program_that_attacks_are_made_of_is_loaded(real: Path, tmp_path: Path) -> None:
    path = rewritten(real, tmp_path / "same.pt2", lambda records: None)
    assert isinstance(load_exported_program(path, trust=False), ExportedProgram)


@pytest.mark.parametrize(
    "target",
    """
    torch.load torch.hub.load torch.ops.load_library
    torch.ops.aten.save.default torch.ops.aten.from_file.default
    torch.os.system _operator.methodcaller _operator.attrgetter math.__loader__ #executorch:x os.system
    torch.ops.higher_order.call_torchbind torch.ops.aten.add.Tensor.__class__ torch.ops.aten.add
    """.split(),
)
def test_an_operator_that_is_not_torchs_own_arithmetic_is_refused(
    target: str, real: Path, tmp_path: Path
) -> None:
    edit = in_json(PROGRAM, lambda data: every(data, "target", lambda _: target))
    error = refused(rewritten(real, tmp_path / "bad.pt2", edit))
    assert f"an operator that is not known to be harmless ({target})" in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "Pow(Integer(10), Integer(999999999))",
        "Pow(Pow(Integer(10), Integer(60)), Integer(60))",
        "Pow(Integer(9), Mul(Integer(60), Integer(60), Integer(60)))",
        "9**9**9",
        "LShift(Integer(1), Integer(9999999999))",
        f"Integer({'9' * 30})",
        f"Integer({'9' * 9000})",
        f"Add({'Integer(1), ' * 9000})",
        "-" * 5000 + "1",
        "(" * 5000,
        "factorial(Integer(99999999))",
        "s53!",
        "Symbol('open')",
        "Symbol('s53', positive=open)",
        "Symbol('s53').free_symbols",
        "[Symbol('s53')]",
        "Add(*(1, 2))",
        "lambda: 1",
        "'s53'",
        "Float('1.5', precision=999999999)",
        "s53\nopen",
        "",
    ],
)
def test_a_size_that_is_no_short_arithmetic_is_refused(text: str, real: Path, tmp_path: Path) -> None:
    edit = in_json(PROGRAM, lambda data: every(data, "expr_str", lambda _: text))
    assert "a size that is not plain arithmetic" in str(refused(rewritten(real, tmp_path / "bad.pt2", edit)))


@pytest.mark.parametrize(
    "text",
    [
        "L['x'].size",
        "L['x'].numel()",
        "L['x'].size()[0].real == 1",
        "L['x'].size()[0] == 1 # comment",
        "L['x'].size()[0], 1",
        "L[L].size()[0]",
        "L['x'].size()[L]",
        "torch.load('x')",
        "math.floor",
        "(x := 1) == 1",
        "[1] == [1]",
        "open('x', 'w')",
        "9**9**9 > 1",
        "L['x\\n'] == 1",
        "'a' == 'a'",
        "1 is 1",
        "max(*L)",
        "max(1, key=abs)",
        "f'{1}' == 1",
        "torch.sym_max",
        "torch.sym_max(torch, 1)",
        "torch.sym_max.__globals__",
        "torch.sym_not(1)",
        "torch.hub.load(1, 2)",
    ],
)
def test_a_guard_that_is_no_comparison_of_sizes_is_refused(text: str, real: Path, tmp_path: Path) -> None:
    edit = in_json(PROGRAM, lambda data: data["guards_code"].append(text))
    assert "a guard that is not a comparison" in str(refused(rewritten(real, tmp_path / "bad.pt2", edit)))


@pytest.mark.parametrize(
    "text",
    [
        "L['x'].size()[2] != 3 and (not L['batch']['mel.0'][1].stride()[0] <= -2 or True)",
        "math.floor(1.5*torch.sym_float(L['x'].size()[1])) % 4 == L['x'].storage_offset()",
        "(1 if L['x'].size()[0] > 2 else 3) < math.inf",
        "max(1, L['x'].size()[2]**2) // 7 >= abs(L['n'])",
        "torch.sym_max(1, torch.sym_min(9, math.trunc(1.5*torch.sym_float(L['x'].size()[2])))) != 1",
    ],
)
def test_guards_of_other_shapes_are_taken(text: str, real: Path, tmp_path: Path) -> None:
    edit = in_json(PROGRAM, lambda data: data["guards_code"].append(text))
    load_exported_program(rewritten(real, tmp_path / "more.pt2", edit), trust=False)


def stems_from(text: str) -> Callable[[Any], None]:
    return lambda data: every(data, "metadata", lambda old: {**old, "source_fn_stack": text})


def first_input(data: Any) -> Any:
    return data["graph_module"]["graph"]["inputs"][-1]


@pytest.mark.parametrize(
    ("name", "edit", "words"),
    [
        (PROGRAM, lambda data: data.update(range_constraints={"u999999999": {}}), "a range of a size"),
        (PROGRAM, lambda data: data.update(range_constraints={"u+99999999": {}}), "a range of a size"),
        (PROGRAM, lambda data: data.update(range_constraints={"zuf3000_0000": {}}), "a range of a size"),
        (PROGRAM, renamed("lambda"), "a name that is not a Python name"),
        (PROGRAM, lambda data: every(data, "as_int", lambda _: 10**30), "an absurdly large number"),
        (PROGRAM, lambda data: every(data, "as_int", lambda _: True), "not of torch's format"),
        (PROGRAM, lambda data: every(data, "requires_grad", lambda _: "no"), "not of torch's format"),
        (PROGRAM, lambda data: every(data, "dtype", lambda _: 99), "not of torch's format"),
        (
            PROGRAM,
            lambda data: every(data, "device", lambda _: {"type": "hpu"}),
            "a device that is not known",
        ),
        (PROGRAM, lambda data: every(data, "parameter_name", lambda _: "a.__class__.b"), "name of a weight"),
        (PROGRAM, stems_from("add,torch.__builtins__.open"), "the name of a function"),
        (PROGRAM, stems_from("add,torch.add;"), "the name of a function"),
        (PROGRAM, lambda data: first_input(data).update(as_tensor=[]), "not of torch's format"),
        (PROGRAM, lambda data: first_input(data).update(as_int=1), "not of torch's format"),
        (
            PROGRAM,
            lambda data: (first_input(data).clear(), first_input(data).update(as_string="a' or 'b")),
            "a text that may become code",
        ),
        (
            PROGRAM,
            lambda data: (
                first_input(data).clear(),
                first_input(data).update(as_custom_obj={"name": "x", "class_fqn": "y"}),
            ),
            "data that is not known to be safe (CustomObjArgument",
        ),
        (WEIGHTS, lambda data: every(data, "path_name", lambda _: "../x"), "a tensor in a place of its own"),
        (
            WEIGHTS,
            lambda data: every(data, "path_name", lambda _: "weight_99"),
            "a tensor whose record is missing",
        ),
        (
            WEIGHTS,
            lambda data: every(data, "tensor_meta", lambda _: None),
            "a tensor whose record is missing",
        ),
    ],
)
def test_what_torch_does_not_write_is_refused(
    name: str, edit: Callable[[Any], None], words: str, real: Path, tmp_path: Path
) -> None:
    assert words in str(refused(rewritten(real, tmp_path / "bad.pt2", in_json(name, edit))))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("data/aotinductor/model/model.so", b"\x7fELF", "compiled code (AOTInductor), which runs"),
        ("data/aotinductor/", b"", "compiled code"),
        ("models/other.json", b"{}", "a record that is not known to be safe (models/other.json)"),
        ("MODELS/model.json", b"{}", "a record that is not known to be safe"),
        ("data/weights/weight_0", b"", "a tensor without its numbers"),
        (PROGRAM, b"{", "a record that is not JSON"),
        (PROGRAM, b"[" * 100_000, "a record that is not JSON"),
        (PROGRAM, b" " * (65 << 20) + b"{}", "a JSON of more than 64 MiB"),
        (SAMPLES, as_torch({"a' or '": torch.ones(1)}), "a text that may become code"),
        (SAMPLES, as_torch(({1, 2}, {})), "sample inputs other than tensors and plain values (set)"),
    ],
)
def test_records_that_torch_does_not_write_are_refused(
    name: str, content: bytes, words: str, real: Path, tmp_path: Path
) -> None:
    path = rewritten(real, tmp_path / "bad.pt2", lambda records: records.update({name: content}))
    assert words in str(refused(path))


@pytest.mark.parametrize("name", [PROGRAM, SAMPLES, WEIGHTS, CONSTANTS])
def test_a_program_that_lacks_a_record_is_refused(name: str, real: Path, tmp_path: Path) -> None:
    path = rewritten(real, tmp_path / "bad.pt2", lambda records: records.__delitem__(name))
    assert f"no record {name}" in str(refused(path))


def test_records_that_are_compressed_are_refused(real: Path, tmp_path: Path) -> None:
    def grown(records: dict[str, bytes]) -> None:
        records["extra/notes.txt"] = bytes(1 << 20)

    path = rewritten(real, tmp_path / "bad.pt2", grown, zipfile.ZIP_DEFLATED)
    assert "larger than the file (compressed)" in str(refused(path))
    path = rewritten(real, tmp_path / "good.pt2", grown)
    load_exported_program(path, trust=False)


def test_the_format_before_torch_2_8_needs_trust(tmp_path: Path) -> None:
    path = tmp_path / "old.pt2"
    ran = tmp_path / "ran"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.8")
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", as_torch(Runs(ran)))
    assert is_exported_program(path)
    error = refused(path)
    assert "the format of torch before 2.8" in str(error)
    assert "--trust" in error.fix
    assert not ran.exists()


def test_a_program_cannot_lead_to_the_older_format(real: Path, tmp_path: Path) -> None:
    def broken(records: dict[str, bytes]) -> None:
        in_json(PROGRAM, lambda data: data["schema_version"].update(major=99))(records)
        records["archive_version"] = b"0"

    error = refused(rewritten(real, tmp_path / "bad.pt2", broken))
    assert "cannot be loaded: Serialized schema version" in str(error)
    assert "--trust" not in error.fix


def test_where_torch_tells_no_sizes_of_records_those_of_the_archive_count(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "hasattr", lambda *_: False, raising=False)  # torch's own loading needs it
    load_exported_program(real, trust=False)

    def grown(records: dict[str, bytes]) -> None:
        records["extra/notes.txt"] = bytes(1 << 20)

    path = rewritten(real, tmp_path / "bad.pt2", grown, zipfile.ZIP_DEFLATED)
    assert "larger than the file (compressed)" in str(refused(path))
    monkeypatch.setattr(zipfile.ZipFile, "infolist", lambda archive: archive.filelist[1:])
    assert "that Python does not find as torch does" in str(refused(real))


def test_an_archive_of_something_else_is_no_exported_program(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(2)}, path)
    assert not is_exported_program(path)
    path.write_bytes(b"no zip")
    assert not is_exported_program(path)
