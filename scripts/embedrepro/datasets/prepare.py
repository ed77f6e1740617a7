"""Write a corpus and its splits as validated Parquet, in memory that doesn't grow with the texts.

A corpus' folder holds `corpus.parquet` (id, title, text: string; chars: int32, the length of the
text that is encoded) and `corpus.json`, written last: where that is, both are whole. A split's
folder, within it, holds `queries.parquet` (id, text), `qrels.parquet` (query_id, doc_id: string;
relevance: int32) and `split.json`. Rows keep the source's order; queries without a judgement are
left out, as every evaluation tool does.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from tqdm import tqdm

from ..errors import UserError, printable
from ..files import atomic, digest, read_json, remove, write_record
from ..schema import validate
from . import spec as specs
from .columns import Unusual, read_passages
from .folder import FOLDERS, Folder
from .local import corpus_identity, local_kind, source_kind, split_identity
from .reading import absent_ids
from .records import Flaws, Judgement, Source, passage
from .remote import Hub, IrDatasets
from .tables import CORPUS, QRELS, QUERIES, Ids, table, table_facts

KINDS: dict[str, Any] = {**FOLDERS, "hub": Hub, "ir_datasets": IrDatasets}
SPLIT_FILES = ("qrels.parquet", "queries.parquet")
MOST_MISSING = 0.1  # share of judged passages; above, the judgements are those of another corpus
# Quick work shows no bar; a log gets a line every half minute.
BAR: dict[str, Any] = {
    "unit_scale": True,
    "delay": 2,
    "mininterval": 0.5 if sys.stderr.isatty() else 30,
}
Judged = dict[tuple[str, str], Judgement]  # by query id and passage id
Record = dict[str, Any]  # what a corpus.json or split.json holds


@dataclass(frozen=True)
class CorpusTask:
    """`spec`: {name, source} and optionally title (join | drop) and identity (see
    `local.corpus_identity`), which the source must still have when it was read. A source is {beir:
    folder}, {flagembedding: folder}, {hub: id, revision: 40 hex, …} or {ir_datasets: id}."""

    spec: Mapping[str, Any]
    folder: Path
    shards: int = 1  # that it must have passages for


@dataclass(frozen=True)
class SplitTask:
    """`spec`: {name, split, source, theirs: the source's name of the split, or {source, split}
    where queries and judgements come from elsewhere} and optionally identity."""

    spec: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True)
class Judgements:
    """A split's judgements, read before its corpus so that a flaw is told early."""

    source: Source
    theirs: str  # the source's name of the split
    judged: Judged
    flaws: Flaws
    identity: dict[str, Any]  # of the source, taken before reading

    @property
    def docs(self) -> set[str]:
        return {doc for _, doc in self.judged}


def prepare_corpus(spec: Mapping[str, Any], output: Path | str) -> Record:
    """`prepare_dataset` of a corpus without splits; returns what its corpus.json holds."""
    return prepare_dataset(CorpusTask(spec, Path(output)))[0]


def prepare_split(spec: Mapping[str, Any], corpus: Path | str, output: Path | str) -> Record:
    """Write one split of the corpus that is prepared in the folder `corpus`, if it isn't there.

    Returns what its split.json holds; see `prepare_dataset`.
    """
    corpus, task = Path(corpus), SplitTask(spec, Path(output))
    if not (corpus / "corpus.json").is_file():
        raise UserError(f"{corpus / 'corpus.json'}: no such file; prepare the corpus first")
    record = kept_split(task)
    if record is None:
        read = read_judgements(task, shared_sources())
        missing = absent_ids(corpus / "corpus.parquet", read.docs)
        record = write_split(task, read, missing)
    return record


