"""What every error of the library has in common."""

import numpy as np
import pytest
from commandline import run

import roundwise as rw
from roundwise import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, rw.RoundwiseError)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("character", ["\x1b", "\r", "\x9b", "\u202e", "\ud800"])
def test_no_character_of_a_message_is_obeyed_by_a_terminal(kind, character):
    message = str(kind(f"an array '{character}[2J'\nin two lines"))
    assert character not in message
    assert ascii(character)[1:-1] in message
    assert message.count("\n") == 1


def test_names_of_arrays_in_a_strangers_file_reach_no_terminal(tmp_path):
    np.savez(tmp_path / "x.npz", **{"a\x1b[2J": np.zeros((2, 4), np.float32), "b": np.zeros(2, np.float32)})
    (tmp_path / "net.py").write_text("from torch import nn\n\ndef build():\n    return nn.Linear(4, 2)\n")
    result = run("quantize", f"{tmp_path}/net.py:build", "--data", tmp_path / "x.npz")
    assert result.exit_code == 1
    assert "\x1b" not in result.stderr
    assert r"\x1b" in result.stderr
