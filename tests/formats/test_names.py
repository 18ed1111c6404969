"""Names that would run something are not handed on in a .pt; what merely looks like them is."""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import decimal
import functools
import io
import logging
import os
import pickle
import re
import subprocess
import types
import typing
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.runner import Runner
from tests.helpers.states import output_of
from wnconvert.errors import FormatError, OutputError
from wnconvert.formats.pickle.reader import load
from wnconvert.formats.pickle.values import Dict, Extension, Global, Object, PersistentId
from wnconvert.formats.torch.names import dangerous_names, foreign_names
from wnconvert.verbs.conversion.files.fold import fold_file
from wnconvert.verbs.inspection.inspect import inspect_file

#: Of scanners' published lists, and of what is known to reach files, processes, sockets or the interpreter.
NAMES = """
    __builtin__.apply __builtin__.compile __builtin__.eval __builtin__.exec __builtin__.execfile
    __builtin__.file __builtin__.getattr __builtin__.input __builtin__.open __builtin__.reduce
    __builtins__.eval builtins.__import__ builtins.breakpoint builtins.compile builtins.delattr
    builtins.eval builtins.exec builtins.getattr builtins.globals builtins.help builtins.input
    builtins.map builtins.memoryview builtins.open builtins.print builtins.setattr builtins.type
    builtins.vars

    _aix_support._read_cmd_output _ctypes.dlopen _frozen_importlib._call_with_frames_removed
    _frozen_importlib_external.SourceFileLoader _imp.create_dynamic _io.FileIO _io.open
    _operator.attrgetter _operator.itemgetter _operator.methodcaller _osx_support._read_output
    _pickle.loads _pickle.Unpickler _posixsubprocess.fork_exec _pyrepl.pager.pipe_pager
    _signal.raise_signal _sqlite3.connect _thread.start_new_thread asyncio.create_subprocess_shell
    asyncio.run atexit.register bdb.Bdb.run cProfile.run cProfile.runctx
    code.InteractiveInterpreter.runcode code.interact codeop.compile_command commands.getoutput
    compileall.compile_dir concurrent.futures.process.ProcessPoolExecutor copyreg.pickle cPickle.loads
    ctypes.CDLL ctypes.util.find_library difflib.HtmlDiff distutils.file_util.write_file
    distutils.spawn.spawn doctest.debug_script ensurepip._run_pip faulthandler.enable filecmp.cmp
    fileinput.FileInput ftplib.FTP functools.partial functools.reduce gc.get_objects glob.glob
    http.client.HTTPSConnection httplib.HTTPConnection idlelib.autocomplete.AutoComplete.get_entity
    idlelib.calltip.get_entity idlelib.debugobj.ObjectTreeItem.SetText
    idlelib.pyshell.ModifiedInterpreter.runcode idlelib.run.Executive.runcode imaplib.IMAP4_stream
    imp.load_source importlib.import_module importlib.util.find_spec inspect.getmodule io.FileIO io.open
    itertools.starmap lib2to3.pgen2.grammar.Grammar.loads lib2to3.pgen2.pgen.ParserGenerator.make_label
    linecache.getline logging.FileHandler logging.config.dictConfig marshal.loads mmap.mmap
    multiprocessing.Process multiprocessing.util.spawnv_passfds nntplib.NNTP nt.system ntpath.abspath
    operator.attrgetter operator.itemgetter operator.methodcaller os.path.join os.popen os.system
    pathlib.Path.touch pathlib.Path.unlink pdb.run pickle.Unpickler pickle.loads pkgutil.resolve_name
    platform.popen platform.uname poplib.POP3 popen2.popen3 posix.system posixpath.expanduser profile.run
    profile.runctx pty.spawn py_compile.compile pydoc.locate pydoc.pipepager queue.Queue random.seed
    re.compile rlcompleter.Completer runpy._run_code runpy.run_path select.select
    selectors.DefaultSelector shelve.open shlex.join shutil.rmtree signal.signal site.addsitedir
    smtplib.SMTP socket.create_connection socket.socket socketserver.TCPServer sqlite3.connect
    ssl.get_server_certificate string.Formatter subprocess.Popen subprocess.check_output sys.exit
    sys.modules sysconfig.get_config_var syslog.syslog tarfile.open telnetlib.Telnet
    tempfile.NamedTemporaryFile test.support.script_helper.assert_python_ok threading.Thread timeit.timeit
    timeit.Timer trace.Trace.run trace.Trace.runctx tracemalloc.start types.CodeType types.FunctionType
    types.ModuleType unittest.mock.patch urllib.request.urlopen urllib.urlretrieve urllib2.urlopen
    uuid._get_command_stdout uuid.UUID venv.create warnings.warn wave.open weakref.finalize
    webbrowser.open xml.dom.pulldom.parse xmlrpc.client.ServerProxy zipfile.ZipFile zipimport.zipimporter

    aiohttp.client.ClientSession cffi.FFI cloudpickle.cloudpickle._builtin_type
    cloudpickle.cloudpickle._function_setstate cloudpickle.cloudpickle._make_cell
    cloudpickle.cloudpickle._make_empty_cell cloudpickle.cloudpickle._make_function
    cloudpickle.cloudpickle.subimport dill._dill._create_code dill.loads
    IPython.core.interactiveshell.InteractiveShell joblib.load numpy.ctypeslib.load_library
    numpy.distutils.exec_command.exec_command numpy.f2py.crackfortran.getlincoef numpy.f2py.compile
    numpy.fromfile numpy.load numpy.testing._private.utils.runstring
    numpy.testing._private.utils.assert_warns pandas.eval pandas.read_pickle pandas.io.pickle.read_pickle
    pexpect.spawn pip.main pip._internal.main pkg_resources.run_script requests.api.get requests.get
    setuptools.sandbox.run_setup six.moves.cPickle.loads

    torch._dynamo.guards.GuardBuilder.get torch._inductor.codecache.compile_file torch.compile
    torch.classes.load_library torch.distributed.elastic.rendezvous.api.basichandlers
    torch.distributed.rpc.rpc_sync torch.from_file
    torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression
    torch.fx.graph_module.reduce_graph_module torch.hub.load torch.hub.load_state_dict_from_url
    torch.jit.load torch.jit.unsupported_tensor_ops.execWrapper torch.load torch.multiprocessing.spawn
    torch.ops.load_library torch.package.PackageImporter torch.save torch.serialization.load
    torch.storage._load_from_bytes torch.testing._internal.common_utils.shell
    torch.utils._config_module.ConfigModule torch.utils._config_module.ConfigModule.load_config
    torch.utils.benchmark.Timer torch.utils.bottleneck.__main__.run_autograd_prof
    torch.utils.bottleneck.__main__.run_cprofile torch.utils.collect_env.run
    torch.utils.cpp_extension.load torch.utils.data.datapipes.utils.decoder.basichandlers
    torch.utils.model_zoo.load_url
""".split()
#: What checkpoints name: as values, or since an object is made of it.
INNOCENT = """
    __builtin__.long __builtin__.set __builtin__.unicode __builtin__.xrange __main__.HParams
    _codecs.encode acme.os_config acme.compile acme.eval acme.Model.compile acme.Model.eval
    acme.__main__.HParams acme.lr_lambda argparse.Namespace builtins.dict builtins.frozenset builtins.int
    builtins.object builtins.set builtins.slice collections.Counter collections.OrderedDict
    collections.defaultdict collections.deque datetime.datetime datetime.timedelta datetime.timezone
    decimal.Decimal fractions.Fraction numpy.core.multiarray._reconstruct numpy.core.multiarray.scalar
    numpy.dtype numpy.float64 numpy.ndarray numpy._core.numeric._frombuffer
    omegaconf.dictconfig.DictConfig ossature.System pathlib.PosixPath pathlib._local.PosixPath
    pathlib.WindowsPath sysconfigs.Config torch.FloatStorage torch.Size torch.Tensor torch._C._nn.gelu
    torch.bfloat16 torch.device torch.nn.functional.relu torch.nn.modules.conv.Conv1d
    torch.nn.parameter.Parameter torch.nn.utils.weight_norm.WeightNorm torch.optim.adam.Adam
    torch.serialization._get_layout torch.torch_version.TorchVersion types.SimpleNamespace typing.Any
    torch.nn.backends.thnn._get_thnn_function_backend
""".split()
#: Of packages: what only makes data when it is called, what makes an instance of a class, and neither.
CALLED = """
    __builtin__.set acme.AudioConfig acme._Config acme.Outer.Inner argparse.Namespace
    collections.OrderedDict numpy.core.multiarray._reconstruct numpy.dtype
    numpy.random._pickle.__bit_generator_ctor numpy.random.bit_generator.__pyx_unpickle_SeedSequence
    pathlib.PosixPath re._compile torch._utils._rebuild_tensor_v2 torch.device
    transformers.trainer_utils.IntervalStrategy
""".split()
MADE = [*CALLED, "acme.dotdict", "easydict.EasyDict", "scipy.sparse._csr.csr_matrix"]
NOT_CALLED = """
    __main__.main acme.Outer.make acme._make acme.dotdict acme.lr_lambda acme.Model.from_pretrained numpy.ones
    torch._C._nn.gelu torch.nn.functional.relu torch.nn.init.normal_ typing.NamedTuple
""".split()


