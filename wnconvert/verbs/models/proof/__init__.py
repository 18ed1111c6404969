"""Two models run on the same inputs and compared.

signatures  inputs by name, dtype, shape; ranges of sizes
samples     the values of the inputs
outputs     how far one output is from its reference
fixed       sizes that an exporter has fixed
proof       two functions run and compared
handed      the weights that layers are handed in a forward, and how far they are from another's
report      ExportReport, and its timed steps
functions   a torch model as a function of arrays
running     runs a torch model in eval mode, quietly, and leaves it as it was
"""
