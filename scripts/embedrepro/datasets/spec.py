"""What the specs of a corpus and of a split may hold: closed, so a misspelt key is an error."""

from typing import Any

from ..errors import UserError

TEXT = {"type": "string", "minLength": 1}
NAME = {**TEXT, "description": "the dataset's name"}
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
    },
}
THEIRS = {
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
IDENTITY = {"type": "object", "description": "what the source held when that was last looked at"}
CORPUS: dict[str, Any] = {
    "type": "object",
    "description": "a mapping with name and source",
    "additionalProperties": False,
    "required": ["name", "source"],
    "properties": {
        "name": NAME,
        "source": SOURCE,
        "title": {
            "enum": ["join", "drop"],
            "default": "join",
            "description": "whether titles are put before the text",
        },
        "identity": IDENTITY,
    },
}
SPLIT: dict[str, Any] = {
    "type": "object",
    "description": "a mapping with name, split, source and theirs",
    "additionalProperties": False,
    "required": ["name", "split", "source", "theirs"],
    "properties": {
        "name": NAME,
        "split": {
            "type": "string",
            "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]*$",
            "description": "a split's name has letters, digits, - and _",
        },
        "source": SOURCE,
        "theirs": THEIRS,
        "identity": IDENTITY,
    },
}


def check_shards(shards: int, documents: int, where: str = "") -> None:
    """Refuse shards that would hold no passage; `where` starts the message."""
    if not 1 <= shards <= documents:
        raise UserError(
            f"{where}shards: {shards} for {documents} passages; give a number from 1 to {documents}"
        )
