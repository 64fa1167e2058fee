"""What is read off a graph; nothing here changes it."""
