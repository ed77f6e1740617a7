"""FlagEmbedding's own evaluator on a staged model, with several devices, under a watchdog.

spec.json: {"model_id", "dataset", "split", "facts": {}, "instruction", "devices", "batch_size",
"timeout_minutes", "top_k", "ignore_identical_ids"}. The exact command is printed and kept in the
result.
"""

import argparse
from pathlib import Path

from embedrepro.errors import run_cli
from embedrepro.evaluation import reference
from embedrepro.files import read_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--staged", type=Path, required=True, help="staged model folder")
    parser.add_argument("--data", type=Path, required=True, help="what export_reference.py wrote")
    parser.add_argument("--spec", type=Path, required=True, help="JSON, see above")
    parser.add_argument(
        "--embeddings", type=Path, required=True, help="sidecar of ours: which precision to run in"
    )
    parser.add_argument("--output", type=Path, required=True, help=".json to write")
    args = parser.parse_args()
    dtype = read_json(args.embeddings)["compute_dtype"]
    reference.run(args.staged, args.data, read_json(args.spec), dtype, args.output)


if __name__ == "__main__":
    run_cli(main)
