"""Validation against a closed JSON schema, with errors that a person can act on."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from .errors import UserError, printable


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest known word, or nothing."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def over_defaults(
    spec: dict[str, Any], defaults: dict[str, Any], choices: dict[str, Any], where: str
) -> dict[str, Any]:
    """`spec` over `defaults`; `UserError` for an unknown key or a value not in `choices`."""
    for key, value in spec.items():
        if key not in defaults:
            raise UserError(f"{where}: unknown key {key!r}; known are {', '.join(defaults)}")
        if key in choices and value not in choices[key]:
            known = ", ".join(map(str, choices[key]))
            raise UserError(f"{where}: {key} is {value!r}; it may be {known}")
    return defaults | spec


def validate(data: Any, schema: dict[str, Any], where: str) -> None:
    """Check `data` and fill in the schema's defaults in place; raise a one-line `UserError`.

    `where` names the document in the message, `config` say.
    """
    import jsonschema

    base = jsonschema.Draft202012Validator

    def with_defaults(
        validator: Any, properties: dict[str, Any], instance: Any, schema: dict[str, Any]
    ) -> Iterator[Any]:
        if isinstance(instance, dict):
            for name, part in properties.items():
                if "default" in part:
                    instance.setdefault(name, part["default"])
        yield from base.VALIDATORS["properties"](validator, properties, instance, schema)

    validator = jsonschema.validators.extend(base, {"properties": with_defaults})(schema)
    error = min(validator.iter_errors(data), key=lambda e: list(map(str, e.path)), default=None)
    if error is not None:
        raise UserError(_sentence(error, where))


def _sentence(error: Any, where: str) -> str:
    if error.validator in ("oneOf", "anyOf") and error.context:
        # The alternative that the value gets furthest into explains the mistake best.
        other = ("type", "const")  # the value was meant as another alternative
        deepest = max(error.context, key=lambda e: (bool(e.path), e.validator not in other))
        if deepest.path or deepest.validator not in other:
            deepest.path.extendleft(reversed(error.path))
            return _sentence(deepest, where)
    place = where + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.path)
    shown = printable(error.instance, 60)
    known = error.schema.get("properties", {})
    if error.validator == "additionalProperties":
        key = next(k for k in error.instance if k not in known)
        allowed = ", ".join(sorted(known))
        return f"{place}: unknown key '{printable(key, 60)}'{nearest(key, known)}; keys: {allowed}"
    if error.validator == "required":
        missing = next(k for k in error.validator_value if k not in error.instance)
        meaning = known.get(missing, {}).get("description", "")
        return f"{place}: the key '{missing}' is missing" + (f" ({meaning})" if meaning else "")
    if error.validator == "enum":
        allowed = ", ".join(map(str, error.validator_value))
        return f"{place}: '{shown}' is not one of {allowed}{nearest(shown, error.validator_value)}"
    wanted = _wanted_types(error)
    meaning = error.schema.get("description", "" if wanted else printable(error.message))
    fault = f"should be {_types(wanted)}" if wanted else _limit(error)
    return f"{place}: '{shown}' {fault}" + (f"; {meaning}" if meaning else "")


def _limit(error: Any) -> str:
    """What a value that has the right type breaks."""
    if error.validator in ("minLength", "minItems", "minProperties") and not error.instance:
        return "is empty"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}
    if error.validator in words:
        return f"should be {words[error.validator]} {error.validator_value}"
    return "names one twice" if error.validator == "uniqueItems" else "does not fit"


def _wanted_types(error: Any) -> list[str]:
    """The types that would do, of an error that is about types alone."""
    errors = error.context if error.validator in ("oneOf", "anyOf") else [error]
    types: list[str] = []
    for one in errors:
        if one.validator != "type":
            return []
        types += (
            [one.validator_value] if isinstance(one.validator_value, str) else one.validator_value
        )
    return types


def _types(types: list[str]) -> str:
    names = {
        "object": "a mapping",
        "array": "a list",
        "string": "text",
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
    }
    return " or ".join(names.get(t, t) for t in types)
