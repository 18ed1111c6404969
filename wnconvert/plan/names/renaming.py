"""New names by rules: prefixes taken off, whole dotted parts replaced, a prefix put before. Strings only."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from wnconvert.errors import ArgumentError
from wnconvert.frozen import dataclass
from wnconvert.messages import listed, option, printable

__all__ = ["Rename", "Renaming"]


@dataclass(frozen=True, slots=True)
class Rename:
    """The whole parts ``old`` of a name become ``new``, wherever they stand; ``*`` is any one part.

    ``at_start`` is true for parts that must stand at the beginning of a name.

    >>> rename = Rename.of("encoder.*.conv=enc.*.c")
    >>> rename("model.encoder.0.conv.weight"), rename("encoder.0.conv_pre.weight")
    ('model.enc.0.c.weight', 'encoder.0.conv_pre.weight')
    """

    old: tuple[str, ...]
    new: tuple[str, ...]
    at_start: bool = False

    @classmethod
    def of(cls, text: str) -> Rename:
        """The rename that ``OLD=NEW`` says. Raises ``ArgumentError`` where it says none."""
        old, sign, new = text.partition("=")
        if not sign:
            raise ArgumentError(f"{text!r} is not a rename", fix=f"{option('rename', glob='OLD=NEW')}")
        return cls.from_to(old, new)

    @classmethod
    def from_to(cls, old: str, new: str) -> Rename:
        """The rename of the parts ``old``, with a dot before them where they must begin a name."""
        at_start = old.startswith(".") and len(old) > 1
        parts, instead = tuple(old.removeprefix(".").split(".")), tuple(new.split(".")) if new else ()
        example = option("rename", glob="encoder.*.conv=enc.*.conv")
        for part in (*parts, *instead):
            if not part or ("*" in part and part != "*"):
                what = "an empty part" if not part else f"{part!r}, and * stands for a whole part"
                raise ArgumentError(f"the rename {old!r} to {new!r} has {what}", fix=f"as in {example}")
        if instead.count("*") != parts.count("*"):
            raise ArgumentError(
                f"the rename {old!r} to {new!r} has {parts.count('*')} × * on its left and "
                f"{instead.count('*')} on its right",
                fix=f"as many on both sides, as in {example}",
            )
        return cls(parts, instead, at_start)

    def __str__(self) -> str:
        return f"{'.' if self.at_start else ''}{'.'.join(self.old)}={'.'.join(self.new)}"

    def __call__(self, name: str) -> str:
        """The new name."""
        parts = name.split(".")
        made: list[str] = []
        at = 0
        while at < len(parts):
            here = parts[at : at + len(self.old)]
            if (at and self.at_start) or not self._meets(here):
                made.append(parts[at])
                at += 1
            else:
                stars = iter([part for part, old in zip(here, self.old, strict=True) if old == "*"])
                made += [next(stars) if part == "*" else part for part in self.new]
                at += len(self.old)
        return ".".join(made)

    def _meets(self, parts: list[str]) -> bool:
        return len(parts) == len(self.old) and all(
            part == old or (old == "*" and part != "") for part, old in zip(parts, self.old, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Renaming:
    """The rules that make a new name.

    The first prefix of ``strip`` that a name begins with is taken off, the ``renames`` are made one after
    another, and ``add`` is put before it.

    >>> renaming = Renaming.of(["_orig_mod.module"], {"conv": "c"}, "dec")
    >>> renaming("_orig_mod.module.conv.weight"), renaming("conv_post.bias")
    ('dec.c.weight', 'dec.conv_post.bias')
    """

    strip: tuple[str, ...] = ()
    renames: tuple[Rename, ...] = ()
    add: str = ""

    @classmethod
    def of(cls, strip: Iterable[str], renames: Iterable[str] | Mapping[str, str], add: str) -> Renaming:
        """The renaming that these options say. Raises ``ArgumentError`` for a rename that says nothing."""
        if isinstance(renames, Mapping):
            made = tuple(Rename.from_to(old, new) for old, new in renames.items())
        else:
            made = tuple(map(Rename.of, renames))
        return cls(tuple(_whole(prefix) for prefix in strip if prefix), made, _whole(add))

    def __bool__(self) -> bool:
        """Whether there are any rules."""
        return bool(self.strip or self.renames or self.add)

    def __call__(self, name: str) -> str:
        """The new name."""
        name = self.stripped(name)
        for rename in self.renames:
            name = rename(name)
        return self.add + name

    def stripped(self, name: str) -> str:
        """A name without the first of the prefixes that it begins with."""
        return name.removeprefix(self._prefix_of(name))

    def _prefix_of(self, name: str) -> str:
        return next((prefix for prefix in self.strip if name.startswith(prefix)), "")

    def check_met(self, names: Collection[str]) -> None:
        """Raise ``ArgumentError`` for a rule that changes none of these names: it is a typing error."""
        if idle := next(self._idle(names), ""):
            raise ArgumentError(
                f"{idle} meets no name", fix=f"the names are: {listed(map(printable, names), 8)}"
            )

    def _idle(self, names: Iterable[str]) -> Iterator[str]:
        """The rules that change none of these names, as options."""
        taken = {self._prefix_of(name) for name in names}
        yield from (option("strip_prefix", prefix) for prefix in self.strip if prefix not in taken)
        now = {self.stripped(name) for name in names}
        for rename in self.renames:
            if all(rename(name) == name for name in now):
                yield option("rename", glob=str(rename))
            now = {rename(name) for name in now}


def _whole(prefix: str) -> str:
    """A prefix with the dot that ends its last part; one that ends in a sign, as ``teacher_``, as it is.

    >>> _whole("module"), _whole("module."), _whole("teacher_"), _whole("")
    ('module.', 'module.', 'teacher_', '')
    """
    return f"{prefix}." if prefix[-1:].isalnum() else prefix
