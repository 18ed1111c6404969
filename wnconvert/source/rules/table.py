"""The rules as rows: what each finds, what it writes, what changes in behaviour, and an example."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from wnconvert.frozen import dataclass
from wnconvert.source.rules.attributes import attributes, by_name, spectral_attributes
from wnconvert.source.rules.functions import applications, removals, stars
from wnconvert.source.rules.hints import dynamic, initializers, loose_loading, repeated_reads
from wnconvert.source.rules.imports import exports, imports_of_torch
from wnconvert.source.rules.keys import keys
from wnconvert.source.sites import ModuleView, Site

__all__ = ["CODE_RULES", "CodeRule"]


@dataclass(frozen=True, slots=True)
class CodeRule:
    """A rule. ``writes`` is empty where it only reports; ``before`` and ``after`` are an example."""

    name: str
    find: Callable[[ModuleView], Iterator[Site]]
    finds: str
    writes: str
    changes: str
    before: str
    after: str = ""
    group: str = ""


_USED = "from torch.nn.utils import weight_norm\n"
_NEW = "from torch.nn.utils.parametrizations import weight_norm\n"

#: All rules, in the order in which their results are listed. Those of no group are always used.
CODE_RULES = (
    CodeRule(
        "import",
        imports_of_torch,
        "weight_norm or remove_weight_norm imported from torch, or from a module that has it from there",
        "the import from its new home; names that stay, aliases and comments are kept",
        "the weight is computed at each access, not before each forward; the state dict has other keys, "
        "and takes those of old checkpoints",
        "from torch.nn.utils import spectral_norm, weight_norm as wn\n",
        "from torch.nn.utils import spectral_norm\n"
        "from torch.nn.utils.parametrizations import weight_norm as wn\n",
    ),
    CodeRule(
        "import",
        exports,
        '"remove_weight_norm" in __all__, of a module that imports it',
        "the new name",
        "who imports it from outside of the project must use the new name",
        'from torch.nn.utils import remove_weight_norm\n__all__ = ["remove_weight_norm"]\n',
        "from torch.nn.utils.parametrize import remove_parametrizations\n"
        '__all__ = ["remove_parametrizations"]\n',
    ),
    CodeRule(
        "apply",
        applications,
        "torch.nn.utils.weight_norm behind a module: called, passed on, in a condition",
        "torch.nn.utils.parametrizations.weight_norm",
        "as import",
        "from torch import nn\nf = nn.utils.weight_norm if plain else None\n",
        "from torch import nn\nf = nn.utils.parametrizations.weight_norm if plain else None\n",
    ),
    CodeRule(
        "apply",
        stars,
        "weight_norm that comes from a star import of torch.nn.utils",
        "an import of the new one behind it",
        "as import",
        "from torch.nn.utils import *\nm = weight_norm(m)\n",
        f"from torch.nn.utils import *\n{_NEW}m = weight_norm(m)\n",
    ),
    CodeRule(
        "remove",
        removals,
        "remove_weight_norm, called or passed on; methods of this name keep it",
        "remove_parametrizations with the name of the weight; a lambda where it is passed on",
        "ValueError where there is nothing to remove, as before, in other words",
        "from torch.nn.utils import remove_weight_norm\nremove_weight_norm(m)\n",
        "from torch.nn.utils.parametrize import remove_parametrizations\n"
        'remove_parametrizations(m, "weight")\n',
    ),
    CodeRule(
        "attribute",
        attributes,
        "m.weight_g and m.weight_v, read or written, .data and .requires_grad of them",
        "m.parametrizations.weight.original0 and original1",
        "none",
        f"{_USED}m = weight_norm(m)\nm.weight_g.requires_grad = False\n",
        f"{_NEW}m = weight_norm(m)\nm.parametrizations.weight.original0.requires_grad = False\n",
    ),
    CodeRule(
        "attribute",
        by_name,
        "hasattr, getattr and setattr with the name of a half",
        'is_parametrized(m, "weight"), or the attribute',
        "is_parametrized is true of other parametrizations too; where the project has any, it is reported",
        f'{_USED}if hasattr(weight_norm(m), "weight_g"):\n    pass\n',
        f"{_NEW}from torch.nn.utils.parametrize import is_parametrized\n"
        'if is_parametrized(weight_norm(m), "weight"):\n    pass\n',
    ),
    CodeRule(
        "key",
        keys,
        "texts that spell a half: keys, filters of named_parameters(), f-strings, patterns, replacements",
        "the new key, where the text is a whole key or filters names of a live module; else it is reported",
        "a checkpoint that is read by such keys must be migrated too: wnconvert migrate",
        'g = [p for n, p in model.named_parameters() if n.endswith("weight_g")]\n',
        'g = [p for n, p in model.named_parameters() if n.endswith("parametrizations.weight.original0")]\n',
    ),
    CodeRule(
        "dynamic",
        dynamic,
        'getattr(nn.utils, …), the class WeightNorm, hook.__module__ == "torch.nn.utils.weight_norm"',
        "",
        "there is no hook any more",
        'import torch\nf = getattr(torch.nn.utils, "weight_norm")\n',
    ),
    CodeRule(
        "initializer",
        initializers,
        "a function given to apply() that writes to m.weight, in a file that applies weight norm",
        "",
        "none: such a write has no effect in either form",
        f"{_USED}def init(m):\n    m.weight.data.normal_(0, 1)\nweight_norm(m).apply(init)\n",
    ),
    CodeRule(
        "loading",
        loose_loading,
        "load_state_dict(strict=False) in a file that applies weight norm",
        "",
        "keys of the other form would be passed over",
        f"{_USED}weight_norm(m).load_state_dict(state, strict=False)\n",
    ),
    CodeRule(
        "cached",
        repeated_reads,
        "a forward that reads the weight of a normalized layer several times",
        "",
        "the weight is computed at each access",
        f"{_USED}class M:\n    def __init__(self):\n        self.a = weight_norm(a)\n"
        "    def forward(self, x):\n        return f(x, self.a.weight) + f(x, self.a.weight)\n",
    ),
    CodeRule(
        "spectral",
        spectral_attributes,
        "m.weight_orig and m.weight_u of spectral norm",
        "m.parametrizations.weight.original; weight_u is reported",
        "torch does not load old checkpoints of spectral norm into the new form; in training, a power step "
        "runs at each access",
        "from torch.nn.utils import spectral_norm\nspectral_norm(m).weight_orig\n",
        "from torch.nn.utils.parametrizations import spectral_norm\n"
        "spectral_norm(m).parametrizations.weight.original\n",
        group="spectral",
    ),
)
