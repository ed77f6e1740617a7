"""Sequences into batches of constant shape, and the stages of the pipeline. Numpy only.

Shapes never depend on which texts happen to come together, so neither do the kernels that run, and
a text's vector has the same bytes whatever its neighbours are.
"""

import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

STEP = 32  # padded widths are multiples of this
CLASSES = 128  # varlen batches hold lengths of one class: up to 128, 256, 512, …


class Part(NamedTuple):
    """Finished vectors: `rows` (n,) int64, `vectors` (n, dimension), tokens run, texts cut."""

    rows: np.ndarray
    vectors: np.ndarray
    tokens: int
    truncated: int


class Sequence(NamedTuple):
    """One text's tokens: `ids` (length,) int32."""

    row: int
    ids: np.ndarray
    truncated: bool


class Batch(NamedTuple):
    """Sequences to run together, none longer than `width`.

    `shape`: (rows, width) where rows are padded, (tokens,) where sequences lie end to end.
    """

    sequences: list[Sequence]
    width: int
    shape: tuple[int, ...]


class PaddedPacker:
    """Rows of a few widths; each width has its own constant number of rows, `budget // width`.

    `longest`: no sequence is longer, and no row is wider.
    """

    def __init__(self, budget: int, longest: int) -> None:
        self.budget = budget
        self.longest = longest
        self._open: dict[int, list[Sequence]] = {}

    def add(self, sequence: Sequence) -> Iterator[Batch]:
        width = min(-(-len(sequence.ids) // STEP) * STEP, self.longest)
        held = self._open.setdefault(width, [])
        held.append(sequence)
        if len(held) >= self.shape(width)[0]:
            yield from self._close(width)

    def flush(self) -> Iterator[Batch]:
        for width in sorted(self._open):
            yield from self._close(width)

    def shape(self, width: int) -> tuple[int, int]:
        """Rows and width of every batch of this width."""
        return max(1, self.budget // width), width

    def split(self, batch: Batch) -> Iterator[Batch]:
        """The batch again within the present budget."""
        rows, width = self.shape(batch.width)
        for start in range(0, len(batch.sequences), rows):
            yield Batch(batch.sequences[start : start + rows], width, (rows, width))

    def _close(self, width: int) -> Iterator[Batch]:
        # In more than one batch if the budget was halved since they were gathered.
        yield from self.split(Batch(self._open.pop(width), width, ()))


class VarlenPacker:
    """Sequences end to end up to `budget` tokens, those of similar length together.

    `longest`: no sequence is longer; `budget` must hold it.
    """

    def __init__(self, budget: int, longest: int) -> None:
        self.budget = budget
        self.longest = longest
        self._open: dict[int, list[Sequence]] = {}
        self._held: dict[int, int] = {}

    def add(self, sequence: Sequence) -> Iterator[Batch]:
        yield from self._put(self._width(sequence), sequence)

    def flush(self) -> Iterator[Batch]:
        """What is left, classes together so that few batches are part empty."""
        left = [self._open.pop(width) for width in sorted(self._open)]
        self._held.clear()
        yield from self._pack([sequence for held in left for sequence in held])

    def shape(self, width: int) -> tuple[int]:
        """The tokens of every batch."""
        return (self.budget,)

    def split(self, batch: Batch) -> Iterator[Batch]:
        """The batch again within the present budget."""
        yield from VarlenPacker(self.budget, self.longest)._pack(batch.sequences)

    def _pack(self, sequences: list[Sequence]) -> Iterator[Batch]:
        if not sequences:
            return
        width = max(self._width(sequence) for sequence in sequences)
        for sequence in sequences:
            yield from self._put(width, sequence)
        yield from self._close(width)

    def _width(self, sequence: Sequence) -> int:
        width = CLASSES
        while width < len(sequence.ids):
            width *= 2
        return min(width, self.longest)

    def _put(self, width: int, sequence: Sequence) -> Iterator[Batch]:
        if self._held.get(width, 0) + len(sequence.ids) > self.budget:
            yield from self._close(width)
        self._open.setdefault(width, []).append(sequence)
        self._held[width] = self._held.get(width, 0) + len(sequence.ids)

    def _close(self, width: int) -> Iterator[Batch]:
        batch = Batch(self._open.pop(width), width, self.shape(width))
        held, self._held[width] = self._held[width], 0
        if held > batch.shape[0]:  # the budget was halved since they were gathered
            yield from self.split(batch)
        else:
            yield batch


def padded_arrays(batch: Batch, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, width) int32 ids and (rows,) int64 lengths; missing rows repeat the first."""
    rows, width = batch.shape
    ids = np.full((rows, width), pad, np.int32)
    lengths = np.empty(rows, np.int64)
    for row in range(rows):
        sequence = batch.sequences[row if row < len(batch.sequences) else 0].ids
        ids[row, : len(sequence)] = sequence
        lengths[row] = len(sequence)
    return ids, lengths


def varlen_arrays(batch: Batch, pad: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens,) int32 ids, (tokens,) int32 positions, (sequences + fillers + 1,) int32 offsets.

    Positions restart at 0 with each sequence. What is left of the budget is filled with sequences
    of `pad` that nobody reads.
    """
    (tokens,) = batch.shape
    lengths = [len(sequence.ids) for sequence in batch.sequences]
    left = tokens - sum(lengths)
    ids = np.concatenate([s.ids for s in batch.sequences] + [np.full(left, pad, np.int32)])
    full, rest = divmod(left, batch.width)
    lengths += [batch.width] * full + [rest] * (rest > 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    positions = np.arange(tokens, dtype=np.int32) - np.repeat(offsets[:-1], lengths)
    return ids, positions, offsets


def ahead(items: Iterable[Any], depth: int) -> Iterator[Any]:
    """The same items, made in a thread that stays at most `depth` ahead.

    An error in the thread is raised here. The thread ends when this generator is closed.
    """
    sys.setswitchinterval(0.0005)  # a tenth of the usual: what feeds the device must not wait
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    closed = threading.Event()
    end = object()

    def put(good: bool, item: Any) -> bool:
        while not closed.is_set():
            try:
                ready.put((good, item), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            if all(put(True, item) for item in items):
                put(True, end)
        except BaseException as error:
            put(False, error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            good, item = ready.get()
            if not good:
                raise item
            if item is end:
                return
            yield item
    finally:
        closed.set()
        thread.join()