def prepare_dataset(corpus: CorpusTask, splits: Sequence[SplitTask] = ()) -> list[Record]:
    """Write what isn't there of a corpus and its splits; the corpus is read once for all of them.

    Each is written whole or not at all. Returns the records of the corpus and of the splits, in
    that order. Raises `UserError` for a flaw of the data, naming file and line, for a folder that
    holds something else, and for a local source that changed since its identity was taken.
    """
    kept, open_ = [kept_split(task) for task in splits], shared_sources()
    record = kept_corpus(corpus)
    reads = [
        None if there else read_judgements(task, open_)
        for task, there in zip(splits, kept, strict=True)
    ]
    missing = {doc for read in reads if read for doc in read.docs}
    if record is None:
        record = write_corpus(corpus, open_(corpus.spec["source"]), missing)
    elif missing:
        missing = absent_ids(corpus.folder / "corpus.parquet", missing)
    made = [
        write_split(task, read, missing) if read else there
        for task, read, there in zip(splits, reads, kept, strict=True)
    ]
    return [record, *(one for one in made if one is not None)]


def kept_corpus(task: CorpusTask) -> Record | None:
    """The record of a corpus that is there already."""
    spec = checked(task.spec, specs.CORPUS, "corpus")
    made_from = {"source": identity_of(spec), "title": spec["title"]}
    record = kept(task.folder / "corpus.json", made_from, ["corpus.parquet"])
    if record:
        specs.check_shards(task.shards, record["documents"], f"{printable(spec['name'], 80)}: ")
    return record


def kept_split(task: SplitTask) -> Record | None:
    """The record of a split that is there already."""
    spec = checked(task.spec, specs.SPLIT, "split")
    check_output(task.folder)
    return kept(task.folder / "split.json", {"source": identity_of(spec)}, SPLIT_FILES)


def checked(spec: Mapping[str, Any], schema: dict[str, Any], what: str) -> dict[str, Any]:
    """A copy of `spec`, valid and with the schema's defaults."""
    copy = dict(spec)
    validate(copy, schema, f"{what} spec")
    where = f"dataset '{printable(copy['name'], 80)}'"
    source_kind(copy["source"], where)
    if isinstance(copy.get("theirs"), dict):
        source_kind(copy["theirs"]["source"], where)
    return copy


def identity_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What the source held when the spec was made, or else what it holds now."""
    return spec.get("identity") or current_identity(spec)


def current_identity(spec: Mapping[str, Any]) -> dict[str, Any]:
    if "theirs" in spec:
        return split_identity(spec["source"], spec["theirs"])
    return corpus_identity(spec["source"])


def check_unchanged(spec: Mapping[str, Any], identity: dict[str, Any]) -> None:
    """Refuse a local source that is no longer what the key and the record say it is."""
    if local_kind(identity) and current_identity(spec) != identity:
        given = spec["source"]
        if isinstance(spec.get("theirs"), dict):
            given = spec["theirs"]["source"]
        folder = given[local_kind(identity) or ""]
        raise UserError(f"{folder}: its files changed since they were looked at; run again")


def kept(path: Path, made_from: dict[str, Any], files: Sequence[str]) -> Record | None:
    """A record whose files are there in their full size; None where something is missing."""
    try:
        record: Record = read_json(path)
        whole = all(
            (path.parent / name).stat().st_size == record["files"][name]["size"] for name in files
        )
    except (UserError, OSError, KeyError):
        return None
    if not whole:
        return None
    if any(record.get(key) != value for key, value in made_from.items()):
        raise UserError(
            f"{path}: was made from another source or by another title rule; "
            f"choose another folder or delete {path.parent}"
        )
    return record


def check_output(folder: Path) -> None:
    """Refuse to replace anything but a prepared split."""
    for path in [folder] if folder.is_file() else folder.glob("*"):
        if path.name not in (*SPLIT_FILES, "split.json"):
            raise UserError(f"{folder}: holds other files ({path.name}); choose another folder")


def shared_sources() -> Callable[[Mapping[str, Any]], Source]:
    """`open_source` that opens each source once."""
    known: dict[str, Source] = {}

    def open_(source: Mapping[str, Any]) -> Source:
        key = digest(source)
        if key not in known:
            known[key] = open_source(source)
        return known[key]

    return open_


def open_source(source: Mapping[str, Any]) -> Source:
    opened: Source = KINDS[source_kind(source, "dataset")](source)
    return opened


def read_judgements(task: SplitTask, open_: Callable[[Mapping[str, Any]], Source]) -> Judgements:
    source, theirs = task.spec["source"], task.spec["theirs"]
    if not isinstance(theirs, str):
        source, theirs = theirs["source"], theirs["split"]
    opened, flaws, identity = open_(source), Flaws(), identity_of(task.spec)
    return Judgements(opened, theirs, read_qrels(opened, theirs, flaws), flaws, identity)


def read_qrels(source: Source, split: str, flaws: Flaws) -> Judged:
    """The judgements in the source's order; of a pair judged twice the last one holds."""
    judged: Judged = {}
    for judgement in source.qrels(split):
        pair = judgement.query, judgement.doc
        if pair in judged:
            message = f"{pair[0]} and {pair[1]} are judged on line {judged[pair].line} already"
            flaws.found(source, "pairs judged twice", "qrels", split, judgement.line, message)
        judged[pair] = judgement
    if not judged:
        raise UserError(f"{source.where('qrels', split, 1)}: no judgements")
    return judged


