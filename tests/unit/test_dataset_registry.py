"""The registry of public benchmarks, and the experiments that name its datasets."""

import json
from pathlib import Path

import pytest
import yaml
from embedrepro.datasets.local import corpus_identity, split_identity
from embedrepro.datasets.prepare import open_source
from embedrepro.datasets.registry import (
    Estimate,
    estimate,
    expand,
    read_registry,
    resolve,
    resolve_entry,
)
from embedrepro.datasets.spec import CORPUS, SPLIT
from embedrepro.errors import UserError
from embedrepro.evaluation.protocols import PROTOCOLS
from embedrepro.models.facts_table import schema_properties
from embedrepro.plan.config import read_experiment
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


def open_and_return(source):
    open_source(source)
    return source


def splits_of(entry):
    return entry["splits"].keys()


@pytest.mark.parametrize("name", KNOWN)
def test_every_entry_can_be_prepared(name):
    entry = KNOWN[name]
    dataset = resolve_entry(name, KNOWN)
    validate({"name": name, "source": dataset.source, "title": dataset.title}, CORPUS, "spec")
    assert corpus_identity(open_and_return(dataset.source))
    for ours, theirs in dataset.splits.items():
        spec = {"name": name, "split": ours, "source": dataset.source, "theirs": theirs}
        validate(spec, SPLIT, "spec")
        assert split_identity(dataset.source, theirs)
        if isinstance(theirs, dict):
            open_source(theirs["source"])
    assert dataset.documents == entry["documents"] and dataset.queries.keys() == splits_of(entry)
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
        ("SciFcat", "knows no dataset 'SciFcat' (did you mean 'SciFact'?)"),
        ("", "knows no dataset ''"),
    ],
)
def test_unknown_names_are_told_the_nearest(name, message):
    with pytest.raises(UserError) as caught:
        expand(name, KNOWN)
    assert message in str(caught.value)


def named(*entries):
    """{name: splits} of what a config's list means."""
    return {d.name: list(d.splits) for d in resolve(entries, KNOWN)}


FORUMS = "android english gaming gis mathematica physics programmers stats tex unix webmasters"
FORUMS = [f"cqadupstack/{name}" for name in [*FORUMS.split(), "wordpress"]]


@pytest.mark.parametrize("entry", ["SciFact", {"name": "SciFact", "instruction": "Find"}])
def test_a_task_of_mteb_is_the_dataset_that_it_is_made_from(entry):
    (dataset,) = resolve([entry], KNOWN)
    assert dataset.name == "beir/scifact" and dataset.source == KNOWN["beir/scifact"]["source"]
    assert dataset.mteb == {"test": {"task": "SciFact", "split": "test"}}
    expected = "Find" if isinstance(entry, dict) else KNOWN["beir/scifact"]["instruction"]
    assert dataset.instruction == expected


def test_tasks_of_mteb_name_splits_languages_and_groups():
    assert named("TRECDL2019", "MSMARCO") == {"msmarco-passage": ["dl19", "dev"]}
    assert named("XQuADRetrieval/en") == {"xquad/en": ["validation"]}
    assert (
        named("XQuADRetrieval")
        == named("xquad")
        == {name: ["validation"] for name in KNOWN if name.startswith("xquad/")}
    )
    assert named("MultiLongDocRetrieval/zh") == {"mldr/zh": ["dev", "test"]}
    assert list(named("CQADupstackRetrieval")) == list(named("cqadupstack")) == FORUMS


def test_benchmarks_are_written_out():
    thirteen = set(n for n in KNOWN if n.startswith("beir/")) - {"beir/webis-touche2020-v3"}
    assert len(thirteen) == 13
    assert named("beir").keys() == thirteen | set(FORUMS)
    first = named("MTEB(eng, v1)")
    assert first.keys() == thirteen | set(FORUMS) | {"msmarco-passage"}
    assert first["msmarco-passage"] == ["dev"]
    assert list(named("MTEB(cmn, v1)")) == [n for n in KNOWN if n.startswith("cmteb/")]
    second = {d.name: d for d in resolve(["MTEB(eng, v2)"], KNOWN)}
    assert len(second) == 10
    fever = second["hard-negatives/fever"]
    assert fever.mteb["test"]["task"] == "FEVERHardNegatives"
    assert fever.instruction == "Retrieve text based on user query."
    assert second["beir/arguana"].instruction == KNOWN["beir/arguana"]["instruction"]
    assert named("beir/scifact", "beir", "SciFact").keys() == named("beir").keys()


