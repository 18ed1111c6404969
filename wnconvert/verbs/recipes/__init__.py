"""Which norms of a model fold into which layers: told by one forward of it, and proven.

tracing  one forward of a module as data
finding  what a trace holds: the linear layers, the norms, and which norm goes where
proving  a recipe proven: a model with drawn numbers in float64, unfolded beside folded
result   what recipe_of found
tell     what forwards of a module tell
smaller  smaller inputs for the proof
recipe   recipe_of
"""