def named(dotted: str) -> Global:
    module, _, name = dotted.rpartition(".")
    return Global(module, name)


def getattr_of(target: object, *rest: object) -> Object:
    return Object("REDUCE", Global("builtins", "getattr"), (target, *rest))


def call_of(dotted: str, op: str = "REDUCE", *args: object) -> Object:
    return Object(op, named(dotted), args)


@pytest.mark.parametrize("dotted", NAMES)
def test_what_reaches_further_than_data_is_dangerous_wherever_it_stands(dotted: str) -> None:
    assert dangerous_names([{}, (named(dotted),)][1:]) == [dotted]
    for op in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ"):
        assert dangerous_names(call_of(dotted, op)) == [dotted]


@pytest.mark.parametrize("dotted", INNOCENT)
def test_what_merely_looks_like_it_is_not(dotted: str) -> None:
    assert dangerous_names([named(dotted)]) == []


def test_what_makes_data_may_be_called_and_other_functions_of_packages_may_not() -> None:
    assert [dotted for dotted in CALLED if dangerous_names(call_of(dotted))] == []
    assert [dotted for dotted in NOT_CALLED if not dangerous_names(call_of(dotted))] == []
    assert [dotted for dotted in NOT_CALLED if dangerous_names([named(dotted)])] == []


def test_only_a_class_can_stand_where_an_instance_is_made() -> None:
    assert [dotted for dotted in MADE if dangerous_names(call_of(dotted, "NEWOBJ"))] == []
    old = call_of(
        "copy_reg._reconstructor", "REDUCE", named("acme.dotdict"), named("__builtin__.dict"), Dict()
    )
    assert dangerous_names(old) == []


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (call_of("copyreg._reconstructor", "REDUCE", named("a.B"), named("a.run"), None), "a.run"),
        (call_of("torch._tensor._rebuild_from_type_v2", "REDUCE", named("a.run"), named("a.B"), ()), "a.run"),
        (call_of("numpy.random._pickle.__generator_ctor", "REDUCE", "id", named("a.run")), "a.run"),
        (call_of("numpy.random._pickle.__bit_generator_ctor", "REDUCE", named("a.run")), "a.run"),
        (
            Object("REDUCE", named("copyreg._reconstructor"), [named("a.B"), named("a.C"), None]),
            "copyreg._reconstructor",
        ),
    ],
)
def test_what_has_something_called_for_it_is_held_like_a_call(call: Object, told: str) -> None:
    assert dangerous_names(call) == [told]


