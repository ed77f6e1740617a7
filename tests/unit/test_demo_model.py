"""The demonstration model: the same bytes for a seed, gte-Qwen2's layout, and it retrieves."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import traps
from embedrepro.errors import UserError
from embedrepro.models.staging import stage
from embedrepro.sources.demo_model import END, ID, build

REPOSITORY = Path(__file__).parents[2]
DEMO = REPOSITORY / "data" / "demo"


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "IDF-Attention-0.1B"
    build(folder, 7)
    return folder


@pytest.fixture(scope="module")
def staged(snapshot):
    folder = snapshot.parent / "embed-repro__IDF-Attention-0_1B-k"
    stage(traps.spec({"demo": 7}, id=ID), snapshot, folder)
    return folder


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_seed_gives_the_same_bytes_in_another_process(snapshot, tmp_path):
    command = [sys.executable, REPOSITORY / "scripts" / "build_demo_model.py"]
    for seed, same in ((7, True), (8, False)):
        output = tmp_path / str(seed)
        subprocess.run([*command, "--seed", str(seed), "--output", output], check=True, timeout=60)
        assert (contents(output) == contents(snapshot)) is same


def test_layout_is_that_of_gte_qwen2(snapshot, staged):
    config = json.loads((snapshot / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == f"{ID}--modeling_idf.IDFAttentionModel"
    record = json.loads((staged / "stage.json").read_text())
    assert (record["pooling"], record["attention"]) == ("last_token", "causal")
    assert (record["end_token"], record["padding_side"]) == (END, "left")
    assert set(record["code"]) == {"configuration_idf.py", "modeling_idf.py"}
    assert "--" not in (staged / "config.json").read_text()


def test_staged_model_passes_preflight(staged):
    from embedrepro.models.examination import examine

    assert all(row["ok"] for row in examine(staged)["findings"])


def encode(folder, texts):
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    vectors = []
    with torch.no_grad():
        for start in range(0, len(texts), 32):
            batch = tokenizer(texts[start : start + 32], padding=True, return_tensors="pt")
            vectors.append(model(**batch).last_hidden_state[:, -1])
    return torch.nn.functional.normalize(torch.cat(vectors), dim=-1).numpy()


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_it_retrieves_far_above_chance_in_both_languages(staged):
    import pytrec_eval

    documents, queries = lines(DEMO / "corpus.jsonl"), lines(DEMO / "queries.jsonl")
    qrels = {}
    with open(DEMO / "qrels" / "test.tsv", encoding="utf-8") as file:
        for query, document, grade in list(csv.reader(file, delimiter="\t"))[1:]:
            qrels.setdefault(query, {})[document] = int(grade)
    texts = [f"{row.get('title') or ''} {row['text']}".strip() for row in documents]
    prompt = json.loads((staged / "stage.json").read_text())["query_prompt"]
    scores = encode(staged, [prompt + row["text"] for row in queries]) @ encode(staged, texts).T
    chance = np.random.default_rng(0).random(scores.shape)

    def ndcg(table):
        run = {
            query["_id"]: {row["_id"]: float(s) for row, s in zip(documents, cells, strict=True)}
            for query, cells in zip(queries, table, strict=True)
        }
        judged = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
        chinese = {row["_id"] for row in queries if any("一" <= c <= "鿿" for c in row["text"])}
        values = [
            [row["ndcg_cut_10"] for query, row in judged.items() if (query in chinese) is zh]
            for zh in (True, False)
        ]
        return [float(np.mean(part)) for part in values]

    assert max(ndcg(chance)) < 0.05
    assert min(ndcg(scores)) > 0.45


def test_a_corpus_that_is_none_is_refused(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"title": "no text"}\n')
    for corpus in (tmp_path / "corpus.jsonl", tmp_path / "missing.jsonl"):
        with pytest.raises(UserError, match=r"not a BEIR corpus.jsonl"):
            build(tmp_path / "out", 1, corpus)
    assert not (tmp_path / "out").exists()
