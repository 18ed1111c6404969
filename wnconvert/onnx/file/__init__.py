"""An ONNX file: its messages read as data, and written with edits.

wire         protobuf's wire format
model        an ONNX model as data; edits
tensors      where tensors lie, in the model or beside it
provenance   what wnconvert did to a model, in its metadata
reader       an ONNX file opened
description  what a model says of itself
fields       the fields of messages that an edit touches
outline      a model without the elements of its large tensors
edited       where in the file the edits lie
writer       a model and its edits to layouts
unchanged    all but the edits is byte for byte the same
"""
