"""Check what an installed wheel can do with an extra, and what it says where another extra is missing.

`environments.py` runs this in an environment that has the wheel and one extra:

    python -I smoke.py EXTRA

Every function `check_…` below is a check. It asserts what works with the extra if the extra's packages are there, and
the error that names the extra if they are not; EXPECTED says what must be there, so that no check passes for the wrong
reason.
"""

import importlib
import pkgutil
import shutil
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

PACKAGES = {
    "cli": {"click", "PIL", "rich"},
    "demo": {"click", "PIL", "rich", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "sklearn"},
    "onnx": {"onnx", "onnx_ir", "onnxruntime", "onnxscript"},
    "openvino": {"openvino"},
    "vision": {"PIL", "timm", "torchvision"},
}
"""The packages that each extra brings, by the names under which they are imported."""

MARKS = {"cli": "rich", "demo": "sklearn", "onnx": "onnxruntime", "openvino": "openvino", "vision": "timm"}
"""A package of each extra that no other package of the environments asks for: timm, for one, brings click."""

NETWORK = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 5)
    ).eval()
"""


def has(extra: str) -> bool:
    """Whether the packages of the extra are installed here."""
    return find_spec(MARKS[extra]) is not None


def network():
    """A small network in evaluation mode."""
    scope: dict[str, Callable[[], object]] = {}
    exec(NETWORK, scope)  # noqa: S102 (the same text is a file for the command line)
    return scope["build"]()


def images():
    """Inputs of the network."""
    import torch

    return torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def quantized():
    """The network with 4-bit weights, rounded to nearest to save time."""
    import roundwise as rw

    return rw.quantize(network(), images(), rw.Quantize(rounding=rw.rounding.Nearest()))


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command `roundwise` of this environment."""
    program = shutil.which("roundwise")
    assert program is not None
    assert Path(program).parent == Path(sys.executable).parent, program
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def message(error: type[Exception], call: Callable[[], object]) -> str:
    """The message of the error that a call raises."""
    try:
        call()
    except error as raised:
        return str(raised)
    raise AssertionError(f"no {error.__name__} was raised")


def check_the_packages_are_those_of_the_extra(extra: str) -> None:
    expected = PACKAGES.get(extra, set())
    missing = {name for name in expected if find_spec(name) is None}
    assert not missing, f"not installed: {missing}"
    brought = {"core": set(), "demo": {"demo", "cli", "onnx"}}.get(extra, {extra})
    assert {name for name in MARKS if has(name)} == brought & set(MARKS)


def check_the_package_is_the_installed_wheel(extra: str) -> None:
    import roundwise as rw

    folder = Path(rw.__file__).parent
    assert folder.is_relative_to(sys.prefix), f"{folder} is not in {sys.prefix}"
    for name in ("__init__.pyi", "py.typed", "reporting/page.html.jinja", "reporting/page.css", "reporting/sort.js"):
        assert (files("roundwise") / name).is_file(), name
    for name in rw.__all__:
        assert getattr(rw, name) is not None, name


def check_modules_lack_only_packages_of_extras(extra: str) -> None:
    import roundwise

    optional = set().union(*PACKAGES.values())
    imported, missing = 0, {}
    for module in pkgutil.walk_packages(roundwise.__path__, "roundwise.", onerror=lambda name: None):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
            imported += 1
        except ModuleNotFoundError as error:
            missing[module.name] = error.name
    needed_here = PACKAGES.get(extra, set())
    not_excused = {name: package for name, package in missing.items() if package not in optional - needed_here}
    assert not not_excused, f"modules that lack a package: {not_excused}"
    assert imported > 100, f"only {imported} modules were imported"


def check_quantize_save_and_load(extra: str) -> None:
    import torch

    import roundwise as rw

    model = rw.quantize(network(), images())
    assert {layer.bits for layer in model.report.layers} == {4}
    model.save("model.rw")
    assert torch.equal(rw.load("model.rw")(images()), model(images()))


def check_a_recipe_file_and_the_html_report(extra: str) -> None:
    import roundwise as rw

    recipe = rw.Recipe((rw.Rewrite(), rw.Quantize(rw.Weights(bits=3), rounding=rw.rounding.Nearest())))
    recipe.to_toml("recipe.toml")
    assert rw.Recipe.from_toml("recipe.toml") == recipe
    rw.html_report(rw.quantize(network(), images(), recipe), "report.html", title="A network in a wheel")
    page = Path("report.html").read_text(encoding="utf-8")
    assert "A network in a wheel" in page
    assert "<style>" in page


