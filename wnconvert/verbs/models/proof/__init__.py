"""Two models run on the same inputs and compared.

inputs      texts, values and files in which a user gives inputs
signatures  all inputs of a model; ranges of sizes, examples and data
samples     the values of the inputs
outputs     how far one output is from its reference
causes      what else makes two runs differ: sizes that an exporter has fixed, a reference that varies
proof       two functions run and compared
handed      the weights that layers are handed in a forward, and how far they are from another's
report      ExportReport, and its timed steps
functions   a torch model as a function of arrays
running     runs a torch model in eval mode, quietly, and leaves it as it was
"""
