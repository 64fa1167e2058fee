"""The result of a run: the quantized model, and its file."""
