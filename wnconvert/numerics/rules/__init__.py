"""The arithmetic of each operation of a rule: a change of what is read, a factor of each row, or of all.

parts      the tensors of a rule
mask       w mask, element by element
factors    factors of rows, and bounds on them
norm       g / |w| of rows
unit       1 / max(|w|, eps) of a vector
matrix     mat(w) v and its transpose, accurate or exact
spectral   1 / sigma of a matrix
normed     1 / sigma of a matrix whose rows were normed before
step       1 / sigma after one step from u
square     which axis are the rows, where both have one size
table      each operation's arithmetic
"""
