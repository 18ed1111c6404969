"""The arithmetic, correctly rounded: it knows no names and no files.

rounding   the float formats; casts that round once
sums       sums of squares: fast, accurate, exact
rows       rows without an answer: what was odd, and what is an error
norms      norms of rows, correctly rounded
folding    w = g v / |v|, block by block, correctly rounded
splitting  g = |w| and v = w: norms and directions
distance   how far numbers are apart: bits, ulps, tolerances
"""
