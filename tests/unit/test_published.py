"""The registry of published numbers: sound, citable, and equal to the sources it was read from."""

import csv
import re
from collections import Counter
from pathlib import Path

import pytest
from embedrepro.evaluation import verdicts
from embedrepro.evaluation.metrics import parse

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data" / "published.tsv"
SOURCE = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{7,40} \S+(\.json|\.yaml)( condition \S+)?")


@pytest.fixture(scope="module")
def rows():
    return verdicts.read_published(ROOT / "rules" / "registry" / "published.tsv")


def test_each_row_is_sound_and_citable(rows):
    assert len(rows) > 1000
    for row in rows:
        assert str(parse(row.metric)) == row.metric
        assert 0 < row.value <= 1
        if row.source != "data/demo/README.md":
            assert SOURCE.fullmatch(row.source), row.source
        assert re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{40}|external|unknown|0_1_10", row.revision)
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", row.model_id)


def test_no_number_is_there_twice(rows):
    keys = Counter((r.model_id, r.revision, r.dataset, r.split, r.metric, r.protocol) for r in rows)
    assert keys.most_common(1)[0][1] == 1


def test_tolerance_covers_the_rounding_of_the_printed_digits(rows):
    with open(ROOT / "rules" / "registry" / "published.tsv", encoding="utf-8") as file:
        for line in csv.DictReader(file, delimiter="\t"):
            digits = len(line["value"].partition(".")[2])
            assert float(line["tolerance"]) > 0.5 * 10**-digits


def test_trec_dl_rows_state_their_threshold(rows):
    """Pyserini counts grade 2 and up there, MTEB grade 1: the metric's name says which."""
    for row in rows:
        if row.split in ("dl19", "dl20") and not row.metric.startswith("nDCG"):
            assert ("(rel=2)" in row.metric) == (row.protocol == "pyserini")


def test_known_numbers(rows):
    found = {(r.model_id, r.dataset, r.split, r.metric, r.protocol): r.value for r in rows}
    minilm, bge = "sentence-transformers/all-MiniLM-L6-v2", "BAAI/bge-base-en-v1.5"
    assert found[minilm, "xquad/en", "validation", "nDCG@10", "mteb"] == 0.94357
    assert found[bge, "msmarco-passage", "dev", "RR@10", "pyserini"] == 0.3583
    assert found[bge, "msmarco-passage", "dl19", "R(rel=2)@1000", "pyserini"] == 0.8427
    assert found[bge, "beir/scifact", "test", "nDCG@10", "pyserini"] == 0.7408
    assert found[minilm, "msmarco-passage", "dl19", "nDCG@10", "mteb"] == pytest.approx(
        0.6369, abs=5e-5
    )


@pytest.mark.skipif(not SHARED.exists(), reason="the extract of MTEB's results isn't here")
def test_rows_equal_the_extract_of_mteb_results(rows):
    ours = {}
    for row in rows:
        if row.protocol == "mteb":
            path = row.source.split()[1].removeprefix("results/")
            ours[path, row.dataset, row.split, row.metric] = row.value
    columns = {"ndcg_at_10": "nDCG@10", "recall_at_100": "R@100", "map_at_10": "AP@10"}
    checked = 0
    with open(SHARED, encoding="utf-8") as file:
        for line in csv.DictReader(file, delimiter="\t"):
            path = f"{line['model']}/{line['revision']}/{line['task']}.json"
            split = {("MSMARCO", "test"): "dl19"}.get((line["task"], line["split"]), line["split"])
            subset = line["subset"]
            found = {k[1:]: v for k, v in ours.items() if k[0] == path and k[2] == split}
            for column, metric in columns.items():
                if line[column] in ("", "None") or float(line[column]) == 0:
                    continue
                values = [
                    value
                    for (dataset, _, name), value in found.items()
                    if name == metric and (subset == "default" or dataset == f"xquad/{subset}")
                ]
                assert values == [pytest.approx(float(line[column]), abs=5e-6)], (path, metric)
                checked += 1
    assert checked > 800