def test_what_a_call_gives_is_not_called() -> None:
    assert dangerous_names(Object("REDUCE", call_of("acme.Factory"), ())) == ["acme.Factory()"]
    assert dangerous_names(Object("NEWOBJ", call_of("acme.Factory"), ())) == ["acme.Factory()"]
    bound = getattr_of(call_of("acme.Model", "NEWOBJ"), "load")
    assert dangerous_names([bound]) == []
    assert dangerous_names(Object("REDUCE", bound, ("x",))) == ["builtins.getattr()"]


def test_a_nested_class_may_be_made_and_its_functions_may_not_be_called() -> None:
    inner = getattr_of(named("acme.Outer"), "Inner")
    assert dangerous_names(Object("NEWOBJ", inner, ())) == []
    assert dangerous_names(Object("REDUCE", getattr_of(inner, "Innermost"), ())) == []
    assert dangerous_names(Object("REDUCE", getattr_of(inner, "load"), ("x",))) == ["acme.Outer.Inner.load"]


def test_what_is_there_already_is_not_changed() -> None:
    for giver in (
        getattr_of(named("acme.Outer"), "Inner"),
        call_of("_operator.getitem", "REDUCE", named("typing.Dict"), ()),
        call_of("types.GenericAlias", "REDUCE", named("builtins.list"), (named("builtins.int"),)),
    ):
        assert dangerous_names([giver]) == []
        giver.changes = [*giver.changes, ("build", Dict([("forward", named("acme.run"))]))]
        assert len(dangerous_names([giver])) == 1


