"""A made-up experiment of any size, in the files that `make_report.py` reads.

The numbers are drawn from a fixed seed and mean nothing; their shapes, names and paths are those
of a real run. By hand: `PYTHONPATH=scripts python tests/unit/made_results.py FOLDER 20 20`.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from embedrepro.datasets.prepare import file_facts
from embedrepro.evaluation.significance import compare_models

METRICS = ["nDCG@10", "RR@10", "R@100"]
TEXT = """river stone amber lattice signal harbor violet engine meadow copper orbit canyon letter
market silent window garden winter tunnel bridge candle forest planet ocean thread marble falcon
pepper velvet summit anchor breeze cobalt desert ember fossil glacier hollow island"""
WORDS = TEXT.split()
LISTS = ("scores", "per_query", "runs", "stages", "embeddings", "datasets")


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


def make(made: Made) -> list[str]:
    """Write everything under `made.folder`; return the arguments for `make_report.py`."""
    rng = np.random.default_rng(7)
    inputs = {name: [] for name in LISTS}
    models = [model(made, number) for number in range(made.models)]
    datasets = [dataset(made, number, rng, inputs) for number in range(made.datasets)]
    for number, entry in enumerate(models):
        inputs["stages"].append(stage(made, entry))
        for position, data in enumerate(datasets):
            if (number, position) not in made.missing:
                result(made, entry, data, number, rng, inputs)
    inputs["verdicts"] = verdicts(made, models, datasets, inputs)
    inputs["comparisons"] = str(made.folder / "results/made-up/comparisons.json")
    compare_models(inputs["per_query"], inputs["comparisons"])
    inputs["parity"] = None
    spec = {
        "experiment": "made-up",
        "models": models,
        "datasets": datasets,
        "metrics": METRICS,
        "command": "snakemake -s Snakefile --configfile made-up.yaml --cores 2",
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": True,
        "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"},
    }
    paths = [write(made.folder / "spec.json", spec), write(made.folder / "inputs.json", inputs)]
    return ["--spec", paths[0], "--inputs", paths[1]]


def write(path: Path, value: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    return str(path)


def model(made: Made, number: int) -> dict[str, str]:
    name = f"Made-Org/embedder-v{number}.5-{'large' if number % 2 else 'small'}"
    slug = f"Made-Org__embedder-v{number}_5-{'large' if number % 2 else 'small'}"
    return {"id": made.ids.get(number, name), "model": slug, "revision": f"{number:040x}"}


def sentence(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(WORDS, words)).capitalize() + "."


def dataset(made: Made, number: int, rng, inputs: dict) -> dict[str, str]:
    name, slug = f"made/set-{number:02d}", f"made__set-{number:02d}"
    folder = made.folder / "store" / "datasets" / f"{slug}-{number:08x}"
    (folder / "test").mkdir(parents=True, exist_ok=True)
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
    pq.write_table(pa.table({"id": names, "text": queries}), folder / "test" / "queries.parquet")
    judged = {
        "query_id": names,
        "doc_id": [f"d{(7 * i + 3) % made.documents}" for i in range(made.queries)],
        "relevance": pa.array([1 + i % 2 for i in range(made.queries)], pa.int32()),
    }
    pq.write_table(pa.table(judged), folder / "test" / "qrels.parquet")
    facts = {
        "name": name,
        "key": f"{number:08x}",
        "documents": made.documents,
        "title": "join",
        "instruction": None,
        "splits": {
            "test": {"queries": made.queries, "qrels": made.queries, "judged": made.queries}
        },
        "ignore_identical_ids": False,
        "relevance_threshold": 1,
        "source": {"beir": "data/made"},
        "files": file_facts(folder),
    }
    inputs["datasets"].append(write(folder / "dataset.json", facts))
    return {"name": name, "slug": slug, "split": "test"}


def stage(made: Made, entry: dict) -> str:
    value = entry | {
        "recipe": 1,
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
        "preflight": [
            {"check": "end token", "ok": True, "detail": "appended once to each text"},
            {"check": "padding", "ok": entry["model"].endswith("small"), "detail": "max 3e-7"},
        ],
    }
    return write(made.folder / f"store/models/staged/{entry['model']}-00ff/stage.json", value)


def result(made: Made, entry: dict, data: dict, number: int, rng, inputs: dict) -> None:
    """One model's scores, per-query values, run and embedding sidecars on one dataset."""
    base = made.folder / "results/made-up"
    place = f"{data['slug']}/{data['split']}/{entry['model']}"
    skill = 0.35 + 0.5 * number / max(1, made.models)
    ease = np.random.default_rng(len(data["slug"])).normal(0, 0.25, (made.queries, 1))
    noise = rng.normal(0, 0.12, (made.queries, len(METRICS)))
    values = np.clip(skill + ease + noise, 0, 1).round(4)
    names = [f"q{i}" for i in range(made.queries)]
    lines = ["query_id\tmetric\tvalue"]
    for column, metric in enumerate(METRICS):
        lines += [f"{q}\t{metric}\t{values[i, column]}" for i, q in enumerate(names)]
    inputs["per_query"].append(
        write(base / "scores" / f"{place}.per_query.tsv", "\n".join(lines) + "\n")
    )
    means, half = values.mean(0), 1.96 * values.std(0) / made.queries**0.5
    measured = {
        metric: {"value": means[i], "ci_low": means[i] - half[i], "ci_high": means[i] + half[i]}
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
    inputs["scores"].append(write(base / "scores" / f"{place}.json", scores))
    run = []
    for number, query in enumerate(names):
        found = (7 * number + rng.choice(12, made.hits, replace=False)) % made.documents
        run += [
            f"{query} Q0 d{doc} {rank} {1 - rank / 100:.9g} {entry['model']}"
            for rank, doc in enumerate(found, 1)
        ]
    inputs["runs"].append(write(base / "runs" / f"{place}.trec", "\n".join(run) + "\n"))
    embeddings(made, entry, data, rng, inputs)


def embeddings(made: Made, entry: dict, data: dict, rng, inputs: dict) -> None:
    folder = made.folder / "store/embeddings" / data["slug"] / f"{entry['model']}-0a1b"
    for name, docs in (
        ("corpus-0-of-2", made.documents // 2),
        ("corpus-1-of-2", made.documents - made.documents // 2),
        (f"{data['split']}-queries", made.queries),
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
        inputs["embeddings"].append(write(folder / f"{name}.json", sidecar))


def verdicts(made: Made, models: list, datasets: list, inputs: dict) -> str:
    header = "model_id dataset split metric published measured delta tolerance verdict source"
    header += " protocol reason"
    rows = [header.replace(" ", "\t")]
    scores = {tuple(Path(p).parts[-3:]): json.loads(Path(p).read_text()) for p in inputs["scores"]}
    kinds = [("reproduced", 0.0002), ("higher", 0.012), ("lower", -0.02)]
    for m, entry in enumerate(models):
        for d, data in enumerate(datasets):
            found = scores.get((data["slug"], data["split"], f"{entry['model']}.json"))
            if found is None:
                continue
            measured = found["protocols"]["mteb"]["nDCG@10"]["value"]
            verdict, delta = kinds[(m * 5 + d) % 3 if (m + d) % 4 == 0 else 0]
            source = f"made-org/results@f4cc6c8b365a results/{entry['model']}/Set{d}.json"
            reason = ""
            cells = [f"{measured - delta:.6g}", f"{measured:.6g}", f"{delta:+.5f}", "0.001"]
            if (m + 2 * d) % 5 == 4:
                verdict = "not comparable"
                reason = "published with 512 tokens per query, run with 128"
            rows.append(
                "\t".join(
                    [
                        *(" ".join(entry["id"].split()), data["name"], data["split"], "nDCG@10"),
                        *(*cells, verdict, source, "mteb", reason),
                    ]
                )
            )
    return write(made.folder / "results/made-up/verdicts.tsv", "\n".join(rows) + "\n")


if __name__ == "__main__":
    target, model_count, dataset_count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    print(" ".join(make(Made(target, model_count, dataset_count, queries=200, documents=400))))
