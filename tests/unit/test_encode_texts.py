"""Rows of prepared Parquet files: which bytes are hashed, and that nothing else is read."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from embedrepro import files, shards
from embedrepro.encode import texts
from embedrepro.errors import UserError
from encode_models import write_corpus

COLUMNS = ["title", "text"]


@pytest.fixture
def corpus(tmp_path):
    """Three row groups, and a record with their digests."""
    path = write_corpus(
        tmp_path / "corpus.parquet", [f"text {i} " * (i % 7 + 1) for i in range(130)]
    )
    record(path, row_groups=True)
    return path


def record(path, row_groups, name="corpus.json", **more):
    metadata, ranges = pq.read_metadata(path), []
    for i in range(metadata.num_row_groups):
        columns = [metadata.row_group(i).column(j) for j in range(metadata.num_columns)]
        starts = [
            min(c.data_page_offset, c.dictionary_page_offset or c.data_page_offset) for c in columns
        ]
        start, size = min(starts), sum(c.total_compressed_size for c in columns)
        ranges.append([start, size, files.digest_of(path, start, size)])
    facts = {"size": path.stat().st_size, "sha256": files.sha256(path)} | more
    facts |= {"row_groups": ranges} if row_groups else {}
    (path.parent / name).write_text(json.dumps({"files": {path.name: facts}}))
    return ranges


def rows(path, start, stop):
    return [
        text for part in texts.checked_rows(path, start, stop, ["text"]) for text in
        part["text"].to_pylist()
    ]  # fmt: skip


def damage(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_rows_are_those_asked_for(corpus):
    every = pq.read_table(corpus)["text"].to_pylist()
    for start, stop in ((0, 130), (0, 0), (49, 51), (50, 100), (129, 130), (130, 130)):
        assert rows(corpus, start, stop) == every[start:stop]
    with pytest.raises(UserError, match="131 asked for, it holds 130"):
        rows(corpus, 0, 131)


def test_only_the_row_groups_that_are_read_are_hashed(corpus, monkeypatch):
    hashed = []

    def counted(path, start, length):
        hashed.append((start, length))
        return digest_of(path, start, length)

    digest_of = texts.digest_of
    monkeypatch.setattr(texts, "digest_of", counted)
    monkeypatch.setattr(texts, "sha256", None)
    ranges = [(start, length) for start, length, _ in record(corpus, row_groups=True)]
    rows(corpus, 60, 70)
    assert hashed == ranges[1:2]
    rows(corpus, 55, 120)
    rows(corpus, 0, 130)
    assert hashed == [ranges[1], ranges[2], ranges[0]]  # each once


def test_damage_is_found_where_it_is_read(corpus):
    _, (start, size, _), _ = record(corpus, row_groups=True)
    damage(corpus, start + size // 2)
    assert len(rows(corpus, 0, 50)) == 50
    with pytest.raises(UserError, match=r"not the file that corpus.json lists; delete \S+json"):
        rows(corpus, 0, 51)


@pytest.mark.parametrize("row_groups", [[], [[4, 10, "0" * 64]]])
def test_a_record_that_doesnt_cover_the_file_is_no_proof(corpus, row_groups):
    path = corpus.parent / "corpus.json"
    facts = json.loads(path.read_text())
    facts["files"]["corpus.parquet"] |= {"row_groups": row_groups, "sha256": "0" * 64}
    path.write_text(json.dumps(facts))
    with pytest.raises(UserError, match="not the file that corpus.json lists"):
        rows(corpus, 0, 1)


def test_without_digests_of_parts_the_file_is_hashed_once(corpus, monkeypatch):
    record(corpus, row_groups=False)
    hashed = []

    def counted(path):
        hashed.append(path)
        return sha256(path)

    sha256 = texts.sha256
    monkeypatch.setattr(texts, "sha256", counted)
    for _ in range(3):
        rows(corpus, 0, 130)
    assert hashed == [corpus]
    damage(corpus, 40)
    with pytest.raises(UserError, match="not the file that"):
        rows(corpus, 0, 1)


def test_a_file_of_another_size_or_kind_is_refused(corpus, tmp_path):
    record(corpus, row_groups=True, size=1)
    with pytest.raises(UserError, match="not the file that"):
        rows(corpus, 0, 1)
    other = tmp_path / "alone" / "x.parquet"
    other.parent.mkdir()
    other.write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="not a whole Parquet file; delete it"):
        rows(other, 0, 1)


def test_cuts_are_those_of_shards(corpus):
    chars = pq.read_table(corpus)["chars"].to_numpy()
    expected = shards.bounds(chars, 7)
    found = [texts.row_range(corpus, i, 7) for i in range(7)]
    assert np.array_equal([0] + [stop for _, stop in found], expected)
    assert [start for start, _ in found] == expected[:-1].tolist()
