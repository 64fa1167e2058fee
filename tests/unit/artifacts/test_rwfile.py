"""What a file holds is read once."""

import os

import torch
from fuzz.hostile import program, written

import roundwise as rw

COUNT = (1 << 12) + 2
"""Numbers of a tensor: they end 8 bytes behind a multiple of 64 bytes, so that of eight tensors one is aligned."""


def test_a_loaded_network_stays_as_it_is_when_its_file_is_changed_or_cut(tmp_path):
    total = {"op": "call_function", "target": "aten.sum.default", "kwargs": {}}
    nodes = [total | {"name": f"y{place}", "args": {"list": [{"node": f"w{place}"}]}} for place in range(8)]
    tensors = {f"w{place}": torch.ones(COUNT) for place in range(8)}
    path = written(tmp_path / "model.rw", program(nodes, tensors, outputs=[node["name"] for node in nodes]))
    model, size = rw.load(path), path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size - 4 * 8 * COUNT)
        file.write(bytes(4 * 8 * COUNT))
    assert [float(one) for one in model(torch.ones(2, 4))] == [COUNT] * 8
    os.truncate(path, 100)
    assert [float(one) for one in model(torch.ones(2, 4))] == [COUNT] * 8