def test_every_benchmark_can_be_resolved():
    for name in [*KNOWN.benchmarks, *KNOWN.tasks]:
        assert resolve([name], KNOWN)


def test_a_list_of_splits_means_the_registrys():
    """TREC DL 2019 is the source's `test`, counts from grade 2, and 2020 is of another source."""
    (dataset,) = resolve([{"name": "msmarco-passage", "splits": ["dl19", "dl20"]}], KNOWN)
    assert dataset.splits == {"dl19": "test", "dl20": KNOWN["msmarco-passage"]["splits"]["dl20"]}
    assert dataset.thresholds == {"dl19": 2, "dl20": 2} and dataset.queries == {
        "dl19": 43,
        "dl20": 54,
    }
    assert dataset == resolve(["msmarco-passage/dl19", "msmarco-passage/dl20"], KNOWN)[0]
    mixed = [{"name": "msmarco-passage", "splits": ["dl19"]}, "msmarco-passage/dl20"]
    assert resolve(mixed, KNOWN) == [dataset]


def test_splits_may_go_by_other_names():
    entry = {"name": "msmarco-passage", "splits": {"trec": "dl19", "same": "test", "d": "dev"}}
    (dataset,) = resolve([entry], KNOWN)
    assert dataset.splits == {"trec": "test", "same": "test", "d": "dev"}
    assert dataset.thresholds == {"trec": 2, "same": 2, "d": 1}


def test_thresholds_are_a_number_or_by_split():
    def thresholds(given):
        entry = {"name": "msmarco-passage", "relevance_threshold": given}
        return resolve([entry], KNOWN)[0].thresholds

    assert thresholds(3) == {"dev": 3, "dl19": 3, "dl20": 3}
    assert thresholds({"dl19": 1}) == {"dev": 1, "dl19": 1, "dl20": 2}


OWN = {"name": "mine", "source": {"beir": "/data"}}


def test_a_dataset_of_ones_own():
    (dataset,) = resolve([OWN], KNOWN)
    assert dataset.splits == {"test": "test"} and dataset.thresholds == {"test": 1}
    assert (dataset.title, dataset.instruction, dataset.documents) == ("join", None, None)
    (dataset,) = resolve([OWN | {"splits": {"a": "dev"}, "relevance_threshold": 2}], KNOWN)
    assert dataset.splits == {"a": "dev"} and dataset.thresholds == {"a": 2}


