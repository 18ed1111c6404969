"""What is known of the callables that pickles name: what only makes data, and what reaches further.

The standard library is held to a short list of types of data; of packages, those are named whose work is to
run, to load or to send. Python 2's names count as those that Python 3 reads in their place.
"""

from __future__ import annotations

import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Mapping
from types import MappingProxyType

from wnconvert.tensors.dtypes import DTYPES

__all__ = [
    "DATA",
    "GENERIC",
    "GETATTR",
    "GETITEM",
    "MAKERS",
    "READ_BY_TORCH",
    "REBUILD",
    "RESERVED",
    "STANDARD_MODULES",
    "in_python_3",
]


GETATTR = "builtins.getattr"
GETITEM = ("_operator.getitem", "operator.getitem")  # how typing.Dict[str, int] is pickled
GENERIC = "types.GenericAlias"  # and list[int]
REBUILD = "torch._utils._rebuild_"  # functions that make tensors and parameters begin so

#: Names that are in almost every file of torch.save.
READ_BY_TORCH = frozenset(
    {
        "collections.OrderedDict",
        "torch.Size",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch.storage.UntypedStorage",
        "torch.storage.TypedStorage",
        "_codecs.encode",
    }
    | {f"torch.{dtype.name}" for dtype in DTYPES.values()}
    | {f"torch.{dtype.storage}" for dtype in DTYPES.values() if dtype.storage}
    | {f"builtins.{name}" for name in ("set", "frozenset", "complex", "bytearray", "slice")}
)

_BUILTIN_DATA = """
    bool int float complex str bytes bytearray list tuple set frozenset dict slice range object Ellipsis
    NotImplemented
"""
#: Of the standard library, what is data: its constructors compute nothing else.
DATA = frozenset(
    {
        "_codecs.encode",
        "_io.BytesIO",
        "argparse.Namespace",
        "collections.Counter",
        "collections.OrderedDict",
        "collections.defaultdict",
        "collections.deque",
        "decimal.Decimal",
        "fractions.Fraction",
        "io.BytesIO",
        "types.SimpleNamespace",
    }
    | {f"builtins.{name}" for name in _BUILTIN_DATA.split()}
    | {f"datetime.{name}" for name in "date time datetime timedelta timezone".split()}
    | {
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")
        for name in "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath".split()
    }
)

#: Functions, and types in small letters, that only make data; by the place of an argument, what it is used
#: as: a "class" of which an instance is made, or what is called ("call").
MAKERS: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "copyreg.__newobj__": {0: "class"},
        "copyreg.__newobj_ex__": {0: "class"},
        "copyreg._reconstructor": {0: "class", 1: "call"},
        "re._compile": {},
        "torch.device": {},
        "torch._tensor._rebuild_from_type": {0: "call", 1: "class"},
        "torch._tensor._rebuild_from_type_v2": {0: "call", 1: "class"},
        "torch.tensor._rebuild_from_type": {0: "call", 1: "class"},
        "torch._utils._rebuild_wrapper_subclass": {0: "class"},
        "torch.nn.backends.thnn._get_thnn_function_backend": {},  # in modules of torch before 1.3
        "torch.serialization._get_layout": {},
        "numpy.dtype": {},
        "numpy.ma.core._mareconstruct": {0: "class", 1: "class"},
        **{
            f"numpy.{core}.{name}": {0: "class"} if name == "multiarray._reconstruct" else {}
            for core in ("core", "_core")
            for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
        },
        "numpy.random._pickle.__bit_generator_ctor": {0: "call"},
        "numpy.random._pickle.__generator_ctor": {1: "call"},
        "numpy.random._pickle.__randomstate_ctor": {1: "call"},
        "numpy.random.__RandomState_ctor": {},
    }
)

# The running Python's modules, and those that only older or newer ones have, in so far as no package of
# anyone's is likely to be called so.
_OTHER_STANDARD = """
    __builtins__ _bootlocale _interpreters _posixsubprocess _pyrepl _remote_debugging _winapi
    annotationlib asynchat asyncore audioop binhex cgi cgitb commands crypt distutils dummy_threading
    httplib imghdr imp imputil lib2to3 macpath mailcap mimetools msilib nis nntplib nt os2 os2emxpath
    ossaudiodev pipes popen2 posixfile rexec smtpd sndhdr spwd statvfs sunau telnetlib test urllib2
    urlparse xdrlib
"""
STANDARD_MODULES = frozenset({*sys.stdlib_module_names, *_OTHER_STANDARD.split()})

#: Packages and modules whose work is to run, load, compile, send or install, or single functions that do.
RESERVED = frozenset(
    """
    IPython aiohttp celery cffi cloudpickle compression.bz2 compression.gzip compression.lzma
    compression.zstd cython Cython dask dill distributed execnet fabric fsspec gdown
    huggingface_hub.file_download httpx invoke ipykernel jinja2 joblib jupyter_client
    keras.models.load_model loky mako multiprocess nbconvert nbformat numba paramiko pathos pexpect pip
    pkg_resources plumbum psutil.Popen ptyprocess pythoncom pywintypes ray requests setuptools sh
    six.moves tensorflow.io tensorflow.load_op_library tornado twisted urllib3 virtualenv websocket
    websockets werkzeug win32api win32com win32process wmi

    numpy.ctypeslib numpy.distutils numpy.f2py numpy.testing numpy.load numpy.save numpy.savez
    numpy.savetxt numpy.savez_compressed numpy.loadtxt numpy.genfromtxt numpy.fromfile numpy.fromregex
    numpy.DataSource numpy.lib numpy.compat.py3k numpy._pytesttester pandas.read_pickle pandas.io
    pandas.eval pandas.core.computation scipy.io scipy._lib._ccallback scipy.weave

    torch._C._jit_get_operation torch._C._import_ir_module_from_package torch._appdirs torch._classes
    torch._custom_ops torch._dynamo torch._export torch._functorch torch._higher_order_ops torch._inductor
    torch._library torch._numpy torch._ops torch._python_dispatcher torch._weights_only_unpickler
    torch.classes torch.compile torch.compiler torch.contrib torch.distributed.elastic
    torch.distributed.launch torch.distributed.launcher torch.distributed.rpc torch.distributed.run
    torch.distributed.nn torch.export torch.from_file torch.fx torch.hub torch.jit torch.library
    torch.load torch.monitor torch.multiprocessing torch.onnx torch.ops torch.package torch.profiler
    torch.save torch.serialization torch.storage._load_from_bytes torch.testing torch.utils._config_module
    torch.utils._cpp_extension_versioner torch.utils._triton torch.utils.backend_registration
    torch.utils.benchmark torch.utils.bottleneck torch.utils.bundled_inputs torch.utils.collect_env
    torch.utils.cpp_backtrace torch.utils.cpp_extension torch.utils.data.datapipes torch.utils.file_baton
    torch.utils.hipify torch.utils.jit torch.utils.mobile_optimizer torch.utils.model_dump
    torch.utils.model_zoo torch.utils.show_pickle torch.utils.tensorboard torch.utils.viz torchvision.io
    torchaudio.io torchaudio.sox_effects
    """.split()
)


def in_python_3(module: str, name: str) -> tuple[str, str]:
    """The module and name that Python 3 reads for those of a pickle of Python 2.

    >>> in_python_3("__builtin__", "xrange"), in_python_3("httplib", "HTTPConnection")
    (('builtins', 'range'), ('http.client', 'HTTPConnection'))
    """
    module, name = NAME_MAPPING.get((module, name), (module, name))
    return IMPORT_MAPPING.get(module, module), name
