"""The modules below a module, with all their names."""

from __future__ import annotations

from torch import nn
from torch.export import ExportedProgram

from wnconvert.errors import ArgumentError
from wnconvert.messages import fitting_function, kind_in_words

__all__ = ["modules_with_names"]


def modules_with_names(root: object) -> list[tuple[nn.Module, tuple[str, ...]]]:
    """``root`` and every module below it, once each, with the prefixes of all its names (dot included).

    >>> shared = nn.Linear(1, 1)
    >>> [prefixes for _, prefixes in modules_with_names(nn.Sequential(shared, shared))]
    [('',), ('0.', '1.')]
    """
    if not isinstance(root, nn.Module):
        if isinstance(root, type) and issubclass(root, nn.Module):
            fix = f"pass an nn.Module, which {root.__name__}(…) makes"
        elif isinstance(root, ExportedProgram):
            fix = "pass the nn.Module that was exported, and fold it before it is"
        else:
            fix = f"pass an nn.Module; {fitting_function(root)}".rstrip("; ")
        raise ArgumentError(f"{kind_in_words(root)} is not a module", fix=fix)
    found: dict[int, tuple[nn.Module, list[str]]] = {}

    def visit(module: nn.Module, prefix: str, above: frozenset[int]) -> None:
        found.setdefault(id(module), (module, []))[1].append(prefix)
        above |= {id(module)}
        if getattr(module, "_modules", None) is None:
            raise ArgumentError(
                f"{prefix.rstrip('.') or 'the module'} was never initialized as an nn.Module",
                fix=f"call super().__init__() in {type(module).__name__}.__init__",
            )
        for key, child in module._modules.items():
            if child is not None and id(child) not in above:  # modules may hold each other
                visit(child, f"{prefix}{key}.", above)

    visit(root, "", frozenset())
    return [(module, tuple(prefixes)) for module, prefixes in found.values()]
