"""What a dataset spec may hold: a closed schema, so that a misspelt key is an error."""

from typing import Any

TEXT = {"type": "string", "minLength": 1}
SOURCE = {
    "description": "{beir: folder}, {flagembedding: folder}, {hub: id, revision: 40 hex} or "
    "{ir_datasets: id}",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "beir": TEXT,
        "flagembedding": TEXT,
        "hub": TEXT,
        "revision": {"type": "string", "description": "the full commit hash"},
        "corpus": {**TEXT, "description": "the hub's configuration that holds the corpus"},
        "queries": {**TEXT, "description": "the hub's configuration that holds the queries"},
        "qrels": {**TEXT, "description": "the hub's configuration that holds the judgements"},
        "ir_datasets": TEXT,
        "digest": {"type": "string", "description": "digest of a local folder's files"},
    },
}
SPLIT = {
    "description": "the source's name of the split, or {source, split} of another source",
    "anyOf": [
        TEXT,
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["source", "split"],
            "properties": {"source": SOURCE, "split": TEXT},
        },
    ],
}
SPEC: dict[str, Any] = {
    "type": "object",
    "description": "a mapping with name, source and splits",
    "additionalProperties": False,
    "required": ["name", "source", "splits"],
    "properties": {
        "name": {**TEXT, "description": "the dataset's name"},
        "source": SOURCE,
        "splits": {
            "description": "at least one of {our name: the source's name}",
            "type": "object",
            "minProperties": 1,
            "propertyNames": {
                "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]*$",
                "description": "a split's name has letters, digits, - and _",
            },
            "additionalProperties": SPLIT,
        },
        "title": {
            "enum": ["join", "drop"],
            "default": "join",
            "description": "whether titles are put before the text",
        },
        "instruction": {"type": ["string", "null"], "description": "what {task} stands for"},
        "ignore_identical_ids": {"type": "boolean", "description": "drop hits with the query's id"},
        "relevance_threshold": {
            "type": "integer",
            "minimum": 1,
            "description": "lowest grade that binary measures count",
        },
    },
}
