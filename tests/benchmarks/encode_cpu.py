#!/usr/bin/env python3
"""Encoding real passages on a CPU, beside FlagEmbedding and sentence-transformers, in one run.

    python tests/benchmarks/encode_cpu.py STAGED_FOLDER BEIR_FOLDER [--rounds 5]

Engines take turns in one process, from texts to vectors in memory, at most 256 tokens a text (stage
the model with max_length: 256), in float32 unless said. Medians of the passages a second; ratios
and the largest difference last.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
from embedrepro.encode import load_engine  # noqa: E402

LENGTH = 256
Encode = Callable[[list[str]], np.ndarray]


def packed(staged: Path, dtype: str) -> Encode:
    engine = load_engine(staged, {"dtype": dtype}, "cpu")

    def encode(texts: list[str]) -> np.ndarray:
        found = np.empty((len(texts), engine.dimension), np.float32)
        for part in engine.encode(texts, "passage"):
            found[part.rows] = part.vectors
        return found

    return encode


def flag_embedding(staged: Path, pooling: str) -> Callable[[int], Encode]:
    from FlagEmbedding import FlagModel

    model = FlagModel(str(staged), use_fp16=False, devices=["cpu"], pooling_method=pooling)
    return lambda batch: lambda texts: model.encode(texts, batch_size=batch, max_length=LENGTH)


def sentence_transformers(staged: Path) -> Callable[[int], Encode]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(staged), device="cpu")
    model.max_seq_length = LENGTH
    return lambda batch: (
        lambda texts: model.encode(
            texts, batch_size=batch, normalize_embeddings=True, show_progress_bar=False
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("staged", type=Path, help="an encoder, as the workflow staged it")
    parser.add_argument("folder", type=Path, help="holds corpus.jsonl")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passages", type=int, default=500)
    parser.add_argument(
        "--bfloat16", action="store_true", help="too; slow where the CPU can't multiply it"
    )
    args = parser.parse_args()
    lines = (args.folder / "corpus.jsonl").read_text("utf-8").splitlines()[: args.passages]
    texts = [json.loads(line)["text"] for line in lines]
    facts = json.loads((args.staged / "stage.json").read_text("utf-8"))
    if facts["max_length"]["passage"] != LENGTH:
        parser.error(f"{args.staged}: staged with another length; state max_length: {LENGTH}")
    flag = flag_embedding(args.staged, facts["pooling"])
    peer = sentence_transformers(args.staged)
    engines = {"packed": packed(args.staged, "float32")}
    if args.bfloat16:
        engines["packed bfloat16"] = packed(args.staged, "bfloat16")
    engines |= {f"FlagEmbedding, batch {size}": flag(size) for size in (32, 256)}
    engines |= {f"sentence-transformers, batch {size}": peer(size) for size in (32, 256)}
    times: dict[str, list[float]] = {name: [] for name in engines}
    vectors = {}
    for number in range(args.rounds + 1):
        for name, encode in engines.items():
            began = time.perf_counter()
            vectors[name] = encode(texts)
            if number:  # the first is for warming up
                times[name].append(time.perf_counter() - began)
    speed = {name: len(texts) / statistics.median(rows) for name, rows in times.items()}
    print(f"{len(texts)} passages, {args.rounds} rounds, {torch.get_num_threads()} threads")
    for name in engines:
        ratio = speed["packed"] / speed[name]
        gap = np.abs(vectors[name] - vectors["packed"]).max()
        print(f"{name:32} {speed[name]:7.1f}/s   packed / it {ratio:5.2f}   difference {gap:.1e}")


if __name__ == "__main__":
    main()
