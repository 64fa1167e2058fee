"""`roundwise inspect`: the content of a file, and files that are refused."""

import json

import torch
from commandline import failed, run
from facts import has


def test_inspect_shows_layers_recipe_and_versions(written, folder):
    text = run("inspect", folder / "net.rw").stdout
    assert has(text, "checksum", f"torch {torch.__version__}", 'method = "nearest"', "conv2d")
    data = json.loads(run("inspect", folder / "net.rw", "--json").stdout)
    assert data["checksum"] == "ok"
    assert data["recipe"]["stages"][1]["rounding"] == {"method": "nearest"}
    assert len(data["report"]["stages"][1]["layers"]) == 2


def test_inspect_refuses_a_file_that_was_tampered_with(written, folder, tmp_path):
    content = bytearray((folder / "net.rw").read_bytes())
    content[-5] ^= 1
    (tmp_path / "net.rw").write_bytes(content)
    assert failed(run("inspect", tmp_path / "net.rw"), 1, "net.rw")


def test_inspect_is_for_rw_files(written, folder):
    assert failed(run("inspect", folder / "net.onnx"), 1, "net.onnx", ".rw")
    assert failed(run("inspect", folder / "absent.rw"), 2, "absent.rw")
