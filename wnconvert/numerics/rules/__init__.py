"""The arithmetic of each operation of a rule: a change of what is read, a factor of each row, or of all.

parts       the tensors of a rule
mask        w mask, element by element
factors     factors of rows, and bounds on them
norm        g / |w| of rows
computed    what a class computes of its own weight
neighbours  norms beside a layer
spectral    1 / sigma of a matrix
table       each operation's arithmetic
"""
