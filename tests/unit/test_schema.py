"""What a config's schema refuses is told in a line that says where and what would do."""

from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from embedrepro.errors import UserError
from embedrepro.models.facts_table import schema_properties
from embedrepro.schema import validate

SCHEMA = yaml.safe_load(
    (Path(__file__).parents[2] / "rules" / "schemas" / "config.schema.yaml").read_text()
)
SCHEMA["$defs"]["model"]["properties"] |= schema_properties("user")
WHOLE = {"experiment": "x", "models": [{"id": "a"}], "datasets": ["beir/scifact"]}


def refusal(**changes):
    with pytest.raises(UserError) as caught:
        validate(deepcopy(WHOLE | changes), SCHEMA, "config")
    return str(caught.value)


def of_dataset(**facts):
    return refusal(datasets=[{"name": "d"} | facts])


def of_model(**facts):
    return refusal(models=[{"id": "a"} | facts])


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (of_dataset(name=123), "config.datasets[0].name: '123' should be text; a registry name"),
        (of_dataset(name=123, x=1), "config.datasets[0].name: '123' should be text; a registry"),
        (of_dataset(name=""), "config.datasets[0].name: '' is empty; a registry name or"),
        (of_dataset(shards=0), "config.datasets[0].shards: '0' should be at least 1; parts"),
        (of_dataset(shards="two"), "config.datasets[0].shards: 'two' should be a whole number"),
        (of_dataset(splits="test"), "config.datasets[0].splits: 'test' should be a list or a map"),
        (of_dataset(splits=[1]), "config.datasets[0].splits[0]: '1' should be text; letters"),
        (of_dataset(splits={"a": 1}), "config.datasets[0].splits.a: '1' should be text"),
        (of_dataset(spilts=["a"]), "unknown key 'spilts' (did you mean 'splits'?)"),
        (of_dataset(title="dorp"), "'dorp' is not one of join, drop (did you mean 'drop'?)"),
        (refusal(datasets=[123]), "config.datasets[0]: '123' should be text or a mapping"),
        (refusal(datasets=[None]), "config.datasets[0]: 'None' should be text or a mapping"),
        (refusal(datasets=[""]), "config.datasets[0]: '' is empty; a registry name such as"),
        (refusal(datasets=[]), "config.datasets: '[]' is empty; registry names"),
        (refusal(datasets="beir"), "config.datasets: 'beir' should be a list; registry names"),
        (of_model(id=5), "config.models[0].id: '5' should be text; hub id or a name"),
        (of_model(max_length="5"), "max_length: '5' should be a whole number or a mapping; tok"),
        (of_model(max_length=0), "max_length: '0' should be at least 1; a number of tokens"),
        (of_model(max_length={"query": "x"}), "max_length.query: 'x' should be a whole number"),
        (of_model(source="hubb"), "source: 'hubb' does not fit; hub, or one of {hub: id}"),
        (of_model(source={"path": 5}), "config.models[0].source.path: '5' should be text; a f"),
        (of_model(source={"pth": "x"}), "source: unknown key 'pth' (did you mean 'path'?)"),
        (refusal(evaluate={"metrics": ["a", "a"]}), "evaluate.metrics: '['a', 'a']' names one tw"),
        (refusal(plan={"tflops": 0}), "config.plan.tflops: '0' should be above 0; teraflops"),
        (refusal(retrieve={"top_k": 10001}), "retrieve.top_k: '10001' should be at most 10000"),
    ],
)
def test_a_refusal_says_where_and_what_would_do(message, expected):
    assert expected in message
    assert message.startswith("config.") and "\n" not in message
    assert "any of the given schemas" not in message


def test_defaults_are_filled_in():
    config = deepcopy(WHOLE)
    validate(config, SCHEMA, "config")
    assert config["retrieve"]["top_k"] == 1000
