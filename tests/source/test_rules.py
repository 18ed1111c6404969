"""Each rule on its case, and on what looks like it and is not."""

from __future__ import annotations

import pytest

from tests.helpers.golden import ROOT
from tests.helpers.projects import migrate_text
from wnconvert.source.names import CodeForm
from wnconvert.source.rules.table import CODE_RULES, CodeRule


def lines(*texts: str) -> str:
    """A text of lines."""
    return "".join(f"{text}\n" for text in texts)


USED = "from torch.nn.utils import weight_norm\nm = weight_norm(m)\n"
NEW = "from torch.nn.utils.parametrizations import weight_norm\nm = weight_norm(m)\n"


@pytest.mark.parametrize("rule", CODE_RULES, ids=lambda rule: f"{rule.name} {rule.find.__name__}")
def test_the_example_of_a_row_is_what_the_rule_does(rule: CodeRule) -> None:
    groups = frozenset(["weight", *filter(None, [rule.group])])
    text, found = migrate_text(rule.before, CodeForm(groups=groups))
    own = [site for site in found.sites if site.rule == rule.name]
    assert own
    assert bool(rule.writes) == bool(rule.after)
    if rule.after:
        assert text == rule.after
        assert not [site for site in found.sites if not site.changes]
    else:
        assert [site for site in own if not site.changes and site.reason and site.fix]


DECOYS = {
    "a function of its own": lines("def weight_norm(m): return m", "weight_norm(m)"),
    "an argument of this name": lines(
        "def f(m, weight_norm=False):", "    return weight_norm and m.weight_norm(m)"
    ),
    "a text": lines('kind = "weight_norm"', 'print("the weight_g of a layer")'),
    "a comment": lines("# from torch.nn.utils import weight_norm, then m.weight_g", "x = 1"),
    "a docstring": lines('"""weight_g and remove_weight_norm(m)."""'),
    "paddle's": lines(
        "from paddle.nn.utils import weight_norm, remove_weight_norm", "remove_weight_norm(weight_norm(m))"
    ),
    "flax's": lines("import flax.linen as nn", "m = nn.WeightNorm(nn.Dense(3))"),
    "a method": lines("class A:", "    def remove_weight_norm(self):", "        self.b.remove_weight_norm()"),
    "a class's own halves": lines(
        "from torch import nn",
        "class A(nn.Module):",
        "    def __init__(self):",
        "        self.weight_g = nn.Parameter(x)",
        "    def forward(self):",
        "        return self.weight_g",
    ),
    "new code": lines(
        "from torch.nn.utils.parametrizations import weight_norm",
        "m = weight_norm(m)",
        "m.parametrizations.weight.original0.data.fill_(1)",
    ),
    "both forms": lines(
        "try:",
        "    from torch.nn.utils.parametrizations import weight_norm",
        "except ImportError:",
        "    from torch.nn.utils import weight_norm",
        "weight_norm(m)",
    ),
    "hasattr of something else": lines(
        "from torch.nn.utils.parametrizations import weight_norm",
        "m = weight_norm(m)",
        'hasattr(m, "weight")',
        'hasattr(m, "weight_gain")',
    ),
    "a hasattr of its own": lines(
        "def hasattr(m, name): return 1",
        "from torch.nn.utils.parametrizations import weight_norm",
        "m = weight_norm(m)",
        "hasattr(m, name)",
    ),
    "another apply": lines(
        "from torch.nn.utils.parametrizations import weight_norm",
        "m = weight_norm(m)",
        "def init(m):",
        "    m.bias.data.zero_()",
        "m.apply(init)",
    ),
    "a strict load": lines(
        "from torch.nn.utils.parametrizations import weight_norm",
        "m = weight_norm(m)",
        "m.load_state_dict(state, strict=True)",
    ),
    "a loose load of another model": "m.load_state_dict(state, strict=False)\n",
    "a weight read once": lines(
        "from torch.nn.utils.parametrizations import weight_norm",
        "m = weight_norm(m)",
        "class A:",
        "    def __init__(self):",
        "        self.c = weight_norm(c)",
        "    def forward(self, x):",
        "        return f(x, self.c.weight)",
    ),
    "another getattr": lines("import torch", "getattr(torch.nn, name)"),
    "spectral norm, which is not asked for": lines(
        "from torch.nn.utils import spectral_norm", "spectral_norm(m).weight_u"
    ),
    "a module called torch of its own": lines("from mytorch.nn.utils import weight_norm", "weight_norm(m)"),
}


