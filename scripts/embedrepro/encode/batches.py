"""Sequences into batches of constant shape, and the stages of the pipeline. Numpy only.

Shapes never depend on which texts happen to come together, so neither do the kernels that run, and
a text's vector has the same bytes whatever its neighbours are.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

CLASSES = 128 << np.arange(20)  # varlen batches hold lengths up to one of these, above the last
SHORT = 512  # … and never longer ones beside those up to this, which have their own attention
# Tokens a batch of padded rows; each width has a last one, part filled. On a GPU's 132 processors
# 88 tiles of 128 rows, by 3, 6 or 12, come out even. On a CPU 512 would save a twentieth, but
# products of so few rows depend on a row's place in them.
CPU_BUDGET, CUDA_BUDGET = 1024, 88 * 128


class Part(NamedTuple):
    """Finished vectors: `rows` (n,) int64, `vectors` (n, dimension), tokens run, texts cut."""

    rows: np.ndarray
    vectors: np.ndarray
    tokens: int
    truncated: int


class Sequences(NamedTuple):
    """Tokenised texts, laid end to end.

    `rows` (n,) int64: which texts. `ids` (sum of lengths,) int32. `lengths` (n,) int64.
    `truncated` (n,) bool: whether text was cut off.
    """

    rows: np.ndarray
    ids: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray

    def where(self, chosen: np.ndarray) -> "Sequences":
        """Those with True in `chosen` (n,)."""
        if chosen.all():
            return self
        ids = self.ids[np.repeat(chosen, self.lengths)]
        return Sequences(self.rows[chosen], ids, self.lengths[chosen], self.truncated[chosen])

    def cut(self, ends: list[int]) -> "list[Sequences]":
        """Runs of sequences, views: up to the first of `ends`, from there to the next, …"""
        cuts = [0, *ends]
        places = np.concatenate([[0], np.cumsum(self.lengths)])[cuts]
        return [
            Sequences(self.rows[a:b], self.ids[i:j], self.lengths[a:b], self.truncated[a:b])
            for (a, b), (i, j) in zip(pairwise(cuts), pairwise(places), strict=True)
        ]


def step(length: int | np.ndarray) -> np.ndarray:
    """Padded widths are multiples of this: of 8 for queries, of 32 where that adds little."""
    return np.where(np.asarray(length) <= 32, 8, 32)


def padded_widths(lengths: np.ndarray, longest: int) -> np.ndarray:
    """What sequences of `lengths` (n,) are padded to, at most to `longest`."""
    multiple = step(lengths)
    return np.minimum(-(-lengths // multiple) * multiple, longest)


def join(parts: list[Sequences]) -> Sequences:
    """One after the other."""
    return Sequences(*map(np.concatenate, zip(*parts, strict=True)))


class Batch(NamedTuple):
    """Sequences to run together, none longer than `width`.

    `shape`: (rows, width) where rows are padded, (tokens,) where sequences lie end to end.
    """

    sequences: Sequences
    width: int
    shape: tuple[int, ...]


class Packer(ABC):
    """Sequences of similar length together, as many as a batch holds.

    `longest`: no sequence is longer. `budget`: tokens a batch; may be lowered at any time.
    """

    def __init__(self, budget: int, longest: int) -> None:
        self.budget = budget
        self.longest = longest
        self._open: dict[int, list[Sequences]] = {}
        self._held: dict[int, int] = {}

    def add(self, sequences: Sequences) -> Iterator[Batch]:
        """The batches that are full now."""
        widths = self._widths(sequences.lengths)
        for width in np.unique(widths).tolist():
            some = sequences.where(widths == width)
            self._open.setdefault(width, []).append(some)
            held = self._held.get(width, 0) + int(self._costs(some).sum())
            if held >= self._capacity(width):
                *full, rest = self._runs(width, join(self._open.pop(width)))
                yield from full
                self._open[width] = [rest.sequences]
                held = int(self._costs(rest.sequences).sum())
            self._held[width] = held

    def flush(self) -> Iterator[Batch]:
        """What is left."""
        for widths in self._together(sorted(self._open)):
            left = [part for width in widths for part in self._open.pop(width)]
            yield from self._runs(widths[-1], join(left))
        self._held.clear()

    def split(self, batch: Batch) -> list[Batch]:
        """The batch again within the present budget."""
        return self._runs(batch.width, batch.sequences)

    @abstractmethod
    def shape(self, width: int) -> tuple[int, ...]:
        """The shape of every batch of sequences up to this width."""

    @abstractmethod
    def _widths(self, lengths: np.ndarray) -> np.ndarray:
        """Which sequences (n,) come together: those of one width."""

    @abstractmethod
    def _costs(self, sequences: Sequences) -> np.ndarray:
        """What each sequence (n,) takes of a batch's capacity."""

    @abstractmethod
    def _capacity(self, width: int) -> int: ...

    @abstractmethod
    def _together(self, widths: list[int]) -> list[list[int]]:
        """Which of the widths, sorted upwards, may share a batch at the end."""

    def _runs(self, width: int, sequences: Sequences) -> list[Batch]:
        """All of `sequences`, each batch but the last as full as its next sequence allows."""
        reached, capacity = np.cumsum(self._costs(sequences)), self._capacity(width)
        ends: list[int] = []
        while not ends or ends[-1] < len(reached):
            before = reached[ends[-1] - 1] if ends else 0
            ends.append(int(np.searchsorted(reached, before + capacity, "right")))
        return [Batch(some, width, self.shape(width)) for some in sequences.cut(ends)]


