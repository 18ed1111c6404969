"""Tensors whose bytes lie in no file as they are read: those that are made of other files.

assembled     tensors in chunks, bytes in memory
quantization  whole numbers that stand for others: how they do, as data
dequantized   the numbers that whole numbers stand for, as a file
"""
