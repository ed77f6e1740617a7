"""Write a dataset as validated Parquet, streaming, in memory that doesn't grow with its texts.

Layout of the folder: `corpus.parquet` (id, title, text: string; chars: int32, the length of the
text that is encoded), `<split>/queries.parquet` (id, text), `<split>/qrels.parquet` (query_id,
doc_id: string; relevance: int32), `dataset.json`. Rows keep the source's order; queries without a
judgement are left out, as every evaluation tool does.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import UserError, printable
from ..files import atomic, sha256, write_record
from ..schema import validate
from ..shards import passage
from .folder import Beir, FlagEmbedding
from .records import Flaws, Judgement, Source
from .remote import Hub, IrDatasets
from .spec import SPEC
from .tables import CORPUS, QRELS, QUERIES, Ids, table

WRITTEN = {"corpus.parquet", "queries.parquet", "qrels.parquet", "dataset.json"}
MOST_MISSING = 0.1  # share of judged passages; above, the judgements are those of another corpus
# Quick work shows no bar; a log gets a line every half minute.
BAR: dict[str, Any] = {
    "unit_scale": True,
    "delay": 2,
    "mininterval": 0.5 if sys.stderr.isatty() else 30,
}
Judged = dict[tuple[str, str], Judgement]  # by query id and passage id


def prepare(spec: dict[str, Any], output: Path | str) -> dict[str, Any]:
    """Write the dataset that `spec` describes to the folder `output`, all of it or nothing.

    `spec`: {name, source, splits: {our name: the source's name, or {source, split} where queries
    and judgements come from elsewhere}} and optionally title (join | drop), instruction,
    ignore_identical_ids, relevance_threshold. A source is {beir: folder}, {flagembedding: folder},
    {hub: id, revision: 40 hex, …} or {ir_datasets: id}. `output` is replaced if it holds a prepared
    dataset. Returns what dataset.json holds. Raises `UserError` for a flaw of the data, naming file
    and line.
    """
    output = Path(output)
    validate(spec, SPEC, "dataset spec")
    check_output(output)
    source = open_source(spec["source"])
    origins = {ours: open_split(source, theirs) for ours, theirs in spec["splits"].items()}
    flaws = Flaws()
    with atomic(output) as folder:
        folder.mkdir()
        judged = {ours: read_qrels(*origin, flaws) for ours, origin in origins.items()}
        missing = {doc for pairs in judged.values() for _, doc in pairs}
        documents = write_corpus(source, folder / "corpus.parquet", spec["title"], missing, flaws)
        for ours, origin in origins.items():
            check_docs(*origin, judged[ours], missing, flaws)
        splits = {
            ours: write_split(*origin, judged[ours], folder / ours, flaws)
            for ours, origin in origins.items()
        }
        facts = spec | {"key": output.name.rpartition("-")[2], "documents": documents}
        facts |= {"splits": splits, "flaws": flaws.counts, "files": file_facts(folder)}
        write_record(folder / "dataset.json", facts)
    return facts


def check_output(output: Path) -> None:
    """Refuse to replace anything but a prepared dataset."""
    for path in [output] if output.is_file() else output.rglob("*"):
        if not path.is_dir() and path.name not in WRITTEN:
            raise UserError(f"{output}: holds other files ({path.name}); choose another --output")


def open_source(source: dict[str, Any]) -> Source:
    kinds = {"beir": Beir, "flagembedding": FlagEmbedding, "hub": Hub, "ir_datasets": IrDatasets}
    given = [kind for kind in kinds if kind in source]
    if len(given) != 1:
        shown = printable(", ".join(source))
        raise UserError(f"dataset source has {shown}: give exactly one of {', '.join(kinds)}")
    return kinds[given[0]](source)


def open_split(source: Source, theirs: str | dict[str, Any]) -> tuple[Source, str]:
    """Where a split's queries and judgements come from, and its name there."""
    if isinstance(theirs, str):
        return source, theirs
    return open_source(theirs["source"]), theirs["split"]


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


def write_corpus(source: Source, path: Path, mode: str, missing: set[str], flaws: Flaws) -> int:
    """Write corpus.parquet and return its number of rows; takes its ids out of `missing`."""
    ids = Ids()
    where = partial(source.where, "corpus", "")
    with table(path, CORPUS, where) as rows:
        for line, id_, title, text in tqdm(source.corpus(), "corpus", unit=" passages", **BAR):
            chars = len(passage(title, text, mode))
            if not chars:
                flaws.found(source, "empty passages", "corpus", "", line, f"{id_} has no text")
            ids.add(id_)
            missing.discard(id_)
            rows.add(line, (id_, title, text, chars), len(title) + len(text))
    if not ids:
        raise UserError(f"{where(1)}: no passages")
    ids.check(source.corpus, where)
    return len(ids)


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


def write_split(
    source: Source, split: str, judged: Judged, folder: Path, flaws: Flaws
) -> dict[str, int]:
    """Write queries.parquet and qrels.parquet of a split; returns its counts."""
    folder.mkdir()
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


def file_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of each Parquet file, by its name relative to `folder`."""
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*.parquet"))
    }
