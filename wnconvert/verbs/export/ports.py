"""Which input of an ONNX model is which of the module's: as the user says, by name, or in their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from wnconvert.errors import ArgumentError
from wnconvert.frozen import dataclass
from wnconvert.messages import listed, printable
from wnconvert.onnx.runtime.ports import ValueInfo
from wnconvert.onnx.runtime.process import Opened
from wnconvert.tensors.blocks import Array
from wnconvert.verbs.models.proof.inputs.texts import InputSpec
from wnconvert.verbs.models.proof.signatures import Signature

__all__ = ["Ports", "ports_of"]


@dataclass(frozen=True, slots=True)
class Ports:
    """An ONNX model, its name of each input of the module that it has, and notes."""

    opened: Opened
    names: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of the model, fed with the module's inputs by their names; others are left out."""
        theirs = {self.names[name]: array for name, array in feeds.items() if name in self.names}
        spelled = {its: f"{own}:{its}" for own, its in self.names.items() if own != its}
        return self.opened.run(theirs, spelled)


def ports_of(opened: Opened, signature: Signature) -> Ports:
    """Pair the inputs: a name that the user gave, or else the same name; the others by position.

    By position only if as many are left on either side and each pair fits. Raises ``ArgumentError`` if an
    input of the model has no partner; one of the module's without a partner is a note.
    """
    there = {port.name: port for port in opened.inputs}
    for spec in signature.inputs:
        if spec.port and spec.port not in there:
            raise ArgumentError(
                f"the model has no input {printable(spec.port)!r}",
                where=str(opened.path),
                fix=f"its inputs are: {listed(map(printable, there), 12)}",
            )
    names = {spec.name: spec.called for spec in signature.inputs if spec.called in there}
    left = [spec for spec in signature.inputs if spec.name not in names]
    lacking = [port for name, port in there.items() if name not in names.values()]
    if not lacking:
        unused = listed(printable(spec.name) for spec in left)
        said = f"inputs that the exporter left out, because nothing uses them: {unused}"
        return Ports(opened, names, (said,) if left else ())
    if len(left) != len(lacking) or not all(map(_fits, left, lacking)):
        raise _unpaired(opened, left, lacking[0])
    paired = {spec.name: port.name for spec, port in zip(left, lacking, strict=True)}
    said = listed(f"{printable(own)} is {printable(its)}" for own, its in paired.items())
    return Ports(
        opened, names | paired, (f"the model has other names of inputs, taken in their order: {said}",)
    )


def _fits(spec: InputSpec, port: ValueInfo) -> bool:
    """Whether an input of the module can be fed to one of the model, by dtype and shape."""
    if spec.dtype != port.dtype:
        return False
    sizes = zip(spec.shape, port.shape, strict=False)
    fixed = all(own == its for own, its in sizes if isinstance(own, int) and isinstance(its, int))
    return not port.shape or (fixed and len(spec.shape) == len(port.shape))


def _unpaired(opened: Opened, left: list[InputSpec], port: ValueInfo) -> ArgumentError:
    """The error for an input of the model that no input of the module is known to be."""
    its = printable(port.name)
    text = str(replace(left[0], port=port.name)) if left else f"NAME:{port.name}={port}"
    whose = f"if it is {printable(left[0].name)}" if left else "where NAME is its name in forward"
    return ArgumentError(
        f"its input {its}, {printable(str(port))}, is none of the inputs that are given",
        where=str(opened.path),
        fix=f"give '{printable(text)}', {whose}",
    )
