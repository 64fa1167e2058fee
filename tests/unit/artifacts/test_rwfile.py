"""What a file holds is read once."""

import os

import torch
from fuzz.hostile import program, written

import roundwise as rw


def test_a_loaded_network_stays_as_it_is_when_its_file_is_changed_or_cut(tmp_path):
    total = {"op": "call_function", "name": "y", "target": "aten.sum.default", "args": {"list": [{"node": "w"}]}}
    path = written(tmp_path / "model.rw", program([total | {"kwargs": {}}], {"w": torch.ones(1 << 16)}))
    model, content = rw.load(path), path.read_bytes()
    with path.open("r+b") as file:
        file.seek(len(content) - 4096)
        file.write(bytes(4096))
    assert model(torch.ones(2, 4)) == 1 << 16
    os.truncate(path, 100)
    assert model(torch.ones(2, 4)) == 1 << 16
