"""Passages encoded again: each once, whoever asks, and nothing damaged is believed."""

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedrepro.encode.again import Again
from embedrepro.encode.batches import Part


class Numbers:
    """An engine whose vector of text "7" is [7, 14], handed out in any order."""

    def __init__(self):
        self.asked = []

    def encode(self, texts, role, *, prompt, dimensions):
        numbers = [int(text) for text in texts]
        self.asked += numbers
        order = random.Random(1).sample(range(len(numbers)), len(numbers))
        for rows in np.array_split(np.array(order), 3):
            values = np.array(numbers)[rows]
            vectors = np.stack([values, 2 * values], 1).astype(np.float32)
            yield Part(rows, vectors[:, :dimensions], len(rows), 0)


@pytest.fixture
def again(tmp_path):
    texts = [str(i) for i in range(1000)]
    table = pa.table({"title": [""] * 1000, "text": texts})
    pq.write_table(table, tmp_path / "corpus.parquet", row_group_size=128)

    def new():
        engine = Numbers()
        made = Again(lambda: engine, tmp_path / "corpus.parquet", None, "join", tmp_path / "kept")
        return made, engine

    (tmp_path / "kept").mkdir()
    return new


def ask(made, rows):
    rows = np.array(rows, np.int64)
    found = made(rows)
    assert found.dtype == np.float32
    assert found.tolist() == [[row, 2 * row] for row in rows.tolist()]


def test_what_was_encoded_is_not_encoded_again(again):
    made, engine = again()
    ask(made, [3, 500, 999])
    ask(made, range(490, 510))
    ask(made, [0, 3, 495, 600])
    assert sorted(engine.asked) == sorted({3, 500, 999, *range(490, 510), 0, 600})
    assert made.encoded == len(engine.asked)
    later, fresh = again()
    ask(later, [0, 3, 4, 500, 509, 998])
    assert fresh.asked == [4, 998]


def test_damaged_vectors_are_encoded_again(again):
    made, _ = again()
    ask(made, [1, 2, 3])
    ask(made, [7, 8])
    for path in made.kept.glob("*.npy"):
        held = path.read_bytes()
        if not path.stem.endswith("-rows") and np.load(path)[0, 0] == 1:
            path.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
        elif path.stem.endswith("-rows") and np.load(path)[0] == 7:
            path.write_bytes(held[:-8])
    later, engine = again()
    ask(later, [1, 2, 3, 7, 8])
    assert engine.asked == [1, 2, 3, 7, 8]
    last, engine = again()
    ask(last, [2, 8])
    assert engine.asked == []
