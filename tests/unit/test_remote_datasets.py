"""Public benchmarks: a hub on this machine in MTEB's layout, and ir_datasets."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import ir_datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedrepro.datasets import prepare
from embedrepro.errors import UserError
from embedrepro.files import read_json
from helpers import prepared
from hub_server import HubServer
from ir_datasets.datasets.base import Dataset
from ir_datasets.formats import BaseDocs, BaseQrels, BaseQueries, GenericQuery, TrecQrel

DOCS = [
    {"_id": "d1", "title": "Tides", "text": "They turn twice a day."},
    {"_id": "d2", "title": "", "text": ""},  # real benchmarks have such passages
    *({"_id": f"d{i}", "title": "", "text": f"passage {i}"} for i in range(3, 30)),
]
QUERIES = [{"_id": f"q{i}", "text": f"query {i}"} for i in range(30)]
QRELS = [{"query-id": f"q{i}", "corpus-id": f"d{i}", "score": 1.0 + i % 2} for i in range(1, 21)]


CODE = """
import json, sys
from pathlib import Path
from embedrepro.datasets.prepare import summary
from embedrepro.errors import run_cli
from helpers import prepared

def main():
    source, folder, splits = json.loads(sys.argv[1])
    print("\\n".join(summary(prepared(source, Path(folder), splits))))

