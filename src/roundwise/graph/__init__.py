"""A network as one flat list of operations, and its layers as matrices.

graph      what everything else reads and rewrites: operations and constants
capture    nn.Module → Graph, through `torch.export`
explain    why that was not possible, where, and what to do instead
normalize  the same computation in fewer kinds of operations
matrix     the only place that knows what a convolution is
patterns   where in a graph the layers are, and what follows them
emit       codes and grids → dequantize operations in the graph
"""
