"""The command for FlagEmbedding's evaluator, the data it reads and the parity table."""

import json
import os
import shlex
import sys
from pathlib import Path

import pytest
from embedrepro.encode.facts import resolve
from embedrepro.errors import UserError
from embedrepro.evaluation import reference
from helpers import prepared

HOSTILE = "--query: {x} $(touch bad) 'it''s'\n"
SPEC = {
    "model_id": "org/name-1.5",
    "dataset": "mine",
    "split": "dev",
    "query_prompt": None,
    "passage_prompt": None,
    "instruction": None,
    "devices": ["cpu", "cpu"],
    "batch_size": 8,
    "timeout_minutes": 5,
    "top_k": 100,
    "ignore_identical_ids": False,
}


@pytest.fixture
def staged(tmp_path):
    """A staged folder as far as the command needs it."""

    def make(**facts):
        folder = tmp_path / "v1.0" / "org__name-1_5-k"
        folder.mkdir(parents=True, exist_ok=True)
        defaults = {
            "id": "org/name-1.5",
            "revision": None,
            "architecture": "bert",
            "native": True,
            "engine": "packed",
            "attention": "bidirectional",
            "pooling": "mean",
            "normalize": True,
            "query_prompt": "",
            "passage_prompt": "",
            "max_length": {"query": 64, "passage": 256},
            "dtype": "auto",
            "hidden_size": 8,
        }
        (folder / "stage.json").write_text(json.dumps(defaults | facts))
        return folder

    return make


