"""The documents that may be among the best k of each query, while blocks of scores pass by.

`search` says which bound makes it certain that none is missed.
"""

from collections.abc import Callable

import numpy as np
import torch

from .runs import Ids, tie_order, trec_order

UNDERFLOW = 2.0**-110  # covers products too small for float32, for up to 2^16 dimensions
CHUNK = 64  # neighbouring scores whose maximum is compared with the threshold first


class Pool:
    """The candidates of g queries while blocks of scores pass by.

    values, rows (g, capacity): approximate score and shard row; the first count[q] entries are in
    use, the rest of values is -inf. kth (g): a lower bound of the k-th best approximate score of
    all blocks offered so far.
    """

    def __init__(
        self, error: torch.Tensor, k: int, capacity: int, exact: Callable | None, ids: Ids
    ):
        """`error` (g): bound of a score's error for documents of norm 1.

        `exact(q, rows)` gives the exact scores of any pairs; None when only the block at hand can
        be read, then candidates are scored exactly as they come in.
        """
        self.error, self.k, self.exact, self.ids = error, k, exact, ids
        shape, device = (len(error), capacity), error.device
        self.values = torch.full(shape, -torch.inf, device=device)
        self.rows = torch.zeros(shape, dtype=torch.int32, device=device)
        self.count = torch.zeros(len(error), dtype=torch.int64, device=device)
        self.kth = torch.full((len(error),), -torch.inf, device=device)
        self.norm = 0.0

    def threshold(self) -> torch.Tensor:
        return self.kth - 2 * (self.error * self.norm + UNDERFLOW)

    def offer(
        self, scores: torch.Tensor, first: int, norm: float, in_block: Callable | None
    ) -> None:
        """Take the candidates among `scores` (g, block) of the rows from `first` on."""
        size = scores.shape[1]
        self.norm = max(self.norm, norm)
        if first == 0:
            self._raise(scores)
        pairs = above(scores, self.threshold())
        if len(pairs) > len(scores) * self.k:  # a block of much better documents
            self._raise(scores)
            pairs = above(scores, self.threshold())
        q, column = pairs // size, pairs % size
        value = in_block(q, column) if in_block else scores.view(-1)[pairs]
        rows = (column + first).int()
        if self._overfull(q).any():
            self._compact()
            keep = value >= self.threshold()[q]
            q, rows, value = q[keep], rows[keep], value[keep]
        for query in self._overfull(q).nonzero().ravel().tolist():
            mine = q == query
            self._cut(query, rows[mine], value[mine])
            q, rows, value = q[~mine], rows[~mine], value[~mine]
        self._append(q, rows, value)

    def _raise(self, scores: torch.Tensor) -> None:
        """Raise kth by the block's own k-th best."""
        if scores.shape[1] >= self.k:
            kth = scores.topk(self.k, sorted=False).values.amin(1)
            self.kth = torch.maximum(self.kth, kth)

    def _overfull(self, q: torch.Tensor) -> torch.Tensor:
        coming = torch.bincount(q, minlength=len(self.count))
        return self.count + coming > self.values.shape[1]

    def _append(self, q: torch.Tensor, rows: torch.Tensor, value: torch.Tensor) -> None:
        """Add pairs sorted by `q`."""
        coming = torch.bincount(q, minlength=len(self.count))
        start = self.count - (coming.cumsum(0) - coming)
        place = start[q] + torch.arange(len(q), device=q.device) + q * self.values.shape[1]
        self.values.view(-1).index_copy_(0, place, value)
        self.rows.view(-1).index_copy_(0, place, rows)
        self.count += coming

    def _compact(self) -> None:
        """Update kth and drop what can't be among the best k any more."""
        kth = self.values.topk(self.k, sorted=False).values.amin(1)
        self.kth = torch.maximum(self.kth, kth)
        q, rows, value = self._candidates()
        self.values.fill_(-torch.inf)
        self.count.zero_()
        self._append(q, rows, value)

    def _candidates(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        floor = self.threshold().clamp(min=torch.finfo(torch.float32).min)
        pairs = true_positions(self.values >= floor[:, None])
        q = pairs // self.values.shape[1]
        return q, self.rows.view(-1)[pairs], self.values.view(-1)[pairs]

    def _cut(self, query: int, rows: torch.Tensor, value: torch.Tensor) -> None:
        """More near-ties than fit: keep exactly the best k of one query, by score and id."""
        count = int(self.count[query])
        rows = torch.cat([self.rows[query, :count], rows])
        value = torch.cat([self.values[query, :count], value])
        if self.exact:
            value = self.exact(torch.full_like(rows, query, dtype=torch.int64), rows.long())
        zeros = np.zeros(len(rows), dtype=np.int8)
        order = trec_order(zeros, value.cpu().numpy(), rows.cpu().numpy(), self.ids)
        best = torch.from_numpy(order[: self.k]).to(rows.device)
        self.values[query] = -torch.inf
        self.values[query, : self.k] = value[best]
        self.rows[query, : self.k] = rows[best]
        self.count[query] = self.k
        self.kth[query] = torch.maximum(self.kth[query], value[best[-1]])

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """The best k of each query: rows (g, k) int64, exact scores (g, k) float32, in order."""
        self._compact()
        q, rows, value = self._candidates()
        if self.exact:
            value = self.exact(q, rows.long())
        key, order = sort_key(q, value).sort()
        same = key[1:] == key[:-1]
        edge = torch.zeros(1, dtype=torch.bool, device=same.device)
        tied = true_positions(torch.cat([edge, same]) | torch.cat([same, edge]))
        if len(tied):
            docs = rows[order[tied]].cpu().numpy()
            by_id = torch.from_numpy(tie_order(key[tied].cpu().numpy(), docs, self.ids))
            order[tied] = order[tied[by_id.to(tied.device)]]
        start = self.count.cumsum(0) - self.count
        best = order[start[:, None] + torch.arange(self.k, device=order.device)]
        return rows[best].cpu().numpy().astype(np.int64), value[best].cpu().numpy()


def sort_key(q: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """`runs.sort_key` of tensors: int64, upwards by query, then downwards by score."""
    bits = (score + 0.0).view(torch.int32)
    upward = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (q << 32) + (0x7FFFFFFF - upward.long())


def above(scores: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Flat positions of the scores (g, n) that reach their row's threshold, in order.

    Only chunks whose largest score does are looked into: a maximum is cheaper than a mask.
    """
    width = CHUNK if scores.shape[1] % CHUNK == 0 else 1
    chunks = scores.view(len(scores), -1, width)
    hot = true_positions(chunks.amax(2) >= threshold[:, None])
    limit = threshold[hot // chunks.shape[1], None]
    inner = true_positions(chunks.view(-1, width)[hot] >= limit)
    return hot[inner // width] * width + inner % width


def true_positions(mask: torch.Tensor) -> torch.Tensor:
    """Flat positions of what is true, in order."""
    if mask.is_cuda:
        return mask.view(-1).nonzero().ravel()
    return torch.from_numpy(np.flatnonzero(mask.numpy()))  # five times as fast as torch's
