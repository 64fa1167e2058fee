"""Build the wheel, install it in empty environments, and run `smoke.py` in each.

    python tests/wheel/environments.py            # the core, then each extra
    python tests/wheel/environments.py cli onnx   # the core, then these

1. Build the wheel, and compare its files with the source tree.
2. Make an environment with the core alone: PyTorch, the wheel, and what the wheel asks for.
3. Make an environment for each extra: what the extra asks for, and the wheel once more.

PyTorch takes more time and space than all other packages together, so it is installed once. The environment of an
extra reads the packages of the core through a `.pth` file; what the extra installs goes into its own folder, so no
extra sees the packages of another. (`venv --system-site-packages` cannot do this: an environment made from an
environment reads the packages of the interpreter below both.)

The tests run with `python -I`, outside the checkout, so that neither `src` nor PYTHONPATH can stand in for the wheel.
This script and `smoke.py` are plain scripts, because pytest would bring packages into the empty environments.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
SMOKE = Path(__file__).with_name("smoke.py")
FOR_THE_CHECKOUT = {"bench", "dev", "docs", "loops", "zoo"}
"""Extras for scripts and work in the source tree. They bring nothing that an installed wheel uses."""


def main() -> None:
    """Build, install, test; exit with 1 if anything failed."""
    parser = argparse.ArgumentParser(description="Test the built wheel in empty environments.")
    parser.add_argument("extras", nargs="*", help="the extras to test beside the core (default: all)")
    chosen = parser.parse_args().extras

    wheel = build(ROOT / "dist")
    extras = extras_of(wheel)
    if unknown := sorted(set(chosen) - set(extras)):
        sys.exit(f"The wheel has no extra {', '.join(unknown)}; it has {', '.join(extras)}.")
    failed = [] if same_files(wheel) else ["files"]
    with tempfile.TemporaryDirectory(prefix="roundwise-wheel-") as name:
        folder = Path(name)
        core = new_environment(folder / "core")
        pip(core, f"torch=={pinned('torch')}")  # first and by its version: a range could bring a build for CUDA
        pip(core, str(wheel))
        for extra in ("core", *(chosen or extras)):
            started = perf_counter()
            if extra == "core":
                python = core
            else:
                python = new_environment(folder / extra, below=packages_of(core))
                pip(python, "--ignore-installed", "--no-deps", str(wheel))  # its own copy, with its own command
                pip(python, f"{wheel}[{extra}]")
            if not passes(python, extra, folder):
                failed.append(extra)
            print(f"wheel: {extra} took {perf_counter() - started:.0f} s", flush=True)
    if failed:
        sys.exit(f"wheel: failed: {', '.join(failed)}")


def build(folder: Path) -> Path:
    """The wheel of this checkout, in a folder without older ones."""
    for old in folder.glob("roundwise-*.whl"):
        old.unlink()
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("roundwise-*.whl")
    return wheel


def same_files(wheel: Path) -> bool:
    """Whether the wheel has every file of the package, those that are not Python included, and no other."""
    source = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "roundwise").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    for name in sorted(source - packed):
        print(f"wheel: {name} is in src and not in the wheel")
    for name in sorted(packed - source):
        print(f"wheel: {name} is in the wheel and not in src")
    return source == packed


def extras_of(wheel: Path) -> list[str]:
    """The extras that the wheel offers to its users."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    return [extra for extra in metadata.get_all("Provides-Extra", []) if extra not in FOR_THE_CHECKOUT]


def pinned(package: str) -> str:
    """The version of a package in constraints.txt."""
    found = re.search(rf"^{package}==(\S+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        sys.exit(f"constraints.txt does not name a version of {package}.")
    return found[1]


def new_environment(folder: Path, below: Path | None = None) -> Path:
    """The interpreter of a new environment, which also reads the packages in the folder `below`."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    if below is not None:
        (packages_of(python) / "core.pth").write_text(f"{below}\n", encoding="utf-8")
    return python


def packages_of(python: Path) -> Path:
    """The folder into which an environment installs packages."""
    (folder,) = (python.parents[1] / "lib").glob("python*/site-packages")
    return folder


def pip(python: Path, *arguments: str) -> None:
    """Install something, in the versions of constraints.txt. Only modules that are imported get compiled."""
    options = ["--quiet", "--disable-pip-version-check", "--no-compile", "--constraint", str(CONSTRAINTS)]
    subprocess.run([python, "-m", "pip", "install", *options, *arguments], check=True)


def passes(python: Path, extra: str, folder: Path) -> bool:
    """Run the checks of one extra in its environment, in an empty folder."""
    script = shutil.copy(SMOKE, folder)
    work = folder / f"work-{extra}"
    work.mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    # One thread, as in `make test`: on shared cores, threads that wait for each other are slower than one alone.
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    environment = inherited | {"PATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run([python, "-I", script, extra], cwd=work, env=environment, check=False).returncode == 0


if __name__ == "__main__":
    main()
