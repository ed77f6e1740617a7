"""Do rounding intervals hold? Fast rows beside the float32 row of the same model and set.

    python tests/benchmarks/intervals.py --model minilm=FOLDER --data xquad-en xquad-de --parts 1 2
    python tests/benchmarks/intervals.py --random 2 --data data/demo --dtypes bfloat16

Each model runs each set through the workflow in float32 and, with `precision: fast`, in each dtype.
A row of the table for each of these combinations and metric: float32's value, the fast one, the
interval that its scores file gives, and its width. Exit status 1 where float32's is outside.
`--parts 1 4 --first`: each set whole, and the first of four parts of its passages, with the queries
that are judged there.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve()
REPOSITORY = HERE.parents[2]
METRICS = ["nDCG@10", "RR@10", "R@5", "P@1", "AP"]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_part(source: Path, target: Path, part: int, of: int) -> Path:
    """A set of every `of`-th passage and of the queries that have a judged one among them."""
    corpus = lines(source / "corpus.jsonl")[part::of]
    kept = {row["_id"] for row in corpus}
    with open(source / "qrels" / "test.tsv", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file, delimiter="\t")][1:]
    judged = [row for row in rows if row[1] in kept]
    asked = {row[0] for row in judged}
    queries = [row for row in lines(source / "queries.jsonl") if row["_id"] in asked]
    (target / "qrels").mkdir(parents=True)
    for name, table in (("corpus", corpus), ("queries", queries)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table)
        (target / f"{name}.jsonl").write_text(text, encoding="utf-8")
    text = "".join("\t".join(row) + "\n" for row in [["query-id", "corpus-id", "score"], *judged])
    (target / "qrels" / "test.tsv").write_text(text, encoding="utf-8")
    return target


def sets(options: argparse.Namespace, work: Path) -> list[Path]:
    found = []
    for source in options.data:
        for of in options.parts:
            for part in range(1 if options.first else of):
                target = work / "data" / (source.name if of == 1 else f"{source.name}-{part}-{of}")
                if not target.exists():
                    write_part(source, target, part, of)
                found.append(target)
    return found


def models(options: argparse.Namespace, work: Path) -> dict[str, str]:
    found = dict(text.split("=", 1) for text in options.model)
    sys.path.insert(0, str(REPOSITORY / "tests" / "journeys"))
    for seed in range(options.random):
        import stand_ins

        folder = work / f"random{seed}"
        if not folder.exists():
            stand_ins.bert(folder, seed=seed)
        found[f"random{seed}"] = str(folder)
    return found


def run(options: argparse.Namespace, work: Path) -> tuple[list[str], list[Path]]:
    folders, data = models(options, work), sets(options, work)
    entries = []
    for name, folder in folders.items():
        for dtype in ["float32", *options.dtypes]:
            entries.append({"id": f"x/{name}", "alias": f"{name}-{dtype}", "dtype": dtype})
            entries[-1] |= {"source": {"path": str(Path(folder).resolve())}, "precision": "fast"}
    config = {
        "experiment": "intervals",
        "models": entries,
        "datasets": [{"name": folder.name, "source": {"beir": str(folder)}} for folder in data],
        "evaluate": {"metrics": METRICS, "protocols": ["trec_eval"]},
    }
    (work / "intervals.json").write_text(json.dumps(config))
    command = [Path(sys.executable).with_name("snakemake"), "-s", REPOSITORY / "Snakefile"]
    command += ["-d", work, "--cores", "all", "--configfile", work / "intervals.json"]
    if options.gpus:
        command += ["--resources", f"gpu={options.gpus}"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-3000:] + done.stderr[-3000:])
    return list(folders), data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="*", default=[], help="name=folder, …")
    parser.add_argument("--random", type=int, default=0, help="tiny models of random weights")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="BEIR's layout")
    parser.add_argument("--parts", type=int, nargs="+", default=[1], help="1: whole, 2: halves, …")
    parser.add_argument("--first", action="store_true", help="only the first part of each cut")
    parser.add_argument("--dtypes", nargs="+", default=["float16", "bfloat16"])
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--work", type=Path, help="a folder that is kept; what is there is used")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp()) if options.work is None else options.work.resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    names, data = run(options, scratch)
    scores = scratch / "results" / "intervals" / "scores"
    outside, combinations, widths = 0, 0, defaultdict(list)
    columns = ["model", "set", "dtype", "error", "metric", "float32", "fast", "low", "high"]
    print("\t".join([*columns, "width", "float32 inside"]))
    for name in names:
        for folder in data:
            where = scores / folder.name / "test"
            exact = json.loads((where / f"{name}-float32.json").read_text())
            for dtype in options.dtypes:
                combinations += 1
                fast = json.loads((where / f"{name}-{dtype}.json").read_text())
                error = fast["score_error"]
                for metric in METRICS:
                    wanted = exact["protocols"]["trec_eval"][metric]["value"]
                    found = fast["protocols"]["trec_eval"][metric]
                    low, high = found["rounding_low"], found["rounding_high"]
                    inside = low is not None and low <= wanted <= high
                    outside += not inside
                    widths[dtype, metric].append(high - low)
                    values = [f"{v:.5f}" for v in (wanted, found["value"], low, high, high - low)]
                    row = [name, folder.name, dtype, f"{error:.1e}", metric, *values]
                    print("\t".join([*row, "yes" if inside else "NO"]))
    print(f"\n{combinations} combinations of model, set and dtype; {outside} values outside")
    for (dtype, metric), found in widths.items():
        middle = sorted(found)[len(found) // 2]
        print(f"{dtype:9} {metric:8} width: median {middle:.5f}, largest {max(found):.5f}")
    sys.exit(1 if outside else 0)


if __name__ == "__main__":
    main()
