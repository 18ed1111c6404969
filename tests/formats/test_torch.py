"""What torch saved in all its ways, folded, and read back by torch."""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import io
import pickle
import struct
import subprocess
import sys
import types
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import remove_parametrizations

from tests.helpers.bad_files import zipped
from tests.helpers.deprecated import deprecated
from tests.helpers.golden import FIXTURES
from wnconvert.errors import ArgumentError, FormatError, InputError
from wnconvert.formats.pickle.values import Dict
from wnconvert.formats.pickle.writer import dump
from wnconvert.formats.torch.records import storage_record, tensor_record
from wnconvert.storage.checkpoint import open_checkpoint
from wnconvert.tensors.dtypes import dtype_named
from wnconvert.verbs.conversion.convert import Result
from wnconvert.verbs.conversion.files.fold import fold_file
from wnconvert.verbs.conversion.files.migrate import migrate_file
from wnconvert.verbs.conversion.files.split import split_file
from wnconvert.verbs.inspection.inspect import inspect_file

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    # torch warns of its own APIs: the deprecated weight_norm, TypedStorage, quantization, torch.jit.
    warnings.simplefilter("ignore")


def legacy(module: nn.Module, name: str = "weight", dim: int | None = 0) -> nn.Module:
    return torch.nn.utils.weight_norm(module, name, dim)  # type: ignore[arg-type]


def new(module: nn.Module, name: str = "weight", dim: int = 0) -> nn.Module:
    normed: nn.Module = parametrizations.weight_norm(module, name, dim)
    return normed


def fold(source: Path, **options: Any) -> Path:
    out = source.with_name("out.pt")
    result = fold_file(source, out, force=True, **options, copy=True)
    assert isinstance(result, Result)
    return out


def saved(tree: object, folder: Path, **options: Any) -> Path:
    path = folder / "in.pt"
    torch.save(tree, path, **options)
    return path


def folded(
    tree: object, folder: Path, *, trust: bool = False, save: Mapping[str, Any] = {}, **options: Any
) -> Any:
    """The tree as torch reads it after it was saved and folded."""
    out = fold(saved(tree, folder, **save), **options)
    return torch.load(out, weights_only=not trust)


def pair(rows: int = 6, *more: int, dtype: torch.dtype = torch.float32) -> State:
    shape = (rows, *(more or (4, 3)))
    generator = torch.Generator().manual_seed(rows)
    g = torch.rand((rows, *[1] * (len(shape) - 1)), generator=generator) + 0.5
    return {"a.weight_g": g.to(dtype), "a.weight_v": torch.randn(shape, generator=generator).to(dtype)}


def exact(g: Tensor, v: Tensor, dim: int = 0) -> Tensor:
    wide = v.double()
    norm = wide.pow(2).sum([axis for axis in range(v.dim()) if axis != dim], keepdim=True).sqrt()
    return wide * g.double() / norm


