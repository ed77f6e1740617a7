"""Sparse and multi-vector models beside their makers' own classes: encoding and search apart.

    python tests/benchmarks/kinds.py --tokenizer FOLDER --passages 200000 --gpus 1 --dtype float16
    python tests/benchmarks/kinds.py --tokenizer FOLDER --passages 300 --hidden 64 --layers 2

Models are random weights in BERT's geometry, a SPLADE head (its bias keeps about a hundred terms a
passage) or a projection to 128 numbers a token, with the tokenizer of FOLDER. Ours is the whole
workflow: a job's seconds count its start-up, its reading and its writing. The peer is one process
of sentence-transformers: its evaluator, of which imports and loading are not counted; what isn't
encoding there is search.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from whole import REPOSITORY, make_set, read_beir

PEER = """
import json, sys, time
import torch
sys.path.insert(0, {tests!r})
from whole import read_beir
from sentence_transformers import {encoder}
from sentence_transformers.{module}.evaluation import {evaluator}
folder, data, batch, dtype, device = json.loads(sys.argv[1])
model = {encoder}(folder, device=device, model_kwargs={{"dtype": dtype}})
corpus, queries, relevant = read_beir(data)
seconds = 0.0
class Timed({evaluator}):
    def embed_inputs(self, *args, **keys):
        global seconds
        began = time.perf_counter()
        found = super().embed_inputs(*args, **keys)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds += time.perf_counter() - began
        return found
timed = Timed(queries, corpus, relevant, batch_size=batch, show_progress_bar=False, name="x",
              write_csv=False, map_at_k=[10])
began = time.perf_counter()
found = timed(model)
whole = time.perf_counter() - began
score = next(value for name, value in found.items() if name.endswith("ndcg@10"))
print(json.dumps({{"encode": seconds, "search": whole - seconds, "nDCG@10": score}}))
"""
ENCODERS = {
    "sparse": ("SparseEncoder", "sparse_encoder", "SparseInformationRetrievalEvaluator"),
    "multivector": (
        "MultiVectorEncoder",
        "multi_vector_encoder",
        "MultiVectorInformationRetrievalEvaluator",
    ),
}


def make_model(kind: str, folder: Path, options: argparse.Namespace) -> None:
    """Random weights of BERT's geometry, saved by the maker's own class."""
    import torch
    import transformers
    from sentence_transformers import MultiVectorEncoder, SparseEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.tokenizer)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden,
        intermediate_size=4 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
    )
    trunk = folder.with_name(f"{kind}-trunk")
    sparse = kind == "sparse"
    model = (transformers.BertForMaskedLM if sparse else transformers.BertModel)(config)
    if sparse:
        with torch.no_grad():  # a logit's spread is 0.02 times the root of the width
            model.cls.predictions.bias.fill_(-3.6 * 0.02 * options.hidden**0.5)
    model.save_pretrained(trunk)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(trunk)
    if sparse:
        modules = [Transformer(str(trunk), transformer_task="fill-mask"), SpladePooling("max")]
        SparseEncoder(modules=modules, device="cpu").save(str(folder))
        return
    dense = Dense(
        in_features=options.hidden,
        out_features=128,
        bias=False,
        activation_function=torch.nn.Identity(),
        module_input_name="token_embeddings",
    )
    modules = [Transformer(str(trunk)), dense, Normalize(module_input_name="token_embeddings")]
    MultiVectorEncoder(modules=modules, device="cpu").save(str(folder))


def ours(kind: str, folder: Path, data: Path, work: Path, options: argparse.Namespace) -> dict:
    """Seconds of encoding, of search and of the whole command, and nDCG@10."""
    config = {
        "experiment": "kinds",
        "models": [
            {
                "id": f"made/{kind}",
                "kind": kind,
                "source": {"path": str(folder)},
                "dtype": options.dtype,
                "precision": "fast",
            }
        ],
        "datasets": [{"name": "made", "source": {"beir": str(data)}}],
        "evaluate": {"metrics": ["nDCG@10"]},
    }
    work.mkdir()
    (work / "config.json").write_text(json.dumps(config))
    run = [sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile"), "-d", str(work)]
    run += ["--cores", "all", "--configfile", str(work / "config.json")]
    if options.gpus:
        run += ["--resources", f"gpu={options.gpus}"]
    began = time.perf_counter()
    done = subprocess.run(run, capture_output=True, text=True)
    found = {"whole": time.perf_counter() - began}
    if done.returncode:
        sys.exit(done.stdout[-3000:] + done.stderr[-3000:])
    # One job encodes and, where that is little work, searches: the files tell when each ended.
    vectors = max(p.stat().st_mtime for p in work.glob("store/vectors/*/*/*.json"))
    runs = max(p.stat().st_mtime for p in work.glob("store/runs/*/*/*.trec"))
    jobs = [json.loads(path.read_text()) for path in work.glob(".snakemake/metadata/*")]
    started = min(j["starttime"] for j in jobs if j["rule"].startswith("encode"))
    found |= {"encode": vectors - started, "search": runs - vectors}
    lines = (work / "results/kinds/metrics.tsv").read_text().splitlines()
    row = dict(zip(lines[0].split("\t"), lines[1].split("\t"), strict=True))
    return found | {"nDCG@10": float(row["value"])}


def peer(kind: str, folder: Path, data: Path, options: argparse.Namespace) -> dict:
    encoder, module, evaluator = ENCODERS[kind]
    text = PEER.format(
        tests=str(Path(__file__).parent), encoder=encoder, module=module, evaluator=evaluator
    )
    device = "cuda:0" if options.gpus else "cpu"
    given = [str(folder), str(data), options.batch, options.dtype, device]
    done = subprocess.run(
        [sys.executable, "-c", text, json.dumps(given)], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stdout[-3000:] + done.stderr[-3000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="a BERT's folder")
    parser.add_argument("--kinds", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dtype", default="float32", help="of both")
    parser.add_argument("--batch", type=int, default=128, help="the peer's")
    parser.add_argument("--gpus", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        data = make_set(root / "made", options.passages, options.queries, 0)
        assert len(read_beir(str(data))[0]) == options.passages
        for kind in options.kinds:
            make_model(kind, root / kind, options)
            mine = ours(kind, root / kind, data, root / f"work-{kind}", options)
            theirs = peer(kind, root / kind, data, options)
            for name, found in (("embed-repro", mine), ("sentence-transformers", theirs)):
                print(kind, name, {key: round(value, 5) for key, value in found.items()})
            for part in ("encode", "search"):
                print(f"{kind} {part}: ours / theirs {mine[part] / theirs[part]:.2f}", flush=True)


if __name__ == "__main__":
    main()
