"""The formats of files that hold tensors: one list, with the facts that plans and writers ask for."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import PurePath

from wnconvert.frozen import dataclass

__all__ = ["Container", "Facts", "container_of"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a container is and can hold. Whatever depends on the container of an output asks these.

    ``family`` is the library that the format belongs to, and ``noun`` what a message calls such a file.
    ``suffixes`` are those of files that are written so; a container without any is only read. ``hub_name`` is
    what the hub calls a folder's weights in one such file, if it does.

    ``holds_trees``: state dicts at paths, values that are not tensors, and pickled modules; if not, a file is
    one state dict of tensors. ``shares_memory``: two names can be the same elements, and one element of many.
    ``names_devices``: each tensor says where it was. ``keeps_texts``: metadata, and the record of changes.
    """

    family: str
    noun: str
    suffixes: tuple[str, ...] = ()
    hub_name: str = ""
    holds_trees: bool = False
    shares_memory: bool = False
    names_devices: bool = False
    keeps_texts: bool = True


_TORCH = Facts(
    "torch",
    "a torch file",
    hub_name="pytorch_model.bin",
    holds_trees=True,
    shares_memory=True,
    names_devices=True,
)
_TORCH_SUFFIXES = (".pth.tar", ".pt.tar", ".ckpt.tar", ".ckpt", ".pth", ".bin", ".pt", ".th", ".pkl", ".tar")


class Container(str, Enum):
    """The format of a file, which is also how people read it; a string, so that JSON has it as it is.

    >>> print(Container.TORCH_LEGACY, Container.TORCH_LEGACY.facts.family)
    torch legacy torch
    """

    _value_: str
    facts: Facts

    def __new__(cls, name: str, facts: Facts) -> Container:
        """A member, with its facts."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.facts = facts
        return member

    SAFETENSORS = (
        "safetensors",
        Facts("safetensors", "a safetensors file", (".safetensors",), hub_name="model.safetensors"),
    )
    TORCH_ZIP = "torch zip", replace(_TORCH, suffixes=_TORCH_SUFFIXES)
    TORCH_LEGACY = "torch legacy", _TORCH
    TORCHSCRIPT = "TorchScript", replace(_TORCH, hub_name="")
    EXPORTED = "exported program", replace(_TORCH, noun="an exported program", hub_name="")
    DISTRIBUTED = "torch.distributed.checkpoint", replace(_TORCH, hub_name="")
    NPZ = "npz", Facts("numpy", "an .npz file", (".npz",), keeps_texts=False)
    FLAX = "flax msgpack", Facts("flax", "a flax file")
    PADDLE = "Paddle pickle", Facts("paddle", "a Paddle file")
    ONNX = "ONNX", Facts("onnx", "an ONNX model", (".onnx",), holds_trees=True, shares_memory=True)

    def __str__(self) -> str:
        return str.__str__(self)

    @classmethod
    def of_hub(cls, suffix: str) -> Container:
        """The container that is written into a folder whose files of weights end so.

        >>> print(Container.of_hub("bin"), Container.of_hub("safetensors"), sep=", ")
        torch zip, safetensors
        """
        return next(
            found for found in cls if found.facts.suffixes and found.facts.hub_name.endswith(f".{suffix}")
        )


def container_of(path: PurePath) -> Container:
    """The container that a target's suffix asks for; torch's where it asks for none.

    >>> from pathlib import PurePath
    >>> print(container_of(PurePath("model.safetensors")), container_of(PurePath("g_1.folded")), sep=", ")
    safetensors, torch zip
    """
    suffix = path.suffix.lower()
    return next((found for found in Container if suffix in found.facts.suffixes), Container.TORCH_ZIP)
