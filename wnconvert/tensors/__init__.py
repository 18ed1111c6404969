"""Tensors as names, dtypes, shapes and places, and how their elements are read.

containers   the formats of files that hold tensors
suffixes     suffixes of formats that are not written, which no output may have
dtypes       dtypes: one table for torch, safetensors, ONNX and numpy
tree         what a checkpoint holds: names, dtypes, shapes, where the bytes lie
limits       the limits of what is read and written, in one table
claims       tensors that claim far more than their file holds
files        opened files: bytes that are read at any place, whatever holds them
views        files that are made of others: tensors in chunks, bytes in memory, dequantized numbers
blocks       a tensor cut into blocks; a thread's scratch arrays; who gives elements
distributed  tensors that a process group holds: whole on every rank, or one rank's shard
memory       torch tensors and numpy arrays in memory, read as a file's are
"""
