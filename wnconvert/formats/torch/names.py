"""The names in a pickle that are not torch's own, and those that could run something when it is loaded.

Nothing is imported here, so a name is judged as it is spelled. What a pickle may call is data alone: what
torch's ``weights_only`` reader makes, a short list of the standard library, NumPy's arrays and numbers, and
classes of packages. A class is known by its capital letter, or since it stands where only a class works.

This does not scan for malice, and what a package's own class does is not known; it keeps wnconvert from
handing on what is more than data. Whoever loads a file decides what to trust
(``torch.load(weights_only=True)``).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence

from wnconvert.formats.pickle.values import (
    Extension,
    Global,
    Object,
    PersistentId,
    Value,
    children,
    globals_of,
    walk,
)
from wnconvert.formats.torch.known_names import (
    DATA,
    GENERIC,
    GETATTR,
    GETITEM,
    MAKERS,
    READ_BY_TORCH,
    REBUILD,
    RESERVED,
    STANDARD_MODULES,
    in_python_3,
)

__all__ = ["Dangers", "dangerous_names", "foreign_among", "foreign_names"]


def foreign_names(root: Value) -> list[str]:
    """The dotted names in a pickle that ``torch.load(weights_only=True)`` might not know, sorted."""
    return foreign_among(globals_of(root))


def foreign_among(values: Iterable[Value]) -> list[str]:
    """The same of the globals among some values, each name once."""
    named = {value.dotted: value for value in values if isinstance(value, Global)}
    return sorted(dotted for dotted, value in named.items() if not _is_read_by_torch(_dotted(value)))


def _is_read_by_torch(dotted: str) -> bool:
    return dotted in READ_BY_TORCH or dotted.startswith(REBUILD)


def dangerous_names(root: Value) -> list[str]:
    """What a pickle names that is more than data, or calls that is no type of data; sorted."""
    dangers = Dangers()
    dangers.look_at((root,))
    for value in walk(root):
        dangers.look_at(value)
    return dangers.names


class Dangers:
    """What is more than data in values that are looked at one by one: each tuple, list and node of a pickle.

    Nested classes and methods are pickled as ``getattr`` of something harmless, ``typing.Dict[str, int]`` as
    ``getitem``, ``list[int]`` as ``GenericAlias``, and the type of None as ``type``: such calls give what is
    there already.
    """

    def __init__(self) -> None:
        self._found: set[str] = set()

    @property
    def names(self) -> list[str]:
        """All that were found, sorted."""
        return sorted(self._found)

    def look_at(self, value: Value) -> None:
        """Find what a value names or calls itself; what lies deeper is another value."""
        giver, kind = None, type(value)
        if kind is Extension:
            self._found.add(_shown(value))
        elif kind is Object and not _makes_data(value):
            giver = value.callee if _gives_what_is_there(value) else None
            self._found.update(_in_change(value) if giver else _in_call(value))
        for child in value if kind is tuple else children(value):
            if type(child) is Global and child is not giver and not _is_harmless(child):
                self._found.add(child.dotted)


# -- names


def _dotted(named: Global) -> str:
    """The dotted name as Python 3 reads it."""
    return _joined(named.module, named.name)


@functools.lru_cache(4096)
def _joined(module: str, name: str) -> str:
    return ".".join(in_python_3(module, name))


def _is_harmless(named: Global) -> bool:
    """Whether a name may stand in a file: it is data, or of a package, and not of one that is reserved."""
    return _is_path_to_data(named.module, named.name)


@functools.lru_cache(4096)
def _is_path_to_data(module: str, name: str) -> bool:
    """Whether a name and its attributes lead nowhere else.

    ``torch.serialization os.system`` is os.system too: what hangs on a module is judged as a path of its own.
    """
    module, name = in_python_3(module, name)
    attributes = name.split(".")
    path = [*module.split("."), *attributes]
    if ".".join(path) in DATA or ".".join(path) in MAKERS:
        return True
    below = next((at for at, part in enumerate(attributes) if _is_class(part)), len(attributes))
    modules = [attributes[at:] for at in range(below) if attributes[at] in _MODULES]
    return all(map(_is_plain, attributes)) and all(map(_leads_to_data, [path, *modules]))


_MODULES = STANDARD_MODULES | {name.split(".")[0] for name in RESERVED}


def _leads_to_data(path: Sequence[str]) -> bool:
    """Whether a path that begins at a module is data of the standard library, or in a harmless package."""
    dotted = ".".join(path)
    if path[0] in STANDARD_MODULES:
        return dotted in DATA or dotted in MAKERS or path[0] == "typing"
    return dotted in MAKERS or not any(".".join(path[:end]) in RESERVED for end in range(1, len(path) + 1))


def _is_plain(attribute: str) -> bool:
    return not attribute.startswith("__") or attribute == "__new__" or attribute.startswith("__pyx_unpickle_")


def _is_class(name: str) -> bool:
    """Whether a name is spelled as that of a class, or of the function by which Cython makes one."""
    return name.removeprefix("__pyx_unpickle_").lstrip("_")[:1].isupper()


# -- calls


def _makes_data(call: Object) -> bool:
    """Whether a record calls a name that makes data of whatever it is given, as most do."""
    callee = call.callee
    return isinstance(callee, Global) and _is_maker_of_any(callee.module, callee.name)


@functools.lru_cache(4096)
def _is_maker_of_any(module: str, name: str) -> bool:
    dotted = _joined(module, name)
    return dotted not in MAKERS and (dotted in DATA or _is_read_by_torch(dotted))


def _in_call(call: Object) -> Iterator[str]:
    """The names of what a record calls, or has called for it, where that is no type of data."""
    callee = _meant(call.callee)
    role = "class" if call.op in ("NEWOBJ", "NEWOBJ_EX") else "call"
    if not _may_be_used(callee, role):
        yield _shown(callee)
    places = MAKERS.get(_dotted(callee), {}) if isinstance(callee, Global) else {}
    if places and not isinstance(call.args, tuple):
        yield _shown(callee)
    elif places:
        used = ((_meant(call.args[at]), role) for at, role in places.items() if at < len(call.args))
        yield from (
            _shown(value)
            for value, role in used
            if isinstance(value, (Global, Object, Extension)) and not _may_be_used(value, role)
        )


def _in_change(giver: Object) -> Iterator[str]:
    """What is there already may not be changed."""
    if giver.changes:
        yield _shown(giver.callee)


def _may_be_used(value: Value, role: str) -> bool:
    """Whether a value may be called, or an instance made of it.

    What is not harmless at all is told as a name; here is only whether it is the kind of name.
    """
    if not isinstance(value, Global):
        return False
    dotted = _dotted(value)
    if dotted in DATA or dotted in MAKERS or _is_read_by_torch(dotted) or role == "class":
        return True
    return _is_class(value.name.rpartition(".")[2]) and not dotted.startswith("typing.")


def _meant(value: Value) -> Value:
    """The name that stands for a value where it is called: of a nested class, or of one of a legacy file."""
    if isinstance(value, PersistentId) and isinstance(value.pid, tuple) and value.pid[:1] == ("module",):
        return value.pid[1] if len(value.pid) > 1 else None
    path = _path_of(value)
    return value if path is None else path


# -- calls that give what is there


def _gives_what_is_there(call: Object) -> bool:
    """Whether a record is a plain ``getattr``, ``typing.X[…]``, ``list[…]``, or the type of None."""
    if not isinstance(call.callee, Global) or call.op != "REDUCE" or not isinstance(call.args, tuple):
        return False
    dotted, args = _dotted(call.callee), call.args
    if dotted == GETATTR:
        path = _path_of(call)
        return _is_getattr(call) and _is_plain(args[1]) and (path is None or _is_harmless(path))
    if dotted in GETITEM:
        return len(args) == 2 and isinstance(args[0], Global) and args[0].module == "typing"
    if dotted == GENERIC:
        return len(args) == 2 and isinstance(args[0], Global)
    return dotted == "builtins.type" and args == (None,)


def _is_getattr(value: Value) -> bool:
    return (
        isinstance(value, Object)
        and isinstance(value.callee, Global)
        and _dotted(value.callee) == GETATTR
        and isinstance(value.args, tuple)
        and len(value.args) == 2
        and isinstance(value.args[1], str)
    )


_DEEPEST = 16  # classes in classes


def _path_of(value: Value) -> Global | None:
    """The name that ``getattr`` of a name, and of such, spells; None for any other value."""
    names: list[str] = []
    while _is_getattr(value) and len(names) < _DEEPEST:
        names.append(value.args[1])
        value = value.args[0]
    if not names or not isinstance(value, Global):
        return None
    return Global(value.module, ".".join([value.name, *reversed(names)]))


def _shown(value: Value) -> str:
    if isinstance(value, Global):
        return value.dotted
    if isinstance(value, Object):
        return f"{_shown(value.callee)}()"
    return f"the copyreg extension {value.code}" if isinstance(value, Extension) else "a callable"
