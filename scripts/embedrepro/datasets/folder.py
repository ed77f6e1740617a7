"""Datasets in local folders: BEIR's layout and FlagEmbedding's custom layout.

BEIR: `corpus.jsonl` (_id, title, text), `queries.jsonl` (_id, text), `qrels/<split>.tsv`
(query-id, corpus-id, score; with or without that header). FlagEmbedding: `corpus.jsonl` (id, title,
text), `<split>_queries.jsonl` (id, text), `<split>_qrels.jsonl` (qid, docid, relevance). Every file
may be gzipped. UTF-8, with or without a byte order mark; lines end in LF or CRLF.
"""

import difflib
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from .records import NUMBER, Judgement, Text, grade, identifier, string

BOM = b"\xef\xbb\xbf"
QRELS_HEADER = re.compile(r"(query|q)[-_]?id", re.IGNORECASE)


class Folder:
    """A dataset folder; see `records.Source`. Raises `UserError` naming file and line."""

    tolerant = False
    kind: str
    id_field: str

    def __init__(self, source: dict[str, Any]) -> None:
        self.folder = Path(source[self.kind])
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder; check the dataset's source")

    def name(self, part: str, split: str) -> str:
        raise NotImplementedError

    def file(self, part: str, split: str = "") -> Path:
        """The file of that part, or its gzipped form; refused when it leads out of the folder."""
        name = self.name(part, split)
        for path in (self.folder / name, self.folder / f"{name}.gz"):
            if path.is_file():
                if not path.resolve().is_relative_to(self.folder.resolve()):
                    raise UserError(f"{path}: links to a place outside its folder; copy it there")
                return path
        there = sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*.*"))
        near = difflib.get_close_matches(name, there, 1, 0.3)
        hint = f"; the nearest file there is {near[0]}" if near else "; the folder has no such file"
        raise UserError(f"{self.folder / name}: no such file{hint}")

    def where(self, part: str, split: str, line: int) -> str:
        return f"{self.file(part, split)}:{line}"

    def corpus(self) -> Iterator[Text]:
        yield from self.texts(self.file("corpus"))

    def queries(self, split: str) -> Iterator[Text]:
        yield from self.texts(self.file("queries", split))

    def texts(self, path: Path) -> Iterator[Text]:
        for line, record in json_lines(path):
            where = f"{path}:{line}"
            id_ = identifier(need(record, self.id_field, where), where, self.id_field)
            title = record.get("title")
            title = "" if title is None else string(title, where, "title")
            yield Text(line, id_, title, string(need(record, "text", where), where, "text"))


class Beir(Folder):
    kind = "beir"
    id_field = "_id"

    def name(self, part: str, split: str) -> str:
        return f"qrels/{split}.tsv" if part == "qrels" else f"{part}.jsonl"

    def qrels(self, split: str) -> Iterator[Judgement]:
        path = self.file("qrels", split)
        for row, (line, text) in enumerate(lines(path)):
            where = f"{path}:{line}"
            cells = text.split("\t")
            if len(cells) != 3:
                raise UserError(
                    f"{where}: {len(cells)} tab-separated columns, expected 3: query-id, "
                    "corpus-id, score"
                )
            if row == 0 and QRELS_HEADER.fullmatch(cells[0]) and not NUMBER.fullmatch(cells[2]):
                continue
            query, doc = identifier(cells[0], where, "query-id"), cells[1]
            doc = identifier(doc, where, "corpus-id")
            yield Judgement(line, query, doc, grade(cells[2], where))


class FlagEmbedding(Folder):
    kind = "flagembedding"
    id_field = "id"

    def name(self, part: str, split: str) -> str:
        return "corpus.jsonl" if part == "corpus" else f"{split}_{part}.jsonl"

    def qrels(self, split: str) -> Iterator[Judgement]:
        path = self.file("qrels", split)
        for line, record in json_lines(path):
            where = f"{path}:{line}"
            query = identifier(need(record, "qid", where), where, "qid")
            doc = identifier(need(record, "docid", where), where, "docid")
            yield Judgement(line, query, doc, grade(need(record, "relevance", where), where))


FOLDERS: dict[str, type[Folder]] = {"beir": Beir, "flagembedding": FlagEmbedding}


def need(record: dict[str, Any], name: str, where: str) -> Any:
    if name not in record:
        has = ", ".join(printable(key, 30) for key in list(record)[:6]) or "nothing"
        raise UserError(f'{where}: field "{name}" is missing (it has {has})')
    return record[name]


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in lines(path):
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{line}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise UserError(f'{path}:{line}: not a JSON object, expected {{"…": …}}')
        yield line, record


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line that isn't blank, without its line end."""
    line = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            for line, raw in enumerate(file, 1):
                if line == 1:
                    raw = raw.removeprefix(BOM)
                text = raw.decode("utf-8").rstrip("\r\n")
                if text and not text.isspace():
                    yield line, text
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{line}: not UTF-8 ({error}); convert the file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}:{line + 1}: can't be read ({error})") from None
