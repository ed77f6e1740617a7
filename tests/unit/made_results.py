"""A made-up experiment of any size, in the files that a report is made of.

The numbers are drawn from a fixed seed and mean nothing; their shapes, names and paths are those
of a real run. By hand: `PYTHONPATH=scripts python tests/unit/made_results.py FOLDER 20 20`.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from embedrepro.evaluation.significance import compare_rows
from embedrepro.evaluation.verdicts import Verdict, table
from embedrepro.files import read_json, sha256
from embedrepro.report.write import render, show

METRICS = ["nDCG@10", "RR@10", "R@100"]
TEXT = """river stone amber lattice signal harbor violet engine meadow copper orbit canyon letter
market silent window garden winter tunnel bridge candle forest planet ocean thread marble falcon
pepper velvet summit anchor breeze cobalt desert ember fossil glacier hollow island"""
WORDS = TEXT.split()


@dataclass
class Made:
    """What to make; the text fields can be replaced by hostile ones."""

    folder: Path
    models: int = 3
    datasets: int = 2
    queries: int = 40
    documents: int = 120
    hits: int = 5
    ids: dict[int, str] = field(default_factory=dict)  # model number → id
    query_text: str | None = None
    document_text: str | None = None
    missing: tuple[tuple[int, int], ...] = ()  # (model, dataset) without a result


def report(
    made: Made, out: Path | None = None, change: Callable[[dict], None] | None = None
) -> str:
    """Write everything and its report into `out`; what is printed. `change` edits the spec."""
    spec = make(made)
    if change:
        change(spec)
    folder = out or made.folder / "out"
    judged = (made.folder / "verdicts.tsv").read_text(encoding="utf-8")
    there = [row for row in spec["rows"] if Path(row["scores"]).exists()]
    render(spec, judged, compare_rows(there), folder)
    return show(folder, spec["rows"], made.folder / "results/made-up")


def make(made: Made) -> dict:
    """Write everything under `made.folder`; return the spec of the report, as a plan has it."""
    rng = np.random.default_rng(7)
    models = [model(made, number) for number in range(made.models)]
    spec = {
        "experiment": "made-up",
        "metrics": METRICS,
        "command": "snakemake -s Snakefile --configfile made-up.yaml --cores 2",
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": True,
        "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"},
        "models": models,
        "datasets": [],
        "rows": [],
        "stages": {},
        "preflights": {},
        "vectors": [],
        "corpora": {},
        "splits": {},
        "parity": None,
    }
    spec["datasets"] = [dataset(made, number, rng, spec) for number in range(made.datasets)]
    for number, entry in enumerate(models):
        stage(made, entry, spec)
        for position, data in enumerate(spec["datasets"]):
            if (number, position) not in made.missing:
                result(made, entry, data, number, rng, spec)
    write(made.folder / "verdicts.tsv", verdicts(spec))
    return spec


def write(path: Path, value: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    return str(path)


def model(made: Made, number: int) -> dict[str, str]:
    name = f"Made-Org/embedder-v{number}.5-{'large' if number % 2 else 'small'}"
    slug = f"Made-Org__embedder-v{number}_5-{'large' if number % 2 else 'small'}"
    name = made.ids.get(number, name)
    return {"id": name, "model": slug, "revision": f"{number:040x}", "kind": "dense"}


def sentence(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(WORDS, words)).capitalize() + "."


def dataset(made: Made, number: int, rng, spec: dict) -> dict[str, str]:
    name, slug = f"made/set-{number:02d}", f"made__set-{number:02d}"
    folder = made.folder / "store" / "datasets" / f"{slug}-{number:012x}"
    split = folder / f"test-{number:012x}"
    split.mkdir(parents=True, exist_ok=True)
    texts = [made.document_text or sentence(rng, 40) for _ in range(made.documents)]
    pq.write_table(
        pa.table(
            {
                "id": [f"d{i}" for i in range(made.documents)],
                "title": [f"Title {i}" if i % 3 else "" for i in range(made.documents)],
                "text": texts,
                "chars": pa.array([len(text) for text in texts], pa.int32()),
            }
        ),
        folder / "corpus.parquet",
        row_group_size=50,
    )
    queries = [made.query_text or sentence(rng, 8) for _ in range(made.queries)]
    names = [f"q{i}" for i in range(made.queries)]
    pq.write_table(pa.table({"id": names, "text": queries}), split / "queries.parquet")
    judged = {
        "query_id": names,
        "doc_id": [f"d{(7 * i + 3) % made.documents}" for i in range(made.queries)],
        "relevance": pa.array([1 + i % 2 for i in range(made.queries)], pa.int32()),
    }
    pq.write_table(pa.table(judged), split / "qrels.parquet")
    facts = {
        "name": name,
        "source": {"beir": "data/made"},
        "title": "join",
        "documents": made.documents,
        "files": listed(folder / "corpus.parquet"),
    }
    spec["corpora"][slug] = write(folder / "corpus.json", facts)
    queries, qrels = split / "queries.parquet", split / "qrels.parquet"
    counts = {"queries": made.queries, "qrels": made.queries, "judged": made.queries}
    write(split / "split.json", {"name": name, **counts, "files": listed(queries) | listed(qrels)})
    spec["splits"][slug] = {"test": {"queries": str(queries), "qrels": str(qrels)}}
    return {"name": name, "slug": slug, "split": "test"}


def listed(path: Path) -> dict:
    return {path.name: {"size": path.stat().st_size, "sha256": sha256(path)}}


def stage(made: Made, entry: dict, spec: dict) -> None:
    value = entry | {
        "architecture": "qwen2",
        "class": "Qwen2Model",
        "native": True,
        "engine": "packed",
        "engine_reason": "transformers has this architecture",
        "attention": "causal",
        "end_token": "<|endoftext|>",
        "padding_side": "left",
        "pooling": "last_token",
        "normalize": True,
        "query_prompt": "Instruct: {task}\nQuery: ",
        "passage_prompt": "",
        "max_length": {"query": 512, "passage": 512},
        "dtype": "bfloat16",
        "dimensions": None,
        "hidden_size": 1536,
        "trust_remote_code": False,
        "decisions": [
            {
                "fact": "attention",
                "value": "causal",
                "source": "registry",
                "reason": "the paper's checkpoint was trained with a causal mask",
            },
            {
                "fact": "query_prompt",
                "value": "Instruct: {task}\nQuery: ",
                "source": "registry",
                "reason": "model card",
            },
            {
                "fact": "pooling",
                "value": "last_token",
                "source": "the model's own files",
                "reason": "1_Pooling/config.json",
            },
        ],
        "files": {"model.safetensors": {"size": 1000, "sha256": "ab" * 32}},
        "code": {},
    }
    models = made.folder / "store/models"
    path = models / f"staged/{entry['model']}-00ff00ff00ff/stage.json"
    spec["stages"][entry["model"]] = write(path, value)
    findings = [
        {"check": "end token", "ok": True, "detail": "appended once to each text"},
        {"check": "padding", "ok": entry["model"].endswith("small"), "detail": "max 3e-7"},
    ]
    path = models / f"preflight/{entry['model']}-00ff00ff00ff.json"
    spec["preflights"][entry["model"]] = write(path, {"findings": findings})


def result(made: Made, entry: dict, data: dict, number: int, rng, spec: dict) -> None:
    """One model's scores, per-query values, run and embedding sidecars on one dataset."""
    store = made.folder / "store"
    place = f"{data['slug']}/{data['split']}/{entry['model']}-0123456789ab"
    skill = 0.35 + 0.5 * number / max(1, made.models)
    ease = np.random.default_rng(len(data["slug"])).normal(0, 0.25, (made.queries, 1))
    noise = rng.normal(0, 0.12, (made.queries, len(METRICS)))
    values = np.clip(skill + ease + noise, 0, 1).round(4)
    names = [f"q{i}" for i in range(made.queries)]
    lines = ["query_id\tmetric\tvalue"]
    for column, metric in enumerate(METRICS):
        lines += [f"{q}\t{metric}\t{values[i, column]}" for i, q in enumerate(names)]
    per_query = write(store / "scores" / f"{place}.per_query.tsv", "\n".join(lines) + "\n")
    means, half = values.mean(0), 1.96 * values.std(0) / made.queries**0.5
    measured = {
        metric: {"value": means[i], "ci_low": means[i] - half[i], "ci_high": means[i] + half[i]}
        | ({"rounding_low": means[i] - 0.003, "rounding_high": means[i] + 0.002} if i == 0 else {})
        for i, metric in enumerate(METRICS)
    }
    scores = entry | {
        "model_id": entry["id"],
        "dataset": data["name"],
        "split": data["split"],
        "queries": made.queries,
        "protocols": {"mteb": measured, "beir": measured},
        "default_protocol": "mteb",
    }
    run = []
    for position, query in enumerate(names):
        found = (7 * position + rng.choice(12, made.hits, replace=False)) % made.documents
        run += [
            f"{query} Q0 d{doc} {rank} {1 - rank / 100:.9g} {entry['model']}"
            for rank, doc in enumerate(found, 1)
        ]
    row = {"model": entry["model"], "dataset": data["slug"], "split": data["split"]}
    row["run"] = write(store / "runs" / f"{place}.trec", "\n".join(run) + "\n")
    row["scores"] = write(store / "scores" / f"{place}.json", scores)
    spec["rows"].append(row | {"per_query": per_query})
    embeddings(made, entry, data, rng, spec)


