"""Sparse and multi-vector models from a config to metrics.tsv, held against sentence-transformers'
own encoders; the demonstration's passages in one piece and in three."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY, snakemake
from sentence_transformers import MultiVectorEncoder, SparseEncoder

sys.path[:0] = [str(REPOSITORY / "tests" / part) for part in ("unit", "journeys")]
from format_models import colbert, m3, splade, texts  # noqa: E402
from stand_ins import bert  # noqa: E402

PASSAGES, QUERIES = 70, 9
TOP = 20
CUTS = [8, 16]
ROWS = ["me__Splade-1_0", "me__ColBERT-1_0", *(f"me__Dense-1_0__d{cut}" for cut in CUTS)]
WAYS = ["dense", "sparse", "multivector", "weighted"]
ROWS += [*(f"me__M3-1_0-{way}" for way in WAYS), "BM25", "late"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A working directory in which both kinds ran to the report, with its config."""
    root = tmp_path_factory.mktemp("kinds")
    folder = root / "data"
    (folder / "qrels").mkdir(parents=True)
    for name, prefix, count, seed in (("corpus", "d", PASSAGES, 2), ("queries", "q", QUERIES, 1)):
        rows = [{"_id": f"{prefix}{i}", "text": t} for i, t in enumerate(texts(count, seed))]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = "".join(f"q{i}\td{i}\t1\n" for i in range(QUERIES))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    models = [
        {"id": "me/Splade-1.0", "kind": "sparse", "source": {"path": str(splade(root / "splade"))}},
        {
            "id": "me/ColBERT-1.0",
            "kind": "multivector",
            "source": {"path": str(colbert(root / "colbert"))},
        },
        {
            "id": "me/Dense-1.0",
            "source": {"path": str(bert(root / "dense"))},
            "pooling": "mean",
            "normalize": True,
            "query_prompt": "",
            "passage_prompt": "",
            "dimensions": CUTS,
        },
        {
            "id": "me/M3-1.0",
            "kind": "m3",
            "source": {"path": str(m3(root / "m3"))},
            "pooling": "cls",
            "normalize": True,
            "query_prompt": "",
            "passage_prompt": "",
        },
    ]
    late = {"alias": "late", "rerank": {"run": "BM25", "depth": 10}}
    models += [{"id": "BM25", "bm25": {}}, models[1] | late]
    config = {
        "experiment": "kinds",
        "models": models,
        "datasets": [
            {"name": name, "source": {"beir": str(folder)}, "splits": ["test"], "shards": shards}
            for name, shards in (("whole", 1), ("parts", 3))
        ],
        "retrieve": {"top_k": TOP},
        "evaluate": {"metrics": ["nDCG@10", "R@20"]},
    }
    done = snakemake(root / "work", config=config)
    assert done.returncode == 0, done.stdout + done.stderr
    return root, config


def run_of(root: Path, dataset: str, model: str) -> Path:
    (path,) = (root / "work" / "store" / "runs" / dataset / "test").glob(f"{model}-*.trec")
    return path


def read_run(path: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for line in path.read_text().splitlines():
        query, _, doc, _, score, _ = line.split()
        found.setdefault(query, {})[doc] = float(score)
    return found


@pytest.mark.parametrize(
    ("model", "folder", "encoder"),
    [
        ("me__Splade-1_0", "splade", SparseEncoder),
        ("me__ColBERT-1_0", "colbert", MultiVectorEncoder),
    ],
)
def test_scores_are_sentence_transformers_own(made, model, folder, encoder):
    peer = encoder(str(made[0] / folder), device="cpu")
    queries = peer.encode_query(texts(QUERIES, 1), batch_size=1)
    passages = peer.encode_document(texts(PASSAGES, 2), batch_size=1)
    expected = np.asarray(peer.similarity(queries, passages))
    found = read_run(run_of(made[0], "whole", model))
    assert len(found) == QUERIES
    for number in range(QUERIES):
        hits = found[f"q{number}"]
        rows = [int(doc[1:]) for doc in hits]
        np.testing.assert_allclose(list(hits.values()), expected[number, rows], rtol=1e-5)
        best = np.sort(expected[number])[::-1][:TOP]
        np.testing.assert_allclose(list(hits.values()), best, rtol=1e-5)


@pytest.mark.parametrize("cut", CUTS)
def test_dimensions_are_cut_from_one_encoding(made, cut):
    store = made[0] / "work" / "store"
    sidecars = [json.loads(p.read_text()) for p in store.glob("vectors/whole/me__Dense*/*.json")]
    whole = {s["role"]: s for s in sidecars if "made_from" not in s}
    assert len(sidecars) == 2 + 2 * len(CUTS) and len(whole) == 2
    (queries, passages) = (
        np.load(path.with_suffix(".npy"))
        for role in ("query", "passage")
        for path in store.glob("vectors/whole/me__Dense*/*.json")
        if json.loads(path.read_text())["sha256"] == whole[role]["sha256"]
    )
    queries, passages = (
        v[:, :cut] / np.linalg.norm(v[:, :cut], axis=1)[:, None] for v in (queries, passages)
    )
    expected = queries @ passages.T
    found = read_run(run_of(made[0], "whole", f"me__Dense-1_0__d{cut}"))
    for number in range(QUERIES):
        hits = found[f"q{number}"]
        rows = [int(doc[1:]) for doc in hits]
        np.testing.assert_allclose(list(hits.values()), expected[number, rows], atol=1e-6)


def test_the_weighted_way_sums_the_others_of_one_encoding(made):
    runs = {way: read_run(run_of(made[0], "whole", f"me__M3-1_0-{way}")) for way in WAYS}
    store = made[0] / "work" / "store"
    assert len(list(store.glob("vectors/whole/me__M3*/*.sparse.npy"))) == 2  # queries, corpus
    single = [runs[way] for way in WAYS[:3]]
    seen = 0
    for query, hits in runs["weighted"].items():
        for doc, score in hits.items():
            assert any(doc in run[query] for run in single)
            if all(doc in run[query] for run in single):
                expected = np.dot([run[query][doc] for run in single], [0.4, 0.2, 0.4])
                np.testing.assert_allclose(score, expected, rtol=1e-5)
                seen += 1
    assert seen > QUERIES


def test_a_reranking_has_the_scores_of_the_search(made):
    searched, base, found = (
        read_run(run_of(made[0], "whole", name)) for name in ("me__ColBERT-1_0", "BM25", "late")
    )
    seen = 0
    for query, hits in found.items():
        assert set(hits) == set(list(base[query])[:10])
        for doc in hits.keys() & searched[query].keys():
            assert hits[doc] == searched[query][doc]
            seen += 1
    assert seen


@pytest.mark.parametrize("model", ROWS)
def test_shards_change_no_byte_of_a_run(made, model):
    whole, parts = (run_of(made[0], name, model).read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_every_row_has_its_metrics(made):
    path = made[0] / "work" / "results" / "kinds" / "metrics.tsv"
    with path.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert {(row["model"], row["dataset"]) for row in rows} == {
        (model, dataset) for model in ROWS for dataset in ("whole", "parts")
    }


def test_a_kind_that_the_files_contradict_is_one_line(made):
    root, config = made
    models = [dict(config["models"][0])]
    del models[0]["kind"]
    done = snakemake(root / "wrong", config=config | {"models": models})
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "its modules make a sparse model, not a dense one; set kind: sparse" in said
    assert "Traceback" not in said
