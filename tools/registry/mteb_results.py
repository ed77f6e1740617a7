"""Make `rules/registry/published.parquet` from MTEB's published results.

    python tools/registry/mteb_results.py RESULTS rules/registry/published.parquet --commit HASH

RESULTS is a checkout of the results repository (`results/<model>/<revision>/<task>.json`) or a
table of it, .tsv or .tsv.xz, with the columns of `TABLE`. Kept are the scores of tasks that
`rules/registry/mteb_tasks.json` lists. One row is one model revision, task, split and subset,
sorted by model, so that the rows of a few models are a few row groups of the file. Scores are whole
numbers of 1e-5, the digits that MTEB rounds to; null: not reported (also where a file copied from
a model card says 0 for what the card didn't say).

`ties` says what is known of MRR: mteb 2.18.19 began to order ties as trec_eval does. "older": made
by a version before; "differs": the file's own MRR@1 isn't its P@1, so ties did change it (only a
checkout tells); null: newer, or the version isn't known.
"""

import argparse
import csv
import io
import json
import lzma
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
NEW_TIES = (2, 18, 19)
UNIT = 100_000
SCORES = ("ndcg_at_10", "map_at_10", "recall_at_100", "mrr_at_10", "main_score")
PLACE = ("model", "revision", "task", "subset", "split", "dataset_revision", "mteb_version")
TABLE = (
    *("model", "revision", "task", "dataset_revision", "split", "subset", "mteb_version"),
    *SCORES,
)
SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=name == "mteb_version") for name in PLACE),
        *(pa.field(name, pa.int32()) for name in SCORES),
        pa.field("ties", pa.string()),
    ]
)
ROW_GROUP = 8192  # rows; a model has a few hundred


def from_table(path: Path) -> Iterator[dict[str, Any]]:
    with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
        reader = csv.DictReader(
            io.TextIOWrapper(file, "utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE
        )
        if tuple(reader.fieldnames or ()) != TABLE:
            sys.exit(f"{path}: wants the columns {' '.join(TABLE)}, tab-separated")
        for row in reader:
            scores = {name: float(row[name]) for name in SCORES if row[name]}
            yield row | {name: scores.get(name) for name in SCORES}


def from_checkout(root: Path) -> Iterator[dict[str, Any]]:
    """Rows of every readable file; what can't be read is named on stderr and passed over."""
    folder = root / "results" if (root / "results").is_dir() else root
    for path in sorted(folder.glob("*/*/*.json")):
        if path.name == "model_meta.json":
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            places = record["scores"].items()
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            print(f"{path}: passed over ({error!r})", file=sys.stderr)
            continue
        model, revision = path.parts[-3:-1]
        for split, parts in places:
            for part in parts:
                if part.get("ndcg_at_10") is None:
                    continue
                yield {name: part.get(name) for name in SCORES} | {
                    "model": model,
                    "revision": revision,
                    "task": record.get("task_name") or path.stem,
                    "dataset_revision": record.get("dataset_revision") or "",
                    "split": split,
                    "subset": part.get("hf_subset") or "default",
                    "mteb_version": record.get("mteb_version") or "",
                    "first": (part.get("mrr_at_1"), part.get("precision_at_1")),
                }


def version(text: str) -> tuple[int, ...] | None:
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in found.groups()) if found else None


def record(row: dict[str, Any]) -> dict[str, Any]:
    """One row in the file's own form."""
    units = {name: None if row[name] is None else round(row[name] * UNIT) for name in SCORES}
    for name in SCORES[1:]:
        if units[name] == 0 and units["ndcg_at_10"]:
            units[name] = None
    if units["main_score"] == units["ndcg_at_10"]:
        units["main_score"] = None
    made = version(row["mteb_version"])
    mrr, precision = row.get("first", (None, None))
    if None not in (mrr, precision) and abs(mrr - precision) > 1e-5:
        ties = "differs"
    else:
        ties = "older" if made and made < NEW_TIES else None
    same = {name: row[name] for name in PLACE}
    return same | units | {"model": row["model"].replace("__", "/", 1), "ties": ties}


def write(rows: list[dict[str, Any]], output: Path, metadata: dict[str, str]) -> None:
    rows.sort(key=lambda row: tuple(row[name] for name in PLACE[:5]))
    writer = pq.ParquetWriter(
        output,
        SCHEMA,
        compression="zstd",
        compression_level=19,
        use_dictionary=[*PLACE, "ties"],
        column_encoding={name: "DELTA_BINARY_PACKED" for name in SCORES},
        write_statistics=["model"],
        store_schema=False,
    )
    with writer:
        writer.write_table(pa.Table.from_pylist(rows, SCHEMA), row_group_size=ROW_GROUP)
        writer.add_key_value_metadata(metadata)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="a checkout, or a table .tsv or .tsv.xz")
    parser.add_argument("output", type=Path)
    parser.add_argument("--commit", required=True, help="of the results repository")
    parser.add_argument("--tasks", type=Path, default=ROOT / "rules/registry/mteb_tasks.json")
    arguments = parser.parse_args()
    tasks = json.loads(arguments.tasks.read_text(encoding="utf-8"))["tasks"]
    read = from_checkout if arguments.results.is_dir() else from_table
    rows = [record(row) for row in read(arguments.results) if row["task"] in tasks]
    source = f"embeddings-benchmark/results@{arguments.commit}"
    write(rows, arguments.output, {"source": source})
    models = len({row["model"] for row in rows})
    size = arguments.output.stat().st_size
    print(f"{arguments.output}: {len(rows)} rows, {models} models, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
