"""Searches for codes: one file each."""