def check_onnx(extra: str) -> None:
    import roundwise as rw

    if not has("onnx"):
        assert "roundwise[onnx]" in message(rw.ExportError, lambda: rw.export(quantized(), "model.onnx"))
        assert not Path("model.onnx").exists()
        return
    import onnxruntime

    model = quantized()
    rw.export(model, "model.onnx")
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: images().numpy()})
    assert abs(output - model(images()).detach().numpy()).max() < 1e-4


def check_openvino(extra: str) -> None:
    from roundwise.errors import InferenceError
    from roundwise.runtimes.openvino import OpenVino

    if not has("openvino"):
        assert "roundwise[openvino]" in message(InferenceError, lambda: OpenVino().open(Path("model.xml")))
        return
    import numpy as np
    import openvino

    x = openvino.opset13.parameter([2, 3], np.float32, name="x")
    openvino.save_model(openvino.Model([openvino.opset13.relu(x)], [x], "model"), "model.xml")
    (output,) = OpenVino().open(Path("model.xml")).run({"x": np.array([[-1, 0, 1], [2, -2, 3]], np.float32)})
    assert output.tolist() == [[0, 0, 1], [2, 0, 3]]


def check_the_command_line(extra: str) -> None:
    import numpy as np

    import roundwise as rw

    if not has("cli"):
        ended = command("--help")
        assert ended.returncode == 1, ended
        assert "roundwise[cli]" in ended.stderr, ended.stderr
        return
    ended = command("--help")
    assert ended.returncode == 0, ended.stderr
    assert "quantize" in ended.stdout, ended.stdout
    Path("net.py").write_text(NETWORK, encoding="utf-8")
    np.save("inputs.npy", images().numpy())
    ended = command("quantize", "net.py:build", "--data", "inputs.npy", "--rounding", "nearest", "--out", "cli.rw")
    assert ended.returncode == 0, ended.stderr
    assert rw.load("cli.rw").report.layers
    ended = command("quantize", "net.py:build", "--data", "inputs.npy", "--rounding", "nearest", "--out", "cli.onnx")
    if has("onnx"):
        assert ended.returncode == 0, ended.stderr
        assert Path("cli.onnx").stat().st_size > 0
    else:
        assert ended.returncode != 0, ended
        assert "roundwise[onnx]" in ended.stderr, ended.stderr


def check_model_collections(extra: str) -> None:
    """torchvision and timm are for the command line; where it is missing, the module that it uses is called."""
    import torch

    import roundwise as rw
    from roundwise.errors import ModelError

    if has("cli"):  # no extra brings both the command line and model collections
        asked = ("quantize", "timm:resnet18", "--random-weights", "--data", "inputs.npy", "--out", "resnet.rw")
        ended = command(*asked)
        assert ended.returncode != 0, ended
        assert "roundwise[vision]" in ended.stderr, ended.stderr
        return
    if not has("vision"):
        if find_spec("PIL") is not None:
            from roundwise.loading.vision import import_collection

            assert "roundwise[vision]" in message(ModelError, lambda: import_collection("timm"))
        return
    from roundwise.loading.vision import build

    torch.manual_seed(0)
    pictures = torch.rand(4, 3, 32, 32)
    for collection in ("timm", "torchvision"):
        resnet = build(collection, "resnet18", pretrained=False, num_classes=10).eval()
        assert resnet(pictures).shape == (4, 10)
    nearest = rw.Quantize(rw.Weights(ranges=rw.ranges.MinMax()), rounding=rw.rounding.Nearest())
    assert len(rw.quantize(resnet, pictures, nearest).report.layers) == 21


def check_the_demo(extra: str) -> None:
    """Its images are there; `make demo` runs all of it."""
    if not has("cli"):
        return
    if has("demo"):
        from roundwise.cli.commands.demo import load_digits

        assert load_digits().train_images.shape[1:] == (1, 8, 8)
        return
    ended = command("demo", "--out", "demo")
    assert ended.returncode != 0, ended
    assert "roundwise[demo]" in ended.stderr, ended.stderr


def main() -> None:
    """Run every check, and exit with 1 if one fails."""
    (extra,) = sys.argv[1:]
    if extra not in {"core", *PACKAGES}:
        sys.exit(f"There are no checks for the extra '{extra}': add its packages to PACKAGES, and checks, in smoke.py.")
    warnings.simplefilter("error", category=ResourceWarning)
    checks = [value for name, value in globals().items() if name.startswith("check_")]
    failed = 0
    for check in checks:
        started = perf_counter()
        try:
            check(extra)
        except Exception:
            failed += 1
            traceback.print_exc()
            print(f"wheel: {extra}: {check.__name__} failed", file=sys.stderr, flush=True)
        print(f"wheel: {extra}: {check.__name__}, {perf_counter() - started:.1f} s", flush=True)
    print(f"wheel: {extra}: {len(checks) - failed} passed, {failed} failed", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
