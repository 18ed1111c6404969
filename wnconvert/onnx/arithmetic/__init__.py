"""What the nodes of an ONNX model compute of its stored tensors, symbolically.

constants     evaluation of shape arithmetic
products      products of powers of tensors, and sums of them
rowwise       sums of products of elements and of means of rows
staged        products that are rounded to whole numbers on the way
known         what is known of a value
rowoperators  the result of an operator on such sums
guards        the result of an operator that guards a value
operators     the result of an operator, as far as its inputs are known
codes         operators on codes, and the numbers that they stand for
meaning       the rule by which a monomial is a weight
standardized  the formula of weight standardization that a sum of such products is
"""