@pytest.fixture
def dataset(tmp_path):
    """Paths of a prepared dataset, as the plan gives them."""
    source = tmp_path / "source"
    (source / "qrels").mkdir(parents=True)
    (source / "corpus.jsonl").write_text(
        '{"_id": "d1", "title": "Head", "text": "one"}\n{"_id": "d2", "text": "two"}\n'
    )
    (source / "queries.jsonl").write_text('{"_id": "q", "text": "ask"}\n')
    (source / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq\td2\t1\n")
    prepared({"beir": str(source)}, tmp_path / "made", {"dev": "dev"})
    paths = {name: tmp_path / "made" / "dev" / f"{name}.parquet" for name in ("queries", "qrels")}
    return {"corpus": str(tmp_path / "made" / "corpus.parquet")} | {
        name: str(path) for name, path in paths.items()
    }


def parsed(command):
    """What FlagEmbedding's own argument parser makes of the command."""
    from FlagEmbedding.abc.evaluation import AbsEvalArgs, AbsEvalModelArgs
    from transformers import HfArgumentParser

    parser = HfArgumentParser((AbsEvalArgs, AbsEvalModelArgs))
    return parser.parse_args_into_dataclasses(shlex.split(shlex.join(command))[3:])


def test_flagembedding_reads_from_the_command_what_was_meant(staged, tmp_path):
    folder = staged(
        query_prompt=HOSTILE,
        pooling="last_token",
        normalize=False,
        dimensions=4,
        max_length={"query": 32, "passage": 256},
    )
    facts = resolve(folder, {})
    command = reference.command_line(facts, tmp_path, SPEC, "float32", tmp_path / "out")
    assert command[:3] == ["python", "-m", "FlagEmbedding.evaluation.custom"]
    evaluation, model = parsed(command)
    assert evaluation.splits == ["test"] and evaluation.search_top_k == 100
    assert [int(k) for k in evaluation.k_values] == [10, 100]
    assert evaluation.ignore_identical_ids is False and evaluation.dataset_names is None
    assert model.embedder_name_or_path == str(folder) and "." not in folder.name
    assert model.embedder_model_class == "decoder-only-base"
    assert model.pooling_method == "last_token" and model.normalize_embeddings is False
    assert (model.use_fp16, model.use_bf16) == (False, False)
    assert (model.embedder_query_max_length, model.embedder_passage_max_length) == (32, 256)
    assert model.devices == ["cpu", "cpu"] and model.truncate_dim == 4
    format_, prompt = model.query_instruction_format_for_retrieval, HOSTILE
    assert format_.format(model.query_instruction_for_retrieval, "text") == prompt + "text"


@pytest.mark.parametrize(
    ("compute", "fp16", "bf16"),
    [("float16", True, False), ("bfloat16", False, True), ("fp8", False, True)],
)
def test_precision(staged, tmp_path, compute, fp16, bf16):
    facts = resolve(staged(), {})
    _, model = parsed(reference.command_line(facts, tmp_path, SPEC, compute, tmp_path))
    assert (model.use_fp16, model.use_bf16) == (fp16, bf16)
    assert model.embedder_model_class == "encoder-only-base"


def test_identical_ids_go_where_flagembeddings_rules_drop_them(staged, tmp_path):
    facts = resolve(staged(), {})
    for name, drops in (("beir/arguana", True), ("mine", False)):
        spec = SPEC | {"dataset": name}
        evaluation, _ = parsed(reference.command_line(facts, tmp_path, spec, "float32", tmp_path))
        assert evaluation.ignore_identical_ids is drops


def test_ms_marco_has_an_evaluator_of_its_own(staged, dataset, tmp_path):
    assert reference.evaluator("msmarco-passage", "dl19") == ("msmarco", "passage", "dl19")
    assert reference.evaluator("msmarco-passage", "train") == ("custom", None, "test")
    reference.export(SPEC | dataset | {"dataset": "msmarco-passage"}, tmp_path / "out")
    names = {path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("out/*/*")}
    assert names == {f"passage/{n}.jsonl" for n in ("corpus", "dev_queries", "dev_qrels")}


def test_a_passage_prompt_reaches_the_texts_that_flagembedding_encodes(staged, dataset, tmp_path):
    reference.export(SPEC | dataset, tmp_path / "data")
    facts = resolve(staged(passage_prompt="passage: "), {})
    folder = reference.with_passage_prompt(tmp_path / "data", facts, SPEC, tmp_path / "more")
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["passage: Head one", "passage: two"]
    assert (folder / "test_qrels.jsonl").read_text()
    plain = resolve(staged(), {})
    assert reference.with_passage_prompt(tmp_path, plain, SPEC, folder) == tmp_path


def fake_evaluator(folder: Path, body: str) -> None:
    """A FlagEmbedding package whose evaluator runs `body`."""
    module = folder / "FlagEmbedding" / "evaluation"
    module.mkdir(parents=True)
    (folder / "FlagEmbedding" / "__init__.py").touch()
    (module / "__init__.py").touch()
    (module / "custom.py").write_text(body)


RESULT = """
import json, os, pathlib, sys
assert os.environ["HF_HUB_OFFLINE"] == "1"
out = pathlib.Path(sys.argv[sys.argv.index("--output_dir") + 1])
assert not out.exists()
values = {"ndcg_at_10": 0.5, "mrr_at_10": 0.25, "recall_at_100": 1.0}
(out / "m" / "NoReranker" / "EVAL").mkdir(parents=True)
(out / "m" / "NoReranker" / "EVAL" / "eval_results.json").write_text(json.dumps({"test": values}))
"""


def runnable(staged: Path, dataset: dict, folder: Path) -> dict:
    """What `run` is given: our vectors' sidecar says in which precision."""
    sidecar = folder / "corpus-0-of-1.json"
    sidecar.write_text(json.dumps({"compute_dtype": "bfloat16"}))
    return SPEC | dataset | {"staged": str(staged), "sidecar": str(sidecar)}


def test_result_parity_and_fresh_folder(staged, dataset, tmp_path, monkeypatch, capfd):
    fake_evaluator(tmp_path / "fake", RESULT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    spec = runnable(staged(), dataset, tmp_path)
    output = tmp_path / "ref" / "dev.json"
    stale = tmp_path / "ref" / "dev" / "results"
    stale.mkdir(parents=True)  # of an earlier run that was killed
    result = reference.run(spec, output)
    assert result["command"] in capfd.readouterr().err
    assert result["dtype"] == "bfloat16"
    evaluation, model = parsed(shlex.split(result["command"]))
    assert (evaluation.dataset_dir, model.use_bf16) == (str(stale.parent / "exported"), True)
    assert not stale.parent.exists()
    run = tmp_path / "m.trec"
    run.write_text("q Q0 d1 1 0.9 m\nq Q0 d2 2 0.8 m\n")
    row = {key: SPEC[key] for key in ("model_id", "dataset", "split", "ignore_identical_ids")}
    row |= {"model": "m", "reference": str(output), "run": str(run), "qrels": dataset["qrels"]}
    parity = reference.compare([row], tmp_path / "parity.json")
    assert json.loads((tmp_path / "parity.json").read_text()) == parity
    deltas = {line["metric"]: (line["ours"], line["delta"]) for line in parity}
    # One relevant document at rank 2: 1 / log2(3), 1/2 and 1.
    assert deltas == {"nDCG@10": (0.63093, 0.13093), "RR@10": (0.5, 0.25), "R@100": (1.0, 0.0)}
    assert parity[0]["devices"] == ["cpu", "cpu"] and parity[0]["command"] == result["command"]
    assert "+0.13093" in reference.table(parity)


def test_an_evaluator_that_skips_is_no_result(staged, dataset, tmp_path, monkeypatch):
    fake_evaluator(tmp_path / "fake", "print('Skipping evaluation')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    with pytest.raises(UserError, match="without a result"):
        reference.run(runnable(staged(), dataset, tmp_path), tmp_path / "ref" / "dev.json")
    assert not (tmp_path / "ref" / "dev.json").exists()


def test_threads_are_shared_among_workers_on_cpu(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert reference.environment(["cpu", "cpu"], tmp_path)["OMP_NUM_THREADS"] == "4"
    assert reference.environment(["cuda:0", "cuda:1"], tmp_path)["OMP_NUM_THREADS"] == "8"


def test_command_line_needs_no_torch():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import embedrepro.evaluation.reference"
    code += "; assert not {'torch', 'FlagEmbedding', 'transformers'} & set(sys.modules)"
    scripts = Path(reference.__file__).parents[2]
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code, str(scripts)]) == 0
