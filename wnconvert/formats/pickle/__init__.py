"""Pickles as data: read by a small machine that imports and calls nothing, and written back.

values    the content of a pickle, as data
opcodes   the operations, their arguments, and what they cost
machine   what each operation does; nothing is imported or called
reader    bytes to data, by the machine
skimming  a file to data, without the bytes of the arrays in it
writer    data to bytes
"""
