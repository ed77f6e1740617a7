# Config → tables, wildcard constraints and targets. The only helper functions of the workflow.
import gc
import json
import shlex
import sys
from functools import cache

import yaml
from snakemake.common.configfile import load_configfile
from snakemake.utils import update_config

# Tens of thousands of jobs are millions of objects that stay: looking through them for garbage all
# the time takes a tenth of the planning.
gc.set_threshold(100_000, 50, 1000)

REPOSITORY = Path(workflow.basedir)
sys.path.insert(0, str(REPOSITORY / "scripts"))

from embedrepro.argument import pack
from embedrepro.sources import snapshot
from embedrepro.datasets.registry import expand, read_registry
from embedrepro.errors import UserError, printable
from embedrepro.experiment import Experiment, absolute_paths
from embedrepro.files import digest, sha256


wildcard_constraints:
    model=r"[A-Za-z0-9_-]+",
    dataset=r"[A-Za-z0-9_-]+",
    split=r"[A-Za-z0-9][A-Za-z0-9_-]*",
    key=r"[0-9a-f]{12}",
    shard=r"\d+",
    shards=r"\d+",


def registry(name):
    return yaml.load((REPOSITORY / "rules" / name).read_text("utf-8"), yaml.CSafeLoader)


def read_config():
    """The config files, in order, each with paths made absolute; then --config."""
    merged = {}
    for file in [REPOSITORY / "config.yaml", *workflow.overwrite_configfiles]:
        file = Path(file).resolve()
        update_config(merged, absolute_paths(load_configfile(file), file.parent))
    update_config(merged, workflow.config_settings.config)
    return merged


def folder_digest(source):
    """Digest of a local source: a folder's files, or what the demonstration model is built from."""
    if source.isdigit():
        parts = ["scripts/embedrepro/sources/demo_model.py", "data/demo/corpus.jsonl"]
        return digest([int(source), *(sha256(REPOSITORY / part) for part in parts)])
    return snapshot.path_digest(source, DIGESTS)


def read_experiment(config):
    """The experiment, or one line that says what is wrong with the config, and status 2."""
    known = {
        "schema": registry("schemas/config.schema.yaml"),
        "models": registry("registry/models.yaml")["models"],
        "datasets": read_registry(REPOSITORY / "rules" / "registry" / "datasets.yaml"),
        "expand": expand,
    }
    try:
        # Once without digests: a mistake is told before any file is hashed and remembered.
        Experiment(config=config, folder_digest=str, **known)
        return Experiment(config=config, folder_digest=folder_digest, **known)
    except UserError as error:
        print(f"error: {printable(error, 2000)}", file=sys.stderr, flush=True)
        os._exit(2)  # Snakemake would add a traceback and turn the status into 1


CONFIG = read_config()
# The digests of local files, remembered where downloads are; a store that is no text is an error.
DIGESTS = Path(str(CONFIG.get("store", "store"))) / "models" / ".cache"
EXPERIMENT = read_experiment(CONFIG)
STORE = EXPERIMENT.store
RESULTS = EXPERIMENT.results
SPECS = f"{STORE}/specs"
MANIFEST = f"{STORE}/models/hub/{{model}}-{{key}}/manifest.json"
STAGE = f"{STORE}/models/staged/{{model}}-{{key}}/stage.json"
DATASET = f"{STORE}/datasets/{{dataset}}-{{key}}"
EMBEDDINGS = f"{STORE}/embeddings/{{dataset}}/{{model}}-{{key}}"
HITS = f"{STORE}/hits/{{dataset}}/{{model}}-{{key}}"
RERANKED = f"{STORE}/reranked/{{dataset}}/{{model}}-{{key}}"
# Environments bring a python of their own; without them it is the one that runs Snakemake.
DEPLOYED = bool(workflow.deployment_settings.deployment_method)
PYTHON = "python" if DEPLOYED else shlex.quote(sys.executable)
SCRIPTS = shlex.quote(str(REPOSITORY / "scripts"))


def command(name):
    """The command of one of the scripts."""
    return f"{PYTHON} {SCRIPTS}/{name}.py"


def script(name):
    """The same as a rule's parameter. Snakemake forgets what is a function of the input: with
    another Python, or the repository elsewhere, nothing is computed again."""
    text = command(name)
    return lambda wildcards, input: text


def of_model(wildcards):
    return EXPERIMENT.models[wildcards.model]


def of_dataset(wildcards):
    return EXPERIMENT.datasets[wildcards.dataset]


# Spec files carry what the config says to the scripts. Their values are looked up by name here,
# so that the rule which writes them knows what to write.
VALUES = {}


def spec(slug, value, key=None):
    """Path of the spec file that holds `value`; naming it is what makes it known.

    Its key is a digest of the value, unless one is given that leaves out what changes no result.
    """
    name = f"{slug}-{key or digest(value)}"
    VALUES[name] = value
    return f"{SPECS}/{name}.json"


def manifest(model):
    return MANIFEST.format(model=model.slug, key=model.source_key)


# What many shards ask for is worked out once: an experiment may have tens of thousands of jobs.
@cache
def encode_spec(model, dataset, role):
    value = EXPERIMENT.encode_spec(model, dataset, role)
    return spec(f"encode-{model.slug}", value)


def score_spec(wildcards):
    model, dataset = of_model(wildcards), of_dataset(wildcards)
    value = EXPERIMENT.score_spec(model, dataset, wildcards.split)
    return spec(f"score-{model.slug}", value)


def staged(model):
    return STAGE.format(model=model.slug, key=model.stage_key)