@pytest.mark.parametrize("name", DECOYS)
def test_what_only_looks_like_it_is_neither_edited_nor_reported(name: str) -> None:
    text, found = migrate_text(DECOYS[name])
    assert text == DECOYS[name]
    assert found.sites == ()


EDITED = {
    "an alias": (
        lines("from torch.nn.utils import weight_norm as wn", "wn(m)"),
        lines("from torch.nn.utils.parametrizations import weight_norm as wn", "wn(m)"),
    ),
    "a module under another name": (
        lines("import torch.nn.utils as U", "U.weight_norm(m)", "U.remove_weight_norm(m)"),
        lines(
            "import torch.nn.utils as U",
            "U.parametrizations.weight_norm(m)",
            'U.parametrize.remove_parametrizations(m, "weight")',
        ),
    ),
    "the module of the function": (
        lines("from torch.nn.utils.weight_norm import weight_norm", "weight_norm(m)"),
        lines("from torch.nn.utils.parametrizations import weight_norm", "weight_norm(m)"),
    ),
    "the function imported as a module": (
        lines("import torch.nn.utils.weight_norm as wn", "wn(m)"),
        lines("from torch.nn.utils.parametrizations import weight_norm as wn", "wn(m)"),
    ),
    "an assigned module": (
        lines("import torch", "U = torch.nn.utils", "U.weight_norm(m)"),
        lines("import torch", "U = torch.nn.utils", "U.parametrizations.weight_norm(m)"),
    ),
    "partial, map, lambda": (
        lines(
            "from torch import nn",
            "f = partial(nn.utils.weight_norm, dim=None)",
            "map(nn.utils.weight_norm, ms)",
            "m.apply(lambda c: nn.utils.weight_norm(c))",
        ),
        lines(
            "from torch import nn",
            "f = partial(nn.utils.parametrizations.weight_norm, dim=None)",
            "map(nn.utils.parametrizations.weight_norm, ms)",
            "m.apply(lambda c: nn.utils.parametrizations.weight_norm(c))",
        ),
    ),
    "a choice": (
        lines(
            "from torch.nn.utils import weight_norm, spectral_norm",
            "norm_f = weight_norm if use_spectral_norm == False else spectral_norm",
        ),
        lines(
            "from torch.nn.utils import spectral_norm",
            "from torch.nn.utils.parametrizations import weight_norm",
            "norm_f = weight_norm if use_spectral_norm == False else spectral_norm",
        ),
    ),
    "removing, passed on": (
        lines("from torch.nn.utils import remove_weight_norm", "m.apply(remove_weight_norm)"),
        lines(
            "from torch.nn.utils.parametrize import remove_parametrizations",
            'm.apply((lambda module, name="weight": remove_parametrizations(module, name)))',
        ),
    ),
    "removing under an alias": (
        lines("from torch.nn.utils import remove_weight_norm as rm", "rm(m)"),
        lines("from torch.nn.utils.parametrize import remove_parametrizations as rm", 'rm(m, "weight")'),
    ),
    "removing by keyword, comments kept": (
        lines(
            "from torch.nn.utils import remove_weight_norm",
            "remove_weight_norm(",
            "    m,  # one",
            "    name='a',  # two",
            ")",
            "remove_weight_norm((m) , )",
            "remove_weight_norm(module=m)",
        ),
        lines(
            "from torch.nn.utils.parametrize import remove_parametrizations",
            "remove_parametrizations(",
            "    m,  # one",
            "    'a',  # two",
            ")",
            'remove_parametrizations((m), "weight" , )',
            'remove_parametrizations(module=m, tensor_name="weight")',
        ),
    ),
    "removing in try": (
        lines(
            "from torch.nn.utils import remove_weight_norm",
            "try:",
            "    remove_weight_norm(m)",
            "except ValueError:",
            "    pass",
        ),
        lines(
            "from torch.nn.utils.parametrize import remove_parametrizations",
            "try:",
            '    remove_parametrizations(m, "weight")',
            "except ValueError:",
            "    pass",
        ),
    ),
    "removing what was applied": (
        lines("from torch.nn import utils", "utils.remove_weight_norm(utils.weight_norm(m))"),
        lines(
            "from torch.nn import utils",
            'utils.parametrize.remove_parametrizations(utils.parametrizations.weight_norm(m), "weight")',
        ),
    ),
    "an import in parentheses": (
        lines(
            "from torch.nn.utils import (",
            "    clip_grad_norm_,  # clips",
            "    weight_norm,  # norms",
            ")",
            "weight_norm(m)",
        ),
        lines(
            "from torch.nn.utils import (",
            "    clip_grad_norm_,  # clips",
            ")",
            "from torch.nn.utils.parametrizations import weight_norm  # norms",
            "weight_norm(m)",
        ),
    ),
    "an import that shares its line": (
        lines(
            "def f():",
            "    import torch; from torch.nn.utils import weight_norm, clip_grad_norm_; weight_norm(m)",
        ),
        lines(
            "def f():",
            "    import torch; from torch.nn.utils import clip_grad_norm_; "
            "from torch.nn.utils.parametrizations import weight_norm; weight_norm(m)",
        ),
    ),
    "a weight of another name": (
        lines(
            "from torch.nn.utils import weight_norm",
            "weight_norm(rnn, 'weight_hh_l0')",
            "rnn.weight_hh_l0_g.data",
        ),
        lines(
            "from torch.nn.utils.parametrizations import weight_norm",
            "weight_norm(rnn, 'weight_hh_l0')",
            "rnn.parametrizations.weight_hh_l0.original0.data",
        ),
    ),
    "set, asked, gotten by name": (
        lines(
            "from torch.nn.utils import weight_norm",
            "m = weight_norm(m)",
            'setattr(m, "weight_g", p)',
            'getattr(m.a, "weight_v").numel()',
            "if not hasattr(m, 'weight_g'): pass",
        ),
        lines(
            "from torch.nn.utils.parametrizations import weight_norm",
            "from torch.nn.utils.parametrize import is_parametrized",
            "m = weight_norm(m)",
            "m.parametrizations.weight.original0 = p",
            "m.a.parametrizations.weight.original1.numel()",
            'if not is_parametrized(m, "weight"): pass',
        ),
    ),
    "an initializer of a half": (
        lines("from torch.nn.utils import weight_norm", "m = weight_norm(m)", "nn.init.ones_(m.weight_g)"),
        lines(
            "from torch.nn.utils.parametrizations import weight_norm",
            "m = weight_norm(m)",
            "nn.init.ones_(m.parametrizations.weight.original0)",
        ),
    ),
    "keys of a live state dict": (
        lines("state = m.state_dict()", 'state["a.weight_g"]', 'm.state_dict().get("weight_v")'),
        lines(
            "state = m.state_dict()",
            'state["a.parametrizations.weight.original0"]',
            'm.state_dict().get("parametrizations.weight.original1")',
        ),
    ),
    "filters of live names": (
        lines(
            "for name, p in m.named_parameters():",
            "    if 'weight_g' in name or name.endswith((\"weight_v\", 'bias')):",
            "        pass",
        ),
        lines(
            "for name, p in m.named_parameters():",
            "    if 'parametrizations.weight.original0' in name "
            "or name.endswith((\"parametrizations.weight.original1\", 'bias')):",
            "        pass",
        ),
    ),
    "Windows' line ends": (
        "import torch\r\nfrom torch.nn.utils import weight_norm, clip_grad_norm_\r\n",
        lines(
            "import torch\r",
            "from torch.nn.utils import clip_grad_norm_\r",
            "from torch.nn.utils.parametrizations import weight_norm\r",
        ),
    ),
    "other characters": (
        lines("from torch import nn", "x = 'äöü€'; nn.utils.weight_norm(m)  # ‖v‖"),
        lines("from torch import nn", "x = 'äöü€'; nn.utils.parametrizations.weight_norm(m)  # ‖v‖"),
    ),
}


