"""Datasets become Parquet: what is written equals a plain reading, what is wrong is named."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from embedrepro.datasets import prepare, tables
from embedrepro.datasets.export import export_beir, export_flagembedding
from embedrepro.datasets.local import corpus_identity, split_identity
from embedrepro.datasets.prepare import (
    CorpusTask,
    prepare_corpus,
    prepare_dataset,
    prepare_split,
    summary,
)
from embedrepro.datasets.records import passage
from embedrepro.errors import UserError, printable
from embedrepro.files import read_json, sha256
from helpers import prepared as prepare_source
from hypothesis import given, settings
from hypothesis import strategies as st

SHARED = Path(__file__).parents[2].parent / "shared"
CORPUS = [
    {"_id": "d1", "title": "Tides", "text": "They turn twice a day."},
    {"_id": "d2", "title": "", "text": "雾岭的茶园 ☕"},
    {"_id": "d3", "title": "Bees", "text": ""},
    {"_id": 4, "text": "No title, a number for an id.\u2028Still the same line."},
]
QUERIES = [
    {"_id": "q1", "text": "When do tides turn?"},
    {"_id": "q2", "text": "tea"},
    {"_id": "q9", "text": "nobody judged this"},
]
QRELS = [("q1", "d1", 2), ("q1", "d3", 0), ("q2", "d2", 1), ("q2", "4", -1)]


def jsonl(rows, end="\n"):
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def tsv(rows, end="\n", head="query-id\tcorpus-id\tscore"):
    lines = [head] * bool(head) + ["\t".join(map(str, row)) for row in rows]
    return "".join(line + end for line in lines).encode()


def beir_files():
    return {
        "corpus.jsonl": jsonl(CORPUS),
        "queries.jsonl": jsonl(QUERIES),
        "qrels/test.tsv": tsv(QRELS),
    }


def flagembedding_files():
    def rename(rows):
        return [{"id" if key == "_id" else key: row[key] for key in row} for row in rows]

    return {
        "corpus.jsonl": jsonl(rename(CORPUS)),
        "test_queries.jsonl": jsonl(rename(QUERIES)),
        "test_qrels.jsonl": jsonl({"qid": q, "docid": d, "relevance": r} for q, d, r in QRELS),
    }


LAYOUTS = {"beir": beir_files, "flagembedding": flagembedding_files}


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.fixture
def prepared(tmp_path):
    """Prepare a source; returns the corpus' folder, which holds those of the splits."""

    def run(source, **more):
        folder = tmp_path / "store" / "mine-0123abcd"
        prepare_source(source, folder, **more)
        return folder

    return run


@pytest.fixture
def refused(tmp_path, prepared):
    """Prepare a source that must be refused; returns the one line that says why."""

    def run(source, **more):
        with pytest.raises(UserError) as stop:
            prepared(source, **more)
        assert "\n" not in printable(stop.value, 2000)
        assert not list(tmp_path.rglob(".tmp-*")) and not list(tmp_path.rglob("split.json"))
        return printable(stop.value, 2000)

    return run


def rows(path):
    return pq.read_table(path).to_pylist()


def check_folder(folder):
    """The tables equal a plain reading of the constants above."""
    assert rows(folder / "corpus.parquet") == [
        {
            "id": str(doc["_id"]),
            "title": doc.get("title", ""),
            "text": doc["text"],
            "chars": len(passage(doc.get("title", ""), doc["text"])),
        }
        for doc in CORPUS
    ]
    judged = [{"id": q["_id"], "text": q["text"]} for q in QUERIES if q["_id"] != "q9"]
    assert rows(folder / "test" / "queries.parquet") == judged
    names = ("query_id", "doc_id", "relevance")
    expected = [dict(zip(names, row, strict=True)) for row in QRELS]
    assert rows(folder / "test" / "qrels.parquet") == expected
    types = [str(t) for t in pq.read_schema(folder / "corpus.parquet").types]
    assert types == ["string", "string", "string", "int32"]
    assert str(pq.read_schema(folder / "test" / "qrels.parquet").field("relevance").type) == "int32"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_round_trips(tmp_path, prepared, layout):
    source = {layout: str(write(tmp_path / "in", LAYOUTS[layout]()))}
    folder = prepared(source)
    check_folder(folder)
    corpus, split = read_json(folder / "corpus.json"), read_json(folder / "test" / "split.json")
    assert corpus["documents"] == 4 and corpus["title"] == "join" and corpus["name"] == "mine"
    assert corpus["chars"] == sum(r["chars"] for r in rows(folder / "corpus.parquet"))
    assert corpus["source"] == corpus_identity(source)
    assert split["source"] == split_identity(source, "test") and split["split"] == "test"
    counts = {"queries": 2, "qrels": 4, "judged": 2, "queries_left_out": 1}
    assert {name: split[name] for name in counts} == counts
    assert corpus["flaws"] == split["flaws"] == {}
    assert list(corpus["files"]) == ["corpus.parquet"]
    assert sorted(split["files"]) == ["qrels.parquet", "queries.parquet"]
    for record, place in ((corpus, folder), (split, folder / "test")):
        for name, facts in record["files"].items():
            path = place / name
            assert (facts["size"], facts["sha256"]) == (path.stat().st_size, sha256(path))
    assert summary([corpus, split]) == [
        "mine: 4 passages",
        "  test: 2 queries, 4 qrels, 2 judged, 1 queries left out",
    ]
    assert str(tmp_path) not in (folder / "corpus.json").read_text()  # where it lay is no fact


