"""Operators of torch that only compute: what code in a file may call without being trusted.

Checking the form of names is not enough: ``aten::save`` writes files, ``prim::rpc_sync`` asks other machines.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

__all__ = ["WITHHELD", "is_for_scripts", "registered"]


#: Of the libraries that are known, what does more than compute.
WITHHELD = frozenset({"from_file", "_print", "save"})


def registered() -> Iterator[tuple[str, str, str]]:
    """Library, name and overload of each operator of ``aten`` and ``prims`` that only computes."""
    for each in torch._C._dispatch_get_all_op_names():
        library, _, name = each.partition("::")
        base, _, overload = name.partition(".")
        if library in ("aten", "prims") and base not in WITHHELD:
            yield library, base, overload or "default"


#: Operators of aten that only the interpreter of TorchScript has: numbers, texts, lists, dicts, settings; in
#: older releases, such as torch 2.9, what a tensor tells of itself too.
_OF_INTERPRETER = """
    Bool Complex ComplexImplicit Delete Float FloatImplicit Generator Int IntImplicit ScalarImplicit Size
    __contains__ __derive_index __getitem__ __interpolate __is__ __isnot__ __not__ __range_length
    __round_to_zero_floordiv __upsample __upsample_bilinear __upsample_nearest _get_cpu_capability
    _get_tracing_state _grad_sum_to_size _infer_size _list_to_tensor _ncf_unsqueeze _ncf_view
    _no_grad_embedding_renorm_ _no_grad_fill_ _no_grad_normal_ _no_grad_uniform_ _no_grad_zero_
    _pack_sequence _set_item _size_if_not_equal _tensor_to_list _unwrap_optional append as_tensor backward
    bin broadcast_shapes capitalize center chr clear count cpu cuda degrees device dict dim divmod
    element_size endswith expandtabs extend fabs factorial find floordiv format gamma get
    get_autocast_dtype get_device grad has_torch_function hash hex initial_seed insert
    is_autocast_cpu_enabled is_autocast_enabled is_contiguous is_grad_enabled is_non_overlapping_and_dense
    is_scripting is_strides_like_format isalnum isalpha isdecimal isdigit isidentifier islower isnumeric
    isprintable isspace istitle isupper items join keys len list ljust lower lstrip manual_seed
    mathremainder modf numel oct ord partition percentFormat pop popitem radians remove replace reverse
    rfind rindex rjust rpartition rsplit rstrip seed set_grad_enabled setdefault sorted splitlines
    startswith storage_offset str strip swapcase tensor title update upper wait warn zfill
"""
_PRIM = """
    EnumName EnumValue ModuleContainerIndex NumToTensor RaiseException StringIndex TupleIndex TupleUnpack
    Uninitialized abs awaitable_nowait awaitable_wait data device dtype grad id index is_cpu is_cuda
    is_ipu is_maia is_meta is_mkldnn is_mps is_mtia is_nested is_quantized is_sparse is_sparse_csr
    is_vulkan is_xla is_xpu itemsize layout max min name nbytes rangelist requires_grad shape tolist type
    unchecked_cast unchecked_unwrap_optional
"""
_PREPACKED = "conv2d_clamp_prepack conv2d_clamp_run conv2d_transpose_clamp_prepack conv2d_transpose_clamp_run"
_PROFILER = "_record_function_enter _record_function_enter_new _record_function_exit"


@functools.cache
def _known() -> frozenset[tuple[str, str]]:
    every = torch._C._dispatch_get_all_op_names()
    return frozenset(
        {(library, name) for library, name, _ in registered()}
        | {("aten", name) for name in _OF_INTERPRETER.split()}
        | {("prim", name) for name in _PRIM.split()}
        | {("profiler", name) for name in _PROFILER.split()}
        | {("prepacked", name) for name in f"linear_clamp_prepack linear_clamp_run {_PREPACKED}".split()}
        | {
            ("quantized", each.partition("::")[2].partition(".")[0])
            for each in every
            if each.startswith("quantized::")
        }
    )


def is_for_scripts(library: str, name: str) -> bool:
    """Whether TorchScript may call an operator: one of those above, or of a quantized model.

    >>> is_for_scripts("aten", "conv1d"), is_for_scripts("aten", "save"), is_for_scripts("prim", "rpc_sync")
    (True, False, False)
    """
    return (library, name) in _known()
