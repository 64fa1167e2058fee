"""What the user asks for: settings and their files."""