def write_corpus(task: CorpusTask, source: Source, missing: set[str]) -> Record:
    """Write corpus.parquet, then corpus.json; takes the corpus' ids out of `missing`."""
    spec = checked(task.spec, specs.CORPUS, "corpus")
    identity, flaws = identity_of(spec), Flaws()
    record = task.folder / "corpus.json"
    with atomic(task.folder / "corpus.parquet") as temporary:
        documents, chars = write_passages(source, temporary, spec["title"], missing, flaws)
        check_unchanged(spec, identity)
        specs.check_shards(task.shards, documents, f"{printable(spec['name'], 80)}: ")
        facts = {
            "name": spec["name"],
            "source": identity,
            "title": spec["title"],
            "documents": documents,
            "chars": chars,
            "flaws": flaws.counts,
            "files": {"corpus.parquet": table_facts(temporary)},
        }
        remove(record)  # what it lists is replaced now
    write_record(record, facts)
    return facts


def write_passages(
    source: Source, path: Path, mode: str, missing: set[str], flaws: Flaws
) -> tuple[int, int]:
    """Write the rows of corpus.parquet; returns their number and that of their characters."""
    if isinstance(source, Folder):
        with suppress(Unusual):
            return copy_passages(source, path, mode, missing)
    ids, total = Ids(), 0
    where = partial(source.where, "corpus", "")
    with table(path, CORPUS, where) as rows:
        for line, id_, title, text in tqdm(source.corpus(), "corpus", unit=" passages", **BAR):
            chars = len(passage(title, text, mode))
            if not chars:
                flaws.found(source, "empty passages", "corpus", "", line, f"{id_} has no text")
            total += chars
            ids.add(id_)
            missing.discard(id_)
            rows.add(line, (id_, title, text, chars), len(title) + len(text))
    if not ids:
        raise UserError(f"{where(1)}: no passages")
    ids.check(source.corpus, where)
    return len(ids), total


def copy_passages(source: Folder, path: Path, mode: str, missing: set[str]) -> tuple[int, int]:
    """`write_passages` in columns; raises `Unusual` for what is to be read line by line."""
    ids, total, left = Ids(), 0, set(missing)
    with (
        table(path, CORPUS, partial(source.where, "corpus", "")) as rows,
        tqdm(desc="corpus", unit=" passages", **BAR) as bar,
    ):
        for batch in read_passages(source.file("corpus"), source.id_field, mode):
            lengths = (pc.utf8_length(batch.column(name)).to_numpy() for name in ("title", "text"))
            rows.extend(batch, np.add(*lengths))
            known = batch.column("id").to_pylist()
            ids.extend(known)
            left.difference_update(known)
            total += pc.sum(batch.column("chars")).as_py() or 0
            bar.update(len(batch))
    if not ids:
        raise Unusual
    ids.check(source.corpus, partial(source.where, "corpus", ""))
    missing.intersection_update(left)
    return len(ids), total


