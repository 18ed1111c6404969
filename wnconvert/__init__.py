"""wnconvert: fold, split, migrate, inspect and export weight-normalized PyTorch checkpoints and models.

Files and folders    fold_file, split_file, migrate_file, inspect_file, compare_files, loads_folder
Stores               path_on, clean_store
Many of them         fold_files, split_files, migrate_files, inspect_files, compare_folders
State dicts          fold_state_dict, split_state_dict, migrate_state_dict, inspect_state_dict,
                     compare_state_dicts
Code                 modernize_code
Live modules         fold_module, folded, weights_folded, split_module, migrate_module, inspect_module
ONNX                 export_onnx, check_onnx, compare_onnx; fold_file and inspect_file take ONNX models
Proofs of folds      prove_checkpoint (for fold_file), check_checkpoint
Recipes              recipe_of, trace_recipe, read_recipe, write_recipe; Recipe, RecipeFold, RecipeReport
Results              Plan, Result, FileResult, Inspection, Comparison, FolderComparison, OnnxComparison,
                     LoadReport, ModernizeReport, ExportReport, Layers
Errors               WnconvertError: ArgumentError, InputError (FormatError), LayerError (NumbersError),
                     OutputError, TooFewLayersError, UnfoldedError, VerifyError

``help(wnconvert.fold_file)`` says more of one of them. All else in this package is internal.

>>> import wnconvert
>>> plan = wnconvert.fold_file("fixtures/g_02500000", dry_run=True)
>>> len(plan.layers)
78
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers read it, without 8 ms for typing

if TYPE_CHECKING:
    from wnconvert.errors import (
        ArgumentError,
        FormatError,
        InputError,
        LayerError,
        NumbersError,
        OutputError,
        TooFewLayersError,
        UnfoldedError,
        VerifyError,
        WnconvertError,
    )
    from wnconvert.layers.recipes import Recipe, RecipeFold
    from wnconvert.plan.plan import Plan
    from wnconvert.storage.files import path_on
    from wnconvert.verbs.comparison.compare import compare_files, compare_state_dicts
    from wnconvert.verbs.comparison.result import Comparison
    from wnconvert.verbs.conversion.convert import Result
    from wnconvert.verbs.conversion.files.fold import fold_file
    from wnconvert.verbs.conversion.files.migrate import migrate_file
    from wnconvert.verbs.conversion.files.split import split_file
    from wnconvert.verbs.conversion.places.cleaning import clean_store
    from wnconvert.verbs.conversion.state_dict import fold_state_dict, migrate_state_dict, split_state_dict
    from wnconvert.verbs.export.check import check_onnx
    from wnconvert.verbs.export.export import export_onnx
    from wnconvert.verbs.export.folds import check_checkpoint, prove_checkpoint
    from wnconvert.verbs.export.pairs.compare import compare_onnx
    from wnconvert.verbs.export.pairs.result import OnnxComparison
    from wnconvert.verbs.fleet.comparing import FolderComparison, compare_folders
    from wnconvert.verbs.fleet.files import fold_files, inspect_files, migrate_files, split_files
    from wnconvert.verbs.fleet.result import FileResult
    from wnconvert.verbs.inspection.inspect import inspect_file, inspect_state_dict
    from wnconvert.verbs.inspection.result import Inspection
    from wnconvert.verbs.loads.loads import loads_folder
    from wnconvert.verbs.loads.result import LoadReport
    from wnconvert.verbs.models.proof.report import ExportReport
    from wnconvert.verbs.modernization.modernize import modernize_code
    from wnconvert.verbs.modernization.result import ModernizeReport
    from wnconvert.verbs.modules.convert import fold_module, folded, migrate_module, weights_folded
    from wnconvert.verbs.modules.inspect import inspect_module
    from wnconvert.verbs.modules.selection import Layers
    from wnconvert.verbs.modules.split import split_module
    from wnconvert.verbs.recipes.recipe import recipe_of, trace_recipe
    from wnconvert.verbs.recipes.result import RecipeReport
    from wnconvert.verbs.shared.recipes import read_recipe, write_recipe

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "Comparison",
    "ExportReport",
    "FileResult",
    "FolderComparison",
    "FormatError",
    "InputError",
    "Inspection",
    "LayerError",
    "Layers",
    "LoadReport",
    "ModernizeReport",
    "NumbersError",
    "OnnxComparison",
    "OutputError",
    "Plan",
    "Recipe",
    "RecipeFold",
    "RecipeReport",
    "Result",
    "TooFewLayersError",
    "UnfoldedError",
    "VerifyError",
    "WnconvertError",
    "__version__",
    "check_checkpoint",
    "check_onnx",
    "clean_store",
    "compare_files",
    "compare_folders",
    "compare_onnx",
    "compare_state_dicts",
    "export_onnx",
    "fold_file",
    "fold_files",
    "fold_module",
    "fold_state_dict",
    "folded",
    "inspect_file",
    "inspect_files",
    "inspect_module",
    "inspect_state_dict",
    "loads_folder",
    "migrate_file",
    "migrate_files",
    "migrate_module",
    "migrate_state_dict",
    "modernize_code",
    "path_on",
    "prove_checkpoint",
    "read_recipe",
    "recipe_of",
    "split_file",
    "split_files",
    "split_module",
    "split_state_dict",
    "trace_recipe",
    "weights_folded",
    "write_recipe",
]

# Where each name comes from; looked up on first use, so that `wnconvert --help` does not import numpy.
_HOMES = {
    "compare_files": "verbs.comparison.compare",
    "compare_state_dicts": "verbs.comparison.compare",
    "Comparison": "verbs.comparison.result",
    "check_onnx": "verbs.export.check",
    "compare_onnx": "verbs.export.pairs.compare",
    "OnnxComparison": "verbs.export.pairs.result",
    "check_checkpoint": "verbs.export.folds",
    "prove_checkpoint": "verbs.export.folds",
    "clean_store": "verbs.conversion.places.cleaning",
    "export_onnx": "verbs.export.export",
    "ExportReport": "verbs.models.proof.report",
    "fold_file": "verbs.conversion.files.fold",
    "fold_state_dict": "verbs.conversion.state_dict",
    "FileResult": "verbs.fleet.result",
    "compare_folders": "verbs.fleet.comparing",
    "FolderComparison": "verbs.fleet.comparing",
    "fold_files": "verbs.fleet.files",
    "inspect_files": "verbs.fleet.files",
    "migrate_files": "verbs.fleet.files",
    "split_files": "verbs.fleet.files",
    "inspect_file": "verbs.inspection.inspect",
    "inspect_state_dict": "verbs.inspection.inspect",
    "loads_folder": "verbs.loads.loads",
    "LoadReport": "verbs.loads.result",
    "migrate_file": "verbs.conversion.files.migrate",
    "migrate_state_dict": "verbs.conversion.state_dict",
    "split_file": "verbs.conversion.files.split",
    "split_state_dict": "verbs.conversion.state_dict",
    "Inspection": "verbs.inspection.result",
    "modernize_code": "verbs.modernization.modernize",
    "ModernizeReport": "verbs.modernization.result",
    "fold_module": "verbs.modules.convert",
    "folded": "verbs.modules.convert",
    "inspect_module": "verbs.modules.inspect",
    "migrate_module": "verbs.modules.convert",
    "split_module": "verbs.modules.split",
    "weights_folded": "verbs.modules.convert",
    "Layers": "verbs.modules.selection",
    "Plan": "plan.plan",
    "path_on": "storage.files",
    "Recipe": "layers.recipes",
    "RecipeFold": "layers.recipes",
    "RecipeReport": "verbs.recipes.result",
    "recipe_of": "verbs.recipes.recipe",
    "trace_recipe": "verbs.recipes.recipe",
    "read_recipe": "verbs.shared.recipes",
    "write_recipe": "verbs.shared.recipes",
    "Result": "verbs.conversion.convert",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"wnconvert.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
