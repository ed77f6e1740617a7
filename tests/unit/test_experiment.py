"""From a config to keys and specs: what changes a key, and what a mistake is told."""

import copy

import pytest
import yaml
from embedrepro.datasets.registry import expand
from embedrepro.errors import UserError
from embedrepro.experiment import Experiment, absolute_paths
from helpers import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

SCHEMA = yaml.safe_load((REPOSITORY / "rules/schemas/config.schema.yaml").read_text())
COMMIT = "0123456789abcdef0123456789abcdef01234567"
KNOWN_MODELS = {"Org/Known-1.5B": {"revision": COMMIT, "pooling": "mean"}}
KNOWN_DATASETS = {
    "beir/scifact": {
        "name": "beir/scifact",
        "source": {"hub": "mteb/scifact", "revision": COMMIT},
        "splits": {"test": "test"},
        "instruction": "Find evidence",
    },
    "msmarco-passage": {
        "name": "msmarco-passage",
        "source": {"hub": "mteb/msmarco", "revision": COMMIT},
        "splits": {"dev": "dev", "dl19": "test"},
        "relevance_threshold": {"dev": 1, "dl19": 2},
    },
}


def experiment(**changes):
    config = {
        "experiment": "t",
        "models": [{"id": "Org/Known-1.5B"}],
        "datasets": ["beir/scifact"],
    }
    return Experiment(
        config | changes, SCHEMA, KNOWN_MODELS, KNOWN_DATASETS, expand, lambda path: f"of {path}"
    )


def keys(built, model="Org__Known-1_5B", dataset="beir__scifact"):
    row = built.models[model], built.datasets[dataset]
    return {
        "source": row[0].source_key,
        "stage": row[0].stage_key,
        "corpus": built.corpus_key(*row),
        "query": built.query_key(*row),
        "hits": built.hits_key(*row),
    }


def changed(before, after):
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("settings", "new"),
    [
        ({"query_prompt": "q: "}, {"query", "hits"}),
        ({"passage_prompt": "p: "}, {"corpus", "hits"}),
        ({"max_length": {"query": 64}}, {"query", "hits"}),
        ({"max_length": 64}, {"corpus", "query", "hits"}),
        ({"dtype": "float16"}, {"corpus", "query", "hits"}),
        ({"pooling": "cls"}, {"stage", "corpus", "query", "hits"}),
        ({"trust_remote_code": True}, {"stage", "corpus", "query", "hits"}),
        ({"revision": COMMIT[::-1]}, {"source", "stage", "corpus", "query", "hits"}),
        ({"mirrors": [{"wheel": "other==1.0"}]}, set()),
    ],
)
def test_a_setting_changes_the_keys_of_what_it_changes(settings, new):
    after = experiment(models=[{"id": "Org/Known-1.5B", **settings}])
    assert changed(keys(experiment()), keys(after)) == new


def test_what_changes_no_vector_changes_no_key():
    dataset = {"name": "beir/scifact", "shards": 7}
    assert changed(keys(experiment()), keys(experiment(datasets=[dataset]))) == set()
    evaluate = {"metrics": ["R@5"]}
    assert changed(keys(experiment()), keys(experiment(evaluate=evaluate))) == set()
    assert changed(keys(experiment()), keys(experiment(retrieve={"top_k": 5}))) == {"hits"}


def test_a_folder_counts_by_its_files_wherever_it_lies():
    def at(path, digest):
        config = {"experiment": "t", "datasets": ["beir/scifact"]}
        config["models"] = [{"id": "m", "source": {"path": path}}]
        built = Experiment(config, SCHEMA, {}, KNOWN_DATASETS, expand, lambda _: digest)
        return keys(built, model="m")

    assert at("/a", "1") == at("/b", "1")
    assert at("/a", "1") != at("/a", "2")


