#!/usr/bin/env python3
"""How fast and how exact is encoding, beside what a user would take instead? One command, one run.

    python tests/benchmarks/encode.py [--bert-tokenizer FOLDER] [--qwen-tokenizer FOLDER] [--small]

Models have random weights in real geometries; tokenizers are real; passages have MS MARCO's lengths
(normal in words, about 70 ± 30 tokens). Every engine gets the same texts and weights and goes from
text to vectors on disk; rounds are interleaved and medians reported. Exactness is held against
float32 with TF32 off. `--small` is for a CPU.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
import transformers  # noqa: E402
from embedrepro.encode import resolve  # noqa: E402
from embedrepro.encode.job import Piece, encode_piece  # noqa: E402
from embedrepro.encode.packed import PackedEngine, Wanted, layers_of  # noqa: E402
from embedrepro.encode.tokens import Tokeniser  # noqa: E402
from embedrepro.files import sha256  # noqa: E402
from tokenizers.processors import TemplateProcessing  # noqa: E402

BERT = {"type_vocab_size": 2, "max_position_embeddings": 512}
GEOMETRIES = {
    "qwen2-1.5b": {
        "config": ("Qwen2Config", (1536, 28, 12, 8960), {"num_key_value_heads": 2}),
        "pooling": "last_token",
    },
    "minilm": {"config": ("BertConfig", (384, 6, 12, 1536), BERT), "pooling": "mean"},
    "bert-base": {"config": ("BertConfig", (768, 12, 12, 3072), BERT), "pooling": "cls"},
    "bert-large": {"config": ("BertConfig", (1024, 24, 16, 4096), BERT), "pooling": "cls"},
}
PARTS = ["attention", "speed", "bytes", "start", "memory", "devices", "faults", "profile"]
LENGTH = 512
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def stage(folder: Path, name: str, tokenizer: str, small: bool) -> Path:
    """A staged folder of the geometry with random weights."""
    kind, (hidden, layers, heads, wide), more = GEOMETRIES[name]["config"]
    decoder = kind.startswith("Qwen")
    words = transformers.AutoTokenizer.from_pretrained(tokenizer)
    words.chat_template = None  # sentence-transformers would wrap each text in it
    if decoder:
        end = "<|endoftext|>"
        words.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, words.convert_tokens_to_ids(end))]
        )
    words.save_pretrained(folder)
    if small:
        hidden, layers, wide = hidden // 4, 2, wide // 4
    config = getattr(transformers, kind)(
        vocab_size=-(-len(words) // 64) * 64,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=wide,
        **more,
    )
    config.is_causal = decoder
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = transformers.AutoModel.from_config(config)
    model.to(torch.bfloat16 if decoder else torch.float32).save_pretrained(folder)
    facts = {
        "id": f"random/{name}",
        "revision": None,
        "architecture": config.model_type,
        "native": True,
        "engine": "packed",
        "attention": "causal" if decoder else "bidirectional",
        "end_token": "<|endoftext|>" if decoder else None,
        "pooling": GEOMETRIES[name]["pooling"],
        "normalize": True,
        "query_prompt": "",
        "passage_prompt": "",
        "max_length": {"query": LENGTH, "passage": LENGTH},
        "hidden_size": hidden,
    }
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in folder.iterdir()
    }
    (folder / "stage.json").write_text(json.dumps(facts | {"code": {}, "files": files}))
    return folder


def passages(count: int, tokenizer: str, seed: int = 0) -> list[str]:
    """Texts of whole words of the vocabulary, the early (frequent) ones more often."""
    vocabulary = transformers.AutoTokenizer.from_pretrained(tokenizer).get_vocab()
    words = sorted((w for w in vocabulary if w.isascii() and w.isalpha()), key=vocabulary.get)
    draw = np.random.default_rng(seed)
    lengths = np.clip(np.rint(draw.normal(60, 26, count)), 8, 200).astype(int)
    picked = np.array(words)[(len(words) * draw.random(lengths.sum()) ** 3).astype(int)].tolist()
    ends = np.cumsum(lengths).tolist()
    return [
        " ".join(picked[start:end]).capitalize() + "."
        for start, end in zip([0, *ends], ends, strict=False)
    ]


def write_corpus(path: Path, texts: list[str]) -> Path:
    chars = pa.array([len(text) for text in texts], pa.int32())
    columns = {"id": [str(i) for i in range(len(texts))], "title": [""] * len(texts)}
    pq.write_table(pa.table(columns | {"text": texts, "chars": chars}), path, row_group_size=16384)
    return path


def sync() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def matmul_rate(hidden: int, wide: int, dtype: torch.dtype) -> tuple[float, float]:
    """TFLOP/s of matrix products: the best of a few short bursts, and kept up for two seconds.

    The better of this model's widest product and a large square one. Under load a device lowers
    its clock: an engine that runs for minutes has only the second.
    """
    size = 8192 if DEVICE == "cuda" else 1024
    shapes = ((2 * size, hidden, wide), (size, size, size))
    burst, kept = 0.0, 0.0
    for m, k, n in shapes:
        a = torch.randn(m, k, device=DEVICE, dtype=dtype)
        b = torch.randn(n, k, device=DEVICE, dtype=dtype).t()
        for _ in range(3):
            a @ b
        sync()
        rates, start = [], time.perf_counter()
        while time.perf_counter() - start < 2:
            began = time.perf_counter()
            for _ in range(20):
                a @ b
            sync()
            rates.append(20 * 2 * m * k * n / (time.perf_counter() - began) / 1e12)
        burst, kept = max(burst, *rates), max(kept, statistics.median(rates))
    return burst, kept


class Packed:
    """Our engine from a corpus.parquet to a sealed .npy."""

    def __init__(self, folder: Path, dtype: str, compiled: bool = True) -> None:
        facts = resolve(folder, {"dtype": dtype})
        self.engine = PackedEngine(facts, DEVICE, compiled=compiled)

    def __call__(self, corpus: Path, texts: list[str], output: Path) -> None:
        encode_piece(self.engine, Piece(corpus, "passage", 0, 1, output, self.engine.facts.dtype))


class Flag:
    """FlagEmbedding's class untouched, batch 256 as it comes."""

    def __init__(self, folder: Path, facts: dict, devices: list[str] | None = None) -> None:
        from FlagEmbedding.inference.embedder.decoder_only.base import BaseLLMEmbedder
        from FlagEmbedding.inference.embedder.encoder_only.base import BaseEmbedder

        last = facts["pooling"] == "last_token"
        self.model = (BaseLLMEmbedder if last else BaseEmbedder)(
            str(folder),
            use_fp16=False,
            use_bf16=DEVICE == "cuda",
            devices=devices or [DEVICE],
            batch_size=256,
            **({} if last else {"pooling_method": facts["pooling"]}),
        )

    def __call__(self, corpus: Path, texts: list[str], output: Path) -> None:
        np.save(output, self.model.encode_corpus(texts))


