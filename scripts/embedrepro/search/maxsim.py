"""Exact top-k search of token vectors by MaxSim.

The score of a query and a document is defined as the sum over the query's vectors, in their order,
of the largest dot product with any of the document's vectors; for `meanmaxsim` divided by the
number of the query's vectors. Dot products are added in the order of the dimensions; all of this is
done in float64 and the score is rounded to float32 once. It depends on nothing but the two texts'
vectors, so any cut into shards, any block size and any device give the same scores and the same
order. A document without vectors scores `EMPTY`, as sentence-transformers has it.

Candidates come from fast float32 products: the bound in `scan` holds for each dot product, so also
for the largest of them, and their sum is off by no more than the sum of the bounds. Candidates are
scored again by float64 products of matrices. Those add in another order than the definition does;
where the difference that this can make would round to another float32, which is rare, the pair is
computed as defined.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..encode import pick_device
from ..vectors.embeddings import not_finite
from ..vectors.multivector import SIMILARITIES, TokenVectors
from .candidates import Pool
from .hits import Batch
from .pieces import Pieces, check_same_model, query_groups, rescore
from .runs import Ids, Ranking, iter_run, read_ids

EMPTY = -1e9
BLOCK = {"cpu": 2**15, "cuda": 2**18}  # token vectors of a block of documents
PRODUCTS = {"cpu": 2**22, "cuda": 2**28}  # float32 products held at a time
EXACT = {"cpu": 2**22, "cuda": 2**26}  # numbers of documents scored exactly at a time
READERS = 3  # blocks that are read ahead, each by a thread: one is slower than a device
UNIT = {"cpu": 2.0**-24, "cuda": 2.0**-22}  # see `scan`


def scan(
    queries: TokenVectors, shard: TokenVectors, k: int, ids: Ids, device: str
) -> Iterator[Batch]:
    """Yield, query group by query group, (first query, rows (g, m), scores (g, m)).

    m = min(k, rows of the shard); `ids` as for `runs.trec_order`, by row of the shard.
    """
    found = min(k, shard.rows)
    capacity = min(shard.rows, 4 * found + 1024)
    documents = Documents(shard, device)
    half = device == "cuda" and shard.meta["dtype"] == "float16"
    bytes_each = 8 * capacity + 12 * queries.dimension * int(queries.offsets[-1]) // queries.rows
    for start, stop in query_groups(queries.rows, bytes_each):
        group = Group(queries, start, stop, device, half)
        exact = partial(_exact_pairs, group, documents)
        pool = Pool(group.error, found, capacity, exact, ids)
        for block in documents.blocks():
            pool.offer(group.scores(block), block.first, block.norm, None)
        yield start, *pool.finish()


def score_pairs(
    queries: TokenVectors,
    corpus: Sequence[TokenVectors],
    q: np.ndarray,
    rows: np.ndarray,
    device: str = "cpu",
) -> np.ndarray:
    """Scores (n,) float32 of pairs of a row of `queries` and a row of the corpus."""
    scores = np.empty(len(q), np.float32)
    for piece, places, own in Pieces(corpus).split(rows):
        for query in np.unique(q[places]).tolist():
            mine = q[places] == query
            tokens, lengths = piece.gather("tokens", own[mine]), piece.lengths[own[mine]]
            asked = torch.from_numpy(queries.block(query, query + 1)).to(device)
            given = torch.from_numpy(tokens).to(device)
            found = exact_scores(asked, given, lengths, queries.similarity)
            scores[places[mine]] = found
    return scores


class Block(NamedTuple):
    """Documents from row `first` on: their vectors end to end, how many each has, largest norm."""

    first: int
    tokens: torch.Tensor
    lengths: np.ndarray
    norm: float


class Documents:
    """A shard's documents, read from disk block by block, or by row.

    On CUDA they stay on the device after the first pass if they fit in half of what is free. The
    first pass checks the files' digests meanwhile.
    """

    def __init__(self, shard: TokenVectors, device: str) -> None:
        self.shard, self.device = shard, device
        self.lengths = shard.lengths
        self._cuts = _cuts(shard.offsets, BLOCK[device])
        self._norms: dict[int, float] = {}
        self._resident: torch.Tensor | None = None
        size = int(shard.offsets[-1]) * shard.fields["tokens"].bytes
        self._keep = device == "cuda" and size <= torch.cuda.mem_get_info()[0] // 2

    def blocks(self) -> Iterator[Block]:
        """All documents; a block holds at least one."""
        spans = list(zip(self._cuts, self._cuts[1:], strict=False))
        with ThreadPoolExecutor(READERS + 1) as pool:
            check = None if self.shard.verified else pool.submit(self.shard.verify)
            read = [pool.submit(self._read, *span) for span in spans[:READERS]]
            for number, (start, stop) in enumerate(spans):
                if number + READERS < len(spans):
                    read.append(pool.submit(self._read, *spans[number + READERS]))
                yield self._block(start, stop, read.pop(0).result())
            if check:
                check.result()

    def _read(self, start: int, stop: int) -> torch.Tensor | None:
        """Vectors of rows [start, stop), in pinned memory where they go to a device."""
        if self._resident is not None and start in self._norms:
            return None
        first, last = int(self.shard.offsets[start]), int(self.shard.offsets[stop])
        found = torch.empty(
            (last - first, self.shard.dimension),
            dtype=getattr(torch, str(self.shard.fields["tokens"].dtype)),
            pin_memory=self.device == "cuda",
        )
        self.shard.items("tokens", first, last, found.numpy())
        return found

    def _block(self, start: int, stop: int, host: torch.Tensor | None) -> Block:
        first, last = int(self.shard.offsets[start]), int(self.shard.offsets[stop])
        if host is None:
            assert self._resident is not None
            tokens = self._resident[first:last]
        else:
            tokens = host.to(self.device, non_blocking=True)
            if self._keep:
                if self._resident is None:
                    shape = (int(self.shard.offsets[-1]), self.shard.dimension)
                    self._resident = torch.empty(shape, dtype=tokens.dtype, device=self.device)
                self._resident[first:last] = tokens
        if start not in self._norms:
            self._norms[start] = self._largest_norm(first, tokens)
        return Block(start, tokens, self.lengths[start:stop], self._norms[start])

    def _largest_norm(self, first: int, tokens: torch.Tensor) -> float:
        if not len(tokens):
            return 0.0
        norms = torch.linalg.vector_norm(tokens, dim=1, dtype=torch.float32)
        largest = float(norms.max())
        if not np.isfinite(largest):
            item = first + int((~torch.isfinite(norms)).nonzero()[0])
            row = int(np.searchsorted(self.shard.offsets, item, "right")) - 1
            raise not_finite(self.shard.path, row)
        return largest

    def gather(self, rows: np.ndarray) -> torch.Tensor:
        """The vectors of `rows` (n,), end to end, on the device."""
        if self._resident is None:
            return torch.from_numpy(self.shard.gather("tokens", rows)).to(self.device)
        lengths = self.lengths[rows]
        places = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        places += np.repeat(self.shard.offsets[rows], lengths)
        return self._resident[torch.from_numpy(places).to(self.device)]


def _cuts(offsets: np.ndarray, size: int) -> list[int]:
    """Rows where blocks of at most `size` items, or of one row, begin, and the end."""
    cuts = [0]
    while cuts[-1] < len(offsets) - 1:
        stop = int(np.searchsorted(offsets, offsets[cuts[-1]] + size, "right")) - 1
        cuts.append(max(stop, cuts[-1] + 1))
    return cuts


class Group:
    """Queries [start, stop) on the device, to be multiplied with float16 documents or wider ones.

    `error` (g,): how far a fast score may be from the score, for documents of norm 1.
    """

    def __init__(
        self, queries: TokenVectors, start: int, stop: int, device: str, half: bool
    ) -> None:
        self.device, self.similarity = device, queries.similarity
        self.lengths = queries.lengths[start:stop]
        self.ends = queries.offsets[start : stop + 1] - queries.offsets[start]
        self.tokens = torch.from_numpy(queries.block(start, stop)).to(device)
        norms = torch.linalg.vector_norm(self.tokens, dim=1, dtype=torch.float64)
        if not torch.isfinite(norms).all():
            item = int((~torch.isfinite(norms)).nonzero()[0])
            row = start + int(np.searchsorted(self.ends, item, "right")) - 1
            raise not_finite(queries.path, row)
        self.factors, lost = self._split(half)
        terms = len(self.factors) * queries.dimension + int(self.lengths.max(initial=0)) + 8
        self.error = self._sums(lost + terms * UNIT[device] * 1.001 * (norms + lost))
        self._parts = self._batches(PRODUCTS[device] // BLOCK[device])

    def _split(self, half: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Parts that add up to the vectors, and the norm of what they leave out (tokens,).

        Two float16 parts have 22 bits: tensor cores multiply those exactly, much faster than
        float32.
        """
        lost = torch.zeros(len(self.tokens), dtype=torch.float64, device=self.device)
        if half:
            wide = self.tokens.double()
            high = wide.half()
            low = (wide - high.double()).half()
            if torch.isfinite(high).all():
                lost += torch.linalg.vector_norm(wide - high.double() - low.double(), dim=1)
                return ([high, low] if low.any() else [high]), lost
        return [self.tokens.float()], lost

    def _sums(self, each: torch.Tensor) -> torch.Tensor:
        """(g,) sums, or means, of numbers (tokens,) over each query, rounded up."""
        owner = np.repeat(np.arange(len(self.lengths)), self.lengths)
        total = np.bincount(owner, each.cpu().numpy(), len(self.lengths))
        if self.similarity == SIMILARITIES[1]:
            total = total / np.maximum(self.lengths, 1)
        return torch.from_numpy((total * 1.001).astype(np.float32)).to(self.device)

    def _batches(self, columns: int) -> list[tuple[np.ndarray, torch.Tensor, int]]:
        """Queries of similar length together, padded with zeros, at most `columns` vectors.

        Each: rows of the group (n,), their factors side by side (n * width, …), width. A zero
        vector adds nothing to any score.
        """
        vectors = torch.cat(self.factors, 1)
        vectors = torch.cat([vectors, vectors.new_zeros(1, vectors.shape[1])])
        order, batches = np.argsort(self.lengths, kind="stable"), []
        while len(order):
            width = max(1, int(self.lengths[order[-1]]))
            rows, order = order[-max(1, columns // width) :], order[: -max(1, columns // width)]
            laid = np.minimum(self.ends[rows][:, None] + np.arange(width), self.ends[-1])
            laid[np.arange(width) >= self.lengths[rows][:, None]] = self.ends[-1]
            places = torch.from_numpy(laid.ravel()).to(self.device)
            batches.append((rows, vectors[places], width))
        return batches

    def scores(self, block: Block) -> torch.Tensor:
        """Fast scores (g, documents of the block) float32."""
        n = len(block.lengths)
        found = torch.full((len(self.lengths), n), EMPTY, device=self.device)
        whole = np.flatnonzero(block.lengths)
        if not len(whole):
            return found
        half = self.factors[0].dtype == torch.float16
        tokens = block.tokens if half else block.tokens.float()
        if len(self.factors) > 1:
            tokens = torch.cat([tokens] * len(self.factors), 1)
        for rows, factors, width in self._parts:
            best = largest(factors, tokens, block.lengths[whole])
            total = best.view(len(rows), width, -1).sum(1)
            if self.similarity == SIMILARITIES[1]:
                count = torch.from_numpy(np.maximum(self.lengths[rows], 1)).to(self.device)
                total /= count[:, None]
            places = [torch.from_numpy(index).to(self.device) for index in (rows, whole)]
            found[places[0][:, None], places[1]] = total
        return found


def largest(queries: torch.Tensor, tokens: torch.Tensor, lengths: np.ndarray) -> torch.Tensor:
    """(columns, documents): the largest dot product of each query vector with each document's.

    `queries` (columns, d), `tokens` (sum of lengths, d), `lengths` (documents,), none of them 0.
    Float16 or float32 in, float32 out; float64 in, float64 out.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    if queries.is_cuda:
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)])).to(queries.device)
        if queries.dtype == torch.float16:
            products = torch.mm(tokens, queries.T, out_dtype=torch.float32)
        else:
            products = torch.mm(tokens, queries.T)
        return torch.segment_reduce(products, "max", offsets=offsets, axis=0, unsafe=True).T
    if queries.dtype == torch.float16:
        queries, tokens = queries.float(), tokens.float()
    products = torch.mm(queries, tokens.T)
    starts = np.cumsum(lengths) - lengths
    return torch.from_numpy(np.maximum.reduceat(products.numpy(), starts, axis=1))


def _exact_pairs(
    group: Group, documents: Documents, q: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """Exact scores (n,) float32 of pairs of a query of the group and a row of the shard."""
    asked, given = q.cpu().numpy(), rows.cpu().numpy()
    scores = np.empty(len(asked), np.float32)
    limit = EXACT[group.device] // documents.shard.dimension
    order = np.lexsort((given, asked))
    edges = np.flatnonzero(np.diff(asked[order], prepend=-1, append=-1))
    for start, stop in zip(edges, edges[1:], strict=False):
        mine = order[start:stop]
        query = int(asked[mine[0]])
        tokens = group.tokens[int(group.ends[query]) : int(group.ends[query + 1])]
        offsets = np.concatenate([[0], np.cumsum(documents.lengths[given[mine]])])
        cuts = _cuts(offsets, limit)
        for first, last in zip(cuts, cuts[1:], strict=False):
            part = given[mine[first:last]]
            found = documents.gather(part)
            lengths = documents.lengths[part]
            scores[mine[first:last]] = exact_scores(tokens, found, lengths, group.similarity)
    return torch.from_numpy(scores).to(group.device)


def exact_scores(
    query: torch.Tensor, tokens: torch.Tensor, lengths: np.ndarray, similarity: str
) -> np.ndarray:
    """Scores (documents,) float32 of one query (L, d) and documents' `tokens`, as defined above."""
    scores = np.full(len(lengths), EMPTY, np.float32)
    whole = np.flatnonzero(lengths)
    if not len(whole):
        return scores
    wide, given = query.double(), tokens.double()
    total = largest(wide, given, lengths[whole]).sum(0)
    norms = (
        torch.linalg.vector_norm(wide, dim=1).sum() * torch.linalg.vector_norm(given, dim=1).max()
    )
    bound = 2.0**-50 * (query.shape[1] + len(query) + 8) * norms
    if similarity == SIMILARITIES[1]:
        total, bound = total / max(1, len(query)), bound / max(1, len(query))
    value = total.float()
    unsure = ((total - bound).float() != (total + bound).float()).cpu().numpy()
    scores[whole] = value.cpu().numpy()
    ends = np.cumsum(lengths)
    for place in whole[unsure].tolist():
        part = given[int(ends[place] - lengths[place]) : int(ends[place])]
        scores[place] = defined_score(wide.cpu().numpy(), part.cpu().numpy(), similarity)
    return scores + np.float32(0)


def defined_score(query: np.ndarray, document: np.ndarray, similarity: str) -> np.float32:
    """The score of a query (L, d) and a document (T, d), both float64, step by step."""
    products = np.zeros((len(query), len(document)))
    for dimension in range(query.shape[1]):
        products += query[:, dimension, None] * document[None, :, dimension]
    total = 0.0
    for best in products.max(1).tolist():
        total += best
    return np.float32(total / max(1, len(query)) if similarity == SIMILARITIES[1] else total)


def rerank(
    run: Path | str,
    queries: Path | str,
    query_ids: Path | str,
    corpus: Sequence[Path | str],
    doc_ids: Path | str,
    depth: int,
    device: str,
) -> Iterator[Ranking]:
    """A TREC run's best `depth` documents of each query, scored again by MaxSim.

    `queries`: a piece of token vectors of `query_ids`, queries.parquet. `corpus`: all pieces of
    corpus.parquet, `doc_ids`. Rankings come in the run's order, each in trec_eval's. Raises
    `UserError` for pieces that don't tile the corpus and for ids that the dataset lacks.
    """
    asked = TokenVectors(queries)
    pieces = [TokenVectors(path) for path in corpus]
    for piece in pieces:
        check_same_model(asked, piece)
    pairs = partial(score_pairs, asked, pieces, device=pick_device(device))
    yield from rescore(iter_run(run), read_ids(query_ids), read_ids(doc_ids), depth, pairs, run)