class PaddedPacker(Packer):
    """Rows of a few widths; each width has its own constant number of rows, `budget // width`.

    No row is wider than `longest`.
    """

    def shape(self, width: int) -> tuple[int, int]:
        """Rows and width of every batch of this width."""
        return self._capacity(width), width

    def _widths(self, lengths: np.ndarray) -> np.ndarray:
        return padded_widths(lengths, self.longest)

    def _costs(self, sequences: Sequences) -> np.ndarray:
        return np.ones_like(sequences.lengths)

    def _capacity(self, width: int) -> int:
        return max(1, self.budget // width)

    def _together(self, widths: list[int]) -> list[list[int]]:
        return [[width] for width in widths]


class VarlenPacker(Packer):
    """Sequences end to end up to `budget` tokens, which must hold the longest."""

    def shape(self, width: int) -> tuple[int]:
        """The tokens of every batch."""
        return (self.budget,)

    def _widths(self, lengths: np.ndarray) -> np.ndarray:
        return np.minimum(CLASSES[np.searchsorted(CLASSES, lengths)], self.longest)

    def _costs(self, sequences: Sequences) -> np.ndarray:
        return sequences.lengths

    def _capacity(self, width: int) -> int:
        return self.budget

    def _together(self, widths: list[int]) -> list[list[int]]:
        # Few batches part empty, yet each sequence with the attention kernel that it always has.
        short = [width for width in widths if width <= SHORT]
        return [group for group in (short, widths[len(short) :]) if group]


def padded_arrays(batch: Batch, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, width) int32 ids and (rows,) int64 lengths; missing rows repeat the first."""
    rows, width = batch.shape
    ids, lengths = batch.sequences.ids, batch.sequences.lengths
    missing = rows - len(lengths)
    ids = np.concatenate([ids, np.tile(ids[: lengths[0]], missing)])
    lengths = np.concatenate([lengths, np.repeat(lengths[:1], missing)])
    laid: np.ndarray = np.full((rows, width), pad, np.int32)
    laid[np.arange(width) < lengths[:, None]] = ids
    return laid, lengths


def varlen_arrays(batch: Batch, pad: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens,) int32 ids, (tokens,) int32 positions, (sequences + fillers + 1,) int32 offsets.

    Positions restart at 0 with each sequence. What is left of the budget is filled with sequences
    of `pad` that nobody reads.
    """
    (tokens,) = batch.shape
    used = len(batch.sequences.ids)
    ids: np.ndarray = np.full(tokens, pad, np.int32)
    ids[:used] = batch.sequences.ids
    fillers = np.arange(used, tokens, batch.width)
    ends = np.cumsum(batch.sequences.lengths)
    offsets = np.concatenate([[0], ends[:-1], fillers, [tokens]]).astype(np.int32)
    positions = np.arange(tokens, dtype=np.int32) - np.repeat(offsets[:-1], np.diff(offsets))
    return ids, positions, offsets