def test_a_class_or_function_itself_is_not_changed() -> None:
    for pickled in (b"cacme\nModel\n}b.", b"cacme\nModel\nN}\x86b.", b"cacme\nrun\nK\x01a."):
        with pytest.raises(FormatError, match="changes a global in a way that none allows"):
            load(pickled)


def test_types_are_spelled_by_calls_that_are_harmless() -> None:
    assert dangerous_names(call_of("builtins.type", "REDUCE", None)) == []
    assert dangerous_names(call_of("builtins.type", "REDUCE", "name", (), Dict())) == ["builtins.type"]
    assert dangerous_names(call_of("operator.getitem", "REDUCE", [1], 0)) == ["operator.getitem"]
    assert dangerous_names(call_of("types.GenericAlias", "REDUCE", [1], 0)) == ["types.GenericAlias"]
    assert dangerous_names(call_of("types.GenericAlias", "REDUCE", named("os.system"), ())) == ["os.system"]


def test_a_class_of_a_legacy_file_is_the_one_that_its_record_names() -> None:
    for dotted, told in (("acme.Net", []), ("os.system", ["os.system"])):
        record = PersistentId(("module", named(dotted), "net.py", "class Net: ..."))
        assert dangerous_names(Object("NEWOBJ", record, ())) == told
    assert dangerous_names(Object("REDUCE", PersistentId("other"), ())) == ["a callable"]


def test_a_number_of_the_extension_registry_says_nothing() -> None:
    assert dangerous_names([Extension(7)]) == ["the copyreg extension 7"]
    assert dangerous_names(Object("REDUCE", Extension(7), ())) == ["the copyreg extension 7"]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.serialization", "os.system"),
        ("torch.nn.functional", "sys"),
        ("torch", "nn.__builtins__"),
        ("acme", "Model.__init__.__globals__"),
        ("torch", "__builtins__"),
        ("builtins", "eval.x"),
        ("torch", "builtins.eval"),
        ("torch", "hub.load"),
        ("acme", "torch.hub.load"),
        ("acme", "pickle.loads"),
        ("acme", "__loader__"),
        ("collections", "OrderedDict.fromkeys"),
        ("collections.OrderedDict", "_sys.modules"),
    ],
)
def test_a_dotted_name_is_a_chain_of_attributes(module: str, name: str) -> None:
    assert dangerous_names([Global(module, name)]) == [f"{module}.{name}"]


