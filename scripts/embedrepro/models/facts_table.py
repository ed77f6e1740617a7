"""The one table of what can be stated about a model: values, whom it reaches, who may state it.

Config schema, registry schema, staging, keys and encoding read it. Importing it costs milliseconds.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..errors import UserError, printable

Role = Literal["query", "passage"]
Dtype = Literal["float32", "bfloat16", "float16", "fp8"]
Engine = Literal["packed", "sentence_transformers", "flagembedding", "http"]
Attention = Literal["causal", "bidirectional"]
# As sentence-transformers names the modes, but for cls and last_token, which FlagEmbedding names.
# `modules`: the vector comes out of the model's own modules (several modes at once, a static one).
Pooling = Literal[
    "mean", "cls", "last_token", "max", "weightedmean", "mean_sqrt_len_tokens", "modules"
]
# What a text becomes: one vector, weights of terms, a vector for each token, or all three (BGE-M3).
Vectors = Literal["dense", "sparse", "multivector", "m3"]
Kind = Literal[Vectors, "reranker"]
# Who may state a fact, in the order in which they are asked.
Source = Literal["config", "registry", "sentence-transformers", "FlagEmbedding", "checkpoint"]

ROLES: tuple[Role, ...] = get_args(Role)
VECTORS: tuple[Vectors, ...] = get_args(Vectors)
KINDS: tuple[Kind, ...] = (*VECTORS, "reranker")
SOURCES: tuple[Source, ...] = get_args(Source)
POOLINGS: tuple[Pooling, ...] = tuple(p for p in get_args(Pooling) if p != "modules")
AUTO = "auto"

Schema = dict[str, Any]
_LENGTH: Schema = {"type": "integer", "minimum": 1, "description": "a number of tokens"}
_PROMPT: Schema = {
    "anyOf": [
        {"type": "string", "description": "text"},
        {
            "type": "object",
            "description": "{default: text, a dataset's or task's name: text}",
            "minProperties": 1,
            "additionalProperties": {"type": "string", "description": "text"},
        },
    ]
}
_LENGTHS: Schema = {
    "type": "object",
    "description": "tokens kept of a query and of a passage",
    "additionalProperties": False,
    "minProperties": 1,
    "properties": {"query": _LENGTH, "passage": _LENGTH},
}


@dataclass(frozen=True)
class Fact:
    """One thing that can be stated of a model.

    `schema` describes a value; `roles` are those whose vectors (or, of a reranker, scores) it can
    change; `stated_by` says who may state it, in the order in which they are asked.
    """

    name: str
    schema: Schema
    meaning: str
    roles: tuple[Role, ...] = ROLES
    stated_by: tuple[Source, ...] = SOURCES

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a fact that has only some, else ()."""
        if self.schema.get("type") == "boolean":
            return True, False
        return tuple(self.schema.get("enum", ()))

    def property(self) -> Schema:
        """The fact as a property of a JSON schema."""
        return self.schema | {"description": self.meaning}


def _enum(*values: str) -> Schema:
    return {"enum": list(values)}


_FLAG: Schema = {"type": "boolean"}
_BY_HAND: tuple[Source, ...] = ("config", "registry")
_BY_FILES: tuple[Source, ...] = ("config", "registry", "sentence-transformers")
_BY_CHECKPOINT: tuple[Source, ...] = ("config", "registry", "checkpoint")

TABLE: dict[str, Fact] = {
    fact.name: fact
    for fact in (
        Fact(
            "kind",
            _enum(AUTO, *VECTORS),
            "what a text becomes: one vector, weights of terms (SPLADE), a vector for each token "
            "(ColBERT), or all three (m3: BGE-M3); auto: as the registry knows it, else dense",
            stated_by=_BY_HAND,
        ),
        Fact(
            "native",
            _FLAG,
            "false asks for the folder's own code where transformers has the class, too",
            stated_by=_BY_HAND,
        ),
        Fact(
            "attention",
            _enum(*get_args(Attention)),
            "whether a token sees the later ones",
            stated_by=_BY_CHECKPOINT,
        ),
        Fact(
            "end_token",
            {"type": ["string", "null"]},
            'token that ends every text; "" for none',
            stated_by=_BY_CHECKPOINT,
        ),
        Fact(
            "padding_side",
            _enum("left", "right"),
            "where short texts of a batch are filled up",
            stated_by=_BY_CHECKPOINT,
        ),
        Fact(
            "pooling",
            _enum(*POOLINGS),
            "how a text's states become its vector",
            stated_by=("config", "registry", "sentence-transformers", "FlagEmbedding"),
        ),
        Fact(
            "include_prompt",
            _FLAG,
            "false leaves the prompt's tokens out of the pooling",
            stated_by=_BY_FILES,
        ),
        Fact(
            "normalize",
            _FLAG,
            "scale vectors to length 1",
            stated_by=("config", "registry", "sentence-transformers", "FlagEmbedding"),
        ),
        Fact(
            "query_prompt",
            _PROMPT,
            "put before every query, or a text by task; {task} is the dataset's instruction",
            roles=("query",),
            stated_by=("config", "registry", "sentence-transformers", "FlagEmbedding"),
        ),
        Fact(
            "passage_prompt",
            _PROMPT,
            "put before every passage, or a text by task",
            roles=("passage",),
            stated_by=("config", "registry", "sentence-transformers", "FlagEmbedding"),
        ),
        Fact("max_length", {"anyOf": [_LENGTH, _LENGTHS]}, "tokens kept of a text, prompt and all"),
        Fact(
            "dtype",
            _enum(AUTO, *get_args(Dtype)),
            "precision of the fast computation; auto: the checkpoint's own half, or float16",
            stated_by=_BY_CHECKPOINT,
        ),
        Fact(
            "engine",
            _enum(AUTO, *get_args(Engine)),
            "what encodes; http is a server's",
            stated_by=_BY_HAND,
        ),
        Fact(
            "dimensions",
            {"type": "integer", "minimum": 1},
            "Matryoshka cut of the vectors",
            stated_by=_BY_FILES,
        ),
    )
}

