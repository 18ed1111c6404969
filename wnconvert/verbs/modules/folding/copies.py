"""Deep copies of modules, also of those whose tensors are part of a graph."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from wnconvert.errors import ArgumentError
from wnconvert.verbs.modules.finding.walk import modules_with_names

__all__ = ["AnyModule", "CopyError", "copied"]


AnyModule = TypeVar("AnyModule", bound=nn.Module)


class CopyError(ArgumentError):
    """A module that ``copy.deepcopy`` refuses."""


def copied(module: AnyModule) -> AnyModule:
    """A deep copy of a module, also if it holds tensors that are part of a graph. Raises ``CopyError``."""
    memo: dict[int, Any] = {}
    flat: list[tuple[nn.RNNBase, dict[str, Any]]] = []
    with torch.inference_mode(False), torch.no_grad():
        for each, _ in modules_with_names(module):
            held = [*vars(each).values()]
            held += [value for cache in held if isinstance(cache, dict) for value in cache.values()]
            if isinstance(each, nn.RNNBase):
                held += each._flat_weights
                lists = ("_flat_weights", "_flat_weight_refs")
                flat.append((each, {key: vars(each)[key] for key in lists if key in vars(each)}))
            memo |= {
                id(value): value.detach().clone()
                for value in held
                if isinstance(value, Tensor) and not value.is_leaf
            }
        try:
            return copy.deepcopy(module, memo)
        except Exception as error:
            raise CopyError(
                f"the module cannot be copied: {error}",
                fix="fold_module folds it in place, weights_folded for the length of a block",
            ) from error
        finally:
            for rnn, before in flat:  # an RNN renews these when it is copied
                vars(rnn).update(before)
