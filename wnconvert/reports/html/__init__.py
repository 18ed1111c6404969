"""Results as pages: one file of HTML that opens without a network.

page         Page: what a page is made of; how it becomes a file
modules      the tree of modules that the names of layers and tensors show
inspections  an inspection as a page
runs         a training run as a page
comparisons  a comparison as a page, and that of two folders
signals      an output as a waveform or a picture
outputs      the outputs of a proof: rows, and what can be seen of them
proofs       a proof as a page
models       two ONNX models as a page
"""
