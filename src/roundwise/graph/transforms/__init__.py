"""Graph to graph, the same function: what every network goes through."""
