"""Each file of experiments/ to its report, against a hub on this machine that serves stand-ins.

Nothing of a file is changed but the digests that it pins, for the reference the devices, and how
fast a device is reckoned with: that changes no number, only into how many jobs the work is cut.
"""

import hashlib
import json
import re

import oracle
import public
import pytest
import yaml
from covering import covers
from drive import REPOSITORY, Results, environment, snakemake, table
from hub_server import HubServer
from stand_ins import files

pytestmark = pytest.mark.journey
EXPERIMENTS = sorted((REPOSITORY / "experiments").glob("*.yaml"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The hub, an environment that knows it, the folders of the models and a store for all."""
    folder = tmp_path_factory.mktemp("world")
    models = public.models(folder / "models")
    tables = public.datasets()
    with HubServer({n: files(p) for n, p in models.items()}, tables, commits=pins()) as hub:
        own = {k: v for k, v in hub.env().items() if k.startswith("HF_")}
        env = environment(**own, HF_HOME=str(folder / "hf"), NO_PROXY="127.0.0.1")
        env |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null"}
        env["JOURNEYS_IR_DATASETS"] = str(public.ir_datasets(folder / "ir"))
        yield {"env": env, "models": models, "workdir": folder / "w", "hub": hub}


def pins():
    """Repository → the commit that the experiments and the registry name."""
    found = {}
    for path in EXPERIMENTS:
        for model in yaml.safe_load(path.read_text("utf-8"))["models"]:
            if "revision" in model:
                found[model["id"]] = model["revision"]
    known = yaml.safe_load((REPOSITORY / "rules/registry/datasets.yaml").read_text("utf-8"))
    return found | dict(commits(known))


def commits(value):
    """Each repository with its commit, wherever they stand."""
    if isinstance(value, dict):
        if {"hub", "revision"} <= value.keys():
            yield value["hub"], value["revision"]
        for inner in value.values():
            yield from commits(inner)


def copied(path, world, cpu=False):
    """The experiment's text with the digests of the stand-ins."""
    text = path.read_text("utf-8")
    config = yaml.safe_load(text)
    for model in config["models"]:
        for name, digest in model.get("sha256", {}).items():
            data = (world["models"][model["id"]] / name).read_bytes()
            text = text.replace(digest, hashlib.sha256(data).hexdigest())
    if cpu:
        text = re.sub(r'devices: \["cuda:0".*?\]', "devices: [cpu, cpu]", text)
    assert "\nplan:" not in text
    text += "\nplan: {tflops: 1000000}\n"
    target = world["workdir"].parent / "experiments" / path.name
    target.parent.mkdir(exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target, config


def drive(world, path, *arguments):
    world["workdir"].mkdir(exist_ok=True)
    return snakemake(world["workdir"], "--configfile", path, *arguments, env=world["env"])


@covers("datasets[]:string")
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_runs_to_its_report(world, path):
    target, config = copied(path, world)
    done = drive(world, target).ok()
    name = config["experiment"]
    assert f"results/{name}/report.html" in done.screen
    results = Results(world["workdir"], name)
    rows = table(results.folder / "metrics.tsv")
    models = {model["id"] for model in config["models"]}
    assert {row["model_id"] for row in rows} == models
    asked = {dataset.split("/")[0] for dataset in config["datasets"]}
    assert {row["dataset"].split("/")[0] for row in rows} == asked
    for model in config["models"]:
        if model["id"] in world["models"]:
            check_numbers(world, config, model, results)
    for row in table(results.folder / "verdicts.tsv"):
        assert row["verdict"], row
        assert row["reason"] or row["measured"], row
        if row["measured"] and row["delta"]:
            delta = float(row["measured"]) - float(row["published"])
            assert float(row["delta"]) == pytest.approx(delta, abs=2e-5)
    for file in ("report.md", "report.html", "report.tex", "speed.tsv", "provenance.json"):
        assert (results.folder / file).stat().st_size > 100
    again = drive(world, target).ok()
    assert not again.computing
    assert f"results/{name}/report.html" in again.screen


def facts(config, model):
    """What the registry's model row and the experiment say, for the oracle."""
    registry = yaml.safe_load((REPOSITORY / "rules/registry/models.yaml").read_text("utf-8"))
    known = registry["models"][model["id"]] | model
    lengths = known.get("max_length", known.get("max_tokens"))
    lengths = lengths if isinstance(lengths, dict) else {"query": lengths, "passage": lengths}
    shared = {"pooling": known["pooling"], "normalize": known["normalize"]}
    if known.get("attention"):
        shared |= {"attention": known["attention"], "end_token": known["end_token"]}
    return known, shared, lengths


def check_numbers(world, config, model, results):
    """The first dataset's runs, searched by brute force over plain transformers' vectors."""
    name = config["datasets"][0]
    family, _, part = name.partition("/")
    texts = public.texts_of(family if family == "msmarco-passage" else name)
    known, shared, lengths = facts(config, model)
    task = "Given a web search query, retrieve relevant passages that answer the query"
    prompts = {role: known.get(f"{role}_prompt", "").replace("{task}", task)
               for role in ("query", "passage")}  # fmt: skip
    folder = world["models"][model["id"]]
    corpus = oracle.vectors(folder, texts.joined(), prompts["passage"],
                            min(lengths["passage"], 510), **shared)  # fmt: skip
    splits = {"msmarco-passage": ["dev", "dl19"]}.get(family)
    splits = splits or [{"xquad": "validation", "miracl": "dev"}.get(family, "test")]
    slug = re.sub(r"[^A-Za-z0-9_-]", "_", model["id"].replace("/", "__"))
    exact = known.get("dtype", "auto") in ("auto", "float32") and family in ("beir", "xquad")
    for split in splits:
        asked = texts.queries
        if family == "msmarco-passage":
            half = public.split_queries(texts)[splits.index(split)]
            asked = {query: texts.queries[query] for query in half}
        queries = oracle.vectors(folder, asked, prompts["query"], lengths["query"], **shared)
        place = family if family == "msmarco-passage" else f"{family}__{part}"
        ours = results.run(slug, place, split)
        oracle.same_run(ours, oracle.search(queries, corpus), 2e-5 if exact else 3e-2)


def test_the_reference_beside_the_seed_experiment(world):
    """FlagEmbedding's own evaluator on two devices, where it once waited for ever."""
    (path,) = [p for p in EXPERIMENTS if "\nreference:" in p.read_text("utf-8")]
    target, config = copied(path, world, cpu=True)
    drive(world, target, "--", "reference").ok()
    results = Results(world["workdir"], config["experiment"])
    parity = json.loads((results.folder / "parity.json").read_text())
    text = json.dumps(parity)
    for split in ("dev", "dl19", "dl20"):
        assert split in text
    assert "FlagEmbedding" in (results.folder / "report.md").read_text()


def test_mend_11_some_splits_of_a_registrys_dataset(world):
    """The split keeps the source's name of it; several entries of one dataset join their splits."""
    for number, datasets in enumerate((
        [{"name": "msmarco-passage", "splits": ["dl19"]}],
        ["msmarco-passage/dl19", {"name": "msmarco-passage", "splits": ["dl20"]}],
    )):  # fmt: skip
        config = {"experiment": f"splits-{number}", "models": [{"id": "bm25", "bm25": {}}]}
        done = snakemake(world["workdir"], config=config | {"datasets": datasets}, env=world["env"])
        if done.status:
            done.refused("msmarco-passage")
            assert number == 1
            continue
        rows = table(world["workdir"] / f"results/splits-{number}/metrics.tsv")
        assert {row["split"] for row in rows} == ({"dl19"} if number == 0 else {"dl19", "dl20"})
