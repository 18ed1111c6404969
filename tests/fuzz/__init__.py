"""A structural fuzzer of the project's own, run by hand: ``python -m tests.fuzz --minutes 60 --seed 1``.

case         one case: files, the commands on them, and how it is kept in a file
values       changes that fit any run of bytes, and what they are drawn from
pickles      pickles: operations made, left out, doubled, swapped and given other arguments
zips         zip archives: every field of their headers and directory
safetensors  safetensors files: the JSON of their headers
flax         files of flax: values of MessagePack, and heads of arrays
npz          NumPy's archives: the heads of their arrays
onnx         ONNX models: the fields of their messages
folders      folders: the index, the shards, and torch.distributed's metadata
commands     command lines: options, values, names of files
targets      what is fuzzed, by name
functions    two ONNX models run side by side
check        what is wrong with what a command did, by readers that are not ours and exact numbers
worker       the process that runs the cases, with limits of memory
watch        that process from outside: hangs and crashes
__main__     the command line, and the summary
kills        runs killed at random points, by a command of its own
"""
