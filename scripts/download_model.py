"""Fetch one model into the store, with a manifest of every file's size and sha256."""

import argparse
import signal
from pathlib import Path

from embedrepro.errors import UserError, run_cli
from embedrepro.files import read_json
from embedrepro.sources.hub import describe, download_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, required=True, help="model spec, JSON")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--cache",
        type=Path,
        help="keeps partial downloads and digests of local files (default: .cache beside output)",
    )
    args = parser.parse_args()
    # Threads that fetch would hold Ctrl-C back; what is there already is kept for the next try.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        manifest = download_model(read_json(args.spec), args.output, args.cache)
    except OSError as error:  # a full disk, a folder that may not be read
        raise UserError(f"{error.filename or args.output}: {error.strerror or error}") from None
    size = sum(file["size"] for file in manifest["files"].values())
    source = describe(manifest["answered"])
    print(f"{manifest['id']}: {len(manifest['files'])} files, {size / 1e6:.1f} MB from {source}")


if __name__ == "__main__":
    run_cli(main)
