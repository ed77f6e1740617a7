"""What decides a dataset's content: every file that is read, and not where it lies."""

import gzip
import json
import os
import shutil

import pytest
from embedrepro import files
from embedrepro.datasets import local
from embedrepro.datasets.local import (
    corpus_digest,
    corpus_identity,
    split_digest,
    split_identity,
)
from embedrepro.errors import UserError

FILES = {
    "beir": {
        "corpus.jsonl": '{"_id": "a", "text": "one"}\n{"_id": "b", "text": "two"}\n',
        "queries.jsonl": '{"_id": "q", "text": "which"}',
        "qrels/test.tsv": "q\ta\t1\n",
        "qrels/dev.tsv": "q\tb\t1\n",
    },
    "flagembedding": {
        "corpus.jsonl": '{"id": "a", "text": "one"}\n{"id": "b", "text": "two"}\n',
        "test_queries.jsonl": '{"id": "q", "text": "which"}',
        "test_qrels.jsonl": '{"qid": "q", "docid": "a", "relevance": 1}\n',
        "dev_queries.jsonl": '{"id": "q", "text": "what"}',
        "dev_qrels.jsonl": '{"qid": "q", "docid": "b", "relevance": 1}\n',
    },
}
OLD = 1_700_000_000  # a time long ago


@pytest.fixture(params=FILES)
def source(request, tmp_path):
    folder = tmp_path / "data"
    for name, content in FILES[request.param].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
        os.utime(folder / name, (OLD, OLD))
    return {request.param: str(folder)}


def folder_of(source):
    return next(iter(source.values()))


def keys(source, cache=None):
    """Keys of the corpus and of both splits."""
    splits = (split_digest(source, split, cache).key for split in ("test", "dev"))
    return corpus_digest(source, cache).key, *splits


def test_every_file_that_is_read_counts_where_it_is_read(source):
    before = keys(source)
    assert len(set(before)) == 3
    kind, folder = next(iter(source.items()))
    changes = {
        "beir": {
            "corpus.jsonl": (1, 0, 0),
            "queries.jsonl": (0, 1, 1),
            "qrels/test.tsv": (0, 1, 0),
            "qrels/dev.tsv": (0, 0, 1),
        },
        "flagembedding": {
            "corpus.jsonl": (1, 0, 0),
            "test_queries.jsonl": (0, 1, 0),
            "test_qrels.jsonl": (0, 1, 0),
            "dev_queries.jsonl": (0, 0, 1),
            "dev_qrels.jsonl": (0, 0, 1),
        },
    }
    for name, expected in changes[kind].items():
        with open(f"{folder}/{name}", "a") as file:
            file.write(" ")
        after = keys(source)
        assert tuple(int(a != b) for a, b in zip(before, after, strict=True)) == expected, name
        before = after
    for name in ("README.md", "corpus.jsonl.bak", "qrels.txt"):
        (open(f"{folder}/{name}", "w")).close()
    assert keys(source) == before


def test_the_same_data_elsewhere_is_the_same(source, tmp_path):
    shutil.copytree(folder_of(source), tmp_path / "elsewhere" / "deep")
    moved = dict.fromkeys(source, str(tmp_path / "elsewhere" / "deep"))
    assert keys(moved) == keys(source)
    assert corpus_identity(moved) == corpus_identity(source) != moved
    assert split_identity(moved, "dev") == split_identity(source, "dev")


def test_sizes_and_lines(source, tmp_path):
    found = corpus_digest(source)
    path = tmp_path / "data" / "corpus.jsonl"
    assert (found.bytes, found.lines) == (path.stat().st_size, 2)
    assert split_digest(source, "test").lines == 1  # without a last line end
    path.write_text(path.read_text() + "\n\n")
    assert corpus_digest(source).lines == 4  # at least as many as passages


def test_every_piece_of_a_large_file_counts(source, tmp_path, monkeypatch):
    path = tmp_path / "data" / "corpus.jsonl"
    line = '{"_id": "%02d", "text": "some words"}\n'
    whole = "".join(line % i for i in range(40)).encode()
    monkeypatch.setattr(files, "PIECE", 100)  # also one that ends with a line, one that is short
    keys = set()
    for cut in (0, 1, 36 * 25, len(whole) - 1):
        for text in (whole[:cut] + whole[cut + 1 :], whole[:cut] + b"x" + whole[cut + 1 :]):
            path.write_bytes(text)
            found = corpus_digest(source)
            assert (found.bytes, found.lines) == (len(text), len(text.splitlines()))
            keys.add(found.key)
    path.write_bytes(whole)
    keys.add(corpus_digest(source).key)
    path.write_bytes(b"")
    assert (corpus_digest(source).bytes, corpus_digest(source).lines) == (0, 0)
    assert len(keys) == 9


def test_gzipped_files_count_by_their_bytes(source, tmp_path):
    path = tmp_path / "data" / "corpus.jsonl"
    content = gzip.compress(path.read_bytes(), mtime=0)
    path.unlink()
    (tmp_path / "data" / "corpus.jsonl.gz").write_bytes(content)
    found = corpus_digest(source)
    assert (found.bytes, found.lines) == (len(content), None)
    path.write_bytes(content)  # the plain file is the one that is read, and it isn't plain
    assert corpus_digest(source).key != found.key


def test_unchanged_files_are_not_read_again(source, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = keys(source, cache)
    read = []
    measured = local.measured
    monkeypatch.setattr(local, "measured", lambda paths: read.extend(paths) or measured(paths))
    assert keys(source, cache) == first == keys(source) and read
    read.clear()
    assert keys(source, cache) == first and read == []
    path = tmp_path / "data" / "corpus.jsonl"
    path.write_text(path.read_text().replace("one", "six"))  # as long as before
    os.utime(path, (OLD + 1, OLD + 1))
    changed = keys(source, cache)
    assert changed[0] != first[0] and changed[1:] == first[1:] and read == ["corpus.jsonl"]
    assert keys(source, cache) == changed and read == ["corpus.jsonl"]
    os.utime(path)  # just now: it may change once more within the clock's tick
    for _ in range(2):
        assert keys(source, cache) == changed
    assert read == ["corpus.jsonl"] * 3


def test_a_missing_file_is_named(source, tmp_path):
    with pytest.raises(UserError, match="no such file; the nearest file there is"):
        split_digest(source, "tset")
    with pytest.raises(UserError, match="no such folder"):
        corpus_digest(dict.fromkeys(source, str(tmp_path / "nowhere")))


HUB = {"hub": "mteb/x", "revision": "a" * 40}


def test_public_sources_count_by_their_pins():
    full = HUB | {"corpus": "de-corpus", "queries": "de-queries", "qrels": "de-qrels"}
    assert corpus_identity(HUB) == HUB
    assert corpus_identity(full) == HUB | {"corpus": "de-corpus"}
    configurations = {"queries": "de-queries", "qrels": "de-qrels"}
    assert split_identity(full, "test") == HUB | configurations | {"split": "test"}
    ir = {"ir_datasets": "beir/fiqa"}
    assert corpus_identity(ir) == ir
    assert split_identity(ir, "test") == {"ir_datasets": "beir/fiqa/test"}
    assert split_identity(ir, "beir/fiqa/test") == {"ir_datasets": "beir/fiqa/test"}


def test_a_split_of_another_source_counts_by_that_source(source):
    elsewhere = {"source": source, "split": "dev"}
    assert split_identity(HUB, elsewhere) == split_identity(source, "dev")
    assert json.dumps(split_identity(source, {"source": HUB, "split": "dev"})) == json.dumps(
        HUB | {"split": "dev"}
    )