# What the registry alone states, beside revision, sources and notes; staging reads these, too.
REGISTRY_ONLY: dict[str, Schema] = {
    "custom_code": {
        "enum": ["native", "required"],
        "description": "native: transformers' own class is used; required: only the repository's "
        "code",
    },
    "max_tokens": _LENGTH | {"description": "the longest text that the model takes"},
    "unsupported": {"type": "string", "description": "why the model is refused"},
}


def schema_properties(who: Literal["user", "registry"]) -> dict[str, Schema]:
    """The facts as properties of a model's entry in the config, or in the registry.

    A user may state a list of `dimensions`: the plan makes a row of each.
    """
    if who == "registry":
        stated = {n: f.property() for n, f in TABLE.items() if "registry" in f.stated_by}
        return stated | REGISTRY_ONLY
    stated = {n: f.property() for n, f in TABLE.items() if "config" in f.stated_by}
    one = TABLE["dimensions"].schema | {"description": "a number of dimensions"}
    several = {
        "type": "array",
        "minItems": 1,
        "uniqueItems": True,
        "items": one,
        "description": "numbers of dimensions, each a row of the report",
    }
    meaning = TABLE["dimensions"].meaning + ", or several"
    return stated | {"dimensions": {"anyOf": [one, several], "description": meaning}}


def known_facts(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What of a registry entry changes a staged folder; its notes and sources don't."""
    return {name: entry[name] for name in (*TABLE, *REGISTRY_ONLY) if name in entry}


def check(facts: Mapping[str, Any], where: str) -> None:
    """Refuse values of the wrong kind; `where` stands before the message. None is no statement."""
    for name, value in facts.items():
        if name not in TABLE or value is None:
            continue
        choices = TABLE[name].choices
        if choices and not any(type(value) is type(c) and value == c for c in choices):
            options = ", ".join(map(str, choices))
            raise UserError(f"{where}: {name}: {printable(value)} is none of {options}")
        if name in ("query_prompt", "passage_prompt", "end_token"):
            texts = value.values() if isinstance(value, dict) and name != "end_token" else [value]
            for text in texts:
                if not isinstance(text, str):
                    raise UserError(f"{where}: {name}: {printable(text)} is not text")
        if name in ("max_length", "dimensions"):
            numbers = value.values() if isinstance(value, dict) else [value]
            for number in numbers:
                if type(number) is not int or number < 1:
                    raise UserError(
                        f"{where}: {name}: {printable(number)} is not a positive whole number"
                    )


def role_facts(stated: Mapping[str, Any], role: Role, tasks: Iterable[str] = ()) -> dict[str, Any]:
    """The facts of `stated` (by a user or the registry) that can change one role's vectors.

    A length is the role's own; of a prompt by task the text of the first of `tasks` (names of the
    dataset) that it has, or its default.
    """
    found = {n: v for n, v in stated.items() if n in TABLE and role in TABLE[n].roles}
    length = found.pop("max_length", None)
    if isinstance(length, Mapping):
        length = length.get(role)
    if length is not None:
        found["max_length"] = length
    name = f"{role}_prompt"
    if name in found:
        found[name] = prompt_for(found[name], tasks)
    return found


def prompt_for(prompt: str | Mapping[str, str] | None, tasks: Iterable[str] = ()) -> str | None:
    """A prompt's text for a dataset known under the names `tasks`; None where it has none."""
    if not isinstance(prompt, Mapping):
        return prompt
    return next((prompt[name] for name in tasks if name in prompt), prompt.get("default"))
