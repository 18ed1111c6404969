"""Code that is no call of weight norm, and means something else, or nothing, with it: always reported."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from wnconvert.source.names import UTILS
from wnconvert.source.sites import ModuleView, Site

__all__ = ["dynamic", "initializers", "loose_loading", "repeated_reads"]


def dynamic(view: ModuleView) -> Iterator[Site]:
    """Weight norm reached by a text, or known by its hook: ``getattr(nn.utils, name)``, ``WeightNorm``."""
    for call in view.module.nodes(ast.Call):
        if view.is_builtin(call.func, "getattr") and len(call.args) > 1 and view.only(call.args[0]) == UTILS:
            text = call.args[1]
            if not isinstance(text, ast.Constant) or f"{UTILS}.{text.value!s}" in view.form.moves:
                fix = "name the function, or take it from torch.nn.utils.parametrizations"
                yield Site("dynamic", view.start(call), (), "a function chosen by its name", fix)
    if view.form.to != "parametrize":
        return
    hook = (
        "find layers by torch.nn.utils.parametrize.is_parametrized(module, name): there is no hook any more"
    )
    for text in view.module.nodes(ast.Constant):
        if text.value == f"{UTILS}.weight_norm":
            yield Site(
                "dynamic", view.start(text), (), "weight norm is known by the module of its hook", hook
            )
    for node in view.module.nodes(ast.ImportFrom):
        for alias in node.names:
            if alias.name == "WeightNorm" and node.module == f"{UTILS}.weight_norm":
                yield Site("dynamic", view.start(node), (), "the class of the hook", hook)


# -- writing to what is computed


def initializers(view: ModuleView) -> Iterator[Site]:
    """A function given to ``apply`` that writes to ``m.weight``, in a module that applies weight norm."""
    told: set[ast.AST] = set()
    for call in view.module.nodes(ast.Call):
        match call:
            case ast.Call(func=ast.Attribute(attr="apply"), args=[ast.Name() as given]):
                found = view.project.definition(given, view.module, view.place)
            case _:
                continue
        if found is None or found[0].node in told or not view.applies:
            continue
        function = found[0].node
        if isinstance(function, ast.ClassDef) or not function.args.args or not _writes_weight(function):
            continue
        told.add(function)
        yield Site(
            "initializer",
            view.start(call),
            (),
            f"{function.name} writes to a weight that weight norm computes: no effect in either form",
            "apply it before weight norm, or assign under torch.no_grad(): m.weight = values",
        )


def _writes_weight(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    name = function.args.args[0].arg
    for node in ast.walk(function):
        match node:
            case ast.Call(func=ast.Attribute(value=of, attr=attr), args=args) if attr.endswith("_"):
                if _is_weight_of(of, name) or any(_is_weight_of(arg, name) for arg in args[:1]):
                    return True
            case ast.Assign(targets=[ast.Attribute(value=of, attr="data")]) if _is_weight_of(of, name):
                return True
    return False


def _is_weight_of(expr: ast.expr, name: str) -> bool:
    match expr:
        case ast.Attribute(value=inner, attr="data"):
            return _is_weight_of(inner, name)
        case ast.Attribute(value=ast.Name(id=owner), attr="weight"):
            return owner == name
    return False


# -- loading and reading


def loose_loading(view: ModuleView) -> Iterator[Site]:
    """``load_state_dict(strict=False)`` in a module that applies weight norm: keys that miss stay random."""
    for call in view.module.nodes(ast.Call):
        match call:
            case ast.Call(func=ast.Attribute(attr="load_state_dict"), args=args, keywords=keywords):
                given = [key.value for key in keywords if key.arg == "strict"] or args[1:2]
            case _:
                continue
        loose = any(isinstance(value, ast.Constant) and value.value is False for value in given)
        if loose and view.applies:
            yield Site(
                "loading",
                view.start(call),
                (),
                "strict=False hides keys of the other form, whose layers stay random",
                "look at what it returns (missing_keys), or load strictly",
            )


def repeated_reads(view: ModuleView) -> Iterator[Site]:
    """A weight that is read several times in one ``forward``: it is computed at every access now."""
    for cls in view.module.nodes(ast.ClassDef) if view.form.to == "parametrize" else ():
        normalized = set(_normalized(cls, view))
        for function in cls.body if normalized else ():
            if isinstance(function, ast.FunctionDef) and function.name == "forward":
                yield from _repeated(function, normalized, view)


def _repeated(function: ast.FunctionDef, normalized: set[str], view: ModuleView) -> Iterator[Site]:
    reads: dict[str, list[ast.Attribute]] = {}
    for node in ast.walk(function):
        match node:
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="self"), attr=layer), attr="weight"):
                reads.setdefault(layer, []).append(node)
    for layer in sorted(normalized & reads.keys()):
        nodes = reads[layer]
        looped = any(isinstance(above, (ast.For, ast.While)) for above in view.module.above(nodes[0]))
        if len(nodes) > 1 or looped:
            yield Site(
                "cached",
                view.start(nodes[0]),
                (),
                f"self.{layer}.weight is read several times, and computed at each",
                "read it once, or use: with torch.nn.utils.parametrize.cached():",
            )


def _normalized(cls: ast.ClassDef, view: ModuleView) -> Iterator[str]:
    """The attributes of a class that are given a layer with weight norm."""
    names = {f"{UTILS}.weight_norm", f"{UTILS}.parametrizations.weight_norm"}
    for node in ast.walk(cls):
        match node:
            case ast.Assign(
                targets=[ast.Attribute(value=ast.Name(id="self"), attr=attr)], value=ast.Call(func=func)
            ) if isinstance(func, (ast.Name, ast.Attribute)) and view.meaning(func) & names:
                yield attr