@pytest.mark.parametrize("name", EDITED)
def test_what_is_decided_is_edited_and_all_else_stays(name: str) -> None:
    before, after = EDITED[name]
    text, found = migrate_text(before)
    assert text == after
    assert all(site.changes for site in found.sites)
    again, left = migrate_text(text)
    assert (again, left.sites) == (text, ()), "a second run finds nothing"


REPORTED = {
    "unpacked arguments": lines("from torch.nn.utils import remove_weight_norm", "remove_weight_norm(*args)"),
    "a half of unknown layers": "m.weight_g.data.fill_(1)\n",
    "a half that a class has of its own": lines(
        "from torch.nn.utils import weight_norm",
        "m = weight_norm(m)",
        "class A:",
        "    def __init__(self):",
        "        self.weight_g = 1",
        "m.weight_g",
    ),
    "v beside spectral norm": lines(
        "from torch.nn.utils import weight_norm",
        "m = weight_norm(m)",
        "from torch.nn.utils import spectral_norm as s",
        "s(m)",
        "m.weight_v",
    ),
    "a half that is deleted": lines(
        "from torch.nn.utils import weight_norm", "m = weight_norm(m)", "del m.weight_g"
    ),
    "a half that is deleted by name": lines(
        "from torch.nn.utils import weight_norm", "m = weight_norm(m)", 'delattr(m, "weight_g")'
    ),
    "a default": lines(
        "from torch.nn.utils import weight_norm", "m = weight_norm(m)", 'getattr(m, "weight_g", None)'
    ),
    "a name chosen at run time": lines("import torch", "getattr(torch.nn.utils, name)"),
    "the hook by its module": 'hook.__module__ == "torch.nn.utils.weight_norm"\n',
    "the class of the hook": lines(
        "from torch.nn.utils.weight_norm import WeightNorm", "isinstance(h, WeightNorm)"
    ),
    "a filter of a file's names": lines("for name in checkpoint:", "    'weight_g' in name"),
    "a key of a file with a default": 'checkpoint.get("a.weight_g", None)\n',
    "an f-string": 'f"{name}.weight_g"\n',
    "a pattern": 're.sub(r"\\.weight_g$", "", name)\n',
    "a replacement": 'name.replace("weight_g", "weight")\n',
    "a mapping of names": lines('NAMES = {"weight_g": "scale"}', 'NAMES["weight_g"]'),
    "an attribute of the function": lines(
        "from torch.nn.utils import remove_weight_norm", "remove_weight_norm.__doc__"
    ),
    "data written": lines(
        "from torch.nn.utils import weight_norm",
        "m = weight_norm(m)",
        "def init(c):",
        "    nn.init.normal_(c.weight, 0, 1)",
        "m.apply(init)",
    ),
    "a weight in a loop": lines(
        "from torch.nn.utils import weight_norm",
        "m = weight_norm(m)",
        "class A:",
        "    def __init__(self):",
        "        self.c = weight_norm(c)",
        "    def forward(self, x):",
        "        for _ in x:",
        "            f(self.c.weight)",
    ),
}