@pytest.mark.parametrize(
    "name", ["Outer.Inner", "Model.forward", "Model.eval", "Model.copy", "Model.os", "Model.__new__", "A.B.C"]
)
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
        (Global("torch", "nn"), "os"),
        (Global("torch", "nn"), "builtins"),
        (Global("mine", "Outer"), Object("REDUCE", Global("mine", "Name"), ())),
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
    for other in (Object("REDUCE", Global("mine", "Partial"), (getter,)), [getter]):
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


@dataclass
class Calls:
    """Pickled as a call, which no test makes."""

    function: Callable[..., object]
    arguments: tuple[object, ...]

    def __reduce__(self) -> tuple[object, ...]:
        return self.function, self.arguments


def test_a_call_that_would_write_a_file_is_refused_and_not_made(tmp_path: Path) -> None:
    trap = str(tmp_path / "trap")
    calls = [
        Calls(open, (trap, "w")),
        Calls(os.mkdir, (trap,)),
        Calls(Path.touch, (Path(trap),)),
        Calls(subprocess.run, (["touch", trap],)),
        Calls(logging.FileHandler, (trap,)),
        Calls(np.save, (trap, 1)),
        Calls(torch.save, (1, trap)),
        Calls(functools.partial, (os.mkdir, trap)),
        Calls(pickle.loads, (pickle.dumps(Calls(os.mkdir, (trap,))),)),
    ]
    for number, call in enumerate(calls):
        source = save(tmp_path / f"{number}.pt", call)
        named = inspect_file(source).dangerous
        assert named
        with pytest.raises(OutputError, match=re.escape(f"names {named[0]}")):
            fold_file(source, tmp_path / f"{number}.out.pt")
        fold_file(source, tmp_path / f"{number}.safetensors")
        assert list(load_file(tmp_path / f"{number}.safetensors")) == ["a.weight"]
    assert not (tmp_path / "trap").exists()
    assert not list(tmp_path.glob("*.out.pt"))


def test_settings_of_the_usual_kinds_go_along(tmp_path: Path) -> None:
    extra = {
        "config": argparse.Namespace(path=Path("logs"), betas=(0.8, 0.99), seen=collections.Counter("ab")),
        "other": types.SimpleNamespace(since=dt.datetime.now(dt.timezone.utc), cost=decimal.Decimal(1)),
        "numbers": [np.float64(0.5), np.arange(3), np.random.default_rng(0), np.dtype("float32")],
        "types": [int, type(None), typing.Any, typing.Dict[str, int], list[int], torch.optim.Adam],  # noqa: UP006
        "functions": [torch.tanh, torch.nn.functional.relu],
        "default": collections.defaultdict(list, {"a": [1]}),
        "pattern": re.compile("[a-z]+"),
        "state": io.BytesIO(b"of TransformerEngine"),
    }
    source = save(tmp_path / "model.pt", extra)
    assert inspect_file(source).dangerous == ()
    fold_file(source, tmp_path / "out.pt")
    found = torch.load(tmp_path / "out.pt", weights_only=False)["extra"]
    assert found["config"] == extra["config"]
    assert found["functions"] == extra["functions"]


@pytest.mark.parametrize("extra", [Runs(), [{"deep": (Runs(),)}]])
def test_a_file_with_a_dangerous_name_is_written_as_safetensors_alone(extra: object, tmp_path: Path) -> None:
    source = save(tmp_path / "model.pt", extra)
    with pytest.raises(OutputError, match=r"names __builtin__\.eval") as caught:
        fold_file(source)
    assert "safetensors" in caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    fold_file(source, tmp_path / "out.safetensors")
    assert list(load_file(tmp_path / "out.safetensors")) == ["a.weight"]


