"""One forward of a module as data.

trace      every operator that ran, on which tensors
channels   where the channels of a value are after views of it
constants  what it computes of stored tensors alone, computed again on other numbers
"""
