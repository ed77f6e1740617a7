"""The registry of public benchmarks, and the experiments that name its datasets."""

import json
from pathlib import Path

import pytest
import yaml
from embedrepro.datasets.prepare import open_source, open_split
from embedrepro.datasets.registry import expand, read_registry
from embedrepro.datasets.spec import SPEC
from embedrepro.errors import UserError
from embedrepro.evaluation.protocols import PROTOCOLS
from embedrepro.experiment import Experiment
from embedrepro.schema import validate
from jsonschema import Draft202012Validator

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared"
FILE = REPOSITORY / "rules" / "registry" / "datasets.yaml"
KNOWN = read_registry(FILE)
MINE = ["msmarco-gte-qwen2", "mteb-minilm", "beir-small", "miracl-zh"]


def schema(name):
    return yaml.safe_load((REPOSITORY / "rules" / "schemas" / name).read_text())


def test_the_file_fits_its_closed_schema():
    closed = schema("datasets.schema.json")
    Draft202012Validator.check_schema(closed)
    Draft202012Validator(closed).validate(yaml.safe_load(FILE.read_text()))
    entry = {"type": "object", **closed["$defs"]["facts"], "$defs": closed["$defs"]}
    entry["properties"] = entry["properties"] | {"name": True}
    entry["required"] = ["name", "family", "source", "splits", "title", "documents", "counts"]
    entry["required"] += ["shards", "languages", "ignore_identical_ids", "relevance_threshold"]
    for known in KNOWN.values():
        Draft202012Validator(entry).validate(known)


@pytest.mark.parametrize(
    ("place", "key"), [((), "beirr"), (("beir",), "titel"), (("beir", "datasets", "fiqa"), "shard")]
)
def test_a_misspelt_key_does_not_fit(place, key):
    content = yaml.safe_load(FILE.read_text())
    target = content
    for part in place:
        target = target[part]
    target[key] = 1
    assert list(Draft202012Validator(schema("datasets.schema.json")).iter_errors(content))


@pytest.mark.parametrize("name", KNOWN)
def test_every_entry_can_be_prepared(name):
    entry = KNOWN[name]
    spec = {"name": name, **{key: entry[key] for key in ("source", "splits", "title")}}
    validate(spec, SPEC, "spec")
    source = open_source(entry["source"])
    for theirs in entry["splits"].values():
        open_split(source, theirs)
    splits = set(entry["splits"])
    assert set(entry["counts"]) == splits and set(entry["mteb"]) == splits
    assert "{" not in json.dumps(
        [entry["source"], entry["mteb"], entry.get("ir_datasets")]
    ).replace('{"', "")
    assert entry["documents"] / entry["shards"] <= 150_000


@pytest.mark.parametrize("name", KNOWN)
def test_protocols_and_registry_agree_on_identical_ids(name):
    entry = KNOWN[name]
    for protocol, drops in entry["identical_ids"].items():
        assert PROTOCOLS[protocol].drops(name, entry["ignore_identical_ids"]) == drops, protocol


@pytest.mark.parametrize(
    ("name", "dataset", "splits"),
    [
        ("beir/scifact", "beir/scifact", ["test"]),
        ("beir/scifact/test", "beir/scifact", ["test"]),
        ("msmarco-passage", "msmarco-passage", ["dev", "dl19", "dl20"]),
        ("msmarco-passage/dl19", "msmarco-passage", ["dl19"]),
        ("xquad/en", "xquad/en", ["validation"]),
        ("mldr/zh", "mldr/zh", ["dev", "test"]),
        ("cmteb/T2Retrieval", "cmteb/T2Retrieval", ["dev"]),
    ],
)
def test_names_expand(name, dataset, splits):
    entry, wanted = expand(name, KNOWN)
    assert entry["name"] == dataset and wanted == splits


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("beir/scfact", "knows no dataset 'beir/scfact' (did you mean 'beir/scifact'?)"),
        ("msmarco", "knows no dataset 'msmarco' (did you mean 'msmarco-passage'?)"),
        ("msmarco-passage/dl18", "has no split 'dl18'; it has dev, dl19, dl20"),
        ("xquad/en/test", "dataset xquad/en has no split 'test'; it has validation"),
        ("xquad", "'xquad' is a family of datasets; name some of xquad/ar, xquad/de"),
        ("", "knows no dataset ''"),
    ],
)
def test_unknown_names_are_told_the_nearest(name, message):
    with pytest.raises(UserError) as caught:
        expand(name, KNOWN)
    assert message in str(caught.value)


