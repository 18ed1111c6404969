"""A module exported to ONNX and proven equal.

exporters  torch's two exporters behind one function
names      which parameter an initializer is
graph      what an exporter left: folded, named, checked
request    what is asked of an export, and whether that was made
check      check_onnx
export     export_onnx
"""
