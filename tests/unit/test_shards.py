"""Shards: where a corpus is cut."""

import numpy as np
import pytest
from embedrepro.datasets.records import passage
from embedrepro.datasets.shards import bounds
from embedrepro.errors import UserError
from hypothesis import given
from hypothesis import strategies as st

lengths = st.lists(st.integers(0, 10_000), min_size=1, max_size=200).map(np.array)


@given(lengths, st.data())
def test_bounds_cover_the_corpus_in_balanced_shards(chars, data):
    shards = data.draw(st.integers(1, len(chars)))
    cuts = bounds(chars, shards)
    assert cuts.dtype == np.int64 and len(cuts) == shards + 1
    assert cuts[0] == 0 and cuts[-1] == len(chars)
    assert (np.diff(cuts) >= 1).all()
    sizes = np.add.reduceat(chars, cuts[:-1])
    assert sizes.max() <= chars.sum() / shards + chars.max()
    assert (bounds(chars.astype(np.int32), shards) == cuts).all()


@given(lengths)
def test_one_shard_is_all_and_as_many_shards_as_passages_is_each(chars):
    assert bounds(chars, 1).tolist() == [0, len(chars)]
    assert bounds(chars, len(chars)).tolist() == list(range(len(chars) + 1))


def test_equal_passages_are_cut_evenly():
    assert bounds(np.full(100, 7), 4).tolist() == [0, 25, 50, 75, 100]
    assert np.diff(bounds(np.full(10, 3), 3)).tolist() == [3, 4, 3]


def test_more_characters_than_int32_holds():
    chars = np.full(1000, 2**31 - 1, dtype=np.int32)
    assert bounds(chars, 10).tolist() == list(range(0, 1001, 100))


@pytest.mark.parametrize("shards", [0, -1, 4])
def test_impossible_shard_counts_are_refused(shards):
    with pytest.raises(UserError, match=f"shards: {shards} for 3 passages"):
        bounds(np.array([1, 1, 1]), shards)


@pytest.mark.parametrize(
    ("title", "text", "mode", "expected"),
    [
        ("Tides", "They turn.", "join", "Tides They turn."),
        ("Tides", "They turn.", "drop", "They turn."),
        ("", " They turn. ", "join", "They turn."),
        ("Tides", "", "join", "Tides"),
        (" ", "They turn.", "join", "They turn."),
        ("Tides", "", "drop", ""),
    ],
)
def test_passage_joins_as_mteb_does(title, text, mode, expected):
    assert passage(title, text, mode) == expected
