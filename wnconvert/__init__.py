"""wnconvert: fold, split, migrate, inspect and export weight-normalized PyTorch checkpoints and models.

>>> import wnconvert
>>> plan = wnconvert.fold_file("fixtures/g_02500000", dry_run=True)
>>> len(plan.layers)
78
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wnconvert.compare import compare_files, compare_state_dicts
    from wnconvert.comparison import Comparison
    from wnconvert.convert import Result
    from wnconvert.errors import (
        ArgumentError,
        FormatError,
        InputError,
        LayerError,
        NumbersError,
        OutputError,
        VerifyError,
        WnconvertError,
    )
    from wnconvert.export import check_onnx, export_onnx
    from wnconvert.files import fold_file, migrate_file, split_file
    from wnconvert.inspecting import inspect_file
    from wnconvert.inspection import Inspection
    from wnconvert.live_choice import Layers
    from wnconvert.modules import (
        fold_module,
        folded,
        inspect_module,
        migrate_module,
        split_module,
        weights_folded,
    )
    from wnconvert.plan import Plan
    from wnconvert.proof import ExportReport
    from wnconvert.state_dict import (
        fold_state_dict,
        inspect_state_dict,
        migrate_state_dict,
        split_state_dict,
    )

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "Comparison",
    "ExportReport",
    "FormatError",
    "InputError",
    "Inspection",
    "LayerError",
    "Layers",
    "NumbersError",
    "OutputError",
    "Plan",
    "Result",
    "VerifyError",
    "WnconvertError",
    "__version__",
    "check_onnx",
    "compare_files",
    "compare_state_dicts",
    "export_onnx",
    "fold_file",
    "fold_module",
    "fold_state_dict",
    "folded",
    "inspect_file",
    "inspect_module",
    "inspect_state_dict",
    "migrate_file",
    "migrate_module",
    "migrate_state_dict",
    "split_file",
    "split_module",
    "split_state_dict",
    "weights_folded",
]

# Where each name comes from; looked up on first use, so that `wnconvert --help` does not import numpy.
_HOMES = {
    "compare_files": "compare",
    "compare_state_dicts": "compare",
    "Comparison": "comparison",
    "check_onnx": "export",
    "export_onnx": "export",
    "ExportReport": "proof",
    "fold_file": "files",
    "fold_state_dict": "state_dict",
    "inspect_file": "inspecting",
    "inspect_state_dict": "state_dict",
    "migrate_file": "files",
    "migrate_state_dict": "state_dict",
    "split_file": "files",
    "split_state_dict": "state_dict",
    "Inspection": "inspection",
    "fold_module": "modules",
    "folded": "modules",
    "inspect_module": "modules",
    "migrate_module": "modules",
    "split_module": "modules",
    "weights_folded": "modules",
    "Layers": "live_choice",
    "Plan": "plan",
    "Result": "convert",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"wnconvert.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
