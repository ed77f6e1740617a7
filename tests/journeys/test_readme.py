"""README.md: every command that it shows, in order, in a fresh clone, and every config."""

import re
import subprocess

import public
import pytest
import yaml
from cloning import fresh_clone
from drive import REPOSITORY, Done, Results, environment, run, table
from embedding_server import EmbeddingServer
from helpers import XQUAD
from hub_server import HubServer
from minilm import minilm_folder
from stand_ins import Texts, adapter, bert, cross_encoder, files
from test_experiments import pins

pytestmark = pytest.mark.journey
TEXT = (REPOSITORY / "README.md").read_text(encoding="utf-8")
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
# What stands here isn't run: command (its beginning) and why.
ELSEWHERE = {
    "make test ": "these are the tests",
    ".venv/bin/python -m pip install --group cluster": "installs; tests/cluster runs it",
    ".venv/bin/snakemake --profile profiles/slurm": "needs Slurm and root; tests/cluster runs it",
}


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in fenced("sh") for line in block.splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def shown_configs() -> dict[str, str]:
    """File name → text of the configs that README shows; each begins with its name."""
    found = {}
    for block in fenced("yaml"):
        name = re.match(r"# (\S+\.yaml)\n", block)
        assert name, f"a config without a file name in its first line:\n{block}"
        found[name[1]] = block
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A fresh clone with the configs that README shows, and a hub that serves what they name."""
    folder = tmp_path_factory.mktemp("readme")
    clone = fresh_clone(folder / "embed-repro")
    for name, text in shown_configs().items():
        # How fast a device is reckoned with changes no number, only into how many jobs work is cut.
        (clone / name).write_text(f"{text}plan: {{tflops: 1000000}}\n", encoding="utf-8")
    base = bert(folder / "checkpoints/my-model-2.0")
    adapter(folder / "checkpoints/my-adapter", base, targets=("query",))
    for number in (1000, 2000):
        bert(clone / f"checkpoints/step-{number}", seed=number)
    Texts(1).beir(clone / "data/mine")
    models = {name: files(path) for name, path in public.models(folder / "models").items()}
    models[MINILM] = files(minilm_folder())
    tables = public.datasets()
    if XQUAD.is_dir():
        tables["mteb/XQuADRetrieval"] = public.dataset_files(xquad())
    home = folder / "home"
    bert(home / "models/me/Dotted-1.5")
    cross_encoder(folder / "cross")
    with (
        HubServer(models, tables, commits=pins() | registry_pins()) as hub,
        EmbeddingServer(home / "models/me/Dotted-1.5", "tei", "BAAI/bge-base-en-v1.5") as tei,
        EmbeddingServer(tei.folder, "openai", "text-embedding-3-small") as openai,
        EmbeddingServer(folder / "cross", "tei", "BAAI/bge-reranker-base", reranker=True) as cross,
    ):
        served = (clone / "served.yaml").read_text("utf-8")
        for address, local in (
            ("http://gpu3:8080", tei.url),
            ("https://api.openai.com/v1", f"{openai.url}/v1"),
            ("http://gpu3:8081", cross.url),
        ):
            served = served.replace(address, local)
        (clone / "served.yaml").write_text(served, encoding="utf-8")
        own = {k: v for k, v in hub.env().items() if k.startswith("HF_")}
        env = environment(**own, HF_HOME=str(folder / "hf"), NO_PROXY="127.0.0.1")
        env |= {"JOURNEYS_IR_DATASETS": str(public.ir_datasets(folder / "ir"))}
        yield clone, env, home


def registry_pins() -> dict[str, str]:
    """Model → the commit that the registry pins, by hand or from mteb."""
    tables = [REPOSITORY / f"rules/registry/models.{ending}" for ending in ("json", "yaml")]
    known = [yaml.safe_load(path.read_text("utf-8"))["models"] for path in tables]
    entries = [item for table in known for item in table.items()]
    return {name: entry["revision"] for name, entry in entries if "revision" in entry}


def xquad() -> dict[str, dict[str, dict]]:
    """The real XQuAD en, as MTEB's repository holds it."""
    import csv
    import json

    def lines(name: str) -> list[dict]:
        return [json.loads(line) for line in (XQUAD / name).read_text("utf-8").splitlines()]

    corpus, queries = lines("corpus.jsonl"), lines("queries.jsonl")
    texts = {"_id": [d["_id"] for d in corpus], "title": [d.get("title") or "" for d in corpus]}
    texts["text"] = [d["text"] for d in corpus]
    (path,) = (XQUAD / "qrels").glob("*.tsv")
    with open(path, newline="", encoding="utf-8") as file:
        judged = [list(row.values()) for row in csv.DictReader(file, delimiter="\t")]
    qrels = dict(zip(("query-id", "corpus-id"), zip(*[row[:2] for row in judged]), strict=True))  # noqa: B905
    qrels = {k: list(v) for k, v in qrels.items()} | {"score": [float(r[2]) for r in judged]}
    asked = {"_id": [q["_id"] for q in queries], "text": [q["text"] for q in queries]}
    return {"en-corpus": {"validation": texts}, "en-queries": {"validation": asked},
            "en-qrels": {"validation": qrels}}  # fmt: skip


