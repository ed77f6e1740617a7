"""A split of a prepared dataset in the layouts that other tools read."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import atomic, read_json
from ..shards import read_rows

Rows = Iterator[dict[str, Any]]


def export_flagembedding(dataset: Path | str, split: str, output: Path | str) -> None:
    """Write `corpus.jsonl`, `test_queries.jsonl` and `test_qrels.jsonl` to the new folder `output`.

    FlagEmbedding's custom evaluation knows no other split than `test`. Titles are left out where
    the dataset drops them, so that its evaluator encodes the same text.
    """
    joined = _joined(dataset, split)
    with atomic(output) as folder:
        folder.mkdir()
        _write(folder / "corpus.jsonl", _corpus(dataset, joined, "id"))
        queries = ({"id": q["id"], "text": q["text"]} for q in _split(dataset, split, "queries"))
        _write(folder / "test_queries.jsonl", queries)
        qrels = (
            {"qid": j["query_id"], "docid": j["doc_id"], "relevance": j["relevance"]}
            for j in _split(dataset, split, "qrels")
        )
        _write(folder / "test_qrels.jsonl", qrels)


def export_beir(dataset: Path | str, split: str, output: Path | str) -> None:
    """Write `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv` to the new folder `output`."""
    joined = _joined(dataset, split)
    with atomic(output) as folder:
        (folder / "qrels").mkdir(parents=True)
        _write(folder / "corpus.jsonl", _corpus(dataset, joined, "_id"))
        queries = ({"_id": q["id"], "text": q["text"]} for q in _split(dataset, split, "queries"))
        _write(folder / "queries.jsonl", queries)
        head = {"query_id": "query-id", "doc_id": "corpus-id", "relevance": "score"}
        rows = [head, *_split(dataset, split, "qrels")]
        _write(
            folder / "qrels" / f"{split}.tsv", rows, lambda row: "\t".join(map(str, row.values()))
        )


def _joined(dataset: Path | str, split: str) -> bool:
    """Whether titles are part of the text; raises `UserError` where there is no such split."""
    facts = read_json(Path(dataset) / "dataset.json")
    if split not in facts["splits"]:
        raise UserError(f"{dataset}: has no split {split}; it has {', '.join(facts['splits'])}")
    return facts["title"] == "join"


def _corpus(dataset: Path | str, joined: bool, id_field: str) -> Rows:
    for row in _rows(Path(dataset) / "corpus.parquet"):
        title = row["title"] if joined else ""
        yield {id_field: row["id"], "title": title, "text": row["text"]}


def _split(dataset: Path | str, split: str, part: str) -> Rows:
    yield from _rows(Path(dataset) / split / f"{part}.parquet")


def _rows(path: Path) -> Rows:
    for batch in read_rows(path):
        yield from batch.to_pylist()


def _json(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)


def _write(path: Path, rows: Any, line: Callable[[dict[str, Any]], str] = _json) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line(row)}\n" for row in rows)
