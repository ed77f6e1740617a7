"""TREC runs: six columns `qid Q0 docid rank score tag`, ordered as trec_eval orders them.

trec_eval sorts by score (held in single precision), highest first, and breaks ties by document id,
highest first, compared byte by byte; it ignores the rank column and the order of the lines. Every
run written here is already in that order, so the rank in the file is the rank that is scored.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import UserError, printable
from ..files import sealed, whole

Ids = Callable[[np.ndarray], pa.Array]  # row numbers to document ids
Ranking = tuple[str, list[str], np.ndarray]  # query id, document ids, float32 scores; in order


def trec_order(query: np.ndarray, score: np.ndarray, doc: np.ndarray, ids: Ids) -> np.ndarray:
    """Permutation that sorts hits by (query, score descending, document id descending in UTF-8).

    `query`, `score` (float32) and `doc` (row numbers) have one entry per hit. `ids(rows)` gives the
    document ids of rows; it is asked only about rows whose score ties within a query.
    """
    key = sort_key(query, score)
    order = np.argsort(key)
    ordered = key[order]
    same = ordered[1:] == ordered[:-1]
    if same.any():
        tied = np.flatnonzero(np.r_[False, same] | np.r_[same, False])
        order[tied] = order[tied[tie_order(ordered[tied], doc[order[tied]], ids)]]
    return order


def sort_key(query: np.ndarray, score: np.ndarray) -> np.ndarray:
    """One int64 for each hit: upwards by query (integer), then downwards by score (float32)."""
    bits = (score + np.float32(0)).view(np.int32)  # -0 becomes 0
    upward = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the scores
    return (query.astype(np.int64) << 32) + (0x7FFFFFFF - upward.astype(np.int64))


def tie_order(key: np.ndarray, doc: np.ndarray, ids: Ids) -> np.ndarray:
    """Permutation of tied hits, already sorted by `key`, that sorts each tie by id downwards."""
    rows, place = np.unique(doc, return_inverse=True)
    by_id = pc.sort_indices(ids(rows), sort_keys=[("", "descending")]).to_numpy()
    rank = np.empty(len(rows), dtype=np.int64)
    rank[by_id] = np.arange(len(rows))
    return np.lexsort((rank[place], key))


def kept(query: str, docs: Sequence[str], k: int) -> int:
    """How many of `docs`, best first, make a run of `k`: the query's own document doesn't count.

    So a protocol that drops it finds `k` others.
    """
    return k + (query in docs[: k + 1])


def read_ids(path: Path | str, start: int = 0, stop: int | None = None) -> pa.Array:
    """The `id` column of a Parquet file's rows `start:stop`, as one large_string array."""
    file = pq.ParquetFile(whole(path))
    stop = file.metadata.num_rows if stop is None else stop
    parts, first = [], 0
    for group in range(file.num_row_groups):
        last = first + file.metadata.row_group(group).num_rows
        if first < stop and last > start:
            column = file.read_row_group(group, columns=["id"]).column("id")
            parts.extend(column.slice(max(start - first, 0), stop - max(first, start)).chunks)
        first = last
    return (
        pa.concat_arrays([part.cast(pa.large_string()) for part in parts])
        if parts
        else (pa.array([], pa.large_string()))
    )


def write_run(path: Path | str, rankings: Iterable[Ranking], tag: str) -> None:
    """Write rankings, each already in trec_eval's order, as a TREC run; whole or not at all.

    Scores are float32 and printed with nine significant digits, which round-trips them.
    """
    _check_field(tag, "tag")
    with sealed(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for query, docs, scores in rankings:
            _check_field(query, "query id")
            for doc in docs:
                _check_field(doc, "document id")
            file.writelines(
                f"{query} Q0 {doc} {rank} {score:.9g} {tag}\n"
                for rank, (doc, score) in enumerate(zip(docs, scores.tolist(), strict=True), 1)
            )


def _check_field(text: str, what: str) -> None:
    if text.split() != [text]:
        raise UserError(
            f"{what} {printable(text)!r} is empty or holds white space, which a TREC run can't "
            "carry; rename it in the dataset"
        )


def iter_run(path: Path | str) -> Iterator[Ranking]:
    """Read a TREC run query by query, each query's lines put into trec_eval's order.

    Raises what `iter_listed` raises.
    """
    for query, scores in iter_listed(path):
        yield ranked(query, scores)


def iter_listed(path: Path | str) -> Iterator[tuple[str, dict[str, float]]]:
    """Read a TREC run query by query: its id, and {document id: score} as the file lists them.

    Raises `UserError` naming file and line for a malformed line, a score that is not finite, a
    document twice in one query, or a query whose lines are not together.
    """
    seen: set[str] = set()
    for query, lines in groupby(_lines(path), key=lambda line: line[1]):
        scores: dict[str, float] = {}
        for number, _, doc, score in lines:
            if query in seen or doc in scores:
                what = "query" if query in seen else "document"
                raise UserError(
                    f"{path}:{number}: {what} {printable(query if query in seen else doc)} comes "
                    "a second time; a run lists a query's documents once and together"
                )
            scores[doc] = score
        seen.add(query)
        yield query, scores


def ranked(query: str, scores: dict[str, float]) -> Ranking:
    """Put one query's {document id: score} into trec_eval's order, scores rounded to float32."""
    docs = list(scores)
    values = np.fromiter(scores.values(), dtype=np.float32, count=len(docs)) + np.float32(0)
    ids = pa.array(docs, pa.large_string())
    order = trec_order(np.zeros(len(docs), np.int8), values, np.arange(len(docs)), ids.take)
    return query, [docs[i] for i in order], values[order]


def read_run(path: Path | str) -> dict[str, dict[str, float]]:
    """{query id: {document id: score}} of a TREC run, best document first (see `iter_run`)."""
    return {
        query: dict(zip(docs, scores.tolist(), strict=True))
        for query, docs, scores in iter_run(path)
    }


def _lines(path: Path | str) -> Iterator[tuple[int, str, str, float]]:
    with open(whole(path), "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                query, _, doc, rank, score, _ = line.decode("utf-8").split()
                int(rank)
                value = float(score)
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                shown = printable(line.decode("utf-8", "replace").strip(), 80)
                raise UserError(
                    f"{path}:{number}: not a line of a TREC run "
                    f"(qid Q0 docid rank score tag): {shown!r}"
                )
            yield number, query, doc, value
