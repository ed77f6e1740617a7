"""Judgements of one split as arrays, so that millions of hits are looked up at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import UserError
from ..files import whole


@dataclass(frozen=True)
class Judgements:
    """queries: ids (q) in the order in which they first come, docs: ids (d), each once.

    query (row of queries), doc (row of docs), grade: int64 (j), one entry for each judgement,
    sorted by (query, grade downwards). Grades below 0 are 0, as in every measure here.
    """

    queries: pa.Array
    docs: pa.Array
    query: np.ndarray
    doc: np.ndarray
    grade: np.ndarray

    @classmethod
    def of(cls, query: pa.Array, doc: pa.Array, grade: np.ndarray) -> "Judgements":
        """From one entry for each judgement; of a pair that is judged twice the last one counts."""
        kind = pa.large_string()
        queries, docs = (pc.dictionary_encode(ids.cast(kind)) for ids in (query, doc))
        rows, columns = queries.indices.to_numpy(), docs.indices.to_numpy()
        pairs = rows.astype(np.int64) * len(docs.dictionary) + columns
        _, last = np.unique(pairs[::-1], return_index=True)
        last = len(pairs) - 1 - last
        grades = np.maximum(np.asarray(grade, np.int64)[last], 0)
        rows, columns = rows[last].astype(np.int64), columns[last].astype(np.int64)
        order = np.lexsort((-grades, rows))
        parts = rows[order], columns[order], grades[order]
        return cls(queries.dictionary, docs.dictionary, *parts)

    @classmethod
    def of_dicts(cls, qrels: Mapping[str, Mapping[str, int]]) -> "Judgements":
        """From {query id: {document id: grade}}."""
        pairs = [(q, d, g) for q, grades in qrels.items() for d, g in grades.items()]
        query, doc, grade = zip(*pairs, strict=True) if pairs else ((), (), ())
        kind = pa.large_string()
        found = cls.of(pa.array(query, kind), pa.array(doc, kind), np.array(grade, np.int64))
        if len(found.queries) == len(qrels):
            return found
        rows = pc.index_in(found.queries, value_set=(names := pa.array(qrels, kind))).to_numpy()
        return cls(names, found.docs, rows[found.query], found.doc, found.grade)

    @classmethod
    def read(cls, path: Path | str) -> "Judgements":
        """A prepared qrels.parquet."""
        # Not read_table: that imports pandas.
        table = pq.ParquetFile(whole(path)).read(["query_id", "doc_id", "relevance"])
        query, doc, grade = (column.combine_chunks() for column in table.columns)
        if not len(grade):
            raise UserError(f"{path}: holds no judgement; prepare the dataset again")
        return cls.of(query, doc, grade.to_numpy())

    def __len__(self) -> int:
        return len(self.queries)

    @cached_property
    def place(self) -> np.ndarray:
        """Of each judgement among its query's, best grade first, from 0."""
        starts = np.searchsorted(self.query, np.arange(len(self)))
        place: np.ndarray = np.arange(len(self.query)) - starts[self.query]
        return place

    @cached_property
    def levels(self) -> list[int]:
        """The grades above 0, upwards."""
        return [int(grade) for grade in np.unique(self.grade) if grade > 0]

    def relevant(self, rel: int) -> np.ndarray:
        """How many documents of each query have at least grade `rel`: int64 (q)."""
        return np.bincount(self.query[self.grade >= rel], minlength=len(self))

    def ideal(self, cutoff: int | None) -> np.ndarray:
        """The best DCG that each query can have in its first `cutoff` ranks: float64 (q)."""
        used = self.grade > 0
        if cutoff is not None:
            used &= self.place < cutoff
        return dcg(self.query[used], self.place[used] + 1, self.grade[used], len(self))

    @cached_property
    def names(self) -> pa.Array:
        """Ids that matter in a run: `docs`, then queries' ids that are none of them."""
        return pc.unique(pa.concat_arrays([self.docs, self.queries]))

    @cached_property
    def own_name(self) -> np.ndarray:
        """Of each query the row of its id in `names`."""
        found: np.ndarray = pc.index_in(self.queries, value_set=self.names).to_numpy()
        return found

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        keys = self.query * len(self.names) + self.doc
        order = np.argsort(keys)
        return keys[order], self.grade[order]

    def grades(self, query: np.ndarray, name: np.ndarray) -> np.ndarray:
        """The grade of each pair of rows in `queries` and `names`; 0 where it isn't judged."""
        keys, grades = self._pairs
        wanted = query * len(self.names) + name
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[place] == wanted, grades[place], 0)


def dcg(query: np.ndarray, rank: np.ndarray, gain: np.ndarray, queries: int) -> np.ndarray:
    """Sums of gain / log2(rank + 1), added in the order given: float64 (queries)."""
    logs = _logs(int(rank.max(initial=1)).bit_length())
    return np.bincount(query, gain / logs[rank], minlength=queries)


@lru_cache(2)
def _logs(bits: int) -> np.ndarray:
    """log2(rank + 1) by rank as C's library gives them; NumPy's may differ in the last bit."""
    from math import log2

    return np.array([log2(rank + 1) for rank in range(2**bits)])
