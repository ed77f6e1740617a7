"""Reading prepared Parquet: the rows that are asked for, checked, and nothing else read."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedrepro.datasets import reading, tables
from embedrepro.datasets.reading import absent_ids, read_columns, read_rows, read_texts
from embedrepro.datasets.shards import bounds, corpus_bounds
from embedrepro.datasets.tables import CORPUS, table, table_facts
from embedrepro.errors import UserError
from embedrepro.files import digest_of, read_json, sha256, whole, write_record


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards") / "corpus.parquet"
    rows = np.arange(1000)
    table = pa.table({"id": [f"d{i}" for i in rows], "chars": pa.array(rows % 7, pa.int32())})
    pq.write_table(table, path, row_group_size=64)
    return path


def test_corpus_bounds_are_those_of_its_chars(corpus):
    assert corpus_bounds(corpus, 9).tolist() == bounds(np.arange(1000) % 7, 9).tolist()


@pytest.mark.parametrize(
    ("start", "stop"), [(0, None), (0, 0), (0, 1), (63, 65), (64, 128), (500, 777), (1000, 1000)]
)
@pytest.mark.parametrize("batch", [1, 50, 5000])
def test_read_rows_gives_the_range_in_order(corpus, start, stop, batch):
    batches = list(read_rows(corpus, start, stop, columns=["id"], batch=batch))
    ids = [id_ for b in batches for id_ in b["id"].to_pylist()]
    assert ids == [f"d{i}" for i in range(1000)][start:stop]
    assert all(0 < len(b) <= batch for b in batches)
    assert all(b.schema.names == ["id"] for b in batches)


def test_read_rows_leaves_row_groups_outside_the_range_alone(corpus, monkeypatch):
    read = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, i, **kw: read.append(i) or original(self, i, **kw),
    )
    assert sum(len(b) for b in read_rows(corpus, 130, 192)) == 62
    assert read == [2]


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 4), (0, 1001)])
def test_ranges_outside_the_file_are_refused(corpus, start, stop):
    with pytest.raises(UserError, match="it holds 1000"):
        list(read_rows(corpus, start, stop))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A corpus of 1,000 passages in row groups of 64, with its record."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "GROUP_ROWS", 64)
        with table(folder / "corpus.parquet", CORPUS, str) as rows:
            for i in range(1000):
                rows.add(i, (f"d{i}", "t" * (i % 3), f"text {i}", i % 9))
    facts = table_facts(folder / "corpus.parquet")
    write_record(folder / "corpus.json", {"files": {"corpus.parquet": facts}})
    return folder / "corpus.parquet"


def test_row_groups_and_footer_are_the_whole_file(prepared):
    facts = read_json(prepared.with_suffix(".json"))["files"]["corpus.parquet"]
    parts = [*facts["row_groups"], facts["footer"]]
    assert len(facts["row_groups"]) == 16
    ends = np.cumsum([length for _, length, _ in parts])
    assert [offset for offset, _, _ in parts] == [0, *ends[:-1]]
    assert ends[-1] == facts["size"] == prepared.stat().st_size
    assert facts["sha256"] == sha256(prepared)
    assert all(digest_of(prepared, offset, n) == found for offset, n, found in parts)
    assert facts["columns"].keys() == set(CORPUS.names)


def test_an_empty_table_has_facts(tmp_path):
    with table(tmp_path / "qrels.parquet", tables.QRELS, str):
        pass
    facts = table_facts(tmp_path / "qrels.parquet")
    assert facts["sha256"] == sha256(tmp_path / "qrels.parquet")
    write_record(tmp_path / "split.json", {"files": {"qrels.parquet": facts}})
    assert list(read_rows(tmp_path / "qrels.parquet")) == []
    assert read_columns(tmp_path / "qrels.parquet", ["doc_id"]).num_rows == 0


@pytest.fixture
def hashed(prepared, tmp_path, monkeypatch):
    """A copy of the prepared corpus, and the ranges of it that are hashed."""
    for path in (prepared, prepared.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    ranges = []

    def noted(path, start, length):
        ranges.append((start, length))
        return digest_of(path, start, length)

    monkeypatch.setattr(reading, "digest_of", noted)
    return tmp_path / "corpus.parquet", ranges


def test_only_what_is_read_is_hashed_and_once(hashed):
    path, ranges = hashed
    facts = read_json(path.with_suffix(".json"))["files"]["corpus.parquet"]
    for _ in range(2):
        assert sum(len(b) for b in read_rows(path, 130, 200)) == 70
        expected = [facts["footer"], *facts["row_groups"][2:4]]
        assert ranges == [(offset, length) for offset, length, _ in expected]


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("part", ["row_groups", "footer", "size"])
def test_a_damaged_part_is_refused_by_name(hashed, part):
    path, _ = hashed
    record = path.with_suffix(".json")
    facts = read_json(record)["files"]["corpus.parquet"]
    if part == "size":
        path.write_bytes(path.read_bytes() + b"x")
    else:
        offset, length, _ = facts["footer"] if part == "footer" else facts["row_groups"][3]
        flip(path, offset + length // 2)
    where = {"row_groups": "row group 3 is ", "footer": "its footer is ", "size": ""}[part]
    wanted = f"{path}: {where}not what corpus.json lists; delete {record} and run again"
    with pytest.raises(UserError) as caught:
        list(read_rows(path, 200, 300))
    assert str(caught.value) == wanted
    with pytest.raises(UserError, match="not the file that corpus.json lists"):
        whole(path)
    if part == "row_groups":
        assert sum(len(b) for b in read_rows(path, 0, 192)) == 192  # other rows are fine


def test_a_column_is_checked_without_the_others(hashed):
    path, ranges = hashed
    meta = pq.read_metadata(path)
    offset, length = tables.chunk(meta.row_group(5).column(CORPUS.names.index("text")))
    flip(path, offset + length // 2)
    chars = [i % 9 for i in range(1000)]
    assert read_columns(path, ["chars"])["chars"].to_pylist() == chars
    assert corpus_bounds(path, 7).tolist() == bounds(np.array(chars), 7).tolist()
    assert len(ranges) == 1  # the footer
    with pytest.raises(UserError, match=r"column text is not what corpus\.json lists; delete"):
        read_columns(path, ["id", "text"])


def test_ids_that_a_corpus_lacks(prepared):
    assert absent_ids(prepared, ["d0", "d999", "d1000", "x"]) == {"d1000", "x"}
    assert absent_ids(prepared, []) == set()


def test_texts_of_passages_and_of_queries(prepared):
    assert list(read_texts(prepared, "join", 2, 5)) == ["tt text 2", "text 3", "t text 4"]
    assert list(read_texts(prepared, "drop", 2, 4)) == ["text 2", "text 3"]
    assert list(read_texts(prepared, None, 998)) == ["text 998", "text 999"]


def test_a_missing_file_is_a_line(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.parquet: can't be read \(No such file"):
        list(read_rows(tmp_path / "corpus.parquet"))
