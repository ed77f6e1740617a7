"""Settings to try where a published number isn't reproduced, and the one that matches."""

from dataclasses import replace

from embedrepro.evaluation import suspects, verdicts
from embedrepro.evaluation.published import Published

ROW = Published(
    model_id="intfloat/e5-small-v2",
    revision="dca8b1a9dae0d4575df2bf423a5edb485a431236",
    dataset="beir/scifact",
    split="test",
    metric="nDCG@10",
    value=0.68848,
    protocol="mteb",
    source="x",
    query_prompt=("query: ",),
    passage_prompt=("passage: ",),
    title="join",
    queries=300,
)
REGISTRY = {"revision": "a" * 40, "query_prompt": "query: ", "passage_prompt": "passage: "}


def scores(**facts) -> dict:
    alike = {"query_prompt": "", "passage_prompt": "", "title": "join", "dtype": "float32"}
    alike |= {"max_length": {"query": 256, "passage": 256}}
    same = {key: getattr(ROW, key) for key in ("model_id", "revision", "dataset", "split")}
    return same | {"queries": 300, "facts": alike | facts, "protocols": {}}


def test_each_setting_is_named_and_tried_once():
    found = suspects.suspects(ROW, scores(), REGISTRY)
    names = [suspect.name for suspect in found]
    assert names == [
        "mteb's prompts for SciFact",
        "the query prompt before passages too",
        "the registry's revision aaaaaaaaaaaa",
        "512 tokens per query, 512 per passage",
        "128 tokens per query, 128 per passage",
        "text only",
        "float16 alone",
        "bfloat16 alone",
        "all that the publisher states",
    ]
    assert found[0].model == {"query_prompt": "query: ", "passage_prompt": "passage: "}
    assert found[2].model == {"revision": "a" * 40}
    assert found[3].model == {"max_length": {"query": 512, "passage": 512}}
    assert found[5].dataset == {"title": "drop"}
    assert found[-1].model["revision"] == ROW.revision
    places = [(suspect.model, suspect.dataset) for suspect in found]
    assert all(places.count(place) == 1 for place in places)


def test_what_the_run_had_is_not_tried():
    had = scores(**{"query_prompt": "query: ", "passage_prompt": "passage: ", "dimensions": 64})
    names = [suspect.name for suspect in suspects.suspects(ROW, had, REGISTRY)]
    assert names[0] == "no prompts"
    assert not any("mteb's prompts" in name for name in names)
    assert "whole vectors" in names
    assert "256 tokens per query, 256 per passage" not in names


def test_a_model_that_nobody_knows_still_has_suspects():
    row = replace(ROW, model_id="org/own", revision=None, dataset="mine", title=None)
    row = replace(row, query_prompt=None, passage_prompt=None)
    names = [suspect.name for suspect in suspects.suspects(row, scores(query_prompt="q: "), {})]
    assert names[:2] == ["no prompts", "the query prompt before passages too"]
    assert "all that the publisher states" not in names  # nothing


def test_the_cheapest_dataset_is_chosen():
    verdict = verdicts.Verdict(
        *("a/b", "beir/nq", "test", "nDCG@10", 0.5, 0.4, -0.1, 0.001, "lower", "x", "mteb", "")
    )
    small = replace(verdict, dataset="beir/scifact")
    alike = replace(verdict, dataset="xquad/en", verdict="reproduced")
    recall = replace(small, metric="R@100", delta=0.3, verdict="higher")
    documents = {"beir/nq": 2_681_468, "beir/scifact": 5183, "xquad/en": 240}
    assert suspects.cheapest([verdict, small, alike, recall], documents) == recall
    assert suspects.cheapest([alike], documents) is None


def test_the_setting_that_matches_is_named():
    tried = suspects.suspects(ROW, scores(), REGISTRY)
    measured = [(suspect, {"value": 0.60}) for suspect in tried]
    measured[0] = (tried[0], {"value": 0.68850})
    measured[3] = (tried[3], {"value": 0.69, "rounding_low": 0.6885, "rounding_high": 0.7})
    found = suspects.matches(ROW, measured, 300)
    assert [match.verdict for match in found] == ["reproduced", "reproduced within rounding"]
    assert found[0].sentence(ROW) == (
        "intfloat/e5-small-v2 beir/scifact test nDCG@10: with mteb's prompts for SciFact measured "
        "0.68850, published 0.68848: reproduced"
    )
