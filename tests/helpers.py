"""What the workflow's tests share: run it as a user does, from another folder."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]
XQUAD = REPOSITORY.parent / "shared" / "data" / "xquad-en"


def snakemake(workdir: Path, *arguments: str, config: dict | None = None, **kwargs):
    """Run the workflow in `workdir`, with `config` as an overlay. Returns the finished process.

    No environment is activated: PATH holds only the system's folders.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    command = [Path(sys.executable).with_name("snakemake"), "-s", REPOSITORY / "Snakefile"]
    command += ["-d", workdir, "--cores", "2", "--quiet", "rules"]
    if config is not None:
        overlay = workdir / "overlay.yaml"
        overlay.write_text(yaml.safe_dump(config), encoding="utf-8")
        command += ["--configfile", overlay]
    environment = {k: v for k, v in os.environ.items() if k not in ("PATH", "VIRTUAL_ENV")}
    environment["PATH"] = "/usr/local/bin:/usr/bin:/bin"
    return subprocess.run(
        [*map(str, command), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        **kwargs,
    )


def jobs(process: subprocess.CompletedProcess) -> dict[str, int]:
    """How many jobs of each rule a dry run plans."""
    counts = {}
    listing = (process.stdout + process.stderr).partition("Job stats:")[2]
    for line in listing.splitlines()[3:]:
        words = line.split()
        if len(words) != 2 or not words[1].isdigit():
            break
        counts[words[0]] = int(words[1])
    counts.pop("total", None)
    return counts