def is_fold(w: Tensor, state: Mapping[str, Tensor], name: str = "a.weight") -> bool:
    g, v = state[f"{name}_g"], state[f"{name}_v"]
    tolerance = {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(v.dtype, 1e-7)
    return w.dtype == v.dtype and torch.allclose(w.double(), exact(g, v), rtol=tolerance, atol=1e-7)


def same(one: Any, two: Any) -> bool:
    """Equal in type and value, tensors bit for bit."""
    if isinstance(one, Tensor):
        return (
            type(one) is type(two)
            and (one.dtype, one.shape, one.stride(), one.requires_grad, one.device)
            == (two.dtype, two.shape, two.stride(), two.requires_grad, two.device)
            and bits(one) == bits(two)
        )
    if isinstance(one, Mapping):
        pairs = zip(one.items(), two.items(), strict=True)
        return type(one) is type(two) and all(k == m and same(v, w) for (k, v), (m, w) in pairs)
    if isinstance(one, (list, tuple)):
        return type(one) is type(two) and all(same(v, w) for v, w in zip(one, two, strict=True))
    return bool(type(one) is type(two) and one == two)


def bits(tensor: Tensor) -> bytes:
    if tensor.is_quantized:
        return bytes(tensor.int_repr().contiguous().flatten().tolist()) + str(tensor.q_scale()).encode()
    plain = tensor.detach().contiguous()
    return bytes(plain.flatten().view(torch.uint8).tolist()) if plain.numel() else b""


def test_this_comparison_can_fail() -> None:
    assert same({"a": torch.ones(2)}, {"a": torch.ones(2)})
    assert not same({"a": torch.ones(2)}, {"a": torch.zeros(2)})
    assert not same({"a": torch.ones(2)}, {"b": torch.ones(2)})
    assert not same(torch.ones(2), nn.Parameter(torch.ones(2)))
    assert not same(torch.ones(2, 2), torch.ones(2, 2).t())


# -- every way to read what was written


HAS_CONFIG = importlib.util.find_spec("torch.utils.serialization") is not None  # from torch 2.7 on
CONFIG: Any = importlib.import_module("torch.utils.serialization.config") if HAS_CONFIG else None
offsets_computed: Any = (
    partial(CONFIG.patch, {"load.calculate_storage_offsets": True}) if HAS_CONFIG else contextlib.nullcontext
)

FIXTURE_FILES = [
    "g_02500000",
    "vits.pth",
    "do_02500000",
    "gan.pt",
    "tied.pt",
    "plain.pt",
    "legacy_nonzip.pth",
]


@pytest.mark.parametrize("name", FIXTURE_FILES)
def test_torch_reads_a_folded_file_in_every_way_alike(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    fold_file(FIXTURES / name, out, copy=True)
    plain = torch.load(out, weights_only=True)
    assert same(plain, torch.load(out, weights_only=True, mmap=True))
    assert same(plain, torch.load(out, weights_only=False))
    with offsets_computed():
        assert same(plain, torch.load(out, weights_only=True, mmap=True))
    done = subprocess.run([sys.executable, "-m", "zipfile", "-t", out], capture_output=True, check=False)
    assert done.stdout == b"Done testing\n", done.stderr


def test_a_legacy_file_whose_pickle_says_fewer_elements_than_its_storage_has_is_read_whole(
    tmp_path: Path,
) -> None:
    """torch makes the storage larger as it reads on; the zip that is written must tell the truth."""
    source, out = tmp_path / "in.pt", tmp_path / "out.pt"
    torch.save({"epoch": 3, "bias": torch.arange(201.0)}, source, _use_new_zipfile_serialization=False)
    said = b"cpuq\x07K"
    data = source.read_bytes()
    assert data.count(said + bytes([201])) == 1
    source.write_bytes(data.replace(said + bytes([201]), said + b"\x01"))
    before = torch.load(source, weights_only=True)
    assert before["bias"].shape == (201,)
    fold_file(source, out, copy=True)
    for mmap in (False, True):
        assert same(before, torch.load(out, weights_only=True, mmap=mmap))


@pytest.mark.parametrize("name", FIXTURE_FILES)
def test_nothing_but_layers_and_optimizers_changes(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    fold_file(FIXTURES / name, out, keep_optimizer=True, copy=True)
    before = torch.load(FIXTURES / name, weights_only=True)
    after = torch.load(out, weights_only=True)

    def check(old: Any, found: Any) -> int:
        assert type(old) is type(found)
        if not isinstance(old, Mapping):
            assert same(old, found)
            return 0
        weights = [key for key in found if key not in old]
        layers = set()
        for key in weights:
            legacy_g = f"{key}_g" in old
            stem, _, last = key.rpartition(".")
            halves = [f"{key}_g", f"{key}_v"] if legacy_g else [
                f"{stem}.parametrizations.{last}.original{n}" for n in (0, 1)
            ]  # fmt: skip
            layers |= set(halves)
            assert torch.allclose(
                found[key].double(), exact(old[halves[0]], old[halves[1]]), rtol=1e-7, atol=0
            )
        assert [key for key in old if key not in layers] == [key for key in found if key not in weights]
        return len(weights) + sum(check(old[key], found[key]) for key in found if key in old)

    assert check(before, after) == len(fold_layers(FIXTURES / name))


def fold_layers(path: Path) -> list[str]:
    return [fold.name for fold in fold_file(path, dry_run=True).layers]


def test_the_layout_records_of_torch_are_never_copied(tmp_path: Path) -> None:
    source = saved({**pair(), "b": torch.ones(3)}, tmp_path)
    with zipfile.ZipFile(source) as archive:
        assert "in/.format_version" in archive.namelist()
    with zipfile.ZipFile(fold(source)) as archive:
        assert archive.namelist() == [
            "archive/data.pkl", "archive/byteorder", "archive/data/0", "archive/data/1", "archive/version",
            "archive/wnconvert.json",
        ]  # fmt: skip


def test_the_comment_and_names_that_are_not_utf_8_are_carried(tmp_path: Path) -> None:
    source = saved(pair(), tmp_path)
    with zipfile.ZipFile(source, "a") as archive:
        archive.comment = b"of run 7"
        archive.writestr("in/notes-XX", b"text")
    source.write_bytes(source.read_bytes().replace(b"notes-XX", b"notes-\xff\xfe"))
    made = fold(source, verify=True).read_bytes()
    assert made.count(b"archive/notes-\xff\xfe") == 2
    with zipfile.ZipFile(io.BytesIO(made)) as archive:
        assert archive.comment == b"of run 7"
        assert archive.testzip() is None


@pytest.mark.parametrize("name", ["../x", "/etc/x", "in/../x"])
def test_a_record_that_leaves_the_archive_is_not_handed_on(name: str, tmp_path: Path) -> None:
    source = saved(pair(), tmp_path)
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr(name, b"text")
    with pytest.raises(FormatError, match=f"record {name} would be unpacked outside of its folder"):
        fold(source)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_other_records_of_an_archive_are_carried(tmp_path: Path) -> None:
    source = saved({**pair(), "b": torch.ones(3)}, tmp_path)
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr("in/extra/notes.txt", "mine")
        archive.writestr("in/extra/data.pkl", "not a pickle")
        archive.writestr("elsewhere.txt", "outside")
        archive.writestr("in/größe", "x")
    with zipfile.ZipFile(fold(source)) as archive:
        assert archive.read("archive/extra/notes.txt") == b"mine"
        assert archive.read("archive/extra/data.pkl") == b"not a pickle"
        assert archive.read("elsewhere.txt") == b"outside"
        assert archive.read("archive/größe") == b"x"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("as_zip", [True, False])
def test_every_protocol_and_container_of_torch_save(protocol: int, as_zip: bool, tmp_path: Path) -> None:
    view = torch.arange(20.0)
    tree = {
        "model": collections.OrderedDict(pair(), b=view[3:9], c=view.view(4, 5).t()),
        "names": ["x", ("y", 1.5, None)],
        "half": torch.ones(2, dtype=torch.float16),
        "set": {1, 2},
    }
    save = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": as_zip}
    got = folded(tree, tmp_path, save=save, trust=True)
    assert list(got["model"]) == ["a.weight", "b", "c"]
    assert is_fold(got["model"]["a.weight"], pair())
    assert same(got["model"]["b"], view[3:9])
    assert same(got["model"]["c"], view.view(4, 5).t())
    assert got["model"]["b"].untyped_storage().data_ptr() == got["model"]["c"].untyped_storage().data_ptr()
    assert all(same(got[key], tree[key]) for key in ("names", "half", "set"))
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        assert archive.read("archive/data.pkl")[:2] == bytes([0x80, protocol])


def test_a_storage_view_of_the_oldest_torch_becomes_its_root(tmp_path: Path) -> None:
    # torch 0.4 saved x[2:8].storage() as a view: the persistent id has the root's key and a sixth part.
    root = torch.arange(10.0)
    path = tmp_path / "in.pt"

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            if not isinstance(obj, int) or obj not in (111, 222):
                return None
            view = ("111", 4, 6) if obj == 222 else None
            return ("storage", torch.FloatStorage, "7", "cpu", 10, view)

    class Rebuilt:
        def __init__(self, storage: int, offset: int, shape: tuple[int, ...]) -> None:
            self.args: tuple[object, ...] = (storage, offset, shape, (1,), False, collections.OrderedDict())

        def __reduce__(self) -> tuple[object, ...]:
            return torch._utils._rebuild_tensor_v2, self.args

    tree = {"whole": Rebuilt(111, 0, (10,)), "view": Rebuilt(222, 1, (5,))}
    with path.open("wb") as file:
        sizes = {"little_endian": True, "protocol_version": 1001, "type_sizes": {}}
        for header in (torch.serialization.MAGIC_NUMBER, 1001, sizes):
            pickle.dump(header, file, protocol=2)
        Pickler(file, protocol=2).dump(tree)
        pickle.dump(["7"], file, protocol=2)
        file.write(struct.pack("<q", 10) + root.numpy().tobytes())
    got = torch.load(fold(path), weights_only=True)
    assert same(got["whole"], root)
    assert same(got["view"], root[5:10])
    assert got["view"].data_ptr() - got["whole"].data_ptr() == 20
    cast = torch.load(fold(path, dtype="float16"), weights_only=True)
    assert same(cast["view"], root[5:10].half())


# -- tensors


def tensors() -> State:
    base = torch.arange(48.0)
    state: State = {
        "transposed": base.view(6, 8).t(),
        "expanded": torch.ones(1, 5).expand(4, 5),
        "channels_last": torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4).contiguous(
            memory_format=torch.channels_last
        ),
        "offset": base[7:19],
        "stepped": base[1::3],
        "empty": torch.empty(0, 4),
        "empty view": base[5:5],
        "scalar": torch.tensor(3.5),
        "bool": torch.tensor([True, False]),
        "conj": torch.tensor([1 + 2j]),
    }  # fmt: skip
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8,
                  torch.int16, torch.int32, torch.complex64, torch.complex128):  # fmt: skip
        state[str(dtype)] = torch.ones(3, dtype=dtype)
    for dtype in (torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2,
                  torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.complex32):  # fmt: skip
        state[str(dtype)] = torch.ones(3).to(dtype)[1:]
    return state


@pytest.mark.parametrize("as_zip", [True, False])
def test_tensors_of_every_view_and_dtype_come_back(as_zip: bool, tmp_path: Path) -> None:
    state = {**tensors(), **pair()}
    got = folded(state, tmp_path, save={"_use_new_zipfile_serialization": as_zip})
    assert all(same(got[key], value) for key, value in tensors().items())
    bases = {got[key].untyped_storage().data_ptr() for key in ("transposed", "offset", "stepped")}
    assert len(bases) == 1


def test_other_kinds_of_tensors_are_carried(tmp_path: Path) -> None:
    state = {
        **pair(),
        "quantized": torch.quantize_per_tensor(torch.arange(4.0), 0.1, 2, torch.qint8),
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "meta": torch.empty(3, device="meta"),
    }
    got = folded(state, tmp_path, trust=True)
    assert list(got) == ["a.weight", "quantized", "sparse", "csr", "meta"]
    assert same(got["quantized"], state["quantized"])
    assert torch.equal(got["sparse"].to_dense(), torch.eye(3))
    assert torch.equal(got["csr"].to_dense(), torch.eye(3))
    assert got["meta"].is_meta


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_layers_of_every_dtype_are_folded(dtype: torch.dtype, tmp_path: Path) -> None:
    state = pair(dtype=dtype)
    assert is_fold(folded(state, tmp_path)["a.weight"], state)


def test_strided_halves_are_folded(tmp_path: Path) -> None:
    g = torch.rand(12)[::2].view(6, 1, 1)
    v = torch.randn(3, 4, 6).permute(2, 1, 0)
    state = {"a.weight_g": g, "a.weight_v": v}
    got = folded(state, tmp_path)["a.weight"]
    assert is_fold(got, state)
    assert got.is_contiguous()


def test_halves_in_one_flat_storage_are_folded_and_the_others_stay_views(tmp_path: Path) -> None:
    flat = torch.rand(100) + 0.5
    state = {
        "a.weight_g": flat[:4].view(4, 1),
        "a.weight_v": flat[4:24].view(4, 5),
        "b": flat[24:30],
        "all": flat,
    }
    got = folded(state, tmp_path)
    assert is_fold(got["a.weight"], state)
    assert same(got["all"], flat)
    assert got["b"].data_ptr() - got["all"].data_ptr() == 96


def test_aliases_stay_aliases(tmp_path: Path) -> None:
    state = pair()
    tree = {"one": state, "two": {"b.weight_g": state["a.weight_g"], "b.weight_v": state["a.weight_v"],
                                  "bias": torch.ones(6)}}  # fmt: skip
    tree["three"] = {"bias": tree["two"]["bias"], "a.weight_g": state["a.weight_g"] * 2,
                     "a.weight_v": state["a.weight_v"]}  # fmt: skip
    got = folded(tree, tmp_path)
    assert got["one"]["a.weight"].data_ptr() == got["two"]["b.weight"].data_ptr()
    assert got["two"]["bias"].data_ptr() == got["three"]["bias"].data_ptr()
    assert got["one"]["a.weight"].data_ptr() != got["three"]["a.weight"].data_ptr()
    assert torch.allclose(got["three"]["a.weight"], got["one"]["a.weight"] * 2)


def test_aliases_stay_aliases_in_another_dtype(tmp_path: Path) -> None:
    flat = torch.rand(30)
    got = folded(
        {"x": flat, "y": flat[10:20], "z": flat.view(5, 6).t(), **pair()}, tmp_path, dtype="bfloat16"
    )
    assert same(got["z"], flat.bfloat16().view(5, 6).t())
    assert got["y"].data_ptr() - got["x"].data_ptr() == 20
    assert got["a.weight"].dtype == torch.bfloat16


def test_parameters_stay_parameters(tmp_path: Path) -> None:
    def parameter(value: Tensor, grad: bool) -> nn.Parameter:
        return nn.Parameter(value, requires_grad=grad)

    frozen = pair()
    state = {
        "a.weight_g": parameter(frozen["a.weight_g"], False),
        "a.weight_v": parameter(frozen["a.weight_v"], False),
        "b.weight_g": parameter(frozen["a.weight_g"].clone(), True),
        "b.weight_v": parameter(frozen["a.weight_v"].clone(), True),
        "bias": parameter(torch.ones(2), False),
        "plain": torch.ones(2, requires_grad=True),
    }
    got = folded(state, tmp_path)
    kinds = {key: (type(value), value.requires_grad) for key, value in got.items()}
    assert kinds == {
        "a.weight": (nn.Parameter, False),
        "b.weight": (nn.Parameter, True),
        "bias": (nn.Parameter, False),
        "plain": (Tensor, True),
    }
    cast = folded(state, tmp_path, dtype="float16")
    assert {key: (type(value), value.requires_grad) for key, value in cast.items()} == kinds


def refuse(_storage: object, location: str) -> Any:
    raise LookupError(location)


def test_devices_stay_named_in_the_pickle(tmp_path: Path) -> None:
    source = saved({**pair(), "b": torch.ones(3), "c": torch.ones(3, dtype=torch.uint16)}, tmp_path)
    for device in (b"cuda:1", b"mps\0\0\0"[:3], b"xla:0"):
        renamed = tmp_path / "in2.pt"
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(renamed, "w") as made:
            for name in old.namelist():
                data = old.read(name)
                if name.endswith("data.pkl"):
                    data = data.replace(b"X\3\0\0\0cpu", b"X" + struct.pack("<I", len(device)) + device)
                made.writestr(name, data)
        with pytest.raises(LookupError, match=device.decode()):
            torch.load(fold(renamed), map_location=refuse)
        got = torch.load(tmp_path / "out.pt", map_location="cpu")
        assert is_fold(got["a.weight"], pair())


# -- state dicts and what stands beside them


def metadata_of(state: object) -> Any:
    return vars(state)["_metadata"]


def module_of(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    inner = nn.Sequential(norm(nn.Conv1d(3, 4, 3)), nn.BatchNorm1d(4), norm(nn.ConvTranspose1d(4, 2, 3)))
    outer = nn.ModuleDict({"body": inner, "head": norm(nn.Linear(2, 5)), "plain": nn.Linear(5, 5)})
    outer["deep"] = nn.ModuleList([norm(nn.Conv2d(1, 2, 3))])
    return outer


def removed(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if hasattr(part, "parametrizations"):
            remove_parametrizations(part, "weight")
        elif hasattr(part, "weight_g"):
            torch.nn.utils.remove_weight_norm(part)
    return module


@pytest.mark.parametrize("norm", [legacy, new])
def test_keys_order_and_metadata_are_what_torch_gives_after_removing(
    norm: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    module = module_of(norm)
    got = folded({"m": module.state_dict()}, tmp_path)["m"]
    expected = removed(module).state_dict()
    assert set(got) == set(expected)
    assert dict(metadata_of(got)) == dict(metadata_of(expected))
    assert all(torch.allclose(got[key], expected[key], rtol=1e-5, atol=1e-7) for key in got)
    module.load_state_dict(got)


def test_metadata_of_other_parametrizations_stays(tmp_path: Path) -> None:
    module = nn.Sequential(new(nn.Linear(2, 3)), parametrizations.orthogonal(nn.Linear(3, 3)))
    module[0] = new(module[0], "bias")
    state = module.state_dict()
    assert set(fold_layers(saved(state, tmp_path))) == {"0.weight", "0.bias"}
    got = folded(state, tmp_path, exclude=["0.bias"])
    gone = {"0.parametrizations.weight", "0.parametrizations.weight.0"}
    assert set(metadata_of(state)) - set(metadata_of(got)) == gone


def test_state_dicts_that_share_their_metadata_are_both_edited(tmp_path: Path) -> None:
    module = nn.ModuleDict({"x": new(nn.Linear(2, 3)), "y": new(nn.Linear(2, 3))})
    state = module.state_dict()
    halves = [collections.OrderedDict((k, v) for k, v in state.items() if k[0] == half) for half in "xy"]
    for half in halves:
        vars(half)["_metadata"] = metadata_of(state)
    got = folded(halves, tmp_path)
    assert not [key for key in metadata_of(got[1]) if "parametrizations" in key]


def test_metadata_that_is_no_mapping_stays(tmp_path: Path) -> None:
    state = collections.OrderedDict(pair())
    vars(state)["_metadata"] = ("x", 1)
    assert metadata_of(folded(state, tmp_path)) == ("x", 1)


def test_only_keeps_places_in_lists_and_whole_numbers(tmp_path: Path) -> None:
    got = folded({"models": [pair(5), {7: pair()}]}, tmp_path, only="models.1.7")
    assert list(got["models"][1][7]) == ["a.weight"]


def test_what_is_no_tensor_stays_in_its_place(tmp_path: Path) -> None:
    state: dict[Any, Any] = {
        "epoch": 3,
        **pair(),
        "note": "x",
        "nested": {"deep": [1, 2]},
        "none": None,
        5: "five",
    }
    got = folded(state, tmp_path)
    assert list(got) == ["epoch", "a.weight", "note", "nested", "none", 5]
    assert (got["nested"], got[5]) == ({"deep": [1, 2]}, "five")


def test_a_state_dict_below_a_key_that_is_a_hash_is_found(tmp_path: Path) -> None:
    key = 1 << 63
    torch.save({key: legacy(nn.Linear(3, 2)).state_dict()}, path := tmp_path / "in.pt")
    got = torch.load(fold(path))
    assert list(got) == [key]
    assert set(got[key]) == {"weight", "bias"}


def test_keys_that_are_no_strings_stay(tmp_path: Path) -> None:
    state: dict[Any, Any] = {**pair(), (1, 2): 3, 1 << 100: 4, None: 5, 2.5: 6}
    got = folded({"m": state, 7: {8: pair()}}, tmp_path)
    assert list(got["m"]) == ["a.weight", (1, 2), 1 << 100, None, 2.5]
    assert list(got[7][8]) == ["a.weight"]


def test_keys_with_dots_are_keys(tmp_path: Path) -> None:
    tree = {"a.b": pair(), "c": {"d": pair()}, "opt.g": adam(), "opt": {"h": 1}}
    source = saved(tree, tmp_path)
    assert open_checkpoint(source).tree.optimizers == ("opt.g",)
    assert [sibling.path for sibling in open_checkpoint(source).tree.siblings] == ["opt"]
    assert list(folded(tree, tmp_path)["a.b"]) == ["a.weight"]
    assert list(folded(tree, tmp_path, only="a.b")) == ["a.b"]


def test_two_state_dicts_of_one_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"two state dicts at a\.b"):
        folded({"a.b": pair(), "a": {"b": pair()}}, tmp_path)


def test_a_state_dict_under_two_keys_stays_one(tmp_path: Path) -> None:
    state = pair()
    got = folded({"model": state, "ema": [state]}, tmp_path)
    assert list(got["model"]) == ["a.weight"]
    assert got["ema"][0] is got["model"]


WEIGHTS = {"a.weight_g": torch.ones(2, 1), "a.weight_v": torch.ones(2, 3)}


@pytest.mark.parametrize(
    ("tree", "paths"),
    [
        ({"m": WEIGHTS, "callbacks": {"stop": {"best": torch.tensor(0.5), "patience": 3}}}, ["m"]),
        ({"m": WEIGHTS, "loss": torch.tensor(0.5), "epoch": 3}, ["m"]),
        ({"m": WEIGHTS, "n": {"scale": torch.tensor(2.0)}}, ["m", "n"]),
        ({"m": WEIGHTS, "n": {"scale": torch.tensor(2.0), "_extra_state": {"x": 1}}}, ["m", "n"]),
        ({"m": WEIGHTS, "n": {"mean": torch.ones(3), "epoch": 3}}, ["m", "n"]),
        ({**WEIGHTS, "epoch": 3}, [""]),
    ],
)
def test_single_numbers_beside_other_values_are_settings_and_no_state_dict(
    tmp_path: Path, tree: dict[str, Any], paths: list[str]
) -> None:
    source = saved(tree, tmp_path)
    assert [state.path for state in open_checkpoint(source).tree.state_dicts] == paths
    assert torch.load(fold(source), weights_only=True).keys() >= tree.keys() - WEIGHTS.keys()


def test_only_keeps_the_keys_that_lead_to_a_state_dict(tmp_path: Path) -> None:
    tree = {"ema": {"model": pair(), "decay": 0.9}, "epoch": 1, "other": pair(5), "optimizer": adam()}
    source = saved(tree, tmp_path)
    got = torch.load(fold(source, only="ema.model"), weights_only=True)
    assert list(got) == ["ema"]
    assert list(got["ema"]) == ["model"]
    assert list(got["ema"]["model"]) == ["a.weight"]
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        assert [name for name in archive.namelist() if "/data/" in name] == ["archive/data/0"]
    plan = fold_file(source, only="ema.model", dry_run=True, copy=True)
    assert [item.path for item in plan.dropped] == ["other", "optimizer", "epoch", "ema.decay"]
    with pytest.raises(ArgumentError, match="no state dict"):
        fold_file(source, only="ema", dry_run=True, copy=True)


def test_only_of_the_root_is_the_root(tmp_path: Path) -> None:
    assert list(folded(pair(), tmp_path, only=".")) == ["a.weight"]


# -- optimizers


def adam() -> dict[str, Any]:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.ones(2)
    optimizer.step()
    return optimizer.state_dict()


def test_an_optimizer_goes_where_a_layer_changed(tmp_path: Path) -> None:
    shared = adam()
    tree = {"model": pair(), "optimizer": shared, "again": shared, "optimizer_states": [adam(), adam()],
            "sched": {"x": 1}}  # fmt: skip
    got = folded(tree, tmp_path)
    assert list(got) == ["model", "optimizer_states", "sched"]
    assert got["optimizer_states"] == []
    kept = folded(tree, tmp_path, keep_optimizer=True)
    assert same(kept["optimizer"], tree["optimizer"])
    assert kept["again"] is kept["optimizer"]


def test_an_optimizer_stays_where_no_layer_changed(tmp_path: Path) -> None:
    tree = {"model": {"weight": torch.ones(2)}, "optimizer": adam()}
    assert same(folded(tree, tmp_path), tree)
    excluded = {"model": pair(), "optimizer": adam()}
    assert same(folded(excluded, tmp_path, exclude=["*"]), excluded)


def test_an_optimizer_beside_tensors_goes(tmp_path: Path) -> None:
    got = folded({**pair(), "optimizer": adam(), "epoch": 1}, tmp_path)
    assert list(got) == ["a.weight", "epoch"]


def test_a_whole_optimizer_object_goes(tmp_path: Path) -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(2))])
    assert list(folded({"model": pair(), "optim": optimizer}, tmp_path, trust=True)) == ["model"]
    kept = folded({"model": pair(), "optim": optimizer}, tmp_path, trust=True, keep_optimizer=True)
    assert isinstance(kept["optim"], torch.optim.Adam)


