"""Is a refined run float32's? A real set among made-up passages, run in several fast precisions.

    python tests/benchmarks/refined.py --model FOLDER --data xquad-en --made 200000 --gpus 1
    python tests/benchmarks/refined.py --model FOLDER --data xquad-en --made 1000 --queries 300

The made-up passages are sentences of the set's own, put together anew, so that they come near its
queries. Each row goes through the workflow with a store of its own: float32, each dtype alone
(`precision: fast`) and with refinement (`exact`, `full`). Printed: whole seconds of each, share
encoded again, rounds (one more each time that the assumed error was exceeded), and in how many
queries the first 10 and 100 differ from float32's; where float32's own scores are closer than 1e-6
counted apart. Exit status 1 where the ranks that should be exact differ otherwise.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from intervals import REPOSITORY, lines

NEAR = 1e-6  # float32's scores that are closer may stand in either order
DEPTHS = (10, 100)


def make_set(source: Path, target: Path, made: int, queries: int | None) -> Path:
    corpus = lines(source / "corpus.jsonl")
    asked = lines(source / "queries.jsonl")[:queries]
    kept = {row["_id"] for row in asked}
    judged = (source / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()
    sentences = [s for row in corpus for s in re.split(r"(?<=[.!?]) ", row["text"]) if len(s) > 20]
    rng = random.Random(1)
    for number in range(made):
        text = " ".join(rng.sample(sentences, 2))
        corpus.append({"_id": f"made{number}", "title": "", "text": text})
    (target / "qrels").mkdir(parents=True)
    for name, table in (("corpus", corpus), ("queries", asked)):
        with open(target / f"{name}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table)
    rows = [judged[0], *(row for row in judged[1:] if row.split("\t")[0] in kept)]
    (target / "qrels" / "test.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return target


def measure(name: str, keys: dict, options: argparse.Namespace, data: Path, work: Path) -> dict:
    model = {"id": "x/model", "source": {"path": str(options.model.resolve())}}
    config = {
        "experiment": name,
        "store": f"store-{name}",
        "models": [model | keys],
        "datasets": [{"name": "among", "source": {"beir": str(data)}}],
        "evaluate": {"metrics": ["nDCG@10", "R@100"], "protocols": ["trec_eval"]},
    }
    (work / f"{name}.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "snakemake", "-s", REPOSITORY / "Snakefile"]
    command += ["-d", work, "--cores", "all", "--configfile", work / f"{name}.json"]
    command += ["--resources", f"gpu={options.gpus}"] if options.gpus else []
    began = time.perf_counter()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-3000:] + done.stderr[-3000:])
    seconds = time.perf_counter() - began
    (record,) = [*(work / f"store-{name}" / "runs").rglob("*.refined.json")] or [None]
    (run,) = (work / "results" / name / "runs").rglob("*.trec")
    scores = json.loads(next((work / "results" / name / "scores").rglob("*.json")).read_text())
    value = scores["protocols"]["trec_eval"]["nDCG@10"]["value"]
    refined = json.loads(record.read_text()) if record else {}
    return {"seconds": seconds, "run": read_run(run), "nDCG@10": value} | {
        key: refined.get(key) for key in ("share", "rounds", "largest_error", "exact_depth")
    }


def read_run(path: Path) -> dict[str, list[tuple[str, float]]]:
    found: dict[str, list[tuple[str, float]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        query, _, doc, _, score, _ = line.split()
        found.setdefault(query, []).append((doc, float(score)))
    return found


def differing(exact: dict, other: dict, depth: int) -> tuple[int, int]:
    """Queries whose first `depth` differ: where float32's own scores are near, and otherwise."""
    near = far = 0
    for query, hits in exact.items():
        scores = dict(hits)
        pairs = zip(hits[:depth], other[query][:depth], strict=True)
        swapped = [(a, b) for (a, _), (b, _) in pairs if a != b]
        if not swapped:
            continue
        close = all(abs(scores[a] - scores.get(b, -9.0)) < NEAR for a, b in swapped)
        near, far = near + close, far + (not close)
    return near, far


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="its folder")
    parser.add_argument("--data", type=Path, required=True, help="a real set in BEIR's layout")
    parser.add_argument("--made", type=int, default=1000, help="made-up passages besides")
    parser.add_argument("--queries", type=int, help="only the first so many")
    parser.add_argument("--dtypes", nargs="+", default=["float16", "bfloat16"])
    parser.add_argument("--precisions", nargs="+", default=["exact"], help="exact, full")
    parser.add_argument("--alone", action="store_true", help="time each dtype without refinement")
    parser.add_argument("--gpus", type=int, default=0)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp())
    data = make_set(options.data, work / "data", options.made, options.queries)
    exact = measure("float32", {"dtype": "float32"}, options, data, work)
    print(f"float32: {exact['seconds']:.1f} s, nDCG@10 {exact['nDCG@10']:.5f}")
    wrong = 0
    for dtype in options.dtypes:
        for precision in ["fast"] * options.alone + options.precisions:
            label = f"{dtype}, precision: {precision}"
            keys = {"dtype": dtype, "precision": precision}
            found = measure(f"{dtype}-{precision}", keys, options, data, work)
            counts = {k: differing(exact["run"], found["run"], k) for k in DEPTHS}
            told = "; ".join(
                f"first {k}: {far} of {len(exact['run'])} queries differ, {near} more where "
                f"float32's scores are within {NEAR:g}"
                for k, (near, far) in counts.items()
            )
            took = f"{label}: {found['seconds']:.1f} s, nDCG@10 {found['nDCG@10']:.5f}"
            if precision != "fast":
                took += (
                    f", again {found['share']:.2%}, rounds {found['rounds']}, largest error "
                    f"{found['largest_error']:.1e}, exact to {found['exact_depth']}"
                )
            print(f"{took}; {told}", flush=True)
            if precision != "fast":
                wrong += sum(counts[k][1] for k in DEPTHS if k <= found["exact_depth"])
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
