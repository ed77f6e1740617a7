"""Fetch models into the store, each with a manifest of every file's size and sha256."""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import run_cli
from embedrepro.plan.artifacts import Artifact
from embedrepro.plan.command_line import read_job
from embedrepro.sources.hub import describe, download_model


def main() -> None:
    task = read_job(__doc__)
    # Threads that fetch would hold Ctrl-C back; what is there already is kept for the next try.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    cache = Path(task.plan.store) / "models" / ".cache"

    def make(artifact: Artifact) -> None:
        manifest = download_model(artifact.spec, Path(artifact.spec["folder"]), cache)
        size = sum(file["size"] for file in manifest["files"].values())
        source = describe(manifest["answered"])
        files = len(manifest["files"])
        print(f"download: {manifest['id']}, {files} files, {size / 1e6:.1f} MB from {source}")

    task.each(task.missing(), make)
    task.finish()


if __name__ == "__main__":
    run_cli(main)
