"""Names followed from file to file: re-exports, stars, relative imports, and names that lead nowhere."""

from __future__ import annotations

from tests.helpers.projects import migrate_files

ORIGIN = "from torch.nn.utils import remove_weight_norm, weight_norm\n"
NEW_ORIGIN = (
    "from torch.nn.utils.parametrizations import weight_norm\n"
    "from torch.nn.utils.parametrize import remove_parametrizations\n"
)


def after(files: dict[str, str]) -> dict[str, str]:
    found = migrate_files(files)
    assert all(site.changes for _, migrated in found.values() for site in migrated.sites)
    return {path: text for path, (text, _) in found.items()}


def test_a_re_export_is_edited_where_it_comes_from_and_followed_where_it_is_used() -> None:
    made = after(
        {
            "pkg/__init__.py": "from .norms import *\n",
            "pkg/norms.py": ORIGIN,
            "pkg/deep/a.py": "from ..norms import remove_weight_norm\nremove_weight_norm(m)\n",
            "b.py": "from pkg import remove_weight_norm, weight_norm\nremove_weight_norm(weight_norm(m))\n",
            "c.py": "import pkg.norms as norms\nnorms.weight_norm(m)\nnorms.remove_weight_norm(m)\n",
            "d.py": "from pkg import *\nremove_weight_norm(m)\n",
        }
    )
    assert made["pkg/__init__.py"] == "from .norms import *\n"
    assert made["pkg/norms.py"] == NEW_ORIGIN
    assert made["pkg/deep/a.py"] == (
        'from ..norms import remove_parametrizations\nremove_parametrizations(m, "weight")\n'
    )
    assert made["b.py"] == (
        "from pkg import remove_parametrizations, weight_norm\n"
        'remove_parametrizations(weight_norm(m), "weight")\n'
    )
    assert made["c.py"] == (
        'import pkg.norms as norms\nnorms.weight_norm(m)\nnorms.remove_parametrizations(m, "weight")\n'
    )
    assert made["d.py"] == 'from pkg import *\nremove_parametrizations(m, "weight")\n'


def test_a_module_of_the_project_with_a_function_of_its_own_is_no_re_export() -> None:
    files = {
        "norms.py": "def weight_norm(m): return m\ndef remove_weight_norm(m): return m\n",
        "a.py": "from norms import remove_weight_norm, weight_norm\nremove_weight_norm(weight_norm(m))\n",
    }
    assert after(files) == files


def test_of_two_modules_of_one_name_the_nearest_is_meant() -> None:
    made = after(
        {
            "old/utils.py": ORIGIN,
            "old/a.py": "from utils import remove_weight_norm\nremove_weight_norm(m)\n",
            "new/utils.py": "def remove_weight_norm(m): return m\n",
            "new/a.py": "from utils import remove_weight_norm\nremove_weight_norm(m)\n",
        }
    )
    assert "remove_parametrizations(m" in made["old/a.py"]
    assert "remove_weight_norm(m)" in made["new/a.py"]


def test_imports_in_a_circle_end() -> None:
    files = {"a.py": "from b import weight_norm\nweight_norm(m)\n", "b.py": "from a import weight_norm\n"}
    assert after(files) == files


def test_a_name_bound_to_itself_ends() -> None:
    files = {"a.py": "x = y\ny = x\nx.weight_norm(m)\n"}
    assert after(files) == files


def test_an_initializer_is_found_in_another_file() -> None:
    found = migrate_files(
        {
            "utils.py": "def init_weights(m):\n    m.weight.data.normal_(0, 1)\n"
            "def init_bias(m):\n    m.bias.data.zero_()\n",
            "a.py": "from torch.nn.utils import weight_norm\nfrom utils import init_bias, init_weights\n"
            "m = weight_norm(m)\nm.apply(init_weights)\nm.apply(init_bias)\n",
        }
    )
    left = [site for site in found["a.py"][1].sites if not site.changes]
    assert [site.rule for site in left] == ["initializer"]


def test_scopes_are_pythons() -> None:
    text = (
        "from torch.nn.utils import remove_weight_norm\n"
        "class A:\n"
        "    remove_weight_norm = None\n"
        "    def f(self):\n"
        "        remove_weight_norm(self)\n"  # the class's name is not seen here
        "    def g(self, remove_weight_norm):\n"
        "        remove_weight_norm(self)\n"
        "def h():\n"
        "    remove_weight_norm = print\n"
        "    return [remove_weight_norm(m) for m in x]\n"
        "[remove_weight_norm(m) for m in x]\n"
    )
    made = after({"a.py": text})["a.py"]
    assert made.count('remove_parametrizations(self, "weight")') == 1
    assert made.count("remove_weight_norm(m)") == 1
    assert made.endswith('[remove_parametrizations(m, "weight") for m in x]\n')
