"""Less precise or shorter vectors out of stored ones: int8, binary, and Matryoshka's cut.

`int8` and `binary` are sentence-transformers' (`quantize_embeddings`): int8 puts each dimension's
range into 255 steps, values outside are clipped; binary keeps each number's sign, eight to a byte.
The ranges are the smallest and largest values among some rows spread evenly over the whole corpus,
so they depend neither on its shards nor on chance.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..errors import UserError
from .dense import load_array, save_array
from .embeddings import check_finite, open_embeddings

Precision = Literal["int8", "binary"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
BLOCK = 2**22  # numbers changed at a time


def calibration_rows(rows: int, calibration: int) -> np.ndarray:
    """The rows (at most `calibration`) of a corpus that its ranges are taken from, upwards."""
    count = min(rows, calibration)
    return np.arange(count) * rows // max(1, count)


def int8_ranges(corpus: Sequence[Path | str], calibration: int) -> np.ndarray:
    """(2, dim) float32: smallest and largest value of each dimension in the calibration rows.

    `corpus`: all dense pieces of a corpus, in any order. `calibration`: how many rows.
    """
    pieces = sorted((open_embeddings(path) for path in corpus), key=lambda piece: _start(piece[1]))
    rows = calibration_rows(sum(len(vectors) for vectors, _ in pieces), calibration)
    lows, highs, expected = [], [], 0
    for vectors, meta in pieces:
        start = _start(meta)
        if start != expected:
            raise UserError(
                f"{corpus[0]} and the others: row {expected} of the corpus comes next, not "
                f"{start}; give every shard exactly once"
            )
        expected += len(vectors)
        mine = rows[(rows >= start) & (rows < expected)] - start
        if len(mine):
            chosen = vectors[mine].astype(np.float32)
            check_finite(chosen, f"a shard of {corpus[0]}'s corpus")
            lows.append(chosen.min(0))
            highs.append(chosen.max(0))
    return np.stack([np.min(lows, 0), np.max(highs, 0)])


def _start(meta: dict[str, Any]) -> int:
    return int(meta.get("rows", [0])[0])


def quantize(vectors: np.ndarray, precision: Precision, ranges: np.ndarray | None) -> np.ndarray:
    """Codes int8 of float `vectors` (n, dim): (n, dim) for int8, (n, ⌈dim / 8⌉) for binary.

    `ranges` (2, dim): for int8 only.
    """
    if precision == "binary":
        packed: np.ndarray = np.packbits(vectors > 0, axis=-1)
        codes: np.ndarray = (packed - np.uint8(128)).view(np.int8)
        return codes
    low, steps = _steps(ranges)
    found: np.ndarray = np.clip(np.floor((vectors.astype(np.float32) - low) / steps), 0, 255)
    return (found - 128).astype(np.int8)


def restore(
    codes: np.ndarray, precision: Precision, ranges: np.ndarray | None, dim: int
) -> np.ndarray:
    """What sentence-transformers rescores with: float32 (n, dim) from codes.

    int8: the lower end of each step's range. binary: 1 for a positive number, else 0.
    """
    if precision == "binary":
        return unpack(codes, dim).astype(np.float32)
    low, steps = _steps(ranges)
    wide: np.ndarray = (codes.astype(np.float64) + 128) * steps + low
    return wide.astype(np.float32)


def unpack(codes: np.ndarray, dim: int) -> np.ndarray:
    """Bits (n, dim) uint8, 0 or 1, of binary codes."""
    return np.unpackbits(codes.view(np.uint8) + np.uint8(128), axis=-1)[:, :dim]


def _steps(ranges: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    assert ranges is not None
    ranges = ranges.astype(np.float32)
    steps = (ranges[1] - ranges[0]) / np.float32(255)
    return ranges[0], np.where(steps == 0, np.float32(1), steps)


def cut(vectors: np.ndarray, dimensions: int, normalize: bool) -> np.ndarray:
    """The first `dimensions` numbers of each vector, scaled to length 1 again where `normalize`.

    In float32, as encoding with that many dimensions does it; a vector of zeros stays one. Returns
    the dtype of `vectors`.
    """
    kept = vectors[:, :dimensions].astype(np.float32)
    if normalize:
        lengths = np.sqrt((kept.astype(np.float64) ** 2).sum(1))
        kept = (kept / np.maximum(lengths, 1e-12)[:, None]).astype(np.float32)
    return kept.astype(vectors.dtype)


def write_cut(
    source: Path | str, output: Path | str, dimensions: int, normalize: bool, **meta: Any
) -> None:
    """A dense piece of the first `dimensions` numbers of another one's vectors."""
    vectors, facts = open_embeddings(source)
    if not 0 < dimensions <= vectors.shape[1]:
        raise UserError(f"{source}: dimensions {dimensions}; use 1 to {vectors.shape[1]}")
    found = np.empty((len(vectors), dimensions), vectors.dtype)
    for start, stop in _blocks(vectors):
        found[start:stop] = cut(vectors[start:stop], dimensions, normalize)
    save_array(output, found, **_derived(facts) | {"dimensions": dimensions} | meta)


def write_quantized(
    source: Path | str,
    output: Path | str,
    precision: Precision,
    ranges: np.ndarray | None,
    **meta: Any,
) -> None:
    """A piece of codes of another one's vectors; its sidecar has `precision`, `dim`, `ranges`."""
    if precision not in PRECISIONS:
        raise UserError(f"stored precision {precision!r}; use {' or '.join(PRECISIONS)}")
    vectors, facts = open_embeddings(source)
    dim = vectors.shape[1]
    width = dim if precision == "int8" else -(-dim // 8)
    found = np.empty((len(vectors), width), np.int8)
    for start, stop in _blocks(vectors):
        block = np.asarray(vectors[start:stop])
        check_finite(block, source)
        found[start:stop] = quantize(block, precision, ranges)
    stated = {"precision": precision, "dim": dim}
    if ranges is not None and precision == "int8":
        stated["ranges"] = ranges.astype(np.float64).tolist()
    save_array(output, found, **_derived(facts) | stated | meta)


def open_quantized(path: Path | str) -> tuple[np.ndarray, dict[str, Any]]:
    """Codes int8, memory-mapped, and the sidecar, which has `ranges` for int8."""
    codes, meta = load_array(path)
    if meta.get("precision") not in PRECISIONS:
        raise UserError(f"{path}: holds no quantised vectors; make it again")
    return codes, meta


def _blocks(vectors: np.ndarray) -> list[tuple[int, int]]:
    step = max(1, BLOCK // vectors.shape[1])
    return [(at, min(at + step, len(vectors))) for at in range(0, len(vectors), step)]


def _derived(facts: dict[str, Any]) -> dict[str, Any]:
    """What a piece made from another says of itself: all but what describes the file."""
    own = ("shape", "dtype", "sha256", "pieces")
    made_from = {"made_from": facts["sha256"], "source_dtype": facts["dtype"]}
    return {key: value for key, value in facts.items() if key not in own} | made_from