def test_a_known_dataset_from_a_folder_keeps_what_is_known_of_it():
    """Its instruction and thresholds; not the size, and split names are the folder's."""
    source = {"beir": "/data"}
    (dataset,) = resolve([{"name": "msmarco-passage", "source": source}], KNOWN)
    known = KNOWN["msmarco-passage"]
    assert dataset.source == source and dataset.instruction == known["instruction"]
    assert dataset.splits == known["splits"] and dataset.documents is None
    entry = {"name": "msmarco-passage", "source": source, "splits": ["dl19", "mine"]}
    (dataset,) = resolve([entry], KNOWN)
    assert dataset.splits == {"dl19": "dl19", "mine": "mine"}
    assert dataset.thresholds == {"dl19": 2, "mine": 1}
    (dataset,) = resolve([{"name": "SciFact", "source": source}], KNOWN)
    assert dataset.name == "SciFact"  # a name of one's own


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            [{"name": "msmarco-passage", "splits": ["dl18"]}],
            "'msmarco-passage' has no split 'dl18' (did you mean 'dl19'?); it has dev, dl19, dl20",
        ),
        (
            [{"name": "beir/scifact", "relevance_threshold": {"tset": 2}}],
            "relevance_threshold names the split 'tset' (did you mean 'test'?); it has test",
        ),
        (
            ["beir/scifact", {"name": "beir/scifact", "instruction": "Find"}],
            "'beir/scifact' stands there twice, with instruction: Given a scientific claim, "
            "retrieve documents that support o… and instruction: Find; leave one, or give one of",
        ),
        (
            ["beir/scifact", {"name": "beir/scifact", "title": "drop"}],
            "'beir/scifact' stands there twice, with title: join and title: drop; leave one",
        ),
        (
            ["beir/scifact", {"name": "beir/scifact", "relevance_threshold": 2}],
            "stands there twice, with thresholds.test: 1 and thresholds.test: 2; leave one",
        ),
        (
            ["beir/scifact", {"name": "beir/scifact", "shards": 2}],
            "stands there twice, with shards: nothing and shards: 2",
        ),
        (
            [OWN, OWN | {"source": {"beir": "/other"}}],
            "'mine' stands there twice, with source: {'beir': '/data'} and source: {'beir': '/oth",
        ),
        ([OWN | {"name": "a.b"}, OWN | {"name": "a_b"}], "'a.b' and 'a_b' differ but share the"),
        ([OWN | {"name": "A"}, OWN | {"name": "a"}], "'A' and 'a' differ but share the name a"),
        ([{"name": "mine"}], "knows no dataset 'mine'"),
        ([{"name": "mine", "source": {}}], "one of your own needs a source: {beir: folder}"),
        ([OWN | {"source": {"revision": "1"}}], "'mine': its source has revision; give exactly"),
        ([OWN | {"source": {"beir": "a", "hub": "b"}}], "its source has beir, hub; give exactly"),
        (
            [OWN | {"source": {"hub": "mteb/x", "revision": "main"}}],
            "'mine': revision 'main' can move; set revision: to the full commit hash",
        ),
        ([OWN | {"source": {"hub": "mteb/x"}}], "no revision is known for mteb/x; set revision:"),
        (
            [{"name": "xquad/en", "shards": 241}],
            "config.datasets: 'xquad/en': shards: 241 for 240 passages; give a number from 1 to",
        ),
        (["MTEB(eng, v2)", "hard-negatives/fever"], "'hard-negatives/fever' stands there twice"),
    ],
)
def test_what_can_not_be_meant_is_told_in_a_line(entries, message):
    with pytest.raises(UserError) as caught:
        resolve(entries, KNOWN)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_sizes_are_the_registrys_or_the_files(tmp_path):
    (dataset,) = resolve(["msmarco-passage"], KNOWN)
    assert estimate(dataset) == Estimate(8_841_823, KNOWN["msmarco-passage"]["characters"], True)
    lines = "".join(json.dumps({"_id": str(i), "text": "x"}) + "\n" for i in range(7))
    (tmp_path / "corpus.jsonl").write_text(lines)
    (dataset,) = resolve([OWN | {"source": {"beir": str(tmp_path)}, "shards": 7}], KNOWN)
    assert estimate(dataset) == Estimate(7, len(lines), True)
    (dataset,) = resolve([OWN | {"source": {"beir": str(tmp_path)}, "shards": 8}], KNOWN)
    with pytest.raises(UserError, match="'mine': shards: 8 for 7 passages; give a number from 1"):
        estimate(dataset)
    (tmp_path / "corpus.jsonl").unlink()
    (tmp_path / "corpus.jsonl.gz").write_bytes(b"x" * 1000)
    assert estimate(dataset) == Estimate(6, 3000, False)
    (dataset,) = resolve([OWN | {"source": {"ir_datasets": "some/thing"}}], KNOWN)
    assert not estimate(dataset).known


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
    config = yaml.safe_load((REPOSITORY / "experiments" / f"{name}.yaml").read_text())
    models = yaml.safe_load((REPOSITORY / "rules" / "registry" / "models.yaml").read_text())
    given = {model["id"]: model for model in config["models"]}
    closed = schema("config.schema.yaml")
    closed["$defs"]["model"]["properties"] |= schema_properties("user")
    experiment = read_experiment(config, closed, models["models"], KNOWN, str, str)
    assert experiment.name == name
    for dataset in experiment.datasets:
        assert (
            dataset.documents
            and dataset.characters
            and dataset.mteb.keys() == dataset.splits.keys()
        )
    for id_, model in given.items():
        if "bm25" not in model:
            assert model["revision"] == models["models"][id_]["revision"]


def test_the_experiment_of_issue_1409():
    config = yaml.safe_load((REPOSITORY / "experiments" / "msmarco-gte-qwen2.yaml").read_text())
    entry, _ = expand(config["datasets"][0], KNOWN)
    task = "Given a web search query, retrieve relevant passages that answer the query"
    assert entry["instruction"] == task
    assert config["models"][0]["query_prompt"] == "Instruct: {task}\nQuery: "
    assert set(config["evaluate"]["metrics"]) == {"nDCG@10", "R@100", "R@1000", "RR@10"}
