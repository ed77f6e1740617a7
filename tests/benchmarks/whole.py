"""Whole runs beside the peers: from the command to the report, start-up included, ratios last.

    python tests/benchmarks/whole.py --snapshot FOLDER --data FOLDER [FOLDER …] --rounds 3
    python tests/benchmarks/whole.py --snapshot FOLDER --made 13 --passages 2000 6000 --queries 50

Ours is `snakemake` on a fresh store with the model's snapshot there (a `path` source, so that only
linking and hashing count as download). A peer does the same sets one after the other, imports
included: sentence-transformers' InformationRetrievalEvaluator in one process, mteb in one, or
FlagEmbedding's own evaluator. Rounds interleave.
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
WORDS = "river stone amber lattice signal harbor violet engine meadow copper orbit canyon letter "
WORDS += "market silent window garden winter tunnel bridge candle forest planet ocean thread marble"

SENTENCE_TRANSFORMERS = """
import json, sys
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
model_folders, data, batch, dtype = json.loads(sys.argv[1])
sys.path.insert(0, {tests!r})
from whole import read_beir
for model_folder in model_folders:
    model = SentenceTransformer(model_folder, model_kwargs={{"dtype": dtype}})
    for folder in data:
        corpus, queries, relevant = read_beir(folder)
        found = InformationRetrievalEvaluator(
            queries, corpus, relevant, batch_size=batch, show_progress_bar=False, name="x"
        )(model)
        print(folder, round(found["x_cosine_ndcg@10"], 5))
"""

FLAG_EMBEDDING = """
import json, sys, subprocess
model_folders, data, batch, dtype = json.loads(sys.argv[1])
for model_folder in model_folders:
    for folder in data:
        subprocess.run([sys.executable, "-m", "FlagEmbedding.evaluation.custom", "--eval_name", "x",
            "--dataset_dir", folder + "/flag", "--splits", "test", "--output_dir", folder + "/out",
            "--eval_output_path", folder + "/out/r.md", "--overwrite", "True",
            "--embedder_name_or_path", model_folder, "--embedder_model_class", "encoder-only-base",
            "--pooling_method", "mean", "--use_fp16", str(dtype == "float16"), "--devices",
            {device!r}, "--embedder_batch_size", str(batch), "--embedder_query_max_length", "256",
            "--embedder_passage_max_length", "256"], check=True)
"""

# Found where `python -m pip install mteb` put it, or in a folder that --mteb names.
MTEB = """
import json, sys
sys.path += {mteb!r}
import datasets, mteb
from mteb.abstasks.retrieval import AbsTaskRetrieval
from sentence_transformers import SentenceTransformer
model_folders, data, batch, dtype = json.loads(sys.argv[1])
sys.path.insert(0, {tests!r})
from whole import read_beir

UNSAID = ("reference", "date", "domains", "task_subtypes", "license", "annotations_creators")
UNSAID += ("dialect", "sample_creation", "bibtex_citation")

def task_of(number, folder):
    class Local(AbsTaskRetrieval):
        metadata = mteb.TaskMetadata(
            name=f"Local{{number}}", description="", dataset={{"path": folder, "revision": "1"}},
            type="Retrieval", category="t2t", modalities=["text"], eval_splits=["test"],
            eval_langs=["eng-Latn"], main_score="ndcg_at_10", **dict.fromkeys(UNSAID))

        def load_data(self, *args, **given):
            corpus, queries, relevant = read_beir(folder)
            rows = [{{"id": i, "title": "", "text": text}} for i, text in corpus.items()]
            asked = [{{"id": i, "text": text}} for i, text in queries.items()]
            self.dataset = {{"default": {{"test": {{
                "corpus": datasets.Dataset.from_list(rows),
                "queries": datasets.Dataset.from_list(asked),
                "relevant_docs": {{q: dict.fromkeys(docs, 1) for q, docs in relevant.items()}},
                "top_ranked": None}}}}}}
            self.data_loaded = True
    return Local()

for model_folder in model_folders:
    model = SentenceTransformer(model_folder, model_kwargs={{"dtype": dtype}})
    tasks = [task_of(number, folder) for number, folder in enumerate(data)]
    given = {{"batch_size": batch}}
    found = mteb.evaluate(
        model, tasks, encode_kwargs=given, cache=None, show_progress_bar=False)
    for folder, result in zip(data, found.task_results, strict=True):
        print(folder, result.get_score())
