"""What a class computes of its own weight: unit rows, one factor, standardized rows.

guarded    g / d of rows, d their norm with a guard
equalized  c of all elements
moments    sums of rows, and of their squares
over       g / d of rows, d the norm of another tensor's rows
formula    a standardized element between bounds
centred    factors of rows that have a centre
standard   from the moments of rows to their centres and factors
"""
