"""Exported files against the layouts that MTEB and FlagEmbedding write (see tests/peers)."""

import json
import subprocess
import sys
from pathlib import Path

CLI = Path(__file__).parents[2] / "scripts" / "export_results.py"


def export(*args) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, CLI, *args], capture_output=True, text=True)


def write(path: Path, value) -> Path:
    path.write_text(json.dumps(value))
    return path


def scored(dataset: str, split: str, **protocols) -> dict:
    return {"dataset": dataset, "split": split, "protocols": protocols}


METRICS = ["nDCG@10", "R@100", "AP@10", "RR@10", "P@5", "Success@5", "AP", "R_cap@10"]
SPEC = {
    "mteb_task": "MSMARCO",
    "dataset_revision": "c5a29a104738b98a9e76336939199e264163d4a0",
    "subsets": {"msmarco-passage": {"hf_subset": "default", "languages": ["eng-Latn"]}},
    "splits": {"dl19": "test"},
}


def test_mteb_result_of_two_splits(tmp_path):
    entries = {name: {"value": (i + 1) / 16} for i, name in enumerate(METRICS)}
    dev = write(tmp_path / "dev.json", scored("msmarco-passage", "dev", mteb=entries))
    dl19 = write(tmp_path / "dl19.json", scored("msmarco-passage", "dl19", mteb=entries))
    spec = write(tmp_path / "spec.json", SPEC)
    output = tmp_path / "out" / "MSMARCO.json"
    done = export("mteb", "--scores", dev, dl19, "--spec", spec, "--output", output)
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert set(result["scores"]) == {"dev", "test"}
    assert result["scores"]["test"] == [
        {
            "hf_subset": "default",
            "languages": ["eng-Latn"],
            "main_score": 0.0625,
            "ndcg_at_10": 0.0625,
            "recall_at_100": 0.125,
            "map_at_10": 0.1875,
            "mrr_at_10": 0.25,
            "precision_at_5": 0.3125,
            "hit_rate_at_5": 0.375,
        }
    ]
    assert (result["task_name"], result["mteb_version"]) == ("MSMARCO", None)


def test_mteb_wants_its_protocol_and_a_subset(tmp_path):
    spec = write(tmp_path / "spec.json", SPEC)
    only_ours = {"trec_eval": {"nDCG@10": {"value": 0.5}}}
    for number, (dataset, protocols, words) in enumerate(
        [
            ("msmarco-passage", only_ours, "no nDCG@10 under the mteb protocol"),
            ("mine", {"mteb": only_ours["trec_eval"]}, "subsets says nothing of mine"),
        ]
    ):
        scores = write(tmp_path / f"{number}.json", scored(dataset, "dev", **protocols))
        output = tmp_path / "out.json"
        done = export("mteb", "--scores", scores, "--spec", spec, "--output", output)
        assert done.returncode == 2 and words in done.stderr
        assert not output.exists()


def test_flagembedding_search_results_keep_the_run_order(tmp_path):
    run = tmp_path / "run.trec"
    run.write_text("q2 Q0 z 1 0.75 t\nq2 Q0 a 2 0.75 t\nq1 Q0 é 1 -0.100000001 t\n")
    names = {"eval_name": "e", "model_name": "m", "reranker_name": "NoReranker"}
    names |= {"split": "dev", "dataset_name": None}
    spec = write(tmp_path / "spec.json", names)
    output = tmp_path / "dev.json"
    done = export("flagembedding", "--run", run, "--spec", spec, "--output", output)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found == names | {
        "search_results": {"q2": {"z": 0.75, "a": 0.75}, "q1": {"é": -0.100000001}}
    }
    assert [list(hits) for hits in found["search_results"].values()] == [["z", "a"], ["é"]]


def test_flagembedding_wants_all_names(tmp_path):
    run = tmp_path / "run.trec"
    run.write_text("")
    spec = write(tmp_path / "spec.json", {"eval_name": "e"})
    done = export("flagembedding", "--run", run, "--spec", spec, "--output", tmp_path / "x.json")
    assert done.returncode == 2
    assert "lacks model_name, reranker_name, split, dataset_name" in done.stderr
