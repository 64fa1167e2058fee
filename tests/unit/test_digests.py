"""The script that shows that results have stayed the same finds it out if they have not."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import roundwise as rw

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CASE = "small/linear/gptq"


@pytest.fixture
def digests(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("digests")


def test_each_differing_case_is_named_with_its_differing_parts(digests):
    same = {"codes": "a", "scales": "b"}
    before = {"same": same, "codes": same, "both": same, "gone": same, "broken": same}
    after = {"same": same, "codes": {**same, "codes": "c"}, "both": {"codes": "c", "scales": "c"}, "added": same}
    found = digests.differences(before, {**after, "broken": {"error": "ValueError: seven"}})
    assert found.keys() == {"codes", "both", "gone", "broken", "added"}
    assert "codes" in found["codes"]
    assert "scales" not in found["codes"]
    assert all(part in found["both"] for part in ("codes", "scales"))
    assert "seven" in found["broken"]


@pytest.mark.parametrize(
    ("ending", "change", "parts"),
    [
        ("_codes", lambda codes: codes.view(-1)[0].add_(1), {"codes", "outputs"}),
        ("_scale", lambda scale: scale[0].mul_(1 + 2**-23), {"scales", "outputs"}),
        ("bias", lambda bias: bias[0].add_(0.5), {"biases", "outputs"}),
    ],
)
def test_one_changed_number_changes_the_digest_of_its_part_and_of_outputs(digests, ending, change, parts):
    torch.manual_seed(0)
    inputs = torch.rand(16, 6)
    model = rw.quantize(nn.Linear(6, 4).eval(), inputs, rw.Quantize(rounding=rw.rounding.Floor()))
    before = {part: digests.digest(tensors) for part, tensors in digests.evidence(model, inputs).items()}
    (tensor,) = (value for name, value in model.state_dict().items() if name.endswith(ending))
    change(tensor)
    after = {part: digests.digest(tensors) for part, tensors in digests.evidence(model, inputs).items()}
    assert {part for part in before if before[part] != after[part]} == parts


def test_a_digest_is_of_numbers_whatever_their_dtype_and_shape(digests):
    codes = torch.tensor([[1, 0], [-3, 7]], dtype=torch.int8)
    assert digests.digest([codes]) == digests.digest([codes.to(torch.int64).reshape(4, 1)])
    assert digests.digest([torch.tensor([-0.0])]) == digests.digest([torch.tensor([0])])
    assert digests.digest([torch.ones(2), torch.ones(1)]) != digests.digest([torch.ones(1), torch.ones(2)])


def test_comparing_with_a_recording_ends_with_1_where_they_differ_and_refuses_that_of_another_machine(
    digests, monkeypatch, tmp_path, capsys
):
    for switch in ("set_num_threads", "set_num_interop_threads"):  # of the whole process
        monkeypatch.setattr(torch, switch, lambda _: None)
    path = tmp_path / "before.json"

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["digests.py", *words, "--only", CASE])
        with pytest.raises(SystemExit) as end:
            digests.main()
        return end.value.code

    monkeypatch.setattr(sys, "argv", ["digests.py", "--record", str(path), "--only", CASE])
    digests.main()
    assert run("--compare", str(path)) == 0
    recording = json.loads(path.read_text())
    recording["cases"][CASE]["scales"] = "0"
    recording["machine"]["torch"] = "1.0"
    path.write_text(json.dumps(recording))
    capsys.readouterr()
    assert run("--compare", str(path)) == 2
    assert "1.0" in capsys.readouterr().err
    assert run("--compare", str(path), "--anyway") == 1
    assert f"{CASE}: differs in scales\n" in capsys.readouterr().out
