"""Cut a corpus into shards.

The cut depends only on the number of characters of each passage and on the number of shards, so it
is the same in every process and on every machine.
"""

from pathlib import Path

import numpy as np

from .reading import read_columns
from .spec import check_shards


def bounds(chars: np.ndarray, shards: int) -> np.ndarray:
    """Row offsets of `shards` runs of passages with about equal numbers of characters.

    `chars`: (documents,) integers ≥ 0. Returns (shards + 1,) int64, from 0 to `documents`, strictly
    increasing; shard i holds rows [result[i], result[i + 1]). No shard holds more than the mean and
    the longest passage. Raises `UserError` when there are more shards than passages.
    """
    documents = len(chars)
    check_shards(shards, documents)
    ends = np.concatenate([[0], np.cumsum(chars, dtype=np.int64)])  # ends[r]: characters before r
    order = np.arange(shards + 1, dtype=np.int64)
    targets = ends[-1] * order // shards
    above = np.searchsorted(ends, targets)
    below = np.maximum(above - 1, 0)
    cuts = np.where(targets - ends[below] <= ends[above] - targets, below, above)
    cuts[-1] = documents
    cuts = np.maximum.accumulate(cuts - order) + order  # at least one passage each …
    result: np.ndarray = np.minimum(
        cuts, documents - shards + order
    )  # … and enough left for those that follow
    return result


def corpus_bounds(corpus: Path | str, shards: int) -> np.ndarray:
    """`bounds` of a prepared corpus.parquet; reads its `chars` column only."""
    return bounds(read_columns(corpus, ["chars"])["chars"].to_numpy(), shards)
