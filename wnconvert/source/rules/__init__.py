"""The rules: each a function from a module to what it finds there, and a row of the table.

imports     functions imported from torch, or from a module of the project that has them from torch
functions   functions reached through a module, or passed on; arguments of what removes weight norm
attributes  the halves of a layer as attributes, and what asks for them by name
keys        halves in texts: keys of state dicts, filters of names, patterns
hints       code that means something else with computed weights
table       the rows
"""
