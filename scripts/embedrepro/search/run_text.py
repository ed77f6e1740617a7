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
    counts = np.diff(starts)
    of_query = np.repeat(np.arange(len(queries)), counts)
    rank = np.arange(len(docs)) - np.repeat(starts[:-1], counts)
    nothing = pa.scalar("", KIND)
    before = pc.binary_join_element_wise(queries, pa.scalar(" Q0 ", KIND), nothing)
    lines = pc.binary_join_element_wise(
        before.take(pa.array(of_query)),
        docs,
        _ranks(int(counts.max(initial=1) - 1).bit_length()).take(pa.array(rank)),
        nine_digits(scores.astype(np.float32, copy=False)),
        pa.scalar(f" {tag}\n", KIND),
        nothing,
    )
    _, offsets, data = lines.buffers()
    length = np.frombuffer(offsets, np.int64, len(lines) + 1)[-1] if len(lines) else 0
    text = np.frombuffer(data, np.uint8, length) if length else np.empty(0, np.uint8)
    empty = min(_shortest(queries), _shortest(docs)) == 0
    # A look at the bytes is cheaper than one at each id.
    if empty or np.count_nonzero(text <= ord(" ")) != 6 * len(lines) or text.max(initial=0) > 127:
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
    """`f"{score:.9g}"` of float32 scores (n).

    A float32 has a significand of 24 bits and 10^p = 2^p * 5^p one of 28 bits for p <= 12, so
    score * 10^p is exact in float64, and its nearest integer (halves to even, as C's printf rounds)
    holds the nine digits of every number that %g prints without an exponent: 1e-4 to 1e9, where
    p = 8 - exponent. The others are few and printed one by one.
    """
    data, ends = [], np.zeros(len(scores) + 1, np.int64)
    for first in range(0, len(scores), BLOCK):
        text, length = _digits_of_block(scores[first : first + BLOCK])
        data.append(text)
        ends[first + 1 : first + 1 + len(length)] = length
    np.cumsum(ends, out=ends)
    text = np.concatenate(data) if data else np.empty(0, np.uint8)
    return pa.Array.from_buffers(KIND, len(scores), [None, pa.py_buffer(ends), pa.py_buffer(text)])


def _digits_of_block(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Text (uint8) of scores (n) one after the other, and each one's length (n)."""
    size = np.abs(scores).astype(np.float64)
    shown = np.empty((len(scores), WIDTH), np.uint8)
    used = np.empty((len(scores), WIDTH), bool)
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
        shown[rows], used[rows] = _fixed(digits, place - 4)
        odd[rows] = digits == 10**9  # rounded up to the next power of ten
    shown[:, 0] = ord("-")
    used[:, 0] = np.signbit(scores)
    for row in np.flatnonzero(odd):
        text = f"{scores[row]:.9g}".encode()
        shown[row, : len(text)] = [*text]
        used[row] = np.arange(WIDTH) < len(text)
    counts = np.bitwise_count(used.view(np.uint64))
    return shown.ravel().compress(used.ravel()), counts[:, 0] + counts[:, 1]


def _fixed(digits: np.ndarray, exponent: int) -> tuple[np.ndarray, np.ndarray]:
    """digits * 10^(exponent - 8), nine digits each: characters (n, WIDTH), which of them count."""
    high = digits // 10**4
    low = digits - high * 10**4  # cheaper than a remainder
    first = digits // 10**8
    middle = high - first * 10**4
    zeros = np.where(low, _ZEROS[low], 4 + _ZEROS[middle])
    shown = np.full((len(digits), WIDTH), ord("0"), np.uint8)
    words = shown.view(np.uint32)
    words[:, 2], words[:, 3] = _FOUR[middle], _FOUR[low]
    shown[:, 7] += first.astype(np.uint8)
    if exponent < 0:  # sign 0 . 000 _ ddddddddd
        shown[:, 2] = ord(".")
    else:  # sign _____ ddddddddd, with a point among them
        shown[:, 6 : 7 + exponent] = shown[:, 7 : 8 + exponent]
        shown[:, 7 + exponent] = ord(".")
    return shown, _used(exponent).take(zeros, axis=0)


@lru_cache(16)
def _used(exponent: int) -> np.ndarray:
    """For 0 to 8 zeros at the end of nine digits, which characters count: bool (9, WIDTH)."""
    table = np.zeros((9, WIDTH), bool)
    for zeros in range(9):
        significant = 9 - zeros
        if exponent < 0:
            table[zeros, 1 : 2 - exponent] = True
            table[zeros, 7 : 7 + significant] = True
        else:
            table[zeros, 6 : 7 + exponent] = True
            if significant > exponent + 1:
                table[zeros, 7 + exponent : 7 + significant] = True
    return table
