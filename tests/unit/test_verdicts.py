"""Verdicts against hand-computed cases: two-sided, like with like, in words."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from embedrepro.evaluation import published, verdicts
from embedrepro.evaluation.published import Published

ROOT = Path(__file__).parents[2]
REGISTRY = ROOT / "rules" / "registry"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
ROW = Published(
    model_id="org/model-1.5B",
    revision="8b3219a92973c328a8e22fadcfa821b5dc75636a",
    dataset="xquad/en",
    split="validation",
    metric="nDCG@10",
    value=0.94357,
    tolerance=0.000505,
    protocol="mteb",
    protocol_version="1.12.75",
    source="some/repository@f4cc6c8 results/x.json",
    dataset_revision=("aaaaaaaa",),
    query_prompt=("",),
    passage_prompt=("",),
    max_length_query=512,
    max_length_passage=512,
    title="join",
    precision="float32",
    queries=1185,
)


def scores(value: float = 0.94357, protocol: str = "mteb", **changes) -> dict:
    same = {key: getattr(ROW, key) for key in ("model_id", "revision", "dataset", "split")}
    entry = {"value": value, "ci_low": value, "ci_high": value} | changes.pop("entry", {})
    scored = {"queries": 1185, "facts": {}, "protocols": {protocol: {"nDCG@10": entry}}}
    return same | scored | changes


def only(row: Published, scored: dict) -> verdicts.Verdict:
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
    found = only(ROW, scores(measured))
    assert found.verdict == verdict
    assert found.delta == pytest.approx(measured - 0.94357, abs=1e-12)
    assert found.reason == ("" if verdict == "reproduced" else "mteb 1.12.75")


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [
        (0.945, 0.9440, 0.9455, "reproduced within rounding"),  # 0.9440 - 0.94357 <= tolerance
        (0.945, 0.9441, 0.9455, "higher"),
        (0.942, 0.9415, 0.94307, "reproduced within rounding"),
        (0.942, 0.9415, 0.9430, "lower"),
        (0.9437, 0.9, 1.0, "reproduced"),
    ],
)
def test_the_rounding_interval_stands_beside_the_tolerance(value, low, high, verdict):
    found = only(ROW, scores(value, entry={"rounding_low": low, "rounding_high": high}))
    assert found.verdict == verdict
    within = f"rounding alone moves this run's value between {low:.5f} and {high:.5f}"
    assert (within in found.reason) == (verdict == "reproduced within rounding")


@pytest.mark.parametrize(
    ("changes", "queries", "wanted"),
    [
        ({}, 1185, 0.00001 + 0.02 / 1185**0.5),
        ({"queries": None}, 300, 0.00001 + 0.02 / 300**0.5),
        ({"metric": "R@100"}, 1185, 0.00001 + 2 * 0.02 / 1185**0.5),
        ({"precision": "float32"}, 1185, 0.00001 + 0.002 / 1185**0.5),
        ({"protocol": "trec_eval", "decimals": 4}, 1185, 0.00005 + 0.02 / 1185**0.5),
        ({"decimals": 2}, 1185, 0.005005 + 0.02 / 1185**0.5),
        ({"tolerance": 0.1}, 1185, 0.1),
    ],
)
def test_tolerance_by_digits_and_queries(changes, queries, wanted):
    row = replace(ROW, **{"tolerance": None, "precision": None} | changes)
    assert verdicts.tolerance(row, queries) == pytest.approx(wanted, rel=0.006)


def test_the_measured_cases_of_half_precision():
    """300 queries whose published number float32 gives exactly: one pair of neighbours swapped in
    float16 is +0.00123, bfloat16 +0.00168 and R@100 -0.0033 (one query's only passage)."""
    row = replace(ROW, value=0.64508, tolerance=None, precision=None, queries=300)
    recall = replace(row, metric="R@100", value=0.92500)

    def judged(value, low, high, row=row, **facts):
        entry = {"value": value, "ci_low": value, "ci_high": value}
        if low is not None:
            entry |= {"rounding_low": low, "rounding_high": high}
        scored = scores(queries=300, facts=facts)
        return only(row, scored | {"protocols": {"mteb": {row.metric: entry}}}).verdict

    assert judged(0.64508, 0.64508, 0.64508, dtype="float32") == "reproduced"
    swapped = 0.64508 + 0.00123
    assert judged(swapped, swapped - 0.00123, swapped, dtype="float16") == verdicts.WITHIN
    assert judged(swapped, swapped, swapped, dtype="float32") == "higher"
    bfloat16 = 0.64508 + 0.00168
    assert judged(bfloat16, bfloat16 - 0.003, bfloat16 + 0.002, dtype="bfloat16") == verdicts.WITHIN
    assert judged(bfloat16, None, None, dtype="bfloat16") == "higher"
    lost = 0.92500 - 0.0033
    assert judged(lost, lost, lost + 0.0034, recall, dtype="bfloat16") == verdicts.WITHIN
    assert judged(lost, None, None, recall, dtype="bfloat16") == "lower"


@pytest.fixture(scope="module")
def actual() -> Published:
    """The row of the table: all-MiniLM-L6-v2 on SciFact, nDCG@10."""
    rows = published.load(REGISTRY, [], [MINILM], ["beir/scifact"])
    (row,) = (
        row
        for row in rows
        if row.metric == "nDCG@10" and row.split == "test" and row.protocol_version == "1.12.75"
    )
    return row


ALIKE = {
    "query_prompt": "",
    "passage_prompt": "",
    "max_length": {"query": 256, "passage": 256},
    "title": "join",
    "dtype": "float32",
    "dataset_revision": "d56462d0e63a25450459c4f213e49ffdb866f7f9",
}


def as_run(row: Published, value: float, facts: dict, **changes) -> dict:
    same = {key: getattr(row, key) for key in ("model_id", "revision", "dataset", "split")}
    entry = {"value": value, "ci_low": value, "ci_high": value}
    scored = {"queries": row.queries, "protocols": {row.protocol: {row.metric: entry}}}
    return same | scored | {"facts": ALIKE | facts} | changes


def test_an_actual_row_alike_is_judged(actual):
    assert (actual.value, actual.queries, actual.query_prompt) == (0.64508, 300, ("",))
    found = only(actual, as_run(actual, actual.value, {}))
    assert found.verdict == "reproduced"
    assert found.reason == "the publisher doesn't say: precision"
    found = only(actual, as_run(actual, actual.value - 0.01, {}))
    assert found.verdict == "lower"
    assert found.reason == "the publisher doesn't say: precision; mteb 1.12.75"


UNLIKE = {
    "model revision": (
        {},
        {"revision": "c" * 40},
        "other revision of the model: published for 8b3219a92973, run with cccccccccccc",
    ),
    "dataset revision": (
        {"dataset_revision": "c" * 40},
        {},
        "other revision of the dataset: published on 0228b52cf275 or d56462d0e63a, run on cccccccc",
    ),
    "queries": ({}, {"queries": 298}, "other queries: published over 300, run over 298"),
    "query prompt": (
        {"query_prompt": "query: "},
        {},
        "published with query prompt '', run with 'query: '",
    ),
    "passage prompt": (
        {"passage_prompt": "passage: "},
        {},
        "published with passage prompt '', run with 'passage: '",
    ),
    "query length": (
        {"max_length": {"query": 8, "passage": 256}},
        {},
        "published with 256 tokens per query, run with 8",
    ),
    "passage length": (
        {"max_length": {"query": 256, "passage": 64}},
        {},
        "published with 256 tokens per passage, run with 64",
    ),
    "longer passages": (
        {"max_length": {"query": 256, "passage": 512}, "truncated": {"passage": 0}},
        {},
        "published with 256 tokens per passage, run with 512",
    ),
    "dimensions": ({"dimensions": 64}, {}, "published with whole vectors, run with 64 dimensions"),
    "stored precision": ({"stored": "int8"}, {}, "floating-point numbers, run with int8 ones"),
    "title": ({"title": "drop"}, {}, "published with title joined, run with text only"),
    "pooling": (
        {"otherwise": {"pooling": ["mean", "cls"]}},
        {},
        "published with the model's own pooling mean, run with cls from the config",
    ),
    "way": ({"way": "sparse"}, {}, "published of the model's dense vectors, run by its way sparse"),
    "protocol": (
        {},
        {"protocols": {"trec_eval": {}}},
        "not scored under the mteb protocol: add it to the protocols",
    ),
}


@pytest.mark.parametrize("way", UNLIKE)
def test_ways_to_be_unlike_an_actual_row(actual, way):
    facts, changes, reason = UNLIKE[way]
    found = only(actual, as_run(actual, actual.value - 0.2, facts, **changes))
    assert found.verdict == "not comparable"
    assert reason in found.reason


def test_another_split_is_another_number(actual):
    assert list(verdicts.compare(as_run(actual, actual.value, {}, split="train"), [actual])) == []


def test_another_precision_than_an_actual_row_states(actual):
    """MTEB doesn't say a precision; a row by hand may."""
    row = replace(actual, precision="float32")
    found = only(row, as_run(row, row.value - 0.2, {"dtype": "bfloat16", "precision": "fast"}))
    assert found.verdict == "not comparable"
    assert "published in float32, run in bfloat16 without a rounding interval" in found.reason
    assert only(
        row, as_run(row, row.value, {"dtype": "float16", "precision": "exact"})
    ).verdict == ("reproduced")


def length(query: int) -> dict:
    return {"max_length": {"query": query, "passage": 512}}


@pytest.mark.parametrize(
    ("model", "dataset", "facts", "reason"),
    [
        (
            "intfloat/e5-small-v2",
            "xquad/en",
            length(512),
            "published with query prompt 'query: ', run with ''; published with passage prompt "
            "'passage: ', run with ''",
        ),
        (
            "intfloat/e5-small-v2",
            "xquad/en",
            {"query_prompt": "query: ", "passage_prompt": "passage: ", **length(8)},
            "published with the model's own length, 512 tokens per query by its metadata, run "
            "with 8",
        ),
        (
            "intfloat/multilingual-e5-small",
            "beir/scifact",
            {"query_prompt": "query: ", "passage_prompt": "passage: ", **length(1024)},
            "published with at most 512 tokens per query, run with 1024",
        ),
        (
            "voyageai/voyage-3",
            "beir/scifact",
            {"query_prompt": "query: ", "passage_prompt": "", "stated": ["query_prompt"]},
            "published with the model's own query prompt, run with 'query: ' from the config",
        ),
        (
            "Alibaba-NLP/gte-Qwen2-7B-instruct",
            "beir/arguana",
            {
                "query_prompt": "Instruct: Retrieve text based on user query.\nQuery: ",
                **length(512),
            },
            "published with query prompt 'Instruct: Given a claim, find documents that refute the "
            "cla…', run with 'Instruct: Retrieve text based on user query.\\nQuery: '",
        ),
    ],
)
def test_other_actual_rows_know_their_models_prompts(model, dataset, facts, reason):
    rows = published.load(REGISTRY, [], [model], [dataset])
    rows = [r for r in rows if r.metric == "nDCG@10" and r.protocol == "mteb"]
    row = next(r for r in rows if r.dataset_revision)
    about = {"dataset_revision": row.dataset_revision[-1]}
    found = only(row, as_run(row, 0.1, about | facts))
    assert found.verdict == "not comparable"
    assert found.reason == reason


def test_precision_stated_by_both_and_no_interval_bars():
    found = only(ROW, scores(0.9, facts={"dtype": "bfloat16"}))
    assert found.verdict == "not comparable"
    assert found.reason.startswith("published in float32, run in bfloat16 without a rounding")
    interval = {"rounding_low": 0.89, "rounding_high": 0.91}
    found = only(ROW, scores(0.9, facts={"dtype": "bfloat16"}, entry=interval))
    assert found.verdict == "lower"
    exact = {"dtype": "float16", "precision": "exact"}
    assert only(ROW, scores(facts=exact)).verdict == "reproduced"


@pytest.mark.parametrize(
    ("row", "facts", "verdict"),
    [
        # Texts that were all read whole are the same under any length.
        ({}, {"max_length": {"passage": 256}, "truncated": {"passage": 0}}, "reproduced"),
        ({}, {"max_length": {"passage": 256}, "truncated": {"passage": 9}}, "not comparable"),
        ({}, {"max_length": {"passage": 1024}, "truncated": {"passage": 0}}, "not comparable"),
        ({"max_length_passage": None}, {"max_length": {"passage": 256}}, "reproduced"),
        ({"dimensions": 64}, {"dimensions": 64}, "reproduced"),
        ({"dimensions": 64}, {}, "not comparable"),
        ({}, {"dimensions": 384, "dimension": 384}, "reproduced"),
        ({"query_prompt": None}, {"query_prompt": "q: "}, "reproduced"),
        ({"query_prompt": None}, {"query_prompt": "q: ", "stated": ["query_prompt"]}, "not comp"),
        ({"query_prompt": ("a", "b")}, {"query_prompt": "b"}, "reproduced"),
        ({"query_prompt": ("query: ",)}, {"query_prompt": "query:"}, "reproduced"),
        ({"title": None}, {"title": "drop"}, "reproduced"),
    ],
)
def test_what_bars_and_what_does_not(row, facts, verdict):
    found = only(replace(ROW, **row), scores(facts=facts))
    assert found.verdict.startswith(verdict)


def test_what_the_publisher_does_not_say_is_said():
    bare = replace(
        ROW,
        **dict.fromkeys(("revision", "dataset_revision", "query_prompt", "passage_prompt")),
        **dict.fromkeys(("max_length_query", "max_length_passage", "title", "precision")),
    )
    assert only(bare, scores()).reason == (
        "the publisher doesn't say: model revision, dataset revision, query prompt, passage prompt,"
        " lengths, title rule, precision"
    )
    assert only(ROW, scores()).reason == ""


def test_runs_without_a_commit_are_remarked():
    words = "this run's revision is no commit, published for 8b3219a92973"
    for revision in (None, "name==1.0", "0123456789ab"):
        assert only(ROW, scores(revision=revision)).reason == words
    server = only(ROW, scores(revision=None, facts={"pinned": False}))
    assert server.reason == "not pinned: a server's model can change"
    assert only(ROW, scores(revision="8b3219a9" + "0" * 32)).verdict == "not comparable"
    assert only(replace(ROW, revision="8b3219a9"), scores()).verdict == "reproduced"


def test_all_reasons_are_given():
    facts = {"title": "drop", "max_length": {"query": 64, "passage": 256}}
    reason = only(replace(ROW, queries=9), scores(facts=facts)).reason
    assert reason.split("; ") == [
        "other queries: published over 9, run over 1185",
        "published with 512 tokens per query, run with 64",
        "published with 512 tokens per passage, run with 256",
        "published with title joined, run with text only",
    ]


def test_old_ties_are_said_beside_a_reciprocal_rank():
    rows = published.load(REGISTRY, [], [MINILM], ["xquad/en"])
    notes = {row.metric: row.note for row in rows}
    assert notes["RR@10"] == "mteb before 2.18.19 ordered ties of RR otherwise"
    assert notes["nDCG@10"] == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "xquad/de"},
        {"model_id": "org/model-1_5B"},
        {"split": "test"},
        {"metric": "R@100"},
    ],
)
def test_rows_about_something_else_give_no_verdict(changes):
    assert list(verdicts.compare(scores(), [replace(ROW, **changes)])) == []


