"""Scores computed the plain way, query by query with trec_eval itself (pytrec_eval): an oracle."""

from itertools import islice

import numpy as np
import pytrec_eval
from embedrepro.evaluation import protocols

TREC = {
    "nDCG": ("ndcg", "ndcg_cut"),
    "RR": ("recip_rank", "recip_rank"),
    "R": (None, "recall"),
    "P": (None, "P"),
    "AP": ("map", "map_cut"),
    "Success": (None, "success"),
    "R_cap": (None, "P"),
}


def score(run, qrels, asked, names, dataset, drop_identical, threshold, top_k):
    """{protocol: {measure: [value of each judged query]}} of {query id: {document id: score}}."""
    results = {}
    for name in names:
        protocol = protocols.named(name)
        drop = protocol.drops(dataset, drop_identical)
        measures = list(dict.fromkeys(protocol.measure(m, threshold) for m in asked))
        ranked = {q: ranking(q, hits, protocol, drop, top_k) for q, hits in run.items()}
        by_rank = {q: {d: -r for r, d in enumerate(hits)} for q, hits in ranked.items()}
        results[name] = {
            measure: per_query(
                qrels, by_rank if measure.family in protocol.listed else ranked, measure
            )
            for measure in measures
        }
    return results


def ranking(query, hits, protocol, drop, top_k):
    hits = dict(sorted(hits.items(), key=lambda hit: -hit[1]))
    keep = protocol.depth or top_k or len(hits)
    if drop and protocol.before_cut:
        keep += query in islice(hits, keep)
    return {d: s for d, s in islice(hits.items(), keep) if not (drop and d == query)}


def per_query(qrels, run, measure):
    return [
        one(measure, {d: max(g, 0) for d, g in grades.items()}, run[query])
        if run.get(query)
        else 0.0
        for query, grades in qrels.items()
    ]


def one(measure, grades, hits):
    plain, cut = TREC[measure.family]
    k = measure.cutoff
    asked = plain if k is None or cut == "recip_rank" else f"{cut}.{k}"
    judge = pytrec_eval.RelevanceEvaluator(
        {"q": grades}, {asked, "num_rel"}, relevance_level=measure.rel
    )
    found = judge.evaluate({"q": hits})["q"]
    value = found[asked.replace(".", "_")]
    if measure.family == "RR":
        return value if value and (k is None or round(1 / value) <= k) else 0.0
    if measure.family == "R_cap":
        possible = min(k, found["num_rel"])
        return round(value * k) / possible if possible else 0.0
    return value


def made(seed: int, levels: int = 8):
    """A random run and judgements: ties, float64 differences that float32 doesn't see, own ids,
    unsorted lines, unjudged and unanswered queries, negative grades."""
    random = np.random.default_rng(seed)
    docs = [f"{random.choice(list('aZ9é𝄞'))}{i}" for i in range(int(random.integers(1, 60)))]
    queries = [*random.permutation(docs)[:4], "q1", "q2", "é"]
    run, qrels = {}, {}
    for query in queries:
        found = random.permutation(docs)[: random.integers(1, len(docs) + 1)].tolist()
        scores = random.integers(0, levels, len(found)) / 4 + random.choice([0, 1e-12], len(found))
        if random.random() < 0.5:
            order = np.argsort(-scores, kind="stable")
            found, scores = [found[i] for i in order], scores[order]
        if random.random() < 0.8:
            run[query] = dict(zip(found, scores.tolist(), strict=True))
        judged = random.permutation([*docs, "elsewhere"])[: random.integers(1, 9)].tolist()
        grades = random.choice([-1, 0, 1, 1, 2, 3], len(judged)).tolist()
        if random.random() < 0.9:
            qrels[query] = dict(zip(judged, grades, strict=True))
    qrels.setdefault("q1", {"elsewhere": 1})
    return run, qrels
