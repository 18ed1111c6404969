"""Two ONNX models compared: their weights, and what they compute.

proposed  the inputs of a model as it declares them, with sizes and numbers to draw
fed       both models as functions of the same inputs, whatever their names and dtypes
result    OnnxComparison, the frozen result
compare   compare_onnx
"""
