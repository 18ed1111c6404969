"""Suffixes of outputs that would say what is not so: formats of others, which wnconvert does not write."""

from __future__ import annotations

from pathlib import PurePath

from wnconvert.errors import ArgumentError

__all__ = ["check_true_name"]


_WRITE = "-o OUT.safetensors, OUT.npz or OUT.pt"
_TENSORFLOW = "-o OUT.npz, and load its arrays in Keras or TensorFlow"
_EXPORT = f"{_WRITE}; or wnconvert export, for an ONNX model"

#: What files of these suffixes would be, and what to do.
_KINDS = (
    (".gguf .ggml", "a GGUF file", f"{_WRITE}; then run the script that makes GGUF files of this model"),
    (".h5 .hdf5", "an HDF5 file", "-o OUT.npz, whose arrays h5py can write"),
    (".keras", "a Keras model", _TENSORFLOW),
    (".tflite", "a TensorFlow Lite model", _TENSORFLOW),
    (".pb", "a TensorFlow graph", _TENSORFLOW),
    (
        ".msgpack",
        "a flax checkpoint",
        "-o OUT.npz, whose names flax.traverse_util.unflatten_dict nests: sep='/'",
    ),
    (
        ".mlpackage .mlmodel",
        "a Core ML model",
        f"{_WRITE}; load it into the module, and convert that by coremltools",
    ),
    (".pdparams .pdiparams", "a Paddle file", "-o OUT.npz, whose arrays paddle.save can write"),
    (".nemo", "a NeMo archive", f"{_WRITE}; a .nemo is a tar archive with a checkpoint in it: fold that"),
    (
        ".ts .ptl .torchscript",
        "a TorchScript archive",
        f"{_WRITE}; load it into the module, and script that again",
    ),
    (".pt2 .pte", "an exported program", f"{_WRITE}; load it into the module, and export that again"),
    (".mar", "a TorchServe archive", f"{_WRITE}, and pack that"),
    (".npy", "a single NumPy array", "-o OUT.npz, which holds many"),
    (".engine .trt .plan", "a TensorRT engine", _EXPORT),
    (".xml", "an OpenVINO model", _EXPORT),
    (".ort", "a model in onnxruntime's own format", _EXPORT),
    (".distcp", "a part of a distributed checkpoint", _WRITE),
    (
        ".json .yaml .yml .txt .csv",
        "a text",
        f"{_WRITE}; or --as-folder -o FOLDER, which has an index where it needs one",
    ),
    (".zip .gz .tgz .xz .bz2 .zst .7z", "an archive", f"{_WRITE}, and pack that"),
)
_FOREIGN = {suffix: (what, fix) for suffixes, what, fix in _KINDS for suffix in suffixes.split()}


def check_true_name(name: str, noun: str, fix: str = "") -> None:
    """Raise ``ArgumentError`` where its suffix says that an output, which is ``noun``, is of another format.

    ``fix`` stands for the table's.

    >>> check_true_name("model.pt", "a torch file")
    """
    what, usual = _FOREIGN.get(PurePath(name).suffix.lower(), ("", ""))
    if what:
        raise ArgumentError(f"{name} would not be {what}, as its name says, but {noun}", fix=fix or usual)
