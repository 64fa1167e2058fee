"""`roundwise` itself: its help, its version, how it ends before a command runs."""

import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from commandline import failed, run
from facts import has

import roundwise as rw
from roundwise import cli
from roundwise.cli.app import COMMANDS
from roundwise.cli.options import SECTIONS, TRAINING


@pytest.fixture
def handlers():
    """The handlers of signals are as before afterwards: `main` installs its own, which would stay in this process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *cli.ENDING)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_help_lists_the_commands_without_importing_them():
    code = (
        "import sys; sys.argv = ['roundwise', '--help']\n"
        "import atexit; atexit.register(lambda: print(sorted(m for m in sys.modules if 'cli.commands.' in m or "
        "m.partition('.')[0] in ('torch', 'torchvision', 'timm', 'onnx', 'onnxruntime')), file=sys.stderr))\n"
        "from roundwise.cli import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr.strip() == "[]"
    assert all(name in result.stdout for name in COMMANDS)
    assert "130" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_an_example_and_fits_on_a_screen(name):
    result = run(name, "--help", width=100)
    assert result.exit_code == 0
    assert f"  roundwise {name} " in result.stdout
    lines = result.stdout.splitlines()
    assert len(lines) <= 80
    assert max(map(len, lines)) <= 100


def test_the_help_of_quantize_has_the_everyday_options_first():
    lines = run("quantize", "--help", width=100).stdout.splitlines()
    titles = [line for line in lines if re.fullmatch(r"[A-Z][a-z ]+:", line)]
    assert titles == [f"{title}:" for title in SECTIONS if title != TRAINING]
    advanced = lines.index("Advanced:")
    for option in ("--pretrained", "--data", "--bits", "--rounding", "--override", "--out"):
        assert option in " ".join(lines[:advanced])


def test_the_help_shows_the_defaults_of_the_recipe():
    text = " ".join(run("quantize", "--help").stdout.split())
    for option, default in (("--bits", "4"), ("--ranges", "weight-mse"), ("--rounding", "gram-adaround")):
        assert re.search(rf"{option} (?:(?!--[a-z]).)*\[default: {default}\]", text)


def test_the_version_is_told():
    assert run("--version").stdout.strip() == f"roundwise {rw.__version__}"


def test_an_unknown_command_is_wrong_usage():
    assert failed(run("quantise"), 2, "'quantise'")


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(("module", "package"), [("click", "click"), ("rich", "rich"), ("PIL", "pillow")])
def test_without_its_packages_the_command_line_says_what_to_install(monkeypatch, capsys, module, package):
    find = cli.find_spec
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert has(capsys.readouterr().err, package, 'pip install "roundwise[cli]"')


@pytest.mark.parametrize("module", ["click", "torch", "their_network"])
def test_ctrl_c_ends_with_130_and_one_line_while_modules_are_imported(tmp_path, module):
    (tmp_path / "net.py").write_text("def build():\n    import their_network\n")
    np.save(tmp_path / "inputs.npy", np.zeros((2, 4), dtype=np.float32))
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where tests run in the background\n"
        "class Interrupted:\n"
        "    def find_spec(name, *_):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "import roundwise.cli\n"
        "sys.meta_path.insert(0, Interrupted)\n"
        "sys.argv = ['roundwise', 'quantize', 'net.py:build', '--data', 'inputs.npy']\n"
        "roundwise.cli.main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (130, "")
    assert re.fullmatch(r"roundwise: .*interrupted.*\n", result.stderr)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no such signals")
@pytest.mark.parametrize(
    ("number", "module"),
    [
        (signal.SIGTERM, "torch"),
        (signal.SIGHUP, "their_network"),
        pytest.param(signal.SIGTERM, "their_network", marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, "torch", marks=pytest.mark.slow),
    ],
)
def test_other_signals_end_like_ctrl_c_with_a_code_of_their_own(tmp_path, number, module):
    (tmp_path / "net.py").write_text("def build():\n    import their_network\n")
    np.save(tmp_path / "inputs.npy", np.zeros((2, 4), dtype=np.float32))
    code = (
        "import os, signal, sys\n"
        f"signal.signal({int(number)}, signal.SIG_DFL)\n"
        "class Interrupted:\n"
        "    def find_spec(name, *_):\n"
        f"        if name == {module!r}:\n"
        f"            os.kill(os.getpid(), {int(number)})\n"
        f"            os.kill(os.getpid(), {int(number)})  # a closed terminal sends two\n"
        "import roundwise.cli\n"
        "sys.meta_path.insert(0, Interrupted)\n"
        "sys.argv = ['roundwise', 'quantize', 'net.py:build', '--data', 'inputs.npy', '--out', 'net.rw']\n"
        "roundwise.cli.main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (128 + number, ""), result.stderr
    assert re.fullmatch(r"roundwise: .*interrupted.*\n", result.stderr)
    assert {it.name for it in tmp_path.iterdir()} - {"__pycache__"} == {"net.py", "inputs.npy"}
