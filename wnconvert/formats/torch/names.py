"""The names in a pickle that are not torch's own, and those that would run something when loaded.

This does not scan for malice; it keeps wnconvert from handing on dangerous names. Whoever loads a file
decides what to trust (``torch.load(weights_only=True)``).
"""

from __future__ import annotations

from wnconvert.formats.pickle.values import Global, Object, Value, children, globals_of, walk
from wnconvert.tensors.dtypes import DTYPES

__all__ = ["dangerous_names", "foreign_names"]


_DANGEROUS_MODULES = frozenset("os posix nt subprocess sys shutil socket runpy importlib".split())
_BUILTINS = ("builtins", "__builtin__")
_DANGEROUS_BUILTINS = frozenset("eval exec compile __import__".split())
_GETATTR = ("builtins.getattr", "__builtin__.getattr")

_TORCHS_OWN = frozenset(
    {
        "collections.OrderedDict",
        "torch.Size",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch.storage.UntypedStorage",
        "torch.storage.TypedStorage",
    }
    | {f"torch.{dtype.name}" for dtype in DTYPES.values()}
    | {f"torch.{dtype.storage}" for dtype in DTYPES.values() if dtype.storage}
    | {
        f"{module}.{name}"
        for module in _BUILTINS
        for name in ("set", "frozenset", "complex", "bytearray", "slice")
    }
    | {"_codecs.encode"}
)


def foreign_names(root: Value) -> list[str]:
    """The dotted names in a pickle that ``torch.load(weights_only=True)`` might not know, sorted."""
    return sorted(
        named.dotted
        for named in globals_of(root)
        if named.dotted not in _TORCHS_OWN and not named.dotted.startswith("torch._utils._rebuild_")
    )


def dangerous_names(root: Value) -> list[str]:
    """The names in a pickle that reach the operating system or the interpreter, sorted.

    ``getattr`` of something inert with a constant plain name is how nested classes are pickled; with
    any other name it could reach anything. (``__new__`` is how objects with keyword arguments are.)
    """
    named = set()
    for value in walk(root):
        if isinstance(value, Global) and _is_dangerous(value):
            named.add(value.dotted)
        inert = value.callee if isinstance(value, Object) and _is_plain_getattr(value) else None
        named |= {
            item.dotted
            for item in children(value)
            if isinstance(item, Global) and item.dotted in _GETATTR and item is not inert
        }
    return sorted(named)


def _is_dangerous(item: Global) -> bool:
    first, *attributes = item.name.split(".")  # "torch.serialization" "os.system" is os.system too
    return (
        item.module.split(".")[0] in _DANGEROUS_MODULES
        or _leads_out(first)
        or not all(_is_plain(name) for name in attributes)
        or (item.module in _BUILTINS and first in _DANGEROUS_BUILTINS)
    )


def _leads_out(name: str) -> bool:
    """Whether an attribute of this name is a dangerous module, or where those are found."""
    return name in _DANGEROUS_MODULES or name in _BUILTINS or name == "__builtins__"


def _is_plain(name: str) -> bool:
    return name == "__new__" or not (name.startswith("__") or _leads_out(name))


def _is_plain_getattr(call: Object) -> bool:
    if not (call.is_call_of(*_GETATTR) and isinstance(call.args, tuple) and len(call.args) == 2):
        return False
    return isinstance(call.args[1], str) and _is_plain(call.args[1])
