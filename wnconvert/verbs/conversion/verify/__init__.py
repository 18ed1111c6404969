"""An output read back: its structure before every rename, and with ``--verify`` every tensor, computed again.

pieces      tensors cut into pieces that any reader can pick
uncached    large files read past the page cache
readers     readers of the output that are not ours
structure   headers and places, which are checked before every rename
arithmetic  numbers of the output against plain arithmetic and the bound on its error
rules       what a rule makes of its parts, in plain arithmetic
biases      the bias of a layer into which a norm is folded
steps       the checks, one for each kind of step
output      every tensor of an output, and files that were copied beside it
"""