def mixed(path: Path) -> Path:
    """State dicts of one layer each, with settings of every kind beside and between them."""
    pair = {"a.weight_g": torch.ones(3, 1), "a.weight_v": torch.full((3, 4), 0.5)}
    shared = argparse.Namespace(rate=1)
    tree = {
        "model": pair,
        "epoch": 3,
        "settings": shared,
        "again": (shared, 7),
        "more": {"ema": dict(pair), "deep": [functools.partial(int)], "steps": [1, 2]},
        "both": [Runs(), "text"],
    }
    torch.save(tree, path)
    return path


def test_what_names_foreign_classes_beside_state_dicts_is_left_out_on_demand(tmp_path: Path) -> None:
    source = mixed(tmp_path / "model.pt")
    with pytest.raises(OutputError) as caught:
        fold_file(source)
    assert caught.value.fix.startswith("--drop-foreign, which leaves out what names them, or ")
    made = output_of(fold_file(source, tmp_path / "out.pt", drop_foreign=True, verify=True))
    found = torch.load(made, weights_only=True)
    assert list(found) == ["model", "epoch", "more"]
    assert found["more"]["steps"] == [1, 2]
    assert list(found["more"]["ema"]) == ["a.weight"]
    assert inspect_file(made).foreign == ()


def test_each_verb_tells_what_it_leaves_out_so(tmp_path: Path, run: Runner) -> None:
    source = mixed(tmp_path / "model.pt")
    left = [
        "left out: settings, again: it names argparse.Namespace",
        "left out: both: it names __builtin__.eval",
        "left out: more.deep: it names __builtin__.long, functools.partial",
    ]
    for line in ("fold", "migrate", "split --layers a.weight --dim 0"):
        verb, *options = line.split()
        ended = run(verb, source, *options, "--drop-foreign", "-o", tmp_path / f"{verb}.pt")
        assert ended.returncode == 0
        assert sorted(each for each in ended.stdout.splitlines() if each.startswith("left out")) == sorted(
            left
        )
        assert list(torch.load(tmp_path / f"{verb}.pt", weights_only=True)) == ["model", "epoch", "more"]


def test_nothing_else_is_left_out_with_it(tmp_path: Path) -> None:
    source = save(tmp_path / "model.pt", {"name": "a", "size": torch.Size([2]), "seen": {1}})
    plain = output_of(fold_file(source, tmp_path / "a.pt")).read_bytes()
    assert output_of(fold_file(source, tmp_path / "b.pt", drop_foreign=True)).read_bytes() == plain
    to_tensors = fold_file(source, tmp_path / "c.safetensors", drop_foreign=True, dry_run=True)
    assert to_tensors.dropped == fold_file(source, tmp_path / "c.safetensors", dry_run=True).dropped


def test_what_stands_in_a_state_dict_is_not_beside_it(tmp_path: Path) -> None:
    torch.save(
        {"a.weight_g": torch.ones(3, 1), "a.weight_v": torch.ones(3, 4), "x": Runs()}, tmp_path / "x.pt"
    )
    for drop_foreign in (False, True):
        with pytest.raises(OutputError) as caught:
            fold_file(tmp_path / "x.pt", tmp_path / "out.pt", drop_foreign=drop_foreign)
        assert caught.value.fix == "-o OUT.safetensors, which holds tensors alone"


def test_an_optimizer_that_is_left_out_takes_its_names_along(tmp_path: Path) -> None:
    layer = torch.nn.Linear(4, 3)
    optimizer = {"state": {}, "param_groups": [{"params": [0], "rule": functools.partial(int)}]}
    pair = {"a.weight_g": torch.ones(3, 1), "a.weight_v": layer.weight.data}
    torch.save({"model": pair, "optim": optimizer}, tmp_path / "x.pt")
    assert list(torch.load(output_of(fold_file(tmp_path / "x.pt")), weights_only=True)) == ["model"]
    with pytest.raises(OutputError, match=r"names functools\.partial"):
        fold_file(tmp_path / "x.pt", keep_optimizer=True, force=True)


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
