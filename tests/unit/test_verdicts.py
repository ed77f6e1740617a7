"""Verdicts against hand-computed cases: two-sided, like with like, in words."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from embedrepro.errors import UserError
from embedrepro.evaluation import scoring, verdicts

CLI = Path(__file__).parents[2] / "scripts" / "compare_published.py"
ROW = {
    "model_id": "org/model-1.5B",
    "revision": "8b3219a92973c328a8e22fadcfa821b5dc75636a",
    "dataset": "xquad/en",
    "split": "validation",
    "metric": "nDCG@10",
    "value": "0.94357",
    "tolerance": "0.000505",
    "protocol": "mteb",
    "source": "some/repository@f4cc6c8 results/x.json",
    "note": "queries=1185; mteb 1.12.75",
}


def published(**changes) -> verdicts.Published:
    row = ROW | changes
    numbers = {"value": float(row["value"]), "tolerance": float(row["tolerance"])}
    return verdicts.Published(**row | numbers)


def scores(value: float = 0.94357, protocol: str = "mteb", **changes) -> dict:
    same = {key: ROW[key] for key in ("model_id", "revision", "dataset", "split")}
    entry = {"value": value, "ci_low": value, "ci_high": value}
    scored = {"queries": 1185, "facts": {}, "protocols": {protocol: {"nDCG@10": entry}}}
    return same | scored | changes


def only(row: verdicts.Published, scored: dict) -> verdicts.Verdict:
    (verdict,) = verdicts.compare(scored, [row])
    return verdict


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (0.94357, "reproduced"),
        (0.944075, "reproduced"),  # 0.94357 + 0.000505, the tolerance itself
        (0.944076, "higher"),
        (0.943065, "reproduced"),
        (0.943064, "lower"),
        (1.0, "higher"),
        (0.0, "lower"),
    ],
)
def test_two_sided_and_inclusive(measured, verdict):
    found = only(published(), scores(measured))
    assert found.verdict == verdict
    assert found.delta == pytest.approx(measured - 0.94357, abs=1e-12)
    assert found.reason == ("" if verdict == "reproduced" else "mteb 1.12.75")


@pytest.mark.parametrize(
    ("row", "scored", "reason"),
    [
        (
            {},
            {"revision": "c" * 40},
            "other revision of the model: published for 8b3219a92973, run with cccccccccccc",
        ),
        ({}, {"queries": 1190}, "other queries: published over 1185, run over 1190"),
        (
            {"note": "title=join"},
            {"facts": {"title": "drop"}},
            "published with title joined, run with text only",
        ),
        (
            {"protocol": "flagembedding"},
            {"protocol": "flagembedding", "facts": {"max_length": {"query": 512, "passage": 256}}},
            "published with 512 tokens per passage, run with 256",
        ),
        (
            {"note": "query_prompt=query: "},
            {"facts": {"query_prompt": ""}},
            "published with query prompt 'query: ', run with ''",
        ),
        (
            {"note": "dataset_revision=aaaaaaaa|bbbbbbbb"},
            {"facts": {"dataset_revision": "cccccccc"}},
            "other revision of the dataset: published on aaaaaaaa or bbbbbbbb, run on cccccccc",
        ),
    ],
)
def test_not_comparable_says_why(row, scored, reason):
    found = only(published(**row), scores(**scored))
    assert (found.verdict, found.reason) == ("not comparable", reason)


def test_all_reasons_are_given():
    row = published(protocol="flagembedding", note="queries=9")
    facts = {"title": "drop", "max_length": {"query": 64, "passage": 256}}
    reason = only(row, scores(protocol="flagembedding", facts=facts)).reason
    assert reason.split("; ") == [
        "published with title joined, run with text only",
        "published with 512 tokens per query, run with 64",
        "published with 512 tokens per passage, run with 256",
        "other queries: published over 9, run over 1185",
    ]


def test_a_protocol_that_was_not_scored_is_named():
    found = only(published(protocol="pyserini"), scores())
    assert found.verdict == "not comparable"
    assert found.measured is None
    assert "not scored under the pyserini protocol" in found.reason


@pytest.mark.parametrize(
    ("row", "scored"),
    [
        ({"dataset": "xquad/de"}, {}),
        ({"model_id": "org/model-1_5B"}, {}),
        ({"split": "test"}, {}),
        ({"metric": "R@100"}, {}),
    ],
)
def test_rows_about_something_else_give_no_verdict(row, scored):
    assert list(verdicts.compare(scores(**scored), [published(**row)])) == []


@pytest.mark.parametrize(
    ("row", "scored"),
    [
        ({"revision": "external"}, {"revision": "c" * 40}),
        ({"revision": "unknown"}, {}),
        ({}, {"revision": None}),
        ({}, {"revision": "name==1.0"}),
        ({}, {"revision": "0123456789ab"}),
        ({"revision": "8b3219a9"}, {}),
        ({"note": "dataset_revision=aaaaaaaa|bbbbbbbb"}, {"facts": {"dataset_revision": "b" * 40}}),
        ({"note": "title=join"}, {"facts": {"title": None}}),
        ({"note": "query_prompt=query: "}, {"facts": {"query_prompt": "query:"}}),
        ({"protocol": "flagembedding"}, {"protocol": "flagembedding"}),
    ],
)
def test_the_unknown_and_the_equal_do_not_bar(row, scored):
    assert only(published(**row), scores(**scored)).verdict == "reproduced"


def test_unknown_revisions_are_remarked():
    external = only(published(revision="external"), scores())
    assert external.reason == "the publisher doesn't say which revision of the model"
    unknown = only(published(), scores(revision=None))
    assert unknown.reason == "this run's revision is no commit, published for 8b3219a92973"


def test_facts_come_from_the_dataset_and_the_sidecars(tmp_path):
    about = {"title": "join", "source": {"hub": "a/b", "revision": "c" * 40}}
    settings = {"query_prompt": "Instruct: {task}\nQuery: ", "passage_prompt": ""}
    settings |= {"max_length": {"query": 64, "passage": 512}}
    paths = []
    for role in ("query", "passage"):
        paths.append(tmp_path / f"{role}.json")
        sidecar = {"role": role, "instruction": "find it", "settings": settings}
        paths[-1].write_text(json.dumps(sidecar))
    facts = scoring.known_facts(about, paths)
    assert facts == {
        "title": "join",
        "dataset_revision": "c" * 40,
        "query_prompt": "Instruct: find it\nQuery: ",
        "passage_prompt": "",
        "max_length": {"query": 64, "passage": 512},
    }
    found = only(published(protocol="flagembedding"), scores(protocol="flagembedding", facts=facts))
    assert found.reason == "published with 512 tokens per query, run with 64"
    assert scoring.known_facts({}, []) == {
        "title": None,
        "dataset_revision": None,
        "max_length": {},
    }


def table(path: Path, *rows: dict) -> Path:
    lines = ["\t".join(verdicts.COLUMNS), *("\t".join((ROW | row).values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"value": "abc"}, "2: wants 10 fields"),
        ({"value": "inf"}, "2: wants 10 fields"),
        ({"tolerance": "0"}, "0 < tolerance < 1"),
        ({"note": "a\tb"}, "2: wants 10 fields"),
        ({"protocol": "trec"}, "2: unknown protocol 'trec'"),
    ],
)
def test_broken_tables_are_named_by_line(tmp_path, row, words):
    with pytest.raises(UserError, match=words):
        verdicts.read_published(table(tmp_path / "published.tsv", row))


def test_a_wrong_header_is_refused(tmp_path):
    (tmp_path / "published.tsv").write_text("model\tvalue\n")
    with pytest.raises(UserError, match="wants the columns model_id revision"):
        verdicts.read_published(tmp_path / "published.tsv")


def cli(*args) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, CLI, *args], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("value", "queries", "status", "words"),
    [
        (0.94357, 1185, 0, ""),
        (0.95, 1185, 1, "xquad/en validation nDCG@10: measured 0.95, published 0.94357"),
        (0.90, 1185, 1, "lower"),
        (0.94357, 9, 1, "no published number was reproduced"),
    ],
)
def test_require_fails_when_not_reproduced(tmp_path, value, queries, status, words):
    rows = table(tmp_path / "published.tsv", {}, {"model_id": "another/model"})
    (tmp_path / "s.json").write_text(json.dumps(scores(value, queries=queries)))
    output = tmp_path / "verdicts.tsv"
    made = cli("--scores", tmp_path / "s.json", "--published", rows, "--output", output)
    assert made.returncode == 0, made.stderr
    with open(output, encoding="utf-8", newline="") as file:
        (line,) = csv.DictReader(file, delimiter="\t")
    assert list(line) == verdicts.VERDICT_COLUMNS
    assert (line["published"], line["measured"]) == ("0.94357", f"{value:.6g}")
    judged = cli("--require", output)
    assert judged.returncode == status
    assert words in judged.stderr


def test_no_scores_give_an_empty_table(tmp_path):
    rows = table(tmp_path / "published.tsv", {})
    assert cli("--published", rows, "--output", tmp_path / "v.tsv").returncode == 0
    assert (tmp_path / "v.tsv").read_text() == "\t".join(verdicts.VERDICT_COLUMNS) + "\n"
