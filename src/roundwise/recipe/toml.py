"""A recipe's plain data as the text of a TOML file, which Python can read but not write."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any


def to_toml(data: Mapping[str, Any]) -> str:
    """Settings of the recipe itself, then a table for each of its parts and for each override.

    Args:
        data: as `Recipe.as_dict` gives it.
    """
    tables = {name: value for name, value in data.items() if isinstance(value, dict) and name != "overrides"}
    tables |= {f"overrides.{_key(name)}": value for name, value in data["overrides"].items()}
    lines = [f"{name} = {_value(value)}" for name, value in data.items() if not isinstance(value, dict)]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{setting} = {_value(value)}" for setting, value in table.items())]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list():
            return "[" + ", ".join(map(_value, value)) + "]"
        case dict():
            return "{ " + ", ".join(f"{name} = {_value(item)}" for name, item in value.items()) + " }"
        case _:
            return repr(value)
