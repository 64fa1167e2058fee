"""Every network of the zoo passes every step, or is refused with the error that its entry lists.

`make zoo` runs this. It needs packages that no other test needs, and takes minutes.
"""

import dataclasses
import importlib.util
import json
import os
import re
from pathlib import Path

import pytest
from architectures import ARCHITECTURES
from steps import outcomes, unexpected

RECORDS = os.environ.get("ROUNDWISE_ZOO")
"""A folder for the outcomes, from which `table.py` makes the page. If it is set, no network may be skipped."""

# Other packages warn of much that is not about us.
pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_network_passes_every_step_or_is_refused_as_listed(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # all weights are random, and nothing has to be downloaded
    entry = ARCHITECTURES[name]
    if entry.source != "plain" and importlib.util.find_spec(entry.source) is None and not RECORDS:
        pytest.skip(f"{entry.source} is not installed; `make zoo` installs it")
    ended = list(outcomes(entry))
    if RECORDS:
        _record(Path(RECORDS), name, ended)
    assert unexpected(entry, ended) == []


def _record(folder, name, ended):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{re.sub(r'[^a-z0-9]+', '_', name.lower())}.json"
    file.write_text(json.dumps({name: [dataclasses.asdict(outcome) for outcome in ended]}), encoding="utf-8")
