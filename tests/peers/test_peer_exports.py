"""What we export, read by the tools it is for."""

import json

import pytest
from embedrepro.evaluation import exports

pytestmark = pytest.mark.slow


def scores(tmp_path, dataset, value):
    entry = {"value": value, "ci_low": value, "ci_high": value}
    found = {"dataset": dataset, "split": "validation"}
    found |= {"protocols": {"mteb": {"nDCG@10": entry, "R@100": entry, "AP": entry}}}
    path = tmp_path / f"{value}.json"
    path.write_text(json.dumps(found))
    return path


def test_mteb_loads_the_result(peers, tmp_path):
    from mteb.results import TaskResult

    spec = {
        "mteb_task": "XQuADRetrieval",
        "dataset_revision": "194842d6a49baddf6cd3f4d5130ab3c7756268d2",
        "subsets": {
            "xquad/en": {"hf_subset": "en", "languages": ["eng-Latn"]},
            "xquad/de": {"hf_subset": "de", "languages": ["deu-Latn"]},
        },
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    files = [scores(tmp_path, "xquad/en", 0.94357), scores(tmp_path, "xquad/de", 0.5)]
    exports.export_mteb(files, tmp_path / "spec.json", tmp_path / "XQuADRetrieval.json")
    result = TaskResult.from_disk(tmp_path / "XQuADRetrieval.json")
    assert result.task_name == "XQuADRetrieval"
    assert result.dataset_revision == spec["dataset_revision"]
    assert result.get_score(languages=["eng"]) == 0.94357
    assert result.get_score(languages=["deu"]) == 0.5
    assert result.scores["validation"][0]["recall_at_100"] == 0.94357
    assert result.task.metadata.main_score == "ndcg_at_10"


def test_flagembedding_reads_the_search_results(tmp_path):
    from FlagEmbedding.abc.evaluation import AbsEvalDataLoader
    from FlagEmbedding.abc.evaluation.evaluator import AbsEvaluator

    (tmp_path / "r.trec").write_text("q Q0 b 1 0.5 t\nq Q0 a 2 0.5 t\nr Q0 a 1 0.25 t\n")
    spec = {"eval_name": "mine", "model_name": "m", "reranker_name": "NoReranker"}
    spec |= {"split": "test", "dataset_name": "made"}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    folder = tmp_path / "results"
    exports.export_flagembedding(
        tmp_path / "r.trec", tmp_path / "spec.json", folder / "made-test.json"
    )

    class Loader(AbsEvalDataLoader):
        def __init__(self):
            pass

        def available_dataset_names(self):
            return ["made"]

        def available_splits(self, dataset_name=None):
            return ["test"]

        def load_qrels(self, dataset_name=None, split="test"):
            return {"q": {"b": 1}, "r": {"b": 1}}

    evaluator = AbsEvaluator("mine", Loader())
    info, found = evaluator.load_search_results(str(folder / "made-test.json"))
    evaluator.check_data_info(info, "m", "NoReranker", "test", "made")
    assert {query: list(hits) for query, hits in found.items()} == {"q": ["b", "a"], "r": ["a"]}
    assert evaluator.evaluate_results(str(folder), [10])["made-test"]["mrr_at_10"] == 0.5