def gzipped(files):
    return {f"{name}.gz": gzip.compress(content) for name, content in files.items()}


VARIANTS = {
    "byte order marks": lambda: {n: b"\xef\xbb\xbf" + c for n, c in beir_files().items()},
    "CRLF": lambda: {
        "corpus.jsonl": jsonl(CORPUS, "\r\n"),
        "queries.jsonl": jsonl(QUERIES, "\r\n"),
        "qrels/test.tsv": tsv(QRELS, "\r\n"),
    },
    "no last line end": lambda: {n: c.rstrip() for n, c in beir_files().items()},
    "blank lines": lambda: {n: b"\n" + c.replace(b"\n", b"\n\n") for n, c in beir_files().items()},
    "gzip": lambda: gzipped(beir_files()),
    "grades as pandas writes them": lambda: (
        beir_files()
        | {"qrels/test.tsv": tsv([(q, d, float(r)) for q, d, r in QRELS], head="q_id\td\tgrade")}
    ),
    "grades with exponents": lambda: (
        beir_files() | {"qrels/test.tsv": tsv([(q, d, f"{r}e0") for q, d, r in QRELS], head="")}
    ),
    "no header": lambda: beir_files() | {"qrels/test.tsv": tsv(QRELS, head="")},
    "other header": lambda: beir_files() | {"qrels/test.tsv": tsv(QRELS, head="qid\tpid\tlabel")},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_ways_to_write_the_same_files(tmp_path, prepared, variant):
    check_folder(prepared({"beir": str(write(tmp_path / "in", VARIANTS[variant]()))}))


def test_the_title_can_be_dropped(tmp_path, prepared):
    files = beir_files()
    files["corpus.jsonl"] = files["corpus.jsonl"].replace(b'"text": ""', b'"text": "hum"')
    folder = prepared({"beir": str(write(tmp_path / "in", files))}, title="drop")
    assert [r["chars"] for r in rows(folder / "corpus.parquet")][:3] == [22, 7, 3]
    assert rows(folder / "corpus.parquet")[0]["title"] == "Tides"


def changed(name, old, new):
    """BEIR files with `old` replaced by `new` once in one of them; each must hold it."""
    files = beir_files()
    assert old in files[name]
    return files | {name: files[name].replace(old, new, 1)}


def without(name):
    return {n: c for n, c in beir_files().items() if n != name}


C, Q, R = "corpus.jsonl", "queries.jsonl", "qrels/test.tsv"
BROKEN = {
    "duplicate passage": (changed(C, b'"d2"', b'"d1"'), f"{C}:2: id d1 stands on line 1"),
    "same number as text": (changed(C, b'"d1"', b'"4"'), f"{C}:4: id 4 stands on line 1"),
    "duplicate query": (changed(Q, b'"q9"', b'"q1"'), f"{Q}:3: id q1 stands on line 1"),
    "judged twice": (changed(R, b"q1\td3\t0", b"q1\td1\t1"), f"{R}:3: q1 and d1 are judged on"),
    "unknown passage": (changed(R, b"d3", b"d33"), f"{R}:3: passage d33 is not in the corpus"),
    "unknown query": (changed(R, b"q2\td2", b"q22\td2"), f"{R}:4: query q22 is not among"),
    "empty passage": (changed(C, b'"Bees"', b'" "'), f"{C}:3: d3 has no text"),
    "empty query": (changed(Q, b'"tea"', b'" "'), f"{Q}:2: query q2 has no text"),
    "latin-1": (changed(C, "茶".encode(), b"\xe9"), f"{C}:2: not UTF-8"),
    "utf-16": (
        beir_files() | {C: jsonl(CORPUS).decode().encode("utf-16")},
        f"{C}:1: not UTF-8",
    ),
    "half a character": (changed(C, "☕".encode(), b"\\ud83d"), f"{C}:2: holds half a character"),
    "cut line": (changed(C, b'twice a day."}', b""), f"{C}:1: not JSON"),
    "not an object": (changed(Q, b'{"_id": "q2", "text": "tea"}', b'["q2"]'), f"{Q}:2: not a JSON"),
    "deep nesting": (changed(Q, b'"tea"', b"[" * 200_000), f"{Q}:2: not JSON"),
    "no id": (changed(C, b'"_id"', b'"id"'), f'{C}:1: field "_id" is missing (it has id, title'),
    "no text": (changed(Q, b'"text"', b'"query"'), f'{Q}:1: field "text" is missing'),
    "null id": (changed(C, b'"d1"', b"null"), f"{C}:1: _id is missing, expected a string"),
    "float id": (changed(C, b'"d1"', b"1.5"), f"{C}:1: _id is a number, expected a string"),
    "text is a list": (changed(C, b'"Bees"', b'["Bees"]'), f"{C}:3: title is a list"),
    "text is a number": (changed(Q, b'"tea"', b"7"), f"{Q}:2: text is a number"),
    "space in id": (changed(C, b'"d1"', b'"d 1"'), f'{C}:1: _id "d 1" is empty or holds white'),
    "wide space in id": (changed(C, b'"d1"', '"d\u30001"'.encode()), f"{C}:1: _id"),
    "escape in id": (changed(C, b'"d1"', b'"\\u001b[2J"'), f'{C}:1: _id "\\x1b[2J" is empty or'),
    "empty id": (changed(Q, b'"q1"', b'""'), f'{Q}:1: _id "" is empty'),
    "spaces for tabs": (changed(R, b"q2\td2\t1", b"q2 d2 1"), f"{R}:4: 1 tab-separated columns"),
    "four columns": (changed(R, b"q1\td3", b"q1\t0\td3"), f"{R}:3: 4 tab-separated columns"),
    "word for a grade": (changed(R, b"d3\t0", b"d3\thigh"), f'{R}:3: relevance "high" is not a'),
    "endless grade": (changed(R, b"d3\t0", b"d3\t1e999"), f'{R}:3: relevance "1e999" is not a'),
    "grouped digits": (changed(R, b"d3\t0", b"d3\t1_0"), f'{R}:3: relevance "1_0" is not a'),
    "large grade": (changed(R, b"d3\t0", b"d3\t3e9"), f'{R}:3: relevance "3e9" is not a'),
    "half a grade": (changed(R, b"d3\t0", b"d3\t0.5"), f'{R}:3: relevance "0.5" is not a whole'),
    "empty corpus": (beir_files() | {C: b""}, f"{C}:1: no passages"),
    "empty judgements": (beir_files() | {R: tsv([])}, f"{R}:1: no judgements"),
    "no corpus": (without(C), f"{C}: no such file; the nearest file there is queries.jsonl"),
    "no queries": (without(Q), f"{Q}: no such file; the nearest file there is"),
    "another split": (
        without(R) | {"qrels/dev.tsv": tsv(QRELS)},
        f"{R}: no such file; the nearest file there is qrels/dev.tsv",
    ),
    "cut gzip": (
        without(C) | {f"{C}.gz": gzip.compress(jsonl(CORPUS))[:-20]},
        f"{C}.gz:4: can't be read",
    ),
    "no gzip": (without(C) | {f"{C}.gz": jsonl(CORPUS)}, f"{C}.gz:1: can't be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_flaw_is_named_by_line(tmp_path, refused, case):
    files, message = BROKEN[case]
    folder = write(tmp_path / "in", files)
    assert refused({"beir": str(folder)}).startswith(f"{folder}/{message}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"relevance": 0', b'"relevance": 0.5', ':2: relevance "0.5" is not a whole number'),
        (b'"relevance": 0', b'"relevance": true', ':2: relevance "True" is not a whole number'),
        (b'"relevance": 0', b'"relevance": NaN', ':2: relevance "nan" is not a whole number'),
        (b'"relevance": 0', b'"relevance": 3e9', ':2: relevance "3000000000.0" is not a whole'),
        (b'"docid"', b'"pid"', ':1: field "docid" is missing (it has qid, pid, relevance)'),
    ],
)
def test_flagembedding_judgements_are_checked(tmp_path, refused, old, new, message):
    files = flagembedding_files()
    files["test_qrels.jsonl"] = files["test_qrels.jsonl"].replace(old, new, 1)
    folder = write(tmp_path / "in", files)
    assert f"{folder}/test_qrels.jsonl{message}" in refused({"flagembedding": str(folder)})


def test_a_link_out_of_the_folder_is_refused(tmp_path, refused, prepared):
    folder = write(tmp_path / "in", without(C))
    outside = write(tmp_path / "out", {C: jsonl(CORPUS)})
    (folder / C).symlink_to(outside / C)
    assert f"{folder}/{C}: links to a place outside" in refused({"beir": str(folder)})
    (folder / C).unlink()
    write(folder, {"real.jsonl": jsonl(CORPUS)})
    (folder / C).symlink_to("real.jsonl")
    (tmp_path / "link").symlink_to(folder)
    check_folder(prepared({"beir": str(tmp_path / "link")}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"splits": {"../up": "test"}}, "split spec.split: '../up' does not fit; a split's"),
        ({"splits": {"test": "../../test"}}, "qrels/../../test.tsv: no such file"),
        ({"splits": {"test": 1}}, "split spec.theirs: '1' should be text or a mapping"),
        ({"titel": "drop"}, "corpus spec: unknown key 'titel' (did you mean 'title'?)"),
        ({"title": "both"}, "corpus spec.title: 'both' is not one of join, drop"),
        ({"source": {"bier": "x"}}, "spec.source: unknown key 'bier' (did you mean 'beir'"),
        ({"source": {}}, "give exactly one of beir, flagembedding, hub, ir_datasets"),
        ({"source": {"beir": "x", "hub": "a/b"}}, "give exactly one of"),
        ({"source": {"beir": "nowhere"}}, "nowhere: no such folder"),
        ({"source": {"hub": "mteb/x", "revision": "main"}}, 'revision "main" of mteb/x is not'),
        ({"source": {"hub": "../x", "revision": "a" * 40}}, 'hub "../x" is not an org/name'),
        ({"source": {"ir_datasets": "beir/scifcat"}}, 'ir_datasets knows no "beir/scifcat/test"'),
    ],
)
def test_a_wrong_spec_is_refused(tmp_path, refused, change, message):
    folder = write(tmp_path / "in", beir_files())
    assert message in refused(**({"source": {"beir": str(folder)}} | change))


