"""Samples for calibration and evaluation, from files: images, arrays, and their labels and masks."""
