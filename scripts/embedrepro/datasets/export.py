"""A prepared corpus and one of its splits in the layouts that other tools read."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..files import atomic, read_json
from .reading import read_rows

Rows = Iterator[dict[str, Any]]


def export_flagembedding(corpus: Path | str, split: Path | str, output: Path | str) -> None:
    """Write `corpus.jsonl`, `test_queries.jsonl` and `test_qrels.jsonl` to the new folder `output`.

    `corpus`, `split`: the folders of both. FlagEmbedding's custom evaluation knows no other split
    than `test`. Titles are left out where the corpus drops them, so that its evaluator encodes the
    same text.
    """
    with atomic(output) as folder:
        folder.mkdir()
        _write(folder / "corpus.jsonl", _corpus(corpus, "id"))
        queries = ({"id": q["id"], "text": q["text"]} for q in _rows(split, "queries"))
        _write(folder / "test_queries.jsonl", queries)
        qrels = (
            {"qid": j["query_id"], "docid": j["doc_id"], "relevance": j["relevance"]}
            for j in _rows(split, "qrels")
        )
        _write(folder / "test_qrels.jsonl", qrels)


def export_beir(corpus: Path | str, split: Path | str, output: Path | str) -> None:
    """Write `corpus.jsonl`, `queries.jsonl` and `qrels/<split>.tsv` to the new folder `output`."""
    with atomic(output) as folder:
        (folder / "qrels").mkdir(parents=True)
        _write(folder / "corpus.jsonl", _corpus(corpus, "_id"))
        queries = ({"_id": q["id"], "text": q["text"]} for q in _rows(split, "queries"))
        _write(folder / "queries.jsonl", queries)
        head = {"query_id": "query-id", "doc_id": "corpus-id", "relevance": "score"}
        rows = [head, *_rows(split, "qrels")]
        name = read_json(Path(split) / "split.json")["split"]
        _write(
            folder / "qrels" / f"{name}.tsv", rows, lambda row: "\t".join(map(str, row.values()))
        )


def _corpus(corpus: Path | str, id_field: str) -> Rows:
    joined = read_json(Path(corpus) / "corpus.json")["title"] == "join"
    for row in _rows(corpus, "corpus"):
        title = row["title"] if joined else ""
        yield {id_field: row["id"], "title": title, "text": row["text"]}


def _rows(folder: Path | str, part: str) -> Rows:
    for batch in read_rows(Path(folder) / f"{part}.parquet"):
        yield from batch.to_pylist()


def _json(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)


def _write(path: Path, rows: Any, line: Callable[[dict[str, Any]], str] = _json) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line(row)}\n" for row in rows)