def test_the_languages_of_a_family_are_filled_in():
    entry = KNOWN["xquad/zh"]
    assert (
        entry["source"]["corpus"] == "zh-corpus" and entry["mteb"]["validation"]["subset"] == "zh"
    )
    assert KNOWN["miracl/zh"]["ir_datasets"] == {"dev": "miracl/zh/dev"}


def test_facts_are_those_that_were_read():
    """Pins and counts equal the facts file's, one by one."""
    if not (SHARED / "data" / "datasets.yaml").is_file():
        pytest.skip("needs ../shared/data/datasets.yaml")
    facts = yaml.safe_load((SHARED / "data" / "datasets.yaml").read_text())
    read = {f"beir/{n}": f for n, f in facts["beir"]["datasets"].items()}
    read |= {f"cqadupstack/{n}": f for n, f in facts["cqadupstack"]["datasets"].items()}
    read |= {f"cmteb/{n}": f for n, f in facts["cmteb_retrieval"]["datasets"].items()}
    for family, group in (
        ("miracl", facts["miracl"]["full"]),
        ("miracl-hard-negatives", facts["miracl"]["hard_negatives"]),
        ("mldr", facts["mldr"]),
        ("xquad", facts["xquad"]),
    ):
        for subset in group["subsets"]:
            stats = {split: part[subset] for split, part in group["per_subset"].items()}
            read[f"{family}/{subset}"] = group | {"stats": stats}
    assert len(read) == 14 + 12 + 8 + 18 + 18 + 13 + 12
    for name, fact in read.items():
        entry = KNOWN[name]
        assert (entry["source"]["hub"], entry["source"]["revision"]) == (
            fact["hub_path"],
            fact["revision"],
        )
        assert entry["identical_ids"]["mteb"] == fact["mteb_ignore_identical_ids"]
        assert list(entry["splits"]) == fact["eval_splits"]
        for split, stats in fact["stats"].items():
            assert entry["documents"] == stats["n_docs"]
            counts = {"queries": stats["n_queries"], "relevant": stats["n_qrels_nonzero"]}
            assert entry["counts"][split] == counts
            assert entry["mteb"][split]["task"] == fact["mteb_task"]


def test_ir_datasets_ids_exist():
    import ir_datasets

    for entry in KNOWN.values():
        for id_ in entry.get("ir_datasets", {}).values():
            dataset = ir_datasets.load(id_)
            assert dataset.has_docs() and dataset.has_queries() and dataset.has_qrels()


@pytest.mark.parametrize("name", MINE)
def test_experiments_are_valid(name):
    config = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    config |= yaml.safe_load((REPOSITORY / "experiments" / f"{name}.yaml").read_text())
    models = yaml.safe_load((REPOSITORY / "rules" / "registry" / "models.yaml").read_text())
    models = models.get("models", models)
    experiment = Experiment(
        config, schema("config.schema.yaml"), models, KNOWN, expand, lambda folder: "0"
    )
    assert experiment.name == name
    for model in config["models"]:
        if "bm25" not in model:
            assert model["revision"] == models[model["id"]]["revision"]


def test_the_experiment_of_issue_1409():
    config = yaml.safe_load((REPOSITORY / "experiments" / "msmarco-gte-qwen2.yaml").read_text())
    entry, _ = expand(config["datasets"][0], KNOWN)
    task = "Given a web search query, retrieve relevant passages that answer the query"
    assert entry["instruction"] == task
    assert config["models"][0]["query_prompt"] == "Instruct: {task}\nQuery: "
    assert set(config["evaluate"]["metrics"]) == {"nDCG@10", "R@100", "R@1000", "RR@10"}
