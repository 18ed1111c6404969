"""The arithmetic of each operation of a rule: a change of what is read, a factor of each row, or of all.

parts       the tensors of a rule
mask        w mask, element by element
factors     factors of rows, and bounds on them
norm        g / |w| of rows
spectral    1 / sigma of a matrix
computed    what a class computes of its own weight
channels    a factor for each channel: a norm beside the layer
table       each operation's arithmetic
neighbours  the bias of a layer into which a norm is folded
neutral     the variance of a norm that does nothing
"""