def written(path: Path, *scored: dict) -> Path:
    found = [verdict for scores in scored for verdict in verdicts.compare(scores, [ROW])]
    path.write_text(verdicts.table(found))
    return path


@pytest.mark.parametrize(
    ("value", "queries", "words"),
    [
        (0.94357, 1185, None),
        (0.95, 1185, "xquad/en validation nDCG@10: measured 0.95, published 0.94357 ± 0.000505"),
        (0.90, 1185, "lower (mteb, some/repository@f4cc6c8 results/x.json)"),
        (0.94357, 9, "no published number was reproduced"),
    ],
)
def test_failures_are_the_numbers_that_were_not_reproduced(tmp_path, value, queries, words):
    path = written(tmp_path / "verdicts.tsv", scores(value, queries=queries))
    with open(path, encoding="utf-8", newline="") as file:
        (line,) = csv.DictReader(file, delimiter="\t")
    assert list(line) == verdicts.VERDICT_COLUMNS
    assert (line["published"], line["measured"]) == ("0.94357", f"{value:.6g}")
    lines = verdicts.failures(path)
    assert any(words in line for line in lines) if words else lines == []


def test_within_rounding_counts_as_reproduced(tmp_path):
    entry = {"rounding_low": 0.94, "rounding_high": 0.96}
    path = written(tmp_path / "verdicts.tsv", scores(0.95, entry=entry))
    assert "\treproduced within rounding\t" in path.read_text()
    assert verdicts.failures(path) == []


def test_unknown_rounding_is_no_interval():
    entry = {"rounding_low": None, "rounding_high": None}
    assert only(ROW, scores(0.95, entry=entry)).verdict == "higher"


def test_no_scores_give_an_empty_table(tmp_path):
    path = written(tmp_path / "verdicts.tsv")
    assert path.read_text() == "\t".join(verdicts.VERDICT_COLUMNS) + "\n"
