"""Published numbers of a real model under wrong settings: `why` names the setting that is wrong."""

import csv
import json

import pytest
from helpers import XQUAD, snakemake

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not XQUAD.is_dir(), reason="XQuAD en is not beside the repository"),
]


def why(workdir, config):
    done = snakemake(workdir, "--", "why", config=config)
    assert done.returncode == 0, done.stdout + done.stderr
    path = workdir / "results" / config["experiment"] / "why.tsv"
    with open(path, newline="", encoding="utf-8") as file:
        return done.stdout, list(csv.DictReader(file, delimiter="\t"))


def test_a_wrong_length_and_a_foreign_prompt_are_named(tmp_path, minilm):
    config = {
        "experiment": "wrong",
        "models": [
            minilm | {"alias": "short", "max_length": 16},
            minilm | {"alias": "asks", "query_prompt": "query: ", "passage_prompt": "passage: "},
        ],
        "datasets": [
            {
                "name": "xquad/en",
                "source": {"beir": str(XQUAD)},
                "splits": {"validation": "test"},
            }
        ],
        "evaluate": {"metrics": ["nDCG@10", "AP@10"]},
    }
    screen, rows = why(tmp_path, config)
    for alias, cause in (
        ("short", "256 tokens per query, 256 per passage"),
        ("asks", "no prompts"),
    ):
        for metric, value in (("nDCG@10", 0.94357), ("AP@10", 0.92807)):
            mine = [row for row in rows if (row["model"], row["metric"]) == (alias, metric)]
            found = {row["setting"] for row in mine if row["verdict"] == "reproduced"}
            assert cause in found
            assert not {"float16 alone", "bfloat16 alone"} & found, found
            (right,) = (row for row in mine if row["setting"] == cause)
            assert float(right["value"]) == pytest.approx(value, abs=1e-5)
            assert len(mine) >= 5  # the others were tried, too
    assert f"({cause}" not in screen and f"with {cause}" in screen


def test_titles_left_out_are_named(tmp_path, minilm):
    """A set whose titles matter; its number is sentence-transformers' own."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import (
        InformationRetrievalEvaluator,
    )

    rows = [json.loads(line) for line in (XQUAD / "corpus.jsonl").read_text().splitlines()][::6]
    lines = (XQUAD / "qrels" / "test.tsv").read_text().splitlines()
    kept = {row["_id"] for row in rows}
    judged = dict(line.split("\t")[:2] for line in lines[1:] if line.split("\t")[1] in kept)
    asked = [json.loads(line) for line in (XQUAD / "queries.jsonl").read_text().splitlines()]
    queries = {row["_id"]: row["text"] for row in asked if row["_id"] in judged}
    folder = tmp_path / "titled"
    (folder / "qrels").mkdir(parents=True)
    corpus = {}
    with open(folder / "corpus.jsonl", "w") as file:
        for row in rows:
            title, _, text = row["text"].partition(". ")
            file.write(json.dumps({"_id": row["_id"], "title": title, "text": text}) + "\n")
            corpus[row["_id"]] = f"{title} {text}".strip()
    with open(folder / "queries.jsonl", "w") as file:
        file.writelines(json.dumps({"_id": q, "text": t}) + "\n" for q, t in queries.items())
    table = "".join(f"{q}\t{d}\t1\n" for q, d in judged.items())
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{table}")
    evaluator = InformationRetrievalEvaluator(
        queries, corpus, {q: {d} for q, d in judged.items()}, show_progress_bar=False, name="x"
    )
    model = SentenceTransformer(minilm["source"]["path"], device="cpu")
    value = evaluator(model)["x_cosine_ndcg@10"]
    columns = ["model_id", "dataset", "split", "metric", "value", "protocol", "precision"]
    told = [minilm["id"], "titled", "test", "nDCG@10", f"{value:.5f}", "trec_eval", "float32"]
    (tmp_path / "own.tsv").write_text("\t".join(columns) + "\n" + "\t".join(told) + "\n")
    config = {
        "experiment": "titles",
        "models": [minilm],
        "datasets": [{"name": "titled", "source": {"beir": str(folder)}, "title": "drop"}],
        "evaluate": {"metrics": ["nDCG@10"]},
        "published": str(tmp_path / "own.tsv"),
    }
    screen, rows = why(tmp_path, config)
    found = {row["setting"] for row in rows if row["verdict"] == "reproduced"}
    assert found == {"titles joined"}
    assert "reproduced with titles joined" in screen
