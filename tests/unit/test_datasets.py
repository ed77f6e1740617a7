"""Datasets become Parquet: what is written equals a plain reading, what is wrong is named."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import prepare_dataset
import pyarrow.parquet as pq
import pytest
from embedrepro.datasets import prepare as prepare_module
from embedrepro.datasets import tables
from embedrepro.datasets.export import export_beir, export_flagembedding
from embedrepro.errors import UserError, run_cli
from embedrepro.files import sha256
from embedrepro.shards import passage
from hypothesis import given, settings
from hypothesis import strategies as st

SHARED = Path(__file__).parents[2].parent / "shared"
SCRIPT = Path(prepare_dataset.__file__)
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


def spec_for(tmp_path, source, **more):
    spec = {"name": "mine", "source": source, "splits": {"test": "test"}} | more
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    return spec


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Run the command line on a source; returns the folder it wrote."""

    def run(source, **more):
        spec_for(tmp_path, source, **more)
        output = tmp_path / "store" / "mine-0123abcd"
        arguments = ["--spec", tmp_path / "spec.json", "--output", output]
        monkeypatch.setattr(sys, "argv", ["prepare_dataset.py", *map(str, arguments)])
        run_cli(prepare_dataset.main)
        return output

    return run


@pytest.fixture
def refused(tmp_path, prepared, capsys):
    """Run the command line on a source that it must refuse; returns its one line."""

    def run(source, **more):
        with pytest.raises(SystemExit) as stop:
            prepared(source, **more)
        out, err = capsys.readouterr()
        assert stop.value.code == 2 and out == ""
        assert err.startswith("error: ") and err.count("\n") == 1
        assert not list((tmp_path / "store").glob("*")) and not list(tmp_path.glob(".tmp-*"))
        return err

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
def test_a_folder_round_trips(tmp_path, prepared, layout, capsys):
    source = {layout: str(write(tmp_path / "in", LAYOUTS[layout]()))}
    folder = prepared(source, instruction="Find it")
    check_folder(folder)
    facts = json.loads((folder / "dataset.json").read_text())
    assert facts["documents"] == 4 and facts["key"] == "0123abcd" and facts["title"] == "join"
    assert facts["instruction"] == "Find it" and facts["source"] == source
    counts = {"queries": 2, "qrels": 4, "judged": 2, "queries_left_out": 1}
    assert facts["splits"] == {"test": counts}
    names = ["corpus.parquet", "test/qrels.parquet", "test/queries.parquet"]
    assert sorted(facts["files"]) == names
    for name in names:
        path = folder / name
        assert facts["files"][name] == {"size": path.stat().st_size, "sha256": sha256(path)}
    assert "mine: 4 passages" in capsys.readouterr().out


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
    assert f"error: {folder}/{message}" in refused({"beir": str(folder)})


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
        ({"splits": {}}, "dataset spec.splits: '{}' does not fit; at least one of {our name"),
        ({"splits": ["test"]}, "dataset spec.splits: '['test']' should be a mapping"),
        ({"splits": {"../up": "test"}}, "dataset spec.splits: '../up' does not fit; a split's"),
        ({"splits": {"test": "../../test"}}, "qrels/../../test.tsv: no such file"),
        ({"splits": {"test": 1}}, "dataset spec.splits.test: '1' does not fit"),
        ({"titel": "drop"}, "unknown key 'titel' (did you mean 'title'?)"),
        ({"title": "both"}, "dataset spec.title: 'both' is not one of join, drop"),
        ({"relevance_threshold": 0}, "dataset spec.relevance_threshold: '0' does not fit"),
        ({"source": {"bier": "x"}}, "dataset spec.source: unknown key 'bier' (did you mean 'beir'"),
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
        prepare_module.prepare({"source": {}, "splits": {"test": "test"}}, tmp_path / "out")


def test_only_a_prepared_dataset_is_replaced(tmp_path, prepared, capsys):
    folder = write(tmp_path / "in", beir_files())
    output = prepared({"beir": str(folder)})
    before = {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}
    prepared({"beir": str(folder)})
    assert {p: p.read_bytes() for p in output.rglob("*") if p.is_file()} == before
    write(folder, changed(C, b'"d2"', b'"d1"'))
    with pytest.raises(SystemExit):
        prepared({"beir": str(folder)})
    assert {p: p.read_bytes() for p in output.rglob("*") if p.is_file()} == before
    (output / "thesis.tex").write_text("years of work")
    write(folder, beir_files())
    with pytest.raises(SystemExit):
        prepared({"beir": str(folder)})
    assert "holds other files (thesis.tex)" in capsys.readouterr().err
    assert (output / "thesis.tex").read_text() == "years of work"


def test_by_hand_without_a_bar_in_a_log(tmp_path):
    folder = write(tmp_path / "in", beir_files())
    spec_for(tmp_path, {"beir": str(folder)})
    command = [sys.executable, SCRIPT, "--spec", "spec.json", "--output", "out/mine-1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "mine: 4 passages" and done.stderr == ""
    check_folder(tmp_path / "out" / "mine-1")


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
    spec = {"name": "any", "source": {"beir": str(folder)}, "splits": {"test": "test"}}
    prepare_module.prepare(spec, folder / "store" / "any-1")
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
    export(first, "validation", tmp_path / "export")
    split = "validation" if kind == "beir" else "test"
    second = tmp_path / "again-1"
    source = {kind: str(tmp_path / "export")}
    prepare_module.prepare({"name": "b", "source": source, "splits": {"test": split}}, second)
    for table in ("corpus.parquet", "queries.parquet", "qrels.parquet"):
        ours, theirs = ("", "") if table.startswith("corpus") else ("validation", "test")
        assert rows(first / ours / table) == rows(second / theirs / table)
    with pytest.raises(UserError, match="has no split test; it has validation"):
        export(first, "test", tmp_path / "no")


@pytest.mark.slow  # FlagEmbedding takes long to import
def test_flagembedding_reads_its_export(tmp_path, prepared):
    """Its own loader gives back corpus, queries and judgements (relevance as integers)."""
    folder = prepared({"beir": str(write(tmp_path / "in", beir_files()))})
    export_flagembedding(folder, "test", tmp_path / "export")
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
