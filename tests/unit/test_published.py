"""The registry of published numbers: sound, citable, and equal to the sources it was read from."""

import csv
import importlib.util
import io
import json
import lzma
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from embedrepro.errors import UserError
from embedrepro.evaluation import published
from embedrepro.evaluation.metrics import parse
from embedrepro.models import prompts

ROOT = Path(__file__).parents[2]
REGISTRY = ROOT / "rules" / "registry"
SHARED = ROOT.parent / "shared" / "data" / "mteb-retrieval.tsv.xz"
SOURCE = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{7,40} \S+(\.json|\.yaml)( condition \S+)?")
MINILM, MPNET = "sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-mpnet-base-v2"
BGE = "BAAI/bge-base-en-v1.5"


@pytest.fixture(scope="module")
def rows():
    return published.read_table(REGISTRY / "published.tsv")


@pytest.fixture(scope="module")
def table():
    return pq.ParquetFile(REGISTRY / "published.parquet").read().to_pylist()


@pytest.fixture(scope="module")
def tool():
    path = ROOT / "tools" / "registry" / "mteb_results.py"
    spec = importlib.util.spec_from_file_location("mteb_results", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_row_by_hand_is_sound_and_citable(rows):
    assert len(rows) > 250
    for row in rows:
        assert str(parse(row.metric)) == row.metric
        assert 0 < row.value <= 1
        if row.source != "data/demo/README.md":
            assert SOURCE.fullmatch(row.source), row.source
        assert row.revision is None or re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{40}", row.revision)
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", row.model_id)


def test_no_number_is_there_twice(rows, table):
    keys = Counter((r.model_id, r.revision, r.dataset, r.split, r.metric, r.protocol) for r in rows)
    assert keys.most_common(1)[0][1] == 1
    names = ("model", "revision", "task", "subset", "split")
    places = Counter(tuple(row[name] for name in names) for row in table)
    assert places.most_common(1)[0][1] == 1


def test_trec_dl_rows_state_their_threshold(rows):
    """Pyserini counts grade 2 and up there, MTEB grade 1: the metric's name says which."""
    for row in rows:
        if row.split in ("dl19", "dl20") and not row.metric.startswith("nDCG"):
            assert ("(rel=2)" in row.metric) == (row.protocol == "pyserini")


def test_known_numbers():
    places = ["xquad/en", "msmarco-passage", "beir/scifact"]
    loaded = published.load(REGISTRY, [], [MINILM, BGE], places)
    found = {(r.model_id, r.dataset, r.split, r.metric, r.protocol): r.value for r in loaded}
    assert found[MINILM, "xquad/en", "validation", "nDCG@10", "mteb"] == 0.94357
    assert found[BGE, "msmarco-passage", "dev", "RR@10", "pyserini"] == 0.3583
    assert found[BGE, "msmarco-passage", "dl19", "R(rel=2)@1000", "pyserini"] == 0.8427
    assert found[BGE, "beir/scifact", "test", "nDCG@10", "pyserini"] == 0.7408
    dl19 = found[MINILM, "msmarco-passage", "dl19", "nDCG@10", "mteb"]
    assert dl19 == pytest.approx(0.6369, abs=5e-5)


def test_what_a_row_of_mteb_says():
    (row,) = (
        row
        for row in published.load(REGISTRY, [], ["intfloat/e5-small-v2"], ["xquad/en"])
        if row.metric == "nDCG@10"
    )
    assert (row.query_prompt, row.passage_prompt) == (("query: ",), ("passage: ",))
    assert (row.title, row.queries, row.protocol_version) == ("join", 1185, "1.18.0")
    assert "194842d6a49baddf6cd3f4d5130ab3c7756268d2" in row.dataset_revision
    assert row.precision is None  # MTEB doesn't say


def test_prompts_of_a_number_from_a_model_card_may_be_the_registrys():
    rows = published.load(REGISTRY, [], ["Alibaba-NLP/gte-Qwen2-1.5B-instruct"], ["beir/scifact"])
    row = next(row for row in rows if row.note == "copied from the model card")
    assert row.revision is None
    assert row.query_prompt == (
        "Instruct: Given a scientific claim, retrieve documents that support or refute the claim"
        "\nQuery: ",
    )


def test_a_task_of_mteb_is_a_dataset_by_its_name():
    rows = published.load(REGISTRY, [], [MINILM], ["ArguAna", "BelebeleRetrieval"])
    assert {row.dataset for row in rows} == {"ArguAna"}  # the other has subsets
    subset = "acm_Arab-acm_Arab"
    rows = published.load(REGISTRY, [], [MINILM], [f"BelebeleRetrieval/{subset}"])
    assert {row.subset for row in rows} == {subset}


@pytest.mark.skipif(not SHARED.exists(), reason="the extract of MTEB's results isn't here")
def test_the_table_equals_the_extract(table):
    columns = ("ndcg_at_10", "map_at_10", "recall_at_100", "mrr_at_10")
    tasks = prompts.tasks()["tasks"]
    ours = {(r["model"], r["revision"], r["task"], r["subset"], r["split"]): r for r in table}
    with lzma.open(SHARED) as file:
        lines = csv.DictReader(
            io.TextIOWrapper(file, "utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE
        )
        for line in lines:
            if line["task"] not in tasks:
                continue
            place = (line[k] for k in ("revision", "task", "subset", "split"))
            row = ours.pop((line["model"].replace("__", "/", 1), *place))
            for column in columns:
                want = line[column] and round(float(line[column]) * 100_000)
                assert (row[column] or 0) == (want or 0)
    assert ours == {}


def test_a_dataset_of_ones_own_may_say_which_task_it_is():
    place = {"mine": {"all": {"task": "XQuADRetrieval", "split": "validation", "subset": "en"}}}
    rows = published.load(REGISTRY, [], [MINILM], ["mine"], place)
    found = {(row.dataset, row.split, row.metric): row.value for row in rows}
    assert found["mine", "all", "nDCG@10"] == 0.94357
    assert published.load(REGISTRY, [], [MINILM], ["mine"]) == []


RESULT = {
    "task_name": "SciFact",
    "dataset_revision": "d" * 40,
    "mteb_version": "2.18.18",
    "scores": {
        "test": [
            {
                "hf_subset": "default",
                "ndcg_at_10": 0.645082,
                "map_at_10": 0.6,
                "recall_at_100": 0.0,
                "mrr_at_10": 0.61,
                "mrr_at_1": 0.5,
                "precision_at_1": 0.5,
                "main_score": 0.645082,
            }
        ]
    },
}


def checkout(root: Path, **results: dict) -> Path:
    for name, result in results.items():
        folder = root / "results" / "org__a__model" / name
        folder.mkdir(parents=True)
        (folder / "SciFact.json").write_text(json.dumps(result))
        (folder / "model_meta.json").write_text("{}")
    return root


def test_the_table_is_made_from_a_checkout(tmp_path):
    newer = RESULT | {"mteb_version": "2.18.19"}
    unequal = json.loads(json.dumps(RESULT))
    unequal["scores"]["test"][0]["precision_at_1"] = 0.52
    image = RESULT | {"task_name": "VidoreArxivQARetrieval"}
    root = checkout(tmp_path, old=RESULT, new=newer, unequal=unequal, image=image, broken={})
    output = tmp_path / "made.parquet"
    script = ROOT / "tools" / "registry" / "mteb_results.py"
    done = subprocess.run(
        [sys.executable, script, root, output, "--commit", "abc"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "broken/SciFact.json: passed over (KeyError('scores'))" in done.stderr
    file = pq.ParquetFile(output)
    rows = {row["revision"]: row for row in file.read().to_pylist()}
    assert list(rows) == ["new", "old", "unequal"]
    assert rows["old"]["model"] == "org/a__model"
    assert rows["old"]["ndcg_at_10"] == 64508
    assert rows["old"]["recall_at_100"] is None  # 0 beside other scores: not reported
    assert rows["old"]["main_score"] is None  # the same as nDCG@10
    assert {name: row["ties"] for name, row in rows.items()} == {
        "new": None,
        "old": "older",
        "unequal": "differs",
    }
    assert file.metadata.metadata[b"source"] == b"embeddings-benchmark/results@abc"


def test_a_checkout_and_its_table_give_the_same(tmp_path, tool):
    (row,) = tool.from_checkout(checkout(tmp_path, old=RESULT))
    line = "\t".join("" if row[name] is None else str(row[name]) for name in tool.TABLE)
    path = tmp_path / "results.tsv"
    path.write_text("\t".join(tool.TABLE) + "\n" + line + "\n")
    assert [tool.record(r) for r in tool.from_table(path)] == [tool.record(row)]


def test_datasets_of_the_tasks_are_those_of_the_registry(tmp_path):
    """Made anew from datasets.yaml, the file is the same: mteb_tasks.py --datasets-only."""
    path = tmp_path / "mteb_tasks.json"
    path.write_bytes((REGISTRY / "mteb_tasks.json").read_bytes())
    script = ROOT / "tools" / "registry" / "mteb_tasks.py"
    subprocess.run([sys.executable, script, path, "--datasets-only"], check=True)
    assert path.read_bytes() == (REGISTRY / "mteb_tasks.json").read_bytes()


HEADER = "model_id\tdataset\tsplit\tmetric\tvalue\tprotocol\tsource\n"
LINE = "a/b\tbeir/scifact\ttest\tnDCG@10\t0.65\tmteb\tour paper\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "1: the column model_id is missing"),
        ("model_id\tvalue\n", "1: the column dataset is missing"),
        (HEADER.replace("source", "sorce"), "1: unknown column 'sorce'; known: model_id"),
        (HEADER + "a/b\tc\n", "2: 2 fields where the header has 7"),
        (HEADER + "\n# a remark\n" + LINE.replace("0.65", "65.1"), "4: value is '65.1'; a fract"),
        (HEADER + LINE.replace("0.65", "x"), "2: value is 'x'"),
        (HEADER + LINE.replace("test", ""), "2: split is empty"),
        (HEADER + LINE.replace("mteb", "trec"), "2: unknown protocol 'trec'; it may be trec_eval"),
        (HEADER + LINE.replace("nDCG", "zzz"), "2: unknown metric"),
        (HEADER[:-1] + "\tqueries\n" + LINE[:-1] + "\t3e2\n", "2: queries is '3e2'; a whole"),
        (HEADER[:-1] + "\ttitle\n" + LINE[:-1] + "\tyes\n", "2: title is 'yes'; it may be join"),
        (HEADER[:-1] + "\tquery_prompt\n" + LINE[:-1] + "\tquery: \n", "write it as JSON text"),
    ],
)
def test_a_faulty_table_of_ones_own_is_named_by_line(tmp_path, text, words):
    path = tmp_path / "mine.tsv"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        published.read_own(path)
    assert str(error.value).startswith(f"{path}:{words[:2]}" if words[0].isdigit() else str(path))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_table_of_ones_own_is_read_and_written(tmp_path):
    path = tmp_path / "mine.tsv"
    columns = "\tquery_prompt\tmax_length_query\tdataset_revision\ttolerance\n"
    path.write_text(HEADER[:-1] + columns + LINE[:-1] + '\t"query: "\t512\tabc|def\t0.01\n')
    (row,) = published.read_own(path)
    assert (row.value, row.decimals, row.tolerance) == (0.65, 2, 0.01)
    assert (row.query_prompt, row.max_length_query) == (("query: ",), 512)
    assert row.dataset_revision == ("abc", "def")
    assert row.passage_prompt is None
    path.write_text(published.table_text([row]))
    assert published.read_own(path) == [row]
    found = published.load(REGISTRY, [path], ["a/b"], ["beir/scifact"])
    assert found == [row]
    assert published.load(REGISTRY, [path], ["a/b"], ["beir/nq"]) == []


def test_reading_imports_little():
    code = (
        "import sys; from pathlib import Path; "
        "from embedrepro.evaluation import published, verdicts"
        f"; assert published.load(Path({str(REGISTRY)!r}), [], [{MINILM!r}], ['xquad/en'])"
        "; print([m for m in ('torch', 'pandas', 'transformers', 'mteb') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "scripts"
    )
    assert done.stdout.strip() == "[]", done.stderr
