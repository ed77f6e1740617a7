"""A made-up dataset and run on which the protocols disagree: all their differences at once.

1,006 documents "0" … "1005"; queries "3", "500", "alpha", "beta" are searched, "gamma" is judged
but never answered. Documents are ranked by `score`, of equal ones the last in the
corpus first (as FAISS's flat index lists them).

- query "3" finds document "3", itself, first: dropped or not;
- query "500" finds itself too, and the document at rank 1001 is relevant: it counts only where the
  self-match goes before the run is cut to 1,000;
- "alpha" has three documents tied for the first place; the relevant one, "9", is the last of them
  as listed and the first by id;
- "beta" has a document of grade 1 at rank 1 and one of grade 2 at rank 3: the binary threshold;
- "gamma" counts in the mean or doesn't.
"""

DOCUMENTS = [str(number) for number in range(1006)]
QUERIES = ["3", "500", "alpha", "beta"]
DEPTH = 1000

QRELS = {
    "3": {"3": 2, "7": 2, "9": 1, "1004": 2},
    "500": {"2": 2, "1000": 2, "4": 1},
    "alpha": {"9": 2, "600": 2},
    "beta": {"1": 1, "5": 2, "8": 0, "40": 1},
    "gamma": {"0": 2, "1": 1},
}
_FIRST = {
    "3": ["3", "0", "7", "1", "9"],
    "500": ["500", "1", "2", "3"],
    "alpha": ["9", "10", "30"],
    "beta": ["1", "0", "5", "8", "40"],
}

# What the tools gave on it; tests/peers/test_peer_protocols.py runs them anew.
# mteb 2.26.24 RetrievalEvaluator.evaluate(ignore_identical_ids=True) on the top 1,000;
# beir 2.2.0 DenseRetrievalExactSearch + EvaluateRetrieval.evaluate, evaluate_custom on the run;
# FlagEmbedding 1.4.2 EvalDenseRetriever + AbsEvaluator.compute_metrics, search_top_k 1,000;
# pyserini: pytrec-eval-terrier 0.5.11 as `trec_eval -c -l 2`, `-M 10 -m recip_rank` for RR@10.
TOOLS = {
    "mteb": {
        "nDCG@10": 0.54361,
        "RR@10": 0.75,
        "R@1000": 0.79167,
        "AP@10": 0.45139,
        "R_cap@10": 0.66667,
        "P@10": 0.2,
    },
    "pyserini": {
        "nDCG@10": 0.4916,
        "RR(rel=2)@10": 0.5333,
        "R(rel=2)@1000": 0.6333,
        "AP(rel=2)@10": 0.3111,
        "P(rel=2)@10": 0.1,
    },
    "flagembedding": {
        "nDCG@10": 0.61444,
        "RR@10": 0.53333,
        "R@1000": 0.85417,
        "AP@10": 0.51111,
        "R_cap@10": 0.58333,
        "P@10": 0.225,
    },
    "beir": {
        "nDCG@10": 0.54361,
        "RR@10": 0.46667,
        "R@1000": 0.875,
        "AP@10": 0.45139,
        "R_cap@10": 0.53333,
        "P@10": 0.2,
    },
}


def score(query: str, document: str) -> float:
    """Exact in float32: eighths above 1000 for the first, whole numbers down for the rest."""
    first = _FIRST[query]
    if document in first:
        return 2000.0 if query == "alpha" else 2000.0 - first.index(document) / 8
    return 1500.0 - int(document)


def ranking(query: str) -> list[tuple[str, float]]:
    """All documents, best first, of equal ones the last in the corpus first."""
    scored = [(document, score(query, document)) for document in reversed(DOCUMENTS)]
    return sorted(scored, key=lambda hit: -hit[1])


def run_text() -> str:
    """The run file, one hit deeper than `DEPTH`."""
    return "".join(
        f"{query} Q0 {document} {rank} {value:.9g} made-up\n"
        for query in QUERIES
        for rank, (document, value) in enumerate(ranking(query)[: DEPTH + 1], 1)
    )
