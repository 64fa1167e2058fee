"""From a model to a graph: one module per form in which models come."""
