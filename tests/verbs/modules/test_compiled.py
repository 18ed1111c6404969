"""Graphs that go on computing a weight, whatever its module is told: exported, unflattened, torch.fx's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from tests.helpers.live_kinds import pruned, spectral
from tests.helpers.live_models import both_forms, norm, portrait
from wnconvert import (
    LayerError,
    fold_module,
    folded,
    inspect_module,
    migrate_module,
    weights_folded,
)

X = torch.randn(2, 3)


class Twice(nn.Module):
    """A layer that is called twice: an unflattened program has a graph for each call."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.layer = norm(nn.Linear(3, 3), form)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))  # type: ignore[no-any-return]


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(model, (X,))


def unflattened(model: nn.Module) -> nn.Module:
    return torch.export.unflatten(exported(model))


@contextmanager
def quiet() -> Iterator[None]:
    """torch warns of cached weights, and of its own trees."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def sequence(form: str) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), norm(nn.Linear(3, 3), form))


GRAPHS: dict[str, tuple[Callable[[str], nn.Module], str]] = {
    "exported": (lambda form: exported(sequence(form)).module(), "1.weight"),
    "decomposed": (lambda form: exported(sequence(form)).run_decompositions().module(), "1.weight"),
    "unflattened": (lambda form: unflattened(sequence(form)), "1.weight"),
    "called twice": (lambda form: unflattened(Twice(form)), "layer.weight"),
    "inside another": (
        lambda form: nn.ModuleDict({"net": exported(sequence(form)).module()}),
        "net.1.weight",
    ),
}


@both_forms
@pytest.mark.parametrize("kind", GRAPHS)
def test_a_graph_that_computes_a_weight_is_refused_by_its_name(kind: str, form: str) -> None:
    make, name = GRAPHS[kind]
    with quiet():
        model = nn.ModuleDict({"fine": norm(nn.Linear(3, 3), form), "graph": make(form)})
    before = portrait(model)
    verbs: list[Callable[[], object]] = [
        lambda: fold_module(model),
        lambda: folded(model),
        lambda: weights_folded(model).__enter__(),
        lambda: migrate_module(model, to="legacy"),
    ]
    for verb in verbs:
        with pytest.raises(LayerError, match=f"layer graph.{name}: a torch.fx graph computes it") as caught:
            verb()
        assert caught.value.fix == "convert the module before it is exported or traced"
        assert portrait(model) == before
    found = inspect_module(model)
    refusal = "would refuse: a torch.fx graph computes it, and would go on computing it"
    assert found.fold.startswith(refusal)
    assert found.migrate.startswith(refusal)
    assert any(note.startswith(f"graph.{name} is refused: a torch.fx graph") for note in found.notes)
    assert [layer.name for layer in fold_module(model, exclude="graph.*")] == ["fine.weight"]


def test_a_graph_whose_names_say_nothing_is_refused_for_its_operator() -> None:
    model: Any = nn.Module()
    model.first, model.second = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 1))
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    w = graph.call_function(torch._weight_norm, (graph.get_attr("first"), graph.get_attr("second"), 0))
    graph.output(graph.call_function(nn.functional.linear, (x, w)))
    with pytest.raises(LayerError, match=r"layer first: a torch\.fx graph computes it"):
        fold_module(GraphModule(model, graph))


@both_forms
def test_a_graph_that_calls_the_layers_themselves_is_folded(form: str) -> None:
    graph = symbolic_trace(sequence(form))
    expected = graph(X)
    assert [layer.name for layer in fold_module(graph)] == ["1.weight"]
    assert torch.allclose(graph(X), expected)


@both_forms
def test_a_graph_of_folded_layers_has_nothing_to_fold(form: str) -> None:
    plain = folded(sequence(form))
    with quiet():
        models = exported(plain).module(), unflattened(plain)
    for model in models:
        assert fold_module(model) == ()
        assert inspect_module(model).notes == ()


def test_a_pair_beside_a_graph_that_does_not_read_it_is_none() -> None:
    model: Any = symbolic_trace(nn.Sequential(nn.Linear(3, 3)))
    model.weight_g, model.weight_v = nn.Parameter(torch.ones(3, 1)), nn.Parameter(torch.ones(3, 2))
    assert fold_module(model) == ()
    found = inspect_module(model)
    assert any("by its keys only" in note for note in found.notes)
    assert (found.fold, found.migrate) == ("nothing to fold", "nothing to migrate")


@pytest.mark.parametrize("kind", ["spectral", "prune"])
def test_other_kinds_in_compiled_code_are_refused_where_they_are_asked_for(kind: str) -> None:
    def layer() -> Any:
        return spectral(nn.Linear(3, 3), "parametrize") if kind == "spectral" else pruned(nn.Linear(3, 3))

    with quiet():
        traced = torch.jit.trace(layer().eval(), X)  # type: ignore[no-untyped-call]
        graph = exported(layer().eval()).module()
    for name, module, words in (("traced", traced, "TorchScript"), ("graph", graph, "torch.fx graph")):
        model = nn.ModuleDict({"fine": layer(), name: module})
        with pytest.raises(LayerError, match=words) as caught:
            fold_module(model, kinds=kind)
        assert f"{name}.weight" in str(caught.value)
        assert fold_module(model) == (), "it is not asked for"
        assert [its.name for its in fold_module(model, kinds=kind, exclude=f"{name}.*")] == ["fine.weight"]
