"""Training in two processes takes the steps of one process."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from facts import raises

import roundwise as rw
from roundwise.engine.processes import Processes
from roundwise.engine.training_data import training_data
from roundwise.frontends import Signature

PROGRAM = Path(__file__).with_name("train_in_parallel.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def start(*arguments):
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_gradients_and_the_result_are_those_of_one_process(tmp_path, loss):
    start(PROGRAM, tmp_path / "alone", loss, "")
    start(*TORCHRUN, PROGRAM, tmp_path / "both", loss, tmp_path / "run")
    start(*TORCHRUN, PROGRAM, tmp_path / "again", loss, tmp_path / "run")  # goes on where the other has ended
    alone, first, second, again = (torch.load(tmp_path / name) for name in ("alone.0", "both.0", "both.1", "again.0"))
    assert len(first["gradients"]) == len(alone["gradients"]) > 0
    for one, other in zip(first["gradients"], alone["gradients"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(first["epochs"][-1], alone["epochs"][-1], rtol=1e-2, atol=1e-4)
    assert torch.equal(first["outputs"], second["outputs"])
    assert torch.equal(first["outputs"], again["outputs"])


@pytest.mark.slow
def test_the_command_line_trains_with_several_processes_and_one_of_them_writes(tmp_path):
    text = (
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))\n"
    )
    (tmp_path / "net.py").write_text(text)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32))
    options = ("--rounding", "nearest", "--epochs", 2, "--json", "--out", tmp_path / "net.rw")
    result = start(*TORCHRUN, "-m", "roundwise.cli", "finetune", f"{tmp_path}/net.py:build", "--data",
                   tmp_path / "x.npy", *options)  # fmt: skip
    assert len(json.loads(result.stdout)["report"]["stages"][-1]["epochs"]) == 3
    assert rw.load(tmp_path / "net.rw")(torch.zeros(2, 4)).shape == (2, 3)


def batches(data, rank, count, size=8):
    found = training_data(data, Signature(("x",), ("x",)), size, 0, Processes(rank, count))
    return found, [batch.args[0] for batch in found.train_batches(1)]


@pytest.mark.parametrize("samples", [57, 64])
def test_each_process_has_its_part_of_every_batch(samples):
    data = torch.arange(samples)[:, None].float()
    _, whole = batches(data, 0, 1)
    parts = [batches(data, rank, 2)[1] for rank in range(2)]
    for number, (one, other) in enumerate(zip(*parts, strict=True)):
        assert sorted([*one.flatten().tolist(), *other.flatten().tolist()]) == sorted(whole[number].flatten().tolist())
        assert min(len(one), len(other)) >= 2
    held = [torch.cat([b.args[0] for b in batches(data, r, 2)[0].held_out_batches()] or [data[:0]]) for r in range(2)]
    alone = torch.cat([batch.args[0] for batch in batches(data, 0, 1)[0].held_out_batches()])
    assert sorted(torch.cat(held).flatten().tolist()) == alone.flatten().tolist()


def test_of_an_iterable_each_process_has_every_second_batch():
    data = list(torch.arange(40).float()[:, None].split(8))  # five batches: the last one has no partner
    for rank in range(2):
        assert [batch[0].item() for batch in batches(data, rank, 2)[1]] == [8.0 * rank, 16.0 + 8 * rank]


def test_fewer_samples_than_processes_need_are_refused():
    with raises(rw.CalibrationError, 3, 4):
        batches(torch.zeros(4, 1), 0, 4)


def test_several_processes_without_a_group_are_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with raises(rw.RecipeError, 2, "init_process_group"):
        Processes.present()


def test_alone_nothing_is_exchanged():
    value = torch.ones(3)
    Processes.present().sum([value])
    assert torch.equal(value, torch.ones(3))
    assert Processes.present().total(2.5, torch.device("cpu")) == 2.5
