"""How a check says that something does not hold."""


def require(holds: bool, found: str) -> None:
    """Raise `AssertionError` unless it holds; `found` says what was found instead. Works under `python -O` too."""
    if not holds:
        raise AssertionError(found)
