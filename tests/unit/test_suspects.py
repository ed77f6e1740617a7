"""Settings to try where a published number isn't reproduced, and the one that matches."""

from dataclasses import replace

import pytest
from embedrepro.evaluation import suspects
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
    entry = {"value": facts.pop("value", 0.65), "rounding_low": None, "rounding_high": None}
    scored = {"model": "e5", "queries": 300, "protocols": {"mteb": {"nDCG@10": entry}}}
    return same | scored | {"facts": alike | facts}


def test_each_setting_is_named_and_tried_once():
    found = suspects.suspects(ROW, scores(), REGISTRY, ["pooling", "max_length"])
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
        "the model's own lengths",
        "the model's own pooling",
        "all that the publisher states",
    ]
    assert found[0].model == {"query_prompt": "query: ", "passage_prompt": "passage: "}
    assert found[2].model == {"revision": "a" * 40, "sha256": None, "mirrors": None}
    assert found[3].model == {"max_length": {"query": 512, "passage": 512}}
    assert found[5].dataset == {"title": "drop"}
    assert found[-1].model["revision"] == ROW.revision
    places = [(suspect.model, suspect.dataset) for suspect in found]
    assert all(places.count(place) == 1 for place in places)


def test_what_the_run_had_is_not_tried():
    had = scores(**{"query_prompt": "query: ", "passage_prompt": "passage: ", "dimensions": 64})
    names = [suspect.name for suspect in suspects.suspects(ROW, had, REGISTRY, ["query_prompt"])]
    assert names[0] == "no prompts"
    assert not any("mteb's prompts" in name for name in names)
    assert "the model's own prompts" in names
    assert "whole vectors" in names
    assert "256 tokens per query, 256 per passage" not in names


def test_where_no_text_was_cut_only_shorter_lengths_are_tried():
    had = scores(truncated={"query": 0, "passage": 0})
    names = [suspect.name for suspect in suspects.suspects(ROW, had, REGISTRY)]
    assert [n for n in names if "tokens" in n] == ["128 tokens per query, 128 per passage"]


def test_a_number_further_off_than_rounding_moves_one_has_no_precision_tried():
    near, far = ([s.name for s in suspects.suspects(ROW, scores(value=v), {})] for v in (0.65, 0.6))
    assert [name for name in near if name not in far] == ["float16 alone", "bfloat16 alone"]


def test_a_revision_that_is_not_there_is_no_part_of_all_that_is_stated():
    found = suspects.suspects(ROW, scores(), REGISTRY, fetched=lambda revision: False)
    assert "revision" not in found[-1].model


def test_a_model_that_nobody_knows_still_has_suspects():
    row = replace(ROW, model_id="org/own", revision=None, dataset="mine", title=None)
    row = replace(row, query_prompt=None, passage_prompt=None)
    names = [suspect.name for suspect in suspects.suspects(row, scores(query_prompt="q: "), {})]
    assert names[:2] == ["no prompts", "the query prompt before passages too"]
    assert "all that the publisher states" not in names  # nothing


def test_another_protocol_is_a_suspect():
    scored = scores() | {"protocols": {"trec_eval": {}}}
    assert suspects.suspects(ROW, scored, {})[0] == suspects.Suspect("the mteb protocol")


@pytest.mark.parametrize(
    ("value", "facts", "asked"),
    [
        (0.60, {"query_prompt": "query: ", "passage_prompt": "passage: "}, True),  # lower
        (0.60, {}, True),  # not comparable, and off
        (0.68848, {}, False),  # not comparable, but it is the number
        (0.68848, {"query_prompt": "query: ", "passage_prompt": "passage: "}, False),
    ],
)
def test_what_is_asked_about(value, facts, asked):
    found = suspects.questions([scores(value=value, **facts)], [ROW])
    assert [question.row for question in found] == ([ROW] if asked else [])


def test_a_number_of_another_revision_is_not_asked_about_where_one_was_reproduced():
    alike = scores(query_prompt="query: ", passage_prompt="passage: ", value=0.68848)
    other = replace(ROW, revision="b" * 40, value=0.7)
    assert suspects.questions([alike], [ROW, other]) == []
    assert [q.row for q in suspects.questions([alike], [other])] == [other]


def question(model="e5", **changes) -> suspects.Question:
    row = replace(ROW, **changes)
    scored = scores() | {"model": model, "dataset": row.dataset}
    (found,) = suspects.questions([scored], [row])
    return found


def test_the_cheapest_dataset_of_each_model_is_chosen():
    large, small = question(dataset="beir/nq"), question()
    other = question("other", dataset="beir/nq")
    documents = {"beir/nq": 2_681_468, "beir/scifact": 5183, "xquad/en": 240}
    assert suspects.cheapest([large, small, other], documents) == [small, other]
    assert suspects.cheapest([], documents) == []


def test_the_setting_that_matches_is_named():
    asked = question()
    tried = suspects.suspects(ROW, scores(), REGISTRY)
    near = {"value": 0.69, "rounding_low": 0.6885, "rounding_high": 0.7}
    values = {0: {"value": 0.68850}, 3: near}
    found = [
        suspects.answer(
            asked,
            suspect,
            {"queries": 300, "protocols": {"mteb": {"nDCG@10": values.get(i, {"value": 0.60})}}},
        )
        for i, suspect in enumerate(tried)
    ]
    found.append(suspects.answer(asked, tried[2], "not tried: that revision is not in the store"))
    found.append(suspects.answer(asked, tried[2], "no space left"))
    words = [answer.verdict for answer in found]
    assert words[0] == "reproduced"
    assert words[3] == "reproduced within rounding"
    assert set(words[4:-2]) == {"lower"}
    assert words[-2:] == ["not tried", "could not be made"]
    assert list(suspects.told(found)) == [
        "why: intfloat/e5-small-v2 (e5) on beir/scifact test",
        "  nDCG@10 published 0.68848, measured 0.65000: reproduced with mteb's prompts for "
        "SciFact (0.68850)",
    ]
    (header, first, *rest) = suspects.table(found).splitlines()
    assert header.split("\t") == suspects.ANSWER_COLUMNS
    assert first.split("\t")[4:] == [
        *("nDCG@10", "0.68848", "0.65", "mteb's prompts for SciFact", "0.6885", "2e-05"),
        *("reproduced", ""),
    ]
    assert rest[-2].endswith("not tried\tthat revision is not in the store")
    (_, line) = suspects.told(found[4:])
    assert line.endswith(
        "none of 5 settings gives it; nearest: 128 tokens per query, 128 per passage (0.60000)"
    )