def test_an_optimizer_that_an_object_holds_goes(tmp_path: Path) -> None:
    trainer = types.SimpleNamespace(model=pair(), optimizer=adam(), epoch=3)
    got = folded({"trainer": trainer}, tmp_path, trust=True)["trainer"]
    assert vars(got).keys() == {"model", "epoch"}
    assert list(got.model) == ["a.weight"]


def test_a_file_that_is_only_an_optimizer_stays_whole(tmp_path: Path) -> None:
    state = adam()
    assert same(folded(state, tmp_path), state)


def test_a_state_with_groups_is_no_optimizer_unless_it_has_both(tmp_path: Path) -> None:
    tree = {"model": pair(), "state": {"x": 1}, "other": {"param_groups": []}}
    assert list(folded(tree, tmp_path)) == ["model", "state", "other"]


# -- marks


@pytest.mark.parametrize("mark", [b"00", b"01", b"03", b"07"])
def test_the_mark_of_gpt_sovits_is_written_back(mark: bytes, tmp_path: Path) -> None:
    source = saved({"weight": pair(), "config": {"x": 1}, "info": "8epoch"}, tmp_path)
    source.write_bytes(mark + source.read_bytes()[2:])
    out = fold(source).read_bytes()
    assert out[:2] == mark
    got = torch.load(io.BytesIO(b"PK" + out[2:]), weights_only=True)
    assert is_fold(got["weight"]["a.weight"], pair())


