"""Time and memory of preparing a made-up corpus of MS MARCO's size.

    python tests/benchmarks/prepare.py [--passages 8841823] [--folder DIR]

Writes some 3 GB of synthetic passages in BEIR layout, prepares them in a process of its own, cuts
them into 64 shards, prints passages per second and peak memory, and removes everything. Fails when
the peak is above 1 GB.
"""

import argparse
import itertools
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path[:0] = [str(SCRIPTS), str(Path(__file__).parents[1])]
from helpers import planned, step  # noqa: E402

LIMIT_MB = 1000
QUERIES = 6980
SHARDS = 64
CUT = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from embedrepro.datasets.shards import corpus_bounds\n"
    "print(len(corpus_bounds(sys.argv[2], int(sys.argv[3]))))\n"
)


def sentences(count: int, rng: random.Random) -> list[str]:
    """Sentences of 6 to 16 made-up words, frequent ones more often; MS MARCO's letters a word."""
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 8))) for _ in range(30_000)]
    totals = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))
    lengths = [rng.randint(6, 16) for _ in range(count)]
    return [" ".join(rng.choices(words, cum_weights=totals, k=length)) for length in lengths]


def make(folder: Path, passages: int) -> None:
    """A BEIR folder: passages of some 340 characters, 6,980 queries with one judgement each."""
    rng = random.Random(0)
    pool = sentences(50_000, rng)
    with open(folder / "corpus.jsonl", "w") as file:
        for i in range(passages):
            text = f"{i} {'. '.join(rng.choices(pool, k=5))}."
            file.write(f'{{"_id": "{i}", "title": "", "text": "{text}"}}\n')
    queries = ({"_id": str(i), "text": rng.choice(pool)} for i in range(QUERIES))
    (folder / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in queries))
    rows = (f"{i}\t{rng.randrange(passages)}\t1\n" for i in range(QUERIES))
    (folder / "qrels").mkdir()
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))


def measured(command: list[str]) -> float:
    """Run a process; print its seconds and the largest peak memory so far; return that in MB."""
    start = time.monotonic()
    subprocess.run(command, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
    print(f"  {time.monotonic() - start:.1f} s, peak of all processes so far {peak:.0f} MB")
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--passages", type=int, default=8_841_823)
    parser.add_argument("--folder", type=Path, help="where to write; default: the temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        make(folder, args.passages)
        size = (folder / "corpus.jsonl").stat().st_size / 1e9
        print(f"{args.passages:,} passages, {size:.2f} GB")
        config = {
            "experiment": "made",
            "store": str(folder / "store"),
            "models": [{"id": "BM25", "bm25": {}}],
            "datasets": [{"name": "made", "source": {"beir": temporary}, "splits": ["dev"]}],
        }
        plan, names = planned(folder, config)
        print("prepare")
        measured(step("prepare_dataset", plan, names["prepare"]))
        (out,) = (folder / "store" / "datasets").iterdir()
        print(f"cut into {SHARDS} shards")
        cut = [sys.executable, "-c", CUT, str(SCRIPTS), str(out / "corpus.parquet"), str(SHARDS)]
        peak = measured(cut)
        print(f"  Parquet {(out / 'corpus.parquet').stat().st_size / 1e9:.2f} GB")
    if peak > LIMIT_MB:
        sys.exit(f"peak memory {peak:.0f} MB is above {LIMIT_MB} MB")


if __name__ == "__main__":
    main()
