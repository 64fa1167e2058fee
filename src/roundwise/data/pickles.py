"""What files written by torch.save may hold: tensors, and nothing whose building would run code."""

from __future__ import annotations

import re

RUNS_CODE = (
    "and building that would run code that the file names, as a whole model does that was saved with torch.save(model)."
)
"""Why a file is refused that holds more than tensors."""


def code_in(error: Exception) -> str | None:
    """The class or function that a file names besides tensors, by the error with which PyTorch refuses the file."""
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    return None if asked is None else asked.group(1)
