"""Exact top-k search of dense vectors: what a score is, and the search that needs no torch.

The score of a query and a document is defined as the float64 dot product of their stored vectors,
summed in one fixed order and rounded to float32. It depends on nothing but the two vectors, so any
cut into shards, any block size and any device give the same scores and the same order. Queries and
documents may be stored in different precisions.

`search_array` gets there by float64 matrix products t. For vectors of n dimensions, t and the
defined sum each differ from the true dot product by at most g * |query| * |document|, with
g = n * u / (1 - n * u) and u = 2^-53, in whatever order they were added (Higham, Accuracy and
Stability of Numerical Algorithms, 2nd ed., section 3.1; the products themselves are exact, since
float32 has 24 bits, and none is too small for float64). So the defined sum lies within
e = 2 * (n + 4) * u * 1.001 * |query| * |document| of t, where the 4 and the 1.001 cover the
rounding of e, of t - e and of t + e. Rounding to float32 is monotone: the score lies between
low = float32(t - e) and high = float32(t + e), and is known where these are equal, as they nearly
always are. A document with high < kth, the k-th best low of its query, is not among
the best k. Pairs that are left and not known are summed one by one. `scan` searches what is larger.
"""

from collections.abc import Iterator

import numpy as np

from .hits import Batch, first_of_each
from .runs import Ids

UNIT = 2.0**-53
SCORES = 2**25  # held at a time, in three arrays: 384 MiB
PRODUCTS = 2**21  # float64 numbers held at a time, in three arrays: 48 MiB
BLOCK = 2**17  # numbers of pairs summed one by one: their float64 products stay in the cache


def search_array(
    queries: np.ndarray, documents: np.ndarray, k: int, ids: Ids, group: int | None = None
) -> Iterator[Batch]:
    """Yield, query group by query group, (first query, rows (g, m), scores (g, m)).

    `queries` (q, dim), `documents` (n, dim): float16 or float32, finite. m = min(k, n). `ids` as
    for `trec_order`. `group`: queries at a time, chosen here by default.
    """
    n = len(documents)
    group = group or max(1, SCORES // n)
    for first in range(0, len(queries), group):
        part = queries[first : first + group]
        low, high = bounds(part, documents)
        pairs = np.arange(high.size)
        if k < n:
            kth = np.partition(low, n - k, axis=1)[:, n - k]
            pairs = np.flatnonzero(high >= kth[:, None])
        query, row = np.divmod(pairs, n)
        scores = high.ravel()[pairs]
        unknown = np.flatnonzero(low.ravel()[pairs] != scores)
        scores[unknown] = dots(part, documents, query[unknown], row[unknown])
        scores += np.float32(0)  # no negative zero
        best = first_of_each(query, row, scores, len(part), min(k, n), ids)
        yield first, row[best], scores[best]


def bounds(queries: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Between what the scores lie: float32 (queries, documents), twice."""
    (count, dim), n = queries.shape, len(documents)
    wide = queries.astype(np.float64)
    error = 2 * (dim + 4) * UNIT * 1.001 * np.linalg.norm(wide, axis=1)[:, None]
    low, high = np.empty((count, n), np.float32), np.empty((count, n), np.float32)
    size = min(n, max(64, min(PRODUCTS // dim, PRODUCTS // count)))
    # Made once: fresh memory costs more than what is computed in it.
    block_, products_, within_ = (np.empty(shape) for shape in ((size, dim), *[(count, size)] * 2))
    for at in range(0, n, size):
        part = slice(at, min(at + size, n))
        rows = part.stop - at
        block, products, within = block_[:rows], products_[:, :rows], within_[:, :rows]
        np.copyto(block, documents[part])
        np.matmul(wide, block.T, out=products)
        np.multiply(error, np.sqrt(np.einsum("ij,ij->i", block, block)), out=within)
        np.subtract(products, within, out=low[:, part], casting="same_kind")
        np.add(products, within, out=high[:, part], casting="same_kind")
    return low, high


def dots(
    queries: np.ndarray, documents: np.ndarray, query: np.ndarray, row: np.ndarray
) -> np.ndarray:
    """Scores, as defined, of pairs (query, row): float32 (pairs)."""
    scores = np.empty(len(query), np.float32)
    size = max(1, BLOCK // queries.shape[1])
    for at in range(0, len(query), size):
        part = slice(at, at + size)
        left = np.ascontiguousarray(queries[query[part]].T, np.float64)
        scores[part] = add_up(left * documents[row[part]].T)
    return scores


class ArrayScorer:
    """`refine.Scorer` in NumPy."""

    def __init__(self, queries: np.ndarray):
        self.queries, self.unit = queries, of_norm_1(queries)

    def largest_product(self, documents: np.ndarray) -> float:
        return float(np.abs(self.unit @ documents.T).max(initial=0))

    def pairs(self, documents: np.ndarray, query: np.ndarray, row: np.ndarray) -> np.ndarray:
        return dots(self.queries, documents, query, row)


def of_norm_1(vectors: np.ndarray) -> np.ndarray:
    """Float32 `vectors` (n, dim) without those of norm 0, the others brought to norm 1."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    used = norms > 0
    unit: np.ndarray = (vectors[used] / norms[used, None]).astype(np.float32)
    return unit


def add_up(products: np.ndarray) -> np.ndarray:
    """Sums (n) of `products` (dim, n), by halves as `scores.dot` does; overwrites `products`."""
    while (n := len(products)) > 1:
        half = n // 2
        products[:half] += products[half : half * 2]
        if n % 2:
            products[0] += products[-1]
        products = products[:half]
    sums: np.ndarray = products[0]
    return sums
