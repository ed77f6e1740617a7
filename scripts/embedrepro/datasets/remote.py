"""Public benchmarks: dataset repositories on the hub in MTEB's layout, and ir_datasets.

On the hub a dataset has three configurations: `corpus` (_id or id, title, text), `queries` (or
`query`; _id or id, text) and `default` (or `qrels`; query-id, corpus-id, score); where there are
several languages they are named `<lang>-corpus` and so on, and the source says so. The split is
the one asked for, or a configuration's only split. These are the rules of MTEB's own loader.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from ..errors import UserError, printable
from ..schema import nearest
from .records import Judgement, Text, grade, identifier, string

REVISION = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
BATCH = 1024


class Hub:
    """`source`: {hub: id, revision: 40 hex} and optionally the configurations corpus, queries and
    qrels. Streams; no code of the repository is ever run."""

    tolerant = True

    def __init__(self, source: dict[str, Any]) -> None:
        self.id, self.revision = source["hub"], source.get("revision") or ""
        if not HUB_ID.fullmatch(self.id):
            raise UserError(f'dataset source: hub "{printable(self.id)}" is not an org/name')
        if not REVISION.fullmatch(self.revision):
            raise UserError(
                f'dataset source: revision "{printable(self.revision)}" of {self.id} is not a full '
                "commit hash of 40 hex digits"
            )
        self.configs = {part: source.get(part) for part in ("corpus", "queries", "qrels")}

    @cached_property
    def available(self) -> list[str]:
        """The configurations; asks once with a short time limit, so that no hub fails fast."""
        import datasets
        from huggingface_hub import HfApi

        from ..sources.hub_client import TIMEOUT, patiently

        def ask() -> None:
            HfApi().dataset_info(self.id, revision=self.revision, timeout=TIMEOUT)

        try:
            patiently(ask, f"hub {self.id}", first_contact=True)
            configs: list[str] = datasets.get_dataset_config_names(self.id, revision=self.revision)
            return configs
        except Exception as error:  # the libraries below raise anything from OSError to ValueError
            raise self.failure(error) from None

    def failure(self, error: Exception) -> UserError:
        from ..sources.hub_client import reason

        return UserError(
            f"dataset {self.id} at {self.revision[:8]} on the hub: {reason(error)}; check the id "
            "and the revision, the network, HF_ENDPOINT and HF_TOKEN"
        )

    def config(self, part: str) -> str:
        choices = {"corpus": ["corpus"], "queries": ["query", "queries"]}
        choices["qrels"] = ["default", "qrels"]
        asked = self.configs[part]
        for name in [asked] if asked else choices[part]:
            if name in self.available:
                return name
        raise UserError(
            f"dataset {self.id}: no configuration {asked or ' or '.join(choices[part])} for its "
            f"{part}; it has {printable(', '.join(self.available))}; name one under source: {part}:"
        )

    def rows(self, part: str, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number (from 1) and columns of each row."""
        import datasets

        config = self.config(part)
        line = 0
        try:
            streams = datasets.load_dataset(self.id, config, revision=self.revision, streaming=True)
            if split not in streams and len(streams) > 1:
                raise UserError(
                    f"dataset {self.id}: configuration {config} has no split {split}; it has "
                    f"{', '.join(streams)}"
                )
            stream = streams[split] if split in streams else next(iter(streams.values()))
            for batch in stream.with_format("arrow").iter(batch_size=BATCH):
                for row in batch.to_pylist():
                    line += 1
                    yield line, row
        except UserError:
            raise
        except Exception as error:  # as above
            raise self.failure(error) from None

    def corpus(self) -> Iterator[Text]:
        return self.texts("corpus", "corpus")

    def queries(self, split: str) -> Iterator[Text]:
        return self.texts("queries", split)

    def texts(self, part: str, split: str) -> Iterator[Text]:
        for line, row in self.rows(part, split):
            where = self.where(part, split, line)
            id_ = identifier(row.get("_id", row.get("id")), where, "id")
            title = string(row.get("title") or "", where, "title")
            yield Text(line, id_, title, string(row.get("text"), where, "text"))

    def qrels(self, split: str) -> Iterator[Judgement]:
        for line, row in self.rows("qrels", split):
            where = self.where("qrels", split, line)
            query = identifier(row.get("query-id"), where, "query-id")
            doc = identifier(row.get("corpus-id"), where, "corpus-id")
            yield Judgement(line, query, doc, grade(row.get("score"), where))

    def where(self, part: str, split: str, line: int) -> str:
        return f"{self.id}@{self.revision[:8]}, configuration {self.config(part)}, row {line}"


class IrDatasets:
    """`source`: {ir_datasets: id}. A split is a full id when it holds a "/", else the id's end."""

    tolerant = True

    def __init__(self, source: dict[str, Any]) -> None:
        self.id = source["ir_datasets"]

    def load(self, id_: str) -> Any:
        import ir_datasets

        try:
            return ir_datasets.load(id_)
        except KeyError:
            known = list(ir_datasets.registry)
            raise UserError(
                f'ir_datasets knows no "{printable(id_)}"{nearest(id_, known)}'
            ) from None

    def split_id(self, split: str) -> str:
        return split if "/" in split else f"{self.id}/{split}"

    def rows(self, part: str, split: str) -> Iterator[tuple[int, Any]]:
        """Number (from 1) and record of each document, query or judgement."""
        id_ = self.split_id(split) if split else self.id
        dataset = self.load(id_)
        kind = {"corpus": "docs", "queries": "queries", "qrels": "qrels"}[part]
        if not getattr(dataset, f"has_{kind}")():
            raise UserError(f"ir_datasets {id_}: has no {kind}; name a split that has them")
        try:
            yield from enumerate(getattr(dataset, f"{kind}_iter")(), 1)
        except (OSError, RuntimeError) as error:
            reason = printable(str(error).partition("\n")[0], 300)
            raise UserError(
                f"ir_datasets {id_}: {type(error).__name__}: {reason}; check the network and "
                "IR_DATASETS_HOME"
            ) from None

    def corpus(self) -> Iterator[Text]:
        return self.texts("corpus", "", "doc_id")

    def queries(self, split: str) -> Iterator[Text]:
        return self.texts("queries", split, "query_id")

    def texts(self, part: str, split: str, id_field: str) -> Iterator[Text]:
        for line, record in self.rows(part, split):
            where = self.where(part, split, line)
            id_ = identifier(getattr(record, id_field), where, id_field)
            text = record.text if hasattr(record, "text") else record.default_text()
            title = string(getattr(record, "title", "") or "", where, "title")
            yield Text(line, id_, title, string(text, where, "text"))

    def qrels(self, split: str) -> Iterator[Judgement]:
        for line, record in self.rows("qrels", split):
            where = self.where("qrels", split, line)
            query = identifier(record.query_id, where, "query_id")
            doc = identifier(record.doc_id, where, "doc_id")
            yield Judgement(line, query, doc, grade(record.relevance, where))

    def where(self, part: str, split: str, line: int) -> str:
        return f"ir_datasets {self.split_id(split) if split else self.id}, {part}, record {line}"