def test_a_file_without_a_mark_gets_none(tmp_path: Path) -> None:
    assert fold(saved(pair(), tmp_path)).read_bytes()[:2] == b"PK"


# -- whole modules


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = legacy(nn.ConvTranspose1d(3, 4, 4, 2))
        self.body = nn.Sequential(legacy(nn.Conv1d(4, 4, 3)), nn.Tanh(), legacy(nn.Conv1d(4, 4, 3), dim=None))
        self.again = self.body[0]
        self.last = legacy(nn.Conv1d(4, 2, 3), dim=2)
        self.register_buffer("window", torch.ones(1))
        self.register_buffer("scratch", torch.ones(7), persistent=False)
        self.up.register_forward_pre_hook(first_hook)
        self.last.weight_g.requires_grad_(False)
        self.last.weight_v.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.again(self.body(self.up(x)))) * self.window  # type: ignore[no-any-return]


def first_hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    module.seen = len(inputs)  # type: ignore[assignment]


def net() -> Net:
    torch.manual_seed(3)
    made = Net()
    for parameter in made.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    return made


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("as_zip", [True, False])
def test_a_whole_module_is_folded_inside_its_pickle(protocol: int, as_zip: bool, tmp_path: Path) -> None:
    module = net()
    x = torch.randn(2, 3, 20)
    expected = module(x).detach()
    save = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": as_zip}
    got = folded({"net": module}, tmp_path, trust=True, save=save)["net"]
    assert torch.allclose(got(x), expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())
    assert got.up.seen == 1
    assert [hook.__name__ for hook in got.up._forward_pre_hooks.values()] == ["first_hook"]
    assert got.again is got.body[0]
    assert all(isinstance(layer.weight, nn.Parameter) for layer in (got.up, got.again, got.body[2], got.last))
    assert not any(
        "WeightNorm" in type(h).__name__ for m in got.modules() for h in m._forward_pre_hooks.values()
    )
    assert "weight" not in vars(got.up)
    assert got.up.weight.requires_grad
    assert not got.last.weight.requires_grad
    reference = removed(module)
    assert set(got.state_dict()) == set(reference.state_dict())
    assert got.scratch.shape == (7,)


