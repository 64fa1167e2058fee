"""Pure tensors: grids, quadratic objectives, searches. Nothing here knows networks."""