def embeddings(made: Made, entry: dict, data: dict, rng, spec: dict) -> None:
    folder = made.folder / "store/vectors" / data["slug"] / f"{entry['model']}-0a1b0a1b0a1b"
    queries = f"{data['split']}-queries"
    for part, of, name in (("corpus", 2, "corpus-{piece}-of-2"), (queries, 1, queries)):
        place = {"model": entry["model"], "dataset": data["slug"], "part": part, "of": of}
        spec["vectors"].append(place | {"sidecar": str(folder / f"{name}.json")})
    for name, docs in (
        ("corpus-0-of-2", made.documents // 2),
        ("corpus-1-of-2", made.documents - made.documents // 2),
        (queries, made.queries),
    ):
        sidecar = {
            "shape": [docs, 1536],
            "dtype": "float16",
            "sha256": "cd" * 32,
            "rows": [0, docs],
            "model_id": entry["id"],
            "engine": "packed",
            "compute_dtype": "bfloat16",
            "device": "NVIDIA H200",
            "docs": docs,
            "tokens": docs * 60,
            "seconds": round(float(docs / rng.uniform(500, 3000)), 4),
            "peak_memory_mb": 3100.5,
            "truncated": 2,
            "versions": {"torch": "2.13.0"},
            "settings": {"dtype": "bfloat16"},
        }
        write(folder / f"{name}.json", sidecar)


def verdicts(spec: dict) -> str:
    """Verdicts of every kind, spread over the rows."""
    rows = []
    scores = {(row["model"], row["dataset"]): read_json(row["scores"]) for row in spec["rows"]}
    kinds = [("reproduced", 0.0002), ("higher", 0.012), ("lower", -0.02)]
    for m, entry in enumerate(spec["models"]):
        for d, data in enumerate(spec["datasets"]):
            found = scores.get((entry["model"], data["slug"]))
            if found is None:
                continue
            measured = found["protocols"]["mteb"]["nDCG@10"]["value"]
            verdict, delta = kinds[(m * 5 + d) % 3 if (m + d) % 4 == 0 else 0]
            source = f"made-org/results@f4cc6c8b365a results/{entry['model']}/Set{d}.json"
            reason = ""
            if (m + 2 * d) % 5 == 4:
                verdict = "not comparable"
                reason = "published with 512 tokens per query, run with 128"
            place = (entry["id"], data["name"], data["split"], "nDCG@10")
            numbers = (measured - delta, measured, delta, 0.001)
            rows.append(Verdict(*place, *numbers, verdict, source, "mteb", reason))
    return table(rows)


if __name__ == "__main__":
    target, model_count, dataset_count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    print(report(Made(target, model_count, dataset_count, queries=200, documents=400)))
