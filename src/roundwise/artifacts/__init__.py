"""What a run leaves: the model that runs, and its file."""
