"""The text of TREC runs, made for whole blocks of hits at once. Byte for byte what Python's
`f"{query} Q0 {doc} {rank} {score:.9g} {tag}\\n"` gives."""

from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import UserError, printable

KIND = pa.large_string()
SPACE = r"[\t-\r\x1c-\x1f \x{85}\p{Z}]"  # what str.split() splits at
BLOCK = 2**14  # scores printed at once: what they need stays in the cache
WIDTH = 16  # bytes of the longest score
POWERS = np.array([float(f"1e{power}") for power in range(-4, 10)])  # of what %g prints plainly

_DIGITS = np.array([[*f"{number:04d}".encode()] for number in range(10_000)], np.uint8)
_ZEROS = (_DIGITS[:, ::-1] != ord("0")).argmax(1)  # at the end of four digits
_ZEROS[0] = 4
_FOUR = _DIGITS.view(np.uint32).ravel()


def run_text(
    queries: pa.Array, starts: np.ndarray, docs: pa.Array, scores: np.ndarray, tag: str
) -> np.ndarray:
    """The lines (uint8) of hits as `runs.Listing` holds them, in UTF-8.

    Raises `UserError` for ids that a run can't carry.
    """
    queries, docs = queries.cast(KIND), docs.cast(KIND)
    hits, counts = len(docs), np.diff(starts)
    end = f" {tag}\n"
    heads = pc.binary_join_element_wise(
        pa.scalar(end, KIND), queries, pa.scalar(" Q0 ", KIND), pa.scalar("", KIND)
    )
    ranks = _ranks(int(counts.max(initial=1) - 1).bit_length())
    # Taken one after the other, pieces are the text: cheaper than to join each line's.
    parts = [heads, docs, ranks, nine_digits(scores.astype(np.float32, copy=False))]
    head, doc, rank, score, last = np.cumsum([0, *map(len, parts)])
    hit, number = np.arange(hits), np.repeat(np.arange(len(queries)), counts)
    which = np.empty(4 * hits + 1, np.int64)
    which[0:-1:4] = head + number
    which[1::4] = doc + hit
    which[2::4] = rank + hit - starts[number]
    which[3::4] = score + 2 * hit
    which[-1] = last
    pieces = pa.concat_arrays([*parts, pa.array([end], KIND)])
    _, offsets, data = pieces.take(pa.array(which)).buffers()
    length = np.frombuffer(offsets, np.int64)[len(which)]
    text = np.frombuffer(data, np.uint8, length)[len(end.encode()) :]  # no line before the first
    empty = min(_shortest(queries), _shortest(docs)) == 0
    # A look at the bytes is cheaper than one at each id; those that aren't ASCII are below 0.
    if empty or np.count_nonzero(text.view(np.int8) <= ord(" ")) != 6 * hits:
        check_fields(queries, "query id")
        check_fields(docs, "document id")
    return text


def _shortest(texts: pa.Array) -> int:
    return pc.min(pc.binary_length(texts)).as_py() if len(texts) else 1


def check_fields(texts: pa.Array, what: str) -> None:
    """Refuse texts that are empty or hold white space: a run's columns are split there."""
    empty = pc.equal(pc.binary_length(texts), 0)
    bad = pc.or_(empty, pc.match_substring_regex(texts, SPACE))
    if pc.any(bad).as_py():
        text = texts[pc.index(bad, True).as_py()].as_py()
        raise UserError(
            f"{what} {printable(text)!r} is empty or holds white space, which a TREC run can't "
            "carry; rename it in the dataset"
        )


@lru_cache(8)
def _ranks(bits: int) -> pa.Array:
    """` 1 `, ` 2 ` and so on, 2^bits of them."""
    return pa.array([f" {rank} " for rank in range(1, 2**bits + 1)], KIND)


def nine_digits(scores: np.ndarray) -> pa.Array:
    """`f"{score:.9g}"` of float32 scores (n): the even ones of 2n texts, the odd ones are padding.

    A float32 has a significand of 24 bits and 10^p = 2^p * 5^p one of 28 bits for p <= 12, so
    score * 10^p is exact in float64, and its nearest integer (halves to even, as C's printf rounds)
    holds the nine digits of every number that %g prints without an exponent: 1e-4 to 1e9, where
    p = 8 - exponent. The others are few and printed one by one.
    """
    shown = np.full((len(scores), WIDTH), ord("0"), np.uint8)
    ends = np.empty((len(scores), 2), np.int64)
    for first in range(0, len(scores), BLOCK):
        part = slice(first, first + BLOCK)
        _show(scores[part], shown[part], ends[part])
    ends += WIDTH * np.arange(len(scores))[:, None]
    buffers = [None, pa.py_buffer(np.append(ends, shown.size)), pa.py_buffer(shown)]
    return pa.Array.from_buffers(KIND, 2 * len(scores), buffers)


def _show(scores: np.ndarray, shown: np.ndarray, ends: np.ndarray) -> None:
    """Put each score's text into its row of `shown` (n, WIDTH), all "0" as yet, and into `ends`
    (n, 2) where it begins and ends there."""
    size = np.abs(scores).astype(np.float64)
    odd = (size < POWERS[0]) | (size >= POWERS[-1])
    first, last = np.searchsorted(POWERS, [size.min(), size.max()], "right") - 1
    classes: list[tuple[int, slice | np.ndarray]]
    if first == last and not odd.any():
        classes = [(int(first), slice(None))]
    else:
        place = np.searchsorted(POWERS, size, "right") - 1
        place[odd] = -1
        classes = [(p, np.flatnonzero(place == p)) for p in np.unique(place).tolist() if p >= 0]
    for place, rows in classes:
        digits = np.rint(size[rows] * 10.0 ** (12 - place)).astype(np.uint32)
        shown[rows], ends[rows, 1] = _fixed(digits, place - 4)
        ends[rows, 0] = min(place + 2, 6)
        odd[rows] = digits == 10**9  # rounded up to the next power of ten
    negative = np.flatnonzero(np.signbit(scores) & ~odd)
    ends[negative, 0] -= 1
    shown[negative, ends[negative, 0]] = ord("-")
    for row in np.flatnonzero(odd):
        text = f"{scores[row]:.9g}".encode()
        shown[row, : len(text)] = [*text]
        ends[row] = 0, len(text)


def _fixed(digits: np.ndarray, exponent: int) -> tuple[np.ndarray, np.ndarray]:
    """digits * 10^(exponent - 8), nine digits each: characters (n, WIDTH), and where they end.

    They begin at 6, with an exponent below 0 at 6 + exponent: room for a sign is before that.
    """
    high = digits // 10**4
    low = digits - high * 10**4  # cheaper than a remainder
    first = digits // 10**8
    middle = high - first * 10**4
    zeros = np.where(low, _ZEROS.take(low), 4 + _ZEROS.take(middle))  # at the end
    shown = np.full((len(digits), WIDTH), ord("0"), np.uint8)
    words = shown.view(np.uint32)
    words[:, 2], words[:, 3] = _FOUR.take(middle), _FOUR.take(low)
    shown[:, 7] += first.astype(np.uint8)
    if exponent < 0:  # 0 . 000 ddddddddd
        shown[:, 7 + exponent] = ord(".")
        return shown, WIDTH - zeros
    shown[:, 6 : 7 + exponent] = shown[:, 7 : 8 + exponent]
    shown[:, 7 + exponent] = ord(".")
    return shown, np.where(zeros < 8 - exponent, WIDTH - zeros, 7 + exponent)