def test_splits_of_one_corpus_are_one_dataset():
    built = experiment(datasets=["msmarco-passage/dl19", "msmarco-passage/dev"])
    (dataset,) = built.datasets.values()
    assert dataset.splits == ("dl19", "dev")
    model = built.models["Org__Known-1_5B"]
    assert built.score_spec(model, dataset, "dl19")["relevance_threshold"] == 2
    assert built.score_spec(model, dataset, "dev")["relevance_threshold"] == 1


MODEL = {"id": "Org/Known-1.5B"}
MISTAKES = {
    "unknown key": ({"modles": []}, ["modles", "did you mean 'models'"]),
    "unknown model key": ({"models": [{"id": "a", "poling": "cls"}]}, ["poling", "'pooling'"]),
    "wrong value": ({"models": [MODEL | {"pooling": "max"}]}, ["pooling", "cls, mean"]),
    "wrong type": ({"retrieve": {"top_k": "many"}}, ["top_k", "many", "whole number"]),
    "out of range": ({"retrieve": {"top_k": 0}}, ["top_k", "1 to 10000"]),
    "no models": ({"models": []}, ["models"]),
    "model without id": ({"models": [{"alias": "x"}]}, ["'id' is missing"]),
    "no revision": ({"models": [{"id": "Org/New"}]}, ["Org/New", "40 lowercase hex"]),
    "moving revision": ({"models": [MODEL | {"revision": "main"}]}, ["'main' can move"]),
    "two sources": (
        {"models": [MODEL | {"source": {"path": "a", "demo": 1}}]},
        ["one of hub, wheel, wheels, path and demo"],
    ),
    "same slug": (
        {"models": [{"id": "a.b", "source": {"demo": 1}}, {"id": "a_b", "source": {"demo": 1}}]},
        ["a.b", "a_b", "alias"],
    ),
    "id leaves the store": ({"models": [{"id": "../x", "source": {"demo": 1}}]}, [".."]),
    "unknown dataset": ({"datasets": ["beir/scifat"]}, ["scifat", "beir/scifact"]),
    "dataset without source": ({"datasets": [{"name": "mine"}]}, ["mine", "source"]),
    "fusion of nothing": (
        {"models": [MODEL, {"id": "f", "fuse": {"runs": ["Org/Known-1.5B", "Org/Knwn-1.5B"]}}]},
        ["Org/Knwn-1.5B", "did you mean 'Org/Known-1.5B'"],
    ),
    "fusions in a circle": (
        {"models": [{"id": n, "fuse": {"runs": ["f", "g"]}} for n in "fg"]},
        ["circle"],
    ),
    "experiment that leaves results": ({"experiment": "../x"}, ["experiment", "letters"]),
    "metric": ({"evaluate": {"metrics": ["ndgc@10"]}}, ["ndgc@10", "nDCG@10"]),
    "protocol": ({"evaluate": {"protocol": "mtep"}}, ["mtep", "'mteb'"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_says_where(name):
    changes, expected = MISTAKES[name]
    with pytest.raises(UserError) as raised:
        experiment(**copy.deepcopy(changes))
    message = str(raised.value)
    assert "\n" not in message
    assert not [part for part in expected if part not in message], message


def test_paths_are_relative_to_their_config_file(tmp_path):
    config = {
        "models": [{"id": "a", "source": {"path": "m"}, "mirrors": [{"path": "/abs"}]}, "odd"],
        "datasets": ["beir/scifact", {"name": "d", "source": {"beir": "../d"}}],
    }
    located = absolute_paths(config, tmp_path / "x")
    assert located["models"][0]["source"] == {"path": str(tmp_path / "x" / "m")}
    assert located["models"][0]["mirrors"] == [{"path": "/abs"}]
    assert located["datasets"][1]["source"] == {"beir": str(tmp_path / "d")}


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["experiment", "models", "datasets", "store"]), ANYTHING))
def test_no_config_gets_a_traceback(changes):
    try:
        experiment(**copy.deepcopy(changes))
    except UserError as error:
        assert "\n" not in str(error)
