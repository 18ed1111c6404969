"""The arithmetic, correctly rounded: arrays in, arrays out, without names or files.

rounding   the float formats; casts that round once
sums       sums of squares: fast, accurate, exact
rows       rows without an answer: reports on them, and the policy that makes them errors
kernel     sums of rows and products of values of at most 24 bits: in C, and in numpy
norms      norms of rows, correctly rounded
wide       products of any values
finite     NaN and infinities counted
rules      the arithmetic of each operation of a rule: factors of rows, a factor of all, a mask
folding    a weight by its rule, block by block, correctly rounded
splitting  g = |w| and v = w: norms and directions
distance   how far apart numbers are: bits, ulps, tolerances
"""