"""


def read_beir(folder: str) -> tuple[dict[str, str], dict[str, str], dict[str, set[str]]]:
    """{id: title and text}, {id: query}, {query id: relevant ids} of a folder in BEIR's layout."""
    root = Path(folder)
    rows = [json.loads(line) for line in (root / "corpus.jsonl").open(encoding="utf-8")]
    corpus = {r["_id"]: f"{r.get('title', '')} {r['text']}".strip() for r in rows}
    rows = [json.loads(line) for line in (root / "queries.jsonl").open(encoding="utf-8")]
    queries = {r["_id"]: r["text"] for r in rows}
    relevant: dict[str, set[str]] = {}
    for line in (root / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, doc, grade = line.split("\t")
        if int(float(grade)) > 0:
            relevant.setdefault(query, set()).add(doc)
    return corpus, {q: queries[q] for q in relevant}, relevant


def make_set(folder: Path, passages: int, queries: int, seed: int) -> Path:
    """A made-up set of passages of MS MARCO's length; each query is words of one passage."""
    rng, words = random.Random(seed), WORDS.split()
    vocabulary = [a + b for a in words for b in words]
    (folder / "qrels").mkdir(parents=True)
    texts = [
        " ".join(rng.choices(vocabulary, k=max(8, int(rng.gauss(28, 10))))) for _ in range(passages)
    ]
    with open(folder / "corpus.jsonl", "w") as file:
        for i, text in enumerate(texts):
            file.write(json.dumps({"_id": f"d{i}", "title": "", "text": text}) + "\n")
    with open(folder / "queries.jsonl", "w") as file, open(folder / "qrels/test.tsv", "w") as qrels:
        qrels.write("query-id\tcorpus-id\tscore\n")
        for q in range(queries):
            doc = rng.randrange(passages)
            asked = " ".join(rng.sample(texts[doc].split(), 4))
            file.write(json.dumps({"_id": f"q{q}", "text": asked}) + "\n")
            qrels.write(f"q{q}\td{doc}\t1\n")
    return folder


def flag_layout(folder: Path) -> None:
    """The same set as FlagEmbedding's evaluator reads it, made beforehand: not timed."""
    corpus, queries, relevant = read_beir(str(folder))
    target = folder / "flag"
    target.mkdir(exist_ok=True)
    with open(target / "corpus.jsonl", "w") as file:
        file.writelines(json.dumps({"id": i, "text": t}) + "\n" for i, t in corpus.items())
    with open(target / "test_queries.jsonl", "w") as file:
        file.writelines(json.dumps({"id": i, "text": t}) + "\n" for i, t in queries.items())
    with open(target / "test_qrels.jsonl", "w") as file:
        for query, docs in relevant.items():
            for doc in sorted(docs):
                file.write(json.dumps({"qid": query, "docid": doc, "relevance": 1}) + "\n")


def ours(models: list[Path], data: list[Path], work: Path, options: argparse.Namespace) -> None:
    config = {
        "experiment": "whole",
        "models": [
            {
                "id": f"bench/model-{i}",
                "source": {"path": str(folder)},
                **({"dtype": options.dtype} if options.dtype else {}),
            }
            for i, folder in enumerate(models)
        ],
        "datasets": [{"name": f.name, "source": {"beir": str(f)}} for f in data],
        "evaluate": {"metrics": ["nDCG@10"], "protocols": ["trec_eval"]},
    }
    work.mkdir(parents=True)
    (work / "config.json").write_text(json.dumps(config))
    snakemake = Path(sys.executable).with_name("snakemake")
    run = [str(snakemake)] if snakemake.exists() else [sys.executable, "-m", "snakemake"]
    run += ["-s", str(REPOSITORY / "Snakefile"), "-d", str(work), "--cores", "all"]
    run += ["--configfile", str(work / "config.json")]
    if options.gpus:
        run += ["--resources", f"gpu={options.gpus}"]
    done = subprocess.run(run, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-3000:] + done.stderr[-3000:])


def peer(code: str, models: list[Path], data: list[Path], options: argparse.Namespace) -> None:
    given = [[str(m) for m in models], [str(d) for d in data], options.batch, options.peer_dtype]
    text = code.format(tests=str(Path(__file__).parent), device=options.device, mteb=options.mteb)
    run = [sys.executable, "-c", text, json.dumps(given)]
    done = subprocess.run(run, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-3000:] + done.stderr[-3000:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--snapshot", type=Path, nargs="+", required=True, help="model folders")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders in BEIR's layout")
    parser.add_argument("--made", type=int, default=0, help="made-up sets besides")
    parser.add_argument("--passages", type=int, nargs=2, default=(2000, 6000), help="least, most")
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="the peers'")
    parser.add_argument("--dtype", help="of ours; by default as the plan decides")
    parser.add_argument("--peer-dtype", default="float32")
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--peers", nargs="*", default=["sentence-transformers"])
    parser.add_argument("--mteb", nargs="*", default=[], help="folders that Python finds it in")
    options = parser.parse_args()
    options.device = "cuda:0" if options.gpus else "cpu"
    codes = {
        "sentence-transformers": SENTENCE_TRANSFORMERS,
        "FlagEmbedding": FLAG_EMBEDDING,
        "mteb": MTEB,
    }
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        data = [Path(shutil.copytree(f, root / "data" / f.name)) for f in options.data]
        sizes = random.Random(1)
        for number in range(options.made):
            count = sizes.randint(*options.passages)
            data.append(make_set(root / "data" / f"made{number}", count, options.queries, number))
        if "FlagEmbedding" in options.peers:
            for folder in data:
                flag_layout(folder)
        for number in range(options.rounds):
            began = time.perf_counter()
            ours(options.snapshot, data, root / f"ours{number}", options)
            seconds.setdefault("embed-repro", []).append(time.perf_counter() - began)
            if number == 0:
                print((root / "ours0/results/whole/metrics.tsv").read_text())
            for name in options.peers:
                began = time.perf_counter()
                peer(codes[name], options.snapshot, data, options)
                seconds.setdefault(name, []).append(time.perf_counter() - began)
    mine = statistics.median(seconds["embed-repro"])
    for name, taken in seconds.items():
        rounds = ", ".join(f"{s:.1f}" for s in taken)
        print(f"{name:22} {statistics.median(taken):8.1f} s ({rounds})")
    for name, taken in seconds.items():
        if name != "embed-repro":
            print(f"embed-repro / {name}: {mine / statistics.median(taken):.2f}")


if __name__ == "__main__":
    main()
