"""A network as one flat list of operations, and its layers as matrices. It knows no integers and no samples.

graph      what everything else reads and changes: operations, constants, and moments of layers' outputs
operators  the table of operator families: what is a layer, a function, a move of data, a reduction
matrix     the only place that knows what a convolution is
shapes     the shape of every value after an edit, and sizes written into operations
edit       the few ways in which a graph is changed
analysis   what is read off a graph: layers, channels that go together, moments, where activations are quantized
transforms graph to graph, the same function: normal form, folded batch-norms
"""
