"""Environments of other libraries, for models whose own code needs them: venvs made of pins.

The pins of an environment stand in one file, a line each; those after `# alone` are installed
without what their metadata asks for.
"""

import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..files import atomic, digest, write_record

ALONE = "# alone"
RECORD = "environment.json"
NAME = "name==version"
# Lists, with the environment's own python, what is installed there.
INSTALLED = (
    "import importlib.metadata as m, json; "
    "print(json.dumps({d.metadata['Name']: d.version for d in m.distributions()}))"
)


def pins_file(folder: Path, name: str) -> Path:
    """The file of an environment's pins; `UserError` where there is none."""
    path = folder / f"{name}.txt"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.txt")))
        raise UserError(
            f"environment: {printable(name)}: there is no {path}; its pins would stand there; "
            f"known are {known}"
        )
    return path


def read_pins(path: Path) -> tuple[list[str], list[str]]:
    """(pins, pins that are installed alone) of a file; what is no pin is refused."""
    found: tuple[list[str], list[str]] = ([], [])
    alone = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        alone = alone or line.strip().lower().startswith(ALONE)
        pin = line.partition("#")[0].strip()
        if not pin:
            continue
        if pin.startswith("-") or "==" not in pin or "*" in pin:
            raise UserError(f"{path}:{number}: '{printable(pin, 80)}' is no pin ({NAME})")
        found[alone].append(pin)
    if not any(found):
        raise UserError(f"{path}: holds no pins ({NAME}, a line each)")
    return found


def pins_digest(folder: Path, name: str) -> str:
    """What decides an environment's bytes: its pins, and the python and machine they are for."""
    pins = read_pins(pins_file(folder, name))
    return digest([pins, list(sys.version_info[:2]), platform.system(), platform.machine()])


def make_environment(pins: Path, output: Path) -> dict[str, Any]:
    """Make the venv of the file `pins` in the folder `output`; returns its record.

    `output` appears whole or not at all, with environment.json: python, pins, installed (name →
    version). Its python is `output`/bin/python. Raises `UserError` where pip can't have a pin.
    """
    together, alone = read_pins(pins)
    with atomic(output) as folder:
        run([sys.executable, "-m", "venv", folder], pins)
        python = folder / "bin" / "python"
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        if together:
            run([*pip, *together], pins)
        if alone:
            run([*pip, "--no-deps", *alone], pins)
        listed = run([python, "-c", INSTALLED], pins)
        record = {
            "python": platform.python_version(),
            "pins": [*together, *alone],
            "installed": read_installed(listed),
        }
        write_record(folder / RECORD, record)
    return record


def read_installed(text: str) -> dict[str, str]:
    import json

    return dict(sorted(json.loads(text).items()))


def run(command: Sequence[object], pins: Path) -> str:
    """A command's output; what fails is told in one line."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR")]
        last = (errors or said or [f"exit status {done.returncode}"])[0]
        raise UserError(
            f"{pins}: the environment can't be made: {printable(last, 300)}; `make fetch` makes it "
            "on a machine that has a network"
        )
    return done.stdout