def test_the_state_dict_of_a_module_is_torchs(tmp_path: Path) -> None:
    module = net()
    for protocol in (2, 4):
        path = saved(module, tmp_path, pickle_protocol=protocol)
        (state,) = open_checkpoint(path).tree.state_dicts
        assert list(state.tensors) == list(module.state_dict())


def test_a_module_comes_out_as_safetensors_too(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    module = net()
    fold_file(saved(module, tmp_path), tmp_path / "out.safetensors", copy=True)
    got = load_file(tmp_path / "out.safetensors")
    expected = removed(module).state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.allclose(got[key], expected[key], rtol=1e-5, atol=1e-7) for key in got)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_flat_weights_of_an_rnn_are_the_folded_parameters(
    kind: type[nn.LSTM | nn.GRU], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    rnn = legacy(legacy(kind(4, 3, batch_first=True), "weight_ih_l0"), "weight_hh_l0")
    x = torch.randn(2, 5, 4)
    expected = rnn(x)[0].detach()
    got = folded(rnn, tmp_path, trust=True)
    assert torch.allclose(got(x)[0], expected, rtol=1e-6, atol=1e-6)
    assert [name for name, _ in got.named_parameters() if name.endswith(("_g", "_v"))] == []
    assert all(got._flat_weights[at] is getattr(got, name) for at, name in enumerate(got._flat_weights_names))
    half = folded(rnn, tmp_path, trust=True, layers=["weight_ih_l0"])
    assert torch.allclose(half(x)[0], expected, rtol=1e-6, atol=1e-6)
    assert {"weight_hh_l0_g", "weight_ih_l0"} <= {name for name, _ in half.named_parameters()}


def test_a_module_of_a_class_that_is_not_installed_is_folded(tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    fold_file(FIXTURES / "waveglow_module.pt", out, copy=True)
    assert open_checkpoint(out).tree.state_dicts[0].tensors.keys() >= {"WN.0.start.weight", "WN.0.end.weight"}
    with pytest.raises(ModuleNotFoundError, match="glow"):
        torch.load(out, weights_only=False)


def test_two_names_of_one_module_of_which_one_is_wanted_stay_one(tmp_path: Path) -> None:
    conv = legacy(nn.Conv1d(2, 3, 3))
    module = nn.ModuleDict({"a": conv, "b": conv})
    got = folded(module, tmp_path, trust=True, exclude=["b.*"])
    assert got["a"] is got["b"]
    assert isinstance(got["a"].weight, nn.Parameter)
    assert not got["a"]._forward_pre_hooks


def test_the_dim_of_a_hook_must_agree(tmp_path: Path) -> None:
    module = legacy(nn.Linear(4, 4), dim=1)
    (state,) = open_checkpoint(saved(module, tmp_path)).tree.state_dicts
    assert state.dims == {"weight": 1}


# -- TorchScript


def test_a_torchscript_archive_has_the_keys_of_its_state_dict(tmp_path: Path) -> None:
    module = nn.Sequential(new(nn.Conv1d(2, 3, 3)), nn.BatchNorm1d(3), nn.Sequential(nn.Conv1d(3, 2, 1)))
    path = tmp_path / "in.pt"
    traced = torch.jit.trace(module.eval(), torch.zeros(1, 2, 9))  # type: ignore[no-untyped-call]
    torch.jit.save(traced, path)
    theirs = torch.jit.load(path).state_dict()  # type: ignore[no-untyped-call]
    (state,) = open_checkpoint(path).tree.state_dicts
    assert set(state.tensors) == set(theirs)
    got = torch.load(fold(path), weights_only=True)
    expected = removed(module).state_dict()
    assert set(got) == set(expected)
    assert all(torch.allclose(got[key], expected[key], rtol=1e-5, atol=1e-7) for key in got)
    assert same(got["2.0.weight"].detach(), expected["2.0.weight"])


def test_constants_beside_a_plain_pickle_make_no_torchscript(tmp_path: Path) -> None:
    source = saved({"a": pair(), "b": pair(5)}, tmp_path)
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr("in/constants.pkl", "mine")
    # torch itself takes it for one; what it is decides how it is written.
    assert open_checkpoint(source).container == "torch zip"
    assert [state.path for state in open_checkpoint(fold(source)).tree.state_dicts] == ["a", "b"]


# -- size


def test_ten_thousand_tensors_open_quickly(tmp_path: Path) -> None:
    import time

    state = {f"decoder.layers.{index}.weight": torch.ones(2) for index in range(10_000)}
    path = saved({"model": state, "optimizer": {"state": {}, "param_groups": []}}, tmp_path)
    began = time.process_time()
    assert len(open_checkpoint(path).tree.state_dicts[0].entries) == 10_000
    assert time.process_time() - began < 3  # 0.6 s on a slow machine; a quadratic search takes minutes


def test_numbers_that_are_stored_negated_or_conjugated_are_refused_by_name(tmp_path: Path) -> None:
    negated = torch.view_as_complex(torch.randn(4, 3, 2)).conj().imag
    assert negated.is_neg()
    for name, value in (("a", negated), ("b", torch.ones(2, dtype=torch.complex64).conj())):
        torch.save({"w": torch.ones(2), name: value}, tmp_path / "in.pt")
        with pytest.raises(FormatError, match=f"{name} is stored with torch's negative or conjugate bit"):
            fold_file(tmp_path / "in.pt", tmp_path / "out.pt", copy=True)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_flat_weights_of_a_cast_rnn_are_its_parameters(tmp_path: Path) -> None:
    rnn = torch.nn.utils.weight_norm(torch.nn.LSTM(3, 4), "weight_hh_l0")
    torch.save(rnn, tmp_path / "in.pt")
    fold_file(tmp_path / "in.pt", tmp_path / "out.pt", dtype="float16")
    read = torch.load(tmp_path / "out.pt", weights_only=False)
    assert [weight.dtype for weight in read._flat_weights] == [torch.float16] * 4
    names = zip(read._flat_weights_names, read._flat_weights, strict=True)
    assert all(getattr(read, name) is weight for name, weight in names)


def test_only_what_a_kept_tensor_shows_of_a_storage_can_be_too_large(tmp_path: Path) -> None:
    buffer = torch.full((100,), 1e6)
    buffer[:4] = 1
    torch.save({"model": {"s": buffer[:4]}, "other": [buffer]}, tmp_path / "in.pt")
    fold_file(tmp_path / "in.pt", tmp_path / "out.pt", dtype="float16")
    read = torch.load(tmp_path / "out.pt", weights_only=True)
    assert read["model"]["s"].tolist() == [1] * 4
    assert torch.equal(read["other"][0], buffer)


Pair = collections.namedtuple("Pair", "model optimizer")


class Slotted:
    __slots__ = ("model", "note")

    def __init__(self, model: dict[str, Tensor]) -> None:
        self.model = model
        self.note = "kept"


def test_state_dicts_in_namedtuples_tuples_and_slots_are_found(tmp_path: Path) -> None:
    state = {"w_g": torch.rand(4, 1) + 0.5, "w_v": torch.randn(4, 3)}
    optimizer = torch.optim.Adam([torch.zeros(2, requires_grad=True)]).state_dict()
    for holder in (Pair(state, optimizer), (state, optimizer), Slotted(state)):
        torch.save(holder, tmp_path / "in.pt")
        result = fold_file(tmp_path / "in.pt", tmp_path / "out.pt", force=True, copy=True)
        assert len(result.plan.layers) == 1
        read = torch.load(tmp_path / "out.pt", weights_only=False)
        assert type(read) is type(holder)
        if isinstance(read, Slotted):
            assert (list(read.model), read.note) == (["w"], "kept")
        else:
            assert list(read[0]) == ["w"]
            assert read[1] is None, "the optimizer's place stays"


def test_a_tensor_with_an_attribute_is_a_tensor(tmp_path: Path) -> None:
    v = torch.randn(4, 3)
    v.mark = "mine"  # type: ignore[attr-defined]
    torch.save({"w_g": torch.rand(4, 1) + 0.5, "w_v": v, "b": v}, tmp_path / "in.pt")
    fold_file(tmp_path / "in.pt", tmp_path / "out.pt", copy=True)
    read = torch.load(tmp_path / "out.pt", weights_only=False)
    assert list(read) == ["w", "b"]
    assert (read["w"].mark, read["b"].mark) == ("mine", "mine")
    assert torch.equal(read["b"], v)


# -- TorchScript that was frozen


def scripted(folder: Path, *, frozen: bool, module: nn.Module | None = None) -> Path:
    made = module or nn.Sequential(new(nn.Conv1d(3, 8, 5)), nn.Conv1d(8, 2, 3))
    traced = torch.jit.trace(made.eval(), torch.zeros(1, 3, 16))  # type: ignore[no-untyped-call]
    path = folder / ("frozen.pt" if frozen else "traced.pt")
    torch.jit.save(torch.jit.freeze(traced) if frozen else traced, path)
    return path


def test_a_frozen_archive_has_its_weights_in_its_code_and_is_refused(tmp_path: Path) -> None:
    path = scripted(tmp_path, frozen=True)
    for convert in (fold_file, split_file, migrate_file):
        with pytest.raises(
            InputError, match="a frozen TorchScript archive: its weights are constants"
        ) as caught:
            convert(path)
        assert (
            caught.value.fix == "use the archive from before torch.jit.freeze, or a checkpoint of the module"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["frozen.pt"]
    assert any("frozen" in note for note in inspect_file(path).notes)
    assert open_checkpoint(path).container == "TorchScript"  # export goes on


def test_an_archive_that_is_not_frozen_is_folded_also_where_it_has_constants(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = new(nn.Conv1d(3, 8, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * torch.arange(8.0).view(8, 1)  # type: ignore[no-any-return]

    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    for module, layers in ((None, 1), (Scaled(), 1), (Plain(), 0)):
        assert len(fold_layers(scripted(tmp_path, frozen=False, module=module))) == layers


# -- TorchScript archives that pack themselves


class Packing(nn.Module):
    """A module whose code alone knows what its state is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        self.weight = state[0]  # type: ignore[assignment]
        self.training = state[1]


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.linear = Packing(), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(self.linear(x))
        return out


def _scripted(module: nn.Module, path: Path) -> None:
    with deprecated():
        torch.jit.save(torch.jit.script(module), path)


def test_a_module_that_packs_itself_is_refused_with_the_way_to_its_names(tmp_path: Path) -> None:
    _scripted(Packing(), tmp_path / "in.pt")
    with zipfile.ZipFile(tmp_path / "in.pt") as archive:
        assert any(info.compress_type for info in archive.infolist()), "torch compresses its code"
    with pytest.raises(InputError, match="only its code knows the names of its tensors") as caught:
        fold_file(tmp_path / "in.pt", copy=True)
    assert "torch.jit.load(FILE).state_dict()" in caught.value.fix


def test_what_a_part_packs_is_left_out_with_a_note(tmp_path: Path) -> None:
    _scripted(Around(), tmp_path / "in.pt")
    result = fold_file(tmp_path / "in.pt", tmp_path / "o.pt", copy=True)
    assert list(torch.load(tmp_path / "o.pt")) == ["linear.weight", "linear.bias"]
    packed = [note for note in result.notes if "__getstate__" in note]
    assert len(packed) == 1
    assert "Packing" in packed[0]


def test_a_pickle_without_its_protocol_is_written_as_torch_reads_it(tmp_path: Path) -> None:
    source = saved(pair() | {"flag": True}, tmp_path)
    with zipfile.ZipFile(source) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(source, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data[2:] if name.endswith("data.pkl") else data)
    assert torch.load(source, weights_only=True)["flag"] is True
    out = fold(source)
    assert torch.load(out, weights_only=True)["flag"] is True


@pytest.mark.parametrize(
    ("dtype", "numel", "fits"), [("float32", 12, True), ("float16", 12, False), ("float32", 11, False)]
)
def test_a_storage_that_is_told_in_two_ways_is_refused(
    dtype: str, numel: int, fits: bool, tmp_path: Path
) -> None:
    pairs: list[tuple[Any, Any]] = []
    for name, of, count in (("a", "float32", 12), ("b", dtype, numel)):
        storage = storage_record("0", dtype_named(of), "cpu", count)
        pairs.append((name, tensor_record(storage, 0, (3,), (1,), dtype_named(of))))
    source = zipped({"x/data.pkl": dump(Dict(pairs), 2), "x/data/0": bytes(48)}, tmp_path)
    if fits:
        assert inspect_file(source).parameters == 3
        return
    with pytest.raises(FormatError, match=rf"storage 0 is said to be 12 × float32, and {numel} × {dtype}"):
        inspect_file(source)