def test_a_spec_without_a_name_is_refused(tmp_path):
    with pytest.raises(UserError, match="the key 'name' is missing"):
        prepare_corpus({"source": {}}, tmp_path / "out")


def contents(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_what_is_there_and_whole_is_left_alone(tmp_path, prepared):
    source = {"beir": str(write(tmp_path / "in", beir_files()))}
    folder = prepared(source)
    before = contents(folder)
    prepared(source)
    assert contents(folder) == before


@pytest.mark.parametrize(
    "lost", ["corpus.json", "corpus.parquet", "test/split.json", "test/qrels.parquet", "test"]
)
@pytest.mark.parametrize("way", ["removed", "cut"])
def test_what_is_missing_or_cut_is_made_again(tmp_path, prepared, lost, way):
    source = {"beir": str(write(tmp_path / "in", beir_files()))}
    folder = prepared(source)
    before = contents(folder)
    path = folder / lost
    if path.is_dir():
        shutil.rmtree(path)
    elif way == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3])
    prepared(source)
    after = contents(folder)
    assert {p: content for p, (_, content) in after.items()} == {
        p: content for p, (_, content) in before.items()
    }
    other = "corpus" if lost.startswith("test") else "test"
    kept = [p for p in before if p.relative_to(folder).parts[0].startswith(other)]
    assert kept and all(after[p] == before[p] for p in kept)