def prepared(dataset, file="dataset.json"):
    folder = DATASET.format(dataset=dataset.slug, key=dataset.key)
    return f"{folder}/{file}"


@cache
def corpus_shards(model, dataset):
    """The corpus' embeddings, all shards."""
    key = EXPERIMENT.corpus_key(model, dataset)
    folder = EMBEDDINGS.format(dataset=dataset.slug, model=model.slug, key=key)
    return [
        f"{folder}/corpus-{i}-of-{dataset.shards}.npy" for i in range(dataset.shards)
    ]


@cache
def query_embeddings(model, dataset, split):
    key = EXPERIMENT.query_key(model, dataset)
    folder = EMBEDDINGS.format(dataset=dataset.slug, model=model.slug, key=key)
    return f"{folder}/{split}-queries.npy"


def queries_ahead(wildcards):
    """The queries that the job of a corpus' first shard encodes too, as one word."""
    if int(wildcards.shard):
        return pack([])
    model, dataset = of_model(wildcards), of_dataset(wildcards)
    value = EXPERIMENT.encode_spec(model, dataset, "query")
    return pack(
        [
            {
                "texts": prepared(dataset, f"{split}/queries.parquet"),
                "spec": value,
                "output": query_embeddings(model, dataset, split),
            }
            for split in dataset.splits
        ]
    )


def hits(model, dataset, split):
    """The best hits of every shard."""
    key = EXPERIMENT.hits_key(model, dataset)
    folder = HITS.format(dataset=dataset.slug, model=model.slug, key=key)
    return [
        f"{folder}/{split}-{i}-of-{dataset.shards}.parquet"
        for i in range(dataset.shards)
    ]


def reranked(model, dataset, split):
    """The scores of every shard of a reranking."""
    key = EXPERIMENT.run_key(model, dataset)
    folder = RERANKED.format(dataset=dataset.slug, model=model.slug, key=key)
    shards = model.options["shards"]
    return [f"{folder}/{split}-{i}-of-{shards}.parquet" for i in range(shards)]


def rerank_spec(wildcards):
    unwanted = ("run", "shards")
    options = of_model(wildcards).options
    value = {k: v for k, v in options.items() if k not in unwanted}
    return spec(f"rerank-{wildcards.model}", value)


def fusion_spec(wildcards):
    options = of_model(wildcards).options
    value = {k: v for k, v in options.items() if k != "runs"}
    return spec(f"fuse-{wildcards.model}", value)


def of_kind(kind):
    """A pattern of the models of one kind, and of nothing where there are none."""
    slugs = [model.slug for model in EXPERIMENT.models.values() if model.kind == kind]
    return "|".join(slugs) or "(?!)"


def rows():
    """Every row of the report: a model, a dataset and a split."""
    for model in EXPERIMENT.models.values():
        for dataset in EXPERIMENT.datasets.values():
            for split in dataset.splits:
                yield model, dataset, split


def run_file(model, dataset, split):
    return f"{RESULTS}/runs/{dataset.slug}/{split}/{model.slug}.trec"


def score_file(model, dataset, split, suffix=".json"):
    return f"{RESULTS}/scores/{dataset.slug}/{split}/{model.slug}{suffix}"


def ingredient_runs(wildcards):
    """The runs that a fusion or a reranking is made from."""
    by_id = {model.id: model for model in EXPERIMENT.models.values()}
    names = EXPERIMENT.ingredients(of_model(wildcards))
    return [run_file(by_id[i], of_dataset(wildcards), wildcards.split) for i in names]


def encoded(wildcards):
    """Sidecars that say how an embedding model's queries and passages were encoded."""
    model, dataset = of_model(wildcards), of_dataset(wildcards)
    if model.kind != "dense":
        return []
    arrays = (
        query_embeddings(model, dataset, wildcards.split),
        corpus_shards(model, dataset)[0],
    )
    return [npy.removesuffix(".npy") + ".json" for npy in arrays]


def embedding_sidecars():
    dense = [row for row in rows() if row[0].kind == "dense"]
    arrays = [
        npy for model, dataset, _ in dense for npy in corpus_shards(model, dataset)
    ]
    arrays += [query_embeddings(*row) for row in dense]
    return [npy.removesuffix(".npy") + ".json" for npy in dict.fromkeys(arrays)]


def parity():
    """The comparison with FlagEmbedding's own evaluator, where one was made or is asked for."""
    path = f"{RESULTS}/parity.json"
    asked = "reference" in workflow.dag_settings.targets
    return [path] if asked or Path(path).exists() else []


def report_inputs():
    """What the report is made from, as the report's script expects it."""
    dense = [m for m in EXPERIMENT.models.values() if m.kind == "dense"]
    return {
        "scores": [score_file(*row) for row in rows()],
        "per_query": [score_file(*row, ".per_query.tsv") for row in rows()],
        "runs": [run_file(*row) for row in rows()],
        "verdicts": f"{RESULTS}/verdicts.tsv",
        "comparisons": f"{RESULTS}/comparisons.json",
        "stages": [staged(model) for model in dense],
        "embeddings": embedding_sidecars(),
        "datasets": [prepared(dataset) for dataset in EXPERIMENT.datasets.values()],
        "parity": next(iter(parity()), None),
    }


def recorded():
    """What staging, preparing and encoding said of themselves, which the report repeats."""
    inputs = report_inputs()
    return [*inputs["stages"], *inputs["embeddings"], *inputs["datasets"]]


def report_files():
    names = ["report.html", "report.md", "report.tex", "metrics.tsv", "verdicts.tsv"]
    return [f"{RESULTS}/{name}" for name in [*names, "speed.tsv", "provenance.json"]]
