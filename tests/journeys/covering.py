"""Which keys of the config schema, in which forms, a journey drives to a checked value.

A form is a path and what stands there: `models[].max_length:integer`, `models[].dtype=float32`,
`models[].sha256.*:string`, `datasets[].splits[]:string`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import yaml
from drive import REPOSITORY
from jsonschema import Draft202012Validator

SCHEMA = yaml.safe_load((REPOSITORY / "rules/schemas/config.schema.yaml").read_text("utf-8"))
try:  # what can be stated of a model stands in one table, of which the schema is made
    from embedrepro.models.facts_table import schema_properties

    SCHEMA["$defs"]["model"]["properties"] |= schema_properties("user")
except ImportError:
    pass
COVERED: dict[str, set[str]] = {}  # form → journeys that check a value which it decides
KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def covers(*forms: str) -> Callable:
    """Say that the decorated test checks a value decided by each of `forms`."""

    def mark(test: Callable) -> Callable:
        claim(test.__name__, *forms)
        return test

    return mark


def claim(journey: str, *forms: str) -> None:
    for form in forms:
        COVERED.setdefault(form, set()).add(journey)


def resolve(node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        found: Any = SCHEMA
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


def alternatives(node: dict[str, Any]) -> list[dict[str, Any]]:
    """Each way in which the schema lets a value be given, all references followed."""
    node = resolve(node)
    for word in ("anyOf", "oneOf"):
        if word in node:
            return [form for choice in node[word] for form in alternatives(choice)]
    kinds = node.get("type")
    if isinstance(kinds, list):
        return [form for kind in kinds for form in alternatives({**node, "type": kind})]
    return [node]


def forms(node: dict[str, Any] = SCHEMA, path: str = "") -> Iterator[str]:
    """Every form that the schema allows."""
    for form in alternatives(node):
        if "const" in form:
            yield f"{path}={word(form['const'])}"
        elif "enum" in form:
            yield from (f"{path}={word(value)}" for value in form["enum"])
        elif form.get("type") == "boolean":
            yield from (f"{path}=true", f"{path}=false")
        elif form.get("type") == "array":
            yield from forms(form["items"], f"{path}[]")
        elif form.get("type") == "object":
            inner = form.get("properties", {})
            for name, value in inner.items():
                yield from forms(value, f"{path}.{name}" if path else name)
            if isinstance(form.get("additionalProperties"), dict):
                yield from forms(form["additionalProperties"], f"{path}.*")
            elif not inner:
                yield f"{path}:object"
        else:
            yield f"{path}:{form['type']}"


def used(value: Any, node: dict[str, Any] = SCHEMA, path: str = "") -> Iterator[str]:
    """The forms that occur in a config, or in the part of one that `node` describes."""
    for form in alternatives(node):
        if not Draft202012Validator({**form, "$defs": SCHEMA["$defs"]}).is_valid(value):
            continue
        if isinstance(value, list):
            for item in value:
                yield from used(item, form["items"], f"{path}[]")
        elif isinstance(value, dict):
            inner = form.get("properties", {})
            for name, item in value.items():
                if name in inner:
                    yield from used(item, inner[name], f"{path}.{name}" if path else name)
                elif isinstance(form.get("additionalProperties"), dict):
                    yield from used(item, form["additionalProperties"], f"{path}.*")
            if not inner and not isinstance(form.get("additionalProperties"), dict):
                yield f"{path}:object"
        elif "const" in form or "enum" in form or isinstance(value, bool):
            yield f"{path}={word(value)}"
        elif form["type"] == "number":
            yield f"{path}:number"
        else:
            yield f"{path}:{KINDS[type(value)]}"
        return


def word(value: Any) -> str:
    """As YAML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