def test_a_split_is_added_to_a_corpus(tmp_path, prepared, monkeypatch):
    """Its judged passages are looked for in the prepared corpus, which is not read again."""
    files = beir_files() | {"qrels/dev.tsv": tsv(QRELS[:1])}
    source = {"beir": str(write(tmp_path / "in", files))}
    folder = prepared(source)
    before = contents(folder)
    (tmp_path / "in" / C).unlink()
    spec = {"name": "mine", "source": source, "split": "dev", "theirs": "dev"}
    record = prepare_split(spec, folder, folder / "dev-1")
    assert record["queries"] == 1 and record == read_json(folder / "dev-1" / "split.json")
    assert before.items() <= contents(folder).items()
    write(tmp_path / "in", {"qrels/dev.tsv": tsv([("q1", "d7", 1)])})
    with pytest.raises(UserError, match=r"dev\.tsv:2: passage d7 is not in the corpus"):
        prepare_split(spec, folder, folder / "dev-2")
    assert not (folder / "dev-2").exists()
    with pytest.raises(UserError, match=r"corpus\.json: no such file; prepare the corpus first"):
        prepare_split(spec, tmp_path, tmp_path / "dev-2")


def test_a_folder_made_from_something_else_is_refused(tmp_path, prepared):
    folder = write(tmp_path / "in", beir_files())
    prepared({"beir": str(folder)})
    with pytest.raises(UserError, match=r"corpus\.json: was made from another source or by anoth"):
        prepared({"beir": str(folder)}, title="drop")
    write(folder, changed(Q, b'"tea"', b'"tea?"'))
    with pytest.raises(UserError, match=r"split\.json: was made from another source"):
        prepared({"beir": str(folder)})


