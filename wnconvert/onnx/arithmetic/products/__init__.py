"""Products of powers of tensors, by shapes alone.

monomials  products of powers of tensors
powers     powers of monomials, and guarded ones
sums       sums of such products, and products of matrices
"""