@pytest.mark.parametrize("name", REPORTED)
def test_what_cannot_be_decided_is_reported_with_what_to_do(name: str) -> None:
    _, found = migrate_text(REPORTED[name])
    left = [site for site in found.sites if not site.changes]
    assert left
    assert all(site.reason and site.fix for site in left)


def test_a_comment_keeps_its_line() -> None:
    kept = "from torch import nn\nnn.utils.weight_norm(a)  # wnconvert: keep\nnn.utils.weight_norm(b)\n"
    text, found = migrate_text(kept)
    assert text == kept.replace("weight_norm(b)", "parametrizations.weight_norm(b)")
    assert (len(found.sites), found.kept) == (1, 1)


# -- the other directions

COMPAT = CodeForm(compat=True)


def test_code_for_both_binds_the_same_names() -> None:
    before = (
        "from torch.nn.utils import weight_norm, remove_weight_norm\nremove_weight_norm(weight_norm(m))\n"
    )
    text, _ = migrate_text(before, COMPAT)
    assert text == (
        "try:\n    from torch.nn.utils.parametrizations import weight_norm\n"
        "    from torch.nn.utils.parametrize import remove_parametrizations\n"
        "except ImportError:  # torch before 2.1\n"
        "    from torch.nn.utils import weight_norm, remove_weight_norm as remove_parametrizations\n"
        'remove_parametrizations(weight_norm(m), "weight")\n'
    )
    assert migrate_text(text, COMPAT)[1].sites == ()
    assert migrate_text(text)[1].sites == ()