def test_a_source_that_changed_since_it_was_planned_is_refused(tmp_path, prepared):
    folder = write(tmp_path / "in", beir_files())
    source = {"beir": str(folder)}
    spec = {"name": "mine", "source": source, "identity": corpus_identity(source)}
    split = {"name": "mine", "source": source, "split": "test", "theirs": "test"}
    split["identity"] = split_identity(source, "test")
    write(folder, changed(C, b"twice", b"once"))
    with pytest.raises(UserError, match="in: its files changed since they were looked at; run ag"):
        prepare_corpus(spec, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    write(folder, beir_files())
    prepare_corpus(spec, tmp_path / "out")
    write(folder, changed(Q, b'"tea"', b'"tea?"'))
    with pytest.raises(UserError, match="its files changed since"):
        prepare_split(split, tmp_path / "out", tmp_path / "out" / "test")
    assert not (tmp_path / "out" / "test").exists()


def test_only_a_prepared_split_is_replaced(tmp_path, prepared):
    source = {"beir": str(write(tmp_path / "in", beir_files()))}
    output = prepared(source)
    (output / "test" / "split.json").unlink()
    (output / "test" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds other files \(thesis\.tex\)"):
        prepared(source)
    assert (output / "test" / "thesis.tex").read_text() == "years of work"


def test_more_shards_than_passages_are_refused(tmp_path):
    source = {"beir": str(write(tmp_path / "in", beir_files()))}
    spec = {"name": "mine", "source": source}
    for _ in range(2):  # when it is made, and when it is there
        with pytest.raises(UserError, match="mine: shards: 5 for 4 passages; give a number from 1"):
            prepare_dataset(CorpusTask(spec, tmp_path / "out", shards=5))
        prepare_corpus(spec, tmp_path / "out")


def test_no_bar_in_a_log(tmp_path):
    source = {"beir": str(write(tmp_path / "in", beir_files()))}
    code = (
        "import json, sys\n"
        "from embedrepro.datasets.prepare import prepare_corpus\n"
        "prepare_corpus(json.loads(sys.argv[1]), sys.argv[2])\n"
    )
    spec = json.dumps({"name": "mine", "source": source})
    command = [sys.executable, "-c", code, spec, tmp_path / "out"]
    scripts = Path(prepare.__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(scripts)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""


def test_equal_hashes_of_different_ids_are_no_duplicates(tmp_path, prepared, monkeypatch):
    monkeypatch.setattr(tables, "hash", len, raising=False)
    check_folder(prepared({"beir": str(write(tmp_path / "in", beir_files()))}))


def test_row_groups_stay_small(tmp_path, prepared, monkeypatch):
    monkeypatch.setattr(tables, "GROUP_ROWS", 3)
    monkeypatch.setattr(tables, "GROUP_CHARS", 40)
    corpus = [{"_id": f"d{i}", "text": "x" * 30 if i < 4 else "y"} for i in range(11)]
    files = beir_files() | {C: jsonl(corpus), R: tsv([("q1", "d1", 1)])}
    table = prepared({"beir": str(write(tmp_path / "in", files))}) / "corpus.parquet"
    meta = pq.read_metadata(table)
    assert [meta.row_group(g).num_rows for g in range(meta.num_row_groups)] == [2, 2, 3, 3, 1]
    assert [r["id"] for r in rows(table)] == [f"d{i}" for i in range(11)]


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=20))
def test_any_text_survives(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("any")
    corpus = [{"_id": f"d{i}", "title": a, "text": b} for i, (a, b) in enumerate(pairs)]
    queries = [{"_id": "q", "text": pairs[0][0]}]
    write(folder, {C: jsonl(corpus), Q: jsonl(queries), R: tsv([("q", "d0", 1)])})
    prepare_source({"beir": str(folder)}, folder / "store" / "any-1")
    table = pq.read_table(folder / "store" / "any-1" / "corpus.parquet")
    assert list(zip(table["title"].to_pylist(), table["text"].to_pylist(), strict=True)) == pairs
    expected = [len(passage(a, b)) for a, b in pairs]
    assert table["chars"].to_numpy().tolist() == expected
    assert rows(folder / "store" / "any-1" / "test" / "queries.parquet")[0]["text"] == pairs[0][0]


@pytest.mark.parametrize(
    ("export", "kind"), [(export_beir, "beir"), (export_flagembedding, "flagembedding")]
)
def test_an_export_prepares_to_the_same_tables(tmp_path, prepared, export, kind):
    source = write(tmp_path / "in", beir_files() | {"qrels/dev.tsv": tsv(QRELS)})
    (source / R).unlink()
    first = prepared({"beir": str(source)}, splits={"validation": "dev"})
    export(first, first / "validation", tmp_path / "export")
    split = "validation" if kind == "beir" else "test"
    second = tmp_path / "again-1"
    source = {kind: str(tmp_path / "export")}
    prepare_source(source, second, {"test": split})
    for table in ("corpus.parquet", "queries.parquet", "qrels.parquet"):
        ours, theirs = ("", "") if table.startswith("corpus") else ("validation", "test")
        assert rows(first / ours / table) == rows(second / theirs / table)


@pytest.mark.slow  # FlagEmbedding takes long to import
def test_flagembedding_reads_its_export(tmp_path, prepared):
    """Its own loader gives back corpus, queries and judgements (relevance as integers)."""
    folder = prepared({"beir": str(write(tmp_path / "in", beir_files()))})
    export_flagembedding(folder, folder / "test", tmp_path / "export")
    code = (
        "import json, sys\n"
        "from FlagEmbedding.evaluation.custom.data_loader import CustomEvalDataLoader\n"
        "l = CustomEvalDataLoader('custom', dataset_dir=sys.argv[1], cache_dir=sys.argv[2])\n"
        "parts = [l.load_corpus(), l.load_queries(split='test'), l.load_qrels(split='test')]\n"
        "print('PARTS', json.dumps([dict(part) for part in parts]))\n"
    )
    command = [sys.executable, "-c", code, tmp_path / "export", tmp_path / "cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    corpus, queries, qrels = json.loads(done.stdout.partition("PARTS")[2])
    assert corpus["d1"] == {"title": "Tides", "text": "They turn twice a day."}
    assert corpus.keys() == {"d1", "d2", "d3", "4"}
    assert queries == {"q1": "When do tides turn?", "q2": "tea"}
    assert qrels == {"q1": {"d1": 2, "d3": 0}, "q2": {"d2": 1, "4": -1}}


def test_xquad_equals_a_plain_reading(prepared):
    source = SHARED / "data" / "xquad-en"
    if not source.is_dir():
        pytest.skip("needs ../shared/data/xquad-en")
    folder = prepared({"beir": str(source)})
    plain = [json.loads(line) for line in (source / C).read_text().splitlines()]
    got = rows(folder / "corpus.parquet")
    assert [(r["id"], r["text"]) for r in got] == [(r["_id"], r["text"]) for r in plain]
    assert len(rows(folder / "test" / "queries.parquet")) == 1185
    assert np.sum([r["relevance"] for r in rows(folder / "test" / "qrels.parquet")]) == 1185
