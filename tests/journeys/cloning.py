"""A fresh clone of the repository as it is now, uncommitted files included."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from drive import REPOSITORY


def fresh_clone(folder: Path) -> Path:
    """Tracked files as they are now, and new ones that git doesn't ignore; committed there."""

    def git(*words: object, cwd: Path = folder) -> str:
        identity = ["-c", "user.name=journeys", "-c", "user.email=journeys@localhost"]
        command = ["git", *identity, *map(str, words)]
        return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout

    git("clone", "--quiet", "--no-hardlinks", REPOSITORY, folder, cwd=REPOSITORY)
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=REPOSITORY)
    names = [name for name in listed.split("\0") if name]
    for path in [folder / name for name in git("ls-files", "-z").split("\0") if name]:
        path.unlink()
    for name in names:
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    git("add", "--all")
    git("commit", "--quiet", "--allow-empty", "-m", "as it is now")
    (folder / ".venv").symlink_to(sys.prefix)
    os.utime(folder / "pyproject.toml", (0, 0))  # older than the environment's stamps
    return folder
