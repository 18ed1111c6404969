"""The plan of split, and the three ways to say which weights it is for.

candidates    the weights that may be split, and whether they fit; by the record of a fold
by_reference  as another checkpoint has it (--like)
by_globs      as globs and a dim say it
plan          the plan of split, and which of three ways says what to split
"""
