"""From hits to scores, 7 million of them: in blocks, and line by line as plain Python does it.

    python tests/benchmarks/score.py [--queries 6980] [--k 1000] [--shards 4]

In blocks: merge and score each in a process of its own, as jobs are, imports counted. Line by line:
Python's own formatting of each hit, dictionaries of what is read, pytrec_eval, in this process.
Both must give the same bytes and the same means; the ratio comes last.
"""

import argparse
import heapq
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from embedrepro.evaluation import scoring  # noqa: E402
from embedrepro.files import read_json  # noqa: E402
from embedrepro.search import job  # noqa: E402
from embedrepro.search.hits import write_hits  # noqa: E402
from embedrepro.startup import without_pandas  # noqa: E402

METRICS = ["nDCG@10", "RR@10", "R@1000", "AP"]
TREC = {"ndcg_cut.10", "recip_rank", "recall.1000", "map"}
DOCUMENTS = 8_841_823
ABOUT = {"model_id": "made-up", "model": "made-up", "revision": None, "dataset": "made-up"}


def make(folder: Path, queries: int, k: int, shards: int) -> None:
    """Hits whose scores fall like a model's, one judged document for each query."""
    random = np.random.default_rng(0)
    names = pa.array([str(number) for number in range(DOCUMENTS)])
    pq.write_table(pa.table({"id": names}), folder / "corpus.parquet")
    asked = [f"{number}" for number in range(queries)]
    pq.write_table(pa.table({"id": asked}), folder / "queries.parquet")
    cuts = [DOCUMENTS * i // shards for i in range(shards + 1)]
    judged = []
    for shard, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False)):
        first = random.integers(0, stop - start, (queries, 1))
        docs = start + (first + np.arange(k) * 7919) % (stop - start)
        noise = random.random((queries, k), np.float32) / 20
        scores = 0.9 - np.linspace(0, 0.3, k, dtype=np.float32) - noise
        scores = -np.sort(-scores, axis=1)
        meta = {"rows": [start, stop], "k": k, "queries": queries}
        meta |= {"queries_sha256": "q", "corpus_sha256": str(shard)}
        write_hits(folder / f"h{shard}.parquet", [(0, docs, scores)], meta)
        judged.append(docs[:, random.integers(0, min(30, k))])
    chosen = np.choose(random.integers(0, shards, queries), judged)
    columns = {"query_id": asked, "doc_id": [str(doc) for doc in chosen]}
    columns["relevance"] = pa.array(np.ones(queries, np.int32))
    pq.write_table(pa.table(columns), folder / "qrels.parquet")


def in_blocks(folder: Path, k: int, shards: int) -> None:
    """Each step in a process, as its script does it, which says how long it computed after its
    imports."""
    for step in STEPS:
        command = [sys.executable, __file__, "--step", step, "--folder", folder]
        command += ["--k", k, "--shards", shards]
        timed(f"{step}, its process", partial(subprocess.run, [*map(str, command)], check=True))


def merge_step(folder: Path, k: int, shards: int) -> None:
    hits = [folder / f"h{shard}.parquet" for shard in range(shards)]
    ids = folder / "corpus.parquet", folder / "queries.parquet"
    job.merge_rows([job.MergeRow(hits, *ids, k, "m", folder / "run.trec")])


def score_step(folder: Path, k: int, shards: int) -> None:
    row = scoring.Row(
        run=folder / "run.trec",
        qrels=folder / "qrels.parquet",
        queries=folder / "queries.parquet",
        about=ABOUT | {"split": "test"},
        metrics=METRICS,
        output=folder / "scores.json",
        per_query=folder / "scores.tsv",
        score_error=1e-4,
        documents=DOCUMENTS,
    )
    scoring.score_rows([row])


STEPS = {"merge": merge_step, "score": score_step}


def by_line(folder: Path, k: int, shards: int) -> None:
    timed("merge", lambda: merge_by_line(folder, k, shards))
    timed("score", lambda: score_by_line(folder))


def merge_by_line(folder: Path, k: int, shards: int) -> None:
    names = pq.ParquetFile(folder / "corpus.parquet").read()["id"].combine_chunks()
    asked = pq.ParquetFile(folder / "queries.parquet").read()["id"].to_pylist()
    files = [pq.ParquetFile(folder / f"h{shard}.parquet") for shard in range(shards)]
    with open(folder / "line.trec", "w") as file:
        for group in range(files[0].num_row_groups):
            hits: dict[int, list[tuple[float, bytes]]] = {}
            for shard in files:
                table = shard.read_row_group(group)
                docs = names.take(table["doc"].combine_chunks()).to_pylist()
                query, score = table["query"].to_pylist(), table["score"].to_pylist()
                for number, doc, value in zip(query, docs, score, strict=True):
                    hits.setdefault(number, []).append((value, doc.encode()))
            for number, found in hits.items():
                file.writelines(
                    f"{asked[number]} Q0 {doc.decode()} {rank} {value:.9g} m\n"
                    for rank, (value, doc) in enumerate(heapq.nlargest(k, found), 1)
                )


def score_by_line(folder: Path) -> None:
    import pytrec_eval

    table = pq.ParquetFile(folder / "qrels.parquet").read()
    qrels: dict[str, dict[str, int]] = {}
    for query, doc, grade in zip(*(column.to_pylist() for column in table.columns), strict=True):
        qrels.setdefault(query, {})[doc] = grade
    run: dict[str, dict[str, float]] = {}
    with open(folder / "line.trec") as file:
        for line in file:
            query, _, doc, _, score, _ = line.split()
            run.setdefault(query, {})[doc] = float(score)
    values = pytrec_eval.RelevanceEvaluator(qrels, TREC).evaluate(run)
    ndcg = sum(value["ndcg_cut_10"] for value in values.values()) / len(qrels)
    found = read_json(folder / "scores.json")["protocols"]["trec_eval"]["nDCG@10"]["value"]
    assert abs(ndcg - found) < 1e-12, (ndcg, found)


def timed(what: str, work: Callable[[], object]) -> None:
    start, cpu = time.perf_counter(), cpu_time()
    work()
    took, used = time.perf_counter() - start, cpu_time() - cpu
    print(f"  {what}: {took:.1f} s, {used:.1f} s of CPU time", flush=True)


def cpu_time() -> float:
    """Of this process and those that it started and that ended."""
    return sum(os.times()[:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=6980)
    parser.add_argument("--k", type=int, default=1000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        without_pandas()
        work = partial(STEPS[args.step], args.folder, args.k, args.shards)
        timed(f"{args.step}, intervals included" if args.step == "score" else args.step, work)
        return
    used = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, args.queries, args.k, args.shards)
        print(f"{args.queries} queries x {args.k} hits in {args.shards} shards:", flush=True)
        for what, work in (("in blocks", in_blocks), ("line by line", by_line)):
            print(what)
            start, cpu = time.perf_counter(), cpu_time()
            work(folder, args.k, args.shards)
            used.append((time.perf_counter() - start, cpu_time() - cpu))
        same = (folder / "run.trec").read_bytes() == (folder / "line.trec").read_bytes()
        assert same, "the runs differ"
    (ours, our_cpu), (theirs, their_cpu) = used
    print(f"in blocks / line by line: {ours / theirs:.3f} (CPU time {our_cpu / their_cpu:.3f})")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