run_cli(main)
"""


def parquet(records):
    data = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), data)
    return data.getvalue()


def repository(tables):
    """Files of a dataset repository: {configuration: {split: records}}."""
    files, configs = {}, []
    for config, splits in tables.items():
        entries = []
        for split, records in splits.items():
            name = f"{config}/{split}-00000-of-00001.parquet"
            files[name] = parquet(records)
            entries.append({"split": split, "path": name})
        configs.append({"config_name": config, "data_files": entries})
    card = f"---\nconfigs: {json.dumps(configs)}\n---\n# Made for a test\n"
    return files | {"README.md": card.encode()}


MTEB = repository(
    {
        "default": {"train": QRELS[:1], "test": QRELS},
        "corpus": {"corpus": DOCS},
        "queries": {"queries": QUERIES},
    }
)
LANGUAGES = repository(
    {
        "de-qrels": {"dev": QRELS[:1]},
        "de-corpus": {"train": [DOCS[0] | {"text": "Sie wechseln."}]},
        "de-queries": {"dev": QUERIES[:2]},
        "zh-qrels": {"dev": [QRELS[0] | {"query-id": "z"}]},
        "zh-corpus": {"train": [{"_id": "d1", "text": "潮汐"}]},
        "zh-queries": {"dev": [{"id": "z", "text": "潮"}]},
    }
)
FLAWED = repository(
    {
        "default": {"test": [*QRELS, QRELS[0], QRELS[1] | {"corpus-id": "lost"}]},
        "corpus": {"corpus": DOCS},
        "queries": {"queries": QUERIES[:20]},
    }
)
ELSEWHERE = repository(
    {
        "default": {"test": [QRELS[0] | {"corpus-id": f"other{i}"} for i in range(5)]},
        "corpus": {"corpus": DOCS},
        "queries": {"queries": QUERIES},
    }
)


@pytest.fixture(scope="module")
def hub():
    repos = {"mteb/x": MTEB, "mteb/y": LANGUAGES, "mteb/flawed": FLAWED, "mteb/other": ELSEWHERE}
    with HubServer(datasets=repos) as server:
        yield server


@pytest.fixture
def run(hub, tmp_path):
    """Prepare a dataset from the hub in a process of its own; returns it and the folder."""

    def start(name, env=None, revision=None, splits=None, **source):
        revision = revision or hub.commit(name, "datasets")
        source = {"hub": name, "revision": revision} | source
        folder = tmp_path / "store" / "x-1"
        arguments = json.dumps([source, str(folder), splits or {"test": "test"}])
        command = [sys.executable, "-c", CODE, arguments]
        paths = [Path(__file__).parents[1], Path(prepare.__file__).parents[2]]
        env = (env or hub.env()) | {"HF_HOME": str(tmp_path / "hf"), "USE_TORCH": "NO"}
        env["PYTHONPATH"] = os.pathsep.join(map(str, paths))
        return subprocess.run(command, capture_output=True, text=True, env=env), folder

    return start


def rows(path):
    return pq.read_table(path).to_pylist()


def test_a_repository_in_mteb_layout(run):
    done, folder = run("mteb/x", splits={"test": "test", "train": "train"})
    assert done.returncode == 0, done.stderr
    got = [(r["id"], r["title"], r["text"]) for r in rows(folder / "corpus.parquet")]
    assert got == [(d["_id"], d["title"], d["text"]) for d in DOCS]
    assert [q["id"] for q in rows(folder / "test" / "queries.parquet")] == [
        f"q{i}" for i in range(1, 21)
    ]
    assert [tuple(r.values()) for r in rows(folder / "test" / "qrels.parquet")] == [
        (r["query-id"], r["corpus-id"], int(r["score"])) for r in QRELS
    ]
    assert [q["id"] for q in rows(folder / "train" / "queries.parquet")] == ["q1"]
    assert read_json(folder / "corpus.json")["flaws"] == {"empty passages": 1}
    assert read_json(folder / "test" / "split.json")["flaws"] == {}
    assert "kept as the benchmark has it: 1 empty passages" in done.stdout


def test_one_language_of_many_and_no_torch(run, hub):
    parts = {part: f"zh-{part}" for part in ("corpus", "queries", "qrels")}
    timed = hub.env(PYTHONPROFILEIMPORTTIME="1")
    done, folder = run("mteb/y", env=timed, splits={"dev": "dev"}, **parts)
    assert done.returncode == 0, done.stderr
    assert "| datasets\n" in done.stderr and " torch\n" not in done.stderr
    assert rows(folder / "corpus.parquet") == [
        {"id": "d1", "title": "", "text": "潮汐", "chars": 2}
    ]
    assert rows(folder / "dev" / "queries.parquet") == [{"id": "z", "text": "潮"}]


def test_flaws_of_a_benchmark_are_counted_and_said(run):
    done, folder = run("mteb/flawed")
    assert done.returncode == 0, done.stderr
    assert read_json(folder / "corpus.json")["flaws"] == {"empty passages": 1}
    facts = read_json(folder / "test" / "split.json")
    assert facts["flaws"] == {
        "pairs judged twice": 1,
        "judged passages not in the corpus": 1,
        "judgements without a query": 1,
    }
    assert facts["qrels"] == 20  # 21 pairs, one of them without its query
    assert len(rows(folder / "test" / "qrels.parquet")) == 20


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mteb/other", {}, "5 of 5 judged passages (other0, say) are not in the corpus"),
        ("mteb/x", {"splits": {"test": "dev"}}, "configuration default has no split dev; it has"),
        ("mteb/x", {"corpus": "documents"}, "no configuration documents for its corpus; it has"),
        ("mteb/y", {}, "no configuration default or qrels for its qrels; it has de-qrels, de-c"),
        (
            "mteb/x",
            {"revision": "0" * 40},
            "dataset mteb/x at 00000000 on the hub: HTTP status 404",
        ),
    ],
)
def test_what_the_hub_lacks_is_said_in_a_line(run, tmp_path, name, change, message):
    done, _ = run(name, **change)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not list((tmp_path / "store").rglob("split.json"))


def test_nothing_is_asked_for_what_is_there(run, hub):
    assert run("mteb/x")[0].returncode == 0
    again, _ = run("mteb/x", env=hub.env(HF_ENDPOINT="http://127.0.0.1:9"))
    assert again.returncode == 0, again.stderr


def test_passing_faults_are_outlasted(run, hub):
    hub.fail("api/datasets", "429", value=1)
    hub.fail("corpus.*parquet", "truncate")
    done, folder = run("mteb/x")
    assert done.returncode == 0, done.stderr
    assert "HTTP status 429; again in 1 s" in done.stderr and hub.unspent() == 0
    assert len(rows(folder / "corpus.parquet")) == len(DOCS)


def test_wrong_bytes_are_refused(run, hub, tmp_path):
    hub.fail("corpus.*parquet", "wrong", times=2)
    done, _ = run("mteb/x")
    assert done.returncode == 2
    assert "on the hub: ArrowInvalid: Parquet magic bytes not found" in done.stderr
    assert not list((tmp_path / "store").rglob("*.*"))


def test_no_hub_is_noticed_at_once(run, hub):
    environment = hub.env(HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN="hf_secret")
    done, _ = run("mteb/x", env=environment)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "ConnectError" in done.stderr and "hf_secret" not in done.stderr


class Docs(BaseDocs):
    def docs_iter(self):
        yield from (ir_datasets.datasets.beir.BeirTitleDoc("d1", "They turn.", "Tides"),)
        yield ir_datasets.formats.GenericDoc("d2", "No title")

    def docs_count(self):
        return 2


class Queries(BaseQueries):
    def queries_iter(self):
        yield GenericQuery("q1", "When do tides turn?")


class Qrels(BaseQrels):
    def qrels_iter(self):
        yield TrecQrel("q1", "d1", 3, "0")


@pytest.fixture
def registered(monkeypatch):
    registry = {"tiny": Dataset(Docs()), "tiny/test": Dataset(Docs(), Queries(), Qrels())}
    monkeypatch.setattr(ir_datasets, "load", registry.__getitem__)


@pytest.mark.parametrize("split", ["test", "tiny/test"])
def test_ir_datasets(tmp_path, registered, split):
    folder = tmp_path / "tiny-1"
    prepared({"ir_datasets": "tiny"}, folder, {"test": split})
    assert read_json(folder / "test" / "split.json")["source"] == {"ir_datasets": "tiny/test"}
    assert [tuple(r.values()) for r in rows(folder / "corpus.parquet")] == [
        ("d1", "Tides", "They turn.", 16),
        ("d2", "", "No title", 8),
    ]
    assert rows(folder / "test" / "queries.parquet") == [
        {"id": "q1", "text": "When do tides turn?"}
    ]
    assert [tuple(r.values()) for r in rows(folder / "test" / "qrels.parquet")] == [("q1", "d1", 3)]


def test_judgements_from_another_source(tmp_path, registered):
    """The corpus of a folder with the queries and judgements of ir_datasets, as TREC DL 2020."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "corpus.jsonl").write_text(json.dumps(DOCS[0]))
    splits = {"dl20": {"source": {"ir_datasets": "tiny"}, "split": "test"}}
    corpus, split = prepared({"beir": str(folder)}, tmp_path / "both-1", splits)
    assert corpus["documents"] == 1 and split["queries"] == 1
    assert split["source"] == {"ir_datasets": "tiny/test"}


def test_ir_datasets_without_judgements_is_refused(tmp_path, registered):
    registry = {"tiny": Dataset(Docs()), "tiny/test": Dataset(Docs())}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ir_datasets, "load", registry.__getitem__)
        with pytest.raises(UserError, match="tiny/test: has no qrels; name a split that has them"):
            prepared({"ir_datasets": "tiny"}, tmp_path / "tiny-1", {"test": "tiny/test"})
    assert not (tmp_path / "tiny-1").exists()
