"""ONNX models run in onnxruntime, in a process of its own that has a limit of time and of memory.

ports      the inputs and outputs of a model, and which arrays fit them
words      onnxruntime's errors in words
session    onnxruntime itself: a model loaded and run, in this process
segmented  a model in segments, in this process
frames     what two processes say to each other: an object of JSON, and arrays
memory     how much memory is free, and a limit of it
child      the process that runs models
process    that process as seen from here: started, asked, ended
"""
