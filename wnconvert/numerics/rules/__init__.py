"""The arithmetic of each operation of a rule: a change of what is read, a factor of each row, or of all.

parts       the tensors of a rule
mask        w mask, element by element
factors     factors of rows, and bounds on them
norm        g / |w| of rows
unit        1 / max(|w|, eps) of a vector
neighbours  norms beside a layer
neutral     the variance of a norm that does nothing
spectral    1 / sigma of a matrix
table       each operation's arithmetic
"""
