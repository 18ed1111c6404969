"""The arithmetic, correctly rounded: arrays in, arrays out, without names or files.

rounding   the float formats; casts that round once
sums       sums of squares: fast, accurate, exact
rows       rows without an answer: reports on them, and the policy that makes them errors
kernel     sums of rows and products of values of at most 24 bits: in C, and in numpy
norms      norms of rows, correctly rounded
wide       products of any values
scales     g/|v| of rows, as the factors of their products
folding    w = g v / |v|, block by block, correctly rounded
splitting  g = |w| and v = w: norms and directions
finite     NaN and infinities counted
distance   how far apart numbers are: bits, ulps, tolerances
"""
