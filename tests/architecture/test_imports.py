"""What importing the package does and does not do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from facts import raises

import roundwise

OPTIONAL = ("PIL", "click", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "rich", "sklearn", "timm", "torchvision")

LOOK_AROUND = """
import json, logging, random, sys, threading, warnings
import numpy, torch  # their own effects are theirs
from jaxtyping import Float  # noqa: F401
import safetensors.torch, psutil  # noqa: E401, F401

def state():
    return {
        "python's random state": hash(random.getstate()),
        "numpy's random state": numpy.random.get_state()[1].tobytes().hex(),
        "torch's random state": torch.get_rng_state().numpy().tobytes().hex(),
        "torch's threads": torch.get_num_threads(),
        "torch's default dtype": str(torch.get_default_dtype()),
        "gradients": torch.is_grad_enabled(),
        "warning filters": [str(entry) for entry in warnings.filters],
        "logging handlers": len(logging.getLogger().handlers),
        "threads": sorted(thread.name for thread in threading.enumerate()),
    }

before = state()
import roundwise
roundwise.quantize  # names are looked up on first use
after = state()
changed = [name for name in before if before[name] != after[name]]
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"changed": changed, "loaded": loaded}))
"""


def run(command: list[str], cwd: Path | None = None) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.fixture(scope="module")
def fresh_import(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("empty")
    command = [sys.executable, "-W", "error", "-c", LOOK_AROUND]
    shown = run(command, cwd=folder)
    assert list(folder.iterdir()) == []
    return json.loads(shown)


def test_importing_has_no_side_effects(fresh_import):
    assert fresh_import["changed"] == []


@pytest.mark.parametrize("package", OPTIONAL)
def test_importing_does_not_need_an_extra(fresh_import, package):
    assert package not in fresh_import["loaded"]


def test_importing_does_not_wait_for_pytorch():
    run([sys.executable, "-c", "import roundwise, sys; sys.exit('torch' in sys.modules)"])


def test_public_names_are_sorted_and_exist():
    assert list(roundwise.__all__) == sorted(roundwise.__all__, key=lambda name: (not name.isupper(), name))
    for name in roundwise.__all__:
        assert hasattr(roundwise, name), name


def test_nothing_else_is_public():
    modules = {path.stem for path in Path(roundwise.__file__).parent.iterdir()}
    assert {name for name in vars(roundwise) if not name.startswith("_")} - modules <= set(roundwise.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with raises(AttributeError, "nonsense"):
        roundwise.nonsense  # noqa: B018


def test_every_public_name_says_what_it_is():
    for name in roundwise.__all__:
        if not name.startswith("_"):
            assert getattr(roundwise, name).__doc__, name
