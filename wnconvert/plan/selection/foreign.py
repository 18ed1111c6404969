"""What lies beside state dicts and names classes that a reader of weights does not know, left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from wnconvert.messages import listed
from wnconvert.plan.plan import LeftOut, Plan
from wnconvert.tensors.containers import Container
from wnconvert.tensors.tree import Tree

__all__ = ["without_foreign"]


def without_foreign(make_plan: Callable[[Tree, Container], Plan], tree: Tree, container: Container) -> Plan:
    """A plan that leaves out siblings that name foreign classes or functions, if the output has siblings."""
    plan = make_plan(tree, container)
    if plan.only is not None or not container.facts.holds_trees:
        return plan
    foreign = (
        LeftOut(each.path, f"it names {listed(each.names, 3)}") for each in tree.siblings if each.names
    )
    return replace(plan, dropped=(*plan.dropped, *foreign))