class SentenceTransformers:
    """sentence-transformers, batch 256."""

    def __init__(self, folder: Path, facts: dict) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import modules as models

        dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
        body = models.Transformer(str(folder), max_seq_length=LENGTH, model_kwargs={"dtype": dtype})
        mode = {"last_token": "lasttoken"}.get(facts["pooling"], facts["pooling"])
        pool = models.Pooling(facts["hidden_size"], pooling_mode=mode)
        self.model = SentenceTransformer(modules=[body, pool, models.Normalize()], device=DEVICE)

    def __call__(self, corpus: Path, texts: list[str], output: Path) -> None:
        np.save(output, self.model.encode(texts, batch_size=256).astype(np.float32))


def engines(folder: Path, chosen: list[str]) -> dict:
    """What is compared, by name; peers that aren't installed are left out with a word."""
    facts = json.loads((folder / "stage.json").read_text())
    made = {}
    makers = {
        "FlagEmbedding": lambda: Flag(folder, facts),
        "sentence-transformers": lambda: SentenceTransformers(folder, facts),
    }
    if DEVICE == "cuda":
        makers |= {
            "packed eager": lambda: Packed(folder, "bfloat16", compiled=False),
            "packed": lambda: Packed(folder, "bfloat16"),
            "packed fp8": lambda: Packed(folder, "fp8"),
        }
    else:
        makers |= {
            "packed": lambda: Packed(folder, "float32"),
            "packed bf16": lambda: Packed(folder, "bfloat16"),
        }
    for name, make in makers.items():
        if chosen and name not in chosen:
            continue
        try:
            made[name] = make()
        except ImportError as error:
            print(f"{name}: left out ({error})")
    return made