def check_docs(source: Source, split: str, judged: Judged, missing: set[str], flaws: Flaws) -> None:
    """Every judged passage must be in the corpus; `missing` are those that are not."""
    lost = [j for j in judged.values() if j.doc in missing]
    if source.tolerant and len(lost) > MOST_MISSING * len(judged):
        raise UserError(
            f"{source.where('qrels', split, lost[0].line)}: {len(lost):,} of {len(judged):,} "
            f"judged passages ({lost[0].doc}, say) are not in the corpus; it must be another one"
        )
    for judgement in lost:
        message = f"passage {judgement.doc} is not in the corpus"
        kind = "judged passages not in the corpus"
        flaws.found(source, kind, "qrels", split, judgement.line, message)


def write_split(task: SplitTask, read: Judgements, missing: set[str]) -> Record:
    """Write a split's folder; `missing` are the judged passages that its corpus lacks."""
    spec = task.spec
    check_docs(read.source, read.theirs, read.judged, missing, read.flaws)
    with atomic(task.folder) as folder:
        folder.mkdir()
        counts = write_tables(read, folder)
        check_unchanged(spec, read.identity)
        facts = {
            "name": spec["name"],
            "split": spec["split"],
            "source": read.identity,
            **counts,
            "flaws": read.flaws.counts,
            "files": {name: table_facts(folder / name) for name in SPLIT_FILES},
        }
        write_record(folder / "split.json", facts)
    return facts


def write_tables(read: Judgements, folder: Path) -> dict[str, int]:
    """Write queries.parquet and qrels.parquet of a split; returns its counts."""
    source, split, judged, flaws = read.source, read.theirs, read.judged, read.flaws
    queries, left_out = write_queries(source, split, judged, folder / "queries.parquet", flaws)
    answerable = 0
    with table(folder / "qrels.parquet", QRELS, partial(source.where, "qrels", split)) as rows:
        for line, query, doc, relevance in judged.values():
            if query not in queries:
                message = f"query {query} is not among the queries"
                flaws.found(source, "judgements without a query", "qrels", split, line, message)
                continue
            rows.add(line, (query, doc, relevance))
            answerable += 1
    counts = {"queries": len(queries), "qrels": answerable, "judged": len({q for q, _ in judged})}
    return counts | {"queries_left_out": left_out}


def write_queries(
    source: Source, split: str, judged: Judged, path: Path, flaws: Flaws
) -> tuple[set[str], int]:
    """Write the judged queries; returns their ids, and how many queries are without judgement."""
    wanted = {query for query, _ in judged}
    ids, written = Ids(), set()
    where = partial(source.where, "queries", split)
    with table(path, QUERIES, where) as rows:
        for line, id_, _, text in tqdm(source.queries(split), "queries", unit=" queries", **BAR):
            ids.add(id_)
            if id_ in wanted:
                if not text.strip():
                    message = f"query {id_} has no text"
                    flaws.found(source, "empty queries", "queries", split, line, message)
                rows.add(line, (id_, text))
                written.add(id_)
    ids.check(partial(source.queries, split), where)
    return written, len(ids) - len(written)


def summary(records: Sequence[Record]) -> list[str]:
    """Lines that tell a person what `prepare_dataset` made."""
    lines = []
    for record in records:
        if "documents" in record:
            lines.append(f"{record['name']}: {record['documents']:,} passages")
        else:
            counts = ("queries", "qrels", "judged", "queries_left_out")
            told = ", ".join(f"{record[c]:,} {c.replace('_', ' ')}" for c in counts)
            lines.append(f"  {record['split']}: {told}")
        for flaw, count in record["flaws"].items():
            lines.append(f"  kept as the benchmark has it: {count:,} {flaw}")
    return lines
