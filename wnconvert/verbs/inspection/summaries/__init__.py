"""What is counted and listed beside layers.

counts     elements that are stored, once; buffers apart
kinds      other kinds of layers and norms, how often, and how many of them names tell
norms      what the statistics and gains of norms show
steps      the step of training that a file is of
contents   every tensor as rows; what a file says of itself
"""
