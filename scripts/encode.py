#!/usr/bin/env python3
"""Encode one shard of a corpus, or a split's queries, into a .npy file with its sidecar."""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from embedrepro.argument import unpack
from embedrepro.encode import import_libraries, load_engine
from embedrepro.encode.ahead import encode_ahead, take
from embedrepro.errors import UserError, run_cli
from embedrepro.files import read_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--staged", type=Path, required=True, help="staged model folder")
    parser.add_argument("--texts", type=Path, required=True, help="corpus or queries .parquet")
    parser.add_argument("--spec", type=Path, required=True, help="JSON: facts, instruction, title")
    parser.add_argument("--role", choices=("query", "passage"), required=True)
    parser.add_argument("--shard", type=int, default=0, help="which shard, from 0")
    parser.add_argument(
        "--shards", type=int, default=1, help="how many shards the file is cut into"
    )
    parser.add_argument("--output", type=Path, required=True, help=".npy file to write")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--tokens-per-batch", type=int, help="default: chosen by itself")
    parser.add_argument("--compiler-cache", type=Path, help="where compiled kernels are kept")
    parser.add_argument("--ahead", help="queries to encode, too: JSON as `argument.pack` packs it")
    args = parser.parse_args()
    if args.tokens_per_batch is not None and args.tokens_per_batch < 1:
        raise UserError(f"--tokens-per-batch {args.tokens_per_batch}: give a positive number")
    if args.compiler_cache:  # read by torch when it is imported; a cluster may prefer its scratch
        folder = args.compiler_cache.absolute()
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
        os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    if take(args.output):
        print(f"{args.output}: was encoded by the job of the corpus' first shard")
        return
    from embedrepro.encode.shard import encode_shard, row_range
    from embedrepro.models.staged import verify_staged

    row_range(args.texts, args.shard, args.shards)  # a mistake shows before a model is loaded
    spec = read_json(args.spec)
    with ThreadPoolExecutor(1) as pool:  # hashing files leaves the interpreter to the imports
        verified = pool.submit(verify_staged, args.staged)
        import_libraries()
        verified.result()
    engine = load_engine(args.staged, spec.get("facts") or {}, args.device, args.tokens_per_batch)
    encode_ahead(engine, unpack(args.ahead) if args.ahead else [])
    encode_shard(engine, args.texts, spec, args.role, args.shard, args.shards, args.output)


if __name__ == "__main__":
    run_cli(main)