def compare(name: str, folder: Path, texts: list[str], scratch: Path, args) -> dict:
    """Interleaved rounds of every engine on one geometry; a table, ratios last."""
    facts = resolve(folder, {})
    found = engines(folder, args.engines)
    peers = texts[: max(1, len(texts) // args.peer_share)]
    sets = {key: texts if key.startswith("packed") else peers for key in found}
    corpora = {
        len(some): write_corpus(scratch / f"{len(some)}.parquet", some)
        for some in (texts, peers, texts[:1024])
    }
    tokens = {}
    seconds: dict[str, list[float]] = {key: [] for key in found}
    memory = {}
    for run in found.values():
        run(corpora[min(1024, len(texts))], texts[:1024], scratch / "warm.npy")
    for _ in range(args.repeats):
        for key, run in found.items():
            if DEVICE == "cuda":
                torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated() if DEVICE == "cuda" else 0
            sync()
            began = time.perf_counter()
            run(corpora[len(sets[key])], sets[key], scratch / f"{key}.npy".replace(" ", "-"))
            sync()
            seconds[key].append(time.perf_counter() - began)
            if DEVICE == "cuda":
                memory[key] = (torch.cuda.max_memory_allocated() - before) / 2**20
    packed = found["packed"].engine
    tokeniser = Tokeniser(packed.tokenizer, facts, "passage", None)
    began = time.perf_counter()
    lengths = np.concatenate([chunk.lengths for chunk in tokeniser.chunks(texts)])
    tokenise = len(texts) / (time.perf_counter() - began)
    for key, some in sets.items():
        tokens[key] = int(lengths[: len(some)].sum())
    exact = exactness(folder, found, texts[: args.sample], corpora, scratch)
    layers = layers_of(packed.model)
    flops = 2 * sum(p.numel() for p in layers.parameters())
    kind, (hidden, _, _, wide), _ = GEOMETRIES[name]["config"]
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    rate, kept = matmul_rate(hidden, wide, dtype)
    alone = device_alone(packed, texts)
    base = found and statistics.median(seconds.get("FlagEmbedding", [float("nan")]))
    base = len(sets.get("FlagEmbedding", [])) / base
    print(
        f"\n### {name}: {len(texts)} passages of {lengths.mean():.1f} ± {lengths.std():.1f} tokens "
        f"({len(peers)} for the peers), {flops / 1e9:.3f} GFLOP a token, matrix products "
        f"{rate:.1f} TFLOP/s ({kept:.1f} kept up); "
        f"tokenizer alone {tokenise:,.0f}, device alone {alone:,.0f} passages/s"
    )
    print(
        "| engine | passages/s | tokens/s | TFLOP/s | of the matmul rate | activations MB "
        "| cosine to fp32, mean / min | largest difference | × FlagEmbedding |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    rows = {}
    for key in found:
        median = statistics.median(seconds[key])
        speed, per_token = len(sets[key]) / median, tokens[key] / median
        work = per_token * flops / 1e12
        mean, low, largest = exact[key]
        print(
            f"| {key} | {speed:,.0f} | {per_token:,.0f} | {work:.1f} | {work / rate:.3f} | "
            f"{memory.get(key, 0):,.0f} | {mean:.6f} / {low:.6f} | {largest:.2e} | "
            f"{speed / base:.2f} |"
        )
        rows[key] = {"seconds": seconds[key], "passages_per_second": speed, "tflops": work}
        rows[key] |= {"exact": exact[key], "of_matmul": work / rate, "ratio": speed / base}
    if "packed fp8" in found:
        print("fp8 beside bfloat16:", found["packed fp8"].engine.remarks["fp8_effect"])
    print("tokens a batch:", packed.tokens_per_batch, flush=True)
    return {"engines": rows, "tokeniser": tokenise, "device": alone, "matmul_tflops": [rate, kept]}


def device_alone(engine: PackedEngine, texts: list[str]) -> float:
    """Passages/s of the engine with batches laid out beforehand."""
    from embedrepro.encode import batches, pipeline

    tokeniser = Tokeniser(engine.tokenizer, engine.facts, "passage", None)
    Packer = batches.VarlenPacker if engine.varlen else batches.PaddedPacker
    packer = Packer(engine.tokens_per_batch, tokeniser.limit)
    laid = [(b, engine.pipeline.lay(b)) for b in pipeline.pack(tokeniser.chunks(texts), packer)]

    def compute(batch: batches.Batch, arrays: list[torch.Tensor]) -> list[torch.Tensor]:
        return [engine._run(batch, arrays, Wanted(engine.dimension, 0))]

    sync()
    began = time.perf_counter()
    for batch, arrays in laid:
        list(engine.pipeline.launch(batch, arrays, packer, compute))
    sync()
    return len(texts) / (time.perf_counter() - began)


def exactness(folder: Path, found: dict, sample: list[str], corpora: dict, scratch: Path) -> dict:
    """Cosine (mean, least) and largest difference of each engine to float32."""
    corpus = write_corpus(scratch / "sample.parquet", sample)
    exact = Packed(folder, "float32")
    exact(corpus, sample, scratch / "exact.npy")
    expected = np.load(scratch / "exact.npy").astype(np.float64)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    results = {}
    for key, run in found.items():
        run(corpus, sample, scratch / "sample.npy")
        vectors = np.load(scratch / "sample.npy").astype(np.float64)
        cosine = (vectors * expected).sum(1) / np.linalg.norm(vectors, axis=1)
        largest = float(np.abs(vectors - expected).max())
        results[key] = (float(cosine.mean()), float(cosine.min()), largest)
    return results


def same_bytes(name: str, folder: Path, texts: list[str], scratch: Path, dtype: str) -> dict:
    """Digests of the vectors for other cuts, order, budgets and a fresh process."""
    engine = Packed(folder, dtype).engine
    corpus = write_corpus(scratch / "all.parquet", texts)

    def digest(vectors: np.ndarray) -> str:
        return hashlib.sha256(np.ascontiguousarray(vectors).tobytes()).hexdigest()[:12]

    def whole(source: Path, shards: int = 1) -> np.ndarray:
        parts = []
        for i in range(shards):
            part = scratch / "part.npy"
            encode_piece(engine, Piece(source, "passage", i, shards, part, dtype))
            parts.append(np.load(scratch / "part.npy"))
        return np.concatenate(parts)

    seen = {}

    def note(key: str, vectors: np.ndarray) -> None:
        seen[key] = digest(vectors)
        print(f"  {seen[key]} {key}", flush=True)

    print(f"\n{name}, {engine.precision.dtype}: {len(texts)} passages")
    for n in (1, 2, 4, 7):
        note(f"{n} shards", whole(corpus, n))
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = whole(write_corpus(scratch / "shuffled.parquet", [texts[i] for i in order]))
    note("shuffled", shuffled[np.argsort(order)])
    budget = engine.tokens_per_batch
    engine.pipeline.budget = max(budget // 2, LENGTH)
    note(f"{engine.tokens_per_batch} instead of {budget} tokens a batch", whole(corpus))
    fresh = run_cli(folder, corpus, scratch, scratch / "another-cache", dtype)[1]
    note("fresh process and compiler cache", fresh)
    print("  identical bytes" if len(set(seen.values())) == 1 else "  BYTES DIFFER")
    return seen


def command(
    folder: Path, corpus: Path, output: Path, cache: Path, dtype: str = "bfloat16", budget: int = 0
) -> list[str]:
    """A job's call for all of `corpus` in a process of its own."""
    output.parent.mkdir(exist_ok=True)
    script = (
        "import os, sys; from pathlib import Path\n"
        f"os.environ['TORCHINDUCTOR_CACHE_DIR'] = {str(cache / 'inductor')!r}\n"
        f"os.environ['TRITON_CACHE_DIR'] = {str(cache / 'triton')!r}\n"
        f"sys.path.insert(0, {str(SCRIPTS)!r})\n"
        "from embedrepro.encode.job import Piece, encode_pieces\n"
        f"piece = Piece(Path({str(corpus)!r}), 'passage', 0, 1, Path({str(output)!r}), {dtype!r}, "
        "compiled=True)\n"
        f"encode_pieces(Path({str(folder)!r}), [piece], tokens_per_batch={budget or None})"
    )
    return [sys.executable, "-c", script]


def run_cli(
    folder: Path, corpus: Path, scratch: Path, cache: Path, dtype: str = "bfloat16"
) -> tuple[float, np.ndarray, dict]:
    """Seconds, vectors and sidecar of a job in a process of its own."""
    (scratch / "cli.npy").unlink(missing_ok=True)  # or the job leaves it
    output = scratch / "cli.npy"
    began = time.perf_counter()
    run = command(folder, corpus, output, cache, dtype)
    subprocess.run(run, check=True, stderr=subprocess.DEVNULL)
    taken = time.perf_counter() - began
    return taken, np.load(output), sidecar_of(output)


def sidecar_of(output: Path) -> dict:
    return json.loads(output.with_suffix(".json").read_text())


def cold_start(name: str, folder: Path, texts: list[str], scratch: Path) -> list[float]:
    """Seconds of a process that encodes one batch and ends: compiler cache cold, then warm."""
    corpus = write_corpus(scratch / "one.parquet", texts[:256])
    cache = scratch / f"cache-{name}"
    taken = [run_cli(folder, corpus, scratch, cache)[0] for _ in range(3)]
    print(
        f"\n{name}: process start to its end after one batch: compiler cache cold "
        f"{taken[0]:.1f} s, warm {min(taken[1:]):.1f} s",
        flush=True,
    )
    return taken


def host_memory(folder: Path, scratch: Path, counts: tuple[int, int]) -> None:
    """Peak host memory of a small and a large shard of short texts."""
    peaks = []
    for count in counts:
        corpus = write_corpus(
            scratch / "many.parquet", [f"passage number {i}" for i in range(count)]
        )
        seconds, _, sidecar = run_cli(folder, corpus, scratch, scratch / "cache-minilm")
        peaks.append(sidecar["peak_host_memory_mb"])
        print(f"{count:,} passages: {peaks[-1]:,.0f} MB host memory, {seconds:.0f} s", flush=True)
    print(f"larger by {peaks[1] - peaks[0]:,.0f} MB")


def several_devices(name: str, folder: Path, texts: list[str], scratch: Path, args) -> dict:
    """The same text on one device, then on each at once, a process each through gpu_slot.py.

    Beside it FlagEmbedding's pool, without the time that it takes to start.
    """
    corpus = write_corpus(scratch / "each.parquet", texts)
    slot = [sys.executable, str(SCRIPTS / "gpu_slot.py"), "1", "--"]
    count = torch.cuda.device_count()

    def at_once(n: int) -> float:
        outputs = [scratch / f"device-{i}.npy" for i in range(n)]
        runs = [command(folder, corpus, out, scratch / f"cache-{name}") for out in outputs]
        jobs = [subprocess.Popen(slot + run, stderr=subprocess.DEVNULL) for run in runs]
        assert not any([job.wait() for job in jobs])
        return max(sidecar_of(out)["seconds"] for out in outputs)

    at_once(1)  # fills the compiler's cache
    pairs = [(at_once(1), at_once(count)) for _ in range(args.repeats)]
    ratio = statistics.median(count * one / many for one, many in pairs)
    rates = [[round(n * len(texts) / s) for n, s in zip((1, count), pair, strict=True)]
             for pair in pairs]  # fmt: skip
    print(f"\n{name}: {len(texts)} passages a device, passages/s of 1 and of {count}: {rates}")
    print(f"{count} devices are {ratio:.2f} × one", flush=True)
    facts = json.loads((folder / "stage.json").read_text())
    some = texts[: len(texts) // args.peer_share]
    pool = {}
    for devices in ([f"cuda:{i}" for i in range(count)], ["cuda:0"]):
        flag = Flag(folder, facts, devices)
        flag.model.encode_corpus(some)
        began = time.perf_counter()
        flag.model.encode_corpus(some * len(devices))
        pool[len(devices)] = len(devices) * len(some) / (time.perf_counter() - began)
        flag.model.stop_self_pool()
    print(f"FlagEmbedding, passages/s by devices: {pool}, {pool[count] / pool[1]:.2f} × one")
    return {"seconds": pairs, "ratio": ratio, "pool": pool}


def faults(name: str, folder: Path, texts: list[str], scratch: Path) -> dict:
    """Jobs killed at random moments and run again, and one that finds little memory: same bytes."""
    corpus = write_corpus(scratch / "faults.parquet", texts)
    cache = scratch / f"cache-faults-{name}"
    seconds, expected, sidecar = run_cli(folder, corpus, scratch, cache)
    print(f"\n{name}: {len(texts)} passages, undisturbed {seconds:.1f} s", flush=True)
    moments = np.random.default_rng(0).random(10)

    def killed(number: int) -> dict:
        output = scratch / f"killed-{number}" / "vectors.npy"
        run = command(folder, corpus, output, cache)
        job = subprocess.Popen(run, stderr=subprocess.DEVNULL)
        writing = number % 2 == 1  # every other one only once it writes
        while writing and job.poll() is None and not any(output.parent.glob("*vectors.npy")):
            time.sleep(0.01)
        moment = moments[number] * (sidecar["seconds"] if writing else seconds)
        time.sleep(moment)
        job.kill()
        found = {"writing": writing, "after": round(float(moment), 2), "status": job.wait()}
        found["left"] = sorted(path.name[:24] for path in output.parent.iterdir())
        subprocess.run(run, check=True, stderr=subprocess.DEVNULL)
        found["same"] = np.load(output).tobytes() == expected.tobytes()
        return found

    # Side by side where there is room: they share the compiler's cache too.
    with ThreadPoolExecutor(10 if DEVICE == "cuda" else 1) as pool:
        jobs = list(pool.map(killed, range(10)))
    for job in jobs:
        print(f"  {job}")
    print(f"  killed and retried: {sum(job['same'] for job in jobs)} of 10 with the same bytes")
    return {"killed": jobs} | ({"memory": starved(name, folder, corpus, scratch, expected)}
                               if DEVICE == "cuda" else {})  # fmt: skip


HOG = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(free - int(sys.argv[1]), dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


def starved(
    name: str, folder: Path, corpus: Path, scratch: Path, expected: np.ndarray, budget: int = 2**18
) -> dict:
    """A job told to take large batches while another process holds nearly all memory."""
    cache = scratch / f"cache-faults-{name}"
    output = scratch / "plenty" / "vectors.npy"
    run = command(folder, corpus, output, cache, budget=budget)
    subprocess.run(run, check=True, stderr=subprocess.DEVNULL)
    plenty = sidecar_of(output)["peak_memory_mb"]
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2**20
    left = 1024 + weights + (plenty - weights) / 3  # the context, the model, a third of the rest
    hog = subprocess.Popen(
        [sys.executable, "-c", HOG, str(int(left * 2**20))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    hog.stdout.readline()
    output = scratch / "starved" / "vectors.npy"
    run = command(folder, corpus, output, cache, budget=budget)
    job = subprocess.run(run, stderr=subprocess.PIPE, text=True)
    hog.communicate()
    said = [line for line in job.stderr.splitlines() if "memory" in line] or [job.stderr[-600:]]
    print(f"  with {left:,.0f} MB left of the {plenty:,.0f} taken: status {job.returncode}, {said}")
    found = {"status": job.returncode, "said": said}
    if job.returncode == 0:
        found["same"] = np.load(output).tobytes() == expected.tobytes()
        found["budget"] = sidecar_of(output)["tokens_per_batch"]
        print(f"  ended with {found['budget']} tokens a batch, same bytes: {found['same']}")
    return found


KINDS = {
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "_mm"),
    "attention": ("_attend", "flash"),
    "rounding to float8": ("_quantise",),
    "copies": ("memcpy", "memset"),
    "compiled (norms, rotary, gates)": ("triton",),
}


def profile(name: str, folder: Path, texts: list[str], scratch: Path, dtypes: list[str]) -> dict:
    """Where a device's time goes: share of each kind of kernel, and of each of the largest."""
    from torch.profiler import ProfilerActivity

    corpus = write_corpus(scratch / "profile.parquet", texts)
    tables = {}
    for dtype in dtypes:
        run = Packed(folder, dtype)
        for _ in range(2):
            run(corpus, texts, scratch / "profile.npy")
        with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as seen:
            began = time.perf_counter()
            run(corpus, texts, scratch / "profile.npy")
            span = time.perf_counter() - began
        kernels = {e.key: (e.self_device_time_total / 1e6, e.count) for e in seen.key_averages()}
        busy = sum(seconds for seconds, _ in kernels.values())
        kinds = dict.fromkeys([*KINDS, "other"], 0.0)
        for key, (seconds, _) in kernels.items():
            marks = ((kind, any(m in key.lower() for m in marks)) for kind, marks in KINDS.items())
            kinds[next((kind for kind, found in marks if found), "other")] += seconds
        print(f"\n{name}, {run.engine.precision.dtype}: busy {busy:.3f} s of {span:.3f} s")
        print("| kind | ms | share |\n|---|---|---|")
        for kind, seconds in kinds.items():
            print(f"| {kind} | {1000 * seconds:.1f} | {seconds / busy:.3f} |")
        for key, (seconds, count) in sorted(kernels.items(), key=lambda item: -item[1][0])[:14]:
            each = 1e6 * seconds / count
            print(f"  {seconds / busy:.3f}  {count:5d} × {each:8.1f} us  {key[:90]}")
        tables[dtype] = kinds | {"busy": busy, "span": span}
    return tables


def short_attention() -> None:
    """The kernel for short sequences against float32 arithmetic and beside torch's own."""
    from embedrepro.encode.short_attention import attend_short
    from torch.nn.attention.varlen import varlen_attn

    print("\nattention: microseconds, largest error to float32; ours and torch's")
    for heads, key_heads, size, window in (
        (12, 2, 128, (-1, 0)),
        (12, 12, 64, (-1, -1)),
        (12, 12, 32, (-1, -1)),
        (8, 4, 80, (20, 20)),
    ):
        lengths = np.clip(np.random.default_rng(0).normal(75, 26, 440), 1, 128).astype(int)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        offsets = torch.tensor(ends, dtype=torch.int32, device=DEVICE)
        torch.manual_seed(0)
        query, key, value = (
            torch.randn(ends[-1], n, size, device=DEVICE, dtype=torch.bfloat16)
            for n in (heads, key_heads, key_heads)
        )
        runs = {
            "ours": lambda q=query, k=key, v=value, o=offsets, w=window, s=size: attend_short(
                q, k, v, o, 128, w, s**-0.5
            ),
            "torch's": lambda q=query, k=key, v=value, o=offsets, w=window, s=size: varlen_attn(
                q, k, v, o, o, 128, 128, scale=s**-0.5, window_size=w, **grouped(q, k)
            ),
        }
        exact = attend_plainly(query, key, value, ends, window)
        found = {
            name: (microseconds(run), (run().float() - exact).abs().max().item())
            for name, run in runs.items()
        }
        shown = ", ".join(f"{name} {us:.0f} ({off:.1e})" for name, (us, off) in found.items())
        print(f"  {heads} heads of {size}, {key_heads} key heads, window {window}: {shown}")
        assert found["ours"][1] <= 2 * found["torch's"][1] + 1e-3


def grouped(query: torch.Tensor, key: torch.Tensor) -> dict:
    from embedrepro.encode.attention import NAMES_GROUPS

    return {"enable_gqa": query.shape[1] != key.shape[1]} if NAMES_GROUPS else {}


def attend_plainly(query, key, value, ends, window) -> torch.Tensor:
    """Attention of each sequence in float32."""
    repeat = query.shape[1] // key.shape[1]
    found = []
    for start, stop in zip(ends[:-1], ends[1:], strict=True):
        q, k, v = (t[start:stop].transpose(0, 1).float() for t in (query, key, value))
        k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
        scores = q @ k.transpose(1, 2) * query.shape[-1] ** -0.5
        place = torch.arange(stop - start, device=q.device)
        ahead = place[None] - place[:, None]
        left, right = window
        hidden = ((ahead > right) & (right >= 0)) | ((-ahead > left) & (left >= 0))
        found.append((scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(found)


def microseconds(run) -> float:
    for _ in range(3):
        run()
    sync()
    began = time.perf_counter()
    for _ in range(50):
        run()
    sync()
    return (time.perf_counter() - began) / 50 * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bert-tokenizer", help="folder with a BERT tokenizer; default MiniLM's")
    parser.add_argument("--qwen-tokenizer", help="folder with a Qwen2 tokenizer")
    parser.add_argument("--geometries", nargs="*", default=list(GEOMETRIES), choices=GEOMETRIES)
    parser.add_argument("--parts", nargs="*", default=PARTS[:5], choices=PARTS)
    parser.add_argument("--dtypes", nargs="*", help="for bytes and profile; default the usual one")
    parser.add_argument("--engines", nargs="*", default=[], help="only these, packed among them")
    parser.add_argument("--passages", type=int, default=16384)
    parser.add_argument("--peer-share", type=int, default=4, help="peers get 1/N of the passages")
    parser.add_argument("--sample", type=int, default=256, help="texts held against float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a quarter of each width, two layers")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    if args.bert_tokenizer is None:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from minilm import minilm_folder

        args.bert_tokenizer = str(minilm_folder())
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{os.cpu_count()} CPU cores"
    packages = ("torch", "transformers", "sentence-transformers", "FlagEmbedding")
    known = {}
    for package in packages:
        try:
            known[package] = version(package)
        except ImportError:
            known[package] = "absent"
    print(device, known, flush=True)
    sys.stdout.reconfigure(line_buffering=True)
    results = {"device": device, "versions": known}
    dtypes = args.dtypes or ["bfloat16" if DEVICE == "cuda" else "float32"]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if "attention" in args.parts and DEVICE == "cuda":
            short_attention()
        texts = passages(args.passages, args.bert_tokenizer)
        for geometry in args.geometries:
            decoder = geometry.startswith("qwen")
            tokenizer = args.qwen_tokenizer if decoder else args.bert_tokenizer
            if tokenizer is None:
                print(f"{geometry}: left out, give --qwen-tokenizer")
                continue
            folder = stage(scratch / geometry, geometry, tokenizer, args.small)
            one = results[geometry] = {}
            if "start" in args.parts:
                one["start"] = cold_start(geometry, folder, texts, scratch)
            if "speed" in args.parts:
                one["speed"] = compare(geometry, folder, texts, scratch, args)
            if "bytes" in args.parts:
                some = texts[: len(texts) // 2]
                one["bytes"] = [same_bytes(geometry, folder, some, scratch, t) for t in dtypes]
            if "faults" in args.parts:
                one["faults"] = faults(geometry, folder, texts, scratch)
            if "profile" in args.parts and DEVICE == "cuda":
                one["profile"] = profile(geometry, folder, texts, scratch, dtypes)
            if "devices" in args.parts:
                one["devices"] = several_devices(geometry, folder, texts, scratch, args)
            if "memory" in args.parts and geometry == "minilm":
                host_memory(folder, scratch, (2_000, 20_000) if args.small else (20_000, 2_000_000))
            if args.json:
                args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
