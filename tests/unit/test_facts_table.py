"""The table of facts, and all that is made from it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from embedrepro.errors import UserError
from embedrepro.models.facts_table import (
    TABLE,
    check,
    known_facts,
    prompt_for,
    role_facts,
    schema_properties,
)

REPOSITORY = Path(__file__).parents[2]


def test_the_registry_s_schema_is_made_from_the_table():
    schema = json.loads((REPOSITORY / "rules/schemas/models.schema.json").read_text())
    properties = schema["$defs"]["model"]["properties"]
    made = schema_properties("registry")
    assert {name: properties[name] for name in made} == made
    assert set(schema["$defs"]["fact"]["enum"]) == {*TABLE, "custom_code", "embedding_size"}


def test_every_value_of_a_user_s_schema_passes_the_check_and_no_other():
    user = schema_properties("user")
    assert set(user) == set(TABLE)
    values = {
        "pooling": ["mean", "max", "modules", "x", 1],
        "normalize": [True, 1, "yes"],
        "query_prompt": ["q: ", {"default": "q: ", "ArguAna": ""}, {"default": 1}, 3],
        "max_length": [5, {"query": 5}, {"query": 0}, 0, True, "5"],
        "dtype": ["auto", "fp8", "int8"],
        "dimensions": [64, 0, True],
        "end_token": ["", "</s>", 2],
        "engine": ["sentence_transformers", "http"],
        "native": [False, "no"],
    }
    for name, some in values.items():
        for value in some:
            try:
                jsonschema.validate(value, user[name])
                fits = type(value) is not bool or user[name].get("type") == "boolean"
            except jsonschema.ValidationError:
                fits = False
            try:
                check({name: value}, "here")
                passes = True
            except UserError as error:
                passes = False
                assert str(error).startswith(f"here: {name}: ")
            assert fits == passes, (name, value)
    jsonschema.validate([64, 128], user["dimensions"])


def test_facts_that_reach_one_role():
    stated = {
        "query_prompt": {"default": "q: ", "ArguAna": "argue: "},
        "passage_prompt": "p: ",
        "max_length": {"query": 32},
        "pooling": "mean",
        "custom_code": "native",
    }
    assert role_facts(stated, "query") == {
        "query_prompt": "q: ",
        "max_length": 32,
        "pooling": "mean",
    }
    assert role_facts(stated, "query", ["beir/arguana", "ArguAna"])["query_prompt"] == "argue: "
    assert role_facts(stated, "passage") == {"passage_prompt": "p: ", "pooling": "mean"}
    assert role_facts({"max_length": 9}, "passage") == {"max_length": 9}
    assert prompt_for({"ArguAna": "a"}, ["other"]) is None and prompt_for("x") == "x"


def test_what_a_registry_entry_changes():
    entry = {"revision": "0" * 40, "pooling": "cls", "custom_code": "native", "notes": ["x"]}
    assert known_facts(entry) == {"pooling": "cls", "custom_code": "native"}


@pytest.mark.parametrize("heavy", ["torch", "transformers", "yaml", "numpy", "jsonschema"])
def test_importing_the_table_is_light(heavy):
    program = f"import sys, embedrepro.models.facts_table; sys.exit({heavy!r} in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "scripts")}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 0
