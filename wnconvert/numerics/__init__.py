"""The arithmetic, correctly rounded: arrays in, arrays out, without names or files.

rounding   the float formats; casts that round once
sums       sums of squares: fast, accurate, exact
rows       rows without an answer: reports on them, and the policy that makes them errors
norms      norms of rows, correctly rounded
folding    w = g v / |v|, block by block, correctly rounded
splitting  g = |w| and v = w: norms and directions
finite     NaN and infinities counted
distance   how far apart numbers are: bits, ulps, tolerances
"""
