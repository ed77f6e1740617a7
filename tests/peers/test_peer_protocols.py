"""The tools themselves on the made-up dataset: their numbers are ours, and those on file."""

import numpy as np
import protocol_example as example
import pytest
from embedrepro.evaluation import metrics, protocols, scoring
from embedrepro.search import runs

pytestmark = pytest.mark.slow

# Queries are the axes and documents hold their score on each: dot products are exactly `score`.
AXES = np.eye(len(example.QUERIES), dtype=np.float32)
CORPUS = {document: {"text": document} for document in example.DOCUMENTS}
TEXTS = {query: query for query in example.QUERIES}


def vectors(documents) -> np.ndarray:
    rows = [[example.score(query, document) for query in example.QUERIES] for document in documents]
    return np.array(rows, dtype=np.float32)


def in_our_names(theirs: dict[str, float], name: str) -> dict[str, float]:
    """Their metrics by the names of those in `example.TOOLS[name]`."""
    names = {"nDCG": "ndcg", "RR": "mrr", "R": "recall", "AP": "map", "P": "precision"}
    names["R_cap"] = "recall_cap"
    found = {}
    for metric in example.TOOLS[name]:
        measure = metrics.parse(metric)
        found[metric] = theirs[f"{names[measure.family]}_at_{measure.cutoff}"]
    return found


def ours(name: str, tmp_path) -> dict[str, float]:
    path = tmp_path / "made-up.trec"
    path.write_text(example.run_text())
    asked = [metrics.parse(metric) for metric in example.TOOLS[name]]
    scores = protocols.score(
        runs.iter_listed(path), example.QRELS, asked, [name], "made-up", True, 2
    )[name]
    summary = scoring.summarise(scores, protocols.named(name))
    return {metric: entry["value"] for metric, entry in summary.items()}


def test_mteb(peers, tmp_path):
    from mteb._evaluators.retrieval_evaluator import RetrievalEvaluator
    from mteb._evaluators.retrieval_metrics import recall_cap

    top = {query: dict(example.ranking(query)[: example.DEPTH]) for query in example.QUERIES}
    result = RetrievalEvaluator.evaluate(
        None, example.QRELS, top, [10, 1000], ignore_identical_ids=True
    )
    theirs = {}
    families = {"ndcg": "NDCG", "map": "MAP", "recall": "Recall", "precision": "P", "mrr": "MRR"}
    for field, family in families.items():
        values = getattr(result, field)
        theirs |= {f"{field}_at_{k}": values[f"{family}@{k}"] for k in (10, 1000)}
    capped = recall_cap(example.QRELS, top, [10])["R_cap_at_10"]
    theirs["recall_cap_at_10"] = round(sum(capped) / len(capped), 5)
    assert in_our_names(theirs, "mteb") == example.TOOLS["mteb"] == ours("mteb", tmp_path)


def test_beir(peers, tmp_path):
    """Search and evaluator; MRR on the run's own order, for the search lists ties by its heap."""
    import torch
    from beir.retrieval.evaluation import EvaluateRetrieval
    from beir.retrieval.search.dense import DenseRetrievalExactSearch

    class Model:
        def encode_queries(self, queries, **_):
            return torch.tensor(AXES)

        def encode_corpus(self, corpus, **_):
            return torch.tensor(vectors(document["text"] for document in corpus))

    search = DenseRetrievalExactSearch(Model())
    found = search.search(CORPUS, TEXTS, example.DEPTH, "dot")
    listed = {
        query: {d: s for d, s in example.ranking(query) if d in hits}
        for query, hits in found.items()
    }
    theirs = {}
    for table in EvaluateRetrieval.evaluate(example.QRELS, found, [10, 1000]):
        theirs |= table
    for name in ("mrr", "r_cap"):
        theirs |= EvaluateRetrieval.evaluate_custom(example.QRELS, listed, [10], name)
    words = {"NDCG": "ndcg", "MAP": "map", "Recall": "recall", "P": "precision", "MRR": "mrr"}
    words["R_cap"] = "recall_cap"
    named = {words[k.split("@")[0]] + "_at_" + k.split("@")[1]: v for k, v in theirs.items()}
    assert in_our_names(named, "beir") == example.TOOLS["beir"] == ours("beir", tmp_path)


def test_flagembedding(tmp_path):
    from FlagEmbedding.abc.evaluation.evaluator import AbsEvaluator
    from FlagEmbedding.abc.evaluation.searcher import EvalDenseRetriever

    class Embedder:
        def encode_queries(self, queries, **_):
            return AXES

        def encode_corpus(self, texts, **_):
            return vectors(texts)

    found = EvalDenseRetriever(Embedder(), search_top_k=example.DEPTH)(CORPUS, TEXTS)
    theirs = AbsEvaluator.compute_metrics(example.QRELS, found, [10, 1000])
    mine = ours("flagembedding", tmp_path)
    assert in_our_names(theirs, "flagembedding") == example.TOOLS["flagembedding"] == mine


def test_pyserini_by_trec_eval_switches(tmp_path):
    """`-c`: over all judged queries; `-l 2`: grade 2 and up; `-M 10`: the run cut at 10."""
    import pytrec_eval

    top = {query: dict(example.ranking(query)[: example.DEPTH]) for query in example.QUERIES}

    def mean(measure: str, run: dict) -> float:
        judge = pytrec_eval.RelevanceEvaluator(example.QRELS, {measure}, relevance_level=2)
        values = [value[measure.replace(".", "_")] for value in judge.evaluate(run).values()]
        return round(sum(values) / len(example.QRELS), 4)

    by_rank = {
        query: dict(sorted(hits.items(), key=lambda hit: (hit[1], hit[0]), reverse=True)[:10])
        for query, hits in top.items()
    }
    theirs = {
        "nDCG@10": mean("ndcg_cut.10", top),
        "RR(rel=2)@10": mean("recip_rank", by_rank),
        "R(rel=2)@1000": mean("recall.1000", top),
        "AP(rel=2)@10": mean("map_cut.10", top),
        "P(rel=2)@10": mean("P.10", top),
    }
    assert theirs == example.TOOLS["pyserini"] == ours("pyserini", tmp_path)