def shell(place, line: str) -> Done:
    clone, env, home = place
    line = line.replace("<repo>", str(clone)).replace("<folder>", str(clone.parent / "folder"))
    line = line.replace("hf_…", "hf_only_for_tests")
    return run(["bash", "-c", line], clone, env | {"HOME": str(home)})


def one_row(place) -> None:
    """my.yaml with its last model on its first dataset: FlagEmbedding starts afresh for each."""
    clone, _, _ = place
    config = yaml.safe_load((clone / "my.yaml").read_text("utf-8"))
    config["models"], config["datasets"] = config["models"][-1:], config["datasets"][:1]
    (clone / "my.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def test_every_command_is_run_or_excused(place):
    clone, _, _ = place
    folder = clone.parent / "folder"
    folder.mkdir()
    (folder / "store").symlink_to(clone / "store")
    left = set(ELSEWHERE)
    for line in commands():
        excuse = next((start for start in ELSEWHERE if line.startswith(start)), None)
        if excuse:
            left.discard(excuse)
            continue
        if line.startswith("make reproduce") and not XQUAD.is_dir():
            continue  # the published number needs the published data
        if line.startswith("make reference"):
            one_row(place)
        if line.startswith("<repo>"):
            (folder / "my.yaml").write_bytes((clone / "my.yaml").read_bytes())
            line = line.replace("--configfile my.yaml", f"--configfile {folder}/my.yaml")
        done = shell(place, line)
        done.ok()
        looked_at(clone, line, done)
    assert not left, f"excused, but no longer in README: {left}"


def looked_at(clone, line: str, done: Done) -> None:
    """What README says that the command ends with."""
    if re.match(r"make run\b(?!.*EXPERIMENT)", line):
        assert "results/demo/report.html" in done.screen
        assert Results(clone, "demo").metric(MINILM, "nDCG@10") == pytest.approx(0.642, abs=0.01)
        again = run(["make", "run"], clone).ok()
        assert not again.computing and "results/demo/report.html" in again.screen
    elif "make run EXPERIMENT=my.yaml" in line:
        assert {row["dataset"] for row in table(clone / "results/mine/metrics.tsv")} >= {
            "beir/scifact",
            "beir/nfcorpus",
        }
    elif line.startswith("make plan"):
        assert not done.computing and "gte-Qwen2-1.5B-instruct" in done.screen
    elif line.startswith("make reproduce"):
        (row,) = [
            row
            for row in table(clone / "results/xquad-minilm/verdicts.tsv")
            if row["metric"] == "nDCG@10"
        ]
        assert row["verdict"].startswith("reproduced"), row
        assert float(row["measured"]) == pytest.approx(0.94357, abs=1e-5)
        assert "reproduced" in done.screen
    elif "check_names.py Alibaba" in line:
        assert "No module named 'transformers_modules.Alibaba-NLP.gte-Qwen2-1'" in done.screen
    elif line.startswith("make reference"):
        assert (clone / "results/mine/parity.json").is_file() or "parity" in done.screen


@pytest.mark.parametrize("name", [n for n in shown_configs() if n != "my.yaml"])
def test_every_shown_config_runs(place, name):
    clone, env, _ = place
    config = yaml.safe_load((clone / name).read_text("utf-8"))
    run(["make", "run", f"EXPERIMENT={name}"], clone, env).ok()
    rows = table(clone / "results" / config["experiment"] / "metrics.tsv")
    assert {row["model_id"] for row in rows} == {model["id"] for model in config["models"]}
    assert len({row["model"] for row in rows}) >= len(config["models"])


def test_the_clone_is_what_git_has(place):
    clone, _, _ = place
    status = ["git", "status", "--porcelain", "--untracked-files=no"]
    done = subprocess.run(status, cwd=clone, capture_output=True, text=True, check=True)
    changed = [line for line in done.stdout.splitlines() if "pyproject.toml" not in line]
    assert not changed