def test_code_for_both_imports_what_it_reached_through_a_module() -> None:
    before = "from torch import nn\ndef f(weight_norm):\n    return nn.utils.weight_norm(weight_norm)\n"
    text, _ = migrate_text(before, COMPAT)
    assert "    from torch.nn.utils import weight_norm as torch_weight_norm\ndef f" in text
    assert text.endswith("return torch_weight_norm(weight_norm)\n")


def test_code_for_both_has_halves_in_both_forms() -> None:
    text, found = migrate_text(f'{USED}m.weight_g.data\nhasattr(m, "weight_g")\nm.weight_v = p\n', COMPAT)
    assert (
        '(m.parametrizations.weight.original0 if hasattr(m, "parametrizations") else m.weight_g).data\n'
        in text
    )
    assert '(hasattr(m, "weight_g") or is_parametrized(m, "weight"))\n' in text
    assert [site.fix for site in found.sites if not site.changes]


LEGACY = CodeForm("legacy")


@pytest.mark.parametrize(
    "name",
    [name for name in EDITED if name not in ("set, asked, gotten by name", "removing in try")],
)
def test_a_migration_there_and_back_means_the_same(name: str) -> None:
    after = EDITED[name][1]
    back, found = migrate_text(after, LEGACY)
    assert all(site.changes for site in found.sites)
    assert "parametriz" not in back
    assert without_imports(migrate_text(back)[0]) == without_imports(after)


def without_imports(text: str) -> list[str]:
    return [line for line in text.splitlines() if "import" not in line]


def test_back_to_the_old_form() -> None:
    before = (
        "from torch.nn.utils.parametrizations import weight_norm\n"
        "from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations\n"
        "m = weight_norm(m)\nm.a.parametrizations.weight.original1.data\nm.parametrizations.bias.original\n"
        'if is_parametrized(m, "weight"):\n    remove_parametrizations(m, tensor_name="weight")\n'
    )
    assert migrate_text(before, LEGACY)[0] == (
        "from torch.nn.utils import weight_norm\n"
        "from torch.nn.utils.parametrize import is_parametrized\n"
        "from torch.nn.utils import remove_weight_norm\n"
        "m = weight_norm(m)\nm.a.weight_v.data\nm.parametrizations.bias.original\n"
        'if hasattr(m, "weight_g"):\n    remove_weight_norm(m, "weight")\n'
    )


def test_what_may_remove_another_parametrization_is_reported_on_the_way_back() -> None:
    other = "from torch.nn.utils.parametrizations import orthogonal\northogonal(m)\n"
    removing = 'remove_parametrizations(m, "weight")\n'
    before = f"from torch.nn.utils.parametrize import remove_parametrizations\n{other}{removing}"
    assert [site.reason for site in migrate_text(before, LEGACY)[1].sites if not site.changes]
    alone = before.replace(other, "")
    assert not [site for site in migrate_text(alone, LEGACY)[1].sites if not site.changes]


def test_spectral_norm_moves_if_it_is_asked_for() -> None:
    call = "spectral_norm(m, n_power_iterations=2, eps=1e-6, dim=1)"
    before = f"from torch import nn\nnn.utils.{call}\nnn.utils.remove_spectral_norm(m)\n"
    assert migrate_text(before)[0] == before
    assert migrate_text(before, CodeForm(groups=frozenset(["spectral"])))[0] == (
        f"from torch import nn\nnn.utils.parametrizations.{call}\n"
        'nn.utils.parametrize.remove_parametrizations(m, "weight")\n'
    )


def test_the_rules_are_documented_as_they_are() -> None:
    page = (ROOT / "docs" / "rules.md").read_text()
    for rule in CODE_RULES:
        row = f"| {rule.name} | {rule.finds} | {rule.writes or 'reported'} | {rule.changes} |"
        assert row in page, "docs/rules.md: the table of rules for code"
